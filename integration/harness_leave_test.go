package integration_test

import (
	"net"
	"regexp"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// beginner begins a capsule's POST. A negative size is left unsaid.
type beginner func(t testing.TB, p *caddyProc, path string, size int) leaver

// leaver is a client with a capsule that it may not bring to its end, or of which it does not wait for the answer.
type leaver struct {
	send  func(data []byte)
	end   func() // of the body
	leave func()
}

// leavers are ways to leave.
var leavers = map[string]beginner{
	"h1 closes": func(t testing.TB, p *caddyProc, path string, size int) leaver {
		conn := p.dialRaw(t)
		return h1Leaver(t, conn, path, size, func() { conn.Close() })
	},
	"h1 resets": func(t testing.TB, p *caddyProc, path string, size int) leaver {
		conn := p.dialRaw(t)
		return h1Leaver(t, conn, path, size, func() {
			conn.Conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		})
	},
	"h1 closes TLS": func(t testing.TB, p *caddyProc, path string, size int) leaver {
		conn := p.dialRawTLS(t)
		return h1Leaver(t, conn, path, size, func() { conn.Close() })
	},
	"h2 resets the stream": func(t testing.TB, p *caddyProc, path string, size int) leaver {
		conn := p.dialRawH2(t)
		return h2Leaver(t, conn, path, size, func() { check(t, conn.WriteRSTStream(1, http2.ErrCodeCancel)) })
	},
	"h2 closes": func(t testing.TB, p *caddyProc, path string, size int) leaver {
		conn := p.dialRawH2(t)
		return h2Leaver(t, conn, path, size, func() { conn.conn.Close() })
	},
	"h3 cancels": func(t testing.TB, p *caddyProc, path string, size int) leaver {
		stream := p.openH3(t, path, int64(size))
		return h3Leaver(t, stream, func() {
			const requestCanceled = 0x10c
			stream.CancelWrite(requestCanceled)
			stream.CancelRead(requestCanceled)
		})
	},
	"h3 closes": func(t testing.TB, p *caddyProc, path string, size int) leaver {
		stream := p.openH3(t, path, int64(size))
		return h3Leaver(t, stream, func() { stream.conn.CloseWithError(0x100, "") })
	},
}

func h1Leaver(t testing.TB, conn *rawConn, path string, size int, leave func()) leaver {
	conn.sendHead(t, postHead(path, size)...)
	if size < 0 {
		return leaver{
			send:  func(data []byte) { conn.sendChunk(t, string(data)) },
			end:   func() { conn.send(t, "0\r\n\r\n") },
			leave: leave,
		}
	}
	return leaver{send: func(data []byte) { conn.send(t, string(data)) }, end: func() {}, leave: leave}
}

func h2Leaver(t testing.TB, conn *rawH2, path string, size int, leave func()) leaver {
	conn.sendFields(t, 1, false, postFields(path, size)...)
	return leaver{
		send: func(data []byte) {
			for frame := range slices.Chunk(data, 16<<10) {
				check(t, conn.WriteData(1, false, frame))
			}
		},
		end:   func() { check(t, conn.WriteData(1, true, nil)) },
		leave: leave,
	}
}

func h3Leaver(t testing.TB, stream rawH3, leave func()) leaver {
	return leaver{
		send:  func(data []byte) { stream.send(t, string(data)) },
		end:   func() { check(t, stream.Close()) },
		leave: leave,
	}
}

// leaveSite has a path for each value of client_gone.
const leaveSite = `
{
	metrics
}
{$SITE} {
	log
	oz_instant /finish {$OZ}
	oz_instant /cancel {$OZ} {
		client_gone cancel
	}
	reverse_proxy {$APP}
}`

// firstPiece is how much of a capsule must have arrived, unless it ends before, until Oz hears of it.
const firstPiece = 32 << 10

// beforeLeaving returns when Oz has so many bytes of the capsule or, where that is less than it waits for, when the gateway has the
// request.
func (x *chain) beforeLeaving(t testing.TB, bytes int) {
	t.Helper()
	if bytes < firstPiece {
		x.awaitRequest(t)
		return
	}
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Open == 1 && s.Bytes >= int64(bytes) })
}

// ridOfLeaver is when Oz must be rid of a client that left, on a machine however busy. An upload that its gateway still waits for ends
// after uploadPatience.
const ridOfLeaver = uploadPatience - 2*time.Second

// leave has a client leave, and compares what came of it with what must come: Oz is rid of it soon, nothing was decided, and the log,
// in one line, and the metric say why. The client tells when it left.
func (x *chain) leave(t testing.TB, client func() (left time.Time)) {
	t.Helper()
	x.oz.quiet(t)
	x.oz.Forget()
	refusedBefore := len(x.logLines(isRefused))
	var left time.Time
	j := x.observe(t, func() answer {
		left = client()
		return answer{}
	})
	refused("client-gone", 499).assertUndecided(t, j)
	lines := x.logLines(isRefused)[refusedBefore:]
	if len(lines) != 1 || lines[0].Get("problem").Str != "client-gone" || !lines[0].Get("client_gone").Bool() {
		t.Errorf("logged: %v, want one line about a client that is gone", lines)
	}
	x.oz.quiet(t)
	for _, r := range x.oz.Received() {
		if took := r.End.Sub(left); took > ridOfLeaver {
			t.Errorf("Oz's connection ended %v later", took)
		}
	}
	x.assertIdle(t)
}

// noticing is long enough for a gateway that runs to have noticed that a client left. It tells nobody when it has.
const noticing = 400 * time.Millisecond

// afterNoticing calls f when the gateway has noticed that a client left just now. That it runs it shows by an answer to a call that
// comes after that.
func (p *caddyProc) afterNoticing(t testing.TB, f func()) {
	t.Helper()
	p.AdminGet(t, "/reverse_proxy/upstreams")
	time.AfterFunc(noticing, f)
}

// leaveDuringAnalysis has a client leave while Oz has its capsule, after before has been called, and fails the test unless the capsule
// is analysed once and its decision reaches the app.
func (x *chain) leaveDuringAnalysis(t testing.TB, path string, begin beginner, before func()) observed {
	t.Helper()
	x.oz.quiet(t)
	x.oz.Forget()
	release := x.oz.HoldAnalyses()
	capsule := x.capsuleOf(t, "s")
	j := x.observe(t, func() answer {
		client := begin(t, x.caddyProc, path, len(capsule))
		client.send(capsule)
		client.end()
		x.beforeLeaving(t, len(capsule))
		before()
		client.leave()
		x.afterNoticing(t, release)
		x.app.Wait(t, 1)
		return answer{}
	})
	accepted.assertSight(t, j)
	r := x.app.Only(t)
	assertReserved(t, r, accepted.headers(r, "s"))
	if n := len(x.oz.Received()); n != 1 {
		t.Errorf("Oz got %d capsules", n)
	}
	return j
}

// requestInFlight is a metric of Caddy itself, on whichever of its servers.
var requestInFlight = regexp.MustCompile(`(?m)^caddy_http_requests_in_flight\{[^}]*\} 1$`)

// awaitRequest returns when the gateway works on a request, of which Oz need not have heard.
func (p *caddyProc) awaitRequest(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !requestInFlight.MatchString(p.Metrics(t)) { // Caddy tells nobody when a metric changes
		if time.Now().After(deadline) {
			t.Fatal("no request is in flight")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// capsuleOf makes a capsule that is more than a firstPiece and fits into the first window of any protocol.
func (x *chain) capsuleOf(t testing.TB, session string) []byte {
	t.Helper()
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: session, PayloadSize: 40_000})
	if len(capsule) <= firstPiece+1 || len(capsule) >= 64<<10 {
		t.Fatalf("the capsule has %d bytes", len(capsule))
	}
	return capsule
}
