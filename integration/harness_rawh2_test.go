package integration_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawH2 is a connection of HTTP/2 over TLS on which a test writes frames of its own making, such as fields that no client
// library would send.
type rawH2 struct {
	*http2.Framer
	conn net.Conn
	out  *bytes.Buffer // a field block in progress
	enc  *hpack.Encoder

	writing sync.Mutex // held by what writes while the connection is read
}

// h2Answer is a whole answer, or how its stream ended.
type h2Answer struct {
	Status  int
	Fields  []hpack.HeaderField // in the order they came, trailers too
	Body    []byte
	Reset   http2.ErrCode // with WasReset
	GoAway  http2.ErrCode // with WasGoAway
	HasEnd  bool          // a whole answer came
	IsReset bool          // RST_STREAM came
	IsAway  bool          // GOAWAY came
}

// dialRawH2 connects to Caddy's HTTPS port and does the opening of the protocol.
func (p *caddyProc) dialRawH2(t testing.TB) *rawH2 {
	t.Helper()
	conn, err := tls.Dial("tcp", p.HTTPS, &tls.Config{RootCAs: p.cert.pool, ServerName: "localhost", NextProtos: []string{"h2"}})
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	check(t, conn.SetDeadline(time.Now().Add(patience)))
	_, err = io.WriteString(conn, http2.ClientPreface)
	check(t, err)

	c := &rawH2{Framer: http2.NewFramer(conn, conn), conn: conn, out: new(bytes.Buffer)}
	c.enc = hpack.NewEncoder(c.out)
	c.AllowIllegalWrites = true
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	check(t, c.WriteSettings())
	return c
}

// h2FrameSize is how much fits into one frame before the server has said that it takes more.
const h2FrameSize = 16 << 10

// sendFields writes a header or a trailer, in as many frames as it takes. Names and values come in turn and go as they are; HTTP/2
// wants lower case.
func (c *rawH2) sendFields(t testing.TB, stream uint32, end bool, fields ...string) {
	t.Helper()
	check(t, c.trySendFields(stream, end, fields...))
}

// trySendFields is sendFields for a connection that the server may have closed.
func (c *rawH2) trySendFields(stream uint32, end bool, fields ...string) error {
	c.out.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	first := c.out.Next(h2FrameSize)
	err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: end, EndHeaders: c.out.Len() == 0})
	for err == nil && c.out.Len() > 0 {
		more := c.out.Next(h2FrameSize)
		err = c.WriteContinuation(stream, c.out.Len() == 0, more)
	}
	return err
}

// postFields are the fields of a capsule's POST, to which a test may add. A negative size is left unsaid.
func postFields(path string, size int, fields ...string) []string {
	all := []string{
		":method", "POST", ":scheme", "https", ":authority", "localhost", ":path", path, "content-type", "application/octet-stream",
	}
	if size >= 0 {
		all = append(all, "content-length", strconv.Itoa(size))
	}
	return append(all, fields...)
}

// read reads frames until the stream's answer is whole or was cut off.
func (c *rawH2) read(t testing.TB, stream uint32) h2Answer {
	t.Helper()
	a, err := c.tryRead(stream)
	if err != nil {
		t.Fatalf("reading the answer on stream %d: %v; so far: %+v", stream, err, a)
	}
	return a
}

// tryRead is read for answers that may not come.
func (c *rawH2) tryRead(stream uint32) (a h2Answer, err error) {
	for !a.HasEnd && !a.IsReset && !a.IsAway {
		frame, err := c.ReadFrame()
		if err != nil {
			return a, err
		}
		if err := c.handle(frame, stream, &a); err != nil {
			return a, err
		}
	}
	return a, nil
}

// plain is the answer as other clients of this package have it.
func (a h2Answer) plain() answer {
	plain := answer{Status: a.Status, Header: http.Header{}, Body: a.Body}
	for _, field := range a.Fields {
		plain.Header.Add(field.Name, field.Value)
	}
	return plain
}

func (c *rawH2) handle(frame http2.Frame, stream uint32, a *h2Answer) error {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			c.writing.Lock()
			defer c.writing.Unlock()
			return c.WriteSettingsAck()
		}
		return nil
	case *http2.GoAwayFrame:
		// A graceful one (NO_ERROR) announces the end and leaves the streams to finish.
		a.GoAway, a.IsAway = f.ErrCode, f.ErrCode != http2.ErrCodeNo
		return nil
	}
	if frame.Header().StreamID != stream {
		return nil
	}
	switch f := frame.(type) {
	case *http2.MetaHeadersFrame:
		a.Fields = append(a.Fields, f.Fields...)
		a.HasEnd = f.StreamEnded()
		if status := f.PseudoValue("status"); status != "" {
			_, err := fmt.Sscan(status, &a.Status)
			return err
		}
	case *http2.DataFrame:
		a.Body = append(a.Body, f.Data()...)
		a.HasEnd = f.StreamEnded()
	case *http2.RSTStreamFrame:
		a.Reset, a.IsReset = f.ErrCode, true
	}
	return nil
}
