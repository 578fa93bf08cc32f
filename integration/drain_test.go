package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const drainWindow = 10 * time.Minute

const drainSite = `
{
	shutdown_delay 2s
	grace_period 30s
}
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		capacity {
			slots 20
			queue 100
			memory 64MiB
			shared redis {$REDIS}
		}
		replay_guard redis {$REDIS} {
			window 10m
		}
	}
	reverse_proxy {$APP}
}`

// TestDrain promises that a gateway which is told to end with 50 uploads and 10 analyses in progress decides all of them, each once, on
// the client's, Oz's and the app's side; that it takes no new ones, and says so; and that it leaves neither a slot nor a place in the
// queue, and no claim but those of decisions.
func TestDrain(t *testing.T) {
	t.Parallel()
	const uploads, analyses, slots = 50, 10, 20
	redis := startRedis(t)
	x := startChain(t, sandbox.Options{AnalysisTime: 200 * time.Millisecond, Parallel: slots}, drainSite, withEnv("REDIS", "redis://"+redis.Addr))

	capsule := func(i int) []byte {
		return x.oz.Capsule(sandbox.CapsuleSpec{EventSession: strconv.Itoa(i), PayloadSize: 50_000})
	}
	rest := make(chan struct{}, uploads+analyses+slots) // lets an upload go on: as many at once as Oz takes, so that none waits for the CPU
	var clients sync.WaitGroup
	send := func(i int, body io.Reader, size int) {
		c := x.client(t, protocols[i%len(protocols)])
		clients.Go(func() {
			req := c.postRequest(t, "/verify", body)
			req.ContentLength = int64(size)
			if a, err := c.try(req); err != nil || a.Status != 200 {
				t.Errorf("capsule %d over %s got %d %s, %v", i, c.proto, a.Status, a.Body, err)
			}
			rest <- struct{}{}
		})
	}
	for i := range uploads {
		whole := capsule(i)
		send(i, &halfReader{whole[:len(whole)/2], whole[len(whole)/2:], rest}, len(whole))
	}
	x.awaitStatus(t, "uploading", strconv.Itoa(uploads))
	release := x.oz.HoldAnalyses()
	defer release()
	for i := range analyses {
		whole := capsule(uploads + i)
		send(uploads+i, bytes.NewReader(whole), len(whole))
	}
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Busy == analyses })

	check(t, x.cmd.Process.Signal(syscall.SIGTERM))
	x.waitForLog(t, withMsg("shutdown scheduled"))
	x.ready(t, "Caddy is shutting down")
	if s := x.oz.Stats(); s.Busy != analyses {
		t.Fatalf("%d analyses were in progress, want %d", s.Busy, analyses)
	}
	inGrace := withMsg("servers shutting down; grace period initiated")
	tooLate := func() bool { // the two seconds in which it still listens are over, on a machine that stood still: nothing is to be seen
		x.catchUp(t)
		return len(x.logLines(inGrace)) > 0
	}
	for _, proto := range protocols {
		c := x.client(t, proto)
		a, err := c.try(c.postRequest(t, "/verify", bytes.NewReader(x.oz.Capsule(sandbox.CapsuleSpec{}))))
		if err != nil && tooLate() {
			t.Logf("nobody listened to %s any more", proto)
			break
		}
		check(t, err)
		if wantProblem(t, a, 503, "shutting-down"); a.Header.Get("Retry-After") == "" {
			t.Errorf("%s was refused with %v", proto, a.Header)
		}
	}
	if !tooLate() {
		if a := x.slowUpload(t, capsule(0), 1000).readLast(t, "POST"); a.Status != 503 || a.Header.Get("Connection") != "close" {
			t.Errorf("halfway through an upload: got %d %v", a.Status, a.Header)
		}
	}
	x.waitForLog(t, inGrace)
	x.ready(t, "Caddy is shutting down")
	x.awaitRefused(t)

	release()
	for range slots - analyses {
		rest <- struct{}{}
	}
	clients.Wait()
	<-x.ended
	if len(x.logLines(withMsg("shutdown complete"))) != 1 {
		t.Error("Caddy did not end by itself")
	}
	x.assertEachOnce(t, uploads+analyses)
	claims := 0
	for _, key := range redis.keys(t) {
		switch kind := redis.do(t, "TYPE", key); {
		case strings.HasPrefix(key, "oz_instant:replay:"):
			claims++
			if left := redis.life(t, key); left < drainWindow-time.Minute {
				t.Errorf("%s lives for %v, as a claim of a capsule in progress does", key, left)
			}
		case kind == "zset":
			t.Errorf("%s still holds %v", key, redis.do(t, "ZRANGE", key, 0, -1))
		}
	}
	if claims != uploads+analyses {
		t.Errorf("Redis has %d claims, want one of each capsule", claims)
	}
}

// halfReader is a body whose second half comes once a channel lets it. Until then some of it comes now and then, since an upload that
// falls silent ends after uploadPatience.
type halfReader struct {
	first, second []byte
	rest          <-chan struct{}
}

func (r *halfReader) Read(p []byte) (int, error) {
	if len(r.first) == 0 && len(r.second) > 0 {
		some := min(4<<10, (len(r.second)+1)/2) // a second's worth of patience, and less towards the end
		select {
		case <-r.rest:
			some = len(r.second)
		case <-time.After(time.Second):
		}
		r.first, r.second = r.second[:some], r.second[some:]
	}
	if len(r.first) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.first)
	r.first = r.first[n:]
	return n, nil
}

// awaitRefused returns when no new connection is accepted any more, which the log foretells.
func (p *caddyProc) awaitRefused(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", p.HTTP)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err == nil {
			conn.Close()
		}
		if time.Now().After(deadline) {
			t.Fatalf("a new connection got %v", err)
		}
	}
}

// assertEachOnce fails the test unless Oz got n capsules, and the app one SUCCESS of each; their event sessions are 0 to n-1.
func (x *chain) assertEachOnce(t testing.TB, n int) {
	t.Helper()
	if got := len(x.oz.Received()); got != n {
		t.Errorf("Oz got %d capsules, want %d", got, n)
	}
	decided := map[string]int{}
	for _, r := range x.app.Requests() {
		decided[r.Value("X-Oz-Event-Session-Id")+" "+r.Value("X-Oz-Decision")]++
	}
	for i := range n {
		if times := decided[fmt.Sprintf("%d SUCCESS", i)]; times != 1 {
			t.Errorf("the app got %d times SUCCESS of capsule %d", times, i)
		}
	}
	if len(decided) != n {
		t.Errorf("the app got %v", decided)
	}
}
