package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wire is a client that looks at the socket itself.
type wire struct {
	t    *testing.T
	s    *Sandbox
	url  string
	conn net.Conn
}

// dial opens a connection and sends the header of a capsule's request, with the length given.
func (w *wire) dial(length int) {
	w.t.Helper()
	w.dialAs("application/octet-stream", length)
}

func (w *wire) dialAs(contentType string, length int) {
	w.t.Helper()
	host := strings.TrimPrefix(w.url, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		w.t.Fatal(err)
	}
	w.conn = conn
	w.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	w.write(fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", FoldersPath, host, contentType, length))
}

func (w *wire) write(b []byte) {
	w.t.Helper()
	if _, err := w.conn.Write(b); err != nil {
		w.t.Fatal(err)
	}
}

// post sends a good capsule in whole.
func (w *wire) post() {
	w.t.Helper()
	c := w.s.Capsule(CapsuleSpec{})
	w.dial(len(c))
	w.write(c)
}

// rest reads until the connection ends, and how it ends.
func (w *wire) rest() (string, error) {
	b, err := io.ReadAll(w.conn)
	return string(b), err
}

func (w *wire) wantReset() {
	w.t.Helper()
	if got, err := w.rest(); !errors.Is(err, syscall.ECONNRESET) || got != "" {
		w.t.Errorf("want a reset, got %.100q and %v", got, err)
	}
}

// wantHanging makes sure that the request is open and unanswered, then that it ends without an answer when let go.
func (w *wire) wantHanging() {
	w.t.Helper()
	w.conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	var timeout net.Error
	if got, err := w.rest(); got != "" || !errors.As(err, &timeout) || !timeout.Timeout() {
		w.t.Errorf("while hanging: %.100q, %v", got, err)
	}
	if rec := w.s.Received()[0]; rec.Finished || rec.Status != 0 {
		w.t.Errorf("%+v", rec)
	}
	w.s.SetFault(Fault{})
	w.conn.SetReadDeadline(time.Now().Add(patience))
	if got, err := w.rest(); got != "" || errors.As(err, &timeout) && timeout.Timeout() {
		w.t.Errorf("when let go: %.100q, %v", got, err)
	}
	await(w.t, w.s, "the end", func(st Stats) bool { return st.Finished == 1 })
}

// head splits what a raw connection said.
func head(t *testing.T, raw string) (status string, header http.Header, body string) {
	t.Helper()
	before, body, found := strings.Cut(raw, "\r\n\r\n")
	status, lines, _ := strings.Cut(before, "\r\n")
	if !found {
		t.Fatalf("no answer in %.200q", raw)
	}
	mime, err := textproto.NewReader(bufio.NewReader(strings.NewReader(lines + "\r\n\r\n"))).ReadMIMEHeader()
	if err != nil {
		t.Fatal(err)
	}
	return status, http.Header(mime), body
}

func length(t *testing.T, h http.Header) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(h.Get("Content-Length"), &n); err != nil {
		t.Fatalf("Content-Length %q", h.Get("Content-Length"))
	}
	return n
}

func wireChecks() map[string]func(w *wire) {
	const most = 60 << 10 // of a capsule: less than socket buffers hold
	return map[string]func(w *wire){
		"close-accept": func(w *wire) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
			if err != nil {
				w.t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != io.EOF {
				w.t.Errorf("without a word from us: %v", err)
			}
			if n := len(w.s.Requests()); n != 0 {
				w.t.Errorf("%d requests got through", n)
			}
		},
		"close": func(w *wire) {
			w.dial(most)
			if got, err := w.rest(); got != "" || err != nil {
				w.t.Errorf("want a clean end, got %q, %v", got, err)
			}
			if rec := w.s.Received()[0]; rec.Size != 0 {
				w.t.Errorf("%d bytes of the body were read", rec.Size)
			}
		},
		"reset-body:1000": func(w *wire) {
			w.dial(most)
			w.write(make([]byte, 1000))
			w.wantReset()
			if rec := w.s.Received()[0]; rec.Size != 1000 || rec.Complete {
				w.t.Errorf("%+v", rec)
			}
		},
		"reset": func(w *wire) {
			w.post()
			w.wantReset()
			await(w.t, w.s, "the end", func(st Stats) bool { return st.Finished == 1 })
			if rec := w.s.Received()[0]; !rec.Complete || rec.Status != 0 {
				w.t.Errorf("%+v", rec)
			}
		},
		"hang": func(w *wire) {
			w.post()
			await(w.t, w.s, "the capsule", func(st Stats) bool { return st.Bytes > DefaultPayloadSize })
			w.wantHanging()
		},
		"hang-reading": func(w *wire) {
			w.dial(most)
			w.write(make([]byte, most/2))
			await(w.t, w.s, "the header", func(st Stats) bool { return st.Open == 1 })
			w.wantHanging()
			if rec := w.s.Received()[0]; rec.Size != 0 {
				w.t.Errorf("%d bytes were read", rec.Size)
			}
		},
		"slow-reading:1ms,bytes=8192": func(w *wire) {
			began := time.Now()
			w.post()
			await(w.t, w.s, "the capsule", func(st Stats) bool { return st.Finished == 1 })
			if took := time.Since(began); took < 8*time.Millisecond {
				w.t.Errorf("64 KiB were read in %v", took)
			}
			if rec := w.s.Received()[0]; rec.Status != 201 || !rec.Complete {
				w.t.Errorf("%+v", rec)
			}
		},
		"early:400,bytes=1000": func(w *wire) {
			w.dial(most)
			w.write(make([]byte, 1000)) // exactly what will be read: then the end is clean and the answer sure to arrive
			got, err := w.rest()
			status, h, body := head(w.t, got)
			if err != nil || status != "HTTP/1.1 400 Bad Request" || !strings.Contains(body, `"error_code": 14`) || h.Get("Connection") != "close" || length(w.t, h) != len(body) {
				w.t.Errorf("%q, %v", got, err)
			}
			if rec := w.s.Received()[0]; rec.Size != 1000 || rec.Complete || rec.Status != 400 || rec.Code != 14 {
				w.t.Errorf("%+v", rec)
			}
		},
		"early:201,bytes=1000": func(w *wire) {
			w.dial(most)
			w.write(make([]byte, 1000))
			got, _ := w.rest()
			if status, _, body := head(w.t, got); status != "HTTP/1.1 201 Created" || !strings.Contains(body, `"system_resolution": "SUCCESS"`) {
				w.t.Errorf("%.200q", got)
			}
		},
		"early:400,bytes=100": func(w *wire) { // more is on its way than will be read: the connection breaks
			w.dial(most)
			w.write(make([]byte, 10_000))
			if _, err := w.rest(); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				w.t.Error(err)
			}
			await(w.t, w.s, "the end", func(st Stats) bool { return st.Finished == 1 })
		},
		"cut": func(w *wire) {
			w.post()
			got, err := w.rest()
			status, h, body := head(w.t, got)
			if err != nil || status != "HTTP/1.1 201 Created" || len(body) != length(w.t, h)/2 {
				w.t.Errorf("%s, %d of %s bytes, %v", status, len(body), h.Get("Content-Length"), err)
			}
		},
		"cut-chunked:700": func(w *wire) {
			w.post()
			got, _ := w.rest()
			status, h, body := head(w.t, got)
			if status != "HTTP/1.1 201 Created" || h.Get("Transfer-Encoding") != "chunked" || !strings.HasPrefix(body, "2bc\r\n{") || strings.HasSuffix(body, "0\r\n\r\n") {
				w.t.Errorf("%.300q … %q", got, body[len(body)-20:])
			}
		},
		"drip:1ms,bytes=1000": func(w *wire) {
			began := time.Now()
			r := post(w.t, w.url, w.s.Capsule(CapsuleSpec{}))
			r.wantSuccess(w.t)
			if took, least := time.Since(began), time.Duration(len(r.body)/1000)*time.Millisecond; took < least {
				w.t.Errorf("%d bytes came in %v", len(r.body), took)
			}
		},
		"chunked": func(w *wire) {
			r := post(w.t, w.url, w.s.Capsule(CapsuleSpec{}))
			r.wantSuccess(w.t)
			if r.header.Get("Content-Length") != "" {
				w.t.Error("has a length")
			}
		},
		"trailers": func(w *wire) {
			w.post()
			resp, err := http.ReadResponse(bufio.NewReader(w.conn), nil)
			if err != nil {
				w.t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.Trailer.Get("X-Oz-Decision") != Success {
				w.t.Errorf("%v, trailer %v", err, resp.Trailer)
			}
		},
		"1xx": func(w *wire) {
			var seen []int
			trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				seen = append(seen, code)
				return nil
			}}
			req, err := http.NewRequestWithContext(httptrace.WithClientTrace(w.t.Context(), trace), "POST", w.url+FoldersPath, bytes.NewReader(w.s.Capsule(CapsuleSpec{})))
			if err != nil {
				w.t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/octet-stream")
			r, err := do(req)
			if err != nil {
				w.t.Fatal(err)
			}
			r.wantSuccess(w.t)
			if !slices.Equal(seen, []int{103, 102}) || r.header.Get("X-Oz-Decision") != "" {
				w.t.Errorf("%v, %v", seen, r.header)
			}
		},
		"upgrade": func(w *wire) {
			w.post()
			reader := bufio.NewReader(w.conn)
			line, err := reader.ReadString('\n')
			if err != nil || line != "HTTP/1.1 101 Switching Protocols\r\n" {
				w.t.Errorf("%q, %v", line, err)
			}
			w.conn.Close() // the sandbox notices
			await(w.t, w.s, "the end", func(st Stats) bool { return st.Finished == 1 })
		},
		"length:short":   func(w *wire) { w.dishonest(func(said, came int) bool { return said == came/2 }) },
		"length:long":    func(w *wire) { w.dishonest(func(said, came int) bool { return said == came+100 }) },
		"length:twice":   func(w *wire) { w.dishonest(func(said, came int) bool { return said == came }) },
		"length:chunked": func(w *wire) { w.dishonest(func(said, came int) bool { return said < came }) },
	}
}

// dishonest reads an answer up to the closing brace, then lets go and looks at the length it promised.
func (w *wire) dishonest(ok func(said, came int) bool) {
	w.t.Helper()
	w.post()
	raw := make([]byte, 0, 1<<20)
	for !bytes.HasSuffix(raw, []byte("}")) && !bytes.HasSuffix(raw, []byte("0\r\n\r\n")) {
		n, err := w.conn.Read(raw[len(raw):cap(raw)])
		raw = raw[:len(raw)+n]
		if err != nil {
			w.t.Fatalf("%v after %d bytes", err, len(raw))
		}
	}
	_, h, body := head(w.t, string(raw))
	if said := length(w.t, h); !ok(said, len(body)) {
		w.t.Errorf("said %v, came %d", h["Content-Length"], len(body))
	}
	switch w.s.Options().Fault.Word {
	case "twice":
		if len(h["Content-Length"]) != 2 {
			w.t.Errorf("%v", h)
		}
	case "chunked":
		if h.Get("Transfer-Encoding") != "chunked" {
			w.t.Errorf("%v", h)
		}
	}
	if w.s.Stats().Open != 1 {
		w.t.Error("the connection was closed")
	}
}

func TestWireFaults(t *testing.T) {
	for text, check := range wireChecks() {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			s, url := start(t, Options{Fault: MustFault(text)})
			check(&wire{t: t, s: s, url: url})
		})
	}
}

// A fault must not keep a server from stopping.
func TestCloseLetsGoOfWhatHangs(t *testing.T) {
	for _, text := range []string{"hang", "hang-reading", "drip:1h", "slow-reading:1h", "length:long", "upgrade"} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			s, url := start(t, Options{Fault: MustFault(text)})
			w := &wire{t: t, s: s, url: url}
			w.post()
			await(t, s, "the request", func(st Stats) bool { return st.Open == 1 })
			s.Close()
			await(t, s, "its end", func(st Stats) bool { return st.Finished == 1 })
			s.Close() // twice does no harm
		})
	}
}

func TestCloseAcceptStrikesSoOften(t *testing.T) {
	s, url := start(t, Options{Fault: MustFault("close-accept*1")})
	if _, err := try(t, url, bytes.NewReader(s.Capsule(CapsuleSpec{}))); err == nil {
		t.Error("the first connection is served")
	}
	post(t, url, s.Capsule(CapsuleSpec{})).wantSuccess(t)
}
