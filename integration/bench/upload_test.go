package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// received is a server's account of one capsule.
type received struct {
	bytes int
	err   error
	took  time.Duration
}

// startReceiver answers with status when it has read a capsule to its end.
func startReceiver(t *testing.T, status int) (url string, got chan received) {
	t.Helper()
	got = make(chan received, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		body, err := io.ReadAll(r.Body)
		got <- received{len(body), err, time.Since(start)}
		if err != nil {
			return
		}
		w.Header().Set("Retry-After", "7")
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		io.WriteString(w, " read \n")
	}))
	t.Cleanup(server.Close)
	return server.URL, got
}

func TestUpload(t *testing.T) {
	url, got := startReceiver(t, http.StatusServiceUnavailable)
	o := upload{url: url, capsule: make([]byte, 100_000), rate: 400_000, chunked: true}
	a := o.post(t.Context(), newClient())
	if r := <-got; r.err != nil || r.bytes != 100_000 || r.took < 200*time.Millisecond {
		t.Errorf("the server got %d bytes in %v: %v", r.bytes, r.took, r.err)
	}
	if a.err != nil || a.left || a.sent != 100_000 || a.status != 503 || a.text != "read" || !a.problem || a.retryAfter != 7*time.Second {
		t.Errorf("got %+v", a)
	}
}

// A client that leaves while it sends has sent some, and one that leaves afterwards has sent all.
func TestUploadToLeave(t *testing.T) {
	url, got := startReceiver(t, http.StatusOK)
	o := upload{url: url, capsule: make([]byte, 1_000_000), leaveAt: 300_000}
	a := o.post(t.Context(), newClient())
	if r := <-got; r.err == nil || r.bytes >= 1_000_000 {
		t.Errorf("the server got %d bytes: %v", r.bytes, r.err)
	}
	if !a.left || a.status != 0 || a.sent < 300_000 || a.sent >= 1_000_000 {
		t.Errorf("got %+v", a)
	}

	block := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		got <- received{bytes: int(n), err: err}
		<-block
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(block) })
	var r received
	for after := 100 * time.Millisecond; after < timeLimit; after *= 10 { // on a busy machine the last byte needs a while to the server
		o = upload{url: server.URL, capsule: make([]byte, 1000), leaveAfter: after}
		a = o.post(t.Context(), newClient())
		select {
		case r = <-got:
		case <-time.After(timeLimit):
			r.err = errors.New("the request did not come")
		}
		if r.err == nil {
			break
		}
	}
	if r.err != nil || r.bytes != 1000 {
		t.Errorf("the server got %d bytes: %v", r.bytes, r.err)
	}
	if !a.left || a.sent != 1000 {
		t.Errorf("got %+v", a)
	}
}

// A connection that breaks is no client that left.
func TestUploadCutOff(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	t.Cleanup(server.Close)
	a := upload{url: server.URL, capsule: []byte("x"), leaveAfter: time.Hour}.post(t.Context(), newClient())
	if a.left || a.err == nil || errors.Is(a.err, errLeft) {
		t.Errorf("got %+v", a)
	}
}

// Who asks before sending has sent nothing when it is refused.
func TestUploadExpects(t *testing.T) {
	var asked atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Header.Get("Expect"))
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(server.Close)
	a := upload{url: server.URL, capsule: bytes.Repeat([]byte("x"), 100_000), expect: true}.post(t.Context(), newClient())
	if a.sent != 0 || a.status != http.StatusTeapot || asked.Load() != "100-continue" {
		t.Errorf("asked %v, got %+v", asked.Load(), a)
	}
}
