package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// configOf picks one config, as inForce picks the one in force.
func configOf(ctx caddy.Context) func(any) bool {
	return func(config any) bool { return config == configID(ctx) }
}

// shown returns the statuses of the ways of one config.
func shown(ctx caddy.Context) (list []diagnose.Way) {
	for _, users := range waysOf(configOf(ctx)) {
		list = append(list, statusOf(users))
	}
	return list
}

func mustLoad(t *testing.T, ctx caddy.Context, config string) *Handler {
	t.Helper()
	h, err := load[*Handler](ctx, handlerID, config)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Two blocks with one way to Oz are one way: their decisions and their capsules
// count together. Another base path is another way.
func TestBlocksShareAWay(t *testing.T) {
	ctx := newContext(t)
	block := ozConfig(t, answers(201, success()), `{"capacity": {"slots": 3}}`)
	one, two := mustLoad(t, ctx, block), mustLoad(t, ctx, block)
	other := mustLoad(t, ctx, strings.Replace(block, "{", `{"base_path": "/other", `, 1))
	one.posted(t, new(testApp), "capsule")
	two.posted(t, new(testApp), "capsule")
	two.posted(t, new(testApp), "capsule")

	ways := shown(ctx)
	if len(ways) != 2 {
		t.Fatalf("%d ways, want 2", len(ways))
	}
	if w := ways[0]; w.Decisions[oz.Success] != 3 || w.Slots != 3 || len(w.Upstreams) != 1 || w.Upstreams[0].Address != "oz.test:8080" || w.BasePath != "" {
		t.Errorf("the shared way: %+v", w)
	}
	if w := ways[1]; w.Decisions[oz.Success] != 0 || w.BasePath != "/other" || other.way.way == one.way.way {
		t.Errorf("the other way: %+v", w)
	}
}

// What is remembered of a way survives a reload, and a config that fails to
// load, and ends with the last user. Of two configs each sees its own ways.
func TestWayOverReloads(t *testing.T) {
	block := ozConfig(t, answers(200, "no folder"), "")
	first, endFirst := cancelContext(t)
	h := mustLoad(t, first, block)
	identity := h.way.identity
	h.posted(t, noApp(t), "capsule")
	before := shown(first)[0]
	if before.Decisions[oz.Unavailable] != 1 || len(before.LastFailures) != 1 {
		t.Fatalf("%+v", before)
	}

	failing, endFailing := cancelContext(t)
	mustLoad(t, failing, block)
	mustLoad(t, failing, strings.Replace(block, "oz.test", "new.test", 1))
	if n := len(shown(first)); n != 1 {
		t.Errorf("%d ways are shown while a config is loaded that has two", n)
	}
	endFailing()
	if n := len(shown(failing)); n != 0 {
		t.Errorf("%d ways are left of a config that failed to load", n)
	}

	second, endSecond := cancelContext(t)
	next := mustLoad(t, second, block)
	endFirst()
	h.way.decided(oz.Verdict{Decision: oz.Success}) // by a capsule that outlives its config
	next.posted(t, noApp(t), "capsule")
	after := shown(second)[0]
	if after.Decisions[oz.Unavailable] != 2 || after.Decisions[oz.Success] != 1 || after.LastFailures[0].Count != 2 || after.Since != before.Since {
		t.Errorf("after a reload: %+v", after)
	}
	endSecond()
	if _, still := ways.References(identity); still {
		t.Error("the way outlives its last user")
	}
}

// Every outcome is counted by its decision, and has one entry if it has a
// reason: how often, and when last, the newest first.
func TestLastFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWay("")
		want := make(map[oz.Decision]int64)
		for range 2 {
			for _, row := range oz.Outcomes() {
				time.Sleep(time.Second)
				w.decided(oz.Verdict{Decision: row.Decision, Reason: row.Reason})
				want[row.Decision]++
			}
		}
		for d, n := range want {
			if got := w.decisions[d].Load(); got != n || len(w.decisions) != 6 {
				t.Errorf("%s is counted %d times, want %d", d, got, n)
			}
		}
		failures := w.lastFailures()
		if len(failures) != len(oz.Reasons()) {
			t.Fatalf("%d entries for %d reasons", len(failures), len(oz.Reasons()))
		}
		for i, f := range failures {
			if f.Count != 2 || f.Time.Location() != time.UTC || i > 0 && !f.Time.Before(failures[i-1].Time) {
				t.Errorf("%d: %+v", i, f)
			}
		}
		if first := failures[0]; first.Reason != oz.MatchRefused || !first.Time.Equal(time.Now()) {
			t.Errorf("the newest is %+v", first)
		}
	})
}

// An upstream is down if one block holds it for down, and is listed once.
func TestUpstreamsOfSeveralBlocks(t *testing.T) {
	up := func(address string, healthy bool) ozclient.UpstreamStatus {
		return ozclient.UpstreamStatus{Address: address, Healthy: healthy, Requests: 2}
	}
	var list []ozclient.UpstreamStatus
	for _, u := range []ozclient.UpstreamStatus{up("a:1", true), up("b:2", false), up("a:1", false), up("b:2", true), up("c:3", true)} {
		list = withUpstream(list, u)
	}
	if want := []ozclient.UpstreamStatus{up("a:1", false), up("b:2", false), up("c:3", true)}; !reflect.DeepEqual(list, want) {
		t.Errorf("%+v, want %+v", list, want)
	}
}

// Of several accounts the one that needs attention is shown, and the gauge
// knows of all.
func TestTokensOfSeveralBlocks(t *testing.T) {
	ctx := newContext(t)
	block := func(fields string) string { return ozConfig(t, answers(403, ""), fields) }
	fixed := mustLoad(t, ctx, block(`{"access_token": "fixed-secret"}`))
	if s := shown(ctx)[0].AccessToken; s == nil || s.State != ozclient.TokenFixed {
		t.Errorf("%+v", s)
	}
	mustLoad(t, ctx, block(`{"credentials": {"email": "a@example.com", "password": "one"}}`))
	if s := shown(ctx)[0].AccessToken; s.State != ozclient.TokenNone {
		t.Errorf("%+v", s)
	}
	failing := mustLoad(t, ctx, block(`{"credentials": {"email": "b@example.com", "password": "two"}}`))
	failing.posted(t, noApp(t), "capsule")
	if s := shown(ctx)[0].AccessToken; s.State != ozclient.TokenFailed || fixed.way.way != failing.way.way {
		t.Errorf("%+v", s)
	}
}

// Of two good tokens the one that ends first is shown.
func TestFirstTokenToEnd(t *testing.T) {
	ctx := newContext(t)
	for _, life := range []time.Duration{10 * time.Minute, 5 * time.Minute, 12 * time.Minute} {
		block := ozConfig(t, func(req *http.Request) (*http.Response, error) {
			if req.URL.Path != oz.LoginPath {
				return answers(201, success())(req)
			}
			return answers(200, fmt.Sprintf(`{"access_token": "a", "expire_token": "b", "expire_date": %d}`, time.Now().Add(life).Unix()))(req)
		}, `{"credentials": {"email": "`+life.String()+`@example.com", "password": "one"}}`)
		mustLoad(t, ctx, block).posted(t, new(testApp), "capsule")
	}
	if s := shown(ctx)[0].AccessToken; s.State != ozclient.TokenValid || s.ExpiresIn <= 240 || s.ExpiresIn > 300 {
		t.Errorf("%+v", s)
	}
}

// A status holds nothing of what its way is keyed by.
func TestStatusHasNoSecret(t *testing.T) {
	ctx := newContext(t)
	h := mustLoad(t, ctx, ozConfig(t, answers(201, success()), `{"credentials": {"email": "canary@example.com", "password": "canary"},
		"reverse_proxy": {"headers": {"request": {"set": {"X-Api-Key": ["canary"], "Host": ["canary.test"]}}}}}`))
	h.posted(t, noApp(t), "canary capsule")
	doc, err := json.Marshal(shown(ctx))
	if err != nil || len(doc) < 100 || strings.Contains(string(doc), "canary") || strings.Contains(string(doc), "X-Api-Key") {
		t.Errorf("%s, %v", doc, err)
	}
}

// Statuses are made while capsules are decided and configs come and go.
func TestStatusBesideWork(t *testing.T) {
	ctx := newContext(t)
	block := ozConfig(t, answers(200, "no folder"), "")
	h := mustLoad(t, ctx, block)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 20 {
				h.way.decided(oz.ReasonVerdict(oz.Timeout))
				shown(ctx)
			}
		})
	}
	for range 20 { // one at a time, as Caddy loads configs
		reload, end := cancelContext(t)
		mustLoad(t, reload, block)
		end()
	}
	all.Wait()
	if w := shown(ctx)[0]; w.Decisions[oz.Unavailable] != 80 || w.LastFailures[0].Count != 80 {
		t.Errorf("%+v", w)
	}
}

// Gauges are of the config in force after any number of reloads, after one that
// has other limits or fewer ways, and after one that fails to load. The last one
// without a limit takes none away from the others.
func TestGaugesOverReloads(t *testing.T) {
	var current caddy.Context
	g := gauges{func() func(any) bool { return configOf(current) }}
	block := ozConfig(t, answers(201, success()), "")
	with := func(path, capacity string) string {
		return strings.Replace(block, "{", `{"base_path": "`+path+`", "capacity": `+capacity+`, `, 1)
	}
	want := func(when, slots, queue, memory string) {
		t.Helper()
		text := ""
		for name, value := range map[string]string{"slots": slots, "queue_limit": queue, "memory_limit_bytes": memory} {
			if n := testutil.ToFloat64(gaugeNamed{g, name}); jsonNumber(n) != value {
				text += name + " is " + jsonNumber(n) + ", want " + value + "; "
			}
		}
		if text != "" {
			t.Errorf("%s: %s", when, text)
		}
	}
	end := func() {}
	for n := range 100 {
		ctx, endNext := cancelContext(t)
		mustLoad(t, ctx, with("/a", `{"slots": 2, "queue": 5}`))
		mustLoad(t, ctx, with("/a", `{"slots": 2, "queue": 5}`)) // the same way
		if n%2 == 0 {
			mustLoad(t, ctx, with("/b", `{"slots": 4, "memory": 67108864}`))
		}
		mustLoad(t, ctx, block) // no limit
		current = ctx
		end()
		end = endNext
		if n%2 == 0 {
			want("with two ways", "6", "21", "67108864")
		} else {
			want("with one", "2", "5", "0")
		}
	}
	failing, endFailing := cancelContext(t)
	mustLoad(t, failing, with("/c", `{"slots": 9}`))
	endFailing()
	want("after one that failed", "2", "5", "0")
	current = newContext(t)
	want("without ways", "0", "0", "0")
}
