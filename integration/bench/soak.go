package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
)

const calmStart = 2 * time.Second

// soakRun is one run of soak.
type soakRun struct {
	workspace
	length  time.Duration
	clients int
	seed    uint64
}

func soakCommand() *cobra.Command {
	s := &soakRun{}
	cmd := s.command("soak", "Have everything go wrong, and account for every capsule", s)
	flags := cmd.Flags()
	flags.DurationVar(&s.length, "for", 90*time.Second, "how long capsules are sent")
	flags.IntVar(&s.clients, "clients", 32, "concurrent clients")
	flags.Uint64Var(&s.seed, "seed", 0, "what clients and Oz do follows from it; 0: another one each time")
	return cmd
}

func (s *soakRun) check() error {
	if s.length <= 0 || s.clients < 1 {
		return errors.New("--for must be more than zero, and --clients at least 1")
	}
	if s.seed == 0 {
		s.seed = rand.Uint64()
	}
	return nil
}

func (s *soakRun) measure(ctx context.Context, stdout io.Writer) error {
	e, err := newSoakEnv(ctx, s.binary, s.dir)
	if err != nil {
		return err
	}
	left, err := s.run(ctx, e)
	if err = errors.Join(err, e.close()); err != nil {
		return err
	}
	t, err := e.totals()
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s\n\n", conditions(s.binary))
	fmt.Fprintf(stdout, "%v, seed %d: %d clients, %d instances of Oz; %s\n", s.length, s.seed, s.clients, instances, &e.faults)
	t.print(stdout)
	left.print(stdout)
	return errors.Join(t.err(), left.err())
}

// run sends capsules while everything else happens, and returns what the gateway still holds afterwards.
func (s *soakRun) run(ctx context.Context, e *soakEnv) (left growth, err error) {
	// A calm start, to learn what the gateway holds at rest.
	s.begin(e, "a calm start", calmStart)
	e.sendFor(ctx, calmStart, s.clients, s.rand(0))
	if left.before, err = e.atRest(ctx, anyGoroutines); err != nil {
		return left, err
	}

	faulty, calm := context.WithCancel(ctx)
	var faults sync.WaitGroup
	var reloadErr, instanceErr error
	faults.Go(func() { reloadErr = e.keepReloading(faulty) })
	faults.Go(func() { instanceErr = e.keepFailing(faulty, s.rand(1)) })
	s.begin(e, fmt.Sprintf("soaking, seed %d", s.seed), s.length)
	e.sendFor(ctx, s.length, s.clients, s.rand(2))
	calm()
	faults.Wait()
	s.begin(e, "coming to rest", 0)
	if err := errors.Join(reloadErr, instanceErr, ctx.Err()); err != nil {
		return left, err
	}
	left.after, err = e.atRest(ctx, left.before.goroutines+mostGoroutines)
	return left, err
}

// begin shows what is done now, and how many capsules have been sent up to now.
func (s *soakRun) begin(e *soakEnv, name string, takes time.Duration) {
	s.line.Begin(progress.Phase{Name: name, Takes: takes, Amount: func() string { return fmt.Sprintf("%d capsules", e.accounting.count()) }})
}

func (s *soakRun) rand(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(s.seed, stream)) }

// idleUsage is what a gateway holds at rest.
type idleUsage struct{ goroutines, heap float64 }

// growth compares what a gateway holds at rest before the soak and after it.
type growth struct{ before, after idleUsage }

// Bounds of the growth. Caddy itself keeps a little of its reloads for a while.
const (
	mostGoroutines = 30
	mostHeap       = 32 << 20
	anyGoroutines  = 1 << 20
)

func (g growth) print(out io.Writer) {
	fmt.Fprintf(out, "at rest before and after: %.0f and %.0f goroutines, %.1f and %.1f MiB of heap\n",
		g.before.goroutines, g.after.goroutines, mib(int64(g.before.heap)), mib(int64(g.after.heap)))
}

func (g growth) err() error {
	if g.after.heap > g.before.heap+mostHeap {
		return errors.New("the gateway holds too much memory after its work is done")
	}
	return nil
}

// atRest waits until the gateway has nothing to do and at most that many goroutines, and returns what it still holds.
func (e *soakEnv) atRest(ctx context.Context, goroutines float64) (q idleUsage, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*timeLimit)
	defer cancel()
	for _, name := range []string{inFlightMetric, queuedMetric, memoryMetric} {
		if _, err := e.awaitMetric(ctx, name, 0); err != nil {
			return q, err
		}
	}
	if q.goroutines, err = e.awaitMetric(ctx, goroutineMetric, goroutines); err != nil {
		return q, err
	}
	if _, err := e.gateway.callAdmin(ctx, "GET", "/debug/pprof/heap?gc=1", ""); err != nil {
		return q, err
	}
	q.heap, err = e.gateway.metric(ctx, heapMetric)
	return q, err
}

// awaitMetric polls a metric until it has fallen to most. Nothing announces a change.
func (e *soakEnv) awaitMetric(ctx context.Context, name string, most float64) (n float64, err error) {
	for {
		if n, err = e.gateway.metric(ctx, name); err != nil || n <= most {
			return n, err
		}
		select {
		case <-ctx.Done():
			return n, fmt.Errorf("%s is still %v", name, n)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
