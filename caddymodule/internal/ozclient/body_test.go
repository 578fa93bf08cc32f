package ozclient

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// A capsule from a file is a body that no client is waited for.
func TestMemoryBody(t *testing.T) {
	b := NewMemoryBody([]byte("capsule"))
	if s := b.State(); !s.Received || !s.SentAt.IsZero() || s.Bytes != 7 || s.Fault != nil || b.Length() != 7 {
		t.Errorf("before: %+v", s)
	}
	if got, err := io.ReadAll(b); string(got) != "capsule" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if s := b.State(); time.Since(s.SentAt) > time.Minute {
		t.Errorf("after: %+v", s)
	}
	b.Stop()
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, upload.ErrStopped) {
		t.Error(err)
	}
}
