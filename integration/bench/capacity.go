package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// Goals for capacity.
const (
	busyGoal     = 0.98 // of Oz's slots, at least
	slowLink     = 2    // Mbit/s
	memoryOption = "memory 256MiB"
	timerSlack   = 50 * time.Millisecond // a timer on a busy machine is late by that much
)

// capacityRun is one run of capacity.
type capacityRun struct {
	workspace
	strict bool

	slots      []int
	analysis   time.Duration
	wait       time.Duration
	overload   int
	size       sandbox.Size
	load       time.Duration
	attackers  []int
	kinds      []string
	onlyAttack bool

	answered atomic.Int64 // capsules of the trial in progress
}

func capacityCommand() *cobra.Command {
	c := &capacityRun{size: 512 << 10}
	cmd := c.command("capacity", "Send more capsules than Oz can take, also beside hostile uploads", c)
	flags := cmd.Flags()
	flags.BoolVar(&c.strict, "check", false, "exit with 1 if a goal is missed")
	flags.IntSliceVar(&c.slots, "slots", []int{1, 4, 12}, "`numbers` of slots to try")
	flags.DurationVar(&c.analysis, "analysis", time.Second, "duration of an analysis")
	flags.DurationVar(&c.wait, "wait", 6*time.Second, "the longest that a capsule may wait")
	flags.IntVar(&c.overload, "overload", 10, "how many times as many capsules come as the slots can serve")
	flags.Var(&c.size, "size", "size of a capsule")
	flags.DurationVar(&c.load, "for", 20*time.Second, "how long they come, in each of the trials")
	flags.IntSliceVar(&c.attackers, "attackers", []int{15, 100, 1000}, "`numbers` of hostile uploads beside them, at the highest number of slots; empty for none")
	flags.StringSliceVar(&c.kinds, "kinds", hostileKinds(), "`kinds` of hostile uploads")
	flags.BoolVar(&c.onlyAttack, "only-attackers", false, "leave out the trials without hostile uploads")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("kinds", cobra.FixedCompletions(hostileKinds(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (c *capacityRun) check() error {
	if c.analysis <= 0 || c.wait <= 0 || c.overload < 1 || c.size < 1 || len(c.slots) == 0 || slices.Min(append(c.slots, c.attackers...)) < 1 {
		return errors.New("numbers, durations and sizes must be more than zero")
	}
	if c.load < 3*c.analysis {
		return fmt.Errorf("--for: %v is too short (want three times --analysis or more)", c.load)
	}
	return checkKinds(c.kinds)
}

// trial is one gateway under load.
type trial struct {
	slots     int
	slow      bool   // every second client is on a slow link
	memory    string // an option of capacity; empty: none
	attackers int
	kind      hostileKind
}

func (c *capacityRun) trials() (all []trial) {
	most := slices.Max(c.slots)
	if !c.onlyAttack {
		for _, n := range c.slots {
			all = append(all, trial{slots: n})
		}
		all = append(all, trial{slots: most, slow: true}, trial{slots: most, slow: true, memory: memoryOption})
	}
	for _, kind := range c.kinds {
		for _, n := range c.attackers {
			all = append(all, trial{slots: most, memory: memoryOption, attackers: n, kind: hostileKind(kind)})
		}
	}
	return all
}

func (c *capacityRun) measure(ctx context.Context, stdout io.Writer) error {
	var results []*result
	trials := c.trials()
	for i, t := range trials {
		c.answered.Store(0)
		c.line.Begin(progress.Phase{
			Name: fmt.Sprintf("%d of %d: %s", i+1, len(trials), t), Amount: progress.Of(&c.answered, c.capsules(t), "capsules answered"),
		})
		r, err := c.try(ctx, t)
		if err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		results = append(results, r)
	}
	fmt.Fprintf(stdout, "%s\n\n", conditions(c.binary))
	c.print(stdout, results)
	if !c.strict {
		return nil
	}
	return shortfall(results)
}

func (t trial) String() string { return fmt.Sprintf("%d slots, %s, %s", t.slots, t.load(), t.mode()) }

// load describes what comes.
func (t trial) load() string {
	switch {
	case t.attackers > 0:
		return fmt.Sprintf("beside %d %s uploads", t.attackers, t.kind)
	case t.slow:
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

func (c *capacityRun) peer(t trial) peer {
	return peer{name: ozInstant.name, decides: true, directives: fmt.Sprintf(`
	oz_instant `+verifyPath+` http://{$OZ} {
		capacity {
			slots %d
			wait %s
			%s
		}
	}
	reverse_proxy {$APP}`, t.slots, c.wait, t.memory)}
}

// try sends capsules at an even pace, however many of them are refused, and returns when all are answered.
func (c *capacityRun) try(ctx context.Context, t trial) (r *result, err error) {
	backend, g, err := setUp(ctx, c.binary, c.dir, c.peer(t), sandbox.Options{Parallel: t.slots, AnalysisTime: c.analysis})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.stop(), backend.close()) }()

	u := upload{url: g.url + verifyPath, expect: true, capsule: backend.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: int64(c.size)})}
	attack, stop := context.WithCancel(ctx)
	wait := attackers{t.kind, g.addr, u.capsule}.start(attack, t.attackers)
	r = &result{trial: t, analysis: c.analysis, wait: c.wait}
	r.answers, err = c.send(ctx, u, t)
	stop()
	wait()
	if err != nil {
		return nil, err
	}
	if err := r.sort(); err != nil {
		return nil, err
	}
	// Oz got what was accepted and nothing else: no byte of a refused capsule, and no hostile upload.
	if err := backend.settle(ctx, len(r.served), int64(len(u.capsule))); err != nil {
		return nil, err
	}
	return r, r.readWaits(g)
}

// interval is the time between two capsules.
func (c *capacityRun) interval(t trial) time.Duration {
	return c.analysis / time.Duration(t.slots*c.overload)
}

func (c *capacityRun) capsules(t trial) int { return int(c.load / c.interval(t)) }

func (c *capacityRun) send(ctx context.Context, u upload, t trial) ([]response, error) {
	answers := make([]response, c.capsules(t))
	client := newClient()
	ticker := time.NewTicker(c.interval(t))
	defer ticker.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	for i := range answers {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-ticker.C:
		}
		mine := u
		if t.slow && i%2 == 1 {
			mine.rate = slowLink * bytesPerMbit
		}
		all.Go(func() {
			answers[i] = mine.post(ctx, client)
			c.answered.Add(1)
		})
	}
	all.Wait()
	return answers, nil
}

// result is what became of the clients of a trial. Hostile uploads aren't counted.
type result struct {
	trial
	analysis, wait time.Duration

	answers []response
	served  []response    // in the order of their answers
	refused []response    // before the upload, with a Retry-After
	late    []response    // refused in the same way after the first byte; only beside hostile uploads
	lost    []response    // any other answer, or none; only beside hostile uploads
	longest time.Duration // that a capsule waited
}

// sort distinguishes the served from the refused. Any other answer is a broken promise: also a refusal without a Retry-After, or one
// that came after the client had begun to send. There are no figures then, except beside hostile uploads: how many promises these
// break is one of the figures.
func (r *result) sort() error {
	for _, a := range r.answers {
		err := a.promise()
		switch {
		case err != nil && r.attackers == 0:
			return err
		case errors.Is(err, errLate):
			r.late = append(r.late, a)
		case err != nil:
			r.lost = append(r.lost, a)
		case a.status == http.StatusOK:
			r.served = append(r.served, a)
		default:
			r.refused = append(r.refused, a)
		}
	}
	slices.SortFunc(r.served, func(a, b response) int { return a.ended.Compare(b.ended) })
	if len(r.served) < 2*r.slots && r.attackers == 0 {
		return fmt.Errorf("only %d capsules were served: too few to measure", len(r.served))
	}
	return nil
}

// errLate says that a client was refused after it had begun to send.
var errLate = errors.New("a late refusal")

// promise returns what is wrong with an answer of a gateway that has too much to do.
func (a response) promise() error {
	switch {
	case a.err != nil:
		return fmt.Errorf("a client got no answer: %w", a.err)
	case a.status == http.StatusOK:
		return nil
	case a.status != http.StatusServiceUnavailable || !a.problem:
		return fmt.Errorf("a capsule was answered with %d: %s", a.status, a.text)
	case a.retryAfter == 0:
		return fmt.Errorf("a refusal without Retry-After: %s", a.text)
	case a.sent > 0:
		return fmt.Errorf("%w, after %d bytes of the capsule: %s", errLate, a.sent, a.text)
	}
	return nil
}

// readWaits reads how long capsules waited, also those that waited in vain.
func (r *result) readWaits(g *gateway) error {
	lines, err := g.logged(decidedMessage)
	if err != nil {
		return err
	}
	if len(lines) != len(r.answers) && r.attackers == 0 {
		return fmt.Errorf("the gateway logged %d capsules, %d were sent", len(lines), len(r.answers))
	}
	for _, l := range lines {
		r.longest = max(r.longest, time.Duration(l.Queue*float64(time.Second)))
	}
	if r.longest > r.wait+timerSlack && r.attackers == 0 {
		return fmt.Errorf("a capsule waited for %v, longer than the configured %v", r.longest, r.wait)
	}
	return nil
}

// busy returns the share of the slots' time that Oz spent on analyses, from one analysis after the load begins until it ends. Each
// capsule that was served occupied a slot for one analysis just before its answer.
func (r *result) busy() float64 {
	from, to := r.answers[0].begun.Add(r.analysis), r.lastBegun()
	if !to.After(from) {
		return 0
	}
	var busy time.Duration
	for _, a := range r.served {
		begun, ended := a.ended.Add(-r.analysis), a.ended
		if begun.Before(from) {
			begun = from
		}
		if ended.After(to) {
			ended = to
		}
		busy += max(0, ended.Sub(begun))
	}
	return float64(busy) / float64(to.Sub(from)) / float64(r.slots)
}

func (r *result) lastBegun() (last time.Time) {
	for _, a := range r.answers {
		if a.begun.After(last) {
			last = a.begun
		}
	}
	return last
}

// toldRight returns the share of the refused that would have found a free slot after Retry-After, if no other client had come in the
// meantime: of the capsules that held a slot or waited for one when they were refused, fewer than there are slots are left by then.
func (r *result) toldRight() float64 {
	if len(r.refused) == 0 {
		return 1
	}
	right := 0
	for _, a := range r.refused {
		if !r.slotFor(a.ended).After(a.ended.Add(a.retryAfter)) {
			right++
		}
	}
	return float64(right) / float64(len(r.refused))
}

// slotFor returns when a slot becomes free for a capsule that comes after all those that are in progress at that time.
func (r *result) slotFor(t time.Time) time.Time {
	ahead := 0
	var ends []time.Time // of those in progress, in order
	for _, s := range r.served {
		if s.begun.Before(t) && s.ended.After(t) {
			ends = append(ends, s.ended)
			ahead++
		}
	}
	if ahead < r.slots {
		return t
	}
	return ends[ahead-r.slots]
}

func (c *capacityRun) print(out io.Writer, results []*result) {
	fmt.Fprintf(out, "analyses of %v, capsules of %s, %d times as many as the slots can serve, for %v; wait %v\n",
		c.analysis, c.size.String(), c.overload, c.load, c.wait)
	fmt.Fprintf(out, "  %5s  %-28s %-14s %7s %8s %5s %5s  %8s  %12s  %s\n",
		"slots", "load", "", "served", "refused", "late", "lost", "Oz busy", "longest wait", "right Retry-After")
	for _, r := range results {
		fmt.Fprintf(out, "  %5d  %-28s %-14s %7d %8d %5d %5d  %6.1f %%  %10.2f s  %15.1f %%\n", r.slots, r.load(), r.mode(),
			len(r.served), len(r.refused), len(r.late), len(r.lost), 100*r.busy(), r.longest.Seconds(), 100*r.toldRight())
	}
	for _, r := range results {
		if len(r.lost) > 0 {
			fmt.Fprintf(out, "\nlost %s: %v\n", r.load(), r.lost[0].promise())
		}
	}
	fmt.Fprint(out, "\nThe counts are of honest capsules. Refused is a 503 with a Retry-After before the first byte, late the same after it, and lost\n"+
		"any other answer than a decision.\n")
	fmt.Fprintf(out, "Oz at least %.0f %% busy, nothing lost, and Retry-After right for all, but with slow links: %s\n",
		100*busyGoal, yesNo(shortfall(results) == nil))
}

// shortfall returns what misses a goal. Slow links have none: they are there to be compared. Beside hostile uploads Retry-After has
// none, as the gateway cannot know when a slot becomes free.
func shortfall(results []*result) error {
	var errs []error
	for _, r := range results {
		if r.slow {
			continue
		}
		if got := r.busy(); got < busyGoal {
			errs = append(errs, fmt.Errorf("%s: Oz is %.1f %% busy (want %.0f %%)", r, 100*got, 100*busyGoal))
		}
		if len(r.lost) > 0 {
			errs = append(errs, fmt.Errorf("%s: %d honest capsules got neither a decision nor a refusal: %w", r, len(r.lost), r.lost[0].promise()))
		}
		if got := r.toldRight(); got < 1 && r.attackers == 0 {
			errs = append(errs, fmt.Errorf("%s: %.1f %% of the refused were told to come back too early", r, 100*(1-got)))
		}
	}
	return errors.Join(errs...)
}
