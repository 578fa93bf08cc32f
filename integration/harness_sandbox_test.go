package integration_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// ozServer is a stand-in for Oz Instant on a port of its own.
type ozServer struct {
	*sandbox.Sandbox
	Addr string
	URL  string
}

// startSandbox starts a stand-in for Oz Instant that runs until the test ends.
func startSandbox(t testing.TB, options sandbox.Options) *ozServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	return serveSandbox(t, l, options)
}

// serveSandbox is startSandbox on a listener.
func serveSandbox(t testing.TB, l net.Listener, options sandbox.Options) *ozServer {
	t.Helper()
	sb, err := sandbox.New(options)
	check(t, err)
	server := httptest.NewUnstartedServer(sb)
	server.Listener.Close()
	server.Listener = sb.Listener(l) // for faults that come before any handler
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close) // waits for what is in progress, which the sandbox lets go of first
	t.Cleanup(sb.Close)
	return &ozServer{Sandbox: sb, Addr: server.Listener.Addr().String(), URL: server.URL}
}

// fault sets a fault by its text, such as status:503; an empty one ends it.
func (o *ozServer) fault(t testing.TB, text string) {
	t.Helper()
	f, err := sandbox.ParseFault(text)
	check(t, err)
	o.SetFault(f)
}
