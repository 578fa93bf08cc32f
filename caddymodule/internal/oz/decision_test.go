package oz

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const containerError = `{"error_code":14,"error_message":"Invalid request data","details":null}`

var qualityRequired = Policy{Analyses: []string{Quality}}

// The rows of the policy table that Judge fills, in its order.
func TestJudge(t *testing.T) {
	analysis := func(typ, state, status string) string {
		return `{"type":"` + typ + `","state":"` + state + `","resolution_status":"` + status + `"}`
	}
	success := func(analyses ...string) string {
		return `{"resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[` + strings.Join(analyses, ",") + `]}`
	}
	good := analysis("QUALITY", "FINISHED", "SUCCESS")
	nonce := []Requirement{{mustPath(t, "meta_data.transaction_id"), "order-1"}}
	foreign := []Requirement{nonce[0], {mustPath(t, "meta_data.transaction_id"), "order-2"}}
	unset := []Requirement{{mustPath(t, "meta_data.transaction_id"), ""}}
	both := Policy{Analyses: []string{Quality, Biometry}}

	for _, tc := range []struct {
		name         string
		status       int
		doc          string
		policy       Policy
		requirements []Requirement
		want         Outcome
		folder       bool
		code         int // of Verdict.Error; 0 for none
	}{
		{name: "1 accepted", status: 201, doc: goodFolder(10), policy: qualityRequired, want: Outcome{Success, ""}, folder: true},
		{name: "1 accepted, 200", status: 200, doc: goodFolder(10), policy: qualityRequired, want: Outcome{Success, ""}, folder: true},
		{name: "1 accepted, bound", status: 201, doc: goodFolder(10), policy: qualityRequired, requirements: nonce, want: Outcome{Success, ""}, folder: true},
		{name: "1 accepted, no analysis required", status: 201, doc: success(), want: Outcome{Success, ""}, folder: true},
		{name: "1 accepted, several analyses", status: 201, doc: success(good, analysis("BIOMETRY", "FINISHED", "SUCCESS"), good), policy: both, want: Outcome{Success, ""}, folder: true},
		{name: "1 accepted, another analysis is not required", status: 201, doc: success(good, analysis("DOCUMENTS", "FINISHED", "DECLINED")), policy: qualityRequired, want: Outcome{Success, ""}, folder: true},
		{name: "2 declined", status: 201, doc: sampleFolder("FINISHED", "DECLINED", "DECLINED", ""), policy: qualityRequired, want: Outcome{Declined, ""}, folder: true},
		{name: "3 operator required", status: 201, doc: sampleFolder("FINISHED", "OPERATOR_REQUIRED", "SUCCESS", ""), policy: qualityRequired, want: Outcome{OperatorRequired, ""}, folder: true},
		{name: "4 both failed", status: 201, doc: sampleFolder("FAILED", "FAILED", "FAILED", ""), policy: qualityRequired, want: Outcome{Failed, AnalysisFailed}, folder: true},
		{name: "4 resolution failed", status: 201, doc: sampleFolder("FAILED", "SUCCESS", "SUCCESS", ""), policy: qualityRequired, want: Outcome{Failed, AnalysisFailed}, folder: true},
		{name: "4 system failed", status: 201, doc: sampleFolder("FINISHED", "FAILED", "SUCCESS", ""), policy: qualityRequired, want: Outcome{Failed, AnalysisFailed}, folder: true},
		{name: "4 failed with an unknown word", status: 201, doc: sampleFolder("PROCESSING", "FAILED", "SUCCESS", ""), policy: qualityRequired, want: Outcome{Failed, AnalysisFailed}, folder: true},
		{name: "4 failed with a code", status: 201, doc: `{"resolution_status":"FAILED","analyses":[{},{"error_code":11,"error_message":"x"},{"error_code":12}]}`, want: Outcome{Failed, AnalysisFailed}, folder: true, code: 11},
		{name: "5 no analyses", status: 201, doc: success(), policy: qualityRequired, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "5 another analysis", status: 201, doc: success(analysis("BIOMETRY", "FINISHED", "SUCCESS")), policy: qualityRequired, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "5 one of two", status: 201, doc: success(good), policy: both, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "5 lower case", status: 201, doc: success(analysis("quality", "FINISHED", "SUCCESS")), policy: qualityRequired, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "5 not finished", status: 201, doc: success(analysis("QUALITY", "PROCESSING", "SUCCESS")), policy: qualityRequired, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "5 declined", status: 201, doc: success(analysis("QUALITY", "FINISHED", "DECLINED")), policy: qualityRequired, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "5 a second one declined", status: 201, doc: success(good, analysis("QUALITY", "FINISHED", "DECLINED")), policy: qualityRequired, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "5 a first one declined", status: 201, doc: success(analysis("QUALITY", "FINISHED", "DECLINED"), good), policy: qualityRequired, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "5 not all are objects", status: 201, doc: success(good, "null"), policy: qualityRequired, want: Outcome{Failed, AnalysisMissing}, folder: true},
		{name: "6 still running", status: 201, doc: sampleFolder("PROCESSING", "PROCESSING", "PROCESSING", ""), policy: qualityRequired, want: Outcome{Failed, StatusUnknown}, folder: true},
		{name: "6 success, not finished", status: 201, doc: sampleFolder("INITIAL", "SUCCESS", "SUCCESS", ""), policy: qualityRequired, want: Outcome{Failed, StatusUnknown}, folder: true},
		{name: "6 declined, not finished", status: 201, doc: sampleFolder("", "DECLINED", "DECLINED", ""), policy: qualityRequired, want: Outcome{Failed, StatusUnknown}, folder: true},
		{name: "6 no words", status: 201, doc: `{}`, want: Outcome{Failed, StatusUnknown}, folder: true},
		{name: "6 an error object", status: 201, doc: containerError, want: Outcome{Failed, StatusUnknown}, folder: true},
		{name: "7 another user's", status: 201, doc: goodFolder(10), policy: qualityRequired, requirements: foreign, want: Outcome{Invalid, Binding}, folder: true},
		{name: "7 no value to bind by", status: 201, doc: goodFolder(10), policy: qualityRequired, requirements: unset, want: Outcome{Invalid, Binding}, folder: true},
		{name: "7 whatever else it says", status: 201, doc: sampleFolder("FAILED", "FAILED", "FAILED", ""), policy: qualityRequired, requirements: foreign, want: Outcome{Invalid, Binding}, folder: true},
		{name: "8 invalid container", status: 400, doc: containerError, want: Outcome{Invalid, Container}, code: 14},
		{name: "8 invalid container, bound", status: 400, doc: containerError, requirements: foreign, want: Outcome{Invalid, Container}, code: 14},
		{name: "10 no token", status: 401, doc: `{"error_code":6}`, want: Outcome{Unavailable, Unauthorized}, code: 6},
		{name: "10 forbidden", status: 403, want: Outcome{Unavailable, Unauthorized}},
		{name: "10 forbidden, with a container code", status: 403, doc: containerError, want: Outcome{Unavailable, Unauthorized}, code: 14},
		{name: "11 too many", status: 429, want: Outcome{Unavailable, Overloaded}},
		{name: "11 busy", status: 503, doc: `<html>`, want: Outcome{Unavailable, Overloaded}},
		{name: "12 too large", status: 413, want: Outcome{Unavailable, TooLargeForOz}},
		{name: "13 bad request of another kind", status: 400, doc: `{"error_code":10}`, want: Outcome{Unavailable, UnexpectedStatus}, code: 10},
		{name: "13 bad request of a proxy", status: 400, doc: `<html>400</html>`, want: Outcome{Unavailable, UnexpectedStatus}},
		{name: "13 bad request with a folder", status: 400, doc: goodFolder(10), want: Outcome{Unavailable, UnexpectedStatus}},
		{name: "14 empty", status: 201, doc: ``, want: Outcome{Unavailable, MalformedAnswer}},
		{name: "14 HTML", status: 200, doc: `<html>`, want: Outcome{Unavailable, MalformedAnswer}},
		{name: "14 cut off", status: 201, doc: `{"resolution_status":"FINISHED","system_resolution":"SUCCESS"`, want: Outcome{Unavailable, MalformedAnswer}},
		{name: "14 a word twice", status: 201, doc: `{"resolution_status":"FINISHED","system_resolution":"DECLINED","system_resolution":"SUCCESS"}`, want: Outcome{Unavailable, MalformedAnswer}},
		{name: "14 another document behind it", status: 201, doc: success(good) + `{}`, policy: qualityRequired, want: Outcome{Unavailable, MalformedAnswer}},
		{name: "14 before any requirement", status: 201, doc: `[]`, requirements: foreign, want: Outcome{Unavailable, MalformedAnswer}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := tc.policy.Judge(tc.status, []byte(tc.doc), tc.requirements)
			if got := (Outcome{v.Decision, v.Reason}); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
			if (v.Folder != nil) != tc.folder {
				t.Errorf("folder: %+v", v.Folder)
			}
			if v.Error == nil && tc.code != 0 || v.Error != nil && v.Error.Code != tc.code {
				t.Errorf("error: %+v, want code %d", v.Error, tc.code)
			}
		})
	}
}

// Only 200 and 201 can bring a folder, whatever the body of another status says.
func TestJudgeNoOtherStatusAccepts(t *testing.T) {
	special := map[int]Reason{401: Unauthorized, 403: Unauthorized, 429: Overloaded, 503: Overloaded, 413: TooLargeForOz}
	doc := []byte(goodFolder(10))
	for status := -1; status < 1200; status++ {
		if status == 200 || status == 201 {
			continue
		}
		want := Verdict{Decision: Unavailable, Reason: UnexpectedStatus}
		if r, ok := special[status]; ok {
			want.Reason = r
		}
		if got := qualityRequired.Judge(status, doc, nil); !reflect.DeepEqual(got, want) {
			t.Errorf("%d: got %+v", status, got)
		}
	}
}

// Of all combinations of all words that Oz has, and some that it has not, one
// is an accept.
func TestJudgeOneCombinationAccepts(t *testing.T) {
	words := []string{
		"INITIAL", "PROCESSING", "FINISHED", "FAILED", "SUCCESS", "DECLINED", "OPERATOR_REQUIRED",
		"", "success", "Success", "SUCCESS ", " SUCCESS", "SUCCESS\u0000", "finished", "NOT_SUCCESS", "ＳＵＣＣＥＳＳ", "true", "1",
	}
	var accepted []string
	for _, resolution := range words {
		for _, system := range words {
			for _, state := range words {
				for _, quality := range words {
					doc := strings.NewReplacer("$R", resolution, "$S", system, "$T", state, "$Q", quality, "\x00", `\u0000`).Replace(
						`{"resolution_status":"$R","system_resolution":"$S","analyses":[{"type":"QUALITY","state":"$T","resolution_status":"$Q"}]}`)
					if qualityRequired.Judge(201, []byte(doc), nil).Decision == Success {
						accepted = append(accepted, resolution+" "+system+" "+state+" "+quality)
					}
				}
			}
		}
	}
	if want := []string{"FINISHED SUCCESS FINISHED SUCCESS"}; !reflect.DeepEqual(accepted, want) {
		t.Errorf("accepted: %q", accepted)
	}
}

// What needs no answer of Oz can be anything but an accept. A reason that rests
// on an answer is not to be had without one.
func TestReasonVerdict(t *testing.T) {
	resting := []Reason{"", AnalysisFailed, AnalysisMissing, StatusUnknown, Binding, Container}
	for _, row := range Outcomes() {
		got := ReasonVerdict(row.Reason)
		want := Verdict{Decision: row.Decision, Reason: row.Reason}
		if slices.Contains(resting, row.Reason) {
			want = Verdict{Decision: Unavailable, Reason: UnexpectedStatus}
		}
		if got.Decision == Success {
			t.Fatalf("%q is an accept", row.Reason)
		}
		if got != want {
			t.Errorf("%q: got %+v", row.Reason, got)
		}
	}
	if got := ReasonVerdict("made up"); got.Decision != Unavailable || got.Reason != UnexpectedStatus {
		t.Errorf("a made-up reason: got %+v", got)
	}
}

// Labels of metrics and rows of the documentation come from these.
func TestClosedSets(t *testing.T) {
	wantDecisions := []Decision{"SUCCESS", "DECLINED", "OPERATOR_REQUIRED", "FAILED", "INVALID", "UNAVAILABLE"}
	if got := Decisions(); !reflect.DeepEqual(got, wantDecisions) {
		t.Errorf("decisions: %v", got)
	}
	wantReasons := []Reason{
		"analysis_failed", "analysis_missing", "status_unknown", "binding", "container", "replayed", "unauthorized", "overloaded",
		"too_large_for_oz", "unexpected_status", "malformed_answer", "unreachable", "connection_lost", "timeout", "store_unavailable",
		"best_shot_missing", "reference_missing", "reference_too_large", "reference_not_image", "reference_unavailable",
		"match_refused",
	}
	if got := Reasons(); !reflect.DeepEqual(got, wantReasons) {
		t.Errorf("reasons: %v", got)
	}
	Outcomes()[1] = Outcome{Success, "mine"}
	if got := Outcomes(); len(got) != 24 || got[1] != (Outcome{Declined, ""}) {
		t.Errorf("a caller can change the table: %v", got)
	}
}

// A second line that could accept would be a second place to get it right.
// Success is declared, listed in the table, and given once.
func TestOneLineAccepts(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	word := regexp.MustCompile(`\bSuccess\b|"SUCCESS"`)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(source)) {
			if code, _, _ := strings.Cut(line, "//"); word.MatchString(code) {
				lines = append(lines, strings.Join(strings.Fields(code), " "))
			}
		}
	}
	want := []string{
		`Success Decision = "SUCCESS"`,
		`{Success, ""},`,
		`return Verdict{Decision: Success, Folder: f}`,
		`wordSuccess = "SUCCESS"`,
	}
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("lines that know of an accept:\n%s", strings.Join(lines, "\n"))
	}
}

// A malformed answer says what is wrong with it and where, and nothing of what
// it says; no other verdict has an error.
func TestJudgeSaysWhatIsMalformed(t *testing.T) {
	for doc, want := range map[string]string{
		`{"canary":1,"canary":2}`:    "malformed JSON: duplicate name, after byte 11",
		`{"a":"canary\ud83d"}`:       "malformed JSON: bad syntax or UTF-8, after byte 4",
		"{\"a\":\"canary\xff\"}":     "malformed JSON: bad syntax or UTF-8, after byte 4",
		`["canary"]`:                 "malformed JSON: not an object",
		`{"a":1} "canary"`:           "malformed JSON: bad syntax or UTF-8, after byte 16",
		`{"canary`:                   "malformed JSON: bad syntax or UTF-8, after byte 1",
		`{"resolution_status":"no"}`: "",
	} {
		v := Policy{}.Judge(201, []byte(doc), nil)
		if (v.Reason == MalformedAnswer) != (v.Err != nil) || (v.Err == nil) != (want == "") {
			t.Errorf("%s: %+v", doc, v)
			continue
		}
		if v.Err != nil && (!strings.HasPrefix(v.Err.Error(), want) || strings.Contains(v.Err.Error(), "canary")) {
			t.Errorf("%s: %v", doc, v.Err)
		}
	}
}
