package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/quic-go/quic-go/http3"
	"go.uber.org/zap"
)

// The limit is exact on both sides, and what lies beyond it goes nowhere.
func TestStreamStopsAtItsLimit(t *testing.T) {
	for _, test := range []struct {
		size int
		want error
	}{{99, nil}, {100, nil}, {101, ErrTooLarge}} {
		s := testStream(strings.NewReader(strings.Repeat("x", test.size)), -1, 100)
		got, err := io.ReadAll(s)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%d of 100 bytes: %v, want %v", test.size, err, test.want)
		}
		if want := test.size; err == nil && len(got) != want || err != nil && len(got) != 0 {
			t.Errorf("%d of %d bytes arrived", len(got), test.size)
		}
		if st := s.State(); st.Received == (test.want != nil) || st.Fault != test.want {
			t.Errorf("%d of 100 bytes: %+v", test.size, st)
		}
	}
	if s := testStream(untouched{t}, 101, 100); s.State().Fault != ErrTooLarge {
		t.Error("a Content-Length over the limit is no fault")
	}
}

// untouched is a body that nobody may read.
type untouched struct{ t *testing.T }

func (u untouched) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.ErrUnexpectedEOF
}

// It is sent with its last byte, not with the read after it, which might never
// come: an upstream that has its Content-Length answers. And nobody looks for
// more on the connection.
func TestStreamIsSentWithItsLastByte(t *testing.T) {
	s := testStream(io.MultiReader(bytes.NewReader(make([]byte, 10)), untouched{t}), 10, 100)
	if _, err := io.ReadFull(s, make([]byte, 9)); err != nil || s.State().Received || !s.State().SentAt.IsZero() {
		t.Fatalf("received after 9 of 10 bytes (%v)", err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil || !s.State().Received || s.State().SentAt.IsZero() {
		t.Fatalf("not received after 10 of 10 bytes (%v)", err)
	}
	sent := s.State().SentAt
	if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF || s.State().SentAt != sent {
		t.Fatalf("read past the end: %d, %v", n, err)
	}
}

func TestStreamOfUnknownLengthIsReceivedAtItsEnd(t *testing.T) {
	s := testStream(bytes.NewReader(make([]byte, 10)), -1, 100)
	if _, err := io.ReadFull(s, make([]byte, 10)); err != nil || s.State().Received {
		t.Fatalf("received before the end was seen (%v)", err)
	}
	if _, err := s.Read(make([]byte, 1)); err != io.EOF || !s.State().Received || s.State().SentAt.IsZero() {
		t.Fatalf("not received at the end (%v)", err)
	}
}

func TestStreamWithoutBody(t *testing.T) {
	s := testStream(http.NoBody, 0, 100)
	if st := s.State(); !st.Received || st.Unread || !st.SentAt.IsZero() {
		t.Errorf("%+v", st)
	}
	if err := s.peek(); err != nil {
		t.Error(err)
	}
	if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF || s.State().SentAt.IsZero() {
		t.Errorf("%d, %v", n, err)
	}
}

// Each way to end an upload has its name, and an upload that failed goes on
// failing.
func TestStreamFaults(t *testing.T) {
	broken := errors.New("malformed chunked encoding")
	tooLarge := caddyhttp.Error(413, &http.MaxBytesError{Limit: 5})
	for _, test := range []struct {
		name string
		body error // after 9 of 10 bytes
		left bool  // the request's context has ended
		want error
	}{
		{"ends early, over HTTP/2", io.EOF, false, ErrShort},
		{"ends early, over HTTP/1", io.ErrUnexpectedEOF, false, ErrGone},
		{"reset", &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}, false, ErrGone},
		{"given up by TCP", &net.OpError{Op: "read", Err: syscall.ETIMEDOUT}, false, ErrGone},
		{"stream cancelled", context.Canceled, false, ErrGone},
		{"connection closed", net.ErrClosed, false, ErrGone},
		{"HTTP/3 reset", &http3.Error{Remote: true}, false, ErrGone},
		{"HTTP/3, our own error", &http3.Error{ErrorMessage: "x"}, false, ErrUnreadable},
		{"an error when it has left", broken, true, ErrGone},
		{"framed wrongly", broken, false, ErrUnreadable},
		{"over the site's limit", tooLarge, true, tooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := testStream(io.MultiReader(bytes.NewReader(make([]byte, 9)), iotest.ErrReader(test.body)), 10, 100)
			if test.left {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				s.ctx = ctx
			}
			for range 2 {
				_, err := io.ReadAll(s)
				if st := s.State(); fmt.Sprint(err) != fmt.Sprint(test.want) || st.Fault != err || st.Received || !st.Unread {
					t.Fatalf("%v, want %v; %+v", err, test.want, st)
				}
			}
		})
	}
}

// The head is read before the caller makes any call, and given back first.
func TestStreamPeek(t *testing.T) {
	for _, test := range []struct {
		size     int
		declared bool
		reads    int // bytes that were read
		length   int64
	}{
		{10, true, 10, 10}, {10, false, 10, 10}, {0, false, 0, 0},
		{firstRead, true, firstRead, firstRead}, {firstRead, false, firstRead, firstRead},
		{chunkSize - 1, false, chunkSize - 1, chunkSize - 1},
		{chunkSize, true, chunkSize, chunkSize}, {chunkSize, false, chunkSize, -1},
		{3 * chunkSize, true, chunkSize, 3 * chunkSize}, {3 * chunkSize, false, chunkSize, -1},
	} {
		for name, reading := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "in halves": iotest.HalfReader, "end with the data": iotest.DataErrReader,
		} {
			t.Run(fmt.Sprintf("%d, declared %v, %s", test.size, test.declared, name), func(t *testing.T) {
				want, length := noise(test.size), int64(-1)
				if test.declared {
					length = int64(test.size)
				}
				s := testStream(reading(bytes.NewReader(want)), length, 1<<20)
				if err := s.peek(); err != nil {
					t.Fatal(err)
				}
				st := s.State()
				endSeen := name == "end with the data" && test.size == chunkSize
				if st.Bytes != int64(test.reads) || s.Length() != test.length && !endSeen || !st.SentAt.IsZero() || st.Untaken != 0 {
					t.Errorf("length %d, %+v", s.Length(), st)
				}
				got, err := io.ReadAll(iotest.HalfReader(s))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d of %d bytes, or others (%v)", len(got), len(want), err)
				}
				if st := s.State(); st.SentAt.IsZero() || !st.Received || len(s.head) > 0 {
					t.Errorf("%+v", st)
				}
			})
		}
	}
}

// A client that sends nothing has no head's buffer.
func TestIdleClientHoldsNoBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		s := p.stream(1 << 20)
		done := make(chan error)
		go func() { done <- s.peek() }()
		synctest.Wait()
		if len(s.head) > 0 {
			t.Error("it holds one")
		}
		if err := <-done; !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
	})
}

// After Stop the transport gets nothing more, also if bytes of the head are
// left. The rest is what was not received.
func TestStreamStop(t *testing.T) {
	want := noise(3 * chunkSize)
	s := testStream(bytes.NewReader(want), int64(len(want)), 1<<20)
	if err := s.peek(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if n, err := s.Read(make([]byte, 1)); n != 0 || err != ErrStopped {
		t.Errorf("%d, %v", n, err)
	}
	got, err := io.ReadAll(s.Rest())
	if err != nil || !bytes.Equal(got, want[chunkSize:]) {
		t.Errorf("%d of %d bytes, or others (%v)", len(got), len(want)-chunkSize, err)
	}
	if st := s.State(); !st.SentAt.IsZero() || !st.Unread {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s.End()
}

// What is left of an upload that was displaced between two reads can still be
// read: its client wants to see the answer, too.
func TestRestOfADisplacedUpload(t *testing.T) {
	s := testStream(strings.NewReader("capsule"), 7, 10)
	if _, err := io.ReadFull(s, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	why := &Refused{Cause: CauseDisplaced}
	if !s.displace(why) {
		t.Fatal("it is not displaced")
	}
	if _, err := s.Read(make([]byte, 1)); err != error(why) {
		t.Errorf("the next read: %v", err)
	}
	if got, err := io.ReadAll(s.Rest()); string(got) != "psule" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// Stop leaves a read in progress alone, Rest's Read waits for it, and then
// reads on.
func TestRestWaitsForAReadInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		r := p.request(30)
		var readers atomic.Int32
		body := r.Body
		r.Body = io.NopCloser(readerFunc(func(b []byte) (int, error) {
			if readers.Add(1) > 1 {
				t.Error("two read the body at a time")
			}
			defer readers.Add(-1)
			return body.Read(b)
		}))
		s := NewStream(p, r, Limits{})
		transport := make(chan error)
		go func() {
			_, err := s.Read(make([]byte, 10))
			transport <- err
		}()
		synctest.Wait()
		s.Stop()
		rest := make(chan string)
		go func() {
			b, err := io.ReadAll(s.Rest())
			rest <- fmt.Sprintf("%d %v", len(b), err)
		}()
		synctest.Wait()
		p.does(func() { p.send(10); p.send(20) })
		if err := <-transport; err != ErrStopped {
			t.Errorf("the transport: %v", err)
		}
		if got := <-rest; got != "20 <nil>" {
			t.Errorf("the rest: %s", got)
		}
		s.End()
		if err := p.ctx.Err(); err != nil {
			t.Error("the connection was broken")
		}
	})
}

// End ends a read that waits for a silent client, and waits for it. No later
// one reaches the body.
func TestEndEndsAReadInProgress(t *testing.T) {
	for _, ofRest := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPhone(t)
			s := p.stream(10)
			read := s.Read
			if ofRest {
				read = s.Rest().Read
			}
			result := make(chan error, 1)
			go func() {
				_, err := read(make([]byte, 1))
				result <- err
			}()
			time.Sleep(3 * time.Second)
			start := time.Now()
			s.End()
			if s.reading || time.Since(start) != 0 {
				t.Errorf("End returned after %s, and a read is in progress: %v", time.Since(start), s.reading)
			}
			if err := <-result; !ofRest && err != ErrStopped || ofRest && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("read: %v", err)
			}
			if _, err := s.Read(make([]byte, 1)); err != ErrStopped {
				t.Errorf("later read: %v", err)
			}
			if st := s.State(); !st.Unread || st.Fault != nil || !ofRest && st.Silence != 3*time.Second {
				t.Errorf("%+v", st)
			}
		})
	}
}

// noDeadlines is the ResponseWriter of a plugin that has no Unwrap.
type noDeadlines struct{ http.ResponseWriter }

// Where deadlines aren't supported nobody waits for the read, unless Caddy's
// own reader, which works below such a writer, has them.
func TestEndWithoutDeadlines(t *testing.T) {
	for _, caddys := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPhone(t)
			r := p.request(10)
			if caddys {
				r = withSite(p, r, caddyhttp.IdleDeadline{Timeout: time.Minute})
			}
			s := NewStream(noDeadlines{p}, r, Limits{})
			result := make(chan error, 1)
			p.does(func() {
				_, err := s.Read(make([]byte, 1))
				result <- err
			})
			synctest.Wait()
			s.End()
			if s.reading == caddys {
				t.Errorf("Caddy's reader %v: a read is in progress: %v", caddys, s.reading)
			}
			p.hangUp()
			if err := <-result; err != ErrStopped {
				t.Error(err)
			}
		})
	}
}

// withSite is r as a site with these body timeouts gives it to its handlers.
func withSite(w http.ResponseWriter, r *http.Request, d caddyhttp.IdleDeadline) *http.Request {
	d.Start = time.Now()
	reader := &caddyhttp.IdleTimeoutReader{
		Logger:     zap.NewNop(),
		ReadCloser: r.Body, Ctrl: http.NewResponseController(w), Deadline: d,
		DrainDeadline: r.ProtoMajor == 1, ClearBetweenReads: r.ProtoMajor == 2,
	}
	r.Body = reader
	return r.WithContext(caddyhttp.ContextWithIdleTimeouts(r.Context(), reader, nil))
}

// What is told of an upload is what happens: to whom the time goes.
func TestStreamState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		s := p.stream(30)
		defer s.End()
		p.does(func() { time.Sleep(3 * time.Second); p.send(10); time.Sleep(7 * time.Second); p.send(20) })
		read := make(chan struct{})
		go func() {
			_, _ = io.ReadFull(s, make([]byte, 10))
			close(read)
		}()
		time.Sleep(time.Second)
		if st := s.State(); st.Silence != time.Second || st.Waited != time.Second || st.Untaken != 0 {
			t.Errorf("while it waits: %+v", st)
		}
		<-read
		time.Sleep(5 * time.Second)
		if st := s.State(); st.Silence != 0 || st.Waited != 3*time.Second || st.Untaken != 5*time.Second || st.Bytes != 10 {
			t.Errorf("while nobody takes: %+v", st)
		}
		if _, err := io.ReadFull(s, make([]byte, 20)); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if st := s.State(); st.Silence != 0 || st.Waited != 5*time.Second || st.Untaken != 0 || st.Bytes != 30 || st.Unread || time.Since(st.SentAt) != time.Minute {
			t.Errorf("after the last byte: %+v", st)
		}
	})
}

// The allocations of an upload do not depend on its size.
func BenchmarkStream(b *testing.B) {
	const size = 2 << 20
	r := httptest.NewRequest(http.MethodPost, "/verify", nil)
	r.ContentLength = size
	w := httptest.NewRecorder()
	body := make([]byte, size)
	buf := make([]byte, 128<<10)
	sink := struct{ io.Writer }{io.Discard}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		r.Body = io.NopCloser(bytes.NewReader(body))
		s := NewStream(w, r, Limits{MaxBytes: 1 << 30, Timeout: time.Minute})
		if err := s.peek(); err != nil {
			b.Fatal(err)
		}
		if n, err := io.CopyBuffer(sink, s, buf); n != size || err != nil {
			b.Fatal(n, err)
		}
		s.End()
	}
}

// Over HTTP/2 a read fails with an error of its own a moment before the
// request's context ends. Only if it doesn't end is the client still there.
func TestAReadFailsBeforeTheContextEnds(t *testing.T) {
	for name, test := range map[string]struct {
		protoMajor int
		ends       time.Duration // the context, after the read; 0: never
		want       error
		after      time.Duration
	}{
		"h2, left":  {2, 900 * time.Millisecond, ErrGone, 900 * time.Millisecond},
		"h2, there": {2, 0, ErrUnreadable, settleTime},
		"h1, there": {1, 0, ErrUnreadable, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				disconnected := iotest.ErrReader(errors.New("client disconnected"))
				r := httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader("half"), disconnected))
				r.ContentLength, r.ProtoMajor = 100, test.protoMajor
				s := NewStream(httptest.NewRecorder(), r.WithContext(ctx), Limits{})
				defer s.End()
				if test.ends > 0 {
					time.AfterFunc(test.ends, cancel)
				}
				start := time.Now()
				if _, err := io.ReadAll(s); err != test.want || s.State().Fault != test.want || time.Since(start) != test.after {
					t.Errorf("after %s: %v, %+v", time.Since(start), err, s.State())
				}
			})
		})
	}
}
