package integration_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
)

// rawH3 is one request over HTTP/3 on a connection of its own. A test writes the body by itself, of any length whatever the header
// says, and ends it with Close.
type rawH3 struct {
	*http3.RequestStream
	conn *quic.Conn
}

// dialH3 connects to Caddy's HTTPS port and does the opening of the protocol.
func (p *caddyProc) dialH3(t testing.TB) (*quic.Conn, *http3.ClientConn) {
	t.Helper()
	trust := &tls.Config{RootCAs: p.cert.pool, ServerName: "localhost", NextProtos: []string{http3.NextProtoH3}}
	conn, err := quic.DialAddr(t.Context(), p.HTTPS, trust, &quic.Config{HandshakeIdleTimeout: patience})
	check(t, err)
	t.Cleanup(func() { conn.CloseWithError(0, "") })
	return conn, new(http3.Transport).NewClientConn(conn)
}

// openH3 sends the header of a capsule's POST. A negative size is left unsaid.
func (p *caddyProc) openH3(t testing.TB, path string, size int64) rawH3 {
	t.Helper()
	conn, client := p.dialH3(t)
	stream, err := client.OpenRequestStream(t.Context())
	check(t, err)
	check(t, stream.SetDeadline(time.Now().Add(patience)))

	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://"+p.HTTPS+path, http.NoBody) // but not nil: then the length is as said
	check(t, err)
	req.Header.Set("Content-Type", "application/octet-stream")
	req.ContentLength = size
	check(t, stream.SendRequestHeader(req))
	return rawH3{stream, conn}
}

// send writes a piece of the body.
func (s rawH3) send(t testing.TB, data string) {
	t.Helper()
	_, err := io.WriteString(s, data)
	check(t, err)
}

// tryRead reads the answer, which may not come.
func (s rawH3) tryRead() (answer, error) {
	resp, err := s.ReadResponse()
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, err
}

// read reads the answer.
func (s rawH3) read(t testing.TB) answer {
	t.Helper()
	a, err := s.tryRead()
	if err != nil {
		t.Fatalf("reading an answer: %v", err)
	}
	return a
}

// The frames of HTTP/3 (RFC 9114, 7.2) that are written and read here.
const (
	h3Data    = 0x0
	h3Headers = 0x1
)

// h3Frames is a request over HTTP/3 on which a test writes frames of its own making, such as fields that no client library would
// send. Close ends its side.
type h3Frames struct{ *quic.Stream }

// openFrames begins a request on a connection from dialH3.
func openFrames(t testing.TB, conn *quic.Conn) h3Frames {
	t.Helper()
	stream, err := conn.OpenStreamSync(t.Context())
	check(t, err)
	check(t, stream.SetDeadline(time.Now().Add(patience)))
	return h3Frames{stream}
}

// sendFields writes a header or a trailer. Names and values come in turn and go as they are; HTTP/3 wants lower case. What Caddy
// refuses to read makes no error here: the answer tells.
func (s h3Frames) sendFields(t testing.TB, fields ...string) {
	t.Helper()
	var block bytes.Buffer
	encoder := qpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		check(t, encoder.WriteField(qpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	s.sendFrame(h3Headers, block.Bytes())
}

// sendFrame writes a frame, unless Caddy wants no more of this request.
func (s h3Frames) sendFrame(kind uint64, payload []byte) {
	head := quicvarint.Append(quicvarint.Append(nil, kind), uint64(len(payload)))
	s.Write(append(head, payload...))
}

// tryRead reads the answer, which may not come.
func (s h3Frames) tryRead() (a answer, err error) {
	in := quicvarint.NewReader(bufio.NewReader(s))
	for {
		kind, err := quicvarint.Read(in)
		if errors.Is(err, io.EOF) && a.Status != 0 {
			return a, nil
		}
		if err != nil {
			return a, err
		}
		size, err := quicvarint.Read(in)
		if err != nil {
			return a, err
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(in, payload); err != nil {
			return a, err
		}
		switch {
		case kind == h3Data:
			a.Body = append(a.Body, payload...)
		case kind == h3Headers && a.Status == 0:
			if err := a.takeFields(payload); err != nil {
				return a, err
			}
		}
	}
}

// takeFields reads the header of an answer over HTTP/3.
func (a *answer) takeFields(block []byte) error {
	a.Header = http.Header{}
	decode := qpack.NewDecoder().Decode(block)
	for {
		field, err := decode()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		a.Header.Add(field.Name, field.Value)
		if field.Name == ":status" {
			if _, err := fmt.Sscan(field.Value, &a.Status); err != nil {
				return err
			}
		}
	}
}
