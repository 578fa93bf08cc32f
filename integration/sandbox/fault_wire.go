package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Faults of the wire. Those that HTTP forbids take the connection away from net/http and write to the socket. A
// connection that cannot be taken, HTTP/2's, has its stream reset instead, the nearest there is.

// hijack takes the connection over.
func (x *exchange) hijack() net.Conn {
	conn, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		x.abort()
	}
	conn.SetDeadline(time.Time{})
	return conn
}

// reset ends a connection with RST: what was sent and not yet read on the other side is lost.
func reset(conn net.Conn) {
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS: no farewell alert
		conn = wrapped.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// hold waits until the fault is changed, the sandbox closes, or ctx ends.
func (x *exchange) hold(ctx context.Context) {
	select {
	case <-x.met.released:
	case <-x.s.done:
	case <-ctx.Done():
	}
}

func closeUnread(x *exchange) { x.hijack().Close() }

func resetInBody(x *exchange) {
	x.meter.copyTo(nil, x.met.Bytes)
	reset(x.hijack())
}

func resetAfterBody(x *exchange, _ answer) { reset(x.hijack()) }

func hang(x *exchange, _ answer) {
	x.hold(x.r.Context())
	x.abort()
}

// hangUnread cannot learn that the client has left, because it does not read; it waits to be let go.
func hangUnread(x *exchange) {
	if x.r.ProtoMajor > 1 {
		hang(x, answer{})
	}
	conn := x.hijack()
	defer conn.Close()
	x.hold(context.Background())
}

func slowReading(x *exchange, body io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		ctx, cancel := context.WithTimeout(x.r.Context(), x.met.Pause)
		defer cancel()
		x.hold(ctx)
		return body.Read(p[:min(int64(len(p)), x.met.Bytes)])
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// answerEarly answers in the middle of the upload. Closing with unread data makes the kernel send RST, which may overtake
// the answer: exactly what a client of such a server has to cope with.
func answerEarly(x *exchange) {
	x.meter.copyTo(nil, x.met.Bytes)
	a := refusalAnswer(errNotOurs, x.o)
	if x.met.Status != http.StatusBadRequest {
		a = jsonAnswer(http.StatusCreated, x.goodFolder())
		answerStatus(&a, x)
	}
	if x.r.ProtoMajor > 1 {
		x.send(a)
		return
	}
	a.render()
	x.answered(a)
	conn := x.hijack()
	defer conn.Close()
	conn.Write(rawAnswer(a, "Connection: close", "Content-Length: "+strconv.Itoa(len(a.body))))
}

// rawAnswer is an answer as HTTP/1.1 writes it, with header lines added that net/http would not let through.
func rawAnswer(a answer, lines ...string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", a.status, http.StatusText(a.status))
	a.header.Write(&b)
	for _, line := range lines {
		b.WriteString(line + "\r\n")
	}
	b.WriteString("\r\n")
	b.Write(a.body)
	return b.Bytes()
}

// part is how much of an answer comes before it is cut.
func (x *exchange) part(a answer) []byte {
	if x.met.Bytes == 0 {
		return a.body[:len(a.body)/2]
	}
	return a.body[:min(int64(len(a.body)), x.met.Bytes)]
}

func sendCut(x *exchange, a answer) {
	x.w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	sendCutChunked(x, a)
}

func sendCutChunked(x *exchange, a answer) {
	x.begin(a)
	x.w.WriteHeader(a.status)
	x.w.Write(x.part(a))
	http.NewResponseController(x.w).Flush()
	x.abort()
}

func sendDrip(x *exchange, a answer) {
	x.begin(a)
	x.w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	x.w.WriteHeader(a.status)
	for len(a.body) > 0 {
		n := min(int64(len(a.body)), x.met.Bytes)
		if _, err := x.w.Write(a.body[:n]); err != nil {
			x.abort()
		}
		http.NewResponseController(x.w).Flush()
		a.body = a.body[n:]
		ctx, cancel := context.WithTimeout(x.r.Context(), x.met.Pause)
		x.hold(ctx)
		cancel()
		if gone := context.Cause(x.r.Context()); gone != nil || x.letGo() {
			x.abort()
		}
	}
}

// letGo reports whether the fault was changed meanwhile.
func (x *exchange) letGo() bool {
	select {
	case <-x.met.released:
		return true
	case <-x.s.done:
		return true
	default:
		return false
	}
}

func sendChunked(x *exchange, a answer) {
	const chunk = 8 << 10
	x.begin(a)
	x.w.WriteHeader(a.status)
	for len(a.body) > 0 {
		n := min(len(a.body), chunk)
		x.w.Write(a.body[:n])
		http.NewResponseController(x.w).Flush()
		a.body = a.body[n:]
	}
}

func sendTrailers(x *exchange, a answer) {
	sendChunked(x, a)
	x.w.Header().Set(http.TrailerPrefix+"X-Oz-Decision", Success) // must reach nobody
}

func sendInformational(x *exchange, a answer) {
	h := x.w.Header()
	h.Set("Link", "</style.css>; rel=preload; as=style")
	h.Set("X-Oz-Decision", Success) // must reach nobody
	x.w.WriteHeader(http.StatusEarlyHints)
	x.w.WriteHeader(http.StatusProcessing)
	h.Del("Link")
	h.Del("X-Oz-Decision")
	x.send(a)
}

func sendUpgrade(x *exchange, a answer) {
	a.status, a.header = http.StatusSwitchingProtocols, http.Header{}
	x.answered(a)
	conn := x.hijack()
	conn.Write(rawAnswer(a, "Connection: Upgrade", "Upgrade: websocket"))
	x.linger(conn)
}

func sendDishonest(x *exchange, a answer) {
	length := func(n int) string { return "Content-Length: " + strconv.Itoa(n) }
	size := len(a.body)
	var raw []byte
	switch x.met.Word {
	case "short":
		raw = rawAnswer(a, length(size/2))
	case "long":
		raw = rawAnswer(a, length(size+100))
	case "twice":
		raw = rawAnswer(a, length(size), length(size/2))
	case "chunked":
		a.body = append(fmt.Appendf(nil, "%x\r\n", size), append(a.body, "\r\n0\r\n\r\n"...)...)
		raw = rawAnswer(a, length(size/2), "Transfer-Encoding: chunked")
	}
	x.answered(a)
	conn := x.hijack()
	conn.Write(raw)
	x.linger(conn)
}

// linger keeps a connection open, and silent, until the client closes it or the fault is changed.
func (x *exchange) linger(conn net.Conn) {
	ctx, left := context.WithCancel(context.Background())
	go func() {
		defer left()
		io.Copy(io.Discard, conn)
	}()
	x.hold(ctx)
	conn.Close()
	<-ctx.Done()
}

// Listener wraps a listener for the fault "close-accept", which no handler can bring about.
func (s *Sandbox) Listener(l net.Listener) net.Listener { return &listener{l, s} }

type listener struct {
	net.Listener
	s *Sandbox
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || !l.s.closeOnAccept() {
			return conn, err
		}
		conn.Close()
	}
}

func (s *Sandbox) closeOnAccept() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.opts.Fault
	if f.Kind != "close-accept" || (f.Times > 0 && s.faultUses >= f.Times) {
		return false
	}
	s.faultUses++
	return true
}
