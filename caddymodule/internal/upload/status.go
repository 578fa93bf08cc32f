package upload

import (
	"math"
	"time"
)

// GateStatus is what a Gate does at one moment. Limits are 0 where there is none.
// The names are part of the admin API.
type GateStatus struct {
	InFlight       int     `json:"in_flight"`       // have a slot, or are at the upstream without one
	Slots          int     `json:"slots"`           // how many may have one
	Queued         int     `json:"queued"`          // wait for a slot
	Queue          int     `json:"queue"`           // how many may wait
	Uploading      int     `json:"uploading"`       // are received into memory, in places of the queue
	HeldBytes      int64   `json:"held_bytes"`      // of memory
	MemoryBytes    int64   `json:"memory_bytes"`    // how many may be held
	ServiceSeconds float64 `json:"service_seconds"` // an upload is in flight, lately; 0: none was measured
	WaitSeconds    float64 `json:"wait_seconds"`    // estimate for a newcomer

	Shared *SharedStatus `json:"shared,omitempty"` // absent unless slots count over all gateways
}

// SharedStatus is what all gateways do together that share slots, by the last
// answer of their store.
type SharedStatus struct {
	Alone    bool `json:"alone"`     // the store doesn't answer, and this gateway continues with its share
	Gateways int  `json:"gateways"`  // that the store last knew; 0: it never answered
	InFlight int  `json:"in_flight"` // have a slot, of those that this gateway knows of
	Queued   int  `json:"queued"`    // wait for one
}

// Status returns what all users of this gate do together, and the limits in
// force.
func (g *Gate) Status() GateStatus {
	s := GateStatus{HeldBytes: g.memory.held()}
	g.slots.fill(&s)
	s.InFlight += int(g.unlimited.Load())

	g.mu.Lock()
	defer g.mu.Unlock()
	for _, u := range g.inside {
		if !u.stream.State().Received {
			s.Uploading++
		}
	}
	limits := g.inForce()
	s.Slots, s.MemoryBytes = limits.Slots, limits.Memory
	if limits.Slots > 0 { // nothing waits for slots that are not counted
		s.Queue = limits.Queue
	}
	return s
}

// inForce returns the limits of the last user. It must be called with mu held.
func (g *gate) inForce() Capacity {
	if len(g.users) == 0 {
		return Capacity{}
	}
	return g.users[len(g.users)-1].capacity
}

// unbounded notes an upload that goes to the upstream without a slot.
func (g *gate) unbounded() (end func(served bool)) {
	g.unlimited.Add(1)
	began := time.Now()
	return func(served bool) {
		g.unlimited.Add(-1)
		if served {
			g.slots.took(time.Since(began))
		}
	}
}

func (l *limiter) fill(s *GateStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.InFlight, s.Queued = len(l.held), len(l.waiting)
	if l.learnt {
		s.ServiceSeconds = seconds(l.service)
	}
	slots, _ := l.limits()
	othersHold, othersWait := l.fleet.elsewhere()
	if waiting := len(l.waiting) + othersWait; waiting > 0 || !l.free(slots-othersHold) {
		s.WaitSeconds = seconds(l.after(waiting + 1))
	}
	if l.fleet != nil {
		s.Shared = &SharedStatus{
			Alone: l.fleet.lost, Gateways: l.fleet.gateways,
			InFlight: len(l.held) + othersHold, Queued: len(l.waiting) + othersWait,
		}
	}
}

// took notes how long an upload without a slot was at the upstream, so that
// slots that come with the next config have an estimate.
func (l *limiter) took(held time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.measure(held)
}

func (m *memory) held() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// seconds returns d to the millisecond.
func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }
