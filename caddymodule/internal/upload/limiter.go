package upload

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// limiter hands out a limited number of slots, first come, first served. It
// learns how long slots are held, and so how long a newcomer would wait. Its
// limits can change while it is in use.
type limiter struct {
	mu      sync.Mutex
	slots   int // 0: no limit
	queue   int // how many may wait
	busy    int
	waiting list.List     // of chan struct{}, closed when it has a slot
	service time.Duration // how long a slot is held: a guess, until it was measured
	learnt  bool
}

// Refused says that there is no capacity, and when there may be some.
type Refused struct { //nolint:errname // named as what it is: a refusal
	Cause      Cause
	RetryAfter time.Duration // 0: unknown
}

// Error implements error.
func (e *Refused) Error() string { return "no capacity (" + string(e.Cause) + ")" }

// Cause is why there was no capacity.
type Cause string

const (
	CauseQueue     Cause = "queue"     // the queue was full
	CauseWait      Cause = "wait"      // the wait would have been, or was, too long
	CauseMemory    Cause = "memory"    // memory did not become free in time
	CauseDisplaced Cause = "displaced" // a faster upload took the place of this slow one
)

// Causes lists every Cause.
func Causes() []Cause { return []Cause{CauseQueue, CauseWait, CauseMemory, CauseDisplaced} }

// set changes the limits. More slots are handed to those that wait at once.
func (l *limiter) set(slots, queue int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots, l.queue = slots, queue
	l.grant()
}

// acquire waits for a slot, but not longer than wait. It doesn't even begin to
// wait if the queue is full or is known to be too slow.
func (l *limiter) acquire(ctx context.Context, u *upload, wait time.Duration) (release func(served bool), err error) {
	place, err := l.enter(wait)
	if err != nil {
		return nil, err
	}
	if place != nil {
		if err := u.await(ctx, place.Value.(chan struct{}), wait, CauseWait); err != nil && l.leave(place) {
			return nil, l.withRetry(err)
		}
	}
	began := time.Now()
	return func(served bool) { l.release(time.Since(began), served) }, nil
}

// enter takes a free slot (nil, nil) or a place in the queue.
func (l *limiter) enter(wait time.Duration) (*list.Element, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.waiting.Len() == 0 && l.free():
		l.busy++
		return nil, nil
	case l.waiting.Len() >= l.queue:
		return nil, &Refused{CauseQueue, l.untilFree()}
	case l.after(l.waiting.Len()+1) > wait:
		return nil, &Refused{CauseWait, l.untilFree()}
	}
	return l.waiting.PushBack(make(chan struct{})), nil
}

// leave gives a place in the queue up. It reports false if the place has become
// a slot in the meantime.
func (l *limiter) leave(place *list.Element) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-place.Value.(chan struct{}):
		return false
	default:
		l.waiting.Remove(place)
		return true
	}
}

// withRetry adds an estimate to a refusal.
func (l *limiter) withRetry(err error) error {
	if refused, ok := err.(*Refused); ok && refused.RetryAfter == 0 {
		refused.RetryAfter = l.untilDone(0)
	}
	return err
}

// release gives a slot back that was held for so long. Only what the upstream
// served counts for estimates: a client that was waited for in vain says
// nothing of the upstream.
func (l *limiter) release(held time.Duration, served bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	if served {
		l.measure(held)
	}
	l.grant()
}

// measure keeps a moving average: recent holds count more, no single one much.
func (l *limiter) measure(held time.Duration) {
	if !l.learnt {
		l.service, l.learnt = held, true
		return
	}
	l.service += (held - l.service) / 8
}

func (l *limiter) free() bool { return l.slots == 0 || l.busy < l.slots }

func (l *limiter) grant() {
	for l.waiting.Len() > 0 && l.free() {
		l.busy++
		close(l.waiting.Remove(l.waiting.Front()).(chan struct{}))
	}
}

// after estimates how long it takes until n more slots have become free.
func (l *limiter) after(n int) time.Duration {
	if l.slots == 0 {
		return 0
	}
	return time.Duration(float64(l.service) * float64(n) / float64(l.slots))
}

// untilFree estimates when all that holds a slot or waits now will be done: a
// client that comes back then finds a place, if others leave it.
func (l *limiter) untilFree() time.Duration { return l.after(l.busy + l.waiting.Len()) }

// untilDone estimates when n uploads will be done, or if they are more all that
// hold a slot or wait.
func (l *limiter) untilDone(n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.after(n), l.untilFree())
}
