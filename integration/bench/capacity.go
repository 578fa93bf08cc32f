package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// Goals for capacity.
const (
	throughputGoal = 0.98 // of slots / analysis time, at least
	slowLink       = 2    // Mbit/s
	memoryOption   = "memory 256MiB"
	allowance      = 50 * time.Millisecond // a timer on a busy machine is late by that much
)

// crowd is what the flags of capacity ask for.
type crowd struct {
	workshop
	check bool

	slots    []int
	analysis time.Duration
	wait     time.Duration
	overload int
	size     cli.Size
	load     time.Duration
}

func readCrowd(args []string, stderr io.Writer) (c crowd, help bool, err error) {
	c = crowd{slots: []int{1, 4, 12}, size: 512 << 10, workshop: workshop{progress: stderr}}
	flags := flag.NewFlagSet("bench capacity", flag.ContinueOnError)
	c.binaryFlag(flags)
	flags.BoolVar(&c.check, "check", false, "exit with 1 if the throughput is under its goal, or a Retry-After was too early")
	flags.DurationVar(&c.analysis, "analysis", time.Second, "time of an analysis")
	flags.DurationVar(&c.wait, "wait", 6*time.Second, "the longest that a capsule may wait")
	flags.IntVar(&c.overload, "overload", 10, "how many times as many capsules come as the slots can serve")
	flags.Var(&c.size, "size", "size of a capsule")
	flags.DurationVar(&c.load, "for", 20*time.Second, "how long they come, in each of the trials")
	if help, err = cli.Parse(flags, args, stderr); help || err != nil {
		return c, help, err
	}
	if c.analysis <= 0 || c.wait <= 0 || c.overload < 1 || c.size < 1 || c.load < 2*c.analysis {
		return c, false, errors.New("all are more than zero, and -for is twice -analysis or more")
	}
	return c, false, nil
}

// trial is one gateway under load.
type trial struct {
	slots  int
	slow   bool   // every second client is on a slow link
	memory string // an option of capacity; empty: none
}

func (c *crowd) trials() (all []trial) {
	for _, n := range c.slots {
		all = append(all, trial{slots: n})
	}
	most := slices.Max(c.slots)
	return append(all, trial{most, true, ""}, trial{most, true, memoryOption})
}

func capacity(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, help, err := readCrowd(args, stderr)
	if help || err != nil {
		return err
	}
	defer c.close()
	if err := c.open(ctx); err != nil {
		return err
	}
	var throngs []throng
	for _, t := range c.trials() {
		fmt.Fprintf(c.progress, "%d slots, %s, %s …\n", t.slots, t.links(), t.mode())
		th, err := c.try(ctx, t)
		if err != nil {
			return fmt.Errorf("%d slots, %s, %s: %w", t.slots, t.links(), t.mode(), err)
		}
		throngs = append(throngs, th)
	}
	fmt.Fprintf(stdout, "%s\n\n", conditions(c.binary))
	c.print(stdout, throngs)
	return c.judge(throngs)
}

func (t trial) links() string {
	if t.slow {
		return fmt.Sprintf("half of them %d Mbit/s", slowLink)
	}
	return "fast links"
}

func (t trial) mode() string {
	if t.memory == "" {
		return "streaming"
	}
	return t.memory
}

func (c *crowd) peer(t trial) peer {
	return peer{name: ozInstant.name, decides: true, caddyfile: fmt.Sprintf(`{
	admin {$ADMIN}
}

{$SITE} {
	oz_instant `+verifyPath+` http://{$OZ} {
		capacity {
			slots %d
			wait %s
			%s
		}
	}
	reverse_proxy {$APP}
}
`, t.slots, c.wait, t.memory)}
}

// try sends capsules at an even pace, however many of them are refused, and returns when all are answered.
func (c *crowd) try(ctx context.Context, t trial) (th throng, err error) {
	stage, g, err := setUp(ctx, c.binary, c.dir, c.peer(t), sandbox.Options{Parallel: t.slots, AnalysisTime: c.analysis})
	if err != nil {
		return th, err
	}
	defer func() { err = errors.Join(err, g.stop(), stage.close()) }()

	o := order{url: "http://" + g.addr + verifyPath, expect: true, capsule: stage.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: int64(c.size)})}
	th = throng{trial: t, analysis: c.analysis, wait: c.wait}
	if th.attempts, err = c.send(ctx, o, t); err != nil {
		return th, err
	}
	if err := th.sort(); err != nil {
		return th, err
	}
	// Oz got what was accepted and not one more: nothing of a refused capsule.
	if err := stage.settle(ctx, len(th.served), int64(len(o.capsule))); err != nil {
		return th, err
	}
	return th, th.readWaits(g)
}

func (c *crowd) send(ctx context.Context, o order, t trial) ([]attempt, error) {
	interval := c.analysis / time.Duration(t.slots*c.overload)
	attempts := make([]attempt, c.load/interval)
	client := newClient()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	for i := range attempts {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ticker.C:
		}
		mine := o
		if t.slow && i%2 == 1 {
			mine.rate = slowLink * bytesPerMbit
		}
		all.Go(func() { attempts[i] = mine.post(ctx, client) })
	}
	all.Wait()
	return attempts, nil
}

// throng is what became of the clients of a trial.
type throng struct {
	trial
	analysis, wait time.Duration

	attempts []attempt
	served   []attempt // in the order of their answers
	refused  []attempt
	longest  time.Duration // that a capsule waited
}

// sort tells the served from the refused. Any other answer, and a refusal that does not say when to come back or came after the
// client had begun to send, is a broken promise: there are no figures then.
func (th *throng) sort() error {
	for _, a := range th.attempts {
		switch {
		case a.err != nil:
			return fmt.Errorf("a client got no answer: %w", a.err)
		case a.status == http.StatusOK:
			th.served = append(th.served, a)
		case a.status != http.StatusServiceUnavailable || !a.problem:
			return fmt.Errorf("a capsule was answered with %d: %s", a.status, a.text)
		case a.retryAfter == 0:
			return fmt.Errorf("a refusal without Retry-After: %s", a.text)
		case a.sent > 0:
			return fmt.Errorf("a refusal after %d bytes of the capsule: %s", a.sent, a.text)
		default:
			th.refused = append(th.refused, a)
		}
	}
	slices.SortFunc(th.served, func(a, b attempt) int { return a.ended.Compare(b.ended) })
	if len(th.served) < 2*th.slots {
		return fmt.Errorf("only %d capsules were served: too few to measure", len(th.served))
	}
	return nil
}

// readWaits is about all capsules, also those that waited in vain.
func (th *throng) readWaits(g *gateway) error {
	lines, err := g.logged(judgedMessage)
	if err != nil {
		return err
	}
	if len(lines) != len(th.attempts) {
		return fmt.Errorf("the gateway logged %d capsules, %d were sent", len(lines), len(th.attempts))
	}
	for _, l := range lines {
		th.longest = max(th.longest, time.Duration(l.Queue*float64(time.Second)))
	}
	if th.longest > th.wait+allowance {
		return fmt.Errorf("a capsule waited for %v, longer than the configured %v", th.longest, th.wait)
	}
	return nil
}

// throughput is what was achieved of slots / analysis time, between the first time that all slots had given an answer and the last.
// The load is over before the last answers: they come while the queue empties, and do not count.
func (th *throng) throughput() float64 {
	over := th.lastBegun()
	n := len(th.served)
	for n > 0 && th.served[n-1].ended.After(over) {
		n--
	}
	n -= n % th.slots // whole rounds, should the slots be in step
	if n < 2*th.slots {
		return 0
	}
	took := th.served[n-1].ended.Sub(th.served[th.slots-1].ended)
	return float64(n-th.slots) * float64(th.analysis) / float64(took) / float64(th.slots)
}

func (th *throng) lastBegun() (last time.Time) {
	for _, a := range th.attempts {
		if a.begun.After(last) {
			last = a.begun
		}
	}
	return last
}

// toldRight is the share of the refused who would have found a free slot after Retry-After, had nobody else come in the meantime:
// of the capsules that were in or in front of a slot when they were refused, fewer than there are slots are left by then.
func (th *throng) toldRight() float64 {
	if len(th.refused) == 0 {
		return 1
	}
	right := 0
	for _, r := range th.refused {
		if !th.slotFor(r.ended).After(r.ended.Add(r.retryAfter)) {
			right++
		}
	}
	return float64(right) / float64(len(th.refused))
}

// slotFor is when a slot becomes free for who is behind all that are under way at that time.
func (th *throng) slotFor(t time.Time) time.Time {
	ahead := 0
	var ends []time.Time // of those under way, in order
	for _, s := range th.served {
		if s.begun.Before(t) && s.ended.After(t) {
			ends = append(ends, s.ended)
			ahead++
		}
	}
	if ahead < th.slots {
		return t
	}
	return ends[ahead-th.slots]
}

func (c *crowd) print(out io.Writer, throngs []throng) {
	fmt.Fprintf(out, "analyses of %v, capsules of %s, %d times as many as the slots can serve, for %v; wait %v\n",
		c.analysis, c.size.String(), c.overload, c.load, c.wait)
	fmt.Fprintf(out, "  %5s  %-21s %-14s %7s %8s  %-10s  %-12s  %s\n", "slots", "links", "", "served", "refused", "throughput", "longest wait", "right Retry-After")
	for _, th := range throngs {
		fmt.Fprintf(out, "  %5d  %-21s %-14s %7d %8d  %8.1f %%  %10.2f s  %14.1f %%\n", th.slots, th.links(), th.mode(),
			len(th.served), len(th.refused), 100*th.throughput(), th.longest.Seconds(), 100*th.toldRight())
	}
	fmt.Fprintf(out, "\nthroughput is of slots / analysis time; every refusal came with a Retry-After and before the first byte of the capsule\n")
	fmt.Fprintf(out, "at least %.0f %% with fast links, and Retry-After right for all: %s\n", 100*throughputGoal, yesNo(c.shortfall(throngs) == nil))
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// judge is what -check asks for.
func (c *crowd) judge(throngs []throng) error {
	if !c.check {
		return nil
	}
	return c.shortfall(throngs)
}

// shortfall is what misses a goal. With slow links there is none: they are there to be compared.
func (c *crowd) shortfall(throngs []throng) error {
	var errs []error
	for _, th := range throngs {
		if th.slow {
			continue
		}
		if got := th.throughput(); got < throughputGoal {
			errs = append(errs, fmt.Errorf("%d slots: the throughput is %.1f %%, under %.0f %%", th.slots, 100*got, 100*throughputGoal))
		}
		if got := th.toldRight(); got < 1 {
			errs = append(errs, fmt.Errorf("%d slots: %.1f %% of the refused were told to come back too early", th.slots, 100*(1-got)))
		}
	}
	return errors.Join(errs...)
}
