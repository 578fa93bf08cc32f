package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
)

func limits(slots, queue int) Capacity {
	return Capacity{Slots: slots, Queue: &queue, Wait: defaultWait}
}

func TestCapacityDefaults(t *testing.T) {
	none := 0
	for _, test := range []struct {
		name  string
		given Capacity
		queue int
		wait  caddy.Duration
	}{
		{"slots", Capacity{Slots: 3}, 12, defaultWait},
		{"memory alone", Capacity{Memory: 1 << 30}, manyWaiting, defaultWait},
		{"no queue at all", Capacity{Slots: 3, Queue: &none}, 0, defaultWait},
		{"a wait", Capacity{Slots: 1, Wait: 7}, 4, 7},
	} {
		c := test.given
		c.setDefaults()
		if *c.Queue != test.queue || c.Wait != test.wait {
			t.Errorf("%s: queue %d, wait %s", test.name, *c.Queue, time.Duration(c.Wait))
		}
	}
	(*Capacity)(nil).setDefaults() // no capacity stays none
	if err := (*Capacity)(nil).validate(1); err != nil {
		t.Errorf("no capacity: %v", err)
	}
}

// user makes a use of a gate as a handler of a config has it.
func user(g *gate, config *prometheus.Registry, c Capacity) *gateUser {
	return &gateUser{gate: g, key: "test", config: config, capacity: &c}
}

func (g *gate) limits() (slots, queue int, memory int64) {
	return g.slots.slots, g.slots.queue, g.memory.total
}

func (g *gate) wantLimits(t *testing.T, slots, queue int) {
	t.Helper()
	if s, q, _ := g.limits(); s != slots || q != queue {
		t.Errorf("%d slots and a queue of %d, want %d and %d", s, q, slots, queue)
	}
}

// The limits in force are those of the config that came last. When it goes,
// because it failed to load, the ones before it are in force again; when the
// old one goes, as after a reload, nothing changes.
func TestGateLimitsFollowTheConfig(t *testing.T) {
	g := new(gate)
	running, failing, next := user(g, new(prometheus.Registry), limits(3, 12)), user(g, new(prometheus.Registry), limits(1, 0)), user(g, new(prometheus.Registry), limits(5, 6))
	for _, step := range []struct {
		name         string
		user         *gateUser
		join         bool
		slots, queue int
	}{
		{"the first config", running, true, 3, 12},
		{"a reload begins", failing, true, 1, 0},
		{"and fails", failing, false, 3, 12},
		{"another begins", next, true, 5, 6},
		{"and the first one ends", running, false, 5, 6},
		{"all end", next, false, 5, 6},
	} {
		if step.join {
			if err := g.join(step.user); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		} else {
			step.user.close()
		}
		t.Log(step.name)
		g.wantLimits(t, step.slots, step.queue)
	}
	if len(g.users) != 0 {
		t.Errorf("%d users are left", len(g.users))
	}
}

// The limits of memory are set with the others.
func TestGateSetsMemory(t *testing.T) {
	g := new(gate)
	c := limits(1, 1)
	c.Memory = 64 << 20
	if err := g.join(user(g, nil, c)); err != nil {
		t.Fatal(err)
	}
	if _, _, memory := g.limits(); memory != 64<<20 {
		t.Errorf("memory of %d", memory)
	}
}

// Handlers of one config have to agree; those of two need not, or no reload
// could change a limit.
func TestGateConflict(t *testing.T) {
	base := limits(3, 12)
	wait, memory := base, base
	wait.Wait, memory.Memory = 1, 1<<30
	for _, test := range []struct {
		name     string
		second   Capacity
		conflict bool
	}{
		{"the same", limits(3, 12), false},
		{"slots", limits(2, 12), true},
		{"queue", limits(3, 11), true},
		{"wait", wait, true},
		{"memory", memory, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, config := new(gate), new(prometheus.Registry)
			if err := g.join(user(g, config, base)); err != nil {
				t.Fatal(err)
			}
			err := g.join(user(g, config, test.second))
			if (err != nil) != test.conflict {
				t.Errorf("in the same config: %v", err)
			}
			if test.conflict {
				g.wantLimits(t, 3, 12)
			}
			if err := g.join(user(g, new(prometheus.Registry), test.second)); err != nil {
				t.Errorf("in another config: %v", err)
			}
		})
	}
}

// gateOf loads a handler with a capacity, for an Oz at these upstreams.
func gateOf(t *testing.T, ctx caddy.Context, dial, fields string) (*Handler, error) {
	t.Helper()
	return load[*Handler](ctx, handlerID, ozConfig(t, neverAsked(t), `{"reverse_proxy": {"upstreams": [`+dial+`]}, `+fields+`}`))
}

// Handlers for one Oz share a gate, in whatever order they name its upstreams
// and whatever config they are in. Another Oz has another one.
func TestGateIsSharedByAllForOneOz(t *testing.T) {
	first, second := newContext(t), newContext(t)
	const ab, ba, slots = `{"dial": "a.test:1"}, {"dial": "b.test:1"}`, `{"dial": "b.test:1"}, {"dial": "a.test:1"}`, `"capacity": {"slots": 3}`
	open := func(ctx caddy.Context, dial, fields string) *gate {
		t.Helper()
		h, err := gateOf(t, ctx, dial, fields)
		if err != nil {
			t.Fatal(err)
		}
		return h.gate.gate
	}
	g := open(first, ab, slots)
	for name, other := range map[string]*gate{
		"in the same config":     open(first, ab, slots+`, "max_capsule": 5`),
		"in another order":       open(first, ba, slots),
		"in another config":      open(second, ab, `"capacity": {"slots": 4}`),
		"with another transport": open(second, ab, `"capacity": {"slots": 4}, "access_token": "x"`),
	} {
		if other != g {
			t.Errorf("%s: not shared", name)
		}
	}
	for name, other := range map[string]*gate{
		"fewer upstreams":   open(first, `{"dial": "a.test:1"}`, slots),
		"another base path": open(first, ab, slots+`, "base_path": "/x"`),
	} {
		if other == g {
			t.Errorf("%s: shared", name)
		}
	}
}

// A config that does not load leaves nothing behind, and changes nothing.
func TestGateOfAConfigThatFails(t *testing.T) {
	const oz = `{"dial": "a.test:1"}`
	ctx, cancel := cancelContext(t)
	h, err := gateOf(t, ctx, oz, `"capacity": {"slots": 3, "queue": 5}`)
	if err != nil {
		t.Fatal(err)
	}
	g := h.gate.gate
	for _, fields := range []string{
		`"capacity": {"slots": 2}, "max_capsule": -1`,         // refused by Validate, when all is provisioned
		`"capacity": {"slots": -1}`,                           // refused before
		`"capacity": {"slots": 2}, "access_token": "{env.X}"`, // refused by the Oz in it
	} {
		if _, err := gateOf(t, newContext(t), oz, fields); err == nil {
			t.Errorf("%s loads", fields)
		}
		g.wantLimits(t, 3, 5)
	}
	if _, err := gateOf(t, ctx, oz, `"capacity": {"slots": 2}`); err == nil || !strings.Contains(err.Error(), "they have to agree") {
		t.Errorf("other limits in the same config: %v", err)
	}
	g.wantLimits(t, 3, 5)
	if n := len(g.users); n != 1 {
		t.Errorf("%d users", n)
	}
	cancel()
	if _, still := gates.References(h.gate.key); still {
		t.Error("the gate outlives its last user")
	}
}

// An upload under way and one that waits count, and who comes on top of them
// is told when all of them will be done.
func TestGateAdmits(t *testing.T) {
	g, c := new(gate), limits(2, 1)
	if err := g.join(user(g, nil, c)); err != nil {
		t.Fatal(err)
	}
	var leaves []func()
	for range 3 {
		leave, err := g.admit(c)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	var busy *busyError
	if _, err := g.admit(c); !errors.As(err, &busy) || busy.cause != refusalQueue || busy.retryAfter != 3*firstGuess/2 {
		t.Errorf("the fourth: %v, %+v", err, busy)
	}
	leaves[0]()
	if _, err := g.admit(c); err != nil {
		t.Errorf("after one has left: %v", err)
	}
}

// A slot is measured by how long it was held, and its wait by how long it took
// to get it.
func TestEnterSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := new(gate)
		u := user(g, nil, limits(1, 1))
		if err := g.join(u); err != nil {
			t.Fatal(err)
		}
		release, waited, err := u.enterSlot(t.Context(), time.Minute)
		if err != nil || waited != 0 {
			t.Fatalf("%v after %s", err, waited)
		}
		time.AfterFunc(5*time.Second, release)
		second, waited, err := u.enterSlot(t.Context(), time.Minute)
		if err != nil || waited != 5*time.Second || g.slots.service != 5*time.Second {
			t.Errorf("%v after %s, a slot takes %s", err, waited, g.slots.service)
		}
		go func() {
			time.Sleep(7 * time.Second)
			second()
		}()
		if _, waited, err := u.enterSlot(t.Context(), 6*time.Second); err == nil || waited != 6*time.Second {
			t.Errorf("%v after %s", err, waited)
		}
		time.Sleep(time.Second)
	})
}

// A client that leaves gives its place up, unless it has done its part.
func TestWhoWaitsForAClientThatLeft(t *testing.T) {
	for _, test := range []struct {
		memory int64
		gone   string
		waits  bool
	}{
		{0, clientGoneFinish, false},
		{0, clientGoneCancel, false},
		{1, clientGoneFinish, true},
		{1, clientGoneCancel, false},
	} {
		h := &Handler{Capacity: &Capacity{Memory: test.memory}, ClientGone: test.gone}
		ctx, leave := context.WithCancel(t.Context())
		waiting := h.waiting(httptest.NewRequest(http.MethodPost, "/", nil).WithContext(ctx))
		leave()
		if waits := waiting.Err() == nil; waits != test.waits {
			t.Errorf("memory %d, %s: waits %v", test.memory, test.gone, waits)
		}
	}
}

// No block goes around the limits of another one for the same Oz.
func TestCapacityOfOneBlockOnly(t *testing.T) {
	ctx := newContext(t)
	if _, err := load[*Handler](ctx, handlerID, ozConfig(t, neverAsked(t), `{"capacity": {"slots": 1}}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := load[*Handler](ctx, handlerID, ozConfig(t, neverAsked(t), "")); err == nil || !strings.Contains(err.Error(), "only one of them has any") {
		t.Errorf("%v", err)
	}
	other := `{"reverse_proxy": {"upstreams": [{"dial": "another.test:80"}]}}`
	if _, err := load[*Handler](ctx, handlerID, ozConfig(t, neverAsked(t), other)); err != nil {
		t.Errorf("another Oz: %v", err)
	}
}
