package oz

import (
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"reflect"
	"strings"
	"testing"
)

// part is what a reader of multipart makes of one.
type part struct{ name, filename, contentType, content string }

func parts(t *testing.T, m *Multipart) (all []part) {
	t.Helper()
	kind, params, err := mime.ParseMediaType(m.ContentType)
	if err != nil || kind != "multipart/form-data" {
		t.Fatalf("%s: %v", m.ContentType, err)
	}
	body, err := io.ReadAll(m.Reader())
	if err != nil || int64(len(body)) != m.Length() || string(body) != string(m.Bytes()) {
		t.Fatalf("%d bytes of %d, %v", len(body), m.Length(), err)
	}
	r := multipart.NewReader(strings.NewReader(string(body)), params["boundary"])
	for {
		p, err := r.NextPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, part{p.FormName(), p.FileName(), p.Header.Get("Content-Type"), string(content)})
	}
}

// The guide: "Your media file keys and the corresponding filenames must match."
func TestMatchRequestKeepsTheNamesRule(t *testing.T) {
	for reference, kind := range map[string]string{"\xff\xd8\xffjpeg": "image/jpeg", "\x89PNGpng": "image/png"} {
		got := parts(t, MatchRequest("photo_selfie", []byte(reference), []byte("best")))
		if len(got) != 3 || got[0].name != "payload" || got[0].filename != "" || got[0].contentType != "" {
			t.Fatalf("parts: %+v", got)
		}
		var payload struct {
			Tags     map[string][]string `json:"media:tags"`
			Analyses []map[string]string `json:"analyses"`
		}
		if err := json.Unmarshal([]byte(got[0].content), &payload); err != nil {
			t.Fatal(err)
		}
		name := got[1].name
		want := []part{got[0], {name, name, kind, reference}, {"best_shot.jpeg", "best_shot.jpeg", "image/jpeg", "best"}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("parts: %+v", got)
		}
		tags := map[string][]string{name: {"photo_selfie"}, "best_shot.jpeg": {"photo_selfie"}}
		if !reflect.DeepEqual(payload.Tags, tags) || !reflect.DeepEqual(payload.Analyses, []map[string]string{{"type": "biometry"}}) {
			t.Errorf("payload: %s", got[0].content)
		}
	}
}

// Likeness alone makes no accept: an analysis of it must have run and succeeded.
func TestJudgeMatch(t *testing.T) {
	folder := func(system, typ, state, status string) string {
		return `{"resolution_status":"FINISHED","system_resolution":"` + system + `","analyses":[{"type":"` + typ + `","state":"` + state +
			`","resolution_status":"` + status + `"}]}`
	}
	for _, test := range []struct {
		status int
		doc    string
		want   Outcome
	}{
		{201, folder("SUCCESS", "BIOMETRY", "FINISHED", "SUCCESS"), Outcome{Success, ""}},
		{201, folder("SUCCESS", "QUALITY", "FINISHED", "SUCCESS"), Outcome{Failed, AnalysisMissing}},
		{201, folder("SUCCESS", "BIOMETRY", "FINISHED", "DECLINED"), Outcome{Failed, AnalysisMissing}},
		{201, folder("SUCCESS", "BIOMETRY", "FAILED", "SUCCESS"), Outcome{Failed, AnalysisMissing}},
		{201, folder("DECLINED", "BIOMETRY", "FINISHED", "DECLINED"), Outcome{Declined, ""}},
		{201, folder("OPERATOR_REQUIRED", "BIOMETRY", "FINISHED", "OPERATOR_REQUIRED"), Outcome{OperatorRequired, ""}},
		{201, folder("FAILED", "BIOMETRY", "FAILED", "FAILED"), Outcome{Failed, AnalysisFailed}},
		{201, `{}`, Outcome{Failed, StatusUnknown}},
		{201, `{`, Outcome{Unavailable, MalformedAnswer}},
		{400, `{"error_code":4}`, Outcome{Failed, MatchRefused}},
		{400, `{"error_code":2}`, Outcome{Failed, MatchRefused}},
		{400, `<html>`, Outcome{Unavailable, UnexpectedStatus}},
		{401, `{"error_code":6}`, Outcome{Unavailable, Unauthorized}},
		{503, ``, Outcome{Unavailable, Overloaded}},
	} {
		if v := JudgeMatch(test.status, []byte(test.doc)); (Outcome{v.Decision, v.Reason}) != test.want {
			t.Errorf("%d %s: got %+v, want %+v", test.status, test.doc, v, test.want)
		}
	}
}
