package caddymodule

import (
	"container/list"
	"context"
	"math"
	"sync"
	"time"
)

// firstGuess is how long an analysis takes until some were measured: the
// vendor plans with it.
const firstGuess = 3 * time.Second

// limiter hands out a limited number of slots, first come, first served. It
// knows how long slots are held, and so how long those who wait have to wait.
// Its limits can change while it is in use.
type limiter struct {
	mu      sync.Mutex
	slots   int // 0: no limit
	queue   int // how many may wait
	busy    int
	waiting list.List // of *waiter
	service time.Duration
}

// waiter waits for a slot. Its channel is closed when it has one.
type waiter struct{ granted chan struct{} }

// Why a slot was not to be had.
type refusal string

const (
	refusalQueue  refusal = "queue"  // the queue was full
	refusalWait   refusal = "wait"   // the wait would have been, or was, too long
	refusalMemory refusal = "memory" // memory did not become free in time
)

var refusals = []refusal{refusalQueue, refusalWait, refusalMemory}

// busyError says that there is no capacity, and when there may be some.
type busyError struct {
	cause      refusal
	retryAfter time.Duration
}

func (e *busyError) Error() string { return "no capacity (" + string(e.cause) + ")" }

// set changes the limits. More slots are handed to those who wait at once.
func (l *limiter) set(slots, queue int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots, l.queue = slots, queue
	l.grant()
}

// acquire waits for a slot, but not longer than wait. It does not even begin
// to wait if the queue is full or is known to be too slow.
func (l *limiter) acquire(ctx context.Context, wait time.Duration) error {
	w, err := l.enter(wait)
	if w == nil {
		return err
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-w.granted:
		return nil
	case <-timer.C:
		return l.leave(w, func() error { return &busyError{refusalWait, l.untilFree()} })
	case <-ctx.Done():
		return l.leave(w, func() error { return errClientGone })
	}
}

// enter takes a free slot (nil, nil) or a place in the queue.
func (l *limiter) enter(wait time.Duration) (*waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting.Len() == 0 && l.free() {
		l.busy++
		return nil, nil
	}
	if l.waiting.Len() >= l.queue {
		return nil, &busyError{refusalQueue, l.untilFree()}
	}
	if l.after(l.waiting.Len()+1) > wait {
		return nil, &busyError{refusalWait, l.untilFree()}
	}
	w := &waiter{make(chan struct{})}
	l.waiting.PushBack(w)
	return w, nil
}

// leave gives a place in the queue up. If it came to a slot in the meantime,
// that is kept.
func (l *limiter) leave(w *waiter, why func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.waiting.Front(); e != nil; e = e.Next() {
		if e.Value == w {
			l.waiting.Remove(e)
			return why()
		}
	}
	return nil
}

// release gives a slot back that was held for so long.
func (l *limiter) release(held time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy--
	l.measure(held)
	l.grant()
}

// measure keeps a moving average: recent holds count more, no single one much.
func (l *limiter) measure(held time.Duration) {
	if l.service == 0 {
		l.service = held
		return
	}
	l.service += (held - l.service) / 8
}

func (l *limiter) free() bool { return l.slots == 0 || l.busy < l.slots }

func (l *limiter) grant() {
	for e := l.waiting.Front(); e != nil && l.free(); e = l.waiting.Front() {
		l.waiting.Remove(e)
		l.busy++
		close(e.Value.(*waiter).granted)
	}
}

// after is how long it takes until n more slots have become free.
func (l *limiter) after(n int) time.Duration {
	if l.slots == 0 {
		return 0
	}
	service := l.service
	if service == 0 {
		service = firstGuess
	}
	return time.Duration(float64(service) * float64(n) / float64(l.slots))
}

// untilFree is when all that is under way or waits now will be done: who comes
// back then finds a place, if others leave it.
func (l *limiter) untilFree() time.Duration { return l.after(l.busy + l.waiting.Len()) }

// untilDone is when n capsules will be done that are not in the queue yet.
func (l *limiter) untilDone(n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.after(n)
}

// load is how many slots are taken and how many wait.
func (l *limiter) load() (busy, waiting int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busy, l.waiting.Len()
}

// seconds is a duration as Retry-After has it: whole, rounded up, at least one.
func seconds(d time.Duration) int { return max(1, int(math.Ceil(d.Seconds()))) }
