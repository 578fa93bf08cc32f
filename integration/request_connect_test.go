package integration_test

import (
	"net/http"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// connectSite has the directive for every path, as CONNECT has none.
const connectSite = `
{$SITE} {
	log
	oz_instant {$OZ}
	reverse_proxy {$APP}
}`

// testRequestConnect promises that no tunnel leads through the protected path: CONNECT is a method like any other that is not POST, also in
// its extended form.
func testRequestConnect(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, connectSite)
	want := refused("method-not-allowed", 405)
	for _, target := range []string{"localhost:443", "/verify"} {
		t.Run("h1 to "+target, func(t *testing.T) {
			x.refuse(t, want, func() answer {
				conn := x.dialRaw(t)
				conn.sendHead(t, "CONNECT "+target+" HTTP/1.1", "Host: localhost:443", "Content-Type: application/octet-stream")
				a := conn.read(t, "GET") // to a reader, a refused CONNECT is like a GET
				conn.ends(t)             // whatever comes next on it was meant for the tunnel
				return a
			})
		})
	}
	t.Run("h1 with a request in its body", func(t *testing.T) {
		x.refuse(t, want, func() answer {
			conn := x.dialRaw(t)
			const inner = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
			conn.send(t, "CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n"+inner)
			a := conn.read(t, "GET")
			conn.ends(t)
			return a
		})
	})
	t.Run("h2", func(t *testing.T) {
		x.refuse(t, want, func() answer {
			conn := x.dialRawH2(t)
			conn.sendFields(t, 1, false, ":method", "CONNECT", ":authority", "localhost:443")
			return conn.read(t, 1).plain()
		})
	})
	t.Run("h3 extended", func(t *testing.T) {
		c := x.client(t, "h3")
		c.get(t, "/first") // an extended CONNECT wants to know first whether the server takes it
		x.app.Wait(t, 1)
		x.refuse(t, want, func() answer {
			req := c.request(t, http.MethodConnect, "/verify", nil)
			req.Proto = "websocket"
			return c.do(t, req)
		})
	})
}

// testRequestExtendedConnectOverH2 promises that an extended CONNECT, by which browsers open web sockets over HTTP/2, goes nowhere
// from the protected path, whether Caddy takes it or not.
func testRequestExtendedConnectOverH2(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, connectSite)
	conn := x.dialRawH2(t)
	conn.sendFields(t, 1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "localhost", ":path", "/verify")
	if a := conn.read(t, 1); !a.IsReset && a.Status < 400 {
		t.Errorf("got %+v", a)
	}
	x.app.None(t)
}

// testRequestUpgradeElsewhere promises that other paths of the site still change their protocol: an app with web sockets keeps
// them, less the names that are ours.
func testRequestUpgradeElsewhere(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	x.app.Answer(func(rawRequest) string {
		return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	})
	conn := x.dialRaw(t)
	conn.sendHead(t, "GET /socket HTTP/1.1", "Host: localhost", "Upgrade: websocket", "X-Oz-Decision: SUCCESS",
		"Connection: X-Oz-Decision", "Connection: Upgrade, x_oz_decision")
	if a := conn.read(t, "GET"); a.Status != 101 || a.Header.Get("Upgrade") != "websocket" {
		t.Errorf("got %+v", a)
	}
	r := x.app.Only(t)
	assertReserved(t, r, map[string]string{})
	if r.Value("Upgrade") != "websocket" || r.Value("Connection") != "Upgrade" {
		t.Errorf("the app got:\n%s", r.Raw())
	}
	// Caddy 2.11 has a data race of its own if it stops while an upgraded connection is still open.
	conn.Close()
	if len(x.logs.wait(patience, 1, x.ended, withMsg("connection closed"))) == 0 {
		t.Error("Caddy does not close the upgraded connection")
	}
}
