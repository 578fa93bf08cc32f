package upload_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/slotstest"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// faults are what a store may do to a call.
type faults struct {
	random func(n int) int
	on     atomic.Bool
}

type faulty struct {
	*slotstest.Store
	*faults
}

func (s faulty) Sync(ctx context.Context, room string, r upload.SlotReport) (upload.SlotAnswer, error) {
	fault := -1
	if s.on.Load() {
		fault = s.random(8)
	}
	switch fault {
	case 0: // it is done, but after the gateway has given up
		late := time.Second + time.Duration(s.random(1500))*time.Millisecond
		go func() {
			time.Sleep(late)
			_, _ = s.Store.Sync(context.Background(), room, r)
		}()
		<-ctx.Done()
		return upload.SlotAnswer{}, ctx.Err()
	case 1: // its answer is lost
		_, _ = s.Store.Sync(ctx, room, r)
		<-ctx.Done()
		return upload.SlotAnswer{}, ctx.Err()
	case 2: // it is done twice
		_, _ = s.Store.Sync(ctx, room, r)
	case 3:
		time.Sleep(time.Duration(s.random(900)) * time.Millisecond)
	case 4:
		return upload.SlotAnswer{}, slotstest.ErrDown
	case 5:
		s.Server.Restart()
	}
	time.Sleep(time.Millisecond)
	return s.Store.Sync(ctx, room, r)
}

// crowd is clients of three gateways, some of whom leave while they wait, and reloads.
type crowd struct {
	*gateways
	*faults
	capacity upload.Capacity
}

func (c crowd) open(t *testing.T, gateway int, shared bool) *upload.Gate {
	t.Helper()
	capacity := c.capacity
	if shared {
		store := faulty{&slotstest.Store{Server: c.server}, c.faults}
		capacity.Shared = &upload.Shared{Store: store, Config: "redis", Room: "oz", Lease: lease, Logger: zap.NewNop()}
	}
	gate, err := upload.OpenGate(fmt.Sprint(t.Name(), gateway), new(int), capacity, upload.Gauges{Queued: nothing{}, Memory: nothing{}})
	if err != nil {
		t.Fatal(err)
	}
	return gate
}

func (c crowd) reload(t *testing.T, gateway int, shared bool) {
	t.Helper()
	before := c.gates[gateway]
	c.gates[gateway] = c.open(t, gateway, shared)
	before.Close()
}

// come has clients come for a while. It returns the most that were at the upstream at once.
func (c crowd) come(t *testing.T, duration time.Duration, reloads bool) int {
	t.Helper()
	c.mu.Lock()
	c.most = c.busy
	c.mu.Unlock()
	for begun := time.Now(); time.Since(begun) < duration; {
		c.client(c.gates[c.random(len(c.gates))], c.random(4000), c.random(30_000))
		time.Sleep(time.Duration(c.random(600)) * time.Millisecond)
		if reloads && c.random(20) == 0 {
			c.reload(t, c.random(len(c.gates)), c.random(4) > 0)
		}
	}
	_, most := c.now()
	return most
}

// client sends one upload, and leaves if it has no slot in time.
func (c crowd) client(gate *upload.Gate, takes, leaves int) {
	c.all.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(leaves)*time.Millisecond)
		defer cancel()
		stream := upload.NewStream(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", &phone{rest: 7}), upload.Limits{MaxBytes: 1 << 20, Timeout: time.Minute})
		defer stream.End()
		admission, err := gate.Acquire(ctx, stream)
		if err != nil {
			return
		}
		c.use(1)
		time.Sleep(time.Duration(takes) * time.Millisecond)
		c.use(-1)
		admission.Release(true)
	})
}

func (c crowd) use(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy += n
	c.most = max(c.most, c.busy)
}

// Whatever the store does to calls, however clients leave and configs change meanwhile: Oz gets no more
// than its slots before and after that, and nothing is kept of anybody.
func TestFleetAfterFaults(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			source := rand.New(rand.NewPCG(seed, 1))
			c := crowd{gateways: &gateways{server: slotstest.NewServer()}, faults: &faults{random: func(n int) int {
				mu.Lock()
				defer mu.Unlock()
				return source.IntN(n)
			}}}
			slots := 1 + c.random(6)
			c.capacity = capacity(slots, c.random(4*slots), []int64{0, 64 << 20}[c.random(2)])
			for i := range 3 {
				c.gates = append(c.gates, c.open(t, i, true))
			}
			time.Sleep(5 * time.Second)
			before := c.come(t, 20*time.Second, false)
			c.on.Store(true)
			c.come(t, 40*time.Second, true)
			c.on.Store(false)
			for i := range c.gates {
				c.reload(t, i, true)
			}
			c.come(t, 40*time.Second, false) // until all leases from the time before have ended
			after := c.come(t, 30*time.Second, false)
			if before > slots || after > slots || after == 0 {
				t.Errorf("seed %d: of %d slots %d were in use, and %d afterwards", seed, slots, before, after)
			}
			c.all.Wait()
			time.Sleep(3 * heartbeat)
			for _, gate := range c.gates {
				s := gate.Status()
				shared := *s.Shared
				if s.Shared = nil; s.InFlight+s.Queued+s.Uploading+int(s.HeldBytes) > 0 || shared != (upload.SharedStatus{Gateways: 3}) {
					t.Errorf("seed %d: in the end %+v, %+v", seed, s, shared)
				}
			}
			c.close()
		})
	}
}
