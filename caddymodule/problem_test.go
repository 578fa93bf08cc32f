package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
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

// FuzzProblem puts any words of Oz into a problem document: it stays one object of valid UTF-8 that every JSON reader takes, of a
// bounded size, with the status that the answer has.
func FuzzProblem(f *testing.F) {
	f.Add(14, "Invalid container")
	f.Add(-1<<31, "\x00\xff\u2028\"}{</script>")
	f.Add(0, strings.Repeat("\u00e9", 300))
	f.Fuzz(func(t *testing.T, code int, message string) {
		p := newProblem(string(oz.Container), http.StatusBadRequest, "t", "d").withOzError(&oz.Error{Code: code, Message: message})
		doc := p.document()
		if !utf8.Valid(doc) || len(doc) > 2500 || strings.ContainsFunc(string(doc), func(c rune) bool { return c < ' ' }) {
			t.Errorf("the document is %q", doc)
		}
		if got := p.read(t); got["status"] != 400.0 || got["error_code"] != float64(code) || len(got) < 5 || len(got) > 6 {
			t.Errorf("read as %v", got)
		}
	})
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
		doc := new(Handler).problem(&Result{verdict: oz.Verdict{Decision: decisionOf(reason), Reason: reason}}).read(t)
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
	if p := problemFor("news", "", ozclient.Report{}); p.Status != 502 || p.kind != "news" || p.Title == "" {
		t.Errorf("%+v", p)
	}
}

// Only Overloaded has a Retry-After: Oz's if it gave one. With no upstream at
// all the status is 503, as reverse_proxy has it.
func TestProblemHeaderAndStatus(t *testing.T) {
	answered := func(r oz.Reason, report ozclient.Report) attempt {
		return attempt{liveness: ozclient.Answer{Verdict: oz.ReasonVerdict(r), Report: report}}
	}
	matching := answered(oz.Overloaded, ozclient.Report{RetryAfter: "40"})
	matching.match = &match{answer: ozclient.Answer{Verdict: oz.ReasonVerdict(oz.Overloaded), Report: ozclient.Report{RetryAfter: "50"}}}
	for _, test := range []struct {
		name       string
		attempt    attempt
		retryAfter string
		status     int
	}{
		{"busy", answered(oz.Overloaded, ozclient.Report{}), "6", 503},
		{"Oz says when", answered(oz.Overloaded, ozclient.Report{RetryAfter: "40"}), "40", 503},
		{"the match says when", matching, "50", 503},
		{"not busy", answered(oz.Timeout, ozclient.Report{RetryAfter: "40"}), "", 504},
		{"unreachable", answered(oz.Unreachable, ozclient.Report{}), "", 502},
		{"no upstream", answered(oz.Unreachable, ozclient.Report{NoUpstream: true}), "", 503},
		{"replayed, and no upstream", attempt{guarded: guarded{reason: oz.Replayed}, liveness: answered(oz.Unreachable, ozclient.Report{NoUpstream: true}).liveness}, "", 409},
		{"replayed, and no capacity", attempt{guarded: guarded{reason: oz.Replayed}, refused: &upload.Refused{Cause: upload.CauseQueue, RetryAfter: time.Second}}, "", 409},
		{"no store, and no capacity", attempt{guarded: guarded{reason: oz.StoreUnavailable}, refused: &upload.Refused{Cause: upload.CauseQueue, RetryAfter: time.Second}}, "", 503},
		{"no capacity", attempt{refused: &upload.Refused{Cause: upload.CauseQueue, RetryAfter: 2500 * time.Millisecond}}, "3", 503},
		{"no capacity, and nobody knows until when", attempt{refused: &upload.Refused{Cause: upload.CauseMemory}}, "6", 503},
	} {
		p := new(Handler).problem(newResult(test.attempt, false))
		if got := p.header.Get("Retry-After"); got != test.retryAfter || p.Status != test.status {
			t.Errorf("%s: %d, Retry-After %q", test.name, p.Status, got)
		}
	}
}

// Without capacity nothing was sent, so that the same capsule is still good:
// unlike an Oz that is busy, of which nobody knows.
func TestProblemWithoutCapacity(t *testing.T) {
	p := new(Handler).problem(newResult(attempt{refused: &upload.Refused{Cause: upload.CauseWait}}, false))
	if p.Status != 503 || !strings.Contains(p.Detail, "Send the same capsule again") {
		t.Errorf("%+v", p)
	}
	if busy := new(Handler).problem(newResult(judged(oz.ReasonVerdict(oz.Overloaded)), false)); strings.Contains(busy.Detail, "same capsule") {
		t.Errorf("Oz itself is busy: %s", busy.Detail)
	}
}

// What a client did wrong with its upload has a status and words of its own.
func TestUploadProblem(t *testing.T) {
	h := &Handler{MaxCapsule: 1 << 20, UploadTimeout: defaultUploadTimeout}
	for _, test := range []struct {
		fault  error
		kind   string
		status int
		detail string
	}{
		{upload.ErrTooLarge, kindCapsuleTooLarge, 413, "1.0 MiB"},
		{fmt.Errorf("x: %w", &http.MaxBytesError{Limit: 2 << 20}), kindCapsuleTooLarge, 413, "2.0 MiB are accepted; the operator sets the limit with request_body"},
		{upload.ErrStalled, kindUploadTimeout, 408, "no progress"},
		{upload.ErrTimeout, kindUploadTimeout, 408, "2m0s"},
		{upload.ErrSiteTimeout, kindUploadTimeout, 408, "timeouts of this site"},
		{upload.ErrShort, kindUnreadableCapsule, 400, ""},
		{io.ErrNoProgress, kindUnreadableCapsule, 400, ""},
		{ozclient.ErrInvalidHeader, kindInvalidValue, 400, "control characters"},
		{upload.ErrGone, kindClientGone, statusClientGone, ""},
	} {
		p := h.problem(newResult(attempt{refused: test.fault}, false))
		if p.kind != test.kind || p.Status != test.status || !strings.Contains(p.Detail, test.detail) {
			t.Errorf("%v: %s %d %s", test.fault, p.kind, p.Status, p.Detail)
		}
	}
}

func TestTokenProblem(t *testing.T) {
	busy := &ozclient.Error{Reason: oz.Overloaded, Err: errors.New("oz answered 503")}
	p := tokenProblem(ozclient.Report{RetryAfter: "3"}, busy)
	if p.Status != 503 || p.header.Get("Retry-After") != "3" || !strings.HasPrefix(p.Detail, "There is no session token. ") {
		t.Errorf("%+v", p)
	}
	lost := &ozclient.Error{Reason: oz.Unreachable, Err: errors.New("refused")}
	if p := tokenProblem(ozclient.Report{NoUpstream: true}, lost); p.Status != 503 {
		t.Errorf("no upstream: %d", p.Status)
	}
	if p := tokenProblem(ozclient.Report{}, &upload.Refused{Cause: upload.CauseQueue, RetryAfter: time.Second}); p.Status != 503 || p.header.Get("Retry-After") != "1" {
		t.Errorf("too many at once: %+v", p)
	}
	for _, err := range []error{context.Canceled, &ozclient.Error{Fault: ozclient.FaultClient, Err: upload.ErrGone}} {
		if p := tokenProblem(ozclient.Report{}, err); p.Status != statusClientGone {
			t.Errorf("%v: %d", err, p.Status)
		}
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
	for _, row := range refusals {
		ofClient := row.status >= 400 && row.status <= 499
		if seen[row.kind] || ofClient == (row.kind == kindShuttingDown) {
			t.Errorf("%+v is there twice, or has the status of another kind", row)
		}
		seen[row.kind] = true
		if _, isReason := reasonProblems[oz.Reason(row.kind)]; isReason {
			t.Errorf("%s is a Reason, too", row.kind)
		}
	}
}

// siteWith is a server whose handle_errors routes are these.
func siteWith(t *testing.T, routes string) *caddyhttp.Server {
	t.Helper()
	s := &caddyhttp.Server{Errors: new(caddyhttp.HTTPErrorConfig)}
	if err := json.Unmarshal([]byte(routes), &s.Errors.Routes); err != nil {
		t.Fatal(err)
	}
	if err := s.Errors.Routes.Provision(newContext(t)); err != nil {
		t.Fatal(err)
	}
	return s
}

// at is a request to a site.
func at(s *caddyhttp.Server, target string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, target, nil)
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), httptest.NewRecorder(), s)
}

const (
	errorPage   = `{"handle": [{"handler": "static_response", "body": "sorry"}]}`
	for502      = `"match": [{"expression": "{http.error.status_code} == 502"}]`
	forAppHost  = `"match": [{"host": ["app.example.com"]}]`
	forVerify   = `"match": [{"path": ["/verify"]}]`
	aSubroute   = `"handle": [{"handler": "subroute", "routes": [`
	endSubroute = `]}]`
)

// routeTests are handle_errors routes, and who answers with them.
var routeTests = []struct {
	name, routes string
	body         string // empty: the problem document
	status       int
	header       string // X-Route of the answer
}{
	{"no routes", `[]`, "", 502, ""},
	{"for all errors", `[` + errorPage + `]`, "sorry", 502, ""},
	{"for this status", `[{` + for502 + `, "handle": [{"handler": "static_response", "body": "sorry"}]}]`, "sorry", 502, ""},
	{"for another status", `[{` + strings.Replace(for502, "502", "404", 1) + `, "handle": [{"handler": "static_response", "body": "sorry"}]}]`, "", 502, ""},
	{"for this path", `[{` + forVerify + `, "handle": [{"handler": "static_response", "body": "sorry"}]}]`, "sorry", 502, ""},
	{"of this site", `[{` + forAppHost + `, "terminal": true, ` + aSubroute + errorPage + endSubroute + `}]`, "sorry", 502, ""},
	{"of another site", `[{` + strings.Replace(forAppHost, "app", "other", 1) + `, "terminal": true, ` + aSubroute + errorPage + endSubroute + `}]`, "", 502, ""},
	{"that only sets a field", `[{"handle": [` + setField + `]}]`, "", 502, "seen"},
	{"that only sets a field, and is the last", `[{"terminal": true, ` + aSubroute + `{"handle": [` + setField + `]}` + endSubroute + `}]`, "", 502, "seen"},
	{"that sets a field and does not match in the end", `[{"terminal": true, ` + aSubroute + `{"handle": [` + setField + `]}, {` + strings.Replace(for502, "502", "404", 1) +
		`, "handle": [{"handler": "static_response", "body": "sorry"}]}` + endSubroute + `}]`, "", 502, "seen"},
	{"with a status and a body of its own", `[{"handle": [{"handler": "static_response", "status_code": 418, "body": "tea"}]}]`, "tea", 418, ""},
	{"that redirects", `[{"handle": [{"handler": "static_response", "status_code": 303, "headers": {"Location": ["/sorry"]}}]}]`, "-", 303, ""},
	{"that fails", `[{"handle": [` + setField + `, {"handler": "error", "status_code": 500}]}]`, "", 502, "seen"},
	{"with a matcher that fails", `[{"match": [{"expression": "{http.error.nonsense}.size() > 0"}], "handle": [{"handler": "static_response", "body": "sorry"}]}]`, "", 502, ""},
}

const setField = `{"handler": "headers", "response": {"set": {"X-Route": ["seen"]}}}`

// A refusal is what the site's error routes write; where they write no body it
// is the problem document, with the fields that they set.
func TestErrorRoutesAndTheDocument(t *testing.T) {
	for _, test := range routeTests {
		t.Run(test.name, func(t *testing.T) {
			h := &Handler{logger: zap.NewNop()}
			w := httptest.NewRecorder()
			p := newProblem("a-kind", 502, "title", "detail")
			if err := h.refuse(w, at(siteWith(t, test.routes), "http://app.example.com/verify"), p, false); err != nil {
				t.Fatal(err)
			}
			want := test.body
			switch want {
			case "":
				want = string(p.document())
			case "-":
				want = ""
			}
			if w.Code != test.status || w.Body.String() != want || w.Header().Get("X-Route") != test.header {
				t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
			}
			if isProblem := w.Header().Get("Content-Type") == problemMediaType; isProblem != (test.body == "") {
				t.Errorf("Content-Type %q", w.Header().Get("Content-Type"))
			}
		})
	}
}

// Error routes see the request as the client sent it, less the spent capsule;
// the request itself keeps what is left of its body.
func TestErrorRoutesGetTheRequestAsReceived(t *testing.T) {
	site := siteWith(t, `[{`+forVerify+`, "handle": [{"handler": "static_response", "body": "{http.request.uri} {http.error.message}"}]}]`)
	r := at(site, "/verify?a=b")
	r.URL.Path, r.Method, r.RequestURI = "/rewritten", http.MethodPut, "/rewritten"
	w := httptest.NewRecorder()
	if err := (&Handler{logger: zap.NewNop()}).refuse(w, r, newProblem("k", 502, "title", "detail"), false); err != nil {
		t.Fatal(err)
	}
	if w.Body.String() != "/verify?a=b title: detail" {
		t.Errorf("%s", w.Body)
	}
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader("rest")), 4
	r.Header = http.Header{"Content-Type": {capsuleMediaType}, "Content-Length": {"4"}, "Cookie": {"a=b"}}
	got := spent(asReceived(r))
	if got.Method != http.MethodPost || got.RequestURI != "/verify?a=b" || got.URL.Path != "/verify" || got.ContentLength != 0 || got.Body != http.NoBody {
		t.Errorf("%s %s %s, %d", got.Method, got.RequestURI, got.URL, got.ContentLength)
	}
	if !reflect.DeepEqual(got.Header, http.Header{"Cookie": {"a=b"}}) {
		t.Errorf("%v", got.Header)
	}
	if rest, _ := io.ReadAll(r.Body); string(rest) != "rest" {
		t.Error("the body is gone")
	}
}

// A refusal says all that is known of it.
func TestRefuse(t *testing.T) {
	p := newProblem("a-kind", http.StatusBadGateway, "title", "detail").with("Retry-After", "5").with("Allow", "POST")
	w := httptest.NewRecorder()
	if err := new(Handler).refuse(w, at(new(caddyhttp.Server), "/verify"), p, false); err != nil {
		t.Fatal(err)
	}
	doc := string(p.document())
	if w.Code != 502 || w.Body.String() != doc {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for name, want := range map[string]string{
		"Content-Type": problemMediaType, "Content-Length": strconv.Itoa(len(doc)), "Cache-Control": "no-store",
		"Retry-After": "5", "Allow": "POST", "Connection": "",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// To a client that left nothing is said, whatever pages the site has.
func TestRefuseNobody(t *testing.T) {
	w := httptest.NewRecorder()
	if err := new(Handler).refuse(w, at(siteWith(t, `[`+errorPage+`]`), "/verify"), clientGone(), false); err != nil {
		t.Fatal(err)
	}
	if w.Code != statusClientGone || w.Body.Len() > 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// A problem after which nothing more may come ends the connection, too.
func TestRefuseHangsUp(t *testing.T) {
	for _, hangUp := range []bool{true, false} {
		p := newProblem("k", 400, "t", "d")
		p.hangUp = hangUp
		w := httptest.NewRecorder()
		if err := new(Handler).refuse(w, at(new(caddyhttp.Server), "/"), p, false); err != nil || (w.Header().Get("Connection") == "close") != hangUp {
			t.Errorf("hangUp %v: %v, %v", hangUp, err, w.Header())
		}
	}
}

// A refused body is not waited for before the answer: all of the answer comes
// while the client has sent nothing yet.
func TestRefusedBodyIsNotWaitedFor(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wrapper := &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}
		_ = new(Handler).refuse(wrapper, fromClient(wrapper, r), newProblem("k", 413, "t", "d"), true)
	}))
	defer srv.Close()
	body, writer := io.Pipe() // of which nothing ever comes
	defer writer.Close()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, body)
	req.ContentLength = 1 << 20
	res, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	doc := make([]byte, res.ContentLength)
	if _, err := io.ReadFull(res.Body, doc); err != nil || res.StatusCode != 413 || !json.Valid(doc) || !res.Close {
		t.Errorf("%d %s (%v), closes %v", res.StatusCode, doc, err, res.Close)
	}
	_ = writer.Close() // or the server lingers
}
