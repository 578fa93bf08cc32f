package caddymodule

import (
	"errors"
	"io"
	"sync"
	"time"
)

// heldCapsule is a capsule that was received whole and waits in memory to be
// sent. What the transport has read it gives back at once: a capsule is never
// sent twice.
type heldCapsule struct {
	receipt *receipt
	size    int64
	waited  time.Duration // for memory, before its first byte
	onDone  func()        // called once, with the last byte

	mu       sync.Mutex
	chunks   [][]byte
	offset   int // into the first of chunks
	read     int64
	done     bool
	detached bool

	interrupted bool // by what came as the last byte did: see capsule.interrupt
}

// receive reads a capsule whole into memory. The client has uploadTimeout for
// that; what it has to wait for memory, in all not longer than wait, is not
// its own time.
func (g *gate) receive(c *capsule, uploadTimeout, wait time.Duration) (*heldCapsule, error) {
	length := c.length
	if length < 0 {
		length = c.limit
	}
	held := &heldCapsule{receipt: g.memory.open(length, uploadTimeout, c.interrupt)}
	if err := held.fill(c, uploadTimeout, wait); err != nil {
		held.abandon()
		return nil, held.why(c, err)
	}
	held.receipt.complete()
	held.interrupted = c.state().interrupted
	return held, nil
}

var errNoMemory = errors.New("no memory for the capsule in time")

func (h *heldCapsule) fill(c *capsule, left, wait time.Duration) error {
	for !c.state().done {
		start := time.Now()
		chunk, err := h.receipt.chunk(c.ctx, wait-h.waited)
		if err != nil {
			return err
		}
		began := time.Now()
		h.waited += began.Sub(start)
		if err := h.fillChunk(c, chunk, left); err != nil {
			return err
		}
		left -= time.Since(began)
	}
	return nil
}

// fillChunk reads until the chunk is full or the capsule is at its end.
func (h *heldCapsule) fillChunk(c *capsule, chunk []byte, left time.Duration) error {
	interrupted := make(chan struct{})
	late := time.AfterFunc(left, func() {
		c.interrupt()
		close(interrupted)
	})
	n, err := io.ReadFull(c, chunk)
	inTime := late.Stop()
	if !inTime {
		<-interrupted // or it would hit the connection's next request
	}
	h.receipt.got(n)
	h.size += int64(n)
	if n > 0 {
		h.chunks = append(h.chunks, chunk[:n])
	} else {
		h.receipt.free(chunk) // an empty one would hide that the last byte was read
	}
	switch {
	case c.state().done:
		return nil
	case err != nil && !inTime:
		return errUploadTimeout
	}
	return err
}

// why tells what it was that ended the upload.
func (h *heldCapsule) why(c *capsule, err error) error {
	switch {
	case h.receipt.isEvicted():
		return errStalled
	case errors.Is(err, errNoMemory), errors.Is(err, errUploadTimeout):
		return err
	case c.ctx.Err() != nil:
		return errClientGone
	}
	return err
}

// Read implements io.Reader for the transport.
func (h *heldCapsule) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.detached {
		return 0, errDetached
	}
	n := 0
	for len(h.chunks) > 0 && n < len(p) {
		m := copy(p[n:], h.chunks[0][h.offset:])
		n, h.offset = n+m, h.offset+m
		if h.offset == len(h.chunks[0]) {
			h.freeFirst()
		}
	}
	h.read += int64(n)
	if len(h.chunks) > 0 {
		return n, nil
	}
	if !h.done {
		h.done = true
		if h.onDone != nil {
			h.onDone()
		}
	}
	return n, io.EOF
}

func (h *heldCapsule) freeFirst() {
	h.receipt.free(h.chunks[0][:chunkSize])
	h.chunks, h.offset = h.chunks[1:], 0
}

// Close implements io.Closer.
func (h *heldCapsule) Close() error { return nil }

// detach takes the capsule back from the transport, which may still be reading it.
func (h *heldCapsule) detach() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.detached = true
	for len(h.chunks) > 0 {
		h.freeFirst()
	}
}

func (h *heldCapsule) disown() { h.detach() }

// abandon gives back all that the capsule holds.
func (h *heldCapsule) abandon() {
	h.detach()
	h.receipt.complete()
}

func (h *heldCapsule) state() uploadState {
	h.mu.Lock()
	defer h.mu.Unlock()
	return uploadState{received: true, done: h.done, interrupted: h.interrupted, read: h.read}
}

func (h *heldCapsule) whenDone(f func()) { h.onDone = f }
