package upload

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newMemory(total int64) *memory {
	m := new(memory)
	m.set(total)
	return m
}

// receive is an upload that sends so many bytes a second, and then waits for
// the upstream for so long. Declared is what it says that it will send.
func (m *memory) receive(ctx context.Context, size, declared, rate int64, wait, upstream time.Duration) error {
	u := &upload{gate: newGate(), stream: sized(1)}
	c := m.open(declared, new(gauge))
	var held []*chunk
	defer func() {
		c.complete()
		for _, b := range held {
			chunks.Put(b)
			c.free()
		}
	}()
	for received := int64(0); received < size; received += chunkSize {
		start := time.Now()
		b, err := c.take(ctx, u, wait)
		if err != nil {
			return err
		}
		held = append(held, b)
		wait -= time.Since(start)
		select {
		case <-time.After(time.Duration(min(chunkSize, size-received)) * time.Second / time.Duration(rate)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	c.complete()
	time.Sleep(upstream)
	return nil
}

// Whatever clients do, the memory holds, nothing is left behind, and an upload
// is only refused when its wait is over.
func TestMemoryHolds(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			const total = 64 << 20
			m := newMemory(total)
			stop := make(chan struct{})
			var most int64
			var watch sync.WaitGroup
			watch.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Millisecond):
						used, _ := m.load()
						most = max(most, used)
					}
				}
			})
			var all sync.WaitGroup
			for i := range 300 {
				all.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(i)))
					time.Sleep(time.Duration(r.IntN(1200)) * time.Second)
					size := int64(1 + r.IntN(16<<20))
					rate := []int64{100 << 10, 1 << 20, 20 << 20}[r.IntN(3)]
					declared := size
					if r.IntN(4) == 0 {
						declared = 32 << 20
					}
					if err := m.receive(t.Context(), size, declared, rate, time.Hour, time.Duration(r.IntN(10))*time.Second); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			close(stop)
			watch.Wait()
			if most > total || most < total/2 {
				t.Errorf("seed %d: at most %d in use", seed, most)
			}
			if used, uploads := m.load(); used != 0 || uploads != 0 {
				t.Errorf("seed %d: in the end %d bytes are in use by %d uploads", seed, used, uploads)
			}
		})
	}
}

// Uploads that together are larger than the memory don't block one another for
// ever, also if they don't say how large they are: there is always one that
// can come to its end.
func TestMemoryHasNoDeadlock(t *testing.T) {
	for name, uploads := range map[string][][2]int64{ // size, declared
		"twelve of 15 MiB":               {{15, 15}, {15, 15}, {15, 15}, {15, 15}, {15, 15}, {15, 15}, {15, 15}, {15, 15}, {15, 15}, {15, 15}, {15, 15}, {15, 15}},
		"unknown lengths, large and not": {{15, 32}, {15, 32}, {15, 32}, {15, 15}, {6, 6}, {6, 6}, {32, 32}},
		"of the memory's size":           {{32, 32}, {32, 32}, {32, 32}},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory(32 << 20)
			var all sync.WaitGroup
			start := time.Now()
			for _, u := range uploads {
				all.Go(func() {
					if err := m.receive(t.Context(), u[0]<<20, u[1]<<20, 8<<20, time.Hour, time.Second); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			all.Wait()
			if d := time.Since(start); d > time.Minute {
				t.Errorf("%s: it took %s", name, d)
			}
		})
	}
}

// Chunks go to uploads in the order in which those came, and the first that
// gets none ends the round: a younger one can't starve an older one.
func TestMemoryIsGivenInOrder(t *testing.T) {
	m := newMemory(10 * chunkSize)
	oldest, middle, youngest := m.open(8*chunkSize, new(gauge)), m.open(2*chunkSize, new(gauge)), m.open(chunkSize, new(gauge))
	if oldest.ask() != nil {
		t.Fatal("the oldest gets no chunk")
	}
	for range 2 {
		if middle.ask() != nil {
			t.Error("what fits beside the oldest's rest is not given")
		}
	}
	wait := youngest.ask()
	if wait == nil {
		t.Error("the youngest got what the oldest needs")
	}
	for range 7 {
		if oldest.ask() != nil {
			t.Fatal("the oldest can't come to its end")
		}
	}
	oldest.complete()
	oldest.free()
	if _, open := <-wait; open {
		t.Error("the youngest is forgotten")
	}
}

// Waiting for memory ends in time, and leaves no claim that holds up others.
func TestMemoryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(2 * chunkSize)
		c := m.open(2*chunkSize, new(gauge))
		c.ask()
		c.ask()
		start := time.Now()
		err := m.receive(t.Context(), 2*chunkSize, 2*chunkSize, 1<<20, 5*time.Second, 0)
		wantRefused(t, err, CauseMemory)
		if time.Since(start) != 5*time.Second {
			t.Errorf("after %s", time.Since(start))
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(ErrGone) })
		if err := m.receive(ctx, 1, 1, 1, time.Minute, 0); !errors.Is(err, ErrGone) {
			t.Errorf("a client that leaves: %v", err)
		}
		time.AfterFunc(time.Second, func() { m.set(3 * chunkSize) })
		if err := m.receive(t.Context(), 1, 1, 1, time.Minute, 0); err != nil {
			t.Errorf("when the memory has grown: %v", err)
		}
		if used, uploads := m.load(); used != 2*chunkSize || uploads != 1 {
			t.Errorf("%d bytes, %d uploads", used, uploads)
		}
	})
}
