package integration_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// h2cApp is the app that already exists, on HTTP/2 without TLS: reverse_proxy h2c://{$APP}.
type h2cApp struct {
	Addr string

	mu       sync.Mutex
	requests []h2cRequest
}

// h2cRequest is what the app got. Names are in Go's canonical form: HTTP/2 has no case to look at.
type h2cRequest struct {
	Method, Path, Proto string
	Header, Trailer     http.Header
	Body                []byte
	BodyErr             error // a body that broke off
}

// newH2CApp starts an app that answers every request with 200 and a small body.
func newH2CApp(t testing.TB) *h2cApp {
	t.Helper()
	a := new(h2cApp)
	server := httptest.NewUnstartedServer(a)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	a.Addr = server.Listener.Addr().String()
	return a
}

// ServeHTTP notes a request, trailers and all.
func (a *h2cApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	a.mu.Lock()
	a.requests = append(a.requests, h2cRequest{
		Method: r.Method, Path: r.RequestURI, Proto: r.Proto,
		Header: r.Header.Clone(), Trailer: r.Trailer.Clone(), Body: body, BodyErr: err,
	})
	a.mu.Unlock()
	fmt.Fprintln(w, "seen by the app")
}

// Only returns the one request that came.
func (a *h2cApp) Only(t testing.TB) h2cRequest {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.requests) != 1 {
		t.Fatalf("the app got %d requests, want 1", len(a.requests))
	}
	return a.requests[0]
}

// None fails the test if anything came.
func (a *h2cApp) None(t testing.TB) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.requests {
		t.Errorf("the app got %s %s", r.Method, r.Path)
	}
}

// Last returns the latest request in the form that rawApp has, as far as HTTP/2 has it.
func (a *h2cApp) Last(t testing.TB) rawRequest {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.requests) == 0 {
		t.Fatal("the app got no request")
	}
	last := a.requests[len(a.requests)-1]
	return rawRequest{
		Line: last.Method + " " + last.Path + " " + last.Proto, Body: last.Body, Broken: last.BodyErr,
		Fields: fieldLines(last.Header), Trailers: fieldLines(last.Trailer),
	}
}

func fieldLines(h http.Header) (lines []string) {
	for name, values := range h {
		for _, value := range values {
			lines = append(lines, name+": "+value)
		}
	}
	return lines
}

// Forget drops what came so far.
func (a *h2cApp) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = nil
}

func (a *h2cApp) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.requests)
}
