package diagnose

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// Explanation says what a block makes of an answer. Its decision can be worse
// than the answer's: face matching fails where the answer has no best shot.
type Explanation struct {
	Decision  oz.Decision `json:"decision"`
	Reason    oz.Reason   `json:"reason,omitempty"`
	Error     string      `json:"error,omitempty"`
	Read      int64       `json:"read_bytes"`
	Cut       int64       `json:"cut_bytes"`
	NotJudged []string    `json:"not_checked,omitempty"` // what would follow, and can end differently
	App       *ForApp     `json:"app,omitempty"`         // what the app would get, or
	Client    *ForClient  `json:"client,omitempty"`      // what the client would
}

// ForApp is the request that the app would get.
type ForApp struct {
	Header    map[string]string `json:"header"`
	Body      json.RawMessage   `json:"body"`
	BestShots int               `json:"best_shots,omitempty"`
}

// ForClient is the refusal that the client would get.
type ForClient struct {
	Status  int             `json:"status"`
	Problem json.RawMessage `json:"problem"`
}

// Explain reads and judges a saved answer as the block of t does a fresh one,
// except for what it requires of a user's request. What comes of it is for the
// handler to add: App or Client.
func Explain(status int, answer []byte, t Target) (ozclient.Answer, Explanation) {
	res := &http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(answer))}
	a, err := ozclient.ReadAnswer(res, t.Options, t.Policy, nil)
	e := Explanation{Decision: a.Verdict.Decision, Reason: a.Verdict.Reason, Read: a.Bytes, Cut: a.Cut, NotJudged: t.NotJudged}
	if failed, ok := errors.AsType[*ozclient.Error](err); ok {
		e.Error = failed.Err.Error()
	}
	return a, e
}

// Print writes the explanation for people.
func (e Explanation) Print(out io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "decision   %s\n", e.Decision)
	if e.Reason != "" {
		fmt.Fprintf(&b, "reason     %s\n", e.Reason)
	}
	if e.Error != "" {
		fmt.Fprintf(&b, "error      %s\n", e.Error)
	}
	fmt.Fprintf(&b, "read       %s\n", size(e.Read))
	fmt.Fprintf(&b, "cut        %s\n", size(e.Cut))
	for _, what := range e.NotJudged {
		fmt.Fprintf(&b, "not checked: %s\n", what)
	}
	switch {
	case e.Client != nil:
		fmt.Fprintf(&b, "\nthe client would get %d:\n\n%s\n", e.Client.Status, e.Client.Problem)
	case e.App != nil:
		e.App.print(&b)
	}
	_, err := io.WriteString(out, strings.Map(graphicOrSpace, b.String()))
	return err
}

// graphicOrSpace keeps the white space of a JSON document.
func graphicOrSpace(r rune) rune {
	switch r {
	case '\n', '\t':
		return r
	case '\r':
		return -1
	}
	return graphic(r)
}

func (a *ForApp) print(b *bytes.Buffer) {
	fmt.Fprint(b, "\nthe app would get:\n\n")
	for _, name := range slices.Sorted(maps.Keys(a.Header)) {
		fmt.Fprintf(b, "%s: %s\n", name, a.Header[name])
	}
	if a.BestShots > 0 {
		fmt.Fprintf(b, "\npart folder:\n%s\n\nparts with a best shot: %d\n", a.Body, a.BestShots)
		return
	}
	fmt.Fprintf(b, "\n%s\n", a.Body)
}

// WriteExplanations writes the explanations of all blocks as one document.
func WriteExplanations(out io.Writer, list []Explanation) error {
	return writeJSON(out, struct {
		Blocks []Explanation `json:"blocks"`
	}{list})
}
