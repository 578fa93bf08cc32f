package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestLoadPostsAsManyAsItWasTold(t *testing.T) {
	var got atomic.Int64
	var seen sync.Map // a replay guard must find each new
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, again := seen.LoadOrStore(string(body), true)
		if !again && len(body) == 15 && strings.HasSuffix(string(body), "capsule") && r.ContentLength == 15 && r.URL.Path == verifyPath && r.Header.Get("Content-Type") == "application/octet-stream" {
			got.Add(1)
		}
	}))
	defer server.Close()
	l := newLoad(server.URL, []byte("12345678capsule"), 8, h1)
	defer l.close()
	for _, n := range []int{1, 7, 20} {
		got.Store(0)
		if err := l.run(t.Context(), n); err != nil || got.Load() != int64(n) {
			t.Errorf("%d of %d capsules, %v", got.Load(), n, err)
		}
	}
}

func TestLoadEndsWithTheFirstFailure(t *testing.T) {
	var got atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if io.Copy(io.Discard, r.Body); got.Add(1) >= 5 {
			http.Error(w, "no more", http.StatusBadGateway)
		}
	}))
	defer server.Close()
	l := newLoad(server.URL, []byte("capsule"), 2, h1)
	defer l.close()
	err := l.run(t.Context(), 1_000_000)
	if err == nil || !strings.Contains(err.Error(), "502") || !strings.Contains(err.Error(), "no more") {
		t.Errorf("%v", err)
	}
	if got.Load() > 100 {
		t.Errorf("%d capsules were sent after all", got.Load())
	}
}

// Figures under the wrong protocol are none.
func TestLoadInsistsOnItsProtocol(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for _, p := range []protocol{h1TLS, h2TLS} {
		l := newLoad(server.URL, []byte("capsule"), 1, p)
		defer l.close()
		if err := l.run(t.Context(), 1); err != nil {
			t.Errorf("%s: %v", p, err)
		}
		l.protocol = h1TLS + h2TLS - p
		if err := l.run(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "want HTTP") {
			t.Errorf("%s: %v", p, err)
		}
	}
}
