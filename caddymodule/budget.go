package caddymodule

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// chunkSize is the unit in which capsules take memory. A phone that sends
// nothing holds this much and no more.
const chunkSize = 32 << 10

// lateGrace is how far behind its pace an upload may be.
const lateGrace = 2 * time.Second

// errStalled ends an upload that holds memory which others wait for, and that
// is too slow to come to its end in time.
var errStalled = errors.New("capsule upload stalled while others waited for memory")

// budget is the memory for capsules that are received whole before they go to
// Oz. It counts what is really held. So that those who have begun can also
// finish, an upload reserves what it has yet to send as soon as its first chunk
// is full. One that is too slow to be done within its time reserves nothing,
// and when others wait for its memory it has to go. Nobody is read for whom
// there is no memory: the network then holds the client back.
type budget struct {
	mu     sync.Mutex
	total  int64
	used   int64 // held or reserved
	active []*receipt
	queue  []*receipt // wait for memory, first come, first served
	timer  *time.Timer
	chunks [][]byte // free ones, to be used again
}

// receipt is one capsule that is being received, or was and is not yet sent.
type receipt struct {
	budget   *budget
	length   int64 // of the capsule; the largest there can be if it is unknown
	deadline time.Duration
	start    time.Time
	evict    func() // ends the upload

	received int64     // bytes
	held     int64     // memory
	reserved int64     // memory to come
	want     int64     // memory that it waits for, while it is in the queue
	since    time.Time // when it came to the queue; zero if it is not there
	ready    chan struct{}
	evicted  bool
}

// open begins to receive a capsule of length bytes, for which the client has
// so long. Evict must end the upload soon, and may be called from anywhere.
func (b *budget) open(length int64, deadline time.Duration, evict func()) *receipt {
	r := &receipt{budget: b, length: length, deadline: deadline, start: time.Now(), evict: evict}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active = append(b.active, r)
	return r
}

// set changes the size of the budget. What is held beyond it is not taken away.
func (b *budget) set(total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total = total
	b.serve()
}

// chunk returns memory for the next bytes. If there is none it waits, for as
// long as it may.
func (r *receipt) chunk(ctx context.Context, wait time.Duration) ([]byte, error) {
	c, ready, err := r.ask()
	if ready == nil {
		return c, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait, errNoMemory)
	defer cancel()
	for ready != nil {
		select {
		case <-ready:
			c, ready, err = r.ask()
		case <-ctx.Done():
			r.budget.withdraw(r)
			return nil, context.Cause(ctx)
		}
	}
	return c, err
}

// ask returns a chunk if memory is reserved for it, and else what to wait for.
func (r *receipt) ask() (chunk []byte, ready chan struct{}, err error) {
	b := r.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.evicted:
		return nil, nil, errStalled
	case r.reserved >= chunkSize:
		return b.take(r), nil, nil
	}
	now := time.Now()
	r.want = chunkSize
	if r.held > 0 && !r.late(now) {
		r.want = max(chunkSize, roundUp(r.length-r.received))
	}
	r.ready, r.since = make(chan struct{}), now
	b.enqueue(r)
	b.serve()
	return nil, r.ready, nil
}

// enqueue has those who have begun go before those who have not: what they hold
// comes free only when they come to their end.
func (b *budget) enqueue(r *receipt) {
	i := len(b.queue)
	if r.held > 0 {
		if first := slices.IndexFunc(b.queue, func(other *receipt) bool { return other.held == 0 }); first >= 0 {
			i = first
		}
	}
	b.queue = slices.Insert(b.queue, i, r)
}

// need is what has to be free for r to be served. To begin takes that behind it
// the largest rest of those who have begun, and have reserved nothing yet, still
// fits: or all could hold a little, and nobody come to an end.
func (b *budget) need(r *receipt) int64 {
	if r.held > 0 {
		return r.want
	}
	rest, now := roundUp(r.length)-chunkSize, time.Now()
	for _, other := range b.active {
		if other.held > 0 && other.reserved == 0 && !other.evicted && !other.late(now) {
			rest = max(rest, roundUp(other.length-other.received))
		}
	}
	return r.want + max(rest, 0)
}

// take turns reserved memory into a chunk.
func (b *budget) take(r *receipt) []byte {
	if r.held == 0 { // the client's time begins when it is read
		r.start = time.Now()
	}
	r.reserved -= chunkSize
	r.held += chunkSize
	sharedMetrics.memory.Add(chunkSize)
	if n := len(b.chunks); n > 0 {
		c := b.chunks[n-1]
		b.chunks = b.chunks[:n-1]
		return c
	}
	return make([]byte, chunkSize)
}

// got notes that n bytes have come in.
func (r *receipt) got(n int) {
	r.budget.mu.Lock()
	defer r.budget.mu.Unlock()
	r.received += int64(n)
}

// complete says that the capsule is whole: what was reserved beyond it is free.
func (r *receipt) complete() {
	b := r.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(r)
}

func (r *receipt) isEvicted() bool {
	r.budget.mu.Lock()
	defer r.budget.mu.Unlock()
	return r.evicted
}

// free gives a chunk back.
func (r *receipt) free(chunk []byte) {
	b := r.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	r.held -= chunkSize
	b.used -= chunkSize
	sharedMetrics.memory.Sub(chunkSize)
	if int64(len(b.chunks))*chunkSize < b.total/4 {
		b.chunks = append(b.chunks, chunk)
	}
	b.serve()
}

// drop takes r from those that are being received.
func (b *budget) drop(r *receipt) {
	b.active = slices.DeleteFunc(b.active, func(other *receipt) bool { return other == r })
	b.used -= r.reserved
	r.reserved = 0
	b.serve()
}

// withdraw ends r's wait for memory.
func (b *budget) withdraw(r *receipt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaveQueue(r)
	b.serve()
}

// leaveQueue takes r from the queue, if it is there. The time that it waited is
// not its client's.
func (b *budget) leaveQueue(r *receipt) {
	i := slices.Index(b.queue, r)
	if i < 0 {
		return
	}
	b.queue = slices.Delete(b.queue, i, i+1)
	r.start, r.since = r.start.Add(time.Since(r.since)), time.Time{}
	close(r.ready)
}

// serve gives memory to those who wait, in their order. If the first of them
// cannot be served, those who are late make room.
func (b *budget) serve() {
	for len(b.queue) > 0 {
		first := b.queue[0]
		need := b.need(first)
		if b.used+need > b.total {
			b.makeRoom(first, need)
		}
		if b.used+need > b.total {
			b.again()
			return
		}
		b.used += first.want
		first.reserved += first.want
		b.leaveQueue(first)
	}
}

// makeRoom takes from those who are late what they have reserved, and if that
// is not enough has the latest of them go. Its memory comes back when it has.
func (b *budget) makeRoom(first *receipt, need int64) {
	now := time.Now()
	var latest *receipt
	leaving := int64(0)
	for _, r := range b.active {
		if r.evicted {
			leaving += r.held
			continue
		}
		if r == first || r.held == 0 || !r.late(now) {
			continue
		}
		b.used -= r.reserved
		r.reserved = 0
		if latest == nil || r.behind(now) > latest.behind(now) {
			latest = r
		}
	}
	if latest != nil && b.used-leaving+need > b.total {
		latest.evicted = true
		b.leaveQueue(latest)
		latest.evict()
	}
}

// lateOnes counts the uploads that are too slow to be done in their time.
func (b *budget) lateOnes() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, r := range b.active {
		if r.held > 0 && r.late(now) {
			n++
		}
	}
	return n
}

// again looks after the queue in a while: who is late is a matter of time.
func (b *budget) again() {
	const soon = 250 * time.Millisecond
	if b.timer != nil {
		b.timer.Reset(soon)
		return
	}
	b.timer = time.AfterFunc(soon, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.serve()
	})
}

// late reports whether the upload will not be done in its time if it goes on
// as it did.
func (r *receipt) late(now time.Time) bool { return r.behind(now) > 0 }

// behind is how much is missing of what should have come by now.
func (r *receipt) behind(now time.Time) int64 {
	if !r.since.IsZero() {
		now = r.since
	}
	elapsed := now.Sub(r.start) - lateGrace
	due := float64(r.length) * min(1, max(0, elapsed.Seconds()/r.deadline.Seconds()))
	return int64(due) - r.received
}

func roundUp(n int64) int64 { return (n + chunkSize - 1) / chunkSize * chunkSize }
