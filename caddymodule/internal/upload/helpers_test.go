package upload

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"
)

// phone is a client that a test plays: what it sends arrives piece by piece,
// and it may leave. Its ResponseWriter has read deadlines, and a read that
// times out ends the request's context, as over HTTP/1.
type phone struct {
	*httptest.ResponseRecorder
	net.Conn // the server's side of its connection

	line  net.Conn // its own side
	leave context.CancelFunc
	ctx   context.Context
	all   sync.WaitGroup
}

func newPhone(t *testing.T) *phone {
	t.Helper()
	p := &phone{ResponseRecorder: httptest.NewRecorder()}
	p.Conn, p.line = net.Pipe()
	p.ctx, p.leave = context.WithCancel(t.Context())
	t.Cleanup(func() {
		p.hangUp()
		_ = p.Conn.Close()
		p.all.Wait()
	})
	return p
}

// Write is that of the answer; the connection is only read from.
func (p *phone) Write(piece []byte) (int, error) { return p.ResponseRecorder.Write(piece) }

// request is its POST of a capsule of length bytes, or of unknown length.
func (p *phone) request(length int64) *http.Request {
	body := io.Reader(readerFunc(func(b []byte) (int, error) {
		n, err := p.Conn.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.leave()
		}
		return n, err
	}))
	if length >= 0 {
		body = &lengthBody{io.LimitedReader{R: body, N: length}}
	}
	r := httptest.NewRequest(http.MethodPost, "/verify", struct{ io.Reader }{body})
	r.ContentLength = length
	return r.WithContext(p.ctx)
}

// lengthBody is a body with a Content-Length as net/http's server gives it.
type lengthBody struct{ io.LimitedReader }

func (b *lengthBody) Read(p []byte) (int, error) {
	n, err := b.LimitedReader.Read(p)
	if err == io.EOF && b.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// stream is what the phone uploads.
func (p *phone) stream(length int64) *Stream {
	return NewStream(p, p.request(length), Limits{MaxBytes: 1 << 30, Timeout: 2 * time.Minute})
}

// does has the phone do something while the test goes on.
func (p *phone) does(f func()) { p.all.Go(f) }

// send sends the next n bytes of the capsule, and returns when they were read.
func (p *phone) send(n int) bool {
	_, err := p.line.Write(make([]byte, n))
	return err == nil
}

// sendEvery sends so many pieces of n bytes, each after a pause.
func (p *phone) sendEvery(pause time.Duration, pieces, n int) {
	for range pieces {
		if time.Sleep(pause); !p.send(n) {
			return
		}
	}
}

// hangUp is the end of a client, as HTTP/1 tells it.
func (p *phone) hangUp() {
	p.leave()
	_ = p.line.Close()
}

// testStream reads a body that is all there.
func testStream(body io.Reader, length, limit int64) *Stream {
	r := httptest.NewRequest(http.MethodPost, "/verify", body)
	r.ContentLength = length
	return NewStream(httptest.NewRecorder(), r, Limits{MaxBytes: limit, Timeout: 2 * time.Minute})
}

// sized is a stream of n bytes.
func sized(n int) *Stream { return testStream(bytes.NewReader(make([]byte, n)), int64(n), 1<<30) }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func noise(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	_, _ = src.Read(b)
	return b
}

// gauge is one that a test can read.
type gauge struct {
	mu    sync.Mutex
	value float64
}

func (g *gauge) Add(v float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.value += v
}

func (g *gauge) get() float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.value
}

// open opens a gate of its own for a test.
func open(t *testing.T, c Capacity) *Gate {
	t.Helper()
	g, err := OpenGate(t.Name(), t, c, Gauges{Queued: new(gauge), Memory: new(gauge)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// wantEmpty fails the test if anything is left in the gate.
func (g *Gate) wantEmpty(t *testing.T) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	busy, waiting := g.slots.load()
	used, uploads := g.memory.load()
	if n := g.unlimited.Load(); n != 0 {
		t.Errorf("left behind: %d without a slot", n)
	}
	if busy != 0 || waiting != 0 || used != 0 || uploads != 0 || len(g.inside) != 0 || len(g.connections) != 0 {
		t.Errorf("left behind: %d in slots, %d waiting, %d bytes, %d uploads, %d places, %d connections", busy, waiting, used, uploads, len(g.inside), len(g.connections))
	}
	for name, gg := range map[string]Gauge{"queued": g.gauges.Queued, "memory": g.gauges.Memory} {
		if v := gg.(*gauge).get(); v != 0 {
			t.Errorf("gauge %s: %v", name, v)
		}
	}
}

func (l *limiter) load() (busy, waiting int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held), len(l.waiting)
}

func (m *memory) load() (used int64, uploads int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used, len(m.uploads)
}

// wantRefused fails the test unless err is a refusal for this cause.
func wantRefused(t *testing.T, err error, cause Cause) *Refused {
	t.Helper()
	refused, ok := errors.AsType[*Refused](err)
	if !ok || refused.Cause != cause {
		t.Errorf("%v, want a refusal: %s", err, cause)
		return new(Refused)
	}
	return refused
}
