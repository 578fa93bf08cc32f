package integration_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// reloadSite is one of many configs, all of which do the same and none of which is like the one before.
func reloadSite(number int) string {
	return fmt.Sprintf(`
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		upload_timeout %ds
	}
	header X-Config %d
	reverse_proxy {$APP}
}`, 20+number, number)
}

// TestReloadDuringUpload promises that a new config, loaded in the middle of a capsule, changes nothing for it: it is analysed once
// and its decision reaches the app. What was counted before counts on.
func TestReloadDuringUpload(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, "{\n\tmetrics\n}"+reloadSite(0))
	number := 0
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, unsaid := range []bool{false, true} {
			number++
			x.oz.Forget()
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s", PayloadSize: 400_000})
			body, hold := io.Pipe()
			req := c.postRequest(t, "/verify", body)
			if req.ContentLength = int64(len(capsule)); unsaid {
				req.ContentLength = -1
			}
			go func() {
				half := len(capsule) / 2
				hold.Write(capsule[:half])
				// The client's own buffers may keep a little of it.
				x.oz.await(t, func(s sandbox.Stats) bool { return s.Bytes > int64(half)/2 })
				if err := x.Reload("{\n\tmetrics\n}" + reloadSite(number)); err != nil {
					t.Errorf("the reload failed: %v", err)
				}
				hold.Write(capsule[half:])
				hold.Close()
			}()
			j := x.observe(t, func() answer { return c.do(t, req) })
			accepted.assert(t, j, "s")
			if config := j.answer.Header.Get("X-Config"); config != fmt.Sprint(number-1) {
				t.Errorf("the config that served it is %s, want the one that it began with", config)
			}
			if a := x.client(t, c.proto).get(t, "/"); a.Header.Get("X-Config") != fmt.Sprint(number) {
				t.Errorf("the next request was served by config %s", a.Header.Get("X-Config"))
			}
			if n := len(x.oz.Received()); n != 1 {
				t.Errorf("Oz got %d capsules", n)
			}
			success := decisionsTotal + `{decision="SUCCESS",reason=""}`
			if n := x.Metric(t, success); n != float64(number) {
				t.Errorf("%s is %v after %d capsules", success, n, number)
			}
			x.assertIdle(t)
		}
	})
}

// TestReloadDuringAnalysis promises the same for a capsule that Oz has and did not answer yet, and for a client that has left by then.
func TestReloadDuringAnalysis(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, reloadSite(0))
	number := 0
	for name, begin := range leavers {
		number++
		t.Run(name, func(t *testing.T) {
			x.leaveDuringAnalysis(t, "/verify", begin, func() { check(t, x.Reload(reloadSite(number))) })
			if events := x.logLines(withLogger("events"), withField("name", "oz_instant.decision")); len(events) != 0 {
				t.Errorf("events of a config that has ended: %v", events)
			}
		})
	}
}

// TestReloadsUnderLoad promises that twenty reloads in a row, with uploads in progress all the time, lose no capsule and have none
// analysed twice: each comes to Oz once, to the app once, with a decision, and is counted once.
func TestReloadsUnderLoad(t *testing.T) {
	t.Parallel()
	const reloads, clients = 20, 6
	x := startChain(t, sandbox.Options{}, "{\n\tmetrics\n}"+reloadSite(0))
	done := make(chan struct{})
	var load sync.WaitGroup
	var mu sync.Mutex
	var sessions []string
	for i := range clients {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				session := fmt.Sprintf("client-%d-%d", i, n)
				x.uploadOverReload(t, protocols[i%len(protocols)], session)
				mu.Lock()
				sessions = append(sessions, session)
				mu.Unlock()
			}
		})
	}
	for number := range reloads {
		began := x.oz.Stats().Received
		x.oz.await(t, func(s sandbox.Stats) bool { return s.Received > began && s.Open > 0 })
		if err := x.Reload("{\n\tmetrics\n}" + reloadSite(number+1)); err != nil {
			t.Errorf("reload %d: %v", number, err)
		}
	}
	close(done)
	load.Wait()

	requests := map[string]int{}
	for _, r := range x.app.Requests() {
		requests[r.Value("X-Oz-Event-Session-Id")]++
		if r.Value("X-Oz-Decision") != "SUCCESS" {
			t.Errorf("the app got:\n%s", r.Raw())
		}
	}
	for _, session := range sessions {
		if requests[session] != 1 {
			t.Errorf("the app got %s %d times", session, requests[session])
		}
	}
	if n := len(x.oz.Received()); n != len(sessions) || len(requests) != n || n < reloads {
		t.Errorf("there were %d capsules; Oz got %d and the app %d", len(sessions), n, len(requests))
	}
	x.assertOnlyCounted(t, decisionsTotal+`{decision="SUCCESS",reason=""}`, len(sessions))
	x.assertIdle(t)
	if text := x.Metrics(t); !strings.Contains(text, fmt.Sprintf("caddy_oz_instant_capsule_bytes_count %d\n", len(sessions))) {
		t.Errorf("not all capsules were measured, of %d", len(sessions))
	}
}

// uploadOverReload posts a capsule, with a connection of its own. A connection that Caddy closes before it has read a request of it,
// as happens when it changes its listeners, is tried again, as any client does. To try again what Oz has had would show: a
// session token is good for one capsule.
func (x *chain) uploadOverReload(t testing.TB, proto, session string) {
	t.Helper()
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: session, PayloadSize: 200_000})
	var err error
	for range 10 {
		c := x.client(t, proto)
		var a answer
		a, err = c.try(c.postRequest(t, "/verify", &pacedReader{data: bytes.NewReader(capsule)}))
		c.CloseIdleConnections()
		if err == nil {
			if a.Status != 200 {
				t.Errorf("%s over %s: %d %s", session, proto, a.Status, a.Body)
			}
			return
		}
	}
	t.Errorf("%s over %s: %v", session, proto, err)
}

// pacedReader gives a capsule in small pieces, as a phone does.
type pacedReader struct{ data *bytes.Reader }

func (r *pacedReader) Read(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	return r.data.Read(p[:min(len(p), 8<<10)])
}
