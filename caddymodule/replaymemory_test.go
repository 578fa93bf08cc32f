package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// newMemory loads a memory, which ends with the test.
func newMemory(t *testing.T, config string) *ReplayMemory {
	t.Helper()
	m, err := load[*ReplayMemory](newContext(t), replayNamespace+".memory", config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A claim is its owner's until it ends, is released or settled; all of it by
// comparing the owner.
func TestMemoryClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ctx := newMemory(t, "{}"), t.Context()
		claim := func(key, owner string, want bool) {
			t.Helper()
			if first, err := m.Claim(ctx, key, owner, time.Minute); first != want || err != nil {
				t.Errorf("%s claims %s: %v %v", owner, key, first, err)
			}
		}
		settle := func(key, owner string, want error) {
			t.Helper()
			if err := m.Settle(ctx, key, owner, time.Hour); !errors.Is(err, want) {
				t.Errorf("%s settles %s: %v", owner, key, err)
			}
		}
		release := func(key, owner string) {
			t.Helper()
			if err := m.Release(ctx, key, owner); err != nil {
				t.Error(err)
			}
		}
		claim("a", "x", true)
		claim("a", "y", false)
		claim("b", "y", true)
		release("a", "y")
		claim("a", "y", false)
		release("a", "x")
		claim("a", "y", true)
		settle("a", "x", ErrClaimed)
		settle("a", "y", nil)
		time.Sleep(time.Minute)
		claim("a", "z", false) // it lasts
		claim("b", "z", true)  // it has ended
		settle("b", "y", ErrClaimed)
		settle("c", "x", nil) // made anew
		claim("c", "y", false)
		time.Sleep(time.Hour)
		claim("c", "y", true)
	})
}

// The memory outlives reloads while somebody uses it, and ends with the last.
func TestMemoryOutlivesReloads(t *testing.T) {
	next := func(end func()) (*ReplayMemory, func()) {
		ctx, cancel := cancelContext(t)
		m, err := load[*ReplayMemory](ctx, replayNamespace+".memory", "{}")
		if err != nil {
			t.Fatal(err)
		}
		if end != nil {
			end()
		}
		return m, cancel
	}
	first, end := next(nil)
	if ok, _ := first.Claim(t.Context(), "key", "x", time.Minute); !ok {
		t.Fatal("claimed before")
	}
	for range 3 {
		var m *ReplayMemory
		if m, end = next(end); m.shared != first.shared {
			t.Fatal("another memory")
		}
		if ok, _ := m.Claim(t.Context(), "key", "y", time.Minute); ok {
			t.Error("a reload forgot it")
		}
	}
	end()
	if last, _ := next(nil); last.shared == first.shared {
		t.Error("nobody used it any more")
	}
}

// Junk that Oz has refused fills it, and no capsule in progress is forgotten for
// that: its second sender is still the second.
func TestMemoryKeepsWhatIsInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, `{"entries": 10}`)
		claim := func(key, owner string) bool {
			t.Helper()
			first, err := m.Claim(t.Context(), key, owner, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			return first
		}
		claim("honest", "first")
		for i := range 100 {
			key := fmt.Sprint("junk ", i)
			claim(key, "junk")
			if err := m.Settle(t.Context(), key, "junk", time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		if claim("honest", "second") {
			t.Error("forgotten while it was in progress")
		}
		for i := range 10 {
			claim(fmt.Sprint("in progress ", i), "x")
		}
		if n := len(m.shared.claims); n != 10 || len(m.shared.queues[decided]) != 0 {
			t.Errorf("%d claims, of which %d are of decided capsules", n, len(m.shared.queues[decided]))
		}
	})
}

// When it is full, what has ended goes first, then what would end first; it is
// counted, and logged once a minute. It never holds more than it may.
func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t, `{"entries": 10}`)
		core, logs := observer.New(zap.WarnLevel)
		m.logger = zap.New(core)
		claim := func(key string, ttl time.Duration) bool {
			t.Helper()
			first, err := m.Claim(t.Context(), key, "x", ttl)
			if n := len(m.shared.claims); err != nil || n > 10 || n != len(m.shared.queues[inProgress])+len(m.shared.queues[decided]) {
				t.Fatalf("%v, %d claims, %d and %d in queues", err, n, len(m.shared.queues[inProgress]), len(m.shared.queues[decided]))
			}
			return first
		}
		before := testutil.ToFloat64(sharedMetrics.replayForgotten)
		forgotten := func(want float64, warned int) {
			t.Helper()
			if got := testutil.ToFloat64(sharedMetrics.replayForgotten) - before; got != want || logs.Len() != warned {
				t.Errorf("%v forgotten, %d warnings; want %v and %d", got, logs.Len(), want, warned)
			}
		}
		claim("long", time.Hour)
		for i := range 9 {
			claim("short "+strconv.Itoa(i), time.Second)
		}
		time.Sleep(time.Second)
		for i := range 9 { // in the place of those that have ended
			claim("later "+strconv.Itoa(i), time.Minute+time.Duration(i)*time.Second)
		}
		forgotten(0, 0)
		claim("one more", time.Hour)
		claim("two more", time.Hour)
		forgotten(2, 1)
		for key, want := range map[string]bool{"long": true, "one more": true, "later 2": true, "later 0": false, "later 1": false} {
			if _, is := m.shared.claims[key]; is != want {
				t.Errorf("%q is there: %v", key, is)
			}
		}
		for i := range 100 {
			claim("flood "+strconv.Itoa(i), time.Hour)
		}
		forgotten(102, 1)
		time.Sleep(time.Minute)
		claim("last", time.Hour)
		forgotten(103, 2)
	})
}

// Handlers of one gateway share one memory, of the largest size that one wants.
func TestMemorySize(t *testing.T) {
	small := newMemory(t, `{"entries": 5}`)
	ctx, end := cancelContext(t)
	if _, err := load[*ReplayMemory](ctx, replayNamespace+".memory", `{"entries": 7}`); err != nil || small.shared.limit != 7 {
		t.Errorf("%v, room for %d", err, small.shared.limit)
	}
	if end(); small.shared.limit != 5 {
		t.Errorf("room for %d", small.shared.limit)
	}
	for _, config := range []string{`{"entries": -1}`, `{"entries": 67108865}`, `{"entry": 1}`} {
		if _, err := load[*ReplayMemory](newContext(t), replayNamespace+".memory", config); err == nil {
			t.Errorf("%s loads", config)
		}
	}
}

// Of many that claim a key at once one is the first, whatever others do.
func TestMemoryAtOnce(t *testing.T) {
	m := newMemory(t, "{}")
	for key := range 200 {
		var all sync.WaitGroup
		first := make(chan string, 16)
		for owner := range 16 {
			all.Go(func() {
				name := strconv.Itoa(owner)
				if ok, _ := m.Claim(context.Background(), strconv.Itoa(key), name, time.Minute); ok {
					first <- name
				} else if m.Settle(context.Background(), strconv.Itoa(key), name, time.Hour) == nil {
					first <- name
				}
				_ = m.Release(context.Background(), strconv.Itoa(key), "nobody")
			})
		}
		all.Wait()
		if len(first) != 1 {
			t.Fatalf("%d were the first", len(first))
		}
	}
}

// BenchmarkMemoryClaim is a claim that is made, settled and forgotten when so
// many others are there: the memory is full, so that one goes for each that comes.
func BenchmarkMemoryClaim(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := newReplayMemory()
			s.limit = n
			now := time.Now()
			keys := make([]string, 2*n)
			for i := range keys {
				keys[i] = fmt.Sprintf("%043d", i)
			}
			for i := range n {
				_, _, _ = s.set(keys[i], "owner", now.Add(time.Duration(i)), time.Minute, inProgress)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				key, now := keys[(n+i)%len(keys)], now.Add(time.Duration(n+i))
				if _, _, err := s.set(key, "owner", now, time.Minute, inProgress); err != nil {
					b.Fatal(err)
				}
				if _, _, err := s.set(key, "owner", now, time.Hour, decided); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
