package upload

import (
	"context"
	"slices"
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
	waiting []chan struct{} // each is closed when it has a slot
	service time.Duration   // how long a slot is held: a guess, until it was measured
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
	turn, err := l.enter(wait)
	if err != nil {
		return nil, err
	}
	if turn != nil {
		if err := u.await(ctx, turn, wait, CauseWait); err != nil && l.leave(turn) {
			return nil, l.withRetry(err)
		}
	}
	began := time.Now()
	return func(served bool) { l.release(time.Since(began), served) }, nil
}

// enter takes a free slot (nil, nil) or a turn in the queue.
func (l *limiter) enter(wait time.Duration) (turn chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(l.waiting) == 0 && l.free():
		l.busy++
		return nil, nil
	case len(l.waiting) >= l.queue:
		return nil, &Refused{CauseQueue, l.untilFree()}
	case l.after(len(l.waiting)+1) > wait:
		return nil, &Refused{CauseWait, l.untilFree()}
	}
	turn = make(chan struct{})
	l.waiting = append(l.waiting, turn)
	return turn, nil
}

// leave gives a turn up. It reports false if it has come in the meantime.
func (l *limiter) leave(turn chan struct{}) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiting, turn)
	if i < 0 {
		return false
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	return true
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
	for len(l.waiting) > 0 && l.free() {
		l.busy++
		close(l.waiting[0])
		l.waiting = l.waiting[1:]
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
// client that comes back then finds a place, if others leave it. No client
// should come back within a second.
func (l *limiter) untilFree() time.Duration {
	return max(time.Second, l.after(l.busy+len(l.waiting)))
}

// untilDone estimates when n uploads will be done, or if they are more all that
// hold a slot or wait.
func (l *limiter) untilDone(n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.after(n), l.untilFree())
}
