package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/highwayhash"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"github.com/zeebo/blake3"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/ports"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const (
	replayTimeout = time.Second            // for Oz
	replayRetry   = 200 * time.Millisecond // how often an honest client tries again

	// claimLife is how long the claim of a gateway that dies keeps its capsule from counting: twice the timeout, and 5 seconds.
	claimLife = 2*replayTimeout + 5*time.Second

	// blockedSlack is how long a client may find out later: it tries again now and then, on a busy machine.
	blockedSlack = replayRetry + replayTimeout
)

// replayRun is one run of replay.
type replayRun struct {
	workspace
	capsules int
	clients  int
	size     sandbox.Size
	redis    string
	analysis time.Duration
	noKill   bool

	done atomic.Int64 // capsules of the part in progress
}

func replayCommand() *cobra.Command {
	c := &replayRun{size: 64 << 10}
	cmd := c.command("replay", "Send each capsule to two gateways with one Redis at the same instant", c)
	cmd.Long = cmd.Short + `.

Each capsule must count once: one of the two is accepted, the other refused with 409. Every second pair is streamed, the others are
received whole first. Then the same with kill -9 of one gateway in the middle: nothing may count twice, and a client whose capsule
did not count and who sends it again must be served when the dead gateway's claim has ended. A capsule that the dead gateway had
decided stays used, also if its app never heard of it: that is counted apart, and the claim is looked at. Exits with 1 if any of it does not hold.

Needs redis-server.`
	flags := cmd.Flags()
	flags.IntVarP(&c.capsules, "capsules", "n", 1000, "`number` of capsules in each of the two parts")
	flags.IntVar(&c.clients, "clients", 8, "`number` of pairs at once")
	flags.Var(&c.size, "size", "size of a capsule")
	flags.StringVar(&c.redis, "redis", "redis-server", "the `program`")
	flags.DurationVar(&c.analysis, "analysis", 20*time.Millisecond, "duration of an analysis")
	flags.BoolVar(&c.noKill, "no-kill", false, "leave out the second part")
	return cmd
}

func (c *replayRun) check() error {
	if c.capsules < 2 || c.clients < 1 || c.size < 1 || c.analysis <= 0 || c.analysis >= replayTimeout {
		return fmt.Errorf("numbers, durations and sizes must be more than zero, and --analysis less than %v", replayTimeout)
	}
	_, err := exec.LookPath(c.redis)
	return err
}

func (c *replayRun) measure(ctx context.Context, stdout io.Writer) error {
	fmt.Fprintf(stdout, "%s\n%d capsules of %s, each sent to two gateways with one Redis at the same instant, %d pairs at once\n\n",
		conditions(c.binary), c.capsules, c.size.String(), c.clients)
	parts := []string{"both live"}
	if !c.noKill {
		parts = append(parts, "kill -9 of one in the middle")
	}
	var errs []error
	for _, part := range parts {
		errs = append(errs, steadily(ctx, stdout, watchMachine, func() error {
			c.done.Store(0)
			c.line.Begin(progress.Phase{Name: part, Amount: progress.Of(&c.done, c.capsules, "capsules")})
			r, err := c.part(ctx, part != parts[0])
			if err != nil {
				return fmt.Errorf("%s: %w", part, err)
			}
			r.print(stdout, part)
			return r.judge(c.capsules, part != parts[0])
		}))
	}
	err := errors.Join(errs...)
	fmt.Fprintf(stdout, "\nEach capsule counted once, and no honest client was blocked for longer than a claim lives (%v; it tries every %v): %s\n", claimLife, replayRetry, yesNo(err == nil))
	return err
}

// replayPart is a part of the run: two gateways, one Redis, Oz, and an app that notes what it accepts.
type replayPart struct {
	app      *replayApp
	backend  *backend
	gateways [2]*gateway
	redis    *process
	store    *redis.Client
	client   *http.Client
	killed   atomic.Int64 // when, in nanoseconds since 1970; 0: not yet

	mu sync.Mutex
	replayCounts
}

// replayCounts are what became of capsules and of their second senders.
type replayCounts struct {
	accepted int           // capsules that the app has let in
	twice    int           // of those, more than once
	refused  int           // answers 409 of the pairs
	lost     int           // answers that never came, since their gateway was dead
	other    []string      // anything else
	blocked  int           // capsules that did not count at first, since the dead gateway's claim was there
	longest  time.Duration // that one of them had to wait after the kill
	decided  int           // capsules whose gateway died between its decision and its app
}

// replayApp counts how often it lets somebody in with a capsule.
type replayApp struct {
	mu  sync.Mutex
	ins map[string]int
}

func (a *replayApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Oz-Decision") != sandbox.Success {
		http.Error(w, "no entry", http.StatusForbidden)
		return
	}
	a.mu.Lock()
	a.ins[r.Header.Get("X-Request-Id")]++
	a.mu.Unlock()
	io.WriteString(w, "welcome\n")
}

func (a *replayApp) count(id string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ins[id]
}

func (c *replayRun) part(ctx context.Context, kill bool) (counts replayCounts, err error) {
	p := &replayPart{app: &replayApp{ins: make(map[string]int)}, client: newClient()}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := c.start(ctx, p); err != nil {
		return counts, err
	}
	numbers := make(chan int)
	var all sync.WaitGroup
	for range c.clients {
		all.Go(func() {
			for i := range numbers {
				p.pair(ctx, i, p.backend.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: int64(c.size)}))
				c.done.Add(1)
			}
		})
	}
	for i := range c.capsules {
		if kill && i == c.capsules/2 {
			time.AfterFunc(c.analysis/2, p.kill) // while pairs are in progress, in whatever state they are
		}
		select {
		case numbers <- i:
		case <-ctx.Done():
			close(numbers)
			all.Wait()
			return counts, context.Cause(ctx)
		}
	}
	close(numbers)
	all.Wait()
	for _, n := range p.app.ins {
		p.accepted++
		if n > 1 {
			p.twice++
		}
	}
	return p.replayCounts, nil
}

// start starts everything. Nothing of the machine's Redis is used.
func (c *replayRun) start(ctx context.Context, p *replayPart) error {
	addr, err := ports.FreeAddress()
	if err != nil {
		return err
	}
	if p.redis, err = startRedis(ctx, c.redis, c.dir, addr); err != nil {
		return err
	}
	p.store = redis.NewClient(&redis.Options{Addr: addr})
	oz, err := sandbox.New(sandbox.Options{ReuseTokens: true, TokenLife: time.Hour, KeepReceipts: 1, AnalysisTime: c.analysis})
	if err != nil {
		return err
	}
	p.backend = &backend{oz: oz}
	if p.backend.ozAddr, err = p.backend.serve(oz, oz.Listener); err != nil {
		return err
	}
	if p.backend.appAddr, err = p.backend.serve(p.app, nil); err != nil {
		return err
	}
	for i := range p.gateways {
		if p.gateways[i], err = startGateway(ctx, c.binary, c.dir, replayPeer(addr), p.backend.ozAddr, p.backend.appAddr); err != nil {
			return err
		}
	}
	return nil
}

// replayPeer has a path for capsules that are streamed and one for capsules that are received first.
func replayPeer(redis string) peer {
	const block = `
	oz_instant /%s http://{$OZ} {
		timeout %s
		replay_guard redis redis://%s
		%s
	}`
	return peer{name: ozInstant.name, directives: fmt.Sprintf(block, streamedPath, replayTimeout, redis, "") +
		fmt.Sprintf(block, bufferedPath, replayTimeout, redis, "header_up X-Way buffered\ncapacity {\nmemory 256MiB\n}") +
		"\n\treverse_proxy {$APP}"}
}

const (
	streamedPath = "streamed"
	bufferedPath = "buffered"
)

// startRedis starts a Redis that keeps nothing on a disk.
func startRedis(ctx context.Context, program, dir, addr string) (*process, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	p, err := newProcess(dir, "redis", program, "--bind", host, "--port", port, "--save", "")
	if err != nil {
		return nil, err
	}
	if err := p.start(ctx, addr); err != nil {
		return nil, fmt.Errorf("starting Redis: %w", err)
	}
	return p, nil
}

// kill ends the first gateway as a crash would.
func (p *replayPart) kill() {
	p.killed.Store(time.Now().UnixNano())
	p.gateways[0].kill()
}

// pair sends a capsule to both gateways at once. If it did not count, its client sends it again, to the gateway that lives.
func (p *replayPart) pair(ctx context.Context, i int, capsule []byte) {
	path := streamedPath
	if i%2 == 1 {
		path = bufferedPath
	}
	id := "capsule-" + strconv.Itoa(i)
	var answers [2]response
	begin := make(chan struct{})
	var both sync.WaitGroup
	for j, g := range p.gateways {
		both.Go(func() {
			<-begin
			answers[j] = upload{url: g.url + "/" + path, id: id, capsule: capsule}.post(ctx, p.client)
		})
	}
	close(begin)
	both.Wait()
	ins := p.note(answers, id)
	if ins > 0 || p.killed.Load() == 0 || ctx.Err() != nil {
		return
	}
	p.again(ctx, upload{url: p.gateways[1].url + "/" + path, id: id, capsule: capsule})
}

// note counts the answers of a pair. It returns how often the app has let it in.
func (p *replayPart) note(answers [2]response, id string) int {
	ins := p.app.count(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	for j, a := range answers {
		switch {
		case a.status == http.StatusOK && ins > 0:
		case a.status == http.StatusConflict && a.problem:
			p.refused++
		case j == 0 && p.killed.Load() != 0 && a.status != http.StatusOK && !a.problem: // no answer, or half of one
			p.lost++
		default:
			p.other = append(p.other, fmt.Sprintf("%d %s %v", a.status, a.text, a.err))
		}
	}
	return ins
}

// again sends a capsule until it counts, or the dead gateway's claim must have ended.
func (p *replayPart) again(ctx context.Context, u upload) {
	killed := time.Unix(0, p.killed.Load())
	for {
		a := u.post(ctx, p.client)
		waited := a.ended.Sub(killed)
		switch {
		case a.status == http.StatusOK:
			p.mu.Lock()
			p.blocked++
			p.longest = max(p.longest, waited)
			p.mu.Unlock()
			return
		case a.status != http.StatusConflict:
			p.mu.Lock()
			p.other = append(p.other, fmt.Sprintf("again: %d %s %v", a.status, a.text, a.err))
			p.mu.Unlock()
			return
		case waited > claimLife+blockedSlack:
			p.noteDecided(ctx, u.capsule)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(replayRetry):
		}
	}
}

// noteDecided counts a capsule that is still refused. That is right if its gateway had decided it: the claim lasts then.
func (p *replayPart) noteDecided(ctx context.Context, capsule []byte) {
	digest := make([]byte, 32)
	blake3.DeriveKey("oz_instant 2026-11-25 replay guard, bytes of a capsule", nil, digest)
	sum := highwayhash.Sum(capsule, digest)
	blake3.DeriveKey("oz_instant 2026-11-25 replay guard, capsule", sum[:], digest)
	left, err := p.store.PTTL(ctx, "oz_instant:replay:"+base64.RawURLEncoding.EncodeToString(digest)).Result()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && left > claimLife {
		p.decided++
		return
	}
	p.other = append(p.other, fmt.Sprintf("refused with a claim that lives for %v more: %v", left, err))
}

func (p *replayPart) close() error {
	var errs []error
	for i, g := range p.gateways {
		switch {
		case g == nil:
		case i == 0 && p.killed.Load() != 0:
			<-g.ended
		default:
			errs = append(errs, g.stop())
		}
	}
	if p.backend != nil {
		errs = append(errs, p.backend.close())
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	if p.redis != nil {
		p.redis.kill()
	}
	return errors.Join(errs...)
}

func (r replayCounts) print(out io.Writer, part string) {
	fmt.Fprintf(out, "%s\n  accepted %d, refused %d, twice %d, anything else %d\n", part, r.accepted, r.refused, r.twice, len(r.other))
	if r.lost > 0 {
		fmt.Fprintf(out, "  answers lost with the gateway %d; blocked until its claims ended %d, the longest for %.1f s; decided, and its app never heard %d\n",
			r.lost, r.blocked, r.longest.Seconds(), r.decided)
	}
	for _, text := range r.other[:min(3, len(r.other))] {
		fmt.Fprintf(out, "  else: %s\n", text)
	}
}

// judge returns what does not hold. A capsule whose gateway died between its decision and its app counts as used, by design: what Oz
// has decided is not decided again.
func (r replayCounts) judge(capsules int, killed bool) error {
	var errs []error
	if r.twice > 0 {
		errs = append(errs, fmt.Errorf("%d capsules counted twice", r.twice))
	}
	switch {
	case len(r.other) > 0: // the store was late, and what it didn't answer is in none of the other counts
		errs = append(errs, late{fmt.Errorf("%d answers were neither accepted nor refused", len(r.other))})
	case r.accepted+r.decided != capsules || !killed && r.decided > 0:
		errs = append(errs, fmt.Errorf("%d of %d capsules were accepted", r.accepted, capsules))
	case !killed && r.refused != capsules:
		errs = append(errs, fmt.Errorf("%d of %d were refused", r.refused, capsules))
	}
	if r.longest > claimLife+blockedSlack {
		errs = append(errs, late{fmt.Errorf("a client was blocked for %v (want at most %v)", r.longest, claimLife)})
	}
	return errors.Join(errs...)
}
