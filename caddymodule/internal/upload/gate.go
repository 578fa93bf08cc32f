package upload

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// Capacity limits the uploads of a Gate. A nil *Capacity limits nothing.
type Capacity struct {
	Slots  int // 0: no limit
	Queue  int
	Wait   time.Duration
	Memory int64 // 0: bodies are streamed
}

// Gauge is the part of a Prometheus gauge that a Gate needs.
type Gauge interface{ Add(float64) }

// Gauges show what a Gate does.
type Gauges struct{ Queued, Memory Gauge }

func add(g Gauge, v float64) {
	if g != nil {
		g.Add(v)
	}
}

const (
	// firstGuess is how long an analysis takes until some were measured: the
	// vendor plans with it.
	firstGuess = 3 * time.Second

	// Calls without a body are short: these numbers only keep a flood of them
	// from the upstream.
	callSlots = 16
	callQueue = 64
)

// Gate is what uploads to one upstream pass. It is shared by its key, and
// outlives reloads.
type Gate struct {
	*gate
	key      string
	config   any
	capacity *Capacity
	gauges   Gauges
}

// gate is what the uses of one key share. It holds nothing of any config but
// its limits.
type gate struct {
	slots  limiter
	calls  limiter
	memory memory

	mu          sync.Mutex
	users       []*Gate                // the last one's limits are in force
	places      int                    // how many uploads may be inside; 0: no limit
	inside      []*upload              // are received, wait, or have a slot; with memory
	connections map[string]*connection // of HTTP/2 and HTTP/3, by their client's address
}

var gates = caddy.NewUsagePool()

// OpenGate finds or makes the gate with this key. Users of one config must
// agree on its capacity: none of them goes around the limits of another one.
func OpenGate(key string, config any, capacity *Capacity, gauges Gauges) (*Gate, error) {
	shared, _, err := gates.LoadOrNew(key, func() (caddy.Destructor, error) { return pooled{newGate()}, nil })
	if err != nil {
		return nil, err
	}
	g := &Gate{gate: shared.(pooled).gate, key: key, config: config, capacity: capacity, gauges: gauges}
	if err := g.join(); err != nil {
		_, _ = gates.Delete(key)
		return nil, err
	}
	return g, nil
}

func newGate() *gate {
	g := &gate{connections: make(map[string]*connection)}
	g.slots.service = firstGuess
	g.calls.set(callSlots, callQueue)
	return g
}

// pooled is a gate in the pool.
type pooled struct{ gate *gate }

// Destruct implements caddy.Destructor.
func (pooled) Destruct() error { return nil }

func (g *Gate) join() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, other := range g.users {
		if other.config == g.config && !other.capacity.equals(g.capacity) {
			return errors.New("capacity: another oz_instant with the same upstreams has other limits, or only one of them has any (want the same in each: they share one capacity)")
		}
	}
	g.users = append(g.users, g)
	g.apply()
	return nil
}

func (c *Capacity) equals(other *Capacity) bool {
	if c == nil || other == nil {
		return c == other
	}
	return *c == *other
}

// Close ends this use of the gate. Where that was a config that failed to
// load, the limits of the one before it come into force again.
func (g *Gate) Close() {
	g.mu.Lock()
	g.users = slices.DeleteFunc(g.users, func(other *Gate) bool { return other == g })
	g.apply()
	g.mu.Unlock()
	_, _ = gates.Delete(g.key) // Destruct never fails
}

func (g *gate) apply() {
	if len(g.users) == 0 {
		return
	}
	c := g.users[len(g.users)-1].capacity
	if c == nil {
		return
	}
	g.slots.set(c.Slots, c.Queue)
	g.places = 0
	if c.Slots > 0 {
		g.places = c.Slots + c.Queue
	}
	if c.Memory > 0 { // uploads of the config before may still need theirs
		g.memory.set(c.Memory)
	}
}

// Acquire waits until the upload may go to the upstream. Its error is a
// *Refused, or what the client did wrong.
func (g *Gate) Acquire(ctx context.Context, s *Stream) (*Admission, error) {
	switch {
	case g.capacity == nil:
		if err := s.peek(); err != nil {
			return nil, err
		}
		return &Admission{Body: s, release: func(bool) {}}, nil
	case s.State().Fault != nil:
		return nil, s.State().Fault // it takes no slot
	}
	u := g.arrive(s)
	admit := g.stream
	if g.capacity.Memory > 0 {
		admit = g.buffer
	}
	a, err := admit(ctx, u)
	if err != nil {
		g.depart(u)
		return nil, err
	}
	release := a.release
	a.release = func(served bool) {
		release(served)
		g.depart(u)
	}
	return a, nil
}

// stream has the upload wait for its slot, unread: a refusal comes before the
// first byte. An upload that is idle then holds the slot until it runs out of
// patience; only memory helps against that.
func (g *Gate) stream(ctx context.Context, u *upload) (*Admission, error) {
	start := time.Now()
	release, err := g.slot(ctx, u, g.capacity.Wait)
	if err != nil {
		return nil, err
	}
	queued := time.Since(start)
	if err := u.stream.peek(); err != nil {
		release(false)
		return nil, err
	}
	return &Admission{Body: u.stream, Queued: queued, release: release}, nil
}

// buffer receives the upload before it takes a slot, so that a slow client
// doesn't hold one.
func (g *Gate) buffer(ctx context.Context, u *upload) (*Admission, error) {
	inside, err := g.enter(u)
	if err != nil {
		return nil, err
	}
	contend := func() (err error) {
		if !inside {
			inside, err = g.contend(u)
		}
		return err
	}
	start := time.Now()
	b := &buffer{stream: u.stream}
	if err := b.fill(ctx, u, g.capacity.Wait, g.gauges.Memory, contend); err != nil {
		b.abandon()
		return nil, err
	}
	received := time.Now()
	release, err := g.slot(ctx, u, g.capacity.Wait-b.waited)
	if err != nil {
		b.abandon()
		return nil, err
	}
	return &Admission{
		Body:   b,
		Queued: b.waited + time.Since(received),
		Upload: received.Sub(start) - b.waited,
		release: func(served bool) {
			b.abandon()
			release(served)
		},
	}, nil
}

func (g *Gate) slot(ctx context.Context, u *upload, wait time.Duration) (release func(served bool), err error) {
	add(g.gauges.Queued, 1)
	defer add(g.gauges.Queued, -1)
	return g.slots.acquire(ctx, u, max(wait, 0))
}

// AcquireCall waits for a place for a call that has no body. They have a limit
// of their own. Its error is a *Refused, or the cause of ctx.
func (g *Gate) AcquireCall(ctx context.Context, wait time.Duration) (release func(), err error) {
	done, err := g.calls.acquire(ctx, nil, wait)
	if refused, ok := errors.AsType[*Refused](err); ok {
		refused.RetryAfter = max(refused.RetryAfter, time.Second)
	}
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { done(true) }), nil
}

// Admission is a body that may go to the upstream now.
type Admission struct {
	Body   Body
	Queued time.Duration // waiting for slot and memory
	Upload time.Duration // receiving, where the body is buffered; 0 where it is streamed

	once    sync.Once
	release func(served bool)
}

// Release gives everything back. Served says that the upstream did its work,
// so that the time it took counts for estimates.
func (a *Admission) Release(served bool) {
	a.once.Do(func() { a.release(served) })
}
