package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// cpuCase is a kind of load of which the CPU time is compared.
type cpuCase struct {
	name     string
	ours     peer
	size     sandbox.Size
	protocol protocol
	weight   int     // of how many times as many capsules a measurement consists, so that it lasts long enough
	goal     float64 // for the ratio of oz_instant to a plain Caddy, at most
}

var cpuCases = []cpuCase{
	{"cpu", ozInstant, 2 << 20, h1, 1, 0.95},
	{"cpu-small", ozInstant, 200_000, h1, 4, 1},
	{"cpu-tls-h1", ozInstant, 2 << 20, h1TLS, 1, 1},
	{"cpu-tls-h2", ozInstant, 2 << 20, h2TLS, 1, 1},
	{"cpu-trust", ozInstantTrust, 2 << 20, h1, 2, 1.25},
}

const (
	memoryCase = "memory"
	memoryGoal = 1.2
)

func caseNames() (names []string) {
	for _, c := range cpuCases {
		names = append(names, c.name)
	}
	return append(names, memoryCase)
}

// comparison is one run of compare.
type comparison struct {
	workspace
	strict bool

	cases    []string
	bestShot sandbox.Size
	clients  int
	rounds   int
	capsules int

	memorySize     sandbox.Size
	memoryClients  int
	memoryRounds   int
	memoryCapsules int
}

func compareCommand() *cobra.Command {
	c := &comparison{bestShot: 400_000, memorySize: 10 << 20}
	cmd := c.command("compare", "Compare oz_instant with a plain Caddy that makes the same two hops", c)
	flags := cmd.Flags()
	flags.BoolVar(&c.strict, "check", false, "exit with 1 if a ratio is over its goal")
	flags.StringSliceVar(&c.cases, "cases", caseNames(), "`names` of what to compare")
	flags.Var(&c.bestShot, "best-shot", "length of the best shot in Oz's answer, in base64")

	flags.IntVar(&c.clients, "clients", 4, "CPU: concurrent clients")
	flags.IntVar(&c.rounds, "rounds", 21, "CPU: pairs of measurements")
	flags.IntVar(&c.capsules, "capsules", 150, "CPU: capsules in one measurement; four times as many if they are small")

	flags.Var(&c.memorySize, "memory-size", "memory: size of a capsule")
	flags.IntVar(&c.memoryClients, "memory-clients", 64, "memory: concurrent clients")
	flags.IntVar(&c.memoryRounds, "memory-rounds", 9, "memory: pairs of measurements, each with a fresh gateway")
	flags.IntVar(&c.memoryCapsules, "memory-capsules", 128, "memory: capsules in one measurement")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("cases", cobra.FixedCompletions(caseNames(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (c *comparison) check() error {
	if min(c.clients, c.rounds, c.capsules, c.memoryClients, c.memoryRounds, c.memoryCapsules, int(c.memorySize)) < 1 {
		return errors.New("sizes, clients, rounds and capsules must be at least 1")
	}
	for _, name := range c.cases {
		if !slices.Contains(caseNames(), name) {
			return fmt.Errorf("--cases: unknown case %q (want %s)", name, strings.Join(caseNames(), ", "))
		}
	}
	return nil
}

func (c *comparison) measure(ctx context.Context, stdout io.Writer) error {
	var findings []finding
	for _, cc := range cpuCases {
		if !slices.Contains(c.cases, cc.name) {
			continue
		}
		f, err := c.cpu(ctx, cc)
		if err != nil {
			return fmt.Errorf("%s: %w", cc.name, err)
		}
		findings = append(findings, f)
	}
	if slices.Contains(c.cases, memoryCase) {
		f, err := c.memory(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", memoryCase, err)
		}
		findings = append(findings, f)
	}
	c.print(stdout, findings)
	return c.judge(findings)
}

// cpu measures both gateways in turn, over and over. They stay up, so that only the first capsules, which do not count, meet a
// gateway whose pools are empty and whose heap has not found its size.
func (c *comparison) cpu(ctx context.Context, cc cpuCase) (f finding, err error) {
	capsules := c.capsules * cc.weight
	var done atomic.Int64
	c.line.Begin(progress.Phase{Name: cc.name, Amount: progress.Of(&done, c.rounds, fmt.Sprintf("pairs of %d capsules", capsules))})
	f = finding{
		title: fmt.Sprintf("CPU of the gateway per capsule of %s, %s, %d clients, %d pairs of %d capsules%s",
			cc.size.String(), cc.protocol, c.clients, c.rounds, capsules, cc.ours.note),
		plain: plainReceiving, unit: "ms", goal: cc.goal,
	}
	w := workload{int64(cc.size), int64(c.bestShot), c.clients, cc.protocol}
	var rigs []*rig
	defer func() {
		for _, r := range rigs {
			err = errors.Join(err, r.close())
		}
	}()
	for _, peer := range []peer{cc.ours, plainReceiving} {
		r, err := newRig(ctx, c.binary, c.dir, peer, w)
		if err != nil {
			return f, err
		}
		rigs = append(rigs, r)
		if err := r.run(ctx, max(capsules/2, c.clients)); err != nil {
			return f, err
		}
	}
	for range c.rounds {
		ours, err := millisecondsPerCapsule(ctx, rigs[0], capsules)
		if err != nil {
			return f, err
		}
		plain, err := millisecondsPerCapsule(ctx, rigs[1], capsules)
		if err != nil {
			return f, err
		}
		f.pairs.add(ours, plain)
		done.Add(1)
	}
	return f, nil
}

func millisecondsPerCapsule(ctx context.Context, r *rig, capsules int) (float64, error) {
	before, err := cpuTime(r.gateway.pid())
	if err != nil {
		return 0, err
	}
	if err := r.run(ctx, capsules); err != nil {
		return 0, err
	}
	after, err := cpuTime(r.gateway.pid())
	if err != nil {
		return 0, err
	}
	if after == before {
		return 0, fmt.Errorf("%s used less CPU time for %d capsules than the kernel can tell: too few to measure", r.peer.name, capsules)
	}
	return float64(after-before) / float64(time.Millisecond) / float64(capsules), nil
}

// memory measures both gateways in turn, over and over. A peak covers the life of a process: each measurement gets a fresh gateway.
func (c *comparison) memory(ctx context.Context) (finding, error) {
	var done atomic.Int64
	c.line.Begin(progress.Phase{Name: memoryCase, Amount: progress.Of(&done, c.memoryRounds, fmt.Sprintf("pairs of %d capsules", c.memoryCapsules))})
	f := finding{
		title: fmt.Sprintf("peak resident memory of the gateway, %d clients, capsules of %s, %d pairs of %d capsules",
			c.memoryClients, c.memorySize.String(), c.memoryRounds, c.memoryCapsules),
		plain: plainUnreading, unit: "MiB", goal: memoryGoal,
	}
	for range c.memoryRounds {
		ours, err := c.peakMiB(ctx, ozInstant)
		if err != nil {
			return f, err
		}
		plain, err := c.peakMiB(ctx, plainUnreading)
		if err != nil {
			return f, err
		}
		f.pairs.add(ours, plain)
		done.Add(1)
	}
	return f, nil
}

func (c *comparison) peakMiB(ctx context.Context, p peer) (mib float64, err error) {
	r, err := newRig(ctx, c.binary, c.dir, p, workload{int64(c.memorySize), int64(c.bestShot), c.memoryClients, h1})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.run(ctx, c.memoryCapsules); err != nil {
		return 0, err
	}
	peak, err := peakMemory(r.gateway.pid())
	return float64(peak) / (1 << 20), err
}

func (c *comparison) print(out io.Writer, findings []finding) {
	fmt.Fprintf(out, "%s; best shot of %d characters\n", conditions(c.binary), int64(c.bestShot))
	for _, f := range findings {
		fmt.Fprintln(out)
		f.print(out)
	}
}

// judge returns what --check asks for.
func (c *comparison) judge(findings []finding) error {
	if !c.strict {
		return nil
	}
	var errs []error
	for _, f := range findings {
		if !f.withinGoal() {
			errs = append(errs, fmt.Errorf("%s: the ratio is %.2f to %.2f (want at most %.2f)", f.title, f.ratio().low, f.ratio().high, f.goal))
		}
	}
	return errors.Join(errs...)
}
