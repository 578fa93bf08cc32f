package upload

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go/http3"
)

// longAgo is a deadline that ends a read at once.
var longAgo = time.Unix(1, 0)

// Stream is a client's body as it arrives.
//
// A transport may still be reading it after RoundTrip has returned (an early
// answer, a lost connection). So whoever touches the request next must stop
// the stream first, and a lock guards all of it.
type Stream struct {
	body       io.Reader
	limit      int64
	ctx        context.Context // of the request
	protoMajor int
	remoteAddr string

	mu          sync.Mutex
	idle        sync.Cond // signalled when no read is in progress
	progress    progress
	length      int64
	reading     bool
	since       time.Time // when the read in progress began
	waited      time.Duration
	silence     time.Duration // of the read that timed out
	bytes       int64
	head        []byte // received and not taken yet
	headBuffer  *chunk
	received    bool
	takenAt     time.Time
	sentAt      time.Time
	stopped     bool
	interrupted error    // why a read was, or is to be, ended by us
	unproven    *Refused // ends the upload as soon as it is slow; nil: it may be slow
	timedOut    bool
	fault       error
}

// NewStream prepares to read the body of r. Nothing is read yet.
func NewStream(w http.ResponseWriter, r *http.Request, limits Limits) *Stream {
	s := &Stream{
		body:       r.Body,
		limit:      limits.MaxBytes,
		ctx:        r.Context(),
		protoMajor: r.ProtoMajor,
		remoteAddr: r.RemoteAddr,
		length:     r.ContentLength,
		received:   r.ContentLength == 0,
	}
	s.idle.L = &s.mu
	s.progress.start(w, r, limits.Timeout)
	if s.progress.own {
		s.body = s.progress.reader
	}
	if s.limit > 0 && s.length > s.limit {
		s.fault = ErrTooLarge
	}
	return s
}

// Read implements io.Reader for the transport.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.receive(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return 0, ErrStopped
	}
	s.takenAt = time.Now()
	if s.received && len(s.head) == 0 && s.sentAt.IsZero() {
		s.sentAt = s.takenAt
	}
	return n, err
}

// receive returns the next bytes: of the head, or from the client.
func (s *Stream) receive(p []byte) (int, error) {
	s.mu.Lock()
	if len(s.head) > 0 && !s.stopped {
		defer s.mu.Unlock()
		return s.takeHead(p), nil
	}
	s.mu.Unlock()
	return s.fetch(p)
}

// fetch reads from the client. When the body is complete it doesn't look for
// more, which a client might never send.
func (s *Stream) fetch(p []byte) (int, error) {
	if err := s.begin(); err != nil {
		return 0, err
	}
	n, err := s.body.Read(p)
	return s.finish(n, err)
}

func (s *Stream) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return ErrStopped
	case s.received:
		return io.EOF
	case s.fault != nil:
		return s.fault
	case s.interrupted != nil:
		return s.interrupted
	}
	s.reading, s.since = true, time.Now()
	allowed := s.progress.allowed()
	if s.unproven != nil {
		allowed = min(allowed, s.untilSlow())
	}
	s.progress.arm(allowed)
	return nil
}

// takeHead copies under the lock: after Stop nobody copies from the head's
// buffer any more, and it can go back to its pool.
func (s *Stream) takeHead(p []byte) int {
	n := copy(p, s.head)
	if s.head = s.head[n:]; len(s.head) == 0 {
		s.dropHead()
	}
	return n
}

func (s *Stream) dropHead() {
	if s.headBuffer != nil {
		chunks.Put(s.headBuffer)
	}
	s.head, s.headBuffer = nil, nil
}

func (s *Stream) finish(n int, err error) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waited := time.Since(s.since)
	s.reading = false
	s.idle.Broadcast()

	s.bytes += int64(n)
	err = s.judge(err, waited)
	s.waited += waited
	s.progress.took(n, waited)
	switch {
	case s.stopped:
		return 0, ErrStopped
	case errors.Is(err, ErrTooLarge):
		return 0, err // what lies beyond the limit goes nowhere
	}
	return n, err
}

// judge tells what it means that a read ended with err. It returns what the
// reader is told.
func (s *Stream) judge(err error, waited time.Duration) error {
	deadline := s.timedOutIn(err, waited)
	if deadline {
		s.timedOut, s.silence = true, waited
	}
	switch {
	case s.limit > 0 && s.bytes > s.limit:
		s.fault = ErrTooLarge
	case s.bytes == s.length:
		s.received = true
		return nil
	case err == nil:
		return nil
	case err == io.EOF && s.length < 0:
		s.received = true
		return io.EOF
	case err == io.EOF:
		s.fault = ErrShort // over HTTP/2 and HTTP/3 the client is still there
	case s.interrupted != nil:
		return s.interrupted
	case deadline && s.unproven != nil && waited >= s.untilSlow():
		s.interrupted = s.unproven
		return s.interrupted
	default:
		s.fault = s.blame(err, deadline, waited)
	}
	return s.fault
}

// timedOutIn reports whether a read that waited so long ended by its deadline.
// In the trailer of a chunked body net/http reports a timeout as a cut body.
func (s *Stream) timedOutIn(err error, waited time.Duration) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || err != nil && err != io.EOF && waited >= s.progress.armed
}

// blame looks at the error before the context: over HTTP/1 a read that timed
// out ends the request's context, as a client that leaves does.
func (s *Stream) blame(err error, deadline bool, waited time.Duration) error {
	if deadline {
		return s.progress.blame(waited)
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return err
	}
	netErr, isNet := errors.AsType[*net.OpError](err)
	h3Err, isH3 := errors.AsType[*http3.Error](err)
	switch {
	case s.ctx.Err() != nil,
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed),
		isNet && !netErr.Timeout(),
		isH3 && h3Err.Remote:
		return ErrGone
	}
	return err
}

// Close implements io.Closer. The body is the server's to close.
func (s *Stream) Close() error { return nil }

// Length implements Body.
func (s *Stream) Length() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.length
}

// State implements Body.
func (s *Stream) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state(time.Now())
}

func (s *Stream) state(now time.Time) State {
	st := State{
		Received: s.received,
		SentAt:   s.sentAt,
		Bytes:    s.bytes,
		Waited:   s.waited,
		Silence:  s.silence,
		Unread:   !s.received || s.timedOut || s.interrupted != nil,
		Fault:    s.fault,
	}
	switch {
	case s.reading:
		st.Silence = now.Sub(s.since)
		st.Waited += st.Silence
	case !s.takenAt.IsZero() && s.sentAt.IsZero():
		st.Untaken = now.Sub(s.takenAt)
	}
	return st
}

// Stop implements Body.
func (s *Stream) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
}

// Rest stops s and returns what is left of its body. Reading it waits for a
// read in progress. The site's own timeouts apply to it.
func (s *Stream) Rest() io.ReadCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.progress.undo()
	return &rest{s}
}

type rest struct{ s *Stream }

// Read implements io.Reader. It knows no limit: what is left is only discarded.
func (r *rest) Read(p []byte) (int, error) {
	s := r.s
	s.mu.Lock()
	for s.reading {
		s.idle.Wait()
	}
	if len(s.head) > 0 {
		defer s.mu.Unlock()
		return s.takeHead(p), nil
	}
	if s.received {
		defer s.mu.Unlock()
		return 0, io.EOF
	}
	s.reading, s.since = true, time.Now()
	s.mu.Unlock()

	n, err := s.body.Read(p)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading = false
	s.timedOut = s.timedOut || errors.Is(err, os.ErrDeadlineExceeded)
	s.idle.Broadcast()
	return n, err
}

// Close implements io.Closer.
func (r *rest) Close() error { return nil }

// End must be called before the handler returns. It ends a read in progress.
//
// Over HTTP/1 that has a price: to the server a failed read is a client that
// left. It ends the request's context, and that of every later request on the
// connection.
func (s *Stream) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	if s.reading {
		supported := s.interrupt(ErrStopped)
		for supported && s.reading { // else nothing would end the read
			s.idle.Wait()
		}
	}
	s.dropHead()
	s.progress.undo()
	if s.progress.own {
		s.progress.reader.HandlerDone()
	}
}

// interrupt ends a read in progress, and keeps a later one from beginning. It
// asks Caddy's reader, which works below a ResponseWriter without Unwrap and
// keeps the deadline as a ceiling over the ones of later reads.
func (s *Stream) interrupt(why error) (supported bool) {
	s.interrupted = why
	return !s.reading || s.progress.reader.SetReadDeadline(longAgo) == nil
}

// displace ends an upload, unless it is complete.
func (s *Stream) displace(why error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received {
		return false
	}
	s.interrupt(why)
	return true
}

// firstRead is how much the first read asks for: an idle client then costs no
// more than this.
const firstRead = 1 << 10

// peek reads the first 32 KiB, or the whole body if it is smaller, and keeps
// it. An idle upload so costs the upstream nothing, not even a connection.
func (s *Stream) peek() error {
	if err := s.peekFirst(); err != nil {
		return err
	}
	for room := s.room(); len(room) > 0; room = s.room() {
		n, err := s.fetch(room)
		if err != nil && err != io.EOF {
			return err
		}
		s.growHead(n)
	}
	return nil
}

// peekFirst waits for the first bytes of the body.
func (s *Stream) peekFirst() error {
	if s.State().Bytes > 0 {
		return nil
	}
	small := firstReads.Get().(*[firstRead]byte)
	defer firstReads.Put(small)
	n, err := s.fetch(small[:])
	if err != nil && err != io.EOF {
		return err
	}
	s.mu.Lock()
	if n > 0 {
		s.headBuffer = chunks.Get().(*chunk)
		copy(s.headBuffer[:], small[:n])
	}
	s.mu.Unlock()
	s.growHead(n)
	return nil
}

// room returns what is free of the head's buffer, as long as there is more to
// come.
func (s *Stream) room() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received || s.headBuffer == nil {
		return nil
	}
	return s.headBuffer[len(s.head):]
}

// growHead has the head end n bytes later. A chunked body that ended in it has
// a length from now on.
func (s *Stream) growHead(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.headBuffer != nil {
		s.head = s.headBuffer[:len(s.head)+n]
	}
	if s.received && s.length < 0 {
		s.length = s.bytes
	}
}

var firstReads = sync.Pool{New: func() any { return new([firstRead]byte) }}
