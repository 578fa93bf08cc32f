package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
)

// Goals for the ratio of oz_instant to a plain Caddy, at most.
const (
	cpuGoal    = 1.0
	memoryGoal = 1.2
)

// comparison is what the flags of compare ask for.
type comparison struct {
	workshop
	check bool

	bestShot cli.Size
	size     cli.Size
	clients  int
	rounds   int
	capsules int

	memorySize     cli.Size
	memoryClients  int
	memoryRounds   int
	memoryCapsules int
}

func readComparison(args []string, stderr io.Writer) (c comparison, help bool, err error) {
	c = comparison{bestShot: 400_000, size: 2 << 20, memorySize: 10 << 20, workshop: workshop{progress: stderr}}
	flags := flag.NewFlagSet("bench compare", flag.ContinueOnError)
	c.binaryFlag(flags)
	flags.BoolVar(&c.check, "check", false, "exit with 1 if a ratio is over its goal")
	flags.Var(&c.bestShot, "best-shot", "length of the best shot in Oz's answer, in base64")

	flags.Var(&c.size, "size", "CPU: size of a capsule")
	flags.IntVar(&c.clients, "clients", 4, "CPU: clients at a time")
	flags.IntVar(&c.rounds, "rounds", 25, "CPU: pairs of measurements")
	flags.IntVar(&c.capsules, "capsules", 200, "CPU: capsules in one measurement")

	flags.Var(&c.memorySize, "memory-size", "memory: size of a capsule")
	flags.IntVar(&c.memoryClients, "memory-clients", 64, "memory: clients at a time")
	flags.IntVar(&c.memoryRounds, "memory-rounds", 5, "memory: pairs of measurements, each with a fresh gateway")
	flags.IntVar(&c.memoryCapsules, "memory-capsules", 128, "memory: capsules in one measurement")

	if help, err = cli.Parse(flags, args, stderr); help || err != nil {
		return c, help, err
	}
	if min(c.clients, c.rounds, c.capsules, c.memoryClients, c.memoryRounds, c.memoryCapsules, int(c.size), int(c.memorySize)) < 1 {
		return c, false, errors.New("sizes, clients, rounds and capsules are at least 1")
	}
	return c, false, nil
}

func compare(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, help, err := readComparison(args, stderr)
	if help || err != nil {
		return err
	}
	defer c.close()
	if err := c.open(ctx); err != nil {
		return err
	}
	findings, err := c.measure(ctx)
	if err != nil {
		return err
	}
	c.print(stdout, findings)
	return c.judge(findings)
}

func (c *comparison) measure(ctx context.Context) ([]finding, error) {
	fmt.Fprintf(c.progress, "CPU: %d pairs of %d capsules …\n", c.rounds, c.capsules)
	cpu, err := c.cpu(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c.progress, "memory: %d pairs of %d capsules …\n", c.memoryRounds, c.memoryCapsules)
	memory, err := c.memory(ctx)
	if err != nil {
		return nil, err
	}
	return []finding{
		{
			title: fmt.Sprintf("CPU of the gateway per capsule of %s, %d clients, %d pairs of %d capsules",
				c.size.String(), c.clients, c.rounds, c.capsules),
			plain: plainReceiving, unit: "ms", pairs: cpu, goal: cpuGoal,
		},
		{
			title: fmt.Sprintf("peak resident memory of the gateway, %d clients, capsules of %s, %d pairs of %d capsules",
				c.memoryClients, c.memorySize.String(), c.memoryRounds, c.memoryCapsules),
			plain: plainUnreading, unit: "MiB", pairs: memory, goal: memoryGoal,
		},
	}, nil
}

// cpu measures both gateways in turn, over and over. They stay up, so that only the first capsules, which do not count, meet a
// gateway whose pools are empty and whose heap has not found its size.
func (c *comparison) cpu(ctx context.Context) (p pairs, err error) {
	w := workload{int64(c.size), int64(c.bestShot), c.clients}
	var beds []*bed
	defer func() {
		for _, b := range beds {
			err = errors.Join(err, b.close())
		}
	}()
	for _, peer := range []peer{ozInstant, plainReceiving} {
		b, err := newBed(ctx, c.binary, c.dir, peer, w)
		if err != nil {
			return p, err
		}
		beds = append(beds, b)
		if err := b.run(ctx, max(c.capsules/2, c.clients)); err != nil {
			return p, err
		}
	}
	for range c.rounds {
		ours, err := millisecondsPerCapsule(ctx, beds[0], c.capsules)
		if err != nil {
			return p, err
		}
		plain, err := millisecondsPerCapsule(ctx, beds[1], c.capsules)
		if err != nil {
			return p, err
		}
		p.add(ours, plain)
	}
	return p, nil
}

func millisecondsPerCapsule(ctx context.Context, b *bed, capsules int) (float64, error) {
	before, err := cpuTime(b.gateway.pid())
	if err != nil {
		return 0, err
	}
	if err := b.run(ctx, capsules); err != nil {
		return 0, err
	}
	after, err := cpuTime(b.gateway.pid())
	if err != nil {
		return 0, err
	}
	if after == before {
		return 0, fmt.Errorf("%s used less than %v of CPU for %d capsules: too few to measure", b.peer.name, tick, capsules)
	}
	return float64(after-before) / float64(time.Millisecond) / float64(capsules), nil
}

// memory measures both gateways in turn, over and over. A peak is for the life of a process: each one gets a fresh gateway.
func (c *comparison) memory(ctx context.Context) (p pairs, err error) {
	for range c.memoryRounds {
		ours, err := c.peakMiB(ctx, ozInstant)
		if err != nil {
			return p, err
		}
		plain, err := c.peakMiB(ctx, plainUnreading)
		if err != nil {
			return p, err
		}
		p.add(ours, plain)
	}
	return p, nil
}

func (c *comparison) peakMiB(ctx context.Context, p peer) (mib float64, err error) {
	b, err := newBed(ctx, c.binary, c.dir, p, workload{int64(c.memorySize), int64(c.bestShot), c.memoryClients})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.run(ctx, c.memoryCapsules); err != nil {
		return 0, err
	}
	peak, err := peakMemory(b.gateway.pid())
	return float64(peak) / (1 << 20), err
}

func (c *comparison) print(out io.Writer, findings []finding) {
	fmt.Fprintf(out, "%s; best shot of %d characters\n", conditions(c.binary), int64(c.bestShot))
	for _, f := range findings {
		fmt.Fprintln(out)
		f.print(out)
	}
}

// judge is what -check asks for.
func (c *comparison) judge(findings []finding) error {
	if !c.check {
		return nil
	}
	var errs []error
	for _, f := range findings {
		if !f.withinGoal() {
			errs = append(errs, fmt.Errorf("%s: the ratio is %.2f, over %.1f", f.title, f.ratio(), f.goal))
		}
	}
	return errors.Join(errs...)
}
