package integration_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// anyOf accepts a capsule as often as it comes, so that only the gateway can tell.
var anyOf = sandbox.Options{ReuseTokens: true}

// guardedSite is a site with two blocks, that stream or receive first. Both have the same guard. Where a test has Oz hang, TIMEOUT is
// how long that takes; everywhere else it is longer than a busy machine stands still.
const guardedSite = `
{
	metrics
}
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		timeout {$TIMEOUT:1m}
		replay_guard {$STORE:memory} {
			{$GUARD:window 10m}
		}
	}
	oz_instant /buffered {$OZ} {
		timeout {$TIMEOUT:1m}
		header_up X-Way buffered
		capacity {
			slots 2
			queue 50
			memory 64MiB
		}
		replay_guard {$STORE:memory} {
			{$GUARD:window 10m}
		}
	}
	reverse_proxy {$APP}
}`

var replayed = verdict{decision: "INVALID", reason: "replayed", http: 409}

var noStore = verdict{decision: "UNAVAILABLE", reason: "store_unavailable", http: 503}

// assertReplayed sends a capsule that was decided before.
func (x *chain) assertReplayed(t testing.TB, c *client, path string, capsule []byte) {
	t.Helper()
	j := x.observeInTime(t, func() answer { return c.post(t, path, capsule) })
	replayed.assert(t, j, "")
	if word := j.decided[0].Get("replay_guard").Str; word != "replayed" {
		t.Errorf("logged: %s", j.decided[0])
	}
	for name := range j.answer.Header {
		if strings.HasPrefix(name, "X-Oz") {
			t.Errorf("the client got %s", name)
		}
	}
}

// observeInTime is observe, up to five times as long as the store takes longer than its second, which no option changes: a machine that
// stands still for so long shows nothing.
func (x *chain) observeInTime(t testing.TB, send func() answer) (j observed) {
	t.Helper()
	for range 5 {
		if j = x.observe(t, send); len(j.decided) != 1 || !tookTooLong(j.decided[0]) {
			break
		}
	}
	return j
}

// tookTooLong reports whether a line of the log is about a store that took too long.
func tookTooLong(line logLine) bool {
	text := line.Get("error").Str
	return strings.Contains(text, "longer than a second") || strings.Contains(text, "timeout") || strings.Contains(text, "deadline exceeded")
}

// TestReplay promises that a capsule counts once in the whole gateway: over all protocols, in another block, with another Oz, and
// after a reload.
func TestReplay(t *testing.T) {
	t.Parallel()
	x := startChain(t, anyOf, guardedSite)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, path := range []string{"/verify", "/buffered"} {
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s", PayloadSize: 300_000})
			accepted.assert(t, x.observe(t, func() answer { return c.post(t, path, capsule) }), "s")
			before := len(x.oz.Received())
			x.assertReplayed(t, c, path, capsule)
			if asked := len(x.oz.Received()) - before; path == "/buffered" && asked != 0 {
				t.Errorf("Oz was asked about it %d times", asked)
			}
			x.assertReplayed(t, c, "/verify", capsule)
			x.assertReplayed(t, c, "/buffered", capsule)
		}
	})
	c := x.client(t, "h1")
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s", Outcome: sandbox.Declined})
	if a := c.post(t, "/verify", capsule); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	for range 3 {
		check(t, x.Reload(strings.Replace(guardedSite, "timeout {$TIMEOUT:1m}", "timeout 2m", 1)))
	}
	x.assertReplayed(t, c, "/verify", capsule)
	x.assertReplayed(t, c, "/buffered", capsule)
	capsule[len(capsule)-1] ^= 1 // Oz refuses this one, and that counts, too
	if a := c.post(t, "/buffered", capsule); a.Status != 400 {
		t.Errorf("a damaged one: %d %s", a.Status, a.Body)
	}
	x.assertReplayed(t, c, "/buffered", capsule)
}

// TestReplayPassed promises an app that handles INVALID the problem document, and nothing of the folder.
func TestReplayPassed(t *testing.T) {
	t.Parallel()
	x := startChain(t, anyOf, strings.ReplaceAll(guardedSite, "timeout {$TIMEOUT:1m}", "pass INVALID"))
	c := x.client(t, "h1")
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"})
	c.post(t, "/verify", capsule)
	j := x.observe(t, func() answer { return c.post(t, "/verify", capsule) })
	assertReserved(t, j.app[0], map[string]string{"X-Oz-Decision": "INVALID", "X-Oz-Reason": "replayed"})
	if body := j.app[0].Body; !strings.HasSuffix(gjson.GetBytes(body, "type").Str, ":replayed") || gjson.GetBytes(body, "folder_id").Exists() {
		t.Errorf("the app got %s", body)
	}
	if line := j.decided[0]; !isUUID(line.Get("folder_id").Str) || line.Get("event_session_id").Str != "s" {
		t.Errorf("the log does not say which folder nobody got: %s", line)
	}
}

// TestReplayIsReleased promises an honest client that the same capsule can be sent again when nothing was decided.
func TestReplayIsReleased(t *testing.T) {
	t.Parallel()
	x := startChain(t, anyOf, guardedSite, withEnv("TIMEOUT", "2s"))
	c := x.client(t, "h1")
	for _, fault := range []string{"reset", "close", "cut", "truncated", "status:503", "html:500", "status:429", "reset-body:100KiB", "hang"} {
		for _, path := range []string{"/verify", "/buffered"} {
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s", PayloadSize: 300_000})
			x.oz.fault(t, fault)
			if a := c.post(t, path, capsule); a.Status < 500 {
				t.Errorf("%s, %s: %d %s", path, fault, a.Status, a.Body)
			}
			x.oz.fault(t, "")
			a := c.post(t, path, capsule)
			for tries := 1; a.Status == 504 && tries < 5; tries++ { // on a busy machine: again nothing was decided
				a = c.post(t, path, capsule)
			}
			if a.Status != 200 {
				t.Errorf("%s, after %s: %d %s", path, fault, a.Status, a.Body)
			}
		}
	}
}

// twice posts a capsule twice at the same instant, to two sites, and returns the two answers' statuses, sorted.
func twice(t testing.TB, first, second *client, path string, capsule []byte) []int {
	t.Helper()
	var all sync.WaitGroup
	statuses := make([]int, 2)
	begin := make(chan struct{})
	for i, c := range []*client{first, second} {
		all.Go(func() {
			<-begin
			a, err := c.try(c.postRequest(t, path, strings.NewReader(string(capsule))))
			if err == nil {
				statuses[i] = a.Status
			}
		})
	}
	close(begin)
	all.Wait()
	slices.Sort(statuses)
	return statuses
}

// TestReplayAtOnce promises that of two capsules at the same instant one counts.
func TestReplayAtOnce(t *testing.T) {
	t.Parallel()
	x := startChain(t, anyOf, guardedSite)
	for _, path := range []string{"/verify", "/buffered"} {
		for range 25 {
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{})
			if got := twice(t, x.client(t, "h1"), x.client(t, "h1"), path, capsule); !slices.Equal(got, []int{200, 409}) {
				t.Errorf("%s: %v", path, got)
			}
		}
	}
	if n := len(x.app.Requests()); n != 50 {
		t.Errorf("the app got %d requests for 50 capsules", n)
	}
}

// TestReplayAlso promises that a session counts once even if the capsule has other bytes, and that a folder without one counts for
// nothing.
func TestReplayAlso(t *testing.T) {
	t.Parallel()
	x := startChain(t, anyOf, guardedSite, withEnv("GUARD", "also meta_data.event_session_id"))
	c := x.client(t, "h1")
	// A DECLINED one does not use the session up.
	spec := sandbox.CapsuleSpec{EventSession: "session-1", Outcome: sandbox.Declined}
	if a := c.post(t, "/verify", x.oz.Capsule(spec)); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	spec.Outcome = sandbox.Success
	accepted.assert(t, x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(spec)) }), "session-1")
	for _, path := range []string{"/verify", "/buffered"} {
		x.assertReplayed(t, c, path, x.oz.Capsule(spec))
	}
	x.assertNoCanary(t, []byte("a capsule's canary"))
}

// TestReplayWhileInProgress promises that a second capsule is refused while the first is in progress, and that a client that leaves
// before its capsule is whole has used nothing up.
func TestReplayWhileInProgress(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{ReuseTokens: true}, guardedSite)
	c := x.client(t, "h1")
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 300_000})
	for _, path := range []string{"/verify", "/buffered"} {
		l := leavers["h1 closes"](t, x.caddyProc, path, len(capsule))
		l.send(capsule[:len(capsule)-1])
		x.beforeLeaving(t, 0)
		l.leave()
	}
	x.waitForLogs(t, 2, withMsg("capsule refused"))
	x.oz.quiet(t)
	release := x.oz.HoldAnalyses()
	first := make(chan answer, 1)
	go func() { first <- c.post(t, "/verify", capsule) }()
	// Its claim is made once it is whole: until then, the second can come first.
	x.awaitMetric(t, `caddy_oz_instant_replay_store_seconds_count{call="claim"}`, 1)
	if a := c.post(t, "/buffered", capsule); a.Status != 409 {
		t.Errorf("the second got %d %s", a.Status, a.Body)
	}
	release()
	if a := <-first; a.Status != 200 {
		t.Errorf("the first got %d %s", a.Status, a.Body)
	}
}
