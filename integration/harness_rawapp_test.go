package integration_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// rawApp is the app that already exists, as a server of HTTP/1.1 that knows little and notes everything: what it got is
// looked at as bytes, not as what a HTTP library makes of them.
type rawApp struct {
	Addr string

	listener net.Listener
	mu       sync.Mutex
	requests []rawRequest
	answer   func(rawRequest) string
	conns    map[net.Conn]bool
	changed  chan struct{} // closed with the next request
}

// newRawApp starts an app on a port of its own that answers every request with 200 and a small body.
func newRawApp(t testing.TB) *rawApp {
	t.Helper()
	return newRawAppAt(t, "tcp", "127.0.0.1:0")
}

// newRawAppAt is newRawApp at a certain address, such as a socket's.
func newRawAppAt(t testing.TB, network, address string) *rawApp {
	t.Helper()
	listener, err := net.Listen(network, address)
	check(t, err)
	a := &rawApp{Addr: listener.Addr().String(), listener: listener, conns: map[net.Conn]bool{}, changed: make(chan struct{})}
	a.Answer(func(rawRequest) string { return rawAnswer("200 OK", "seen by the app\n") })
	t.Cleanup(func() { a.close(t) })
	go a.serve()
	return a
}

// rawAnswer is an answer as the app writes it.
func rawAnswer(status, body string) string {
	return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

// Answer has the app answer with what f returns, as it stands, less the content for HEAD. It may block, to hold an answer back; with
// an empty answer the connection is closed.
func (a *rawApp) Answer(f func(rawRequest) string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = f
}

// Requests returns what came so far.
func (a *rawApp) Requests() []rawRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]rawRequest{}, a.requests...)
}

// Last returns the latest request.
func (a *rawApp) Last(t testing.TB) rawRequest {
	t.Helper()
	requests := a.Requests()
	if len(requests) == 0 {
		t.Fatal("the app got no request")
	}
	return requests[len(requests)-1]
}

// Only returns the one request that came.
func (a *rawApp) Only(t testing.TB) rawRequest {
	t.Helper()
	if n := len(a.Requests()); n != 1 {
		t.Fatalf("the app got %d requests, want 1", n)
	}
	return a.Last(t)
}

// None fails the test if anything came.
func (a *rawApp) None(t testing.TB) {
	t.Helper()
	for _, r := range a.Requests() {
		t.Errorf("the app got a request:\n%s", r.Raw())
	}
}

// Wait returns the first n requests as soon as they are there.
func (a *rawApp) Wait(t testing.TB, n int) []rawRequest {
	t.Helper()
	timeout := time.After(patience)
	for {
		a.mu.Lock()
		requests, changed := a.requests, a.changed
		a.mu.Unlock()
		if len(requests) >= n {
			return requests[:n:n]
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("the app got %d requests, want %d", len(requests), n)
		}
	}
}

// Forget drops what came so far.
func (a *rawApp) Forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = nil
}

// cut drops all requests but the first n.
func (a *rawApp) cut(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = a.requests[:n]
}

func (a *rawApp) serve() {
	for number := 0; ; number++ {
		conn, err := a.listener.Accept()
		if err != nil {
			return
		}
		a.mu.Lock()
		a.conns[conn] = true
		a.mu.Unlock()
		go a.serveConn(conn, number)
	}
}

// serveConn reads one request after the other. What is no request ends the connection, and the test fails over it in the end,
// since smuggled bytes show up just so.
func (a *rawApp) serveConn(conn net.Conn, number int) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		if _, err := r.Peek(1); err != nil {
			return // the end, between two requests
		}
		request, err := readRawRequest(r)
		request.Conn, request.Broken = number, err
		answer := a.take(request)
		if err != nil {
			return
		}
		text := answer(request)
		if head, _, has := strings.Cut(text, "\r\n\r\n"); has && strings.HasPrefix(request.Line, "HEAD ") {
			text = head + "\r\n\r\n" // content would be taken for the answer to the next request
		}
		if _, err := io.WriteString(conn, text); err != nil || text == "" {
			return
		}
	}
}

// take notes a request and returns how to answer it.
func (a *rawApp) take(request rawRequest) func(rawRequest) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, request)
	close(a.changed)
	a.changed = make(chan struct{})
	return a.answer
}

func (a *rawApp) close(t testing.TB) {
	a.listener.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for conn := range a.conns {
		conn.Close()
	}
	for _, r := range a.requests {
		if errors.As(r.Broken, new(rawError)) {
			t.Errorf("the app got what is no request (%v):\n%s", r.Broken, r.Raw())
		}
	}
}
