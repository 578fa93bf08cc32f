package ozclient

import (
	"bytes"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// MemoryBody is a body that no client is waited for.
type MemoryBody struct {
	mu      sync.Mutex
	reader  *bytes.Reader
	sentAt  time.Time
	stopped bool
}

// NewMemoryBody returns a body of content.
func NewMemoryBody(content []byte) *MemoryBody {
	return &MemoryBody{reader: bytes.NewReader(content)}
}

// Read implements io.Reader.
func (b *MemoryBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return 0, upload.ErrStopped
	}
	n, err := b.reader.Read(p)
	if b.reader.Len() == 0 && b.sentAt.IsZero() {
		b.sentAt = time.Now()
	}
	return n, err
}

// Close implements io.Closer.
func (*MemoryBody) Close() error { return nil }

// Length implements upload.Body.
func (b *MemoryBody) Length() int64 { return b.reader.Size() }

// State implements upload.Body.
func (b *MemoryBody) State() upload.State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return upload.State{Received: true, SentAt: b.sentAt, Bytes: b.reader.Size()}
}

// Stop implements upload.Body.
func (b *MemoryBody) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
}
