package upload

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func limits(slots, queue int) Capacity {
	return Capacity{Slots: slots, Queue: queue, Wait: 15 * time.Second}
}

func (g *gate) wantLimits(t *testing.T, slots, queue int) {
	t.Helper()
	if g.slots.slots != slots || g.slots.queue != queue {
		t.Errorf("%d slots and a queue of %d, want %d and %d", g.slots.slots, g.slots.queue, slots, queue)
	}
}

func mustOpen(t *testing.T, config any, c Capacity) *Gate {
	t.Helper()
	g, err := OpenGate(t.Name(), config, c, Gauges{new(gauge), new(gauge)})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// The limits in force are those of the config that came last. When it goes,
// because it failed to load, the ones before it are in force again; when the
// old one goes, as after a reload, nothing changes.
func TestGateLimitsFollowTheConfig(t *testing.T) {
	running := mustOpen(t, 1, limits(3, 12))
	running.wantLimits(t, 3, 12)
	failing := mustOpen(t, 2, limits(1, 0))
	running.wantLimits(t, 1, 0)
	failing.Close()
	running.wantLimits(t, 3, 12)
	next := mustOpen(t, 3, limits(5, 6))
	if next.gate != running.gate {
		t.Error("a reload has another gate")
	}
	running.Close()
	next.wantLimits(t, 5, 6)
	next.Close()
	if _, still := gates.References(t.Name()); still {
		t.Error("the gate outlives its last user")
	}
}

// A config without memory leaves it to the uploads of the one before, which are
// still being received.
func TestGateKeepsMemoryOfTheConfigBefore(t *testing.T) {
	before := mustOpen(t, 1, Capacity{Memory: 1 << 20, Wait: time.Minute})
	defer before.Close()
	next := mustOpen(t, 2, limits(1, 1))
	defer next.Close()
	if a, err := before.Acquire(t.Context(), sized(10)); err != nil {
		t.Error(err)
	} else {
		a.Release(true)
	}
}

// Users of one config must agree; those of two need not, or no reload could
// change a limit. One without limits can't go around another's.
func TestGateConflict(t *testing.T) {
	wait, memory := limits(3, 12), limits(3, 12)
	wait.Wait, memory.Memory = 1, 1<<30
	for _, test := range []struct {
		name     string
		second   Capacity
		conflict bool
	}{
		{"the same", limits(3, 12), false},
		{"slots", limits(2, 12), true},
		{"queue", limits(3, 11), true},
		{"wait", wait, true},
		{"memory", memory, true},
		{"none", Capacity{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			first := mustOpen(t, 1, limits(3, 12))
			defer first.Close()
			second, err := OpenGate(t.Name(), 1, test.second, Gauges{new(gauge), new(gauge)})
			if (err != nil) != test.conflict {
				t.Errorf("in the same config: %v", err)
			}
			if err == nil {
				second.Close()
			} else if !strings.Contains(err.Error(), "only one of them has any") {
				t.Error(err)
			}
			first.wantLimits(t, 3, 12)
			other := mustOpen(t, 2, test.second)
			other.Close()
			if n, _ := gates.References(t.Name()); n != 1 {
				t.Errorf("%d uses are left", n)
			}
		})
	}
}

// Without capacity an upload passes at once, with its head read.
func TestGateWithoutCapacity(t *testing.T) {
	g := open(t, Capacity{})
	s := sized(2 * chunkSize)
	a, err := g.Acquire(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if a.Body != Body(s) || s.State().Bytes != chunkSize || a.Queued != 0 {
		t.Errorf("%+v, %+v", a, s.State())
	}
	a.Release(true)
	if _, err := g.Acquire(t.Context(), testStream(strings.NewReader("12345"), 6, 10)); !errors.Is(err, ErrShort) {
		t.Errorf("one that ends early: %v", err)
	}
	s.End()
}

// busyGate has one slot, which is taken.
func busyGate(t *testing.T, c Capacity) (g *Gate, free func()) {
	t.Helper()
	c.Slots = 1
	if c.Wait == 0 {
		c.Wait = 15 * time.Second
	}
	g = open(t, c)
	a, err := g.Acquire(t.Context(), sized(1))
	if err != nil {
		t.Fatal(err)
	}
	return g, func() { a.Release(true) }
}

// An upload that can't be served in time is refused before one byte was read.
func TestNoCapacityNoByteRead(t *testing.T) {
	for name, test := range map[string]struct {
		capacity Capacity
		cause    Cause
	}{
		"the queue is full":              {Capacity{}, CauseQueue},
		"the wait is too long":           {Capacity{Queue: 1, Wait: time.Second}, CauseWait},
		"the queue is full, with memory": {Capacity{Memory: 1 << 20}, CauseQueue},
	} {
		t.Run(name, func(t *testing.T) {
			g, free := busyGate(t, test.capacity)
			_, err := g.Acquire(t.Context(), testStream(untouched{t}, 1<<19, 1<<20))
			if refused := wantRefused(t, err, test.cause); refused.RetryAfter != firstGuess {
				t.Errorf("Retry-After %s", refused.RetryAfter)
			}
			free()
			g.wantEmpty(t)
		})
	}
}

// An upload that waits for its slot is not read, counts as queued, and its wait
// is told. Then its head is read, while it holds the slot.
func TestUploadWaitsForItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, free := busyGate(t, Capacity{Queue: 1})
		p := newPhone(t)
		p.does(func() { p.send(10) })
		s := p.stream(10)
		time.AfterFunc(5*time.Second, func() {
			if n := g.gauges.Queued.(*gauge).get(); n != 1 || s.State().Bytes != 0 {
				t.Errorf("%v wait, %d bytes were read", n, s.State().Bytes)
			}
			free()
		})
		a, err := g.Acquire(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if a.Queued != 5*time.Second || a.Upload != 0 || a.Body != Body(s) || s.State().Bytes != 10 {
			t.Errorf("%+v, %+v", a, s.State())
		}
		if busy, _ := g.slots.load(); busy != 1 {
			t.Errorf("%d slots are taken", busy)
		}
		a.Release(true)
		a.Release(true) // a second time is nothing
		s.End()
		g.wantEmpty(t)
	})
}

// An idle upload gives its slot back when it has run out of patience, and what
// it took does not count for estimates.
func TestIdleUploadInItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(t, limits(1, 1))
		start := time.Now()
		s := newPhone(t).stream(10)
		_, err := g.Acquire(t.Context(), s)
		if !errors.Is(err, ErrStalled) || time.Since(start) != 10*time.Second || g.slots.service != firstGuess {
			t.Errorf("%v after %s, service %s", err, time.Since(start), g.slots.service)
		}
		s.End()
		g.wantEmpty(t)
	})
}

// A client that leaves while it waits gives its place up. With memory, one that
// has sent everything may leave: what it sent is served, unless a leaving
// client ends all.
func TestClientLeavesTheQueue(t *testing.T) {
	for _, test := range []struct {
		name   string
		memory int64
		cancel bool
		want   error
	}{
		{"unread", 0, false, nil},
		{"complete", 1 << 20, false, nil},
		{"complete, with cancel", 1 << 20, true, ErrGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, free := busyGate(t, Capacity{Queue: 1, Memory: test.memory})
				time.AfterFunc(3*time.Second, free)
				p := newPhone(t)
				s := p.stream(10)
				l := s.Lifetime(test.cancel)
				p.does(func() {
					if test.memory > 0 {
						p.send(10)
					}
					time.Sleep(time.Second)
					p.hangUp()
				})
				start := time.Now()
				a, err := g.Acquire(l.Context(), s)
				if test.memory == 0 {
					if !errors.Is(err, ErrGone) || time.Since(start) != time.Second {
						t.Errorf("%v after %s", err, time.Since(start))
					}
				} else if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
					t.Errorf("%v, want %v", err, test.want)
				}
				if a != nil {
					a.Release(true)
				}
				time.Sleep(3 * time.Second)
				l.End()
				s.End()
				g.wantEmpty(t)
			})
		})
	}
}

// With memory an upload is received before it takes a slot: a slow phone holds
// none. Upload and wait are told apart.
func TestSlowPhoneHoldsNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, free := busyGate(t, Capacity{Queue: 1, Memory: 1 << 30})
		time.AfterFunc(4*time.Second, func() {
			if _, waiting := g.slots.load(); waiting != 0 {
				t.Error("it waits for a slot while it uploads")
			}
		})
		time.AfterFunc(13*time.Second, free)
		p := newPhone(t)
		s := p.stream(-1)
		p.does(func() {
			p.sendEvery(5*time.Second, 2, chunkSize)
			time.Sleep(time.Second)
			_ = p.line.Close()
		})
		a, err := g.Acquire(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if a.Upload != 11*time.Second || a.Queued != 2*time.Second || a.Body.Length() != 2*chunkSize {
			t.Errorf("upload %s, queue %s, %d bytes", a.Upload, a.Queued, a.Body.Length())
		}
		if n := g.gauges.Memory.(*gauge).get(); n != 2*chunkSize {
			t.Errorf("%v bytes are held", n)
		}
		a.Release(true)
		s.End()
		g.wantEmpty(t)
	})
}

// A plugin's body may panic, as handlers do to abort a request. That leaves
// nothing taken, and End does not wait for a read that will never return.
func TestBodyThatPanics(t *testing.T) {
	for name, c := range map[string]Capacity{
		"no capacity": {}, "slots": limits(1, 1), "memory": {Slots: 1, Queue: 1, Wait: time.Second, Memory: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := open(t, c)
				panics := readerFunc(func([]byte) (int, error) { panic(http.ErrAbortHandler) })
				s := testStream(io.MultiReader(strings.NewReader("begins"), panics), 10, 10)
				aborted := func(f func()) {
					defer func() {
						if recover() != http.ErrAbortHandler {
							t.Error("no panic")
						}
					}()
					f()
				}
				aborted(func() { _, _ = g.Acquire(t.Context(), s) })
				aborted(func() { _, _ = s.Rest().Read(make([]byte, 1)) })
				s.End()
				g.wantEmpty(t)
			})
		})
	}
}

// A wait for memory and one for a slot are one wait to the client, and cost it
// no patience.
func TestWaitsAreOne(t *testing.T) {
	for _, test := range []struct {
		wait  time.Duration
		cause Cause // of the refusal
		after time.Duration
	}{
		{30 * time.Second, "", 19 * time.Second},
		{17 * time.Second, CauseWait, 16 * time.Second}, // 1 s is left then, and an analysis takes 3 s
		{15 * time.Second, CauseMemory, 15 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			g, free := busyGate(t, Capacity{Queue: 2, Memory: 2 * chunkSize, Wait: test.wait})
			before := make(chan *Admission)
			time.AfterFunc(14*time.Second, free)
			go func() { // holds all memory for 16 s, and then the slot for 3 s
				a, err := g.Acquire(t.Context(), sized(2*chunkSize))
				if err != nil {
					t.Error(err)
				}
				before <- a
			}()
			synctest.Wait()
			time.AfterFunc(16*time.Second, func() {
				a := <-before
				a.Body.Stop()
				time.Sleep(3 * time.Second)
				a.Release(true)
			})
			p := newPhone(t)
			p.does(func() { p.send(1); p.send(9) })
			s := p.stream(10)
			start := time.Now()
			a, err := g.Acquire(t.Context(), s)
			if time.Since(start) != test.after {
				t.Errorf("after %s, want %s", time.Since(start), test.after)
			}
			if test.cause != "" {
				wantRefused(t, err, test.cause)
			} else if err != nil {
				t.Fatal(err)
			} else {
				if a.Queued != test.after || a.Upload != 0 {
					t.Errorf("waited %s, uploaded %s", a.Queued, a.Upload)
				}
				a.Release(true)
			}
			time.Sleep(10 * time.Second)
			s.End()
			g.wantEmpty(t)
		})
	}
}

// A call has a limit of its own: uploads don't keep it out, nor the other way.
func TestAcquireCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, free := busyGate(t, Capacity{})
		defer free()
		var releases []func()
		for range callSlots {
			release, err := g.AcquireCall(t.Context(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			releases = append(releases, release)
		}
		start := time.Now()
		_, err := g.AcquireCall(t.Context(), time.Second)
		if refused := wantRefused(t, err, CauseWait); refused.RetryAfter < time.Second || time.Since(start) != time.Second {
			t.Errorf("%+v after %s", refused, time.Since(start))
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		var all sync.WaitGroup
		for range callQueue {
			all.Go(func() {
				if _, err := g.AcquireCall(ctx, time.Minute); !errors.Is(err, io.EOF) {
					t.Errorf("one that waits: %v", err)
				}
			})
		}
		synctest.Wait()
		_, err = g.AcquireCall(t.Context(), time.Minute)
		if refused := wantRefused(t, err, CauseQueue); refused.RetryAfter < time.Second {
			t.Errorf("%+v", refused)
		}
		cancel(io.EOF)
		all.Wait()
		for _, release := range releases {
			release()
			release()
		}
		if busy, waiting := g.calls.load(); busy != 0 || waiting != 0 {
			t.Errorf("%d are taken and %d wait", busy, waiting)
		}
	})
}
