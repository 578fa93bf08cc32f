package caddymodule

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const uploadTime = 2 * time.Minute

// upload is a client that sends so many bytes a second, and then waits for a
// slot for so long. It returns how it ended.
func (b *budget) upload(ctx context.Context, size, rate int64, slot time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	r := b.open(size, uploadTime, func() { cancel(errStalled) })
	left, wait := uploadTime, time.Minute
	var chunks [][]byte
	defer func() {
		r.complete()
		for _, c := range chunks {
			r.free(c)
		}
	}()
	for r.received < size {
		start := time.Now()
		c, err := r.chunk(ctx, wait)
		if err != nil {
			return err
		}
		chunks = append(chunks, c)
		wait -= time.Since(start)
		n := min(chunkSize, size-r.received)
		takes := time.Duration(n) * time.Second / time.Duration(rate)
		select {
		case <-time.After(takes):
		case <-time.After(left):
			return errUploadTimeout
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		left -= takes
		r.got(int(n))
	}
	r.complete()
	time.Sleep(slot)
	return nil
}

func newBudget(total int64) *budget {
	b := new(budget)
	b.set(total)
	return b
}

func (b *budget) inUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Whatever clients do, the budget holds, everybody is served or ends in time,
// and nothing is left behind.
func TestBudgetHolds(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			const total = 64 << 20
			b := newBudget(total)
			stop := make(chan struct{})
			var most, held int64
			var watch sync.WaitGroup
			watch.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Millisecond):
						b.mu.Lock()
						sum := int64(0)
						for _, r := range b.active {
							sum += r.held
						}
						most, held = max(most, b.used), max(held, sum)
						b.mu.Unlock()
					}
				}
			})
			var all sync.WaitGroup
			var mu sync.Mutex
			ended := map[string]int{}
			for i := range 300 {
				all.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(i)))
					time.Sleep(time.Duration(r.IntN(1200)) * time.Second)
					size := int64(1 + r.IntN(16<<20))
					rate := []int64{1 << 10, 20 << 10, 1 << 20, 20 << 20}[r.IntN(4)]
					err := b.upload(t.Context(), size, rate, time.Duration(r.IntN(10))*time.Second)
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						ended["served"]++
					case rate >= 1<<20:
						ended["fast, and "+err.Error()]++
					default:
						ended["slow, and "+err.Error()]++
					}
				})
			}
			all.Wait()
			close(stop)
			watch.Wait()
			if most > total || held > total {
				t.Errorf("seed %d: %d in use, %d held", seed, most, held)
			}
			if n := b.inUse(); n != 0 || len(b.active) != 0 || len(b.queue) != 0 {
				t.Errorf("seed %d: in the end %d bytes are in use, %d active, %d wait", seed, n, len(b.active), len(b.queue))
			}
			for how := range ended {
				if strings.HasPrefix(how, "fast") {
					t.Errorf("seed %d: %v", seed, ended)
				}
			}
		})
	}
}

// Clients that say much and send nothing cost a chunk each, and keep nobody out.
func TestBudgetCountsWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(64 << 20)
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { _ = b.upload(ctx, 32<<20, 1, 0) })
		}
		time.Sleep(10 * time.Second)
		start := time.Now()
		for range 20 {
			if err := b.upload(t.Context(), 8<<20, 8<<20, 0); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d > 25*time.Second {
			t.Errorf("20 uploads of a second each took %s", d)
		}
		if n := b.inUse(); n > 100*chunkSize {
			t.Errorf("the silent ones hold %d bytes", n)
		}
		cancel()
		all.Wait()
	})
}

// A client that was fast and has stalled with the memory full has to go; one
// that is as fast as it has to be may stay.
func TestBudgetEvictsTheLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(32 << 20)
		stalled := b.open(32<<20, uploadTime, func() {})
		for range 31 << 20 / chunkSize {
			if _, err := stalled.chunk(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
			stalled.got(chunkSize)
		}
		other := make(chan error)
		go func() { other <- b.upload(t.Context(), 8<<20, 8<<20, 0) }()
		time.Sleep(59 * time.Second)
		if stalled.isEvicted() {
			t.Fatal("it was ahead of its time, and had to go")
		}
		if err := <-other; !errors.Is(err, errNoMemory) {
			t.Errorf("the other one: %v", err)
		}
		time.Sleep(58 * time.Second) // now it is late
		go func() { other <- b.upload(t.Context(), 8<<20, 8<<20, 0) }()
		time.Sleep(time.Second)
		if _, err := stalled.chunk(t.Context(), time.Minute); !stalled.isEvicted() || !errors.Is(err, errStalled) {
			t.Fatalf("it is late, others wait, and it stays: %v", err)
		}
		stalled.complete()
		for range 31 << 20 / chunkSize {
			stalled.free(make([]byte, chunkSize))
		}
		if err := <-other; err != nil {
			t.Errorf("the other one: %v", err)
		}
	})
}

// Of two that have begun one comes to its end, also where there is room for one
// only: who has not begun waits.
func TestNoTwoHalves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(32 << 20)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if err := b.upload(t.Context(), 32<<20, 20<<20, time.Second); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := b.inUse(); n != 0 {
			t.Errorf("%d bytes are left", n)
		}
	})
}
