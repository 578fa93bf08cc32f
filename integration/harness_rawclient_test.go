package integration_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// rawConn is a connection on which a test writes whatever bytes it likes and reads answers of HTTP/1.1.
type rawConn struct {
	net.Conn
	in *bufio.Reader
}

// dialRaw connects to Caddy's HTTP port.
func (p *caddyProc) dialRaw(t testing.TB) *rawConn {
	t.Helper()
	return dialRaw(t, p.HTTP)
}

// dialRawTLS connects to Caddy's HTTPS port and speaks HTTP/1.1 there.
func (p *caddyProc) dialRawTLS(t testing.TB) *rawConn {
	t.Helper()
	c := dialRaw(t, p.HTTPS)
	trust := &tls.Config{RootCAs: p.cert.pool, ServerName: "localhost", NextProtos: []string{"http/1.1"}}
	conn := tls.Client(c.Conn, trust)
	check(t, conn.HandshakeContext(t.Context()))
	return &rawConn{Conn: conn, in: bufio.NewReader(conn)}
}

func dialRaw(t testing.TB, address string) *rawConn {
	t.Helper()
	return dialRawBy(t, &net.Dialer{}, address)
}

// dialRawBy is dialRaw by a dialer, such as one from a certain address.
func dialRawBy(t testing.TB, dialer *net.Dialer, address string) *rawConn {
	t.Helper()
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	return &rawConn{Conn: conn, in: bufio.NewReader(conn)}
}

// send writes text as it stands.
func (c *rawConn) send(t testing.TB, text string) {
	t.Helper()
	_, err := io.WriteString(c.Conn, text)
	check(t, err)
}

// sendHead writes a request line and header lines, and the empty line.
func (c *rawConn) sendHead(t testing.TB, lines ...string) {
	t.Helper()
	c.send(t, strings.Join(lines, "\r\n")+"\r\n\r\n")
}

// sendChunk writes one chunk; an empty one is the last, without the lines after it.
func (c *rawConn) sendChunk(t testing.TB, data string) {
	t.Helper()
	if data == "" {
		c.send(t, "0\r\n")
		return
	}
	c.send(t, fmt.Sprintf("%x\r\n%s\r\n", len(data), data))
}

// read reads the next answer, that to a request of the given method. Answers that are not final, such as 100 Continue, are answers
// of their own.
func (c *rawConn) read(t testing.TB, method string) answer {
	t.Helper()
	a, err := c.tryRead(method)
	if err != nil {
		t.Fatalf("reading an answer: %v", err)
	}
	return a
}

// readLast reads an answer and leaves: else the gateway would wait a moment for the rest of the body.
func (c *rawConn) readLast(t testing.TB, method string) answer {
	t.Helper()
	defer c.Close()
	return c.read(t, method)
}

// tryRead is read for answers that may not come.
func (c *rawConn) tryRead(method string) (answer, error) {
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.Close {
		resp.Header.Set("Connection", "close") // ReadResponse takes the field away
	}
	return answer{resp.StatusCode, resp.Header, body, resp.Trailer}, err
}

// ends fails the test unless the server closes the connection with nothing more to say.
func (c *rawConn) ends(t testing.TB) {
	t.Helper()
	if rest, err := io.ReadAll(c.in); len(rest) > 0 {
		t.Errorf("more came on the connection: %q", rest)
	} else if err, ok := err.(net.Error); ok && err.Timeout() {
		t.Error("the connection was left open")
	}
}

// postHead is the head of a capsule's POST, to which a test may add lines. A negative size is chunked.
func postHead(path string, size int, lines ...string) []string {
	length := fmt.Sprintf("Content-Length: %d", size)
	if size < 0 {
		length = "Transfer-Encoding: chunked"
	}
	return append([]string{
		"POST " + path + " HTTP/1.1", "Host: localhost", "Content-Type: application/octet-stream", length,
	}, lines...)
}
