package integration_test

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const slotSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		capacity {
			slots {$SLOTS:2}
			queue {$QUEUE:2}
			wait {$WAIT:10s}
		}
	}
	reverse_proxy {$APP}
}`

const memorySite = `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_capsule 4MiB
		upload_timeout {$UPLOAD:20s}
		capacity {
			slots {$SLOTS:1}
			queue {$QUEUE:50}
			wait {$WAIT:10s}
			memory {$MEMORY:8MiB}
		}
	}
	reverse_proxy {$APP}
}`

const (
	capacityRefusals = "caddy_oz_instant_capacity_refusals_total"
	queuedMetric     = "caddy_oz_instant_queued"
	memoryMetric     = "caddy_oz_instant_memory_bytes"
	inFlightMetric   = "caddy_oz_instant_in_flight"
)

// awaitMetric returns when a metric has this value.
func (p *caddyProc) awaitMetric(t testing.TB, series string, want float64) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for p.Metric(t, series) != want { // Caddy tells nobody when a metric changes
		if time.Now().After(deadline) {
			t.Fatalf("%s is %v, want %v", series, p.Metric(t, series), want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// busy is row 11 for lack of capacity in the gateway.
func busy(a answer) verdict {
	v := unavailable("overloaded", 503)
	v.retryAfter = a.Header.Get("Retry-After")
	return v
}

func assertBusy(t testing.TB, a answer) {
	t.Helper()
	busy(a).assertProblem(t, a)
	if seconds, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 60 {
		t.Errorf("Retry-After is %q", a.Header.Get("Retry-After"))
	}
}

// TestCapacity promises that Oz never has more than slots capsules, that the queue is served in turn, and that a
// client that finds it full is told when to come back before a byte of the capsule is sent.
func TestCapacity(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, slotSite, withEnv("WAIT", "1m")) // as long as the test may take
	x.oz.fault(t, "hang")
	var all sync.WaitGroup
	results := make(chan answer, 10)
	for range 4 { // two in slots, two that wait
		all.Go(func() {
			c := x.client(t, "h1")
			if a, err := c.try(c.postRequest(t, "/verify", bytes.NewReader(x.oz.Capsule(sandbox.CapsuleSpec{})))); err == nil {
				results <- a
			}
		})
	}
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 2 })
	x.awaitMetric(t, queuedMetric, 2)
	x.awaitMetric(t, inFlightMetric, 2)

	x.eachProtocol(t, func(t *testing.T, c *client) {
		a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 2 << 20}))
		assertBusy(t, a)
	})
	conn := x.dialRaw(t)
	conn.sendHead(t, postHead("/verify", 1000, "Expect: 100-continue")...)
	assertBusy(t, conn.read(t, "POST")) // and no 100 before
	conn.ends(t)
	if n := x.Metric(t, capacityRefusals+`{cause="queue"}`); n != 4 {
		t.Errorf("%v refusals are counted, want 4", n)
	}
	if s := x.oz.Stats(); s.Received != 2 || s.PeakOpen != 2 {
		t.Errorf("Oz got %d capsules, %d at once", s.Received, s.PeakOpen)
	}
	x.oz.fault(t, "") // lets go of what hangs
	all.Wait()
	close(results)
	served := 0
	for a := range results {
		if a.Status == 200 {
			served++
		}
	}
	if s := x.oz.Stats(); served != 2 || s.PeakOpen != 2 {
		t.Errorf("%d of those who waited were served, %d at once", served, s.PeakOpen)
	}
	x.awaitMetric(t, queuedMetric, 0)
	x.awaitMetric(t, inFlightMetric, 0)
	line := x.waitForLog(t, withMsg("capsule decided"), having("no capacity"))
	if line.Get("level").Str != "info" || line.Get("decision").Str != "UNAVAILABLE" {
		t.Errorf("logged: %s", line)
	}
}

// TestCapacityWait promises that no capsule waits longer than wait, and that a client that gives up leaves its place.
func TestCapacityWait(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, slotSite, withEnv("SLOTS", "1"), withEnv("WAIT", "4s"))
	x.oz.fault(t, "hang")
	holder, c := x.client(t, "h2"), x.client(t, "h2")
	first := make(chan error, 1)
	go func() {
		_, err := holder.try(holder.postRequest(t, "/verify", bytes.NewReader(x.oz.Capsule(sandbox.CapsuleSpec{}))))
		first <- err
	}()
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })

	start := time.Now()
	a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}))
	assertBusy(t, a)
	if waited := time.Since(start); waited < 3900*time.Millisecond || waited > 12*time.Second { // on a busy machine: by default it's 15
		t.Errorf("refused after %s, want 4s", waited)
	}
	if n := x.Metric(t, capacityRefusals+`{cause="wait"}`); n != 1 {
		t.Errorf("%v refusals are counted", n)
	}

	// A client that leaves the queue leaves its place.
	check(t, x.Reload(strings.Replace(slotSite, "{$WAIT:10s}", "1m", 1))) // it must not have been told to go
	req := c.postRequest(t, "/verify", bytes.NewReader(x.oz.Capsule(sandbox.CapsuleSpec{})))
	ctx, leave := contextWithCancel(t)
	gone := make(chan error, 1)
	go func() { _, err := c.try(req.WithContext(ctx)); gone <- err }()
	x.awaitMetric(t, queuedMetric, 1)
	leave()
	if err := <-gone; err == nil {
		t.Error("the client that left got an answer")
	}
	x.awaitMetric(t, queuedMetric, 0)
	x.waitForLog(t, withMsg("capsule refused"), withField("problem", "client-gone"))
	x.oz.fault(t, "")
	<-first
	x.waitForLogs(t, 3, isAccess)
	accepted.assert(t, x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"})) }), "s")
	if s := x.oz.Stats(); s.Received != 2 {
		t.Errorf("Oz got %d capsules", s.Received)
	}
}

// TestCapacityOverReloads promises that slots and queue are one over a reload: what the old configuration has in progress counts, and
// new limits hold at once.
func TestCapacityOverReloads(t *testing.T) {
	t.Parallel()
	site := func(slots, queue string) string {
		return strings.NewReplacer("{$SLOTS:2}", slots, "{$QUEUE:2}", queue).Replace(slotSite)
	}
	x := startChain(t, sandbox.Options{}, site("1", "0"))
	x.oz.fault(t, "hang")
	var all sync.WaitGroup
	post := func() answer {
		c := x.client(t, "h1")
		a, err := c.try(c.postRequest(t, "/verify", bytes.NewReader(x.oz.Capsule(sandbox.CapsuleSpec{}))))
		if err != nil {
			t.Error(err)
		}
		return a
	}
	all.Go(func() { post() })
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
	check(t, x.Reload(site("1", "0")))
	assertBusy(t, post())
	check(t, x.Reload(site("2", "0")))
	all.Go(func() { post() })
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 2 })
	assertBusy(t, post())
	check(t, x.Reload(site("1", "0")))
	assertBusy(t, post())
	// A configuration that fails to load changes nothing.
	if err := x.Reload(site("9", "0") + "\nhttp://bad.test:{$HTTP_PORT} {\n\toz_instant http://oz {\n\t\taccess_token {env.NOT_SET}\n\t}\n}"); err == nil {
		t.Error("a bad configuration was loaded")
	}
	assertBusy(t, post())
	x.oz.fault(t, "")
	all.Wait()
	x.awaitMetric(t, inFlightMetric, 0)
	if a := post(); a.Status != 200 {
		t.Errorf("in the end: %d %s", a.Status, a.Body)
	}
}

// TestCapacityConfig promises that limits that cannot be meant do not load.
func TestCapacityConfig(t *testing.T) {
	t.Parallel()
	block := func(options string) string {
		return "oz_instant /verify http://oz {\n capacity {\n" + options + "\n}\n}\n"
	}
	for name, test := range map[string]struct{ site, want string }{
		"too little memory": {block("memory 1MiB"), "cannot hold a capsule of max_capsule"},
		"two that differ":   {block("slots 3") + strings.Replace(block("slots 4"), "/verify", "/other", 1), "want the same in each"},
	} {
		if err := validate(t, "{$SITE} {\n"+test.site+"}"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := validate(t, "{$SITE} {\n"+block("slots 3")+strings.Replace(block("slots 3"), "/verify", "/other", 1)+"}"); err != nil {
		t.Error(err)
	}
}

// TestCapacityUpstreamsFull promises that reverse_proxy's own limits count: when all upstreams are at theirs, Oz is busy, not down.
func TestCapacityUpstreamsFull(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		unhealthy_request_count 1
	}
	reverse_proxy {$APP}
}`)
	x.oz.fault(t, "hang")
	c := x.client(t, "h1")
	var all sync.WaitGroup
	all.Go(func() { c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) })
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
	j := x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) })
	v := unavailable("overloaded", 503)
	v.retryAfter = "any"
	v.assert(t, j, "")
	x.oz.fault(t, "")
	all.Wait()
}

// slowUpload begins a capsule's POST on a connection of its own, and sends so much of it.
func (x *chain) slowUpload(t testing.TB, capsule []byte, n int) *rawConn {
	t.Helper()
	conn := x.dialRaw(t)
	conn.sendHead(t, postHead("/verify", len(capsule))...)
	conn.send(t, string(capsule[:n]))
	return conn
}

// TestMemory promises that with memory a phone that stalls holds no slot, and that without it, it does.
func TestMemory(t *testing.T) {
	t.Parallel()
	for site, waits := range map[string]bool{memorySite: false, strings.Replace(slotSite, "{$SLOTS:2}", "1", 1): true} {
		x := startChain(t, sandbox.Options{}, site, withEnv("WAIT", "2s"))
		slow := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 1 << 20, EventSession: "slow"})
		conn := x.slowUpload(t, slow, len(slow)/2)
		if waits {
			x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
		} else {
			x.awaitMetric(t, memoryMetric, float64(len(slow)/2/(32<<10)+1)*(32<<10))
		}
		rest := slow[len(slow)/2:]
		x.eachProtocol(t, func(t *testing.T, c *client) {
			a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 3 << 20}))
			if waits {
				assertBusy(t, a)
			} else if a.Status != 200 {
				t.Errorf("beside a slow phone: %d %s", a.Status, a.Body)
			}
			const piece = 64 << 10 // which gives it back all of the patience that is had with it
			conn.send(t, string(rest[:piece]))
			rest = rest[piece:]
		})
		conn.send(t, string(rest))
		if a := conn.read(t, "POST"); a.Status != 200 {
			t.Errorf("the slow phone got %d %s", a.Status, a.Body)
		}
		if got := x.app.Last(t).Value("X-Oz-Event-Session-Id"); got != "slow" {
			t.Errorf("the last decision is that of %q", got)
		}
		if !waits {
			x.awaitMetric(t, memoryMetric, 0)
		}
	}
}

// TestMemoryCapsule promises Oz every capsule byte for byte, with its length, also when the client did not say it.
func TestMemoryCapsule(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, memorySite)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, size := range []int{1, 32<<10 - 1, 32 << 10, 32<<10 + 1, 1 << 20, 4 << 20} {
			for _, length := range []int64{int64(size), -1} {
				capsule := randomCapsule(size)
				x.oz.quiet(t)
				x.oz.Forget()
				req := c.postRequest(t, "/verify", bytes.NewReader(capsule))
				req.ContentLength = length
				if a := c.do(t, req); a.Status != 200 {
					t.Fatalf("%d of %d: got %d %s", size, length, a.Status, a.Body)
				}
				x.oz.quiet(t)
				if got := x.oz.Received()[0]; got.Digest != digest(capsule) || got.ContentLength != int64(size) || !got.Complete {
					t.Errorf("%d of %d: Oz got %d bytes of %d", size, length, got.Size, got.ContentLength)
				}
			}
		}
		for _, length := range []int64{4<<20 + 1, -1} {
			req := c.postRequest(t, "/verify", io.LimitReader(endless{}, 4<<20+1))
			req.ContentLength = length
			v := verdict{http: 413, reason: "capsule-too-large"}
			v.assertProblem(t, c.do(t, req))
		}
	})
	x.awaitMetric(t, memoryMetric, 0)
}

// endless is a body of zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestMemoryBudget promises that capsules together never hold more than memory, and that those that must wait for it lose nothing.
func TestMemoryBudget(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AnalysisTime: 20 * time.Millisecond}, memorySite, withEnv("SLOTS", "2"), withEnv("WAIT", "20s"))
	done := make(chan struct{})
	var most float64
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				most = max(most, x.Metric(t, memoryMetric))
			}
		}
	})
	var all sync.WaitGroup
	for i := range 24 {
		all.Go(func() {
			c := x.client(t, protocols[i%3])
			if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 3 << 20})); a.Status != 200 {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
		})
	}
	all.Wait()
	close(done)
	watch.Wait()
	if most > 8<<20 || most == 0 {
		t.Errorf("%v bytes were held", most)
	}
	if n := len(x.app.Requests()); n != 24 {
		t.Errorf("the app got %d decisions", n)
	}
	for name := range x.files(t) {
		if strings.Contains(name, "capsule") || strings.Contains(name, "tmp") {
			t.Errorf("there is %s", name)
		}
	}
	x.awaitMetric(t, memoryMetric, 0)
}

// TestMemoryStalled promises that uploads that will not be done in time do not keep others out: they must go when others wait.
func TestMemoryStalled(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, memorySite, withEnv("UPLOAD", "6s"), withEnv("WAIT", "20s"))
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 4<<20 - 4096})
	var stalled []*rawConn
	for range 2 { // together they hold nearly all
		stalled = append(stalled, x.slowUpload(t, capsule, 3900<<10))
	}
	x.awaitMetric(t, memoryMetric, float64(2*((3900<<10)/(32<<10)+1)*(32<<10)))
	c := x.client(t, "h1")
	if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 3 << 20})); a.Status != 200 {
		t.Errorf("beside the stalled: %d %s", a.Status, a.Body)
	}
	for _, conn := range stalled {
		v := verdict{http: 408, reason: "upload-timeout"}
		v.assertProblem(t, conn.read(t, "POST"))
		conn.ends(t)
	}
	x.awaitMetric(t, memoryMetric, 0)
	if s := x.oz.Stats(); s.Received != 1 {
		t.Errorf("Oz got %d capsules", s.Received)
	}
}

// TestMemoryClientLeaves promises that a client that leaves gives its memory back, and that one that leaves after its upload is
// analysed all the same.
func TestMemoryClientLeaves(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, memorySite)
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 1 << 20, EventSession: "s"})
	conn := x.slowUpload(t, capsule, len(capsule)-1)
	x.awaitMetric(t, memoryMetric, float64((len(capsule)-1)/(32<<10)+1)*(32<<10))
	conn.Close()
	x.awaitMetric(t, memoryMetric, 0)
	x.waitForLog(t, withMsg("capsule refused"), withField("problem", "client-gone"))
	x.app.None(t)

	x.oz.fault(t, "hang")
	other := x.client(t, "h1")
	var all sync.WaitGroup
	all.Go(func() { other.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) }) // takes the slot
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
	conn = x.slowUpload(t, capsule, len(capsule))
	x.awaitMetric(t, queuedMetric, 1)
	conn.Close()
	x.oz.fault(t, "")
	all.Wait()
	line := x.waitForLog(t, withMsg("capsule decided"), withField("event_session_id", "s"))
	if line.Get("decision").Str != "SUCCESS" || !line.Get("client_gone").Bool() {
		t.Errorf("logged: %s", line)
	}
	x.app.Wait(t, 1)
	if got := x.app.Last(t).Value("X-Oz-Decision"); got != "SUCCESS" {
		t.Errorf("the app got %q", got)
	}
	x.awaitMetric(t, memoryMetric, 0)
}
