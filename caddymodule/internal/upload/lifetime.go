package upload

import (
	"context"
	"sync"
	"time"
)

// Lifetime is how long the work on an upload goes on when its client leaves:
// until the upload is complete its leaving ends the context, with the cause
// ErrGone; after that only with cancel (client_gone cancel).
//
// A request's context also ends, over HTTP/1, when a read times out or is ended
// by us. That is never taken for a client that left.
type Lifetime struct {
	stream *Stream
	always bool // leaving ends the context, complete or not
	ctx    context.Context
	cancel context.CancelCauseFunc
	forget func() bool

	mu    sync.Mutex
	grace time.Duration // < 0: for ever
	timer *time.Timer
}

// Lifetime returns the context of the work on s. See Lifetime.
func (s *Stream) Lifetime(cancel bool) *Lifetime {
	l := &Lifetime{stream: s, always: cancel, grace: -1}
	l.ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(s.ctx))
	l.forget = context.AfterFunc(s.ctx, l.requestEnded)
	return l
}

// Context returns the context of the work.
func (l *Lifetime) Context() context.Context { return l.ctx }

// requestEnded runs when the request's context has ended.
func (l *Lifetime) requestEnded() {
	left, received := l.stream.whyEnded()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !left:
	case l.always, l.grace < 0 && !received:
		l.cancel(ErrGone)
	case l.grace >= 0:
		l.endAfter(l.grace)
	}
}

// whyEnded tells whether the request's context has ended because the client
// has left, and whether it had sent everything. A read in progress knows, and
// ends: its connection is dead.
func (s *Stream) whyEnded() (left, received bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.reading {
		s.idle.Wait()
	}
	return !s.broken, s.received
}

// Gone reports whether the client has left, whatever that ended.
func (l *Lifetime) Gone() bool {
	s := l.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended == ErrGone || s.ctx.Err() != nil && !s.reading && !s.broken
}

// Grace makes the context end a while after the client has left, from now on.
func (l *Lifetime) Grace(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.grace = d
	if l.Gone() {
		l.endAfter(d)
	}
}

func (l *Lifetime) endAfter(d time.Duration) {
	l.timer = time.AfterFunc(d, func() { l.cancel(ErrGone) })
}

// End ends the context and its clocks.
func (l *Lifetime) End() {
	l.forget()
	l.cancel(nil)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
}
