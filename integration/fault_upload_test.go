package integration_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// These tests promise that no upload keeps others out: one that makes no progress ends after ten seconds, and where a place is
// wanted the slowest one gives it up. What an idle upload costs is its client's connection and no other.

// uploadPatience is how long an upload may make its receiver wait in all; 4 KiB give a second of it back.
const uploadPatience = 10 * time.Second

// busyMachine is by how much later than it must something may come. The machine may stand still for some seconds, and what else might
// end an upload or a wait takes still longer.
const busyMachine = 8 * time.Second

// testStalledUploadEnds promises every client ten seconds of patience, over each protocol and whether the capsule is streamed or
// held in memory; a stalled upload counts against nobody but its client.
func testStalledUploadEnds(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	for name, site := range map[string]string{
		"streamed": "{$SITE} {\n\tlog\n\toz_instant /verify {$OZ} {\n\t\tfail_duration 30s\n\t}\n\treverse_proxy {$APP}\n}",
		"held":     "{$SITE} {\n\tlog\n\toz_instant /verify {$OZ} {\n\t\tfail_duration 30s\n\t\tcapacity {\n\t\t\tslots 50\n\t\t\tqueue 100\n\t\t\tmemory 128MiB\n\t\t}\n\t}\n\treverse_proxy {$APP}\n}",
	} {
		beside.Run(name, func(t *testing.T) {
			x := startChain(t, sandbox.Options{AcceptAny: true}, site)
			var all sync.WaitGroup
			for _, proto := range protocols {
				for what, body := range map[string]struct {
					data   int
					pause  time.Duration
					length int64
				}{
					"no byte":                      {0, 0, 1000},
					"1 of 2 bytes":                 {1, 0, 2},
					"all but the last":             {299_999, 0, 300_000},
					"of unknown length":            {50_000, 0, -1},
					"a byte a second":              {1000, time.Second, 1000},
					"1 byte, of unknown length":    {1, 0, -1},
					"nothing, of unknown length":   {0, 0, -1},
					"a byte each half of a second": {1000, 500 * time.Millisecond, -1},
				} {
					c := x.client(t, proto)
					c.Timeout = patience
					req := c.postRequest(t, "/verify", newStallingBody(make([]byte, body.data), body.pause))
					req.ContentLength = body.length
					all.Go(func() {
						start := time.Now()
						a, err := c.try(req)
						if took := time.Since(start); err != nil || a.Status != 408 || problemOf(a) != "upload-timeout" || took < uploadPatience-time.Second || took > uploadPatience+busyMachine {
							t.Errorf("%s, %s: got %d %.200s, %v after %v, want 408 upload-timeout after %v", proto, what, a.Status, a.Body, err, took, uploadPatience)
						}
					})
				}
			}
			all.Wait()
			x.assertIdle(t)
			x.app.None(t)
			x.wantServed(t, "/verify", x.anyCapsule())
		})
	}
}

// TestSlowButSteadyUploadIsServed promises phones on bad links their time: 6 KB a second, and a handover of five seconds.
func TestSlowButSteadyUploadIsServed(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	x := startChain(t, sandbox.Options{AcceptAny: true}, smokeSite)
	for name, phone := range map[string]struct {
		pause     time.Duration
		pieces, n int
	}{
		"6 KB a second":          {500 * time.Millisecond, 3000, 26},
		"pauses of five seconds": {5 * time.Second, 60_000, 2},
		"a single pause of six":  {6 * time.Second, 60_000, 1},
	} {
		beside.Run(name, func(t *testing.T) {
			conn := x.dialRaw(t)
			check(t, conn.SetDeadline(time.Now().Add(startPatience))) // it takes 13 s at least
			conn.sendHead(t, postHead("/verify", 50_000+phone.n*phone.pieces)...)
			conn.send(t, strings.Repeat("x", 50_000))
			conn.drip(t, phone.pause, phone.n, phone.pieces)
			if a := conn.read(t, "POST"); a.Status != 200 {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
		})
	}
}

// crowdSite has the places of a small Oz.
const crowdSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		capacity {
			slots 3
			queue 12
			wait {$WAIT:30s}
			{$MEMORY}
		}
	}
	reverse_proxy {$APP}
}`

const places = 15 // slots and queue of crowdSite

// stalledUploads take all the places of a site, each in its own way.
var stalledUploads = map[string]func(t testing.TB, x *chain){
	"one of two bytes": func(t testing.TB, x *chain) {
		for range places {
			x.slowUpload(t, []byte("xy"), 1)
		}
	},
	"all but the last byte": func(t testing.TB, x *chain) {
		for range places {
			x.slowUpload(t, make([]byte, 200_000), 199_999)
		}
	},
	"one byte, in chunks": func(t testing.TB, x *chain) {
		for range places {
			conn := x.dialRaw(t)
			conn.sendHead(t, postHead("/verify", -1)...)
			conn.sendChunk(t, "x")
		}
	},
	"streams of one connection": func(t testing.TB, x *chain) {
		conn := x.dialRawH2(t)
		for i := range places {
			stream := uint32(2*i + 1)
			conn.sendFields(t, stream, false, postFields("/verify", 2)...)
			check(t, conn.WriteData(stream, false, []byte("x")))
		}
	},
}

// testStalledUploadsKeepNobodyOut promises an honest capsule its turn within seconds, however many uploads stall beside it.
func testStalledUploadsKeepNobodyOut(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	for name, stall := range stalledUploads {
		beside.Run(name, func(t *testing.T) {
			x := startChain(t, sandbox.Options{AcceptAny: true}, crowdSite, withEnv("MEMORY", "memory 256MiB"))
			stall(t, x)
			x.wantTurns(t, 3, uploadPatience-time.Second) // before the stalled ones end by themselves
		})
	}
}

// testStalledStreamsGiveTheirSlotBack promises the same without memory, where only slots tell who may send: each stalled upload
// gives its slot back after ten seconds.
func testStalledStreamsGiveTheirSlotBack(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, crowdSite)
	var stalled []*rawConn
	for range 3 {
		stalled = append(stalled, x.slowUpload(t, make([]byte, 100_000), 50_000))
	}
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 3 })
	within(t, uploadPatience+busyMachine, "an honest capsule", func() {
		if a := x.client(t, "h1").post(t, "/verify", x.anyCapsule()); a.Status != 200 {
			t.Errorf("got %d %.300s", a.Status, a.Body)
		}
	})
	for _, conn := range stalled {
		a, err := conn.tryRead("POST")
		if err != nil || a.Status != 408 {
			t.Errorf("a stalled one got %d, %v", a.Status, err)
		}
	}
}

// testAttackersWhoComeBackKeepNobodyOut promises most honest capsules to be served within seconds where fifteen connections come
// back as soon as they are ended, silent or just fast enough for the rule of progress.
func testAttackersWhoComeBackKeepNobodyOut(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	for name, attack := range map[string]struct{ rate, first, length int }{
		"one byte of two": {0, 1, 2}, "all but the last byte": {0, 99_999, 100_000}, "5 KB a second": {5000, 1, 100_000}, "5 KB a second of much": {5000, 1, 4 << 20},
	} {
		beside.Run(name, func(t *testing.T) {
			x := startChain(t, sandbox.Options{AcceptAny: true}, crowdSite, withEnv("MEMORY", "memory 256MiB"), withEnv("WAIT", "8s"))
			ctx, stop := contextWithCancel(t)
			var crowd sync.WaitGroup
			for range places {
				crowd.Go(func() {
					c := x.client(t, "h1")
					for ctx.Err() == nil {
						body := io.MultiReader(bytes.NewReader(make([]byte, attack.first)), &pacedBody{rate: attack.rate, stop: ctx.Done()})
						req := c.postRequest(t, "/verify", body).WithContext(ctx)
						req.ContentLength = int64(attack.length)
						c.try(req)
						select {
						case <-time.After(20 * time.Millisecond): // a machine's way to come back at once, and leave others the processor
						case <-ctx.Done():
						}
					}
				})
			}
			c := x.client(t, "h2")
			var honest sync.WaitGroup
			var served, all atomic.Int64
			start := time.Now()
			for tick := time.NewTicker(500 * time.Millisecond); time.Since(start) < 13*time.Second; <-tick.C {
				if time.Since(start) < 3*time.Second {
					continue // what the attackers take before anybody else comes
				}
				all.Add(1)
				honest.Go(func() {
					if a, err := c.try(c.postRequest(t, "/verify", bytes.NewReader(x.anyCapsule()))); err == nil && a.Status == 200 {
						served.Add(1)
					}
				})
			}
			honest.Wait()
			stop()
			crowd.Wait()
			if s, n := served.Load(), all.Load(); s*10 < n*8 {
				t.Errorf("%d of %d honest capsules were served", s, n)
			}
		})
	}
}

// pacedBody gives bytes at a rate, or none at rate 0, until it is stopped.
type pacedBody struct {
	rate int
	stop <-chan struct{}
}

func (b *pacedBody) Read(p []byte) (int, error) {
	const step = 250 * time.Millisecond
	wait := step
	if b.rate == 0 {
		wait = patience
	}
	select {
	case <-time.After(wait):
	case <-b.stop:
		return 0, io.ErrUnexpectedEOF
	}
	if b.rate == 0 {
		return 0, io.ErrNoProgress
	}
	n := min(len(p), b.rate*int(step)/int(time.Second))
	clear(p[:n])
	return n, nil
}

// testDisplacedUploadIsToldToComeBack promises the upload that had to give its place up a 503 with Retry-After: it did nothing
// wrong but be slow.
func testDisplacedUploadIsToldToComeBack(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, crowdSite, withEnv("MEMORY", "memory 256MiB"))
	var stalled []*rawConn
	for range places {
		stalled = append(stalled, x.slowUpload(t, make([]byte, 100_000), 1000))
	}
	x.awaitMetric(t, memoryMetric, places*32<<10) // a chunk each: all places are taken
	start := time.Now()
	for c := x.client(t, "h1"); time.Since(start) < 6*time.Second; time.Sleep(300 * time.Millisecond) {
		if a := c.post(t, "/verify", x.anyCapsule()); a.Status == 200 {
			break
		}
	}
	count := map[int]int{}
	for _, conn := range stalled {
		a, err := conn.tryRead("POST")
		if err != nil {
			t.Errorf("a stalled upload got no answer: %v", err)
			continue
		}
		count[a.Status]++
		if a.Status == 503 {
			assertBusy(t, a)
		}
	}
	if count[503] == 0 || count[503]+count[408] != places {
		t.Errorf("the stalled uploads got %v, want some 503 and else 408", count)
	}
	x.awaitMetric(t, memoryMetric, 0)
	x.awaitMetric(t, inFlightMetric, 0)
}

// testIdleUploadsCostOzNothing promises Oz no connection before 32 KiB of a capsule, or its end, have come.
func testIdleUploadsCostOzNothing(t *testing.T) {
	t.Parallel()
	oz, connections := startCountedSandbox(t, sandbox.Options{AcceptAny: true})
	app := newRawApp(t)
	x := &chain{startCaddy(t, smokeSite, withEnv("OZ", oz.URL), withEnv("APP", app.Addr)), oz, app}
	start := time.Now()
	var idle []*rawConn
	for i := range 200 {
		conn := x.dialRaw(t)
		switch i % 4 {
		case 0:
			conn.sendHead(t, postHead("/verify", 1_000_000)...)
		case 1:
			conn.sendHead(t, postHead("/verify", 2)...)
			conn.send(t, "x")
		case 2:
			conn.sendHead(t, postHead("/verify", -1)...)
			conn.sendChunk(t, strings.Repeat("x", 20_000))
		default:
			conn.sendHead(t, postHead("/verify", 1_000_000)...)
			conn.send(t, strings.Repeat("x", 32_000))
		}
		idle = append(idle, conn)
	}
	stream := x.dialRawH2(t)
	for i := range 50 {
		stream.sendFields(t, uint32(2*i+1), false, postFields("/verify", 100)...)
	}
	for _, conn := range idle {
		a, err := conn.tryRead("POST")
		if err != nil || a.Status != 408 {
			t.Fatalf("an idle upload got %d, %v after %v", a.Status, err, time.Since(start))
		}
	}
	if n := connections.n.Load(); n != 0 {
		t.Errorf("Oz got %d connections", n)
	}
	x.wantServed(t, "/verify", []byte("x"))
	t.Run("32 KiB", func(t *testing.T) {
		x.slowUpload(t, make([]byte, 1_000_000), 40_000)
		x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
	})
}

// TestSmallChunkedCapsuleIsWhole promises what holding the first bytes back brings: a capsule that ends within them reaches Oz
// with its length, and one that does not is sent in chunks as before, byte for byte.
func TestSmallChunkedCapsuleIsWhole(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, smokeSite)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, size := range []int{1, 32<<10 - 1, 32 << 10, 32<<10 + 1, 64 << 10, 200_000} {
			capsule := randomCapsule(size)
			x.oz.quiet(t)
			x.oz.Forget()
			if a := c.postStream(t, "/verify", bytes.NewReader(capsule)); a.Status != 200 {
				t.Fatalf("%d bytes: got %d %s", size, a.Status, a.Body)
			}
			x.oz.quiet(t)
			if got := x.oz.Received()[0]; got.Digest != digest(capsule) || !got.Complete || size < 32<<10 && got.ContentLength != int64(size) {
				t.Errorf("%d bytes: Oz got %d of length %d", size, got.Size, got.ContentLength)
			}
		}
	})
}

// siteTimeouts is a site whose own rules end an upload after two seconds.
const siteTimeouts = `
{
	servers {
		timeouts {
			{$RULE} 2s
		}
	}
}
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		{$CAPACITY}
	}
	reverse_proxy {$APP}
}`

// testSiteTimeoutIsNoClientThatLeft promises a client whose upload the site's own timeouts end an answer that says so, on each
// protocol: it waits for one, so it has not left.
func testSiteTimeoutIsNoClientThatLeft(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	for _, rule := range []string{"read_body", "read_body_idle"} {
		for name, capacity := range map[string]string{"streamed": "", "held": "capacity {\n slots 20\n queue 20\n memory 128MiB\n}"} {
			beside.Run(rule+" "+name, func(t *testing.T) {
				site := strings.NewReplacer("{$RULE}", rule, "{$CAPACITY}", capacity).Replace(siteTimeouts)
				x := startChain(t, sandbox.Options{AcceptAny: true}, site)
				var all sync.WaitGroup
				for _, proto := range protocols {
					for _, length := range []int64{100_000, -1} {
						for _, size := range []int{1, 50_000} {
							c := x.client(t, proto)
							c.Timeout = patience
							req := c.postRequest(t, "/verify", newStallingBody(make([]byte, size), 0))
							req.ContentLength = length
							all.Go(func() {
								start := time.Now()
								a, err := c.try(req)
								if took := time.Since(start); err != nil || a.Status != 408 || problemOf(a) != "upload-timeout" || took > uploadPatience-time.Second {
									t.Errorf("%s, %d of %d: got %d %.200s, %v after %v, want 408", proto, size, length, a.Status, a.Body, err, took)
								}
							})
						}
					}
				}
				all.Wait()
				for _, line := range x.waitForLogs(t, 12, isRefused) {
					if line.Get("client_gone").Bool() || line.Get("problem").Str != "upload-timeout" {
						t.Errorf("logged: %s", line)
					}
				}
			})
		}
	}
}

// countedBody counts what was read of it.
type countedBody struct {
	io.Reader
	n atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// testWaitingStreamDoesNotStarveItsSiblings promises that of two large uploads on one HTTP/2 connection, the one that waits for a
// slot does not keep the other's bytes out, although both share the connection's window.
func testWaitingStreamDoesNotStarveItsSiblings(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	for name, memory := range map[string]string{"streamed": "", "held": "memory 128MiB"} {
		beside.Run(name, func(t *testing.T) {
			x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		capacity {
			slots 1
			queue 5
			wait 60s
			{$MEMORY}
		}
	}
	reverse_proxy {$APP}
}`, withEnv("MEMORY", memory))
			const size = 6 << 20
			c := x.client(t, "h2")
			c.Timeout = patience
			type result struct {
				a   answer
				err error
			}
			post := func(body io.Reader) <-chan result {
				req := c.postRequest(t, "/verify", body)
				req.ContentLength = size
				done := make(chan result, 1)
				go func() {
					a, err := c.try(req)
					done <- result{a, err}
				}()
				return done
			}
			out, in := io.Pipe()
			first := post(out)
			in.Write(make([]byte, 64<<10))
			if memory == "" {
				x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
			} else {
				for x.Metric(t, memoryMetric) == 0 { // Caddy tells nobody when a metric changes
					time.Sleep(5 * time.Millisecond)
				}
			}
			waiting := &countedBody{Reader: io.LimitReader(endless{}, size)}
			second := post(waiting)
			for start := time.Now(); waiting.n.Load() < 1<<20 && time.Since(start) < 2*time.Second; {
				time.Sleep(5 * time.Millisecond) // until the window is full, or whatever else it comes to
			}
			start := time.Now()
			go func() {
				in.Write(make([]byte, size-64<<10))
				in.Close()
			}()
			r := <-first
			if r.err != nil || r.a.Status != 200 { // without a byte for uploadPatience it gets 408
				t.Errorf("the upload that has the slot got %d %.300s, %v after %v", r.a.Status, r.a.Body, r.err, time.Since(start))
			}
			if r := <-second; r.err != nil || r.a.Status != 200 && r.a.Status != 503 {
				t.Errorf("the one that waited got %d %.300s, %v", r.a.Status, r.a.Body, r.err)
			} else if r.a.Status == 503 {
				assertBusy(t, r.a)
			}
		})
	}
}

// testUnfinishedBodyHoldsNoAnswerBack promises a client whose chunked body does not end the answer of whatever handler comes after,
// as soon as plain Caddy gives it or sooner, also where the client announced a trailer.
func testUnfinishedBodyHoldsNoAnswerBack(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	x := startChain(t, sandbox.Options{}, `
{
	servers {
		timeouts {
			read_body_idle 2s
		}
	}
}
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		handle_decision UNAVAILABLE {
			error 418
		}
	}
	error /error 418
	respond /respond 418
	basic_auth /auth {
		user $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
	}
	reverse_proxy /dead {$DEAD}
	reverse_proxy {$APP}
}`, withEnv("DEAD", deadAddress(t)))
	for name, status := range map[string]int{"/error": 418, "/respond": 418, "/auth": 401, "/dead": 502} {
		for what, trailer := range map[string]string{"": "X-None: 1", " with a trailer": "Trailer: X-Foo", " with ours": "Trailer: X-Oz-Decision, X_Oz_Reason"} {
			for way, dial := range map[string]func(testing.TB) *rawConn{"": x.dialRaw, " over TLS": x.dialRawTLS} {
				for _, method := range []string{"POST", "PUT"} {
					beside.Run(method+" "+name+what+way, func(t *testing.T) {
						conn := dial(t)
						check(t, conn.SetDeadline(time.Now().Add(uploadPatience-time.Second)))
						conn.sendHead(t, method+" "+name+" HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", trailer)
						conn.sendChunk(t, "begun")
						if a, err := conn.tryRead(method); err != nil || a.Status != status {
							t.Errorf("got %d, %v, want %d", a.Status, err, status)
						}
					})
				}
			}
		}
	}
}

// noUnwrap is a plugin of the kind that wraps responses without telling what it wraps.
const noUnwrap = `package main

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(noUnwrap{})
	httpcaddyfile.RegisterHandlerDirective("no_unwrap", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return noUnwrap{}, nil
	})
}

type noUnwrap struct{}

func (noUnwrap) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.no_unwrap", New: func() caddy.Module { return noUnwrap{} }}
}

func (noUnwrap) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return next.ServeHTTP(opaque{w}, r)
}

type opaque struct{ w http.ResponseWriter }

func (o opaque) Header() http.Header         { return o.w.Header() }
func (o opaque) Write(p []byte) (int, error) { return o.w.Write(p) }
func (o opaque) WriteHeader(status int)      { o.w.WriteHeader(status) }
`

// testOpaqueResponseWriter promises that a plugin in front whose ResponseWriter cannot set deadlines delays nothing: neither the
// end of a stalled upload nor Oz's early answer, and no slot stays taken.
func testOpaqueResponseWriter(t *testing.T) {
	t.Parallel()
	oz, app := startSandbox(t, sandbox.Options{AcceptAny: true}), newRawApp(t)
	p := startCaddy(t, `
{
	order no_unwrap first
}
{$SITE} {
	log
	no_unwrap
	oz_instant /verify {$OZ} {
		upload_timeout 1s
		capacity {
			slots 1
			queue 0
		}
	}
	oz_instant /early {$OZ} {
		upload_timeout 1m
		capacity {
			slots 1
			queue 0
		}
	}
	reverse_proxy {$APP}
}`, withBinary(caddyWithPlugin(t)), withEnv("OZ", oz.URL), withEnv("APP", app.Addr))
	x := &chain{p, oz, app}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, length := range []int64{100_000, -1} {
			for _, size := range []int{1, 50_000} {
				t.Run(fmt.Sprintf("stalls after %d of %d", size, length), func(t *testing.T) {
					x.oz.fault(t, "")
					req := c.postRequest(t, "/verify", newStallingBody(make([]byte, size), 0))
					req.ContentLength = length
					within(t, uploadPatience-time.Second, "the answer", func() { wantProblem(t, c.do(t, req), 408, "upload-timeout") })
					x.awaitMetric(t, inFlightMetric, 0)
					x.wantServed(t, "/verify", x.anyCapsule())
				})
			}
			t.Run(fmt.Sprintf("early answer to %d", length), func(t *testing.T) {
				x.oz.fault(t, "early:400,bytes=40000")
				req := c.postRequest(t, "/early", newStallingBody(make([]byte, 50_000), 0))
				req.ContentLength = length
				within(t, uploadPatience-time.Second, "the answer", func() { wantProblem(t, c.do(t, req), 400, "container") })
				x.awaitMetric(t, inFlightMetric, 0)
			})
		}
	})
	if n := x.client(t, "h1").get(t, "/"); n.Status != http.StatusOK {
		t.Errorf("in the end: %d", n.Status)
	}
}
