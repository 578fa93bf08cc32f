package integration_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// redisSecret has every character that means something in a URL.
const redisSecret = `p@ss:w/o?r#d%41&{x}+é`

// withRedis has the guards of a site use a Redis by a URL, whose {env.REDIS_PASSWORD} is redisSecret.
func withRedis(url string) []caddyOption {
	return []caddyOption{withEnv("STORE", "redis "+url), withEnv("REDIS_PASSWORD", redisSecret), withEnv("REDIS_URL", url)}
}

// assertCountsOnce sends a capsule twice.
func (x *chain) assertCountsOnce(t testing.TB, path string) {
	t.Helper()
	c := x.client(t, "h1")
	x.assertReplayed(t, c, path, x.accepted(t, c, path))
}

// accepted sends a capsule that is accepted, and returns it.
func (x *chain) accepted(t testing.TB, c *client, path string) (capsule []byte) {
	t.Helper()
	j := x.observeInTime(t, func() answer {
		capsule = x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}) // another one each time: the claim for the one before may be made late
		return c.post(t, path, capsule)
	})
	accepted.assert(t, j, "s")
	return capsule
}

// account has the rights that are documented, and more, and nobody else has any.
func account(more string) []string {
	rights := strings.Fields("-@all +set +get +del +eval +evalsha ~oz_instant:replay:* " + more)
	return slices.Concat([]string{"--user", "oz", "on", ">" + redisSecret}, rights, []string{"--user", "default", "off"})
}

// TestReplayRedis promises that every way to a Redis that is documented works, with no more rights than are documented, and that the
// store gets digests with a time to live and nothing else.
func TestReplayRedis(t *testing.T) {
	t.Parallel()
	cert := testCert(t)
	for name, test := range map[string]struct {
		args []string
		url  string // %s is the address
	}{
		"plain":       {nil, "redis://%s"},
		"a database":  {nil, "redis://%s/3"},
		"a password":  {[]string{"--requirepass", redisSecret}, "redis://:{env.REDIS_PASSWORD}@%s"},
		"an account":  {account(""), "redis://oz:{env.REDIS_PASSWORD}@%s"},
		"both":        {account("+select"), "redis://oz:{env.REDIS_PASSWORD}@%s/3"},
		"all of it":   {nil, "{env.REDIS_URL}"},
		"in the open": {[]string{"--requirepass", "plain%text"}, "redis://:plain%%25text@%s"},
		"TLS": {[]string{"--tls-port", "PORT", "--port", "0", "--tls-cert-file", cert.certFile, "--tls-key-file", cert.keyFile,
			"--tls-ca-cert-file", cert.certFile, "--tls-auth-clients", "no", "--requirepass", redisSecret},
			"rediss://:{env.REDIS_PASSWORD}@%s?ca=" + cert.certFile},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRedis(t, "redis-server", "Ready to accept connections")
			r.args = append([]string{"--bind", "127.0.0.1", "--port", strconv.Itoa(r.Port), "--dir", r.dir, "--save", ""}, test.args...)
			for i, arg := range r.args {
				if arg == "PORT" {
					r.args[i] = strconv.Itoa(r.Port)
				}
			}
			r.start(t)
			url := test.url
			if strings.Contains(url, "%s") {
				url = fmt.Sprintf(url, r.Addr)
			}
			opts := withRedis(url)
			if url == "{env.REDIS_URL}" {
				opts = append(opts, withEnv("REDIS_URL", "redis://"+r.Addr))
			}
			x := startChain(t, anyOf, guardedSite, opts...)
			x.assertCountsOnce(t, "/verify")
			x.assertCountsOnce(t, "/buffered")
			x.assertNoCanary(t, []byte(redisSecret))
			lines := x.logLines(having("does not answer"), func(line logLine) bool { return !tookTooLong(line) })
			if len(lines) > 0 {
				t.Errorf("logged: %v", lines)
			}
		})
	}
}

// TestReplayRedisHolds promises what is in the Redis: a digest, an owner, an end.
func TestReplayRedisHolds(t *testing.T) {
	t.Parallel()
	r := startRedis(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	x := startChain(t, anyOf, guardedSite, append(withRedis("redis://"+r.Addr), withEnv("GUARD", "also meta_data.event_session_id"))...)
	x.assertCountsOnce(t, "/verify")
	x.waitForLog(t, having("maxmemory-policy noeviction"), withField("level", "warn"))
	keys := r.claims(t)
	if len(keys) != 2 {
		t.Fatalf("a capsule and its session left %q", keys)
	}
	for _, key := range keys {
		left := r.life(t, key)
		if !strings.HasPrefix(key, "oz_instant:replay:") || len(key) != len("oz_instant:replay:")+43 || left > 15*time.Minute || left < 14*time.Minute {
			t.Errorf("%s lives for %v", key, left)
		}
		if owner := r.do(t, "GET", key).(string); !regexp.MustCompile(`^[A-Z2-7]{26}$`).MatchString(owner) {
			t.Errorf("%s has the value %q", key, owner)
		}
		if line := x.logLines(having(strings.TrimPrefix(key, "oz_instant:replay:"))); len(line) > 0 {
			t.Errorf("the log has the digest: %s", line[0])
		}
	}
}

// TestReplayRedisRefuses promises that a Redis that refuses the account, or a command, is told from one that is down, and that no
// secret and no digest is told with it.
func TestReplayRedisRefuses(t *testing.T) {
	t.Parallel()
	r := startRedis(t, "--requirepass", "another "+redisSecret)
	x := startChain(t, anyOf, guardedSite, withRedis("redis://:{env.REDIS_PASSWORD}@"+r.Addr)...)
	x.waitForLog(t, having("WRONGPASS"), withField("level", "warn"))
	c := x.client(t, "h1")
	for _, path := range []string{"/verify", "/buffered"} {
		j := x.observe(t, func() answer { return c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{})) })
		noStore.assert(t, j, "")
		if !strings.Contains(j.decided[0].Get("error").Str, "WRONGPASS") {
			t.Errorf("logged: %s", j.decided[0])
		}
	}
	full := startRedis(t, "--maxmemory", "1", "--maxmemory-policy", "noeviction")
	y := startChain(t, anyOf, guardedSite, withRedis("redis://"+full.Addr)...)
	j := y.observe(t, func() answer { return y.client(t, "h1").post(t, "/verify", y.oz.Capsule(sandbox.CapsuleSpec{})) })
	noStore.assert(t, j, "")
	if !strings.Contains(j.decided[0].Get("error").Str, "OOM") {
		t.Errorf("logged: %s", j.decided[0])
	}
	x.assertNoCanary(t, []byte(redisSecret))
}

// TestReplayCluster promises that a cluster works, and TestReplayFailover a Sentinel.
func TestReplayCluster(t *testing.T) {
	t.Parallel()
	r := startCluster(t, account("+cluster|slots"))
	x := startChain(t, anyOf, guardedSite, withRedis("redis+cluster://oz:{env.REDIS_PASSWORD}@"+r.Addr)...)
	x.assertCountsOnce(t, "/verify")
}

// TestReplayFailover promises that a replica that takes over remembers what it was told, and that capsules are served again without
// anybody's doing.
func TestReplayFailover(t *testing.T) {
	t.Parallel()
	primary := startRedis(t)
	replica := startRedis(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(primary.Port))
	replica.await(t, "MASTER <-> REPLICA sync: Finished with success")
	sentinel := startSentinel(t, primary)
	sentinel.await(t, "+slave")
	x := startChain(t, anyOf, guardedSite, withRedis("redis+sentinel://"+sentinel.Addr+"/claims")...)
	c := x.client(t, "h1")
	capsule := x.accepted(t, c, "/verify")
	primary.replicated(t)
	primary.kill()
	if a := c.post(t, "/buffered", x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 503 && a.Status != 200 { // it may be over already
		t.Errorf("without a primary: %d %s", a.Status, a.Body)
	}
	sentinel.failsOver(t)
	x.awaitStore(t, c)
	x.assertReplayed(t, c, "/verify", capsule)
}

// awaitStore returns when capsules are served again.
func (x *chain) awaitStore(t testing.TB, c *client) {
	t.Helper()
	for begun := time.Now(); ; {
		a := c.post(t, "/buffered", x.oz.Capsule(sandbox.CapsuleSpec{}))
		if a.Status == 200 {
			return
		}
		if a.Status != 503 || time.Since(begun) > patience {
			t.Fatalf("the store is there again: %d %s", a.Status, a.Body)
		}
	}
}

// TestReplayRedisDown promises that nothing is accepted that nobody could compare, also when Redis was never there, that allow accepts
// it and says so, and that capsules are served again, with all that Redis has kept, when it is back.
func TestReplayRedisDown(t *testing.T) {
	t.Parallel()
	r := startRedis(t, "--appendonly", "yes")
	r.kill()
	opts := withRedis("redis://" + r.Addr)
	x := startChain(t, anyOf, guardedSite, opts...)
	x.waitForLog(t, having("does not answer as it should"), withField("level", "warn"))
	allows := startChain(t, anyOf, guardedSite, append(opts, withEnv("GUARD", "on_error allow"))...)
	c, lax := x.client(t, "h1"), allows.client(t, "h1")
	for _, path := range []string{"/verify", "/buffered"} {
		noStore.assert(t, x.observe(t, func() answer { return c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{})) }), "")
		j := allows.observe(t, func() answer {
			return lax.post(t, path, allows.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}))
		})
		accepted.assert(t, j, "s")
		if line := j.decided[0]; line.Get("level").Str != "warn" || line.Get("replay_guard").Str != "allowed" || !line.Get("replay_guard_error").Exists() {
			t.Errorf("logged: %s", line)
		}
	}
	if n := len(x.oz.Received()); n != 1 {
		t.Errorf("Oz got %d capsules, and only the streamed one could be sent before", n)
	}
	if n := allows.Metric(t, `caddy_oz_instant_replay_total{result="allowed"}`); n != 2 {
		t.Errorf("allowed: %v", n)
	}
	r.start(t)
	x.awaitStore(t, c)
	x.assertCountsOnce(t, "/verify")
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{})
	c.post(t, "/verify", capsule)
	r.kill()
	r.start(t) // whatever connection is left is dead
	x.assertReplayed(t, c, "/verify", capsule)
	x.assertCountsOnce(t, "/buffered")
}

// TestReplayRedisHangs promises an answer within a second of the store's time when Redis accepts and says nothing, and that the claim
// which it makes when it wakes up keeps nobody from trying again.
func TestReplayRedisHangs(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	x := startChain(t, anyOf, guardedSite, withRedis("redis://"+r.Addr)...)
	c := x.client(t, "h1")
	x.assertCountsOnce(t, "/verify")
	r.do(t, "FLUSHALL")
	for _, path := range []string{"/verify", "/buffered"} {
		took := time.Hour
		for tries := 0; took > 3*time.Second && tries < 5; tries++ { // the machine may be slow, but not each time
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{})
			r.hang(t)
			begun := time.Now()
			noStore.assert(t, x.observe(t, func() answer { return c.post(t, path, capsule) }), "")
			took = time.Since(begun)
			r.wake(t)
			r.awaitEmpty(t, patience) // its life is two minutes and more
			if a := c.post(t, path, capsule); a.Status != 200 {
				t.Errorf("%s, again: %d %s", path, a.Status, a.Body)
			}
			r.do(t, "FLUSHALL")
		}
		if took < 900*time.Millisecond || took > 3*time.Second {
			t.Errorf("%s took %v", path, took)
		}
	}
}

// TestReplayGatewayKilled promises that what a gateway leaves when it is killed ends by itself, and that nobody gets in twice with it.
func TestReplayGatewayKilled(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	one := startChain(t, anyOf, guardedSite, withRedis("redis://"+r.Addr)...)
	two := startCaddy(t, guardedSite, append(withRedis("redis://"+r.Addr), withEnv("OZ", one.oz.URL), withEnv("APP", one.app.Addr))...)
	capsule := one.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 300_000})
	one.oz.fault(t, "hang")
	go one.client(t, "h1").try(one.client(t, "h1").postRequest(t, "/verify", strings.NewReader(string(capsule))))
	events := r.client(t).PSubscribe(t.Context(), "__keyevent@*__:set")
	defer events.Close()
	one.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 && s.Bytes >= int64(len(capsule)) })
	for len(r.claims(t)) == 0 {
		<-events.Channel()
	}
	one.killed(t)
	one.oz.fault(t, "")
	key := r.claims(t)[0]
	left := r.life(t, key)
	if most := 2*time.Minute + 5*time.Second; left <= 0 || left > most {
		t.Errorf("the claim lives for %v, want at most %v", left, most)
	}
	c := two.client(t, "h1")
	if a := c.post(t, "/verify", capsule); a.Status != 409 {
		t.Errorf("while the claim lives: %d %s", a.Status, a.Body)
	}
	r.do(t, "PEXPIRE", key, 1) // as if that time were over
	r.awaitEmpty(t, patience)
	if got := twice(t, c, c, "/verify", capsule); !slices.Equal(got, []int{200, 409}) {
		t.Errorf("after it: %v", got)
	}
}

// killed ends a Caddy as a crash would.
func (p *caddyProc) killed(t testing.TB) {
	t.Helper()
	p.crashed = true
	check(t, p.cmd.Process.Signal(syscall.SIGKILL))
	<-p.ended
}

// TestReplayTwoGateways promises that two gateways with one Redis accept a capsule once that comes to both at the same instant. go run
// ./integration/bench replay is the long one.
func TestReplayTwoGateways(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	one := startChain(t, anyOf, guardedSite, withRedis("redis://"+r.Addr)...)
	two := startCaddy(t, guardedSite, append(withRedis("redis://"+r.Addr), withEnv("OZ", one.oz.URL), withEnv("APP", one.app.Addr))...)
	late := 0 // capsules for which the store took longer than the second that it has
	for _, path := range []string{"/verify", "/buffered"} {
		for range 20 {
			capsule := one.oz.Capsule(sandbox.CapsuleSpec{})
			got := twice(t, one.client(t, "h1"), two.client(t, "h1"), path, capsule)
			for ; slices.Contains(got, 503) && late < 10; late++ {
				capsule = one.oz.Capsule(sandbox.CapsuleSpec{})
				got = twice(t, one.client(t, "h1"), two.client(t, "h1"), path, capsule)
			}
			if !slices.Equal(got, []int{200, 409}) {
				t.Errorf("%s: %v", path, got)
			}
		}
	}
	if n := len(one.app.Requests()); n < 40 || n > 40+late {
		t.Errorf("the app got %d requests for 40 capsules, and %d for which the store was late", n, late)
	}
}

// TestReplayReloadInProgress promises that a reload that goes to another Redis leaves capsules in progress the one that they began with.
func TestReplayReloadInProgress(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	x := startChain(t, sandbox.Options{ReuseTokens: true}, guardedSite, withRedis("redis://"+r.Addr)...)
	c := x.client(t, "h1")
	answers := make(chan answer, 2)
	release := x.oz.HoldAnalyses()
	for _, path := range []string{"/verify", "/buffered"} {
		go func() { answers <- c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 300_000})) }()
	}
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 2 })
	check(t, x.Reload(strings.ReplaceAll(guardedSite, "{$STORE:memory}", "redis redis://"+r.Addr+"/1")))
	release()
	for range 2 {
		if a := <-answers; a.Status != 200 {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
	}
	if claims := r.claims(t); len(claims) != 2 {
		t.Errorf("the Redis that they began with has the claims %q", claims)
	}
}
