package upload_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/slotstest"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// replace loads another config for a gateway, and then ends the one before.
func (g *gateways) replace(t *testing.T, gateway int, key string, c upload.Capacity) {
	t.Helper()
	gate, err := upload.OpenGate(key, new(int), c, upload.Gauges{Queued: nothing{}, Memory: nothing{}})
	if err != nil {
		t.Fatal(err)
	}
	g.gates[gateway].Close()
	g.gates[gateway] = gate
	synctest.Wait()
}

func (g *gateways) shared(room string) *upload.Shared {
	return &upload.Shared{Store: &slotstest.Store{Server: g.server}, Config: "redis", Room: room, Lease: lease, Logger: zap.NewNop()}
}

// A config without any capacity ends the sharing, too: its store ends with the config before.
func TestFleetEndsWithCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateways(t, 2, capacity(2, 8, 0))
		defer g.close()
		time.Sleep(5 * time.Second)
		g.replace(t, 0, t.Name()+" 0", upload.Capacity{})
		time.Sleep(2 * heartbeat)
		if s, other := g.gates[0].Status(), g.gates[1].Status(); s.Shared != nil || other.Shared.Gateways != 1 {
			t.Errorf("%+v, and in the other gateway %+v", s.Shared, other.Shared)
		}
	})
}

// A config that names another room, such as by a placeholder, goes there.
func TestFleetMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateways(t, 2, capacity(2, 8, 0))
		defer g.close()
		time.Sleep(5 * time.Second)
		elsewhere := capacity(2, 8, 0)
		elsewhere.Shared = g.shared("another")
		g.replace(t, 0, t.Name()+" 0", elsewhere)
		time.Sleep(2 * heartbeat)
		for i, gate := range g.gates {
			if s := gate.Status().Shared; s.Gateways != 1 {
				t.Errorf("gateway %d: %+v", i, s)
			}
		}
	})
}

// What a config has begun that ends with its way to Oz, such as one with another header_up, counts
// until its end.
func TestFleetOutlivesItsConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := capacity(2, 8, 0)
		c.Wait = time.Hour
		g := newGateways(t, 2, c)
		defer g.close()
		time.Sleep(5 * time.Second)
		for range 4 {
			g.send(0, "before", 8*time.Second)
			synctest.Wait()
		}
		c.Shared = g.shared("oz")
		g.replace(t, 0, t.Name()+" another way", c)
		g.send(0, "after", time.Second)
		g.send(1, "after", time.Second)
		time.Sleep(6 * time.Second)
		if s := g.gates[1].Status().Shared; s.InFlight != 2 || s.Queued != 4 || s.Gateways != 3 {
			t.Errorf("after six seconds: %+v", s)
		}
		g.all.Wait()
		time.Sleep(3 * heartbeat)
		if s := g.gates[1].Status().Shared; g.most != 2 || g.refused != 0 || s.Gateways != 2 || s.InFlight != 0 {
			t.Errorf("%d at once, %d refused, and in the end %+v", g.most, g.refused, s)
		}
	})
}

// slow is a store whose calls take their time.
type slow struct{ *slotstest.Store }

func (s slow) Sync(ctx context.Context, room string, r upload.SlotReport) (upload.SlotAnswer, error) {
	time.Sleep(heartbeat / 10)
	return s.Store.Sync(ctx, room, r)
}

// Those of a burst that would wait for too long are refused at once, as others are, although there is
// room for them in the queue.
func TestFleetEstimatesInABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gateways{server: slotstest.NewServer()}
		store := slow{&slotstest.Store{Server: g.server}}
		g.gates = append(g.gates, g.open(t, t.Name(), capacity(1, 20, 0), store, zap.NewNop()))
		defer g.close()
		time.Sleep(5*time.Second + heartbeat/2)
		g.send(0, "", analysis)
		synctest.Wait()
		for range 100 { // within one call
			g.send(0, "", analysis)
		}
		time.Sleep(heartbeat / 2)
		// As many as are done within the time that a capsule may wait.
		if s := g.gates[0].Status(); s.InFlight != 1 || s.Queued != 5 {
			t.Errorf("%d are in flight and %d wait", s.InFlight, s.Queued)
		}
	})
}

// forgetting is a store that never knows a gateway, also one that joins.
type forgetting struct{ calls atomic.Int64 }

func (s *forgetting) Sync(context.Context, string, upload.SlotReport) (upload.SlotAnswer, error) {
	s.calls.Add(1)
	time.Sleep(time.Millisecond)
	return upload.SlotAnswer{Unknown: true}, nil
}

func (*forgetting) Listen(ctx context.Context, _, _ string, _ func()) { <-ctx.Done() }

// A store that takes no gateway in is one that doesn't answer: it is asked each second, and the gateway
// continues alone.
func TestFleetIsNotTakenIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		g, store := new(gateways), new(forgetting)
		g.gates = append(g.gates, g.open(t, t.Name(), capacity(2, 8, 0), store, zap.New(core)))
		defer g.close()
		g.send(0, "", time.Second)
		time.Sleep(10 * heartbeat)
		synctest.Wait()
		if calls := store.calls.Load(); calls > 12 {
			t.Errorf("it was asked %d times in ten seconds", calls)
		}
		if n := logs.FilterMessageSnippet("continues with its share").Len(); n != 1 || g.count() != 1 {
			t.Errorf("logged %d times, %d served", n, g.count())
		}
	})
}

// stuck is a store whose first call never ends.
type stuck struct {
	*slotstest.Store
	calls atomic.Int64
	end   chan struct{}
}

func (s *stuck) Sync(ctx context.Context, room string, r upload.SlotReport) (upload.SlotAnswer, error) {
	if s.calls.Add(1) == 1 {
		<-s.end
	}
	return s.Store.Sync(ctx, room, r)
}

// A call that doesn't end in time has failed, and what it still does counts for nothing. Another config
// has its own store called all the same.
func TestFleetOutlivesACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gateways{server: slotstest.NewServer()}
		store := &stuck{Store: &slotstest.Store{Server: g.server}, end: make(chan struct{})}
		g.gates = append(g.gates, g.open(t, t.Name(), capacity(2, 8, 0), store, zap.NewNop()))
		defer g.close()
		g.send(0, "", 19*time.Second)
		time.Sleep(2 * heartbeat)
		if s := g.gates[0].Status(); s.InFlight != 1 || !s.Shared.Alone {
			t.Errorf("%+v, %+v", s, s.Shared)
		}
		c := capacity(2, 8, 0)
		c.Shared = g.shared("oz")
		g.replace(t, 0, t.Name(), c)
		time.Sleep(2 * heartbeat)
		close(store.end)
		time.Sleep(5 * time.Second) // until the room isn't fresh any more
		if s := g.gates[0].Status().Shared; s.Alone || s.Gateways != 1 || s.InFlight != 1 {
			t.Errorf("with another store: %+v", s)
		}
	})
}

// Those that came while a call was in progress that failed are newcomers of a gateway that is alone: no
// more of them wait than may, and the others are refused at once.
func TestFleetLosesTheStoreInABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gateways{server: slotstest.NewServer()}
		store := &stuck{Store: &slotstest.Store{Server: g.server}, end: make(chan struct{})}
		g.gates = append(g.gates, g.open(t, t.Name(), capacity(2, 8, 0), store, zap.NewNop()))
		defer g.close()
		for range 100 {
			g.send(0, "", analysis)
		}
		time.Sleep(heartbeat + heartbeat/10)
		if s := g.gates[0].Status(); s.InFlight != 1 || s.Queued != 4 { // a gateway that doesn't know of others takes a half
			t.Errorf("%d are in flight and %d wait", s.InFlight, s.Queued)
		}
		close(store.end)
	})
}

// A config without slots may come at any instant, also when the store never answered.
func TestFleetEndsWithSlots(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			g := &gateways{server: slotstest.NewServer()}
			store := &slotstest.Store{Server: g.server}
			store.Down.Store(true)
			g.gates = append(g.gates, g.open(t, t.Name(), capacity(2, 8, 0), store, zap.NewNop()))
			defer g.close()
			time.Sleep(3 * heartbeat) // which is when the store is asked again
			g.replace(t, 0, t.Name(), capacity(0, 8, 8<<20))
			g.send(0, "", time.Second)
			g.all.Wait()
			if s := g.gates[0].Status(); s.Shared != nil || g.count() != 1 {
				t.Errorf("%+v, %d served", s.Shared, g.count())
			}
		})
	}
}

// Those that have been let in to wait aren't refused when the store must be told of them again, however
// long analyses take by then.
func TestFleetKeepsThoseThatWait(t *testing.T) {
	for _, memory := range []int64{0, 8 << 20} {
		synctest.Test(t, func(t *testing.T) {
			g := newGateways(t, 1, capacity(1, 20, memory))
			defer g.close()
			time.Sleep(5 * time.Second)
			g.send(0, "", 6*time.Second)
			synctest.Wait()
			for range 5 {
				g.send(0, "", time.Second)
			}
			time.Sleep(6 * time.Second)
			g.server.Restart()
			g.all.Wait()
			if g.count() != 6 || g.refused != 0 {
				t.Errorf("memory %d: %d served, %d refused", memory, g.count(), g.refused)
			}
		})
	}
}
