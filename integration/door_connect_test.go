package integration_test

import (
	"net/http"
	"slices"
	"strings"
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

// TestDoorConnect promises that no tunnel leads through the door: CONNECT is a method like any other that is not POST, also in
// its extended form.
func TestDoorConnect(t *testing.T) {
	t.Parallel()
	x := startTrio(t, sandbox.Options{}, connectSite)
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

// TestDoorExtendedConnectOverH2 promises that an extended CONNECT, by which browsers open web sockets over HTTP/2, goes nowhere
// from the protected path, whether Caddy takes it or not.
func TestDoorExtendedConnectOverH2(t *testing.T) {
	t.Parallel()
	x := startTrio(t, sandbox.Options{}, connectSite)
	conn := x.dialRawH2(t)
	conn.sendFields(t, 1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "localhost", ":path", "/verify")
	if a := conn.read(t, 1); !a.IsReset && a.Status < 400 {
		t.Errorf("got %+v", a)
	}
	x.app.None(t)
}

// TestDoorUpgrade promises that no request on the protected path changes its protocol, whatever else is right with it, and that the
// connection is not used again.
func TestDoorUpgrade(t *testing.T) {
	t.Parallel()
	x := startDoor(t)
	websocket := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"}
	h2c := []string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"}
	get := []string{"GET /verify HTTP/1.1", "Host: localhost"}
	for name, head := range map[string][]string{
		"websocket":            slices.Concat(get, websocket),
		"websocket in POST":    slices.Concat(postHead("/verify", 7), websocket),
		"h2c":                  slices.Concat(get, h2c),
		"h2c in POST":          slices.Concat(postHead("/verify", 7), h2c),
		"h2c in OPTIONS":       slices.Concat([]string{"OPTIONS /verify HTTP/1.1", "Host: localhost"}, h2c),
		"without Connection":   append(get, "Upgrade: websocket"),
		"several":              append(get, "Connection: upgrade", "Upgrade: h2c, websocket"),
		"on two lines":         append(get, "Connection: upgrade", "Upgrade: h2c", "Upgrade: websocket"),
		"empty":                append(get, "Connection: upgrade", "Upgrade:"),
		"TLS":                  append(get, "Connection: upgrade", "Upgrade: TLS/1.2"),
		"in lower case":        append(get, "connection: upgrade", "upgrade: websocket"),
		"to something of ours": append(get, "Connection: Upgrade, X-Oz-Decision", "Upgrade: x", "X-Oz-Decision: SUCCESS"),
	} {
		t.Run(name, func(t *testing.T) {
			x.refuse(t, refused("upgrade-refused", 400), func() answer {
				conn := x.dialRaw(t)
				conn.sendHead(t, head...)
				if strings.HasPrefix(head[0], "POST") {
					conn.send(t, "capsule")
				}
				a := conn.read(t, "GET")
				conn.ends(t)
				return a
			})
		})
	}
}

// TestDoorLeavesUpgradesElsewhere promises that other paths of the site still change their protocol: an app with web sockets keeps
// them, less the names that are ours.
func TestDoorLeavesUpgradesElsewhere(t *testing.T) {
	t.Parallel()
	x := startDoor(t)
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
}
