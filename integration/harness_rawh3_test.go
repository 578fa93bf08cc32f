package integration_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// rawH3 is one request over HTTP/3 on a connection of its own. A test writes the body by itself, of any length whatever the header
// says, and ends it with Close.
type rawH3 struct {
	*http3.RequestStream
	conn *quic.Conn
}

// openH3 sends the header of a capsule's POST. A negative size is left unsaid.
func (p *caddyProc) openH3(t testing.TB, path string, size int64) rawH3 {
	t.Helper()
	trust := &tls.Config{RootCAs: p.cert.pool, ServerName: "localhost", NextProtos: []string{http3.NextProtoH3}}
	conn, err := quic.DialAddr(t.Context(), p.HTTPS, trust, nil)
	check(t, err)
	t.Cleanup(func() { conn.CloseWithError(0, "") })
	stream, err := new(http3.Transport).NewClientConn(conn).OpenRequestStream(t.Context())
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
