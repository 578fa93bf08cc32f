package upload

import (
	"context"
	"slices"
	"sync"
	"time"
)

// chunkSize is the unit in which uploads take memory.
const chunkSize = 32 << 10

type chunk = [chunkSize]byte

// chunks are used again by heads of uploads and by Linger.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

// memory is handed out in chunks, first come, first served: an upload gets one
// only if after it the largest rest of all older uploads still fits.
//
// So nobody stands still for ever. Each chunk that a younger upload got left
// room for every older one's rest, and an older one's own chunks lower its rest
// by as much. Complete uploads wait for the upstream and never for memory, so
// when they have gone the oldest incomplete one fits.
//
// An unknown length counts as the largest there can be. Twice what the upload
// holds, tried instead, stopped six uploads for good. Nothing else works as a
// limit either: the whole length first is a claim that costs a client nothing
// and shut others out for two minutes, and no rule at all deadlocks, since an
// upload that waits for memory isn't read and can't run out of patience.
type memory struct {
	mu      sync.Mutex
	total   int64
	used    int64
	uploads []*claim // being received, in order of arrival
}

// claim is one upload's share of the memory.
type claim struct {
	memory  *memory
	gauge   Gauge
	rest    int64         // what it has yet to take
	granted chan struct{} // not nil while it waits for a chunk
}

// set changes the size. What is in use beyond it isn't taken away.
func (m *memory) set(total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total = total
	m.grant()
}

// open adds an upload of length bytes. -1: as large as the memory.
func (m *memory) open(length int64, gauge Gauge) *claim {
	m.mu.Lock()
	defer m.mu.Unlock()
	if length < 0 {
		length = m.total
	}
	c := &claim{memory: m, gauge: gauge, rest: roundUp(length)}
	m.uploads = append(m.uploads, c)
	return c
}

// take waits for a chunk, at most as long as wait.
func (c *claim) take(ctx context.Context, u *upload, wait time.Duration) (*chunk, error) {
	if granted := c.ask(); granted != nil {
		if err := u.await(ctx, granted, wait, CauseMemory); err != nil && !c.withdraw() {
			return nil, err
		}
	}
	c.gauge.Add(chunkSize)
	return chunks.Get().(*chunk), nil
}

// ask returns what to wait for, or nil if there is a chunk already.
func (c *claim) ask() (granted chan struct{}) {
	m := c.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	c.granted = make(chan struct{})
	granted = c.granted
	m.grant()
	if c.granted == nil {
		return nil
	}
	return granted
}

// withdraw ends the wait. It reports whether a chunk came in the meantime.
func (c *claim) withdraw() (granted bool) {
	m := c.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.granted == nil {
		return true
	}
	c.granted = nil
	m.grant()
	return false
}

// grant gives chunks to those that wait, in their order, until one doesn't fit.
func (m *memory) grant() {
	largest := int64(0) // rest of all older ones
	for _, c := range m.uploads {
		if c.granted != nil {
			if m.used+chunkSize+largest > m.total {
				return
			}
			m.used += chunkSize
			c.rest = max(0, c.rest-chunkSize)
			close(c.granted)
			c.granted = nil
		}
		largest = max(largest, c.rest)
	}
}

// free gives a chunk's memory back.
func (c *claim) free() {
	c.gauge.Add(-chunkSize)
	m := c.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= chunkSize
	m.grant()
}

// complete says that no more will be taken.
func (c *claim) complete() {
	m := c.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uploads = slices.DeleteFunc(m.uploads, func(other *claim) bool { return other == c })
	m.grant()
}

// MinMemory returns the least memory that can hold a body of length bytes.
func MinMemory(length int64) int64 { return roundUp(length) }

func roundUp(n int64) int64 { return (n + chunkSize - 1) / chunkSize * chunkSize }
