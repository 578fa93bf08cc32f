package sandbox

import (
	"context"
	"slices"
	"sync"
)

// slots limit how many capsules are served at once. Who waits is served in the order of coming. The limit is passed in
// with each call because it can change at run time.
type slots struct {
	changed func(busy, waiting int)

	mu    sync.Mutex
	busy  int
	queue []chan struct{}
}

// acquire takes a slot. It reports false when there is none and wait is off, or when ctx or done ends first.
func (q *slots) acquire(ctx context.Context, limit int, wait bool, done <-chan struct{}) bool {
	q.mu.Lock()
	if limit == 0 || q.busy < limit {
		q.busy++
		q.tell()
		q.mu.Unlock()
		return true
	}
	if !wait {
		q.mu.Unlock()
		return false
	}
	turn := make(chan struct{})
	q.queue = append(q.queue, turn)
	q.tell()
	q.mu.Unlock()

	select {
	case <-turn:
		return true
	case <-ctx.Done():
	case <-done:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.queue, turn)
	if i < 0 { // the slot was handed over in the same moment: give it back
		q.give()
		return false
	}
	q.queue = slices.Delete(q.queue, i, i+1)
	q.tell()
	return false
}

// release hands the slot to who waits longest.
func (q *slots) release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.give()
}

func (q *slots) give() {
	if len(q.queue) > 0 {
		close(q.queue[0])
		q.queue = q.queue[1:]
	} else {
		q.busy--
	}
	q.tell()
}

// tell is called with mu held, so that what others are told is in order.
func (q *slots) tell() { q.changed(q.busy, len(q.queue)) }
