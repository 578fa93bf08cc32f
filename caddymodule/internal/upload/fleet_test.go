package upload_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/slotstest"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

const (
	analysis  = 3 * time.Second
	lease     = 20 * time.Second
	heartbeat = time.Second
)

type nothing struct{}

func (nothing) Add(float64) {}

// phone sends a few bytes, and takes its time.
type phone struct {
	rest  int
	takes time.Duration
}

func (p *phone) Read(b []byte) (int, error) {
	if p.rest == 0 {
		return 0, io.EOF
	}
	time.Sleep(p.takes)
	n := min(len(b), p.rest)
	p.rest -= n
	return n, nil
}

// gateways are several with one store, and what all of them have at the upstream.
type gateways struct {
	server *slotstest.Server
	stores []*slotstest.Store
	gates  []*upload.Gate
	logs   *observer.ObservedLogs

	upload time.Duration // how long a client sends

	mu      sync.Mutex
	busy    int
	most    int
	served  []string // in the order in which they got their slots
	refused int
	all     sync.WaitGroup
}

func newGateways(t *testing.T, n int, c upload.Capacity) *gateways {
	t.Helper()
	g := &gateways{server: slotstest.NewServer()}
	core, logs := observer.New(zap.InfoLevel)
	g.logs = logs
	for i := range n {
		store := &slotstest.Store{Server: g.server}
		g.stores = append(g.stores, store)
		g.gates = append(g.gates, g.open(t, fmt.Sprintf("%s %d", t.Name(), i), c, store, zap.New(core)))
	}
	return g
}

func (g *gateways) open(t *testing.T, key string, c upload.Capacity, store upload.SlotStore, logger *zap.Logger) *upload.Gate {
	t.Helper()
	c.Shared = &upload.Shared{Store: store, Config: "redis", Room: "oz", Lease: lease, Logger: logger}
	gate, err := upload.OpenGate(key, t, c, upload.Gauges{Queued: nothing{}, Memory: nothing{}})
	if err != nil {
		t.Fatal(err)
	}
	return gate
}

// close ends all, so that nothing is left of the test.
func (g *gateways) close() {
	g.all.Wait()
	for _, gate := range g.gates {
		gate.Close()
	}
	synctest.Wait()
}

// send has a gateway take an upload to the upstream, for as long as it takes.
func (g *gateways) send(gateway int, name string, takes time.Duration) {
	g.all.Go(func() {
		r := httptest.NewRequest(http.MethodPost, "/", &phone{rest: 7, takes: g.upload})
		stream := upload.NewStream(httptest.NewRecorder(), r, upload.Limits{MaxBytes: 1 << 20, Timeout: time.Minute})
		defer stream.End()
		admission, err := g.gates[gateway].Acquire(context.Background(), stream)
		g.mu.Lock()
		if err != nil {
			g.refused++
			g.mu.Unlock()
			return
		}
		g.busy++
		g.most, g.served = max(g.most, g.busy), append(g.served, name)
		g.mu.Unlock()
		time.Sleep(takes)
		g.mu.Lock()
		g.busy--
		g.mu.Unlock()
		admission.Release(true)
	})
}

func (g *gateways) now() (busy, most int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.busy, g.most
}

// since returns what was served after the first ones.
func (g *gateways) since(first int) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.served[first:])
}

func (g *gateways) count() (served int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.served)
}

func (g *gateways) has(served string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Contains(g.served, served)
}

func (g *gateways) down(down bool) {
	for _, s := range g.stores {
		s.Down.Store(down)
	}
}

// load sends ten times what the slots can do to all gateways, for a while, and returns how
// much of the slots was in use, on the average.
func (g *gateways) load(slots int, duration time.Duration) (busy float64) {
	ticks, sum := 0, 0
	for begun := time.Now(); time.Since(begun) < duration; ticks++ {
		gateway := ticks % len(g.gates)
		g.send(gateway, strconv.Itoa(gateway), analysis)
		time.Sleep(analysis / time.Duration(10*slots))
		synctest.Wait() // for slots that change hands at this instant
		now, _ := g.now()
		sum += now
	}
	return float64(sum) / float64(ticks*slots)
}

func capacity(slots, queue int, memory int64) upload.Capacity {
	return upload.Capacity{Slots: slots, Queue: queue, Wait: 15 * time.Second, Memory: memory}
}

// At ten times the load, over three gateways, with and without memory, all slots are in use and none
// more, and nobody waits who isn't served.
func TestFleetUnderLoad(t *testing.T) {
	for _, memory := range []int64{0, 64 << 20} {
		synctest.Test(t, func(t *testing.T) {
			g := newGateways(t, 3, capacity(6, 24, memory))
			defer g.close()
			g.load(6, 20*time.Second)
			if busy := g.load(6, time.Minute); busy < 0.98 {
				t.Errorf("memory %d: %.3f of the slots were in use", memory, busy)
			}
			g.all.Wait()
			if _, most := g.now(); most != 6 {
				t.Errorf("memory %d: %d at once", memory, most)
			}
		})
	}
}

// The one that has waited longest is next, in whatever gateway. What is full is full for all.
func TestFleetServesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateways(t, 3, capacity(1, 4, 0))
		defer g.close()
		time.Sleep(5 * time.Second)
		for _, step := range []struct {
			gateway int
			name    string
		}{{0, "a"}, {2, "b"}, {1, "c"}, {2, "d"}, {0, "e"}, {1, "refused"}} {
			g.send(step.gateway, step.name, time.Second)
			time.Sleep(10 * time.Millisecond)
		}
		s := g.gates[1].Status()
		if s.Queued != 1 || s.Shared.Queued != 4 || s.InFlight != 0 || s.Shared.InFlight != 1 || s.Shared.Gateways != 3 || s.Shared.Alone {
			t.Errorf("status %+v, shared %+v", s, s.Shared)
		}
		begun := time.Now()
		g.all.Wait()
		if got := strings.Join(g.served, ""); got != "abcde" || g.refused != 1 {
			t.Errorf("served %s, refused %d", got, g.refused)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("five seconds of work took %s", took)
		}
	})
}

// Without the store each gateway continues with its share, and then with the others again; nobody is lost,
// and Oz never gets more than its slots: whether calls fail, or only their answers are lost,
// whether the server then knows all that was, or nothing.
func TestFleetWithoutStore(t *testing.T) {
	for name, fault := range map[string]func(g *gateways, begin bool){
		"down": func(g *gateways, begin bool) { g.down(begin) },
		"restarted": func(g *gateways, begin bool) {
			if g.down(begin); begin {
				g.server.Restart()
			}
		},
		"deaf": func(g *gateways, begin bool) {
			for _, s := range g.stores {
				s.Deaf.Store(begin)
			}
		},
		"forgetful": func(g *gateways, begin bool) { g.server.Restart() },
		"mute": func(g *gateways, begin bool) {
			for _, s := range g.stores {
				s.Mute.Store(begin)
			}
		},
	} {
		for _, outage := range []time.Duration{300 * time.Millisecond, 3 * time.Second, 40 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				g := newGateways(t, 3, capacity(6, 24, 0))
				defer g.close()
				g.load(6, 20*time.Second)
				fault(g, true)
				without := g.load(6, outage)
				fault(g, false)
				g.load(6, 10*time.Second)
				with := g.load(6, 20*time.Second)
				_, most := g.now()
				if most > 6 || without < 0.8 || with < 0.98 {
					t.Errorf("%s for %s: %d at once; %.2f of the slots were in use, and %.2f afterwards", name, outage, most, without, with)
				}
			})
		}
	}
}

// A gateway that is closed gives its place back at once, and one that dies within five seconds,
// with all that waited there; and one that begins without the store takes one slot.
func TestFleetComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateways(t, 3, capacity(3, 9, 0))
		time.Sleep(5 * time.Second)
		for range 4 {
			g.send(1, "dead", time.Hour)
			synctest.Wait()
		}
		g.send(0, "", time.Second)
		synctest.Wait()
		g.stores[1].Down.Store(true) // as far as the others can see, it has died
		begun := time.Now()
		for g.count() < 4 && time.Since(begun) < time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("the slots of one that died came back after %s", took)
		}
		g.gates[2].Close()
		synctest.Wait()
		g.send(0, "", time.Second)
		time.Sleep(2 * time.Second)
		if s := g.gates[0].Status(); s.Shared.Gateways != 1 {
			t.Errorf("after one was closed: %+v", s.Shared)
		}

		late := &slotstest.Store{Server: g.server}
		late.Down.Store(true)
		g.gates[2] = g.open(t, t.Name()+" late", capacity(3, 9, 0), late, zap.NewNop())
		synctest.Wait()
		for range 3 {
			g.send(2, "late", time.Second)
		}
		synctest.Wait()
		if s := g.gates[2].Status(); s.InFlight != 1 || s.Queued != 2 || !s.Shared.Alone || s.Shared.Gateways != 0 {
			t.Errorf("one that begins without the store: %+v, shared %+v", s, s.Shared)
		}
		if n := g.logs.FilterMessageSnippet("continues with its share").Len(); n != 1 {
			t.Errorf("that the store doesn't answer was logged %d times", n)
		}
		g.close()
	})
}

// A reload keeps slots and order, also with another connection to the store. One that ends the
// sharing gives back what is not in use.
func TestFleetSurvivesReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateways(t, 2, capacity(2, 8, 0))
		defer g.close()
		time.Sleep(5 * time.Second)
		g.send(0, "a", 10*time.Second)
		synctest.Wait()
		g.send(0, "b", 11*time.Second)
		synctest.Wait()
		g.send(0, "c", time.Second)
		synctest.Wait()
		g.send(1, "d", time.Second)
		synctest.Wait()

		reload := func(c upload.Capacity) {
			gate, err := upload.OpenGate(t.Name()+" 0", new(int), c, upload.Gauges{Queued: nothing{}, Memory: nothing{}})
			if err != nil {
				t.Fatal(err)
			}
			g.gates[0].Close()
			g.gates[0] = gate
			synctest.Wait()
		}
		shared := capacity(2, 8, 0)
		shared.Shared = &upload.Shared{Store: &slotstest.Store{Server: g.server}, Room: "oz", Lease: lease, Logger: zap.NewNop()}
		reload(shared)
		time.Sleep(2 * time.Second)
		if s := g.gates[1].Status().Shared; s.InFlight != 2 || s.Queued != 2 || s.Gateways != 2 {
			t.Errorf("after a reload: %+v", s)
		}
		g.all.Wait()
		if got := strings.Join(g.served, ""); got != "abcd" || g.most != 2 {
			t.Errorf("served %s, %d at once", got, g.most)
		}

		reload(capacity(2, 8, 0))
		time.Sleep(2 * time.Second)
		if s, other := g.gates[0].Status(), g.gates[1].Status(); s.Shared != nil || other.Shared.Gateways != 1 {
			t.Errorf("after one that ends the sharing: %+v, %+v", s.Shared, other.Shared)
		}
		for range 2 {
			g.send(0, "", time.Second)
		}
		synctest.Wait()
		if busy, _ := g.now(); busy != 2 {
			t.Errorf("%d at once after that", busy)
		}
	})
}

// An upload that has been received isn't sent away because others, elsewhere, were faster. Newcomers
// are, before they send anything.
func TestFleetWithMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateways(t, 2, capacity(1, 1, 8<<20))
		defer g.close()
		time.Sleep(5*time.Second + heartbeat/2)
		g.upload = heartbeat / 10 // no gateway hears of the other's meanwhile
		for i := range 4 {
			g.send(i%2, "in time", time.Second)
		}
		time.Sleep(heartbeat / 5)
		g.send(1, "late", time.Second)
		g.send(0, "late", time.Second)
		g.all.Wait()
		if len(g.served) != 4 || slices.Contains(g.served, "late") || g.most != 1 {
			t.Errorf("served %v, refused %d, %d at once", g.served, g.refused, g.most)
		}
	})
}

// A gateway that comes to two busy ones gets its part, with memory, too.
func TestFleetStarvesNobody(t *testing.T) {
	for _, memory := range []int64{0, 64 << 20} {
		synctest.Test(t, func(t *testing.T) {
			c := capacity(6, 24, memory)
			g := newGateways(t, 2, c)
			defer g.close()
			g.load(6, 20*time.Second)
			g.stores = append(g.stores, &slotstest.Store{Server: g.server})
			g.gates = append(g.gates, g.open(t, t.Name()+" 2", c, g.stores[2], zap.NewNop()))
			g.load(6, 20*time.Second)
			before := g.count()
			g.load(6, 30*time.Second)
			served := g.since(before)
			third, all := 0, len(served)
			for _, name := range served {
				if name == "2" {
					third++
				}
			}
			if third < all/5 {
				t.Errorf("memory %d: the third gateway got %d of %d slots", memory, third, all)
			}
		})
	}
}

// The queue of a gateway that has died takes slots from the others for a moment only, however long it is.
func TestFleetOutlivesAQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := capacity(2, 30, 0)
		c.Wait = time.Hour
		g := newGateways(t, 2, c)
		time.Sleep(5 * time.Second)
		for range 2 {
			g.send(0, "first", 2*time.Second)
		}
		synctest.Wait()
		for range 20 {
			g.send(1, "dead", time.Hour)
		}
		synctest.Wait()
		begun := time.Now()
		g.send(0, "next", time.Second)
		synctest.Wait()
		g.stores[1].Down.Store(true)
		for !g.has("next") && time.Since(begun) < time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(begun); took > 3*time.Second { // of them two until a slot was free
			t.Errorf("a capsule waited for %s", took)
		}
		g.close()
	})
}

// Thousands at once are asked for in portions, and each gets an answer.
func TestFleetOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := capacity(10, 300, 0)
		c.Wait = time.Hour
		g, store := new(gateways), &lastReport{Store: &slotstest.Store{Server: slotstest.NewServer()}}
		g.gates = append(g.gates, g.open(t, t.Name(), c, store, zap.NewNop()))
		defer g.close()
		for range 1500 {
			g.send(0, "", time.Second)
		}
		g.all.Wait()
		synctest.Wait()
		if len(g.served) != 310 || g.refused != 1190 || g.most != 10 {
			t.Errorf("%d served, %d refused, %d at once", len(g.served), g.refused, g.most)
		}
		if store.mostNew != 100 {
			t.Errorf("%d in one call: others wait for it", store.mostNew)
		}
	})
}

// lastReport is a store that remembers what it was told last, and how many newcomers there were
// in one report.
type lastReport struct {
	*slotstest.Store
	report  upload.SlotReport
	mostNew int
}

func (s *lastReport) Sync(ctx context.Context, room string, r upload.SlotReport) (upload.SlotAnswer, error) {
	s.report, s.mostNew = r, max(s.mostNew, len(r.New))
	return s.Store.Sync(ctx, room, r)
}

// What a gateway says as it leaves has the times that the store needs to grant slots to others by it.
func TestFleetLeavesWithTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &lastReport{Store: &slotstest.Store{Server: slotstest.NewServer()}}
		gate := new(gateways).open(t, t.Name(), capacity(2, 8, 0), store, zap.NewNop())
		synctest.Wait()
		before := store.report
		gate.Close()
		after := store.report
		if !after.Left || after.Offer != before.Offer || after.Offer == 0 || after.Life != before.Life || after.Silence != before.Silence || after.Lease != before.Lease {
			t.Errorf("it left with %+v, after %+v", after, before)
		}
	})
}
