package caddymodule

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

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
	emptyRoute  = `{"handle": []}`
	noHandlers  = `{}`
	aSubroute   = `"handle": [{"handler": "subroute", "routes": [`
	endSubroute = `]}]`
)

// An error route owns a refusal where its matchers, and those of the subroutes
// that Caddyfiles wrap it in, match this request with this error. The routes
// belong to all sites of a listener: that there are some says nothing.
func TestErrorRouteMatches(t *testing.T) {
	for _, test := range []struct {
		name, routes string
		want         bool
	}{
		{"no routes", `[]`, false},
		{"for all errors", `[` + errorPage + `]`, true},
		{"for this status", `[{` + for502 + `, "handle": [{"handler": "static_response"}]}]`, true},
		{"for another status", `[{` + strings.Replace(for502, "502", "404", 1) + `, "handle": [{"handler": "static_response"}]}]`, false},
		{"for this path", `[{` + forVerify + `, "handle": [{"handler": "static_response"}]}]`, true},
		{"of this site", `[{` + forAppHost + `, ` + aSubroute + errorPage + endSubroute + `}]`, true},
		{"of another site", `[{` + strings.Replace(forAppHost, "app", "other", 1) + `, ` + aSubroute + errorPage + endSubroute + `}]`, false},
		{"of this site, for another status", `[{` + forAppHost + `, ` + aSubroute + `{` + strings.Replace(for502, "502", "404", 1) + `, "handle": [{"handler": "static_response"}]}` + endSubroute + `}]`, false},
		{"three deep", `[{` + aSubroute + `{` + aSubroute + `{` + for502 + `, "handle": [{"handler": "static_response"}]}` + endSubroute + `}` + endSubroute + `}]`, true},
		{"the second of two", `[{` + strings.Replace(forAppHost, "app", "other", 1) + `, ` + aSubroute + errorPage + endSubroute + `}, ` + errorPage + `]`, true},
		{"behind an empty subroute", `[{"handle": [{"handler": "subroute", "routes": []}, {"handler": "static_response"}]}]`, true},
		{"without handlers", `[` + emptyRoute + `, ` + noHandlers + `, {` + aSubroute + noHandlers + endSubroute + `}]`, false},
		{"with a matcher that fails", `[{"match": [{"expression": "{http.error.nonsense}.size() > 0"}], "handle": [{"handler": "static_response"}]}]`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := at(siteWith(t, test.routes), "http://app.example.com/verify")
			if got := errorRouteMatches(r, caddyhttp.Error(502, errors.New("x"))); got != test.want {
				t.Errorf("%s: %v", test.routes, got)
			}
		})
	}
	for name, server := range map[string]*caddyhttp.Server{"no server": nil, "no handle_errors": new(caddyhttp.Server)} {
		r := httptest.NewRequest(http.MethodPost, "/verify", nil)
		if server != nil {
			r = at(server, "/verify")
		}
		if errorRouteMatches(r, caddyhttp.Error(502, nil)) {
			t.Errorf("%s: a route matches", name)
		}
	}
}

// Error routes see the request as the client sent it, and so do their matchers
// here; the request itself stays as it is.
func TestErrorRouteMatchesTheRequestAsReceived(t *testing.T) {
	r := at(siteWith(t, `[{`+forVerify+`, "handle": [{"handler": "static_response"}]}]`), "/verify?a=b")
	r.URL.Path, r.Method, r.RequestURI = "/rewritten", http.MethodPut, "/rewritten"
	if !errorRouteMatches(r, caddyhttp.Error(502, errors.New("x"))) {
		t.Error("the route for the received path does not match")
	}
	received := asReceived(r)
	if received.Method != http.MethodPost || received.RequestURI != "/verify?a=b" || received.URL.Path != "/verify" || received.URL.RawQuery != "a=b" {
		t.Errorf("%s %s %s", received.Method, received.RequestURI, received.URL)
	}
	received.URL.Path = "/changed"
	if again := asReceived(r); again.URL.Path != "/verify" || r.URL.Path != "/rewritten" || r.Method != http.MethodPut {
		t.Error("the request was changed")
	}
}

// A refusal is a problem document, or an error where the site has a page for it.
func TestRefuse(t *testing.T) {
	problem := func() *problem {
		return newProblem("a-kind", http.StatusBadGateway, "title", "detail").with("Retry-After", "5").with("Allow", "POST")
	}
	w := httptest.NewRecorder()
	if err := refuse(w, at(new(caddyhttp.Server), "/verify"), problem(), false); err != nil {
		t.Fatal(err)
	}
	doc := string(problem().document())
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

	w = httptest.NewRecorder()
	err := refuse(w, at(siteWith(t, `[`+errorPage+`]`), "/verify"), problem(), false)
	var herr caddyhttp.HandlerError
	if !errors.As(err, &herr) || herr.StatusCode != 502 || herr.Err.Error() != "title: detail" {
		t.Errorf("to the site's own page: %v", err)
	}
	if w.Body.Len() > 0 || w.Header().Get("Content-Type") != "" || w.Header().Get("Retry-After") != "5" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("and an answer: %v %s", w.Header(), w.Body)
	}
}

// To a client that left nothing is said, whatever pages the site has.
func TestRefuseNobody(t *testing.T) {
	w := httptest.NewRecorder()
	if err := refuse(w, at(siteWith(t, `[`+errorPage+`]`), "/verify"), clientLeft(), false); err != nil {
		t.Fatal(err)
	}
	if w.Code != statusClientGone || w.Body.Len() > 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// deadlineWriter notes the read deadline that it gets.
type deadlineWriter struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (w *deadlineWriter) SetReadDeadline(t time.Time) error {
	w.deadline = t
	return nil
}

// Only where there is more of a body on an HTTP/1 connection does it end with
// the answer, in a second at most, through all that wraps the writer.
func TestCloseAfter(t *testing.T) {
	for _, test := range []struct {
		name   string
		major  int
		unread bool
		closes bool
	}{
		{"HTTP/1, unread", 1, true, true},
		{"HTTP/1, read", 1, false, false},
		{"HTTP/2, unread", 2, true, false},
		{"HTTP/3, unread", 3, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := &deadlineWriter{ResponseRecorder: httptest.NewRecorder()}
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.ProtoMajor = test.major
			closeAfter(&caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, r, test.unread)
			if closes := w.Header().Get("Connection") == "close"; closes != test.closes {
				t.Errorf("Connection: %q", w.Header().Get("Connection"))
			}
			if in := time.Until(w.deadline); test.closes && (in <= 0 || in > drainTime) || !test.closes && !w.deadline.IsZero() {
				t.Errorf("deadline in %s", in)
			}
		})
	}
}

// A problem after which nothing more may come ends the connection, too.
func TestRefuseHangsUp(t *testing.T) {
	for _, hangUp := range []bool{true, false} {
		p := newProblem("k", 400, "t", "d")
		p.hangUp = hangUp
		w := httptest.NewRecorder()
		if err := refuse(w, at(new(caddyhttp.Server), "/"), p, false); err != nil || (w.Header().Get("Connection") == "close") != hangUp {
			t.Errorf("hangUp %v: %v, %v", hangUp, err, w.Header())
		}
	}
}

func TestInnermost(t *testing.T) {
	w := httptest.NewRecorder()
	wrapped := &caddyhttp.ResponseWriterWrapper{ResponseWriter: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	for _, outer := range []http.ResponseWriter{w, wrapped, wrapped.ResponseWriter} {
		if innermost(outer) != http.ResponseWriter(w) {
			t.Errorf("%T is not the innermost of %T", innermost(outer), outer)
		}
	}
}

// A refused body is not waited for, and the server does ask for none of it: the
// whole answer comes, and then the connection ends.
func TestRefusedBodyIsNotWaitedFor(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wrapper := &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}
		_ = refuse(wrapper, fromClient(wrapper, r), newProblem("k", 413, "t", "d"), true)
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
	if doc, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 413 || !json.Valid(doc) || !res.Close {
		t.Errorf("%d %s (%v), closes %v", res.StatusCode, doc, err, res.Close)
	}
}
