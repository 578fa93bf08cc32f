package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
)

// trip is what the flags of soak ask for.
type trip struct {
	workshop
	length  time.Duration
	clients int
	seed    uint64
}

func readTrip(args []string, stderr io.Writer) (s trip, help bool, err error) {
	s = trip{workshop: workshop{progress: stderr}}
	flags := flag.NewFlagSet("bench soak", flag.ContinueOnError)
	s.binaryFlag(flags)
	flags.DurationVar(&s.length, "for", 90*time.Second, "how long capsules are sent")
	flags.IntVar(&s.clients, "clients", 32, "clients at a time")
	flags.Uint64Var(&s.seed, "seed", 0, "what clients and Oz do follows from it; 0: another one each time")
	if help, err = cli.Parse(flags, args, stderr); help || err != nil {
		return s, help, err
	}
	if s.length <= 0 || s.clients < 1 {
		return s, false, errors.New("-for is more than zero, and there is at least one client")
	}
	if s.seed == 0 {
		s.seed = rand.Uint64()
	}
	return s, false, nil
}

func soak(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, help, err := readTrip(args, stderr)
	if help || err != nil {
		return err
	}
	defer s.close()
	if err := s.open(ctx); err != nil {
		return err
	}
	w, err := newWorld(ctx, s.binary, s.dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.progress, "soaking for %v, seed %d …\n", s.length, s.seed)
	rest, err := s.run(ctx, w)
	if err = errors.Join(err, w.close()); err != nil {
		return err
	}
	b, err := w.balance()
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\n\n", conditions(s.binary))
	fmt.Fprintf(stdout, "%v, seed %d: %d clients, 3 instances of Oz; %s\n", s.length, s.seed, s.clients, &w.trouble)
	b.print(stdout)
	rest.print(stdout)
	return errors.Join(b.err(), rest.err())
}

// run sends capsules while everything else happens, and returns what the gateway is left with.
func (s *trip) run(ctx context.Context, w *world) (rest remains, err error) {
	// A quiet start, so that what the gateway holds at rest is known.
	w.sendFor(ctx, 2*time.Second, s.clients, s.rand(0))
	if rest.before, err = w.atRest(ctx, anyGoroutines); err != nil {
		return rest, err
	}

	troubled, calm := context.WithCancel(ctx)
	var trouble sync.WaitGroup
	var reloadErr, instanceErr error
	trouble.Go(func() { reloadErr = w.keepReloading(troubled) })
	trouble.Go(func() { instanceErr = w.keepFailing(troubled, s.rand(1)) })
	w.sendFor(ctx, s.length, s.clients, s.rand(2))
	calm()
	trouble.Wait()
	if err := errors.Join(reloadErr, instanceErr, ctx.Err()); err != nil {
		return rest, err
	}
	rest.after, err = w.atRest(ctx, rest.before.goroutines+mostGoroutines)
	return rest, err
}

func (s *trip) rand(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, stream)) }

// quiet is what a gateway has when it has nothing to do.
type quiet struct{ goroutines, heap float64 }

// remains are what a gateway has before and after.
type remains struct{ before, after quiet }

// More than this a gateway may not keep of a soak. Caddy itself keeps a little of its reloads for a while.
const (
	mostGoroutines = 30
	mostHeap       = 32 << 20
	anyGoroutines  = 1 << 20
)

func (r remains) print(out io.Writer) {
	fmt.Fprintf(out, "at rest before and after: %.0f and %.0f goroutines, %.1f and %.1f MiB of heap\n",
		r.before.goroutines, r.after.goroutines, mib(int64(r.before.heap)), mib(int64(r.after.heap)))
}

func (r remains) err() error {
	if r.after.heap > r.before.heap+mostHeap {
		return errors.New("the gateway keeps too much memory of what it has done")
	}
	return nil
}

// atRest waits until the gateway has nothing to do and not more than so many goroutines, and says what it still has then.
func (w *world) atRest(ctx context.Context, goroutines float64) (q quiet, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	for _, name := range []string{inFlightMetric, queuedMetric, memoryMetric} {
		if _, err := w.awaitMetric(ctx, name, 0); err != nil {
			return q, err
		}
	}
	if q.goroutines, err = w.awaitMetric(ctx, goroutineMetric, goroutines); err != nil {
		return q, err
	}
	if _, err := w.gateway.callAdmin(ctx, "GET", "/debug/pprof/heap?gc=1", ""); err != nil {
		return q, err
	}
	q.heap, err = w.gateway.metric(ctx, heapMetric)
	return q, err
}

// awaitMetric looks at a metric until it has come down to most: nothing tells of a change.
func (w *world) awaitMetric(ctx context.Context, name string, most float64) (n float64, err error) {
	for {
		if n, err = w.gateway.metric(ctx, name); err != nil || n <= most {
			return n, err
		}
		select {
		case <-ctx.Done():
			return n, fmt.Errorf("%s is still %v", name, n)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
