package ozclient

import (
	"bytes"
	"io"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// memoryBody is a body that the gateway made itself.
type memoryBody struct {
	mu      sync.Mutex
	reader  *bytes.Reader
	started time.Time
	taken   time.Time // when the upstream took the last bytes
	sentAt  time.Time
	stopped bool
}

func newMemoryBody(content []byte) *memoryBody {
	now := time.Now()
	return &memoryBody{reader: bytes.NewReader(content), started: now, taken: now}
}

// Read implements io.Reader.
func (b *memoryBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return 0, upload.ErrStopped
	}
	n, err := b.reader.Read(p)
	b.taken = time.Now()
	if b.reader.Len() == 0 && b.sentAt.IsZero() {
		b.sentAt = b.taken
	}
	return n, err
}

// Close implements io.Closer.
func (*memoryBody) Close() error { return nil }

// Length implements upload.Body.
func (b *memoryBody) Length() int64 { return b.reader.Size() }

// State implements upload.Body.
func (b *memoryBody) State() upload.State {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := upload.State{Received: true, SentAt: b.sentAt, Bytes: b.reader.Size()}
	if b.sentAt.IsZero() {
		s.Untaken = time.Since(b.taken)
	}
	return s
}

// Stop implements upload.Body.
func (b *memoryBody) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
}

// Interface guards
var (
	_ upload.Body = (*memoryBody)(nil)
	_ io.Reader   = (*memoryBody)(nil)
)
