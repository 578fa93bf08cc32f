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
		for _, n := range []int{15, 100, 300} {
			t.Run(fmt.Sprintf("%s, %d", f.name, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { f.run(t, n) })
			})
		}
	}
}

func (f flood) run(t *testing.T, n int) {
	const duration = 20 * time.Second
	g := open(t, Capacity{Slots: 3, Queue: 12, Wait: 15 * time.Second, Memory: 256 << 20})
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
				time.Sleep(4 * roundTrip)
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

// at starts Acquire for a client, and returns how it ends.
func (g *Gate) at(t *testing.T, s *Stream) <-chan error {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		a, err := g.Acquire(t.Context(), s)
		if err == nil {
			a.Release(true)
		}
		s.End()
		result <- err
	}()
	synctest.Wait()
	return result
}

// full is a gate with one place, in which this client is for a while already.
func full(t *testing.T, c *sender, since time.Duration) (*Gate, <-chan error) {
	t.Helper()
	g := open(t, Capacity{Slots: 1, Wait: 15 * time.Second, Memory: 64 << 20})
	result := g.at(t, c.stream())
	time.Sleep(since)
	return g, result
}

// An upload that is not slow keeps its place, and a newcomer is refused unread.
func TestSoundUploadKeepsItsPlace(t *testing.T) {
	for name, c := range map[string]*sender{
		"sends enough":          {size: 1 << 20, rate: 100 << 10},
		"new, and has not sent": {size: 1 << 20, rate: 100 << 10, roundTrip: time.Second},
		"silent for a moment":   {size: 1 << 20, atOnce: 200 << 10, rate: 100 << 10, roundTrip: 400 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, first := full(t, c, 1900*time.Millisecond)
				for range 5 {
					_, err := g.Acquire(t.Context(), testStream(untouched{t}, 10, 10))
					if refused := wantRefused(t, err, CauseQueue); refused.RetryAfter != firstGuess {
						t.Errorf("%+v", refused)
					}
					time.Sleep(time.Second)
				}
				if err := <-first; err != nil {
					t.Error(err)
				}
				g.wantEmpty(t)
			})
		})
	}
}

// A slow upload is displaced by a newcomer that is complete or has sent more,
// and by no other. It is told when to come back: it did nothing wrong.
func TestSlowUploadIsDisplaced(t *testing.T) {
	const s = time.Second
	silent := func() *sender { return &sender{size: 200_000, atOnce: 100_000, keeps: 100_000} }
	for _, test := range []struct {
		name     string
		slow     *sender
		newcomer *sender
		takes    time.Duration // until the slow one is displaced; < 0: the newcomer is refused
	}{
		{"by a small one that is complete", silent(), &sender{size: 10, atOnce: 10}, 0},
		{"by a large one that has sent more", silent(), &sender{size: 1 << 20, rate: 80_000}, 1750 * time.Millisecond},
		{"not by one that sends nothing", silent(), &sender{size: 10}, -slowSilence},
		{"not by one that sends little", silent(), &sender{size: 1 << 20, rate: 10_000}, -slowGrace},
		{"not by one that stops", silent(), &sender{size: 1 << 20, atOnce: 90_000, keeps: 1<<20 - 90_000}, -slowSilence},
		{"one that drips, by one with 32 KiB", &sender{size: 1 << 20, rate: 1000}, &sender{size: 1 << 20, rate: 80_000}, 500 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, slow := full(t, test.slow, 3*s)
				newcomer := test.newcomer.stream()
				result := g.at(t, newcomer)
				start := time.Now()
				if test.takes < 0 {
					wantRefused(t, <-result, CauseQueue)
					if time.Since(start) != -test.takes || newcomer.State().Fault != nil || !newcomer.State().Unread {
						t.Errorf("after %s: %+v", time.Since(start), newcomer.State())
					}
					if err := <-slow; !errors.Is(err, ErrStalled) {
						t.Error(err)
					}
					return
				}
				refused := wantRefused(t, <-slow, CauseDisplaced)
				if refused.RetryAfter < s || time.Since(start) != test.takes {
					t.Errorf("%+v after %s", refused, time.Since(start))
				}
				if err := <-result; err != nil {
					t.Error(err)
				}
				g.wantEmpty(t)
			})
		})
	}
}

// Of several slow ones the silent goes first, then the slowest. What is
// complete stays, however slow it was.
func TestTheSlowestGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(t, Capacity{Slots: 4, Wait: 15 * time.Second, Memory: 64 << 20})
		complete := (&sender{size: 10, atOnce: 10, roundTrip: 3 * time.Second}).stream()
		held, err := g.Acquire(t.Context(), complete)
		if err != nil {
			t.Fatal(err)
		}
		slower := g.at(t, (&sender{size: 1 << 20, rate: 5000}).stream())
		slow := g.at(t, (&sender{size: 1 << 20, rate: 9000}).stream())
		silent := g.at(t, (&sender{size: 1 << 20, atOnce: 400_000, keeps: 1<<20 - 400_000}).stream())
		time.Sleep(3 * time.Second)
		for name, result := range map[string]<-chan error{"silent": silent} {
			newcomer := (&sender{size: 10, atOnce: 10}).stream()
			a, err := g.Acquire(t.Context(), newcomer)
			if err != nil {
				t.Fatal(err)
			}
			wantRefused(t, <-result, CauseDisplaced)
			t.Log(name, "was displaced")
			defer a.Release(true)
		}
		for _, result := range []<-chan error{slower, slow} {
			a, err := g.Acquire(t.Context(), (&sender{size: 10, atOnce: 10}).stream())
			if err != nil {
				t.Fatal(err)
			}
			wantRefused(t, <-result, CauseDisplaced)
			defer a.Release(true)
		}
		if _, err := g.Acquire(t.Context(), testStream(untouched{t}, 10, 10)); err == nil {
			t.Error("a complete upload was displaced")
		}
		held.Release(true)
		complete.End()
	})
}

// An upload that is displaced while it waits for memory ends at once.
func TestDisplacedWhileItWaitsForMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(t, Capacity{Slots: 2, Wait: 15 * time.Second, Memory: 4 * chunkSize})
		holds := sized(4 * chunkSize) // all memory, and a slot
		a, err := g.Acquire(t.Context(), holds)
		if err != nil {
			t.Fatal(err)
		}
		slow := g.at(t, (&sender{size: 1 << 20, rate: 1000, roundTrip: 3 * time.Second}).stream())
		time.Sleep(4 * time.Second) // its first bytes came, and there is no chunk for them
		newcomer := g.at(t, (&sender{size: 10, atOnce: 10}).stream())
		wantRefused(t, <-slow, CauseDisplaced)
		a.Release(true)
		if err := <-newcomer; err != nil {
			t.Error(err)
		}
		g.wantEmpty(t)
	})
}

// Of one HTTP/2 connection the upload that is parked, and may fill the window
// of all, gives way when another one is read in vain; the last that came first.
// Over HTTP/1, or on another connection, it stays.
func TestParkedUploadStarvesNoSibling(t *testing.T) {
	for _, test := range []struct {
		name   string
		major  int
		addr   string
		memory int64
		after  time.Duration // < 0: it isn't refused for that
		reader int           // the major version of the one that is read
	}{
		{"HTTP/2", 2, "192.0.2.1:1234", 0, 2500 * time.Millisecond, 2},
		{"HTTP/3", 3, "192.0.2.1:1234", 0, 2500 * time.Millisecond, 3},
		{"HTTP/2, waiting for memory", 2, "192.0.2.1:1234", chunkSize, 2500 * time.Millisecond, 2},
		{"HTTP/1", 1, "192.0.2.1:1234", 0, -1, 1},
		{"HTTP/1 beside it, on a Unix socket", 2, "192.0.2.1:1234", 0, -1, 1},
		{"another connection", 2, "192.0.2.1:9", 0, -1, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := open(t, Capacity{Slots: 1, Queue: 5, Wait: 9 * time.Second, Memory: test.memory})
				sibling := func(major int, c *sender) *Stream {
					s := c.stream()
					s.protoMajor = major
					return s
				}
				reading := g.at(t, sibling(test.reader, &sender{size: 1000, atOnce: 500, keeps: 500}))
				parked := sibling(test.major, &sender{size: 1 << 20, atOnce: 1 << 20, keeps: 1})
				last := sibling(test.major, &sender{size: 1 << 20, atOnce: 1 << 20, keeps: 1})
				parked.remoteAddr, last.remoteAddr = test.addr, test.addr
				start := time.Now()
				first, second := g.at(t, parked), g.at(t, last)
				err := <-second
				if test.after < 0 {
					wantRefused(t, err, CauseWait)
				} else if refused := wantRefused(t, err, CauseDisplaced); refused.RetryAfter < time.Second || time.Since(start) != test.after {
					t.Errorf("the last: %+v after %s", refused, time.Since(start))
				}
				if test.after >= 0 {
					wantRefused(t, <-first, CauseDisplaced)
					if time.Since(start) != test.after+time.Second/2 {
						t.Errorf("the other after %s", time.Since(start))
					}
				} else {
					<-first
				}
				if err := <-reading; !errors.Is(err, ErrStalled) {
					t.Errorf("the one that is read: %v", err)
				}
				g.wantEmpty(t)
			})
		})
	}
}

// Parked uploads that can't fill the window of their connection stay when
// another one is silent: a CDN has the uploads of many clients on one.
func TestSmallParkedUploadsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(t, Capacity{Slots: 1, Queue: 5, Wait: 19 * time.Second})
		sibling := func(c *sender) *Stream {
			s := c.stream()
			s.protoMajor = 2
			return s
		}
		silent := g.at(t, sibling(&sender{size: 1 << 20, atOnce: 500, keeps: 500}))
		var parked []<-chan error
		for range 5 {
			parked = append(parked, g.at(t, sibling(&sender{size: 100_000, atOnce: 100_000})))
		}
		if err := <-silent; !errors.Is(err, ErrStalled) {
			t.Errorf("the silent one: %v", err)
		}
		for _, result := range parked {
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
		g.wantEmpty(t)
	})
}
