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

const analysis = 3 * time.Second

func newLimiter(slots, queue int) *limiter {
	l := &limiter{service: firstGuess}
	l.set(slots, queue, nil)
	return l
}

// hold takes a slot for as long as an analysis.
func (l *limiter) hold(ctx context.Context, wait time.Duration) error {
	release, err := l.acquire(ctx, nil, wait)
	if err != nil {
		return err
	}
	time.Sleep(analysis)
	release(true)
	return nil
}

// At ten times the load all slots are always in use, an upload waits in turn
// and no longer than allowed, and one that is refused learns when to come.
func TestLimiterUnderLoad(t *testing.T) {
	for _, slots := range []int{1, 4, 12} {
		synctest.Test(t, func(t *testing.T) { underLoad(t, slots) })
	}
}

func underLoad(t *testing.T, slots int) {
	const wait, duration = 10 * time.Second, 10 * time.Minute
	l := newLimiter(slots, 4*slots)
	var mu sync.Mutex
	var served, refused int
	var longest time.Duration
	var order []int
	var all sync.WaitGroup
	gap := analysis / time.Duration(10*slots)
	begin := time.Now()
	for i := 0; time.Since(begin) < duration; i++ {
		all.Go(func() {
			came := time.Now()
			release, err := l.acquire(t.Context(), nil, wait)
			waited := time.Since(came)
			if err == nil {
				mu.Lock()
				served, longest, order = served+1, max(longest, waited), append(order, i)
				mu.Unlock()
				time.Sleep(analysis)
				release(true)
				return
			}
			if busy, ok := errors.AsType[*Refused](err); !ok || busy.RetryAfter <= 0 || busy.RetryAfter > time.Minute {
				t.Errorf("refused with %v", err)
			}
			mu.Lock()
			refused++
			mu.Unlock()
		})
		time.Sleep(gap)
	}
	most := int(duration/analysis) * slots
	mu.Lock()
	if served < most*98/100 || refused == 0 {
		t.Errorf("%d slots: served %d of %d, refused %d", slots, served, most, refused)
	}
	if longest > wait {
		t.Errorf("%d slots: one waited %s", slots, longest)
	}
	for i := 1; i < len(order); i++ {
		if order[i] < order[i-1] {
			t.Fatalf("%d slots: %d was served after %d", slots, order[i-1], order[i])
		}
	}
	mu.Unlock()
	all.Wait()
	if busy, waiting := l.load(); busy != 0 || waiting != 0 {
		t.Errorf("%d slots: in the end %d are taken and %d wait", slots, busy, waiting)
	}
}

// A client that comes back when Retry-After says so would have been served: all
// that was before it is done.
func TestLimiterRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(2, 4)
		l.service = time.Hour // a guess that is replaced by the first measurement
		for range 3 {
			if err := l.hold(t.Context(), time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() { _ = l.hold(t.Context(), time.Minute) })
		}
		synctest.Wait()
		_, err := l.acquire(t.Context(), nil, time.Minute)
		busy := wantRefused(t, err, CauseQueue)
		if busy.RetryAfter != 9*time.Second { // six analyses, two at a time
			t.Errorf("Retry-After is %s", busy.RetryAfter)
		}
		time.Sleep(busy.RetryAfter)
		synctest.Wait()
		if busy, waiting := l.load(); busy != 0 || waiting != 0 {
			t.Errorf("then %d are taken and %d wait", busy, waiting)
		}
		all.Wait()
	})
}

// What ended in a client's fault says nothing of how long the upstream takes.
func TestLimiterLearnsFromTheServed(t *testing.T) {
	l := newLimiter(1, 1)
	for _, step := range []struct {
		held   time.Duration
		served bool
		want   time.Duration
	}{{10 * time.Second, false, firstGuess}, {time.Second, true, time.Second}, {10 * time.Second, false, time.Second}, {9 * time.Second, true, 2 * time.Second}} {
		if l.release(l.enter(time.Minute, false), step.held, step.served); l.service != step.want {
			t.Errorf("%+v: %s", step, l.service)
		}
	}
}

// An upload that is sure to wait in vain is refused at once, and none waits longer than allowed
// where that was not known.
func TestLimiterWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, 10)
		if err := l.hold(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		if _, err := l.acquire(t.Context(), nil, time.Minute); err != nil { // and never gives it back
			t.Fatal(err)
		}
		for wait, after := range map[time.Duration]time.Duration{2 * time.Second: 0, 5 * time.Second: 5 * time.Second} {
			start := time.Now()
			_, err := l.acquire(t.Context(), nil, wait)
			if busy := wantRefused(t, err, CauseWait); time.Since(start) != after || busy.RetryAfter != analysis {
				t.Errorf("refused after %s, want %s; %s", time.Since(start), after, busy.RetryAfter)
			}
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(ErrGone) })
		if _, err := l.acquire(ctx, nil, time.Minute); !errors.Is(err, ErrGone) {
			t.Errorf("a client that leaves: got %v", err)
		}
		if busy, waiting := l.load(); busy != 1 || waiting != 0 {
			t.Errorf("%d are taken and %d wait", busy, waiting)
		}
	})
}

// A reload changes the limits for those that are there already.
func TestLimiterChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1, 0)
		first, err := l.acquire(t.Context(), nil, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.acquire(t.Context(), nil, time.Second); err == nil {
			t.Error("a queue of 0 let one wait")
		}
		l.set(1, 5, nil)
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if _, err := l.acquire(t.Context(), nil, time.Minute); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		l.set(3, 0, nil)
		synctest.Wait()
		if busy, waiting := l.load(); busy != 3 || waiting != 1 {
			t.Errorf("with 3 slots %d are taken and %d wait", busy, waiting)
		}
		l.set(2, 0, nil)
		first(true)
		if busy, waiting := l.load(); busy != 2 || waiting != 1 {
			t.Errorf("with 2 slots %d are taken and %d wait", busy, waiting)
		}
		l.release(l.held[0], analysis, true)
		all.Wait()
	})
}

// Slots neither multiply nor vanish, whatever happens at the same moment.
func TestLimiterRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(3, 20)
		var all sync.WaitGroup
		var mu sync.Mutex
		inside, most := 0, 0
		for i := range 2000 {
			all.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 1))
				time.Sleep(time.Duration(r.IntN(600)) * time.Second)
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+r.IntN(5))*time.Second)
				defer cancel()
				release, err := l.acquire(ctx, nil, time.Duration(1+r.IntN(5))*time.Second)
				if err != nil {
					return
				}
				mu.Lock()
				inside++
				most = max(most, inside)
				mu.Unlock()
				time.Sleep(time.Duration(1+r.IntN(3)) * time.Second)
				mu.Lock()
				inside--
				mu.Unlock()
				release(true)
			})
		}
		all.Wait()
		if busy, waiting := l.load(); busy != 0 || waiting != 0 || most != 3 {
			t.Errorf("in the end %d are taken and %d wait; at most %d were inside", busy, waiting, most)
		}
	})
}
