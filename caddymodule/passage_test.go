package caddymodule

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// Names are stripped once a request: later ones are our own.
func TestEnterOnce(t *testing.T) {
	r := fromClient(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil))
	r.Header.Set(headerDecision, "SUCCESS")
	p := enter(r)
	if r.Header.Get(headerDecision) != "" {
		t.Error("the client's decision is still there")
	}
	r.Header.Set(headerDecision, "DECLINED")
	if again := enter(r); again != p || r.Header.Get(headerDecision) != "DECLINED" {
		t.Errorf("another passage, or the header is %q", r.Header.Get(headerDecision))
	}
	if text := caddyhttp.GetVar(r.Context(), passageVar).(*passage).String(); text != "" {
		t.Errorf("{http.vars.%s} prints %q", passageVar, text)
	}
}

// On a request that was not judged, placeholders are known and empty; on one
// that was, a zero is a zero. Other placeholders are not ours.
func TestPlaceholders(t *testing.T) {
	r := fromClient(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil))
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	const names = "{http.oz_instant.decision} {http.oz_instant.reason} {http.oz_instant.folder_id} {http.oz_instant.event_session_id} " +
		"{http.oz_instant.error_code} {http.oz_instant.quality} {http.oz_instant.biometry} {http.oz_instant.capsule_bytes} {http.oz_instant.oz_ms}"
	p := enter(r)
	if got := repl.ReplaceKnown(names, "-"); got != "- - - - - - - - -" {
		t.Errorf("not judged: %q", got)
	}
	folder, err := oz.ReadFolder([]byte(success()))
	if err != nil {
		t.Fatal(err)
	}
	p.settle(outcome{verdict: oz.Verdict{Decision: oz.Success, Folder: folder}, capsuleBytes: 7, ozTime: 1500 * time.Millisecond})
	if got, want := repl.ReplaceAll(names, ""), "SUCCESS  folder-1 session-1  SUCCESS  7 1500"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	p.settle(outcome{verdict: oz.Verdict{Decision: oz.Invalid, Reason: oz.Container, Error: &oz.Error{Code: 14}}})
	if got, want := repl.ReplaceAll(names, ""), "INVALID container   14   0 0"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, name := range []string{"{http.oz_instant.secret}", "{http.oz_instant}", "{oz_instant.decision}"} {
		if got := repl.ReplaceKnown(name, ""); got != name {
			t.Errorf("%s is %q", name, got)
		}
	}
}

// A folder of somebody else says nothing about this request, and words that do
// not fit a header stay away.
func TestFacts(t *testing.T) {
	folder := func(doc string) *oz.Folder {
		f, err := oz.ReadFolder([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	got := newFacts(outcome{verdict: oz.Verdict{Decision: oz.Invalid, Reason: oz.Binding, Folder: folder(success())}})
	if want := (facts{decision: "INVALID", reason: "binding", folderID: "folder-1", eventSessionID: "session-1"}); got != want {
		t.Errorf("binding: %+v", got)
	}
	strange := strings.NewReplacer("folder-1", `a\r\nX-Oz-Decision: SUCCESS`, "session-1", strings.Repeat("x", 129)).Replace(success())
	got = newFacts(outcome{verdict: oz.Verdict{Decision: oz.Success, Folder: folder(strange)}})
	if got.folderID != "" || got.eventSessionID != "" || got.decision != "SUCCESS" {
		t.Errorf("strange: %+v", got)
	}

	liveness := oz.Verdict{Decision: oz.Declined, Folder: folder(success())}
	got = newFacts(outcome{verdict: liveness, match: &match{verdict: oz.Verdict{Folder: folder(matched("DECLINED", "DECLINED"))}}})
	if got.systemResolution != "DECLINED" || got.biometry != "DECLINED" || got.quality != "SUCCESS" || got.folderID != "folder-1" {
		t.Errorf("faces that do not match: %+v", got)
	}
	got = newFacts(outcome{verdict: liveness, match: new(match)})
	if got.systemResolution != "" || got.resolutionStatus != "" || got.quality != "SUCCESS" {
		t.Errorf("no second folder: %+v", got)
	}
}

// trailing is a body that ends with trailers, as net/http files them.
type trailing struct {
	io.Reader
	trailer http.Header
	closed  bool
}

func (b *trailing) Close() error {
	b.closed = true
	b.trailer[headerDecision] = []string{"SUCCESS"}
	return nil
}

// With an error, what a client announced as trailers is gone from the server's
// own request, and with it the body that brings them. Otherwise nothing happens.
func TestLeave(t *testing.T) {
	bad := errors.New("bad")
	for _, test := range []struct {
		name      string
		announced bool
		err       error
		closed    bool
	}{
		{"error", true, bad, true}, {"no error", true, nil, false}, {"no trailers", false, bad, false},
	} {
		body := &trailing{Reader: strings.NewReader("x"), trailer: http.Header{"X-Late": nil}}
		servers := fromClient(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", body))
		if test.announced {
			servers.Trailer = body.trailer
		}
		copied := servers.WithContext(servers.Context()) // as forward_auth does it
		if err := enter(copied).leave(test.err); err != test.err {
			t.Errorf("%s: %v", test.name, err)
		}
		if body.closed != test.closed || test.closed && len(servers.Trailer) != 0 {
			t.Errorf("%s: closed %v, the server has %v", test.name, body.closed, servers.Trailer)
		}
		if copied.Trailer != nil {
			t.Errorf("%s: %v", test.name, copied.Trailer)
		}
	}
}
