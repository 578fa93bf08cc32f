package caddymodule

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// What a client can do wrong while it uploads. None of it counts against an
// Oz upstream.
var (
	errTooLarge      = errors.New("capsule larger than max_capsule")
	errUploadTimeout = errors.New("capsule not uploaded within upload_timeout")
	errClientGone    = errors.New("client left")
	errShort         = errors.New("capsule shorter than its Content-Length")
)

// errDetached is what the transport reads from a capsule that is no longer
// its own.
var errDetached = errors.New("capsule detached")

// capsule is a client's body on its way to Oz. The transport's write loop may
// still be reading it after RoundTrip has returned (an early answer, the probe
// past Content-Length), so whoever touches the request next has to detach it
// first; the lock is for that.
type capsule struct {
	body   io.Reader
	length int64 // as declared; -1 is unknown
	limit  int64
	ctx    context.Context // of the request: it ends when the client has left
	rc     *http.ResponseController
	onDone func() // called once, with the last byte

	mu          sync.Mutex
	idle        *sync.Cond // signalled when no read is under way
	reading     bool
	since       time.Time     // when the read under way began
	waited      time.Duration // in the reads before it
	ended       time.Time     // when the last of them ended
	detached    bool
	interrupted bool          // a read under way was ended by detach
	silence     time.Duration // how long that read had waited
	read        int64
	done        bool // the last byte was read
	fault       error
}

func newCapsule(w http.ResponseWriter, r *http.Request, limit int64) *capsule {
	c := &capsule{
		body:   r.Body,
		length: r.ContentLength,
		limit:  limit,
		ctx:    r.Context(),
		rc:     http.NewResponseController(w),
	}
	c.idle = sync.NewCond(&c.mu)
	return c
}

// Read implements io.Reader for the transport.
func (c *capsule) Read(p []byte) (int, error) {
	if err := c.begin(); err != nil {
		return 0, err
	}
	n, err := c.body.Read(p)
	return c.end(n, err)
}

func (c *capsule) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.detached:
		return errDetached
	case c.fault != nil:
		return c.fault
	}
	c.reading, c.since = true, time.Now()
	return nil
}

func (c *capsule) end(n int, err error) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = false
	c.ended = time.Now()
	c.waited += c.ended.Sub(c.since)
	c.idle.Broadcast()

	c.read += int64(n)
	if c.read > c.limit {
		c.fault = errTooLarge
		return 0, c.fault
	}
	if err == io.EOF && c.length >= 0 && c.read < c.length {
		err = errShort // HTTP/2 and HTTP/3: the client is still there
	}
	if err != nil && err != io.EOF {
		if c.detached {
			return n, errDetached // the deadline that detach set
		}
		c.fault = c.blame(err)
		return n, c.fault
	}
	if !c.done && (err == io.EOF || c.read == c.length) {
		c.done = true
		if c.onDone != nil {
			c.onDone()
		}
	}
	return n, err
}

// blame tells a client that left from one whose body makes no sense.
func (c *capsule) blame(err error) error {
	var netErr *net.OpError
	var h3Err *http3.Error
	switch {
	case errors.Is(err, errShort):
		return err
	case c.ctx.Err() != nil,
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled),
		errors.As(err, &netErr) && !netErr.Timeout(),
		errors.As(err, &h3Err) && h3Err.Remote:
		return errClientGone
	}
	return err
}

// Close implements io.Closer. The body is the server's to close.
func (c *capsule) Close() error { return nil }

// detach takes the capsule back from the transport: a read under way is ended
// by a read deadline in the past and waited for, and later ones fail.
//
// On HTTP/1 the deadline has a price: to the server, a failed read is a client
// that left. It cancels the context of the request, and of every later one on
// the connection, also when the read that it hit was the server's own, behind
// the last byte of the body.
func (c *capsule) detach() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detached = true
	if !c.reading {
		return
	}
	c.interrupted, c.silence = true, time.Since(c.since)
	_ = c.rc.SetReadDeadline(time.Unix(1, 0))
	for c.reading {
		c.idle.Wait()
	}
}

// disown has all further reads of the transport fail. Unlike detach it leaves
// the one under way alone, so that what is left of the body can still be read,
// by rest.
func (c *capsule) disown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.detached = true
}

// rest is what is left of the body of a capsule that was disowned.
type rest struct{ *capsule }

// Read implements io.Reader.
func (r rest) Read(p []byte) (int, error) {
	r.mu.Lock()
	for r.reading {
		r.idle.Wait()
	}
	r.mu.Unlock()
	return r.body.Read(p)
}

// interrupt ends the read that is under way, or the next one.
func (c *capsule) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupted = true
	_ = c.rc.SetReadDeadline(time.Unix(1, 0))
}

func (c *capsule) whenDone(f func()) { c.onDone = f }

// state is what is known of the upload at this moment.
func (c *capsule) state() uploadState {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := uploadState{received: c.done, done: c.done, waited: c.waited, silence: c.silence, interrupted: c.interrupted, read: c.read, fault: c.fault}
	switch {
	case c.reading:
		s.silence = time.Since(c.since)
		s.waited += s.silence
	case c.read > 0:
		s.untaken = time.Since(c.ended)
	}
	return s
}

type uploadState struct {
	received    bool          // the client has done its part
	done        bool          // the last byte was read on Oz's behalf
	waited      time.Duration // for the client
	silence     time.Duration // of the client, while it is read or when that was ended
	untaken     time.Duration // since Oz took the last bytes, if it has not asked for more
	interrupted bool
	read        int64
	fault       error // what the client did wrong
}

// source is where an exchange reads its capsule from: the client, or memory.
type source interface {
	io.ReadCloser
	state() uploadState
	// disown and detach take the capsule back from the transport, detach at
	// once and at any price.
	disown()
	detach()
	// whenDone has f called with the last byte that is read. It is called
	// before the first one is.
	whenDone(f func())
}

// Interface guards
var (
	_ source = (*capsule)(nil)
	_ source = (*heldCapsule)(nil)
)
