package upload

import (
	"context"
	"io"
	"sync"
	"time"
)

// buffer is a body that was received whole. What the transport has read it
// gives back at once: a capsule is never sent twice.
type buffer struct {
	stream *Stream
	claim  *claim
	waited time.Duration // for memory

	mu      sync.Mutex
	chunks  []*chunk
	size    int64
	offset  int64 // how much was taken
	takenAt time.Time
	sentAt  time.Time
	stopped bool
}

// fill receives the body. What the client must wait for memory, in all not
// longer than wait, costs it no patience. Before each chunk, and at the end, it
// calls next.
func (b *buffer) fill(ctx context.Context, u *upload, wait time.Duration, gauge Gauge, next func() error) error {
	s := b.stream
	if err := s.peekFirst(); err != nil {
		return err // an idle client so claims nothing
	}
	length := s.Length()
	if length < 0 {
		length = s.limit
	}
	b.claim = u.gate.memory.open(length, gauge)
	for !s.complete() {
		if err := next(); err != nil {
			return err
		}
		if err := b.fillChunk(ctx, u, wait-b.waited); err != nil {
			return err
		}
	}
	b.claim.complete()
	return next()
}

func (b *buffer) fillChunk(ctx context.Context, u *upload, wait time.Duration) error {
	start := time.Now()
	chunk, err := b.claim.take(ctx, u, wait)
	b.waited += time.Since(start)
	if err != nil {
		return err
	}
	n, err := io.ReadFull(readerFunc(b.stream.receive), chunk[:])
	b.keep(chunk, n)
	if b.stream.complete() {
		return nil
	}
	return err
}

// complete reports whether everything was received and taken.
func (s *Stream) complete() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received && len(s.head) == 0
}

// keep adds a chunk with n bytes in it. An empty one would hide that the last
// byte was taken.
func (b *buffer) keep(c *chunk, n int) {
	if n == 0 {
		b.claim.free(c)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chunks = append(b.chunks, c)
	b.size += int64(n)
}

// Read implements io.Reader for the transport.
func (b *buffer) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return 0, ErrStopped
	}
	for n < len(p) && b.offset < b.size {
		at := b.offset % chunkSize
		end := min(chunkSize, at+b.size-b.offset)
		m := copy(p[n:], b.chunks[0][at:end])
		n += m
		b.offset += int64(m)
		if b.offset%chunkSize == 0 || b.offset == b.size {
			b.freeFirst()
		}
	}
	b.takenAt = time.Now()
	if b.offset < b.size {
		return n, nil
	}
	if b.sentAt.IsZero() {
		b.sentAt = b.takenAt
	}
	return n, io.EOF
}

func (b *buffer) freeFirst() {
	b.claim.free(b.chunks[0])
	b.chunks = b.chunks[1:]
}

// Close implements io.Closer.
func (b *buffer) Close() error { return nil }

// Length implements Body.
func (b *buffer) Length() int64 { return b.size }

// Stop implements Body. It gives back all memory: Read copies under the lock,
// so nobody uses it any more.
func (b *buffer) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	for len(b.chunks) > 0 {
		b.freeFirst()
	}
}

// State implements Body.
func (b *buffer) State() State {
	st := b.stream.State()
	b.mu.Lock()
	defer b.mu.Unlock()
	st.SentAt = b.sentAt
	if !b.takenAt.IsZero() && b.sentAt.IsZero() {
		st.Untaken = time.Since(b.takenAt)
	}
	return st
}

// abandon gives back all that an upload holds.
func (b *buffer) abandon() {
	if b.claim != nil {
		b.claim.complete()
		b.Stop()
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
