package upload

import (
	"testing"
	"testing/synctest"
	"time"
)

func (g *Gate) wantStatus(t *testing.T, when string, want GateStatus) {
	t.Helper()
	if got := g.Status(); got != want {
		t.Errorf("%s:\n%+v, want\n%+v", when, got, want)
	}
}

// A status counts what has a slot and what waits, and estimates for a newcomer
// by what was measured, or by the vendor's figure until something was.
func TestStatusOfSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(t, limits(1, 3))
		g.wantStatus(t, "at first", GateStatus{Slots: 1, Queue: 3})
		first, err := g.Acquire(t.Context(), sized(10))
		if err != nil {
			t.Fatal(err)
		}
		g.wantStatus(t, "with one in the slot", GateStatus{InFlight: 1, Slots: 1, Queue: 3, WaitSeconds: 3})
		second := make(chan *Admission)
		go func() {
			a, _ := g.Acquire(t.Context(), sized(10))
			second <- a
		}()
		synctest.Wait()
		g.wantStatus(t, "with one that waits", GateStatus{InFlight: 1, Slots: 1, Queued: 1, Queue: 3, WaitSeconds: 6})

		time.Sleep(1500 * time.Millisecond)
		first.Release(true)
		a := <-second
		g.wantStatus(t, "after one was served", GateStatus{InFlight: 1, Slots: 1, Queue: 3, ServiceSeconds: 1.5, WaitSeconds: 1.5})
		a.Release(false)
		a.Release(false)
		g.wantStatus(t, "at the end", GateStatus{Slots: 1, Queue: 3, ServiceSeconds: 1.5})
	})
}

// Without limits all the same is counted and measured, but for waits.
func TestStatusWithoutCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(t, Capacity{})
		var admissions []*Admission
		for range 2 {
			a, err := g.Acquire(t.Context(), sized(10))
			if err != nil {
				t.Fatal(err)
			}
			admissions = append(admissions, a)
		}
		if _, err := g.Acquire(t.Context(), testStream(readerFunc(func([]byte) (int, error) { return 0, ErrShort }), 6, 10)); err == nil {
			t.Error("a broken upload was admitted")
		}
		g.wantStatus(t, "with two at the upstream", GateStatus{InFlight: 2})
		time.Sleep(2 * time.Second)
		admissions[0].Release(true)
		admissions[0].Release(true)
		g.wantStatus(t, "with one", GateStatus{InFlight: 1, ServiceSeconds: 2})
		time.Sleep(time.Hour)
		admissions[1].Release(false)
		g.wantStatus(t, "at the end: one that wasn't served isn't measured", GateStatus{ServiceSeconds: 2})
	})
}

// With memory, what is held and what is still being received are told; the queue
// of a gate without slots is none.
func TestStatusOfMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := open(t, Capacity{Memory: 1 << 20, Queue: 7, Wait: time.Minute})
		p := newPhone(t)
		done := make(chan *Admission)
		go func() {
			a, _ := g.Acquire(t.Context(), p.stream(2*chunkSize))
			done <- a
		}()
		p.send(chunkSize + 1)
		synctest.Wait()
		g.wantStatus(t, "in the middle", GateStatus{Uploading: 1, HeldBytes: 2 * chunkSize, MemoryBytes: 1 << 20})
		p.send(chunkSize - 1)
		a := <-done
		g.wantStatus(t, "received", GateStatus{InFlight: 1, HeldBytes: 2 * chunkSize, MemoryBytes: 1 << 20})
		a.Release(false)
		g.wantStatus(t, "at the end", GateStatus{MemoryBytes: 1 << 20})
	})
}

// Limits are those of the config that came last, also where it has none, and
// what an earlier one has in progress counts.
func TestStatusOverReloads(t *testing.T) {
	before := mustOpen(t, 1, Capacity{Slots: 2, Queue: 3, Wait: time.Minute, Memory: 1 << 20})
	a, err := before.Acquire(t.Context(), sized(10))
	if err != nil {
		t.Fatal(err)
	}
	failing := mustOpen(t, 2, limits(9, 9))
	failing.Close()
	before.wantStatus(t, "after one that failed to load", GateStatus{InFlight: 1, Slots: 2, Queue: 3, HeldBytes: chunkSize, MemoryBytes: 1 << 20})
	next := mustOpen(t, 3, Capacity{})
	before.Close()
	b, err := next.Acquire(t.Context(), sized(10))
	if err != nil {
		t.Fatal(err)
	}
	next.wantStatus(t, "without limits", GateStatus{InFlight: 2, HeldBytes: chunkSize})
	a.Release(false)
	b.Release(false)
	next.wantStatus(t, "at the end", GateStatus{})
	next.Close()
}
