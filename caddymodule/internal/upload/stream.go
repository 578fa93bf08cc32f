package upload

import (
	"context"
	"errors"
	"hash"
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
	body   io.Reader
	limit  int64
	digest hash.Hash
	admit  func(context.Context) error
	ctx    context.Context // of the request
	connectionID

	mu       sync.Mutex
	idle     sync.Cond // signalled when no read is in progress
	progress progress
	length   int64
	reading  bool
	since    time.Time     // when the read in progress began
	silence  time.Duration // of the read that timed out
	head     []piece       // received and not taken yet
	offset   int           // how much of the first piece was taken
	claim    *claim        // the memory that head takes; nil where the body is streamed
	received bool
	whole    chan struct{} // closed when received
	takenAt  time.Time
	sentAt   time.Time
	stopped  bool
	ended    error // why nothing more is read: a fault of the client, or a *Refused
	broken   bool  // a read timed out, or was ended by us: the connection can't be used again
}

// piece is a chunk with n bytes in it.
type piece struct {
	chunk *chunk
	n     int
}

// NewStream prepares to read the body of r. Nothing is read yet.
func NewStream(w http.ResponseWriter, r *http.Request, limits Limits) *Stream {
	s := &Stream{
		limit:        limits.MaxBytes,
		digest:       limits.Digest,
		admit:        limits.Admit,
		ctx:          r.Context(),
		connectionID: connectionID{r.ProtoMajor, r.RemoteAddr},
		length:       r.ContentLength,
		whole:        make(chan struct{}),
	}
	if s.length == 0 {
		s.complete()
	}
	s.idle.L = &s.mu
	s.body = s.progress.start(w, r, limits.Timeout)
	if s.limit > 0 && s.length > s.limit {
		s.ended = ErrTooLarge
	}
	return s
}

// complete notes that the client has sent all of the body.
func (s *Stream) complete() {
	s.received = true
	close(s.whole)
}

// Received returns a channel that is closed when the client has sent all of
// the body.
func (s *Stream) Received() <-chan struct{} { return s.whole }

// Read implements io.Reader for the transport.
func (s *Stream) Read(p []byte) (n int, err error) {
	if n = s.takeHead(p); n == 0 && len(p) > 0 {
		n, err = s.fetch(p)
	}
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

// takeHead copies under the lock: after Stop nobody copies from the head any
// more, and its memory can be used again. What was taken is given back at once:
// a capsule is never sent twice.
func (s *Stream) takeHead(p []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.head) == 0 {
		return 0
	}
	first := s.head[0]
	n := copy(p, first.chunk[s.offset:first.n])
	if s.offset += n; s.offset == first.n {
		s.head, s.offset = s.head[1:], 0
		s.free(first.chunk)
	}
	return n
}

func (s *Stream) free(c *chunk) {
	chunks.Put(c)
	if s.claim != nil {
		s.claim.free()
	}
}

// fetch reads from the client. When the body is complete it doesn't look for
// more, which a client might never send.
func (s *Stream) fetch(p []byte) (n int, err error) {
	if err := s.begin(); err != nil {
		return 0, err
	}
	defer func() { n, err = s.finish(n, err) }() // also if the body panics
	n, err = s.body.Read(p)
	if s.digest != nil {
		s.digest.Write(p[:n]) // a hash.Hash never fails
	}
	return n, err
}

func (s *Stream) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return ErrStopped
	case s.received:
		return io.EOF
	case s.ended != nil:
		return s.ended
	}
	s.reading, s.since = true, time.Now()
	s.progress.arm()
	return nil
}

func (s *Stream) finish(n int, err error) (int, error) {
	waited := time.Since(s.since)
	fault := s.blame(err) // which may wait

	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading = false
	s.idle.Broadcast()

	s.progress.took(n, waited)
	err = s.judge(err, fault, waited)
	switch {
	case s.stopped:
		return 0, ErrStopped
	case errors.Is(err, ErrTooLarge):
		return 0, err // what lies beyond the limit goes nowhere
	}
	return n, err
}

// judge tells what it means that a read ended with err, which is fault unless it
// is something else. It returns what the reader is told.
func (s *Stream) judge(err, fault error, waited time.Duration) error {
	// In the trailer of a chunked body net/http reports a timeout as a cut body.
	deadline := errors.Is(err, os.ErrDeadlineExceeded) || err != nil && err != io.EOF && waited >= s.progress.armed
	if deadline {
		s.broken, s.silence = true, waited
	}
	switch {
	case s.limit > 0 && s.progress.bytes > s.limit:
		s.ended = ErrTooLarge
	case s.progress.bytes == s.length:
		s.complete()
		return nil
	case err == nil:
		return nil
	case err == io.EOF && s.length < 0:
		s.length = s.progress.bytes
		s.complete()
		return io.EOF
	case err == io.EOF:
		s.ended = ErrShort // over HTTP/2 and HTTP/3 the client is still there
	case s.stopped:
		return ErrStopped
	case s.ended != nil: // by us, while it was read
	case deadline:
		s.ended = s.progress.blame(waited)
	default:
		s.ended = fault
	}
	return s.ended
}

// blame tells what the client did if a read error is its fault. What it says of
// a timeout doesn't count: over HTTP/1 that ends the request's context, as a
// client that leaves does.
func (s *Stream) blame(err error) error {
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return err
	}
	_, isNet := errors.AsType[*net.OpError](err)
	h3Err, isH3 := errors.AsType[*http3.Error](err)
	switch {
	case err == nil, err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed),
		isNet, isH3 && h3Err.Remote, s.hasLeft():
		return ErrGone
	}
	return ErrUnreadable
}

// settleTime is how much later than a read the request's context may end. It is
// some instructions of the server, between which others may run.
const settleTime = time.Second

// hasLeft reports, after a read has failed, whether the client has left. Over
// HTTP/2 the errors of the server don't tell, and the read of a client that
// leaves fails before the request's context ends.
func (s *Stream) hasLeft() bool {
	if s.protoMajor < 2 {
		return s.ctx.Err() != nil
	}
	settled, cancel := context.WithTimeout(s.ctx, settleTime)
	defer cancel()
	<-settled.Done()
	return s.ctx.Err() != nil
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
		Bytes:    s.progress.bytes,
		Waited:   s.progress.waited,
		Silence:  s.silence,
		Unread:   !s.received || s.broken,
	}
	if _, refused := errors.AsType[*Refused](s.ended); !refused {
		st.Fault = s.ended
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

// Stop implements Body. What was received and not taken is given up.
func (s *Stream) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
}

func (s *Stream) stop() {
	s.stopped = true
	for _, p := range s.head {
		s.free(p.chunk)
	}
	s.head = nil
}

// Rest stops s and returns what is left of its body on the connection. Reading
// it waits for a read in progress. The site's own timeouts apply to it.
func (s *Stream) Rest() io.ReadCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	s.progress.undo()
	return &rest{s}
}

type rest struct{ s *Stream }

// Read implements io.Reader. It knows no limit: what is left is only discarded.
func (r *rest) Read(p []byte) (n int, err error) {
	s := r.s
	s.mu.Lock()
	for s.reading {
		s.idle.Wait()
	}
	if s.received {
		s.mu.Unlock()
		return 0, io.EOF
	}
	s.reading, s.since = true, time.Now()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.reading = false
		s.broken = s.broken || errors.Is(err, os.ErrDeadlineExceeded)
		s.idle.Broadcast()
	}()
	return s.body.Read(p)
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
	s.stop()
	supported := s.interrupt()
	for supported && s.reading { // else nothing would end the read
		s.idle.Wait()
	}
	s.progress.undo()
	if s.body == io.Reader(s.progress.reader) { // ours, and not the server's
		s.progress.reader.HandlerDone()
	}
}

// interrupt ends a read in progress. It asks Caddy's reader, which works below
// a ResponseWriter without Unwrap and keeps the deadline as a ceiling over the
// ones of later reads.
func (s *Stream) interrupt() (supported bool) {
	if !s.reading {
		return true
	}
	s.broken = true
	return s.progress.reader.SetReadDeadline(longAgo) == nil
}

// displace ends an upload, unless it is complete.
func (s *Stream) displace(why *Refused) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received {
		return false
	}
	if s.ended == nil {
		s.ended = why
	}
	s.interrupt()
	return true
}

// firstRead is how much the first read asks for: an idle client then costs no
// more than this.
const firstRead = 1 << 10

// first waits for the first bytes of the body.
func (s *Stream) first() ([]byte, error) {
	first := make([]byte, firstRead)
	n, err := s.fetch(first)
	if err == io.EOF {
		err = nil
	}
	return first[:n], err
}

// peek receives the first 32 KiB, or the whole body if it is smaller. An idle
// upload so costs the upstream nothing, not even a connection.
func (s *Stream) peek() error {
	first, err := s.first()
	if err != nil {
		return err
	}
	return s.fill(chunks.Get().(*chunk), first)
}

// open makes the head's memory that of a claim.
func (s *Stream) open(m *memory, gauge Gauge) *claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	length := s.length
	if length < 0 && s.limit > 0 {
		length = s.limit
	}
	s.claim = m.open(length, gauge)
	return s.claim
}

// fill adds a chunk to the head, which begins with first. It is only shorter
// than others if the body ends in it.
func (s *Stream) fill(c *chunk, first []byte) (err error) {
	n := copy(c[:], first)
	defer func() { s.keep(piece{c, n}) }()
	for n < chunkSize && err == nil {
		var m int
		m, err = s.fetch(c[n:])
		n += m
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// keep adds a piece to the head. An empty one would hide that the last byte was
// taken.
func (s *Stream) keep(p piece) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.n == 0 || s.stopped {
		s.free(p.chunk)
		return
	}
	s.head = append(s.head, p)
}
