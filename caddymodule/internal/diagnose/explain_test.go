package diagnose

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// explained adds what a handler with pass UNAVAILABLE would.
func explained(status int, doc string, t Target) Explanation {
	a, e := Explain(status, []byte(doc), t)
	body := a.Folder
	if body == nil {
		body = []byte(`{"title":"no folder"}`)
	}
	if e.Decision == oz.Invalid {
		e.Client = &ForClient{http.StatusBadRequest, body}
		return e
	}
	e.App = &ForApp{map[string]string{"X-Oz-Decision": string(e.Decision), "Content-Type": "application/json"}, body, 0}
	return e
}

const (
	answerText = `{"folder_id":"f-1","resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[{"results_media":[{"output_images":[{"image_b64":"QUJD"}]}]}]}`
	cutText    = `{"folder_id":"f-1","resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[{"results_media":[{"output_images":[{}]}]}]}`
)

func TestExplain(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		doc    string
		policy oz.Policy
		text   string
		json   string
	}{
		"success": {
			201, answerText + "\r\n", oz.Policy{},
			"decision   SUCCESS\nread       156 B\ncut        18 B\nnot checked: require order\n\nthe app would get:\n\n" +
				"Content-Type: application/json\nX-Oz-Decision: SUCCESS\n\n" + cutText + "\n\n",
			`{"decision":"SUCCESS","read_bytes":156,"cut_bytes":18,"not_checked":["require order"],"app":{"header":{"Content-Type":"application/json","X-Oz-Decision":"SUCCESS"},` +
				`"body":` + cutText + `}}`,
		},
		"refused": {
			400, `{"error_code":14}`, oz.Policy{},
			"decision   INVALID\nreason     container\nread       17 B\ncut        0 B\nnot checked: require order\n\nthe client would get 400:\n\n" + `{"title":"no folder"}` + "\n",
			`{"decision":"INVALID","reason":"container","read_bytes":17,"cut_bytes":0,"not_checked":["require order"],"client":{"status":400,"problem":{"title":"no folder"}}}`,
		},
		"unreadable": {
			201, `{"folder`, oz.Policy{},
			"decision   UNAVAILABLE\nreason     malformed_answer\nerror      malformed JSON: ended early, after byte 8\nread       8 B\ncut        0 B\nnot checked: require order\n\nthe app would get:\n\n" +
				"Content-Type: application/json\nX-Oz-Decision: UNAVAILABLE\n\n" + `{"title":"no folder"}` + "\n",
			`{"decision":"UNAVAILABLE","reason":"malformed_answer","error":"malformed JSON: ended early, after byte 8","read_bytes":8,"cut_bytes":0,"not_checked":["require order"],` +
				`"app":{"header":{"Content-Type":"application/json","X-Oz-Decision":"UNAVAILABLE"},"body":{"title":"no folder"}}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			to := Target{Options: ozclient.Options{MaxAnswer: 1000}, Policy: test.policy, NotJudged: []string{"require order"}}
			e := explained(test.status, test.doc, to)
			var text strings.Builder
			if err := e.Print(&text); err != nil || text.String() != test.text {
				t.Errorf("%v, %q", err, text.String())
			}
			if doc, err := json.Marshal(e); err != nil || string(doc) != test.json {
				t.Errorf("%v, %s", err, doc)
			}
		})
	}
}

// Best shots that the app gets are counted and not shown. Several blocks make
// one document.
func TestExplainAttached(t *testing.T) {
	e := Explanation{Decision: oz.Success, App: &ForApp{map[string]string{"X-Oz-Best-Shot": "attached"}, json.RawMessage(`{"a":"\u001b\u202e"}`), 2}}
	var text, doc strings.Builder
	if err := e.Print(&text); err != nil || !strings.HasSuffix(text.String(), "X-Oz-Best-Shot: attached\n\npart folder:\n"+`{"a":"\u001b\u202e"}`+"\n\nparts with a best shot: 2\n") {
		t.Errorf("%v, %q", err, text.String())
	}
	if err := WriteExplanations(&doc, []Explanation{e, e}); err != nil {
		t.Fatal(err)
	}
	var got struct{ Blocks []Explanation }
	if err := json.Unmarshal([]byte(doc.String()), &got); err != nil || len(got.Blocks) != 2 || got.Blocks[1].App.BestShots != 2 {
		t.Errorf("%v, %s", err, doc.String())
	}
}

// Text of Oz doesn't steer the operator's terminal.
func TestExplainIsPrintable(t *testing.T) {
	e := Explanation{Decision: oz.Success, App: &ForApp{map[string]string{"X-A": "b\x1b[2J"}, json.RawMessage("{\t\"a\":\r\n\"\u202e\u009b\"}"), 0}}
	var text strings.Builder
	if err := e.Print(&text); err != nil || !strings.HasSuffix(text.String(), "X-A: b�[2J\n\n{\t\"a\":\n\"��\"}\n") {
		t.Errorf("%v, %q", err, text.String())
	}
}
