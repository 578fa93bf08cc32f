package integration_test

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const (
	loadClients = 50
	loadSlots   = 20
)

// loadSite changes a little with each reload, so that each is one. Connections to the app are not kept: of those, a reload leaves
// some idle, for two minutes, in any Caddy.
func loadSite(n int) string {
	return fmt.Sprintf(`
{$SITE} {
	header X-Config %d
	oz_instant /verify {$OZ} {
		session_token /session_token
		credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}
		health_uri /api/version
		health_interval 100ms
		max_capsule 4MiB
		capacity {
			slots %d
			queue 1000
			wait 1m
			memory 64MiB
		}
	}
	reverse_proxy {$APP} {
		transport http {
			keepalive off
		}
	}
}`, n, loadSlots)
}

// TestReloadUnderManyUploads promises that a hundred reloads under the uploads of fifty clients lose no capsule and have none
// analysed twice, that limits, tokens and metrics stay whole, and that neither goroutines nor memory are left behind.
//
// With each reload Caddy closes idle connections, and a client that begins a request on one at that moment must begin it again. That
// is safe as long as Caddy had not taken it: if it had, the session token would be spent, and Oz would refuse the capsule.
func TestReloadUnderManyUploads(t *testing.T) {
	t.Parallel()
	oz := accountOptions()
	oz.AnalysisTime = 100 * time.Millisecond // so that all clients wait at Oz or for it at each reload, and don't take the CPU from it
	x := startChain(t, oz, loadSite(0), withAccount...)
	warmUp := x.client(t, "h1")
	for range 20 {
		warmUp.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}))
	}
	check(t, x.Reload(loadSite(-1)))
	x.oz.quiet(t)
	goroutines, heap := x.goroutineCount(t), x.heap(t)
	x.app.Forget()

	done := make(chan struct{})
	var sent atomic.Int64
	var clients sync.WaitGroup
	for i := range loadClients {
		clients.Go(func() {
			c := x.client(t, protocols[i%len(protocols)])
			defer c.CloseIdleConnections()
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				session := fmt.Sprintf("load-%d-%d", i, n)
				capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 50_000, EventSession: session})
				if a := postUntilTaken(t, c, capsule); a.Status != 200 {
					t.Errorf("%s: got %d %s", session, a.Status, a.Body)
					return
				}
				sent.Add(1)
			}
		})
	}
	reloads := often(100)
	for n := range reloads {
		check(t, x.Reload(loadSite(n+1)))
	}
	close(done)
	clients.Wait()

	sessions := map[string]int{}
	for _, r := range x.app.Requests() {
		sessions[r.Value("X-Oz-Event-Session-Id")]++
	}
	for session, n := range sessions {
		if n != 1 {
			t.Errorf("the app got %d decisions of %s", n, session)
		}
	}
	if n := int(sent.Load()); len(sessions) != n || n < reloads {
		t.Errorf("%d capsules were accepted, the app got decisions of %d", n, len(sessions))
	}
	if n := x.Metric(t, `caddy_oz_instant_decisions_total{decision="SUCCESS",reason=""}`); int64(n) != sent.Load()+20 {
		t.Errorf("%v decisions are counted, %d were made", n, sent.Load()+20)
	}
	// Of analyses, since a capsule is open at Oz until after the gateway has the whole answer.
	if s := x.oz.Stats(); s.PeakBusy > loadSlots || s.Logins != 1 {
		t.Errorf("Oz had %d analyses at once and %d log-ins", s.PeakBusy, s.Logins)
	}
	for _, series := range []string{inFlightMetric, queuedMetric, memoryMetric} {
		x.awaitMetric(t, series, 0)
	}
	t.Logf("%d capsules over %d reloads", sent.Load(), reloads)
	x.settles(t, "goroutines", goroutines+20, x.goroutineCount)
	x.settles(t, "bytes of heap", heap+32<<20, x.heap)
}

// postUntilTaken brings a capsule on its way, slowly, until a gateway takes it. If one took it without an answer, it was analysed, and
// the same capsule is refused the next time.
func postUntilTaken(t testing.TB, c *client, capsule []byte) (a answer) {
	err := io.EOF
	for tries := 0; err != nil && tries < 20; tries++ {
		// An HTTP/3 server that shuts down may leave what comes at that moment without any answer, on a connection that stays.
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		body := &slowReader{data: capsule, piece: len(capsule)/4 + 1, pause: 10 * time.Millisecond}
		a, err = c.try(c.postRequest(t, "/verify", body).WithContext(ctx))
		if cancel(); err != nil {
			c.CloseIdleConnections()
		}
	}
	if err != nil {
		t.Error(err)
	}
	return a
}

// settles fails the test unless a measurement comes down to most before long.
func (p *caddyProc) settles(t testing.TB, what string, most int, measure func(testing.TB) int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for n := measure(t); n > most; n = measure(t) {
		if time.Now().After(deadline) {
			t.Errorf("%d %s are left, want at most %d\n%.5000s", n, what, most, p.AdminGet(t, "/debug/pprof/goroutine?debug=1"))
			return
		}
		time.Sleep(100 * time.Millisecond) // connections close by themselves
	}
}

var goroutineCount = regexp.MustCompile(`^(\d+) @ `)

// goroutineCount counts goroutines, less those by which Caddy's storage keeps a lock fresh: each reload leaves one for a while.
func (p *caddyProc) goroutineCount(t testing.TB) (total int) {
	t.Helper()
	for stack := range strings.SplitSeq(p.AdminGet(t, "/debug/pprof/goroutine?debug=1"), "\n\n") {
		if head, rest, more := strings.Cut(stack, "\n"); more && strings.HasPrefix(head, "goroutine profile:") {
			stack = rest
		}
		match := goroutineCount.FindStringSubmatch(stack)
		if match == nil || strings.Contains(stack, "keepLockfileFresh") {
			continue
		}
		n, err := strconv.Atoi(match[1])
		check(t, err)
		total += n
	}
	if total == 0 {
		t.Fatal("no goroutines are to be seen")
	}
	return total
}

// heap is what is in use after a garbage collection.
func (p *caddyProc) heap(t testing.TB) int {
	t.Helper()
	p.AdminGet(t, "/debug/pprof/heap?gc=1")
	return int(p.Metric(t, "go_memstats_heap_inuse_bytes"))
}

// slowReader is a body that comes piece by piece.
type slowReader struct {
	data  []byte
	piece int
	pause time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	time.Sleep(r.pause)
	n := copy(p, r.data[:min(r.piece, len(r.data))])
	r.data = r.data[n:]
	return n, nil
}
