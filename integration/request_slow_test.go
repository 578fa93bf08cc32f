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

// slowUpload is the upload_timeout at /slow in limitedSite.
const slowUpload = time.Second

// stallingBody gives its bytes, with a pause before each if there is one, and then nothing more until it is closed.
type stallingBody struct {
	data   *bytes.Reader
	pause  time.Duration
	closed chan struct{}
	close  func()
}

func newStallingBody(data []byte, pause time.Duration) *stallingBody {
	closed := make(chan struct{})
	return &stallingBody{bytes.NewReader(data), pause, closed, sync.OnceFunc(func() { close(closed) })}
}

func (b *stallingBody) Read(p []byte) (int, error) {
	pause := b.pause
	if b.data.Len() == 0 {
		pause = patience // and an end to it, as clients wait for their body before they give up
	} else if pause > 0 {
		p = p[:1]
	}
	if pause > 0 {
		select {
		case <-time.After(pause):
		case <-b.closed:
			return 0, io.ErrClosedPipe
		}
	}
	if b.data.Len() == 0 {
		return 0, io.ErrNoProgress
	}
	return b.data.Read(p)
}

func (b *stallingBody) Close() error {
	b.close()
	return nil
}

// testRequestSlowUpload promises 408, and no decision, to a client that does not bring its capsule within upload_timeout: one that
// falls silent at whatever point, and one that drips. Whatever was taken for it is given back.
func testRequestSlowUpload(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	const size = 100_000
	clients := 0
	var group sync.WaitGroup
	start := time.Now()
	run := func(name string, send func() (answer, error)) {
		clients++
		group.Go(func() {
			a, err := send()
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			refused("upload-timeout", 408).assertProblem(t, a)
			if took := time.Since(start); took < slowUpload || took > patience/2 {
				t.Errorf("%s: the answer came after %v", name, took)
			}
		})
	}
	for _, proto := range protocols {
		c := x.client(t, proto)
		c.Timeout = patience
		for _, length := range []int64{size, -1} {
			for _, offset := range []int{0, 1, size / 2, size - 1, size} {
				if offset == size && length > 0 {
					continue // that is all of it
				}
				req := c.postRequest(t, "/slow", newStallingBody(make([]byte, offset), 0))
				req.ContentLength = length
				run(fmt.Sprintf("%s silent after %d of %d", proto, offset, length), func() (answer, error) { return c.try(req) })
			}
			req := c.postRequest(t, "/slow", newStallingBody(make([]byte, size), 20*time.Millisecond))
			req.ContentLength = length
			run(fmt.Sprintf("%s dripping of %d", proto, length), func() (answer, error) { return c.try(req) })
		}
	}
	for _, part := range []string{
		"5", "5\r", "5\r\n", "5\r\ncapsu", "5\r\ncapsu\r", "5\r\ncapsu\r\n", "5;ext", "5\r\ncapsu\r\n0", "5\r\ncapsu\r\n0\r\n", "5\r\ncapsu\r\n0\r\nX-Late: yes\r\n",
	} {
		conn := x.dialRaw(t)
		conn.send(t, strings.Join(postHead("/slow", -1), "\r\n")+"\r\n\r\n"+part) // at once: else it may be refused by then
		run(fmt.Sprintf("h1 silent after %q", part), func() (answer, error) { return conn.tryRead("POST") })
	}
	group.Wait()

	lines := x.waitForLogs(t, clients, isRefused)
	for _, line := range lines {
		if line.Get("problem").Str != "upload-timeout" {
			t.Errorf("logged: %s", line)
		}
	}
	x.assertOnlyCounted(t, refusalsTotal+`{problem="upload-timeout"}`, clients)
	x.assertIdle(t)
	x.assertNoWholeCapsule(t, clients)
	x.app.None(t)
}

// assertOnlyCounted fails the test unless so much was counted in this series and nothing in any other.
func (p *caddyProc) assertOnlyCounted(t testing.TB, series string, n int) {
	t.Helper()
	for name, value := range p.counts(t) {
		want := 0.0
		if name == series {
			want = float64(n)
		}
		if value != want {
			t.Errorf("%s is %v, want %v", name, value, want)
		}
	}
}

// assertIdle fails the test if a capsule still counts as in flight.
func (p *caddyProc) assertIdle(t testing.TB) {
	t.Helper()
	if n := p.Metric(t, "caddy_oz_instant_in_flight"); n != 0 {
		t.Errorf("%v capsules are in flight", n)
	}
}

// TestRequestSlowAnalysis promises that upload_timeout is the client's alone: Oz may take longer over a capsule that came in time.
func TestRequestSlowAnalysis(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AnalysisTime: slowUpload + 300*time.Millisecond}, limitedSite)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		t.Parallel()
		for name, post := range map[string]func(testing.TB, string, []byte) answer{
			"length": func(t testing.TB, path string, capsule []byte) answer { return c.post(t, path, capsule) },
			"no length": func(t testing.TB, path string, capsule []byte) answer {
				return c.postStream(t, path, bytes.NewReader(capsule))
			},
		} {
			a := post(t, "/slow", x.oz.Capsule(sandbox.CapsuleSpec{}))
			for tries := 1; a.Status == 408 && tries < 5; tries++ { // on a busy machine, the upload may take too long
				a = post(t, "/slow", x.oz.Capsule(sandbox.CapsuleSpec{}))
			}
			if a.Status != 200 {
				t.Errorf("%s: got %d %s", name, a.Status, a.Body)
			}
		}
	})
}

// testRequestSilentGet promises that a GET whose end does not come holds nothing for long: after ten seconds without it, there is
// content for all that anybody knows.
func testRequestSilentGet(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	x.refuse(t, refused("unexpected-content", 400), func() answer {
		conn := x.dialRawH2(t)
		conn.sendFields(t, 1, false, ":method", "GET", ":scheme", "https", ":authority", "localhost", ":path", "/verify")
		return conn.read(t, 1).plain()
	})
}

// testRequestPauseWhileOzLeaves promises a client that pauses in its upload the news that the connection to Oz is lost when it is
// lost, and not when the client goes on.
func testRequestPauseWhileOzLeaves(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	x.oz.fault(t, "reset-body:1000")
	x.eachProtocol(t, func(t *testing.T, c *client) {
		c.Timeout = patience
		req := c.postRequest(t, "/verify", newStallingBody(make([]byte, 40_000), 0))
		req.ContentLength = 60_000
		unavailable("connection_lost", 502).assert(t, x.observe(t, func() answer { return c.do(t, req) }), "")
	})
}
