package upload

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// What is left of a body is read until the client has sent it, or was silent or
// slow for too long.
func TestLinger(t *testing.T) {
	const all = 1 << 20
	for _, test := range []struct {
		name  string
		major int
		sends func(*phone)
		takes time.Duration
		read  int // the client got rid of so many bytes
	}{
		{"all comes", 1, func(p *phone) { p.send(all) }, 0, all},
		{"all comes slowly", 1, func(p *phone) { p.sendEvery(time.Second, 16, all/16) }, 16 * time.Second, all},
		{"silence", 1, func(p *phone) { p.send(1000) }, 5 * time.Second, 1000},
		{"no end", 1, func(p *phone) { p.sendEvery(2*time.Second, all, 1) }, 30 * time.Second, 0},
		{"the client leaves", 1, func(p *phone) { time.Sleep(time.Second); p.hangUp() }, time.Second, 0},
		{"HTTP/2", 2, func(p *phone) { p.sendEvery(200*time.Millisecond, all, 1) }, 500 * time.Millisecond, 0},
		{"HTTP/3", 3, func(p *phone) { p.send(1000) }, 500 * time.Millisecond, 1000},
	} {
		for _, of := range []string{"untouched", "untouched, with the site's reader", "rest", "rest, with the site's reader"} {
			t.Run(test.name+", "+of, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newPhone(t)
					r := p.request(all)
					r.ProtoMajor = test.major
					if strings.Contains(of, "site") {
						r = withSite(p, r, caddyhttp.IdleDeadline{Timeout: time.Minute})
					}
					var s *Stream
					if strings.HasPrefix(of, "rest") {
						s = NewStream(p, r, Limits{MaxBytes: 10})
						r.Body = s.Rest()
					}
					p.Header().Set("Content-Length", "0")
					p.does(func() { test.sends(p) })
					start := time.Now()
					Linger(p, r)
					if got := time.Since(start); got != test.takes || !p.Flushed {
						t.Errorf("%s, want %s; flushed %v", got, test.takes, p.Flushed)
					}
					if s != nil {
						s.End()
					}
				})
			})
		}
	}
}

// Where it would do harm, or can't be bounded, nothing is read.
func TestLingerNot(t *testing.T) {
	type c struct {
		name   string
		change func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter
		reads  bool
	}
	for _, test := range []c{
		{"a plain request", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter { return w }, true},
		{"no body", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter { r.ContentLength = 0; return w }, false},
		{"an answer without Content-Length", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter {
			w.Header().Del("Content-Length")
			return w
		}, false},
		{"that, over HTTP/2", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter {
			w.Header().Del("Content-Length")
			r.ProtoMajor = 2
			return w
		}, true},
		{"a client that waits to be asked", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter {
			r.Header.Set("Expect", "100-Continue")
			return w
		}, false},
		{"the rest for a client that waits to be asked", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter {
			r.Header.Set("Expect", "100-continue")
			r.Body = NewStream(w, r, Limits{}).Rest()
			return w
		}, false},
		{"the rest for a client that was asked", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter {
			r.Header.Set("Expect", "100-continue")
			s := NewStream(w, r, Limits{})
			_, _ = s.Read(make([]byte, 1))
			r.Body = s.Rest()
			return w
		}, true},
		{"a complete upload", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter {
			s := NewStream(w, r, Limits{})
			_, _ = io.ReadAll(s)
			w.does(func() {
				if w.send(10) {
					t.Error("what follows the body was read")
				}
			})
			r.Body = s.Rest()
			return w
		}, false},
		{"a writer without deadlines", func(t *testing.T, w *phone, r *http.Request) http.ResponseWriter {
			return flushOnly{w.ResponseRecorder}
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPhone(t)
				r := p.request(11)
				p.Header().Set("Content-Length", "0")
				sent := make(chan bool, 1)
				p.does(func() { p.send(1); p.send(9); p.send(1); sent <- true })
				w := test.change(t, p, r)
				synctest.Wait()
				before := len(sent)
				Linger(w, r)
				synctest.Wait()
				if reads := len(sent) > before; reads != test.reads {
					t.Errorf("reads %v", reads)
				}
			})
		})
	}
}

// flushOnly is a ResponseWriter that has no read deadlines.
type flushOnly struct{ *httptest.ResponseRecorder }

// deadlineWriter remembers the read deadline that was set.
type deadlineWriter struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (w *deadlineWriter) SetReadDeadline(t time.Time) error {
	w.deadline = t
	return nil
}

// Only HTTP/1 has a connection to close.
func TestCloseAfter(t *testing.T) {
	for _, major := range []int{1, 2, 3} {
		w := &deadlineWriter{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.ProtoMajor = major
		CloseAfter(&caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, r)
		if closes := w.Header().Get("Connection") == "close"; closes != (major == 1) {
			t.Errorf("HTTP/%d: Connection: %q", major, w.Header().Get("Connection"))
		}
		if in := time.Until(w.deadline); (major == 1) != (in > 0 && in <= closeDelay) {
			t.Errorf("HTTP/%d: deadline in %s", major, in)
		}
	}
}

func TestInnermost(t *testing.T) {
	w := httptest.NewRecorder()
	wrapped := &caddyhttp.ResponseWriterWrapper{ResponseWriter: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	for _, outer := range []http.ResponseWriter{w, wrapped, wrapped.ResponseWriter} {
		if innermost(outer) != http.ResponseWriter(w) {
			t.Errorf("%T is not the innermost of %T", innermost(outer), outer)
		}
	}
}
