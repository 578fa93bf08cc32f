package caddymodule

import (
	"context"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// answerGrace is how long a failed write to Oz waits before it is reported.
// Oz may answer 400 before the upload ends and close without draining it:
// net/http then sees the write fail, gives up the connection and loses the
// answer that was already under way. With this much patience it won every
// time; without it, one to two answers of three were lost.
const answerGrace = 100 * time.Millisecond

// graceDials makes every connection of ht a graceConn.
func graceDials(ht *reverseproxy.HTTPTransport) {
	dial := ht.Transport.DialContext
	ht.Transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &graceConn{Conn: conn, closed: make(chan struct{})}, nil
	}
}

type graceConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}

	mu    sync.Mutex
	onEnd map[any]func() // what to do when there is nothing more to read, by who wants it: calls may share a connection
}

// Read implements net.Conn. net/http does not report a lost connection while
// it waits for more of the capsule to send, which may take as long as a client
// likes. So whoever brings the capsule hears of it here.
func (c *graceConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.tell()
	}
	return n, err
}

func (c *graceConn) tell() {
	c.mu.Lock()
	all := slices.Collect(maps.Values(c.onEnd))
	c.mu.Unlock()
	for _, f := range all {
		f()
	}
}

// whenEnded has f called when nothing more can be read from conn, if that is a
// connection of ours, until the same who comes with nil.
func whenEnded(conn net.Conn, who any, f func()) {
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = wrapped.NetConn()
	}
	c, ours := conn.(*graceConn)
	if !ours {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if f == nil {
		delete(c.onEnd, who)
		return
	}
	if c.onEnd == nil {
		c.onEnd = make(map[any]func(), 1)
	}
	c.onEnd[who] = f
}

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

func (c *graceConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// ReadFrom implements io.ReaderFrom: net/http sends a body through it. A
// buffer from a pool, larger than io.Copy's, saves an allocation for each
// capsule and three of four of its system calls; one still larger would show
// in the memory of many capsules at once.
func (c *graceConn) ReadFrom(r io.Reader) (int64, error) {
	buf := capsuleBuffers.Get().(*[]byte)
	defer capsuleBuffers.Put(buf)
	return io.CopyBuffer(writerOnly{c}, r, *buf)
}

// writerOnly hides ReadFrom from io.CopyBuffer, which would call it again.
type writerOnly struct{ io.Writer }

var capsuleBuffers = sync.Pool{New: func() any {
	b := make([]byte, 128<<10)
	return &b
}}
