package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// stillness is how long the machine may give this program no CPU, and a drill is judged all the same. Gateways, Redis and Oz get
	// none then, either: what they have a second for takes longer, and slots that nobody can hand on are idle.
	stillness = 250 * time.Millisecond

	// steadyTries is how often a drill takes place at most.
	steadyTries = 2
)

// late is what is wrong with the times of a drill: something came too late, or too little was done. Of a capsule that is lost, counted
// twice or let in without a slot there is no late.
type late struct{ error }

// onlyLate reports whether nothing else is wrong.
func onlyLate(err error) bool {
	switch e := err.(type) {
	case late:
		return true
	case interface{ Unwrap() []error }:
		return !slices.ContainsFunc(e.Unwrap(), func(err error) bool { return !onlyLate(err) })
	}
	return false
}

// steadily runs a drill, and once more where it was only late, on a machine that stood still meanwhile, as watch tells: that shows
// nothing.
func steadily(ctx context.Context, out io.Writer, watch func() (stop func() time.Duration), drill func() error) error {
	for try := 1; ; try++ {
		stop := watch()
		err := drill()
		still := stop()
		if !onlyLate(err) || still < stillness || try == steadyTries || ctx.Err() != nil {
			return err
		}
		fmt.Fprintf(out, "\n%v\n\nThe machine stood still for %.2f s meanwhile, so that this shows nothing: once more.\n\n", err, still.Seconds())
	}
}

// watchMachine watches whether this program gets CPU when it wants some. The function that it returns ends that, and returns the longest
// time for which it got none.
func watchMachine() (stop func() time.Duration) {
	const pause = 10 * time.Millisecond
	var longest atomic.Int64
	var watching sync.WaitGroup
	done := make(chan struct{})
	watching.Go(func() {
		for last := time.Now(); ; {
			select {
			case <-done:
				return
			case <-time.After(pause):
			}
			now := time.Now()
			longest.Store(max(longest.Load(), int64(now.Sub(last)-pause)))
			last = now
		}
	})
	return func() time.Duration {
		close(done)
		watching.Wait()
		return time.Duration(longest.Load())
	}
}
