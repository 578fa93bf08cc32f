package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// fleetBusyGoal is how busy the slots must be at least, but for the seconds just after a fault.
const fleetBusyGoal = 0.95

// disorder is how long gateways may keep to their own order after they begin, or Redis does: it gives each its share until it has heard of
// all, and then those must be served that have waited meanwhile.
const disorder = 4*time.Second + fleetWait

// How long figures may be worse after a fault.
const (
	graceGateway  = 6 * time.Second // its leases end
	graceOz       = 3 * time.Second // DNS takes it out after one
	graceNewRedis = 6 * time.Second // it learns what is held
)

// graceStart lets the first capsules through.
func (r *fleetRun) graceStart() time.Duration { return 2*r.analysis + time.Second }

// graceNoRedis is how long leases may last: until then a gateway takes no slot that another one may have had.
func (r *fleetRun) graceNoRedis() time.Duration { return 2*r.timeout() + 6*time.Second }

// timeout is that of gateways for Oz.
func (r *fleetRun) timeout() time.Duration { return 3 * r.analysis }

// fleetRun is one run of fleet.
type fleetRun struct {
	workspace
	slots, queue, overload int
	analysis               time.Duration
	size                   sandbox.Size
	records                string
	redisProgram           string
	quick, local, seconds  bool

	phases []phase
	events []event
}

// event is a fault, or the end of one.
type event struct {
	name     string
	at       time.Duration
	grace    time.Duration // for which slots may be idle
	disorder time.Duration // for which capsules may be overtaken
}

// phase is a part of the run that is over.
type phase struct {
	name string
	window
}

func fleetCommand() *cobra.Command {
	r := &fleetRun{size: 64 << 10}
	cmd := r.command("fleet", "Run three gateways, three Oz and a Redis, and kill one after the other", r)
	cmd.Long = cmd.Short + `.

A Caddy in front balances clients over the gateways, which share slots and the claims of a replay guard in Redis and find the three Oz
by DNS. Many more capsules come than Oz can take. Meanwhile there is a kill -9 of a gateway, of an Oz and of Redis, each of which
comes back, Redis empty; then all gateways are restarted one after the other, and reloaded.

Exits with 1 if a capsule is unaccounted for or counts twice, if Oz ever has more analyses in progress than there are slots, or if, but
for the seconds just after a fault, the slots are less busy than they must be, or a capsule waits for a whole analysis after a later one
at another gateway had its turn.

Needs redis-server.`
	flags := cmd.Flags()
	flags.IntVar(&r.slots, "slots", 12, "`number` of slots, over all gateways")
	flags.IntVar(&r.queue, "queue", 24, "`number` of capsules that may wait, over all gateways")
	flags.IntVar(&r.overload, "overload", 10, "how many times as many capsules come as the slots can serve")
	flags.DurationVar(&r.analysis, "analysis", time.Second, "duration of an analysis")
	flags.Var(&r.size, "size", "size of a capsule")
	flags.StringVar(&r.records, "records", recordsSRV, "`kind` of DNS records by which Oz is found: a or srv")
	flags.StringVar(&r.redisProgram, "redis", "redis-server", "the `program`")
	flags.BoolVar(&r.quick, "quick", false, "take about a minute")
	flags.BoolVar(&r.local, "local", false, "give each gateway a third of the slots, instead of sharing them: to compare")
	flags.BoolVar(&r.seconds, "seconds", false, "print each second of it, too")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("records", cobra.FixedCompletions([]string{recordsA, recordsSRV}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (r *fleetRun) check() error {
	switch {
	case r.slots < fleetGateways || r.queue < fleetGateways:
		return fmt.Errorf("--slots and --queue must be %d or more", fleetGateways)
	case r.overload < 1 || r.size < 1:
		return errors.New("--overload and --size must be more than zero")
	case r.analysis < 100*time.Millisecond || r.analysis > fleetWait/2:
		return fmt.Errorf("--analysis must be from 100ms to %v", fleetWait/2)
	case r.records != recordsA && r.records != recordsSRV:
		return fmt.Errorf("--records: unknown kind %q (want %s or %s)", r.records, recordsA, recordsSRV)
	}
	_, err := exec.LookPath(r.redisProgram)
	return err
}

func (r *fleetRun) measure(ctx context.Context, stdout io.Writer) error {
	return steadily(ctx, stdout, watchMachine, func() error { return r.once(ctx, stdout) })
}

func (r *fleetRun) once(ctx context.Context, stdout io.Writer) error {
	r.phases, r.events = nil, nil
	r.line.Begin(progress.Phase{Name: "starting gateways, Oz and Redis"})
	e, err := newFleetEnv(ctx, r)
	if err != nil {
		return err
	}
	err = r.drill(ctx, e)
	if err = errors.Join(err, e.close()); err != nil {
		return err
	}
	v, err := e.collect()
	if err != nil {
		return err
	}
	b := r.books(v)
	fmt.Fprintf(stdout, "%s\n\n", conditions(r.binary))
	b.print(stdout)
	if r.seconds {
		b.printSeconds(stdout)
	}
	return b.err()
}

// drill has everything happen while capsules come.
func (r *fleetRun) drill(ctx context.Context, e *fleetEnv) error {
	load, end := context.WithCancel(ctx)
	defer e.sending.Wait()
	defer end()
	e.replays.Store(true)
	e.sending.Go(func() { e.send(load) })
	for _, step := range []struct {
		name  string
		takes time.Duration // about
		run   func(context.Context, *fleetEnv) error
	}{
		{"all live", r.graceStart() + r.pick(17, 3), r.live},
		{"kill -9 of a gateway", r.pick(24, 11), r.loseGateway},
		{"kill -9 of an Oz", r.pick(20, 8), r.loseOz},
		{"kill -9 of Redis", r.noRedis(), r.loseRedis},
		{"Redis back, empty", r.pick(16, 8), r.findRedis},
		{"rolling restart", r.pick(24, 12), r.restartAll},
		{"rolling reload", r.pick(9, 3), r.reloadAll},
	} {
		r.line.Begin(progress.Phase{Name: step.name, Takes: step.takes, Amount: func() string { return fmt.Sprintf("%d capsules", e.accounting.count()) }})
		from := monotonic()
		if err := step.run(ctx, e); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		r.phases = append(r.phases, phase{step.name, window{from, monotonic()}})
	}
	r.line.Begin(progress.Phase{Name: "last answers", Takes: fleetWait})
	return nil
}

// pick returns so many seconds, as the run is to be quick or not.
func (r *fleetRun) pick(full, quick int) time.Duration {
	if r.quick {
		return time.Duration(quick) * time.Second
	}
	return time.Duration(full) * time.Second
}

// note notes what happens now.
func (r *fleetRun) note(name string, grace, disorder time.Duration) {
	r.events = append(r.events, event{name, monotonic(), grace, disorder})
}

// graces returns when slots may be idle, and when capsules may be overtaken.
func (r *fleetRun) graces() (idle, disorderly []window) {
	for _, e := range r.events {
		idle = append(idle, window{e.at, e.at + e.grace})
		disorderly = append(disorderly, window{e.at, e.at + e.disorder})
	}
	return idle, disorderly
}

// after tells a time by the event before it.
func (r *fleetRun) after(at time.Duration) string {
	var last event
	for _, e := range r.events {
		if e.at <= at {
			last = e
		}
	}
	return fmt.Sprintf("%.1f s after: %s", (at - last.at).Seconds(), last.name)
}

func (r *fleetRun) live(ctx context.Context, _ *fleetEnv) error {
	r.note("start", r.graceStart(), disorder)
	return wait(ctx, r.graceStart()+r.pick(17, 3))
}

func (r *fleetRun) loseGateway(ctx context.Context, e *fleetEnv) error {
	r.note("kill -9 of a gateway", graceGateway, 0)
	e.killGateway(0)
	if err := wait(ctx, r.pick(14, 9)); err != nil {
		return err
	}
	r.note("a new gateway", 0, 0)
	if err := e.startGateway(ctx, 0); err != nil {
		return err
	}
	return wait(ctx, r.pick(9, 2))
}

func (r *fleetRun) loseOz(ctx context.Context, e *fleetEnv) error {
	r.note("kill -9 of an Oz", graceOz, 0)
	e.killOz(0)
	if err := wait(ctx, time.Second); err != nil {
		return err
	}
	r.note("DNS without an Oz", 0, 0)
	e.removeOz(0)
	if err := wait(ctx, r.pick(9, 5)); err != nil {
		return err
	}
	if err := e.startOz(ctx, 0); err != nil {
		return err
	}
	r.note("DNS with a new Oz", 0, 0)
	e.addOz(0)
	return wait(ctx, r.pick(9, 2))
}

// noRedis is how long there is none: a quick run ends before the leases do.
func (r *fleetRun) noRedis() time.Duration {
	if r.quick {
		return 7 * time.Second
	}
	return r.graceNoRedis() + 6*time.Second
}

// loseRedis sends no capsule twice from now on: the guard can't know of the first one then, and is told to let it count.
func (r *fleetRun) loseRedis(ctx context.Context, e *fleetEnv) error {
	e.replays.Store(false)
	if err := wait(ctx, time.Second); err != nil {
		return err
	}
	r.note("kill -9 of Redis", r.graceNoRedis(), r.noRedis()+disorder)
	e.redis.kill()
	return wait(ctx, r.noRedis())
}

func (r *fleetRun) findRedis(ctx context.Context, e *fleetEnv) error {
	r.note("a new Redis", graceNewRedis, disorder)
	if err := e.restartRedis(ctx); err != nil {
		return err
	}
	defer e.replays.Store(true)
	return wait(ctx, r.pick(16, 8))
}

func (r *fleetRun) restartAll(ctx context.Context, e *fleetEnv) error {
	for i := range e.gateways {
		r.note(fmt.Sprintf("restart of gateway %d", i+1), 0, 0)
		if err := e.restartGateway(ctx, i); err != nil {
			return err
		}
		if err := wait(ctx, r.pick(4, 1)); err != nil {
			return err
		}
	}
	return nil
}

func (r *fleetRun) reloadAll(ctx context.Context, e *fleetEnv) error {
	for i, g := range e.gateways {
		r.note(fmt.Sprintf("reload of gateway %d", i+1), 0, 0)
		if err := g.reload(ctx, r.peer(i+1).caddyfile()); err != nil {
			return err
		}
		if err := wait(ctx, r.pick(3, 1)); err != nil {
			return err
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
