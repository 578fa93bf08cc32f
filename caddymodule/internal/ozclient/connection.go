package ozclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// answerGrace is how long a failed write to Oz waits before it is reported.
// Oz may answer 400 before the upload ends and close without draining it:
// net/http then sees the write fail, gives up the connection and loses the
// answer that had already arrived. With this much patience it won every time;
// without it, one to two answers of three were lost.
const answerGrace = 100 * time.Millisecond

// handshakeTimeout bounds a TLS handshake, unless the operator does. Caddy has
// no limit of its own, and net/http continues a handshake whose request has
// ended: each capsule to an Oz that hangs there would leave a connection behind.
const handshakeTimeout = 10 * time.Second

// graceDials makes every connection of ht a graceConn.
func graceDials(ht *reverseproxy.HTTPTransport) {
	if ht.Transport.TLSHandshakeTimeout == 0 {
		ht.Transport.TLSHandshakeTimeout = handshakeTimeout
	}
	dial := ht.Transport.DialContext
	graceful := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return newGraceConn(conn), nil
	}
	ht.Transport.DialContext = graceful
	if ht.Transport.DialTLSContext != nil {
		ht.Transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := graceful(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return handshake(ctx, conn, ht)
		}
	}
}

// handshake does what Caddy's own TLS dialer does, which it uses with a
// placeholder in tls_server_name and with proxy_protocol. That one dials past
// DialContext: 12 of 40 early answers of Oz were lost through it.
func handshake(ctx context.Context, conn net.Conn, ht *reverseproxy.HTTPTransport) (net.Conn, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if given := ht.Transport.TLSClientConfig; given != nil { // nil if no option is set
		config = given.Clone()
	}
	repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	fromRequest := ok && strings.Contains(config.ServerName, "{")
	if fromRequest {
		config.ServerName = repl.ReplaceAll(config.ServerName, "")
	}
	if di, ok := reverseproxy.GetDialInfo(ctx); ok && config.ServerName == "" {
		config.ServerName = di.Host
	}
	if limit := ht.Transport.TLSHandshakeTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		if fromRequest {
			err = fmt.Errorf("%w: %w", errRequestName, err)
		}
		return nil, err
	}
	return secured, nil
}

// errRequestName marks a handshake that failed with a name out of the client's
// request, which the client may have made up.
var errRequestName = errors.New("with a tls_server_name from the request")

// graceConn is a connection to Oz that does not lose an early answer, and tells
// when Oz has ended it.
type graceConn struct {
	net.Conn
	life context.Context // ends when Oz ends the connection, with the reason as its cause
	end  context.CancelCauseFunc

	closed chan struct{}
	close  sync.Once
}

func newGraceConn(conn net.Conn) *graceConn {
	c := &graceConn{Conn: conn, closed: make(chan struct{})}
	c.life, c.end = context.WithCancelCause(context.Background())
	return c
}

// graceConnOf returns the graceConn that conn is, if not of another dialer.
func graceConnOf(conn net.Conn) (*graceConn, bool) {
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = wrapped.NetConn()
	}
	c, ok := conn.(*graceConn)
	return c, ok
}

// Read implements net.Conn. net/http does not report a lost connection while
// it waits for more of the capsule to send, which may take as long as a client
// likes. So life tells the calls on the connection; with HTTP/2 these are many.
func (c *graceConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.end(err)
	}
	return n, err
}

// Write implements net.Conn.
func (c *graceConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.wait()
	}
	return n, err
}

func (c *graceConn) wait() {
	timer := time.NewTimer(answerGrace)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.closed:
	}
}

// Close implements net.Conn.
func (c *graceConn) Close() error {
	c.close.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// ReadFrom implements io.ReaderFrom: net/http sends a body through it. A
// buffer from a pool, larger than io.Copy's, saves an allocation for each
// capsule and two of three of its system calls; one still larger saves no more,
// and shows in the memory of many capsules at once.
func (c *graceConn) ReadFrom(r io.Reader) (int64, error) {
	buf := capsuleBuffers.Get().(*[]byte)
	defer capsuleBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{c}, r, *buf) // which would call ReadFrom again
}

var capsuleBuffers = sync.Pool{New: func() any {
	b := make([]byte, 96<<10)
	return &b
}}
