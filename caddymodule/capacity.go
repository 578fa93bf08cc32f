package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// Capacity limits how much work Oz gets at a time. Oz does two or three
// analyses at once, of some three seconds each; what it gets beyond that makes
// all of them slower. Capsules that find no slot wait, first come, first
// served, and unread: a phone sends its megabytes when its turn has come.
//
// Whoever cannot be served in time is refused before its capsule is read: 503,
// with a Retry-After from how long slots are held and how many wait.
//
// All handlers for the same Oz share one capacity, whichever site they are in,
// and it goes on over reloads of the config; those of one config have to agree
// on it.
type Capacity struct {
	// How many analyses may run at once, over all upstreams. With several
	// upstreams it is the sum over them; `lb_policy least_conn` spreads them.
	// Default: no limit, which needs `memory`.
	Slots int `json:"slots,omitempty"`

	// How many capsules may wait beyond those in slots; with `memory` those
	// that are being received count, too, unless they are too slow to be done
	// within `upload_timeout`. 0 is allowed: nobody waits. Default: four times
	// `slots`.
	Queue *int `json:"queue,omitempty"`

	// How long a capsule may wait, its own upload not counted. Who is sure to
	// wait longer is refused at once. Default: `15s`.
	Wait caddy.Duration `json:"wait,omitempty"`

	// Memory for capsules, in bytes. With it, capsules are received whole
	// before they take a slot, so that a slow phone does not hold one; this is
	// the most that they hold together, and it is never less than
	// `max_capsule`. When it is full, clients are not read: the network holds
	// them back. An upload that is too slow to be done within `upload_timeout`
	// has to go when others wait for its memory. Nothing is written to a disk.
	// Default: none; capsules stream to Oz while they hold a slot.
	Memory int64 `json:"memory,omitempty"`
}

const defaultWait = caddy.Duration(15 * time.Second)

// manyWaiting is the queue without slots: limited by memory alone.
const manyWaiting = 1 << 20

func (c *Capacity) setDefaults() {
	if c == nil {
		return
	}
	setDefault(&c.Wait, defaultWait)
	if c.Queue == nil {
		queue := 4 * c.Slots
		if c.Slots == 0 {
			queue = manyWaiting
		}
		c.Queue = &queue
	}
}

func (c *Capacity) validate(maxCapsule int64) error {
	if c == nil {
		return nil
	}
	switch {
	case c.Slots < 0:
		return errors.New("capacity: slots: must be greater than zero")
	case c.Slots == 0 && c.Memory == 0:
		return errors.New("capacity: name slots, or memory, or both")
	case *c.Queue < 0:
		return errors.New("capacity: queue: must not be less than zero")
	case c.Wait <= 0:
		return errors.New("capacity: wait: must be greater than zero")
	case c.Memory < 0:
		return errors.New("capacity: memory: must be greater than zero")
	case c.Memory > 0 && c.Memory < roundUp(maxCapsule):
		return fmt.Errorf("capacity: memory: %s cannot hold a capsule of max_capsule, %s, in pieces of %s", sizeString(c.Memory), sizeString(maxCapsule), sizeString(chunkSize))
	}
	return nil
}

func (h *Handler) validateCapacity() error { return h.Capacity.validate(h.MaxCapsule) }

// gate is what capsules for one Oz pass before they get there. It outlives
// reloads, so it holds nothing of any config but its limits.
type gate struct {
	slots  limiter
	memory budget

	mu     sync.Mutex
	users  []*gateUser // the last one's limits are in force
	inside int         // capsules that are being received, wait or have a slot
}

// gateUser is one handler's use of a gate.
type gateUser struct {
	gate     *gate
	key      string
	config   *prometheus.Registry // stands for the config: each has its own
	capacity *Capacity            // nil: without a limit
}

var gates = caddy.NewUsagePool()

// openGate finds or makes the gate to the handler's Oz.
func openGate(ctx caddy.Context, o *Oz, c *Capacity) (*gateUser, error) {
	key := o.BasePath + " " + strings.Join(o.upstreamNames(), " ")
	value, _, err := gates.LoadOrNew(key, func() (caddy.Destructor, error) { return new(gate), nil })
	if err != nil {
		return nil, err
	}
	u := &gateUser{gate: value.(*gate), key: key, config: ctx.GetMetricsRegistry(), capacity: c}
	if err := u.gate.join(u); err != nil {
		_, _ = gates.Delete(key)
		return nil, err
	}
	return u, nil
}

func (g *gate) join(u *gateUser) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, other := range g.users {
		if other.config == u.config && !other.capacity.equals(u.capacity) {
			return errors.New("capacity: another oz_instant with the same upstreams has other limits, or only one of them has any; they share one capacity, so they have to agree")
		}
	}
	g.users = append(g.users, u)
	g.apply()
	return nil
}

func (c *Capacity) equals(other *Capacity) bool {
	if c == nil || other == nil {
		return c == other
	}
	return c.Slots == other.Slots && *c.Queue == *other.Queue && c.Wait == other.Wait && c.Memory == other.Memory
}

// close ends a use. Where that was a config that failed to load, the limits of
// the one before it come into force again.
func (u *gateUser) close() {
	u.gate.mu.Lock()
	u.gate.users = slices.DeleteFunc(u.gate.users, func(other *gateUser) bool { return other == u })
	u.gate.apply()
	u.gate.mu.Unlock()
	_, _ = gates.Delete(u.key) // a gate's own Destruct never fails
}

func (g *gate) apply() {
	if len(g.users) == 0 {
		return
	}
	if c := g.users[len(g.users)-1].capacity; c != nil {
		g.slots.set(c.Slots, *c.Queue)
		g.memory.set(c.Memory)
	}
}

// provisionCapacity opens the gate also for a handler without limits, so that
// it cannot go around those of another one.
func (h *Handler) provisionCapacity(ctx caddy.Context) (err error) {
	// What makes no sense may not become the limits that others share.
	if err := h.validateCapacity(); err != nil {
		return err
	}
	h.gate, err = openGate(ctx, &h.Oz, h.Capacity)
	return err
}

// waiting is the context in which a capsule waits for its slot. A client that
// leaves gives its place up, unless it has done its part (client_gone finish).
func (h *Handler) waiting(r *http.Request) context.Context {
	if h.Capacity.Memory > 0 && h.ClientGone == clientGoneFinish {
		return context.WithoutCancel(r.Context())
	}
	return r.Context()
}

// Destruct implements caddy.Destructor.
func (g *gate) Destruct() error { return nil }

// admit lets a capsule be received, unless too many are already. It is for
// capsules that are received before they take a slot. Who is too slow to be done
// in time takes nobody's place: a few idle phones would else keep all others out.
func (g *gate) admit(c Capacity) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if limit := c.Slots + *c.Queue; g.inside >= limit && g.inside-g.memory.lateOnes() >= limit {
		return nil, &busyError{refusalQueue, g.slots.untilDone(g.inside)}
	}
	g.inside++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.inside--
	}, nil
}

// enterSlot waits for a slot.
func (u *gateUser) enterSlot(ctx context.Context, wait time.Duration) (release func(), waited time.Duration, err error) {
	start := time.Now()
	if err := u.gate.slots.acquire(ctx, wait); err != nil {
		return nil, time.Since(start), err
	}
	entered := time.Now()
	return func() { u.gate.slots.release(time.Since(entered)) }, entered.Sub(start), nil
}
