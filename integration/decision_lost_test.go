package integration_test

import (
	"bufio"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestDecisionWhenTheConnectionIsLost is about row 16: something of the capsule was taken and no answer came.
func TestDecisionWhenTheConnectionIsLost(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, decisionSite)
	lost := unavailable("connection_lost", 502)
	large := sandbox.CapsuleSpec{PayloadSize: 4 << 20}
	x.run(t, []decisionCase{
		{name: "16 closed at once", fault: "close", want: lost},
		{name: "16 closed at once, in the middle of a large capsule", fault: "close", spec: large, want: lost},
		{name: "16 reset in the capsule", fault: "reset-body", spec: large, want: lost},
		{name: "16 reset at its first byte", fault: "reset-body:1", spec: large, want: lost},
		{name: "16 reset instead of an answer", fault: "reset", want: lost},
		{name: "16 analyses none", path: "/none", fault: "reset", want: lost},
	})
}

// TestDecisionWhenOzClosesOnAccept is about an Oz that takes connections and drops them. If that is seen before the first byte of
// the capsule is on its way, nothing was sent, row 15; else something may have been, row 16.
func TestDecisionWhenOzClosesOnAccept(t *testing.T) {
	t.Parallel()
	sb, err := sandbox.New(sandbox.Options{Fault: sandbox.MustFault("close-accept")})
	check(t, err)
	server := httptest.NewUnstartedServer(sb)
	server.Listener = sb.Listener(server.Listener)
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(sb.Close)
	app := newRawApp(t)
	x := &chain{startCaddy(t, decisionSite, withEnv("OZ", server.URL), withEnv("APP", app.Addr)), nil, app}
	c := x.client(t, "h1")
	for range 5 {
		j := x.observe(t, func() answer { return c.post(t, "/verify", sb.Capsule(sandbox.CapsuleSpec{PayloadSize: 1 << 20})) })
		want := unavailable("connection_lost", 502)
		if len(j.decided) == 1 && j.decided[0].Get("reason").Str == "unreachable" {
			want = unavailable("unreachable", 502)
		}
		want.assert(t, j, "")
	}
}

// TestDecisionWhenTheAnswerIsNoHTTP is about answers that break the protocol: no words in them count. Which of two reasons is
// given is of no interest; that the app is not called is.
func TestDecisionWhenTheAnswerIsNoHTTP(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { listener.Close() })
	answers := make(chan string, 1)
	t.Cleanup(func() { close(answers) })
	go func() {
		for text := range answers {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			readRawRequest(bufio.NewReader(conn))
			io.WriteString(conn, text)
			conn.Close()
		}
	}()
	app := newRawApp(t)
	x := &chain{startCaddy(t, decisionSite, withEnv("OZ", "http://"+listener.Addr().String()), withEnv("APP", app.Addr)), nil, app}
	c := x.client(t, "h1")
	const folder = `{"resolution_status":"FINISHED","system_resolution":"SUCCESS"}` // enough for /none
	for name, text := range map[string]string{
		"two lengths":          "HTTP/1.1 201 Created\r\nContent-Length: 62\r\nContent-Length: 10\r\n\r\n" + folder,
		"no number":            "HTTP/1.1 201 Created\r\nContent-Length: +62\r\n\r\n" + folder,
		"unknown coding":       "HTTP/1.1 201 Created\r\nTransfer-Encoding: gzip\r\n\r\n" + folder,
		"bad chunks":           "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n" + folder,
		"no status":            "HTTP/1.1 \r\n\r\n" + folder,
		"HTTP/0.9":             folder,
		"a header without end": "HTTP/1.1 201 Created\r\nX: " + strings.Repeat("x", 20<<20),
		"TLS":                  "\x15\x03\x01\x00\x02\x02\x16",
	} {
		t.Run(name, func(t *testing.T) {
			answers <- text
			j := x.observe(t, func() answer { return c.post(t, "/none", []byte("capsule")) })
			want := unavailable("connection_lost", 502)
			if len(j.decided) == 1 && j.decided[0].Get("reason").Str == "malformed_answer" {
				want = malformed
			}
			want.assert(t, j, "")
			if strings.Contains(x.logs.String(), "FINISHED") {
				t.Error("a piece of the answer is in the log")
			}
		})
	}
}

// TestDecisionWhenOzIsSlow is about row 17, however Oz is slow. The client gets its 504 and does not wait for Oz.
func TestDecisionWhenOzIsSlow(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, decisionSite)
	late := unavailable("timeout", 504)
	large := sandbox.CapsuleSpec{PayloadSize: 24 << 20} // more than the sockets hold
	x.run(t, []decisionCase{
		{name: "17 no answer", path: "/short", fault: "hang", want: late},
		{name: "17 capsule not read", path: "/short", fault: "hang-reading", want: late},
		{name: "17 large capsule not read", path: "/short", fault: "hang-reading", spec: large, want: late},
		{name: "17 large capsule read too slowly", path: "/short", fault: "slow-reading", spec: large, want: late},
		{name: "17 dripping", path: "/short", fault: "drip", want: late},
		{name: "17 an answer longer than it is", path: "/short", fault: "length:long", want: late},
	})
}

// TestDecisionWhenOzIsOutOfReach is about row 15: nothing was sent.
func TestDecisionWhenOzIsOutOfReach(t *testing.T) {
	t.Parallel()
	tlsOz := httptest.NewTLSServer(nil)
	t.Cleanup(tlsOz.Close)
	plain, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	check(t, err)
	t.Cleanup(func() { plain.Close() })
	oz, app := startSandbox(t, sandbox.Options{}), newRawApp(t)
	p := startCaddy(t, `
{$SITE} {
	log
	oz_instant /dead {$DEAD}
	oz_instant /unnamed http://oz.invalid:9
	oz_instant /untrusted https://{$TLS}
	oz_instant /not-tls https://{$OZ_ADDR}
	oz_instant /handshake https://{$SILENT} {
		transport http {
			tls_timeout 300ms
		}
	}
	oz_instant /down {$DEAD2} {
		fail_duration 1m
	}
	reverse_proxy {$APP}
}`, withEnv("DEAD", deadAddress(t)), withEnv("DEAD2", deadAddress(t)), withEnv("SILENT", plain.Addr().String()),
		withEnv("TLS", tlsOz.Listener.Addr().String()), withEnv("OZ_ADDR", oz.Addr), withEnv("APP", app.Addr))
	x := &chain{p, oz, app}
	c := x.client(t, "h1")
	for _, test := range []struct {
		path string
		http int
	}{
		{"/dead", 502}, {"/unnamed", 502}, {"/untrusted", 502}, {"/not-tls", 502}, {"/handshake", 502},
		{"/down", 502}, {"/down", 503}, // now it is marked
	} {
		t.Run(test.path[1:], func(t *testing.T) {
			j := x.observe(t, func() answer { return c.post(t, test.path, make([]byte, 300_000)) })
			unavailable("unreachable", test.http).assert(t, j, "")
		})
	}
	if n := len(x.oz.Received()); n != 0 {
		t.Errorf("Oz got %d capsules", n)
	}
}
