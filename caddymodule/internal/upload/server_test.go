package upload

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// serve runs a server that gives requests to its handler as Caddy does, with
// the site's timeouts if there are any.
func serve(t *testing.T, major int, site caddyhttp.IdleDeadline, handle http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if site.Timeout == 0 {
			handle(w, r)
			return
		}
		r = withSite(w, r, site)
		reader, _ := caddyhttp.IdleTimeoutsFromContext(r.Context())
		defer reader.HandlerDone()
		handle(&caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, r)
	}))
	srv.EnableHTTP2 = major == 2
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

// eachServer runs a test over HTTP/1 and HTTP/2, for sites with an idle timeout
// and without.
func eachServer(t *testing.T, test func(t *testing.T, major int, site caddyhttp.IdleDeadline)) {
	for _, major := range []int{1, 2} {
		for _, idle := range []time.Duration{0, time.Minute} {
			t.Run(fmt.Sprintf("HTTP/%d, read_body_idle %s", major, idle), func(t *testing.T) {
				test(t, major, caddyhttp.IdleDeadline{Timeout: idle})
			})
		}
	}
}

// post sends what body brings. The client's connections end with the test.
func post(t *testing.T, srv *httptest.Server, body io.Reader, length int64) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = length
	return srv.Client().Do(req)
}

// A client that stops to send is told so, is not one that has left, and the
// next upload is served.
func TestServerStalledUpload(t *testing.T) {
	const stalled = 100 // bytes, of which ten come
	eachServer(t, func(t *testing.T, major int, site caddyhttp.IdleDeadline) {
		outcome := make(chan string, 1)
		srv := serve(t, major, site, func(w http.ResponseWriter, r *http.Request) {
			s := NewStream(w, r, Limits{MaxBytes: 1 << 20})
			defer s.End()
			l := s.Lifetime(true)
			defer l.End()
			if r.ContentLength == stalled {
				if _, err := io.ReadFull(s, make([]byte, 10)); err != nil {
					t.Error(err)
				}
				s.progress.left = 200 * time.Millisecond // so that the test needn't wait
			}
			start := time.Now()
			_, err := io.Copy(io.Discard, s)
			took := time.Since(start)
			if err == nil {
				outcome <- "received"
				return
			}
			time.Sleep(20 * time.Millisecond) // the context of an HTTP/1 request has ended for long
			outcome <- fmt.Sprintf("%d bytes, %v, soon %v, gone %v, ended %v, unread %v, HTTP/%d", s.State().Bytes, err,
				took >= 200*time.Millisecond && took < 30*time.Second, l.Gone(), l.Context().Err() != nil, s.State().Unread, r.ProtoMajor)
			CloseAfter(w, r)
			w.WriteHeader(http.StatusRequestTimeout)
		})
		body, writer := io.Pipe()
		defer writer.Close()
		go func() { _, _ = writer.Write(make([]byte, 10)) }()
		res, err := post(t, srv, body, stalled)
		if err != nil || res.StatusCode != http.StatusRequestTimeout {
			t.Fatalf("%v, %v", res, err)
		}
		_ = res.Body.Close()
		if got, want := <-outcome, fmt.Sprintf("10 bytes, %v, soon true, gone false, ended false, unread true, HTTP/%d", ErrStalled, major); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		for range 3 {
			res, err := post(t, srv, strings.NewReader("capsule"), 7)
			if err != nil || <-outcome != "received" {
				t.Fatalf("the next one: %v", err)
			}
			_ = res.Body.Close()
		}
	})
}

// The site's own timeout has its own name, over HTTP/1 as well, where it ends
// the request's context.
func TestServerSiteTimeout(t *testing.T) {
	for _, major := range []int{1, 2} {
		fault := make(chan error, 1)
		srv := serve(t, major, caddyhttp.IdleDeadline{Timeout: 100 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
			s := NewStream(w, r, Limits{})
			defer s.End()
			fault <- s.peek()
			CloseAfter(w, r)
		})
		body, writer := io.Pipe()
		if res, err := post(t, srv, body, 100); err != nil {
			t.Error(err)
		} else {
			_ = res.Body.Close()
		}
		if err := <-fault; !errors.Is(err, ErrSiteTimeout) {
			t.Errorf("HTTP/%d: %v", major, err)
		}
		_ = writer.Close()
	}
}

// A client that leaves while it is read is gone, and its work ends.
func TestServerClientLeaves(t *testing.T) {
	eachServer(t, func(t *testing.T, major int, site caddyhttp.IdleDeadline) {
		fault := make(chan error, 1)
		srv := serve(t, major, site, func(w http.ResponseWriter, r *http.Request) {
			s := NewStream(w, r, Limits{})
			defer s.End()
			l := s.Lifetime(false)
			defer l.End()
			_, err := io.Copy(io.Discard, s)
			<-l.Context().Done()
			if !l.Gone() {
				t.Error("it is not gone")
			}
			fault <- err
		})
		body, writer := io.Pipe()
		go func() {
			_, _ = writer.Write(make([]byte, 10))
			_ = writer.CloseWithError(errors.New("the client gives up"))
		}()
		if _, err := post(t, srv, body, 100); err == nil {
			t.Error("there was an answer")
		}
		if err := <-fault; !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	})
}

// End ends a read that a transport left in progress, and the answer arrives.
func TestServerEndsARead(t *testing.T) {
	eachServer(t, func(t *testing.T, major int, site caddyhttp.IdleDeadline) {
		read := make(chan error, 1)
		srv := serve(t, major, site, func(w http.ResponseWriter, r *http.Request) {
			s := NewStream(w, r, Limits{})
			if _, err := s.first(); err != nil {
				t.Error(err)
			}
			go func() {
				_, err := io.Copy(io.Discard, s)
				read <- err
			}()
			for s.State().Silence == 0 {
				time.Sleep(time.Millisecond)
			}
			CloseAfter(w, r)
			s.End()
			w.WriteHeader(http.StatusTeapot)
		})
		body, writer := io.Pipe()
		defer writer.Close()
		go func() { _, _ = writer.Write(make([]byte, 10)) }()
		res, err := post(t, srv, body, 100)
		if err != nil || res.StatusCode != http.StatusTeapot {
			t.Fatalf("%v, %v", res, err)
		}
		_ = res.Body.Close()
		if err := <-read; err != ErrStopped {
			t.Error(err)
		}
	})
}

const refusal = "the capsule is too large"

// refuse answers before the body was read, and lingers.
func refuse(w http.ResponseWriter, r *http.Request) {
	s := NewStream(w, r, Limits{MaxBytes: 1000})
	defer s.End()
	if err := s.peek(); !errors.Is(err, ErrTooLarge) && r.Header.Get("Expect") == "" {
		http.Error(w, fmt.Sprint(err), http.StatusInternalServerError)
		return
	}
	r.Body = s.Rest()
	CloseAfter(w, r)
	w.Header().Set("Content-Length", fmt.Sprint(len(refusal)))
	w.WriteHeader(http.StatusRequestEntityTooLarge)
	_, _ = io.WriteString(w, refusal)
	Linger(w, r)
}

// A client that writes all of a body before it reads sees the refusal, and the
// whole of it.
func TestServerLingers(t *testing.T) {
	for _, idle := range []time.Duration{0, time.Minute} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if idle > 0 {
				r = withSite(w, r, caddyhttp.IdleDeadline{Timeout: idle})
				reader, _ := caddyhttp.IdleTimeoutsFromContext(r.Context())
				defer reader.HandlerDone()
			}
			refuse(w, r)
		}))
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		const size = 32 << 20 // more than the buffers of both sides hold
		_, _ = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n", size)
		if n, err := conn.Write(make([]byte, size)); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		_, _ = io.WriteString(conn, "\r\n0\r\n\r\n")
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 413") || !strings.HasSuffix(string(answer), "\r\n\r\n"+refusal) {
			t.Errorf("%q, %v", answer, err)
		}
		_ = conn.Close()
		srv.Close()
	}
}

// Over HTTP/2 the end of the answer doesn't wait for long.
func TestServerLingersOverHTTP2(t *testing.T) {
	srv := serve(t, 2, caddyhttp.IdleDeadline{Timeout: time.Minute}, refuse)
	soon(t, func() {
		body, writer := io.Pipe()
		defer writer.Close()
		go func() { _, _ = writer.Write(make([]byte, 2000)) }()
		res, err := post(t, srv, body, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if answer, err := io.ReadAll(res.Body); err != nil || string(answer) != refusal {
			t.Errorf("%q, %v", answer, err)
		}
	})
}

// soon fails the test unless f takes less than three seconds: once in five times, as
// the machine may be slow, but not each time.
func soon(t *testing.T, f func()) {
	t.Helper()
	var took time.Duration
	for range 5 {
		start := time.Now()
		f()
		if took = time.Since(start); took < 3*time.Second {
			return
		}
	}
	t.Errorf("it took %s", took)
}

// A body that is refused unread is neither waited for nor asked for: the whole
// answer comes, and then the connection ends.
func TestServerWaitsForNoRefusedBody(t *testing.T) {
	srv := serve(t, 1, caddyhttp.IdleDeadline{Timeout: time.Minute}, func(w http.ResponseWriter, r *http.Request) {
		CloseAfter(w, r)
		w.Header().Set("Content-Length", fmt.Sprint(len(refusal)))
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_, _ = io.WriteString(w, refusal)
		Linger(w, r)
	})
	soon(t, func() { refusedUnread(t, srv) })
}

func refusedUnread(t *testing.T, srv *httptest.Server) {
	t.Helper()
	body, writer := io.Pipe() // of which nothing ever comes
	defer writer.Close()
	asked := false
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { asked = true }})
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL, body)
	req.ContentLength = 1 << 20
	req.Header.Set("Expect", "100-continue")
	transport := srv.Client().Transport.(*http.Transport)
	transport.ExpectContinueTimeout = time.Hour
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if doc, err := io.ReadAll(res.Body); err != nil || string(doc) != refusal || !res.Close || asked {
		t.Errorf("%d %s (%v), closes %v, asked %v", res.StatusCode, doc, err, res.Close, asked)
	}
}
