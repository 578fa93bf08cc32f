package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// party is what the flags of phones ask for.
type party struct {
	workshop

	phones int
	size   cli.Size
	rate   cli.Size // of each one's link, a second
	memory cli.Size
}

func readParty(args []string, stderr io.Writer) (p party, help bool, err error) {
	p = party{size: 1 << 20, rate: 64 << 10, memory: 256 << 20, workshop: workshop{progress: stderr}}
	flags := flag.NewFlagSet("bench phones", flag.ContinueOnError)
	p.binaryFlag(flags)
	flags.IntVar(&p.phones, "phones", 1000, "how many post a capsule at the same time")
	flags.Var(&p.size, "size", "size of a capsule")
	flags.Var(&p.rate, "rate", "what each phone's link carries in a second")
	flags.Var(&p.memory, "memory", "the budget; at least the default max_capsule, 32MiB")
	if help, err = cli.Parse(flags, args, stderr); help || err != nil {
		return p, help, err
	}
	if min(int64(p.phones), int64(p.size), int64(p.rate), int64(p.memory)) < 1 {
		return p, false, errors.New("phones and sizes are at least 1")
	}
	return p, false, nil
}

func phones(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	p, help, err := readParty(args, stderr)
	if help || err != nil {
		return err
	}
	defer p.close()
	if err := p.open(ctx); err != nil {
		return err
	}
	streaming, err := p.measure(ctx, "")
	if err != nil {
		return fmt.Errorf("streaming: %w", err)
	}
	held, err := p.measure(ctx, "memory "+p.memory.String())
	if err != nil {
		return fmt.Errorf("with memory: %w", err)
	}
	fmt.Fprintf(stdout, "%s\n\n%d phones at once, each with a capsule of %s and a link of %s a second\n",
		conditions(p.binary), p.phones, p.size.String(), p.rate.String())
	fmt.Fprintf(stdout, "  %-14s %21s %21s %8s\n", "", "peak resident memory", "held in capsules", "took")
	for _, f := range []footprint{streaming, held} {
		fmt.Fprintf(stdout, "  %-14s %17.1f MiB %17.1f MiB %6.1f s\n", f.mode, mib(f.resident), mib(f.held), f.took.Seconds())
	}
	fmt.Fprintf(stdout, "\nevery phone was served; the budget held: at most %.1f MiB of %s were taken\n", mib(held.held), p.memory.String())
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// footprint is what a party took of the gateway.
type footprint struct {
	mode     string
	resident int64 // peak
	held     int64 // peak of what it counts as memory of capsules
	took     time.Duration
}

func (p *party) measure(ctx context.Context, memory string) (f footprint, err error) {
	f.mode = memory
	option := ""
	if memory == "" {
		f.mode = "streaming"
	} else {
		option = "capacity {\n\t\t\t" + memory + "\n\t\t\twait 1h\n\t\t}"
	}
	fmt.Fprintf(p.progress, "%d phones, %s …\n", p.phones, f.mode)
	stage, g, err := setUp(ctx, p.binary, p.dir, phonesPeer(option), sandbox.Options{})
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, g.stop(), stage.close()) }()

	capsule := stage.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: int64(p.size)})
	watch := p.watch(ctx, g)
	start := time.Now()
	err = p.post(ctx, order{url: "http://" + g.addr + verifyPath, capsule: capsule, rate: int64(p.rate)})
	f.took = time.Since(start)
	var watchErr error
	f.held, watchErr = watch()
	if err := errors.Join(err, watchErr); err != nil {
		return f, err
	}
	if err := stage.settle(ctx, p.phones, int64(len(capsule))); err != nil {
		return f, err
	}
	if memory != "" && (f.held > int64(p.memory) || f.held == 0) {
		return f, fmt.Errorf("%d bytes were held, the budget is %d", f.held, int64(p.memory))
	}
	f.resident, err = peakMemory(g.pid())
	return f, err
}

func phonesPeer(option string) peer {
	return peer{name: ozInstant.name, decides: true, caddyfile: `{
	admin {$ADMIN}
}

{$SITE} {
	oz_instant ` + verifyPath + ` http://{$OZ} {
		upload_timeout 1h
		` + option + `
	}
	reverse_proxy {$APP}
}
`}
}

// post has all phones post at once, and returns when all are served.
func (p *party) post(ctx context.Context, o order) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := newClient()
	var all sync.WaitGroup
	for range p.phones {
		all.Go(func() {
			a := o.post(ctx, client)
			if a.err == nil && a.status != http.StatusOK {
				a.err = fmt.Errorf("a capsule was answered with %d: %s", a.status, a.text)
			}
			if a.err != nil {
				cancel(a.err)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// watch looks at what the gateway holds of capsules, over and over, until its result is called, which is the most of it.
func (p *party) watch(ctx context.Context, g *gateway) (stop func() (int64, error)) {
	done := make(chan struct{})
	var most int64
	var err error
	var watching sync.WaitGroup
	watching.Go(func() {
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			var n float64
			if n, err = g.metric(ctx, memoryMetric); err != nil {
				return
			}
			most = max(most, int64(n))
			select {
			case <-done:
				return
			case <-ticker.C:
			}
		}
	})
	return func() (int64, error) {
		close(done)
		watching.Wait()
		return most, err
	}
}
