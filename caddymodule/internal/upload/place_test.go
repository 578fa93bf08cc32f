package upload

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// sender is a client without a connection, of which a test can have thousands:
// it sends some bytes at once and then so many a second, up to its size less
// what it keeps.
type sender struct {
	http.ResponseWriter
	size, atOnce, rate, keeps int
	roundTrip                 time.Duration // before its first byte

	start    time.Time
	sent     int
	mu       sync.Mutex
	deadline time.Time
	changed  chan struct{}
}

func (c *sender) stream() *Stream {
	c.ResponseWriter, c.changed = httptest.NewRecorder(), make(chan struct{})
	r := httptest.NewRequest(http.MethodPost, "/verify", struct{ io.Reader }{c})
	r.ContentLength = int64(c.size)
	return NewStream(c, r, Limits{MaxBytes: 1 << 30, Timeout: 2 * time.Minute})
}

func (c *sender) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

// due is what can have arrived by now.
func (c *sender) due() int {
	since := time.Since(c.start) - c.roundTrip
	if since < 0 {
		return 0
	}
	return min(c.size-c.keeps, c.atOnce+int(since.Seconds()*float64(c.rate)))
}

// Read waits for bytes or for its deadline.
func (c *sender) Read(p []byte) (int, error) {
	if c.start.IsZero() {
		c.start = time.Now() // what is not read isn't sent
	}
	for {
		c.mu.Lock()
		deadline, changed := c.deadline, c.changed
		c.mu.Unlock()
		if n := min(len(p), c.due()-c.sent); n > 0 {
			c.sent += n
			return n, nil
		}
		var late, more <-chan time.Time
		if !deadline.IsZero() {
			if !time.Now().Before(deadline) {
				return 0, os.ErrDeadlineExceeded
			}
			late = time.After(time.Until(deadline))
		}
		switch {
		case time.Since(c.start) < c.roundTrip:
			more = time.After(c.roundTrip)
		case c.rate > 0 && c.sent < c.size-c.keeps:
			more = time.After(time.Second / 4)
		}
		select {
		case <-late:
		case <-more:
		case <-changed:
		}
	}
}

// flood is many clients that want to keep all others out: each comes back as
// soon as it is refused or ended.
type flood struct {
	name   string
	client func() *sender
}

const roundTrip = 50 * time.Millisecond

var floods = []flood{
	{"idle", func() *sender { return &sender{size: 2} }},
	{"one byte of two", func() *sender { return &sender{size: 2, atOnce: 1, keeps: 1} }},
	{"5 KB a second", func() *sender { return &sender{size: 2 << 20, rate: 5000, roundTrip: roundTrip} }},
	{"all but the last byte", func() *sender { return &sender{size: 100_000, atOnce: 100_000, keeps: 1, roundTrip: roundTrip} }},
}

// Clients that keep their places without sending keep nobody out, however many
// they are and however often they come back.
func TestFloodKeepsNobodyOut(t *testing.T) {
	for _, f := range floods {
		for _, n := range []int{15, 100, 1000} {
			t.Run(fmt.Sprintf("%s, %d", f.name, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { f.run(t, n) })
			})
		}
	}
}

func (f flood) run(t *testing.T, n int) {
	const duration = 25 * time.Second
	g := open(t, &Capacity{Slots: 3, Queue: 12, Wait: 15 * time.Second, Memory: 256 << 20})
	var all sync.WaitGroup
	begin := time.Now()
	for range n {
		all.Go(func() {
			for time.Since(begin) < duration {
				s := f.client().stream()
				a, err := g.Acquire(t.Context(), s)
				if err == nil {
					t.Error("an attacker was served")
					a.Release(true)
				}
				s.End()
				time.Sleep(2 * roundTrip)
			}
		})
	}
	var came, served, soon atomic.Int32
	for time.Since(begin) < duration-5*time.Second {
		came.Add(1)
		all.Go(func() {
			start := time.Now()
			for time.Since(start) < 5*time.Second {
				c := &sender{size: 100_000, rate: 500_000, roundTrip: roundTrip}
				s := c.stream()
				a, err := g.Acquire(t.Context(), s)
				if err == nil {
					served.Add(1)
					if time.Since(start) < 5*time.Second {
						soon.Add(1)
					}
					time.Sleep(analysis)
					a.Release(true)
					s.End()
					return
				}
				s.End()
				if _, ok := errors.AsType[*Refused](err); !ok {
					t.Errorf("an honest upload: %v", err)
				}
				time.Sleep(time.Second)
			}
		})
		time.Sleep(1500 * time.Millisecond)
	}
	all.Wait()
	t.Logf("%d of %d served, %d within 5 s", served.Load(), came.Load(), soon.Load())
	if soon.Load() < came.Load()*3/4 {
		t.Errorf("%d of %d were served within seconds", soon.Load(), came.Load())
	}
	g.wantEmpty(t)
}
