package caddymodule

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/slotstest"
)

func init() {
	caddy.RegisterModule(new(plainSlots))
	caddy.RegisterModule(new(wrongSlots))
}

// plainSlots is a store of slots that tests have in common.
type plainSlots struct {
	Name             string `json:"name,omitempty"`
	*slotstest.Store `json:"-"`
}

var slotsServer = slotstest.NewServer()

func (*plainSlots) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: slotsNamespace + ".plain", New: func() caddy.Module {
		return &plainSlots{Store: &slotstest.Store{Server: slotsServer}}
	}}
}

// UnmarshalCaddyfile shows that the block is the store's.
func (s *plainSlots) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	for d.NextBlock(0) {
		if !d.NextArg() {
			return d.ArgErr()
		}
		s.Name = d.Val()
	}
	return nil
}

// wrongSlots isn't a store.
type wrongSlots struct{}

func (*wrongSlots) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: slotsNamespace + ".wrong", New: func() caddy.Module { return new(wrongSlots) }}
}

// Two gateways share the slots of one Oz: the second one's capsule waits for the first one's.
func TestCapacityShared(t *testing.T) {
	const shared = `"capacity": {"slots": 1, "queue": 5, "shared": {"module": "plain"}}`
	arrived, answer := make(chan struct{}, 2), make(chan struct{})
	oz := func(req *http.Request) (*http.Response, error) {
		arrived <- struct{}{}
		<-answer
		return answers(http.StatusOK, testFolder("SUCCESS", "SUCCESS", "SUCCESS", "shot"))(req)
	}
	first := newHandler(t, oz, `{`+shared+`}`)
	second := newHandler(t, oz, `{`+shared+`, "reverse_proxy": {"headers": {"request": {"set": {"X-Key": ["another"]}}}}}`)
	done := make(chan struct{})
	for _, h := range []*Handler{first, second} {
		go func() {
			h.posted(t, new(testApp), "capsule")
			done <- struct{}{}
		}()
	}
	<-arrived // the first of them
	eventually(t, "one waits in the store", func() bool {
		return first.gate.Status().Shared.Queued+second.gate.Status().Shared.Queued > 0
	})
	if a, b := first.gate.Status(), second.gate.Status(); a.InFlight+b.InFlight != 1 || a.Queued+b.Queued != 1 {
		t.Errorf("%+v, %+v", a, b)
	}
	close(answer)
	<-done
	<-done
}

// What cannot work does not load.
func TestCapacitySharedRefused(t *testing.T) {
	for config, want := range map[string]string{
		`{"memory": 67108864, "shared": {"module": "plain"}}`: "capacity: shared: needs slots",
		`{"slots": 1, "shared": {"module": "wrong"}}`:         "capacity shared: *caddymodule.wrongSlots is not a store of slots",
		`{"slots": 1, "shared": {"module": "none"}}`:          "capacity shared: loading the store: ",
	} {
		_, err := load[*Handler](newContext(t), handlerID, ozConfig(t, neverAsked(t), `{"capacity": `+config+`}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", config, err, want)
		}
	}
	ctx := newContext(t)
	mustLoad(t, ctx, ozConfig(t, neverAsked(t), `{"capacity": {"slots": 1, "shared": {"module": "plain", "name": "a"}}}`))
	_, err := load[*Handler](ctx, handlerID, ozConfig(t, neverAsked(t), `{"capacity": {"slots": 1, "shared": {"module": "plain", "name": "b"}}}`))
	if err == nil || !strings.Contains(err.Error(), "has other limits") {
		t.Errorf("two stores for one way: %v", err)
	}
}

// The gauge tells whether the slots are counted over all gateways, and is absent where they need not be.
func TestSharedGauge(t *testing.T) {
	ctx := newContext(t)
	g := gauges{func() func(any) bool { return configOf(ctx) }}
	const name = "caddy_oz_instant_slots_shared"
	mustLoad(t, ctx, ozConfig(t, neverAsked(t), `{"base_path": "/own", "capacity": {"slots": 1}}`))
	if n := testutil.CollectAndCount(g, name); n != 0 {
		t.Errorf("without shared: %d series", n)
	}
	mustLoad(t, ctx, ozConfig(t, neverAsked(t), `{"base_path": "/shared", "capacity": {"slots": 1, "shared": {"module": "plain"}}}`))
	if v := testutil.ToFloat64(gaugeNamed{g, "slots_shared"}); v != 1 {
		t.Errorf("shared: %v", v)
	}
	h, err := load[*Handler](ctx, handlerID, ozConfig(t, neverAsked(t), `{"base_path": "/down", "capacity": {"slots": 1, "shared": {"module": "plain", "name": "`+slotsDown+`"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a gateway knows that its store is down", func() bool { return h.gate.Status().Shared.Alone })
	if v := testutil.ToFloat64(gaugeNamed{g, "slots_shared"}); v != 0 {
		t.Errorf("one store is down: %v", v)
	}
}

// slotsDown names a store that is down.
const slotsDown = "down"

// Provision implements caddy.Provisioner.
func (s *plainSlots) Provision(caddy.Context) error {
	s.Down.Store(s.Name == slotsDown)
	return nil
}

// eventually returns when something is true that tells nobody when it becomes so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begun := time.Now(); !is(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("after 10 s it isn't true that %s", what)
		}
	}
}
