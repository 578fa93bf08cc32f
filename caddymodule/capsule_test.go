package caddymodule

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

func testCapsule(body io.Reader, length, limit int64) *capsule {
	r := httptest.NewRequest(http.MethodPost, "/verify", body)
	r.ContentLength = length
	return newCapsule(httptest.NewRecorder(), r, limit)
}

// The limit is exact on both sides, and what lies beyond it goes nowhere.
func TestCapsuleStopsAtItsLimit(t *testing.T) {
	for _, test := range []struct {
		size int
		want error
	}{{99, nil}, {100, nil}, {101, errTooLarge}} {
		c := testCapsule(strings.NewReader(strings.Repeat("x", test.size)), -1, 100)
		got, err := io.ReadAll(c)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%d of 100 bytes: %v, want %v", test.size, err, test.want)
		}
		if err == nil && len(got) != test.size {
			t.Errorf("%d of %d bytes arrived", len(got), test.size)
		}
		if s := c.state(); s.done == (test.want != nil) || s.fault != test.want {
			t.Errorf("%d of 100 bytes: %+v", test.size, s)
		}
	}
}

// The clock changes with the last byte, not with the read after it, which may
// never come: an Oz that has its Content-Length answers.
func TestCapsuleIsDoneWithItsLastByte(t *testing.T) {
	c := testCapsule(bytes.NewReader(make([]byte, 10)), 10, 100)
	calls := 0
	c.onDone = func() { calls++ }
	if _, err := io.ReadFull(c, make([]byte, 9)); err != nil || calls != 0 || c.state().done {
		t.Fatalf("done after 9 of 10 bytes (%v)", err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil || calls != 1 || !c.state().done {
		t.Fatalf("not done after 10 of 10 bytes (%v)", err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF || calls != 1 {
		t.Fatalf("read past the end: %d, %v, %d calls", n, err, calls)
	}
}

func TestCapsuleOfUnknownLengthIsDoneAtItsEnd(t *testing.T) {
	c := testCapsule(bytes.NewReader(make([]byte, 10)), -1, 100)
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil || c.state().done {
		t.Fatalf("done before the end was seen (%v)", err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF || !c.state().done {
		t.Fatalf("not done at the end (%v)", err)
	}
}

// A body that ends early is never a whole capsule. On HTTP/1, where the server
// says so, the client has left; elsewhere it is there to hear of it.
func TestCapsuleCutShort(t *testing.T) {
	for want, body := range map[error]io.Reader{
		errShort:      bytes.NewReader(make([]byte, 9)),
		errClientGone: io.MultiReader(bytes.NewReader(make([]byte, 9)), iotest.ErrReader(io.ErrUnexpectedEOF)),
	} {
		c := testCapsule(body, 10, 100)
		if _, err := io.ReadAll(c); !errors.Is(err, want) {
			t.Fatalf("err = %v, want %v", err, want)
		}
		if s := c.state(); s.done || !errors.Is(s.fault, want) {
			t.Fatalf("%+v", s)
		}
	}
}

func TestCapsuleThatMakesNoSense(t *testing.T) {
	broken := errors.New("malformed chunked encoding")
	c := testCapsule(io.MultiReader(strings.NewReader("x"), errReader{broken}), -1, 100)
	if _, err := io.ReadAll(c); !errors.Is(err, broken) || errors.Is(err, errClientGone) {
		t.Fatalf("err = %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func (c *capsule) isReading() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reading
}

// A read that waits for a silent client ends when the capsule is detached, and
// no later one reaches the body.
func TestDetachEndsAReadUnderWay(t *testing.T) {
	result := make(chan error, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := newCapsule(w, r, 100)
		blocked := make(chan struct{})
		go func() {
			_, _ = io.ReadFull(c, make([]byte, 1)) // what the client did send
			close(blocked)
			_, err := c.Read(make([]byte, 1))
			result <- err
		}()
		<-blocked
		for !c.isReading() { // until the second read is on its way into the body
			runtime.Gosched()
		}
		c.detach()
		if c.isReading() {
			result <- errors.New("detach returned before the read did")
		}
		_, err := c.Read(make([]byte, 1))
		result <- err
	}))
	defer srv.Close()

	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-result; !errors.Is(err, errDetached) {
			t.Errorf("read: %v, want %v", err, errDetached)
		}
	}
}
