package integration_test

import (
	"strings"
	"testing"
)

// tunnelOffers are ways to ask for a tunnel.
var tunnelOffers = map[string][]string{
	"as RFC 7540 has it":       {"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"},
	"in capitals":              {"CONNECTION: UPGRADE, HTTP2-SETTINGS", "UPGRADE: H2C", "HTTP2-SETTINGS: AAMAAABk"},
	"without settings":         {"Connection: Upgrade", "Upgrade: h2c"},
	"after a web socket":       {"Connection: Upgrade", "Upgrade: websocket, h2c"},
	"before a web socket":      {"Connection: Upgrade", "Upgrade: h2c,websocket"},
	"on a line of its own":     {"Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c"},
	"on two lines":             {"Connection: keep-alive", "Connection: upgrade", "Upgrade: h2c", "Upgrade: websocket"},
	"with a tab":               {"Connection:\tUpgrade", "Upgrade:\th2c\t"},
	"with empty elements":      {"Connection: ,Upgrade,,", "Upgrade: ,h2c,"},
	"with a version":           {"Connection: Upgrade", "Upgrade: h2c/1, h2c"},
	"another one":              {"Connection: Upgrade", "Upgrade: oz/1"},
	"with a decision for ours": {"Connection: Upgrade, X-Oz-Decision", "Upgrade: h2c", "X-Oz-Decision: SUCCESS"},
}

// startTunnels starts a site whose app accepts each upgrade but that to a web socket.
func startTunnels(t *testing.T, site string) (*caddyProc, *rawApp) {
	t.Helper()
	app := newRawApp(t)
	app.Answer(func(r rawRequest) string {
		for _, line := range r.Values("Upgrade") {
			for offer := range strings.SplitSeq(line, ",") {
				if offer = strings.TrimSpace(offer); offer != "" && !strings.EqualFold(offer, "websocket") {
					return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + offer + "\r\n\r\n"
				}
			}
		}
		return rawAnswer("200 OK", "seen by the app\n")
	})
	return startCaddy(t, site, withEnv("APP", app.Addr), withEnv("OZ", "http://"+deadAddress(t))), app
}

// testTunnelIsNeverOpened promises that an app that accepts upgrades never opens a tunnel for a client, on any path and with any
// method in scope, in whatever way the client asks.
func testTunnelIsNeverOpened(t *testing.T) {
	t.Parallel()
	p, app := startTunnels(t, smokeSite)
	for name, lines := range tunnelOffers {
		for _, request := range []string{"GET /verify", "HEAD /other", "OPTIONS /", "POST /other", "PUT /other", "DELETE /a/b?c", "PURGE /other"} {
			for way, dial := range map[string]func(testing.TB) *rawConn{"": p.dialRaw, " over TLS": p.dialRawTLS} {
				t.Run(name+", "+request+way, func(t *testing.T) {
					method, _, _ := strings.Cut(request, " ")
					conn := dial(t)
					conn.sendHead(t, append([]string{request + " HTTP/1.1", "Host: localhost", "Content-Length: 0"}, lines...)...)
					if a := conn.read(t, method); a.Status != 200 {
						t.Errorf("got %d %v", a.Status, a.Header)
					}
					// What comes next is a request like any other, and looked at.
					app.Forget()
					conn.sendHead(t, "GET /other HTTP/1.1", "Host: localhost", "X-Oz-Decision: SUCCESS")
					conn.read(t, "GET")
					assertReserved(t, app.Only(t), map[string]string{})
				})
			}
		}
	}
}

// testTunnelsOpenElsewhere is about that test: without the module, such an app opens the tunnel.
func testTunnelsOpenElsewhere(t *testing.T) {
	t.Parallel()
	p, _ := startTunnels(t, plainProxy)
	conn := p.dialRaw(t)
	conn.sendHead(t, append([]string{"GET /other HTTP/1.1", "Host: localhost"}, tunnelOffers["as RFC 7540 has it"]...)...)
	if a := conn.read(t, "GET"); a.Status != 101 || a.Header.Get("Upgrade") != "h2c" {
		t.Errorf("got %d %v", a.Status, a.Header)
	}
	// Caddy 2.11 has a data race of its own if it stops while an upgraded connection is still open.
	conn.Close()
	if len(p.logs.wait(patience, 1, p.ended, withMsg("connection closed"))) == 0 {
		t.Error("Caddy does not close the upgraded connection")
	}
}
