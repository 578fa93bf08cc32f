package caddymodule

import (
	"context"
	"io"
	"net"
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
// capsule and half of its system calls.
func (c *graceConn) ReadFrom(r io.Reader) (int64, error) {
	buf := capsuleBuffers.Get().(*[]byte)
	defer capsuleBuffers.Put(buf)
	return io.CopyBuffer(writerOnly{c}, r, *buf)
}

// writerOnly hides ReadFrom from io.CopyBuffer, which would call it again.
type writerOnly struct{ io.Writer }

var capsuleBuffers = sync.Pool{New: func() any {
	b := make([]byte, 64<<10)
	return &b
}}
