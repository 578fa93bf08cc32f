package integration_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const sharedSite = `
{$SITE} {
	oz_instant /verify {$OZ} {
		capacity {
			slots 1
			queue 12
			wait 1m
			shared {$STORE}
		}
	}
	reverse_proxy {$APP}
}`

// slotsAccount has the rights that are documented, and more.
func slotsAccount(more string) []string {
	rights := account(more)
	i := slices.Index(rights, "~oz_instant:replay:*")
	documented := strings.Fields("+eval +evalsha +time +get +set +pexpire +zadd +zrem +zcard +zcount +zscore +zrange +zrangebyscore +zremrangebyscore +publish +subscribe +ping " +
		"~oz_instant:slots:* resetchannels &oz_instant:slots:*")
	return slices.Concat(rights[:i-4], documented, rights[i+1:])
}

// sharing is two gateways with one Oz that share its slot.
type sharing struct {
	*chain
	other *caddyProc
}

func startSharing(t testing.TB, opts ...caddyOption) sharing {
	t.Helper()
	x := startChain(t, sandbox.Options{AnalysisTime: 20 * time.Millisecond, ReuseTokens: true}, sharedSite, opts...)
	other := startCaddy(t, sharedSite, append(opts, withEnv("OZ", x.oz.URL), withEnv("APP", x.app.Addr))...)
	return sharing{x, other}
}

func (s sharing) gateways() []*caddyProc { return []*caddyProc{s.caddyProc, s.other} }

// assertServed sends capsules to both gateways at once. All of them get in, and Oz has no more than most at once. A gateway that heard
// nothing of Redis for a second goes by its share, and one of which Redis heard nothing for four seconds loses its slots: where that
// took so long on a busy machine, it shows nothing, and they are sent once more.
func (s sharing) assertServed(t testing.TB, most int) {
	t.Helper()
	for tries := 1; ; tries++ {
		start := time.Now()
		peak := s.served(t)
		switch {
		case peak <= most:
			return
		case time.Since(start) < time.Second || tries == 5:
			t.Errorf("Oz had %d at once, want %d", peak, most)
			return
		}
		for _, p := range s.gateways() {
			if most == 1 {
				p.awaitStatus(t, "shared.alone", "false")
			}
		}
	}
}

// served sends capsules to both gateways at once, all of which get in, and returns how many Oz had at once.
func (s sharing) served(t testing.TB) int {
	t.Helper()
	s.oz.quiet(t)
	s.oz.Forget()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			c := s.gateways()[i%2].client(t, "h1")
			if a := c.post(t, "/verify", s.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
				t.Errorf("%d %s", a.Status, a.Body)
			}
		})
	}
	all.Wait()
	st := s.oz.Stats()
	if st.Received != 8 {
		t.Errorf("Oz got %d, want 8", st.Received)
	}
	return st.PeakBusy
}

// TestSharedSlots promises one count of slots over all gateways with the rights that are documented, that each goes on while Redis is
// away, and that they are one again when an empty one is back.
func TestSharedSlots(t *testing.T) {
	t.Parallel()
	r := startRedis(t, slotsAccount("")...)
	s := startSharing(t, withRedis("redis://oz:{env.REDIS_PASSWORD}@"+r.Addr)...)
	for _, p := range s.gateways() {
		p.awaitStatus(t, "shared.gateways", "2", "shared.alone", "false")
	}
	s.assertServed(t, 1)

	r.kill()
	for _, p := range s.gateways() {
		p.waitForLog(t, having("continues with its share"), withField("level", "error"))
		p.awaitStatus(t, "shared.alone", "true")
	}
	s.assertServed(t, 2) // each has one slot at least
	if text := s.AdminGet(t, "/metrics"); !strings.Contains(text, "\ncaddy_oz_instant_slots_shared 0\n") {
		t.Errorf("the metric doesn't tell that Redis is away")
	}

	r.start(t)
	for _, p := range s.gateways() {
		p.waitForLog(t, having("counted over all gateways again"))
		p.awaitStatus(t, "shared.alone", "false")
	}
	s.assertServed(t, 1)
	for _, p := range s.gateways() {
		for _, text := range []string{"announce", "lacks rights"} {
			if lines := p.logLines(having(text)); len(lines) > 0 {
				t.Errorf("logged: %v", lines)
			}
		}
	}
	s.assertNoCanary(t, []byte(redisSecret))
}

// TestSharedSlotsCluster promises that a cluster counts, too.
func TestSharedSlotsCluster(t *testing.T) {
	t.Parallel()
	r := startCluster(t, slotsAccount("+cluster|slots"))
	s := startSharing(t, withRedis("redis+cluster://oz:{env.REDIS_PASSWORD}@"+r.Addr)...)
	for _, p := range s.gateways() {
		p.awaitStatus(t, "shared.gateways", "2", "shared.alone", "false")
	}
	s.assertServed(t, 1)
}
