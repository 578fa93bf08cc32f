package integration_test

import (
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// startInstances starts Caddy in front of three Oz instances, {$OZ}, {$OZ2} and {$OZ3}. Uploads to /slow may take two seconds.
func startInstances(t testing.TB, options string) (*chain, []*ozServer) {
	t.Helper()
	two, three := startSandbox(t, sandbox.Options{}), startSandbox(t, sandbox.Options{})
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {$OZ2} {$OZ3} {
		`+options+`
	}
	oz_instant /slow {$OZ} {$OZ2} {$OZ3} {
		`+options+`
		upload_timeout 2s
	}
	reverse_proxy {$APP}
}`, withEnv("OZ2", two.URL), withEnv("OZ3", three.URL))
	return x, []*ozServer{x.oz, two, three}
}

// received is how many capsules each instance got.
func received(instances []*ozServer) (counts []int) {
	for _, oz := range instances {
		counts = append(counts, len(oz.Received()))
	}
	return counts
}

func (x *chain) mustAccept(t testing.TB, n int) {
	t.Helper()
	c := x.client(t, "h1")
	for range n {
		if a := c.post(t, "/verify", x.anyCapsule()); a.Status != 200 {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
	}
}

// anyCapsule is a capsule that every instance accepts: they share no keys, so that tokens of one are forged to the others.
func (x *chain) anyCapsule() []byte { return randomCapsule(100_000) }

func acceptAny(instances []*ozServer) {
	for _, oz := range instances {
		o := oz.Options()
		o.AcceptAny = true
		oz.SetOptions(o)
	}
}

// TestInstancesShareTheWork promises that capsules go to the instance with the least to do.
func TestInstancesShareTheWork(t *testing.T) {
	t.Parallel()
	x, instances := startInstances(t, "lb_policy least_conn\ncapacity {\nslots 3\n}")
	acceptAny(instances)
	for _, oz := range instances {
		oz.fault(t, "hang")
	}
	var all sync.WaitGroup
	taken := make(chan struct{}, len(instances))
	for _, oz := range instances {
		all.Go(func() {
			defer func() { taken <- struct{}{} }() // also when it fails
			oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
		})
	}
	for range instances { // one after the other: least_conn cannot tell between capsules that come at the same moment
		all.Go(func() { x.client(t, "h1").post(t, "/verify", x.anyCapsule()) })
		<-taken
	}
	for _, oz := range instances {
		oz.fault(t, "")
	}
	all.Wait()
}

// TestInstanceDies promises that one dead instance costs nobody a capsule, that it is left alone, and that it is used again when it
// is back; when all are dead that is what the client hears.
func TestInstanceDies(t *testing.T) {
	t.Parallel()
	dead := deadAddress(t)
	two := startSandbox(t, sandbox.Options{AcceptAny: true})
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /verify {$DEAD} {$OZ} {$OZ2} {
		lb_policy first
		lb_try_duration 1m
		fail_duration 1s
	}
	oz_instant /dead {$DEAD2} {$DEAD3} {
		lb_try_duration 100ms
		fail_duration 1m
	}
	reverse_proxy {$APP}
}`, withEnv("OZ2", two.URL), withEnv("DEAD", "http://"+dead), withEnv("DEAD2", "http://"+deadAddress(t)), withEnv("DEAD3", "http://"+deadAddress(t)))
	x.mustAccept(t, 10)
	if n := len(x.oz.Received()); n != 10 {
		t.Errorf("the second one got %d capsules", n)
	}
	revived := startSandboxAt(t, dead, sandbox.Options{AcceptAny: true})
	c := x.client(t, "h1")
	for len(revived.Received()) == 0 { // until fail_duration is over
		if a := c.post(t, "/verify", x.anyCapsule()); a.Status != 200 {
			t.Fatalf("got %d %s", a.Status, a.Body)
		}
	}
	j := x.observe(t, func() answer { return c.post(t, "/dead", x.anyCapsule()) })
	want := unavailable("unreachable", 502)
	if j.answer.Status == 503 {
		want.http = 503
	}
	want.assert(t, j, "")
}

// startSandboxAt is startSandbox on a certain address.
func startSandboxAt(t testing.TB, address string, options sandbox.Options) *ozServer {
	t.Helper()
	l, err := net.Listen("tcp", address)
	check(t, err)
	return serveSandbox(t, l, options)
}

// TestInstanceIsMarkedByItsAnswers promises that an instance whose answers are cut, malformed or late is left alone for a while, and
// that nothing a client can do has that effect.
func TestInstanceIsMarkedByItsAnswers(t *testing.T) {
	t.Parallel()
	for fault, bad := range map[string]bool{
		"cut": true, "cut-chunked": true, "truncated": true, "dup-image": false, "bad-utf8": false, "gzip": true, "reset": true, "hang": true,
		"oz-error:14": false, "oz-error:5": false, "status:413": false, "early:400": false, "status:503": false, "word:APPROVED": false,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			options := "lb_policy first\nfail_duration 1m"
			if fault == "hang" {
				options += "\ntimeout 1s"
			}
			x, instances := startInstances(t, options)
			acceptAny(instances)
			instances[0].fault(t, fault)
			c := x.client(t, "h1")
			c.post(t, "/verify", randomCapsule(1<<20))
			c.post(t, "/verify", x.anyCapsule())
			want := []int{2, 0, 0}
			if bad {
				want = []int{1, 1, 0}
			}
			if got := received(instances); got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
				t.Errorf("the instances got %v capsules, want %v", got, want)
			}
		})
	}
	t.Run("a client that leaves", func(t *testing.T) {
		t.Parallel()
		x, instances := startInstances(t, "lb_policy first\nfail_duration 1m\nmax_capsule 200KiB")
		acceptAny(instances)
		capsule := x.anyCapsule()
		conn := x.slowUpload(t, capsule, 50_000)
		instances[0].await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
		conn.Close()
		x.waitForLog(t, withField("problem", "client-gone"))
		slow := x.dialRaw(t)
		slow.sendHead(t, postHead("/slow", len(capsule))...)
		slow.send(t, string(capsule[:50_000]))
		if a := slow.read(t, "POST"); a.Status != 408 {
			t.Errorf("a slow client got %d", a.Status)
		}
		c := x.client(t, "h1")
		if a := c.postStream(t, "/verify", strings.NewReader(strings.Repeat("x", 300<<10))); a.Status != 413 {
			t.Errorf("a capsule that is too large got %d", a.Status)
		}
		x.mustAccept(t, 1)
		if got := received(instances); got[0] != 4 {
			t.Errorf("the instances got %v capsules", got)
		}
	})
}

// TestOnlyInstanceStays promises that an only instance is not given up because a probe fails: it waits after real work.
func TestOnlyInstanceStays(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		health_uri /nowhere
		health_interval 20ms
	}
	reverse_proxy {$APP}
}`)
	healthy := `caddy_reverse_proxy_upstreams_healthy{handler="oz_instant",upstream="` + x.oz.Addr + `"}`
	if !strings.Contains(x.Metrics(t), healthy) {
		healthy = `caddy_reverse_proxy_upstreams_healthy{upstream="` + x.oz.Addr + `"}`
	}
	x.waitForLog(t, withMsg("status code out of tolerances"))
	x.mustAccept(t, 5)
	if n := len(x.oz.Received()); n != 5 {
		t.Errorf("%s: Oz got %d capsules", healthy, n)
	}
}

// TestDynamicInstances promises that upstreams may come from a name.
func TestDynamicInstances(t *testing.T) {
	t.Parallel()
	oz, app := startSandbox(t, sandbox.Options{AcceptAny: true}), newRawApp(t)
	_, port, err := net.SplitHostPort(oz.Addr)
	check(t, err)
	p := startCaddy(t, `
{$SITE} {
	log
	oz_instant /verify {
		session_token /session_token
		dynamic a {
			name localhost
			port {$PORT}
			versions ipv4
		}
	}
	reverse_proxy {$APP}
}`, withEnv("PORT", port), withEnv("APP", app.Addr))
	x := &chain{p, oz, app}
	x.mustAccept(t, 3)
	if n, err := strconv.Atoi(port); err != nil || n == 0 || len(oz.Received()) != 3 {
		t.Errorf("Oz got %d capsules", len(oz.Received()))
	}
	if a := x.client(t, "h1").get(t, "/session_token"); a.Status != 200 {
		t.Errorf("session token: got %d %s", a.Status, a.Body)
	}
}
