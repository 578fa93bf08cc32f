package upload

import (
	"context"
	"slices"
	"sync"
	"time"
)

// limiter hands out a limited number of slots, first come, first served. It
// learns how long slots are held, and so how long a newcomer would wait. Its
// limits can change while it is in use. With a fleet they count over all
// gateways, and slots are granted there.
type limiter struct {
	mu      sync.Mutex
	slots   int           // 0: no limit
	queue   int           // how many may wait
	held    []*ticket     // have a slot
	waiting []*ticket     // in order of arrival
	service time.Duration // how long a slot is held: a guess, until it was measured
	learnt  bool
	tickets int64  // that there ever were
	fleet   *fleet // nil: slots are this gateway's own
}

// ticket is one that waits for a slot, or has it.
type ticket struct {
	id       int64
	since    time.Time     // when it came, or got its slot
	wait     time.Duration // how long it may wait
	accepted bool          // can't be refused for the queue any more
	judged   bool          // nor for the time that it would wait
	told     bool          // the fleet's store has it in its books
	ready    chan struct{} // closed when it has a slot, or is refused
	refused  *Refused
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

// set changes the limits, and what counts them. More slots are handed to those
// that wait at once. It returns the fleet to leave, if any.
func (l *limiter) set(slots, queue int, s *Shared) (ended *fleet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots, l.queue = slots, queue
	ended = l.countBy(s)
	l.grant()
	return ended
}

// unshare ends counting over all gateways, and leaves the limits as they are.
func (l *limiter) unshare() (ended *fleet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ended = l.countBy(nil)
	l.grant()
	return ended
}

// acquire waits for a slot, but not longer than wait. It doesn't even begin to
// wait if the queue is full or is known to be too slow.
func (l *limiter) acquire(ctx context.Context, u *upload, wait time.Duration) (release func(served bool), err error) {
	t := l.enter(wait, u != nil && u.inside) // which counts for the queue already
	if !t.isReady() {
		if err := u.await(ctx, t.ready, l.patience(wait), CauseWait); err != nil && l.leave(t) {
			return nil, l.withRetry(err)
		}
	}
	if t.refused != nil {
		return nil, t.refused
	}
	began := time.Now()
	return func(served bool) { l.release(t, time.Since(began), served) }, nil
}

// enter returns a ticket that has a slot, is refused, or waits.
func (l *limiter) enter(wait time.Duration, accepted bool) *ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tickets++
	t := &ticket{id: l.tickets, since: time.Now(), wait: wait, accepted: accepted, ready: make(chan struct{})}
	if l.fleet.grants() {
		l.waiting = append(l.waiting, t)
		l.fleet.poke()
	} else {
		l.judge(t)
	}
	return t
}

// judge gives a newcomer a slot, refuses it, or has it wait.
func (l *limiter) judge(t *ticket) {
	slots, queue := l.limits()
	switch {
	case len(l.waiting) == 0 && l.free(slots):
		l.admit(t)
	case len(l.waiting) >= queue && !t.accepted:
		t.refuse(&Refused{CauseQueue, l.untilFree()})
	case l.after(len(l.waiting)+1) > t.wait:
		t.refuse(&Refused{CauseWait, l.untilFree()})
	default:
		t.accepted, t.judged = true, true
		l.waiting = append(l.waiting, t)
	}
}

// judgeNew judges those that the fleet's store hasn't accepted yet, when it
// grants nothing any more.
func (l *limiter) judgeNew() {
	all := l.waiting
	l.waiting = slices.DeleteFunc(slices.Clone(all), func(t *ticket) bool { return !t.accepted })
	l.grant()
	for _, t := range all {
		if !t.accepted {
			l.judge(t)
		}
	}
}

// patience returns how long a ticket is waited for at most. A fleet's answer
// takes time that isn't spent in the queue.
func (l *limiter) patience(wait time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fleet.grants() {
		return max(wait, storeTimeout)
	}
	return wait
}

func (t *ticket) isReady() bool {
	select {
	case <-t.ready:
		return true
	default:
		return false
	}
}

func (t *ticket) refuse(why *Refused) {
	t.refused = why
	close(t.ready)
}

// admit gives a ticket a slot.
func (l *limiter) admit(t *ticket) {
	t.since = time.Now()
	l.held = append(l.held, t)
	close(t.ready)
}

// leave gives up waiting. It reports false if something has come of it in the
// meantime.
func (l *limiter) leave(t *ticket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !remove(&l.waiting, t) {
		return false
	}
	l.fleet.ended(t)
	return true
}

// remove takes a ticket out of a list, and reports whether it was there.
func remove(list *[]*ticket, t *ticket) bool {
	i := slices.Index(*list, t)
	if i < 0 {
		return false
	}
	*list = slices.Delete(*list, i, i+1)
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
func (l *limiter) release(t *ticket, held time.Duration, served bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	remove(&l.held, t)
	if served {
		l.measure(held)
	}
	l.fleet.ended(t)
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

// limits returns those that hold at the moment: without the store that counts
// for all, a gateway has its share of them.
func (l *limiter) limits() (slots, queue int) {
	if l.fleet.alone() {
		return l.fleet.share(l.slots, l.queue)
	}
	return l.slots, l.queue
}

// free reports whether there is a free slot, given how many this gateway may use.
func (l *limiter) free(slots int) bool { return l.slots == 0 || len(l.held) < slots }

// grant gives free slots to those that wait, unless the fleet does.
func (l *limiter) grant() {
	if l.fleet.grants() {
		l.fleet.poke()
		return
	}
	slots, _ := l.limits()
	for len(l.waiting) > 0 && l.free(slots) {
		l.admit(l.waiting[0])
		l.waiting = l.waiting[1:]
	}
}

// after estimates how long it takes until n more slots have become free.
func (l *limiter) after(n int) time.Duration {
	if l.slots == 0 {
		return 0
	}
	slots, _ := l.limits()
	return time.Duration(float64(l.service) * float64(n) / float64(max(1, slots)))
}

// untilFree estimates when all that holds a slot or waits now will be done: a
// client that comes back then finds a place, if others leave it. No client
// should come back within a second.
func (l *limiter) untilFree() time.Duration {
	held, waiting := l.fleet.elsewhere()
	return max(time.Second, l.after(len(l.held)+len(l.waiting)+held+waiting))
}

// full reports whether so many uploads are all that may be inside: that have a
// slot, wait, or are received into memory for it. What other gateways have counts
// once it is received: a slow upload takes no place elsewhere. A gateway's own part
// is never taken by others: what it hears of them is up to a second old, and they
// would fill each place that becomes free before it hears of that.
func (l *limiter) full(inside int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	slots, queue := l.limits()
	held, waiting := l.fleet.elsewhere()
	places := slots + queue
	return l.slots > 0 && inside+held+waiting >= places && inside >= l.fleet.partOf(places)
}

// untilDone estimates when n uploads will be done, or if they are more all that
// hold a slot or wait.
func (l *limiter) untilDone(n int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.after(n), l.untilFree())
}
