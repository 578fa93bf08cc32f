package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// Each kind sends what it should, stays until the server ends it, and comes back.
func TestHostileUploads(t *testing.T) {
	capsule := make([]byte, 10_000)
	for kind, want := range map[hostileKind]int{idleUpload: 1, stalledUpload: len(capsule) - 1, drippingUpload: 1 + 2*dripSize} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			seen := make(chan int64, 10)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.NewResponseController(w).SetReadDeadline(time.Now().Add(timeLimit)) // so that too few bytes are an error
				n, _ := io.CopyN(io.Discard, r.Body, int64(want))
				if r.ContentLength != int64(len(capsule)) {
					n = -1
				}
				// Nothing else comes of those that wait.
				http.NewResponseController(w).SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				if _, err := r.Body.Read(make([]byte, 1)); err == nil && kind != drippingUpload {
					n = -2
				}
				seen <- n
			}))
			defer server.Close()
			ctx, cancel := context.WithCancel(t.Context())
			wait := attackers{kind, server.Listener.Addr().String(), capsule}.start(ctx, 1)
			for range 2 {
				if n := <-seen; n != int64(want) {
					t.Errorf("sent %d bytes, want %d", n, want)
				}
			}
			cancel()
			wait()
		})
	}
}
