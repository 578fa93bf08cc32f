package caddymodule

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// read is a problem document as a client reads it.
func (p *problem) read(t *testing.T) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(p.document(), &doc); err != nil {
		t.Fatalf("%s: %v", p.document(), err)
	}
	return doc
}

// A document has the members of RFC 9457, and Oz's own only where Oz said
// something: a code of 0 is one.
func TestProblemDocument(t *testing.T) {
	p := newProblem(string(oz.Container), 418, `a "title"`, "a <detail>")
	want := map[string]any{"type": "urn:oz-instant:problem:container", "title": `a "title"`, "status": 418.0, "detail": "a <detail>"}
	if got := p.read(t); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	p.withOzError(nil)
	if got := p.read(t); !reflect.DeepEqual(got, want) {
		t.Errorf("without an error of Oz: %v", got)
	}
	p.withOzError(&oz.Error{Code: 0, Message: ""})
	want["error_code"] = 0.0
	if got := p.read(t); !reflect.DeepEqual(got, want) {
		t.Errorf("with code 0: %v", got)
	}
	p.withOzError(&oz.Error{Code: 14, Message: "bad\xffbytes\u2028"})
	want["error_code"], want["error_message"] = 14.0, "bad\ufffdbytes\u2028"
	if got := p.read(t); !reflect.DeepEqual(got, want) {
		t.Errorf("with code 14: %v", got)
	}
	if p.Error() != `a "title": a <detail>` {
		t.Errorf("as an error: %s", p.Error())
	}
	// What Oz says about anything but a capsule is for the operator.
	other := newProblem(string(oz.Unauthorized), 502, "t", "d").withOzError(&oz.Error{Code: 7, Message: "token abc is unknown"})
	if other.ErrorMessage != "" || *other.ErrorCode != 7 {
		t.Errorf("to a client: %s", other.document())
	}
}

// Every Reason that does not reach the app by itself has words of its own, and
// no other has: the table and the decisions say the same.
func TestEveryReasonHasAProblem(t *testing.T) {
	want := make(map[oz.Reason]bool)
	for _, row := range oz.Outcomes() {
		if !reachesApp(row.Decision) {
			want[row.Reason] = true
		}
	}
	for reason := range reasonProblems {
		if !want[reason] {
			t.Errorf("%s has a problem and needs none", reason)
		}
	}
	titles := make(map[string]oz.Reason)
	for _, reason := range slices.Sorted(maps.Keys(want)) {
		row, ok := reasonProblems[reason]
		if !ok {
			t.Errorf("%s has no problem", reason)
			continue
		}
		if row.status < 400 || row.status > 599 || row.title == "" || row.detail == "" {
			t.Errorf("%s: %+v", reason, row)
		}
		if other, again := titles[row.title]; again {
			t.Errorf("%s and %s have one title", reason, other)
		}
		titles[row.title] = reason
		doc := verdictProblem(outcome{verdict: oz.Verdict{Decision: decisionOf(reason), Reason: reason}}).read(t)
		if doc["type"] != "urn:oz-instant:problem:"+string(reason) || doc["status"] != float64(row.status) {
			t.Errorf("%s: %v", reason, doc)
		}
		undecided := strings.HasPrefix(doc["detail"].(string), "Nothing was decided. ")
		if undecided != (decisionOf(reason) == oz.Unavailable) {
			t.Errorf("%s: %s", reason, doc["detail"])
		}
	}
}

func decisionOf(reason oz.Reason) oz.Decision {
	for _, row := range oz.Outcomes() {
		if row.Reason == reason {
			return row.Decision
		}
	}
	return ""
}

// A Reason that has no words must not come out as a success of some kind.
func TestProblemForAnUnknownReason(t *testing.T) {
	if p := problemFor("news", "", false, ""); p.Status != 502 || p.kind != "news" || p.Title == "" {
		t.Errorf("%+v", p)
	}
}

// Only Overloaded has a Retry-After: Oz's if it gave one. With no upstream at
// all the status is 503, as reverse_proxy has it.
func TestProblemHeaderAndStatus(t *testing.T) {
	for _, test := range []struct {
		name       string
		outcome    outcome
		retryAfter string
		status     int
	}{
		{"busy", outcome{verdict: oz.ReasonVerdict(oz.Overloaded)}, "6", 503},
		{"Oz says when", outcome{verdict: oz.ReasonVerdict(oz.Overloaded), answer: answer{retryAfter: "40"}}, "40", 503},
		{
			"the match says when",
			outcome{verdict: oz.ReasonVerdict(oz.Overloaded), answer: answer{retryAfter: "40"}, match: &match{answer: answer{retryAfter: "50"}}},
			"50", 503,
		},
		{"not busy", outcome{verdict: oz.ReasonVerdict(oz.Timeout), answer: answer{retryAfter: "40"}}, "", 504},
		{"unreachable", outcome{verdict: oz.ReasonVerdict(oz.Unreachable)}, "", 502},
		{"no upstream", outcome{verdict: oz.ReasonVerdict(oz.Unreachable), noUpstream: true}, "", 503},
	} {
		p := verdictProblem(test.outcome)
		if got := p.header.Get("Retry-After"); got != test.retryAfter || p.Status != test.status {
			t.Errorf("%s: %d, Retry-After %q", test.name, p.Status, got)
		}
	}
}

// Without capacity nothing was sent, so that the same capsule is still good:
// unlike an Oz that is busy, of which nobody knows.
func TestProblemWithoutCapacity(t *testing.T) {
	o := outcome{}.ended(&busyError{refusalWait, 0})
	p := verdictProblem(o)
	if p.Status != 503 || !strings.Contains(p.Detail, "Send the same capsule again") {
		t.Errorf("%+v", p)
	}
	if busy := verdictProblem(outcome{verdict: oz.ReasonVerdict(oz.Overloaded)}); strings.Contains(busy.Detail, "same capsule") {
		t.Errorf("Oz itself is busy: %s", busy.Detail)
	}
}

func TestSessionProblem(t *testing.T) {
	p := sessionProblem(&call{fault: &fault{oz.Overloaded, errors.New("oz answered 503")}, retryAfter: "3"})
	if p.Status != 503 || p.header.Get("Retry-After") != "3" || !strings.HasPrefix(p.Detail, "There is no session token. ") {
		t.Errorf("%+v", p)
	}
	if p := sessionProblem(&call{fault: &fault{oz.Unreachable, errors.New("refused")}, noUpstream: true}); p.Status != 503 {
		t.Errorf("no upstream: %d", p.Status)
	}
}

// A text is cut between characters, never within one, and only if it is too long.
func TestShorten(t *testing.T) {
	for _, test := range []struct {
		text string
		most int
		want string
	}{
		{"", 3, ""},
		{"abc", 3, "abc"},
		{"abcd", 3, "abc"},
		{"aé", 3, "aé"},
		{"aéb", 3, "aé"},
		{"abé", 3, "ab"},
		{"a€b", 3, "a"},
		{"a😀b", 4, "a"},
		{"😀", 3, ""},
		{"\xa9\xa9\xa9\xa9", 3, ""},
	} {
		got := shorten(test.text, test.most)
		if got != test.want {
			t.Errorf("%q to %d: %q, want %q", test.text, test.most, got, test.want)
		}
		if utf8.ValidString(test.text) && !utf8.ValidString(got) {
			t.Errorf("%q was cut within a character", test.text)
		}
	}
	long := newProblem(string(oz.Container), 400, "t", "d").withOzError(&oz.Error{Code: 1, Message: strings.Repeat("€", 200)})
	if n := len(long.ErrorMessage); n != 255 {
		t.Errorf("Oz's message has %d bytes", n)
	}
}

// The kinds of refusals are a closed set: one that is missing from it would
// have no series in the metrics.
func TestRefusalKindsAreDistinct(t *testing.T) {
	seen := make(map[string]bool)
	for _, kind := range refusalKinds {
		if seen[kind] {
			t.Errorf("%s is there twice", kind)
		}
		seen[kind] = true
		if _, isReason := reasonProblems[oz.Reason(kind)]; isReason {
			t.Errorf("%s is a Reason, too", kind)
		}
	}
}
