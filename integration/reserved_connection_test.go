package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// connectionLines are ways to tell a proxy that our names are for one hop only: reverse_proxy deletes what the client's Connection
// names, after all handlers have run.
var connectionLines = [][]string{
	{"Connection: X-Oz-Decision"},
	{"Connection: x-oz-decision"},
	{"connection: X-OZ-DECISION"},
	{"Connection: close, X-Oz-Decision"},
	{"Connection: X-Oz-Decision, close"},
	{"Connection: keep-alive,X-Oz-Decision,X-Oz-Reason"},
	{"Connection:\tX-Oz-Decision\t"},
	{"Connection: ,, ,X-Oz-Decision,,"},
	{"Connection: X-Oz-Folder-Id", "Connection: X-Oz-Decision"},
	{"Connection:", "Connection: X-Oz-Decision"},
	{"Connection: ", "connection: close", "CONNECTION: x-oz-decision, x-oz-quality", "Connection: X-Oz-Event-Session-Id"},
	{"Connection: keep-alive", "Connection: X-Oz-Resolution-Status, X-Oz-System-Resolution, X-Oz-Biometry, X-Oz-Error-Code, X-Oz-Decision"},
	{"Connection: X_Oz_Decision, X.Oz.Decision, x!oz!decision"},
	{"Connection: X-Oz-Seal, x-oz-seal, X_Oz_Seal", "Connection: X-Oz-Best-Shot"},
	{"Connection: Content-Type, Content-Length, X-Oz-Decision"},
	{"Proxy-Connection: X-Oz-Decision", "Keep-Alive: X-Oz-Decision", "TE: X-Oz-Decision", "Trailer: X-Oz-Decision"},
}

// testReservedInConnection promises that no client can have the proxy after the module delete the decision on its way to the app.
func testReservedInConnection(t *testing.T) {
	t.Parallel()
	x := startOutcomes(t, outcomeSite)
	for _, o := range outcomes {
		for i, lines := range connectionLines {
			for _, query := range []string{"", "?app=h2c"} {
				if o.method == "HEAD" || (o.path == "/late" || query != "") && i%5 != 0 {
					continue // takes long and shows nothing new
				}
				t.Run(o.name+query+" "+strings.Join(lines, " AND "), func(t *testing.T) {
					capsule := x.request(t, o)
					conn := x.dialRaw(t)
					head := []string{o.method + " " + o.path + query + " HTTP/1.1", "Host: localhost", "Content-Type: application/octet-stream", "X-Oz-Decision: SUCCESS"}
					if capsule != nil {
						head = append(head, fmt.Sprintf("Content-Length: %d", len(capsule)))
					}
					conn.sendHead(t, slices.Concat(head, lines)...)
					conn.send(t, string(capsule))
					if a := conn.read(t, o.method); a.Status != 200 {
						t.Fatalf("got %d %s", a.Status, a.Body)
					}
					x.assert(t, o, query)
				})
			}
		}
	}
}

// testReservedConnectionOfOthers promises that of a decided request nothing else goes missing either, since the client's Connection
// does not travel on; and that on an undecided one, Connection does what it always did to fields that are not ours.
func testReservedConnectionOfOthers(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	fields := []string{"Host: localhost", "Cookie: session=1", "Authorization: Bearer x", "X-Custom: one", "X-Request-Id: 7"}
	connection := []string{"Connection: Cookie, Authorization, X-Custom", "Connection: X-Request-Id, Content-Type, Content-Length"}
	post := func(t *testing.T, path string) rawRequest {
		x.app.Forget()
		capsule := x.oz.Capsule(sandbox.CapsuleSpec{})
		conn := x.dialRaw(t)
		conn.sendHead(t, slices.Concat(postHead(path, len(capsule)), fields[1:], connection)...)
		conn.send(t, string(capsule))
		if a := conn.read(t, "POST"); a.Status != 200 {
			t.Fatalf("got %d %s", a.Status, a.Body)
		}
		return x.app.Only(t)
	}
	t.Run("decided", func(t *testing.T) {
		r := post(t, "/verify")
		for _, line := range fields[1:] {
			if name, value, _ := strings.Cut(line, ": "); r.Value(name) != value {
				t.Errorf("%s is %q, want %q", name, r.Value(name), value)
			}
		}
		if r.Value("X-Oz-Decision") != "SUCCESS" || len(r.Values("Connection")) > 0 {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		assertFolder(t, r)
	})
	t.Run("undecided", func(t *testing.T) {
		r := post(t, "/other")
		for _, name := range []string{"Cookie", "Authorization", "X-Custom", "X-Request-Id", "Connection"} {
			if len(r.Values(name)) > 0 {
				t.Errorf("the app got %s: %s", name, r.Value(name))
			}
		}
	})
}

// testReservedConnectionOfStreams promises the same where the field is forbidden: however the server takes it, the app gets the whole
// decision or no request.
func testReservedConnectionOfStreams(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	senders := map[string]func(t *testing.T, contentType, field, value string, capsule []byte) int{"h2": x.fieldOverH2, "h3": x.fieldOverH3}
	for proto, send := range senders {
		for _, value := range []string{"x-oz-decision", "close", "", "X-Oz-Decision, x-oz-quality", "x-oz-seal"} {
			t.Run(proto+" "+value, func(t *testing.T) {
				x.app.Forget()
				capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "session", PayloadSize: 1000})
				send(t, "application/octet-stream", "connection", value, capsule)
				for _, r := range x.app.Requests() {
					assertReserved(t, r, accepted.headers(r, "session"))
				}
			})
		}
	}
}
