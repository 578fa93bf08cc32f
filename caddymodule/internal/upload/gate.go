package upload

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// Capacity limits the uploads of a Gate. The zero Capacity limits nothing.
type Capacity struct {
	Slots  int // 0: no limit
	Queue  int
	Wait   time.Duration
	Memory int64   // 0: bodies are streamed
	Shared *Shared // nil: slots and queue are this gateway's own
}

// is reports whether two capacities are the same. Each user of a gate has a
// store of its own, and those with the same configuration are the same.
func (c Capacity) is(other Capacity) bool {
	same := c.Shared.config() == other.Shared.config()
	c.Shared, other.Shared = nil, nil
	return same && c == other
}

// Gauge is the part of a Prometheus gauge that a Gate needs.
type Gauge interface{ Add(float64) }

// Gauges show what a Gate does.
type Gauges struct{ Queued, Memory Gauge }

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
	capacity Capacity
	gauges   Gauges
}

// gate is what the uses of one key share. It holds nothing of any config but
// its limits.
type gate struct {
	slots  limiter
	calls  limiter
	memory memory

	unlimited atomic.Int64 // uploads at the upstream without a slot

	mu          sync.Mutex
	users       []*Gate   // the last one's limits are in force
	inside      []*upload // have one of the places in slots and queue; with memory
	connections map[connectionID]*connection
}

var gates = caddy.NewUsagePool()

// OpenGate finds or makes the gate with this key. Users of one config must
// agree on its capacity: none of them goes around the limits of another one.
func OpenGate(key string, config any, capacity Capacity, gauges Gauges) (*Gate, error) {
	shared, _, err := gates.LoadOrNew(key, func() (caddy.Destructor, error) { return newGate(), nil })
	if err != nil {
		return nil, err
	}
	g := &Gate{gate: shared.(*gate), key: key, config: config, capacity: capacity, gauges: gauges}
	if err := g.join(); err != nil {
		_, _ = gates.Delete(key)
		return nil, err
	}
	return g, nil
}

func newGate() *gate {
	g := &gate{connections: make(map[connectionID]*connection)}
	g.slots.service = firstGuess
	g.calls.set(callSlots, callQueue, nil)
	return g
}

// Destruct implements caddy.Destructor: the last user has gone. After a reload
// uploads of its config may still be in progress, which count until their end.
func (g *gate) Destruct() error {
	if !g.slots.busy() {
		g.slots.unshare().leave()
		return nil
	}
	go func() {
		for g.slots.busy() {
			time.Sleep(heartbeat)
		}
		g.slots.unshare().leave()
	}()
	return nil
}

func (g *Gate) join() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, other := range g.users {
		if other.config == g.config && !other.capacity.is(g.capacity) {
			return errors.New("capacity: another oz_instant with the same upstreams has other limits, or only one of them has any (want the same in each: they share one capacity)")
		}
	}
	g.users = append(g.users, g)
	g.apply()
	return nil
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
	c := g.inForce()
	if c == (Capacity{}) { // uploads of the config before keep its limits, but not its store
		go g.slots.unshare().leave()
		return
	}
	go g.slots.set(c.Slots, c.Queue, c.Shared).leave() // which may take a moment; mostly there is none to leave
	if c.Memory > 0 {                                  // uploads of the config before may still need theirs
		g.memory.set(c.Memory)
	}
}

// Acquire waits until the upload may go to the upstream. Its error is a
// *Refused, or what the client did wrong.
func (g *Gate) Acquire(ctx context.Context, s *Stream) (a *Admission, err error) {
	switch {
	case g.capacity == Capacity{}:
		start := time.Now()
		if err := s.peek(); err != nil {
			return nil, err
		}
		return &Admission{Body: s, Upload: time.Since(start), end: g.unbounded()}, nil
	case s.State().Fault != nil:
		return nil, s.State().Fault // it takes no slot
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	u := g.arrive(s, end)
	defer func() {
		if a == nil { // it was refused, or the body has panicked
			u.depart(false)
		}
	}()
	if g.capacity.Memory > 0 {
		return g.buffer(ctx, u)
	}
	return g.stream(ctx, u)
}

// stream has the upload wait for its slot, unread: a refusal comes before the
// first byte. An upload that is idle then holds the slot until it runs out of
// patience; only memory helps against that.
func (g *Gate) stream(ctx context.Context, u *upload) (*Admission, error) {
	start := time.Now()
	if err := g.slot(ctx, u, g.capacity.Wait); err != nil {
		return nil, err
	}
	admitted := time.Now()
	if err := u.stream.peek(); err != nil {
		return nil, err
	}
	return &Admission{Body: u.stream, Queued: admitted.Sub(start), Upload: time.Since(admitted), end: u.depart}, nil
}

// buffer receives the upload before it takes a slot, so that a slow client
// doesn't hold one.
func (g *Gate) buffer(ctx context.Context, u *upload) (*Admission, error) {
	start := time.Now()
	waited, err := g.receive(ctx, u)
	if err != nil {
		return nil, err
	}
	received := time.Now()
	if admit := u.stream.admit; admit != nil {
		if err := admit(ctx); err != nil {
			return nil, err
		}
	}
	admitted := time.Now()
	if err := g.slot(ctx, u, g.capacity.Wait-waited); err != nil {
		return nil, err
	}
	return &Admission{
		Body:   u.stream,
		Queued: waited + time.Since(admitted),
		Upload: received.Sub(start) - waited, Buffered: true,
		end: u.depart,
	}, nil
}

// receive receives the upload into memory. It tells how long it waited for
// that, which costs the client no patience.
func (g *Gate) receive(ctx context.Context, u *upload) (waited time.Duration, err error) {
	if err := g.contend(u); err != nil {
		return 0, err
	}
	first, err := u.stream.first()
	if err != nil {
		return 0, err // an idle client so claims nothing
	}
	claim := u.stream.open(&g.memory, g.gauges.Memory)
	defer claim.complete()
	for len(first) > 0 || !u.stream.State().Received {
		if err := g.contend(u); err != nil {
			return 0, err
		}
		start := time.Now()
		chunk, err := claim.take(ctx, u, g.capacity.Wait-waited)
		if err != nil {
			return 0, err
		}
		waited += time.Since(start)
		if err := u.stream.fill(chunk, first); err != nil {
			return 0, err
		}
		first = nil
	}
	return waited, g.contend(u)
}

func (g *Gate) slot(ctx context.Context, u *upload, wait time.Duration) (err error) {
	g.gauges.Queued.Add(1)
	defer g.gauges.Queued.Add(-1)
	u.release, err = g.slots.acquire(ctx, u, wait)
	return err
}

// AcquireCall waits for a place for a call that has no body. They have a limit
// of their own. Its error is a *Refused, or the cause of ctx.
func (g *Gate) AcquireCall(ctx context.Context, wait time.Duration) (release func(), err error) {
	done, err := g.calls.acquire(ctx, nil, wait)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { done(true) }), nil
}

// Admission is a body that may go to the upstream now.
type Admission struct {
	Body     Body
	Queued   time.Duration // waiting for slot and memory
	Upload   time.Duration // receiving, up to now: the whole body where it is buffered
	Buffered bool

	end  func(served bool)
	once sync.Once
}

// Release gives everything back. Served says that the upstream did its work,
// so that the time it took counts for estimates.
func (a *Admission) Release(served bool) {
	a.once.Do(func() { a.end(served) })
}
