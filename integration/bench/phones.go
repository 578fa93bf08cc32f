package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// phonesRun is one run of phones.
type phonesRun struct {
	workspace

	phones int
	size   sandbox.Size
	rate   sandbox.Size // of each one's link, a second
	memory sandbox.Size

	served atomic.Int64 // phones
}

func phonesCommand() *cobra.Command {
	p := &phonesRun{size: 1 << 20, rate: 64 << 10, memory: 256 << 20}
	cmd := p.command("phones", "Have many slow phones post at once", p)
	flags := cmd.Flags()
	flags.IntVar(&p.phones, "phones", 1000, "number of phones that post a capsule at the same time")
	flags.Var(&p.size, "size", "size of a capsule")
	flags.Var(&p.rate, "rate", "what each phone's link carries in a second")
	flags.Var(&p.memory, "memory", "the gateway's memory for capsules; at least the default max_capsule, 32MiB")
	return cmd
}

func (p *phonesRun) check() error {
	if min(int64(p.phones), int64(p.size), int64(p.rate), int64(p.memory)) < 1 {
		return errors.New("phones and sizes must be at least 1")
	}
	return nil
}

func (p *phonesRun) measure(ctx context.Context, stdout io.Writer) error {
	streaming, err := p.try(ctx, "")
	if err != nil {
		return fmt.Errorf("streaming: %w", err)
	}
	buffered, err := p.try(ctx, "memory "+p.memory.String())
	if err != nil {
		return fmt.Errorf("with memory: %w", err)
	}
	fmt.Fprintf(stdout, "%s\n\n%d phones at once, each with a capsule of %s and a link of %s a second\n",
		conditions(p.binary), p.phones, p.size.String(), p.rate.String())
	fmt.Fprintf(stdout, "  %-14s %21s %21s %8s\n", "", "peak resident memory", "buffered in capsules", "took")
	for _, u := range []memoryUse{streaming, buffered} {
		fmt.Fprintf(stdout, "  %-14s %17.1f MiB %17.1f MiB %6.1f s\n", u.mode, mib(u.resident), mib(u.buffered), u.took.Seconds())
	}
	fmt.Fprintf(stdout, "\nevery phone was served; the gateway buffered at most %.1f MiB of %s\n", mib(buffered.buffered), p.memory.String())
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// memoryUse is how much of the gateway the phones took.
type memoryUse struct {
	mode     string
	resident int64 // peak
	buffered int64 // peak of what it counts as memory of capsules
	took     time.Duration
}

func (p *phonesRun) try(ctx context.Context, memory string) (u memoryUse, err error) {
	u.mode = memory
	option := ""
	if memory == "" {
		u.mode = "streaming"
	} else {
		option = "capacity {\n\t\t\t" + memory + "\n\t\t\twait 1h\n\t\t}"
	}
	p.served.Store(0)
	p.line.Begin(progress.Phase{Name: u.mode, Amount: progress.Of(&p.served, p.phones, "phones served")})
	backend, g, err := setUp(ctx, p.binary, p.dir, phonesPeer(option), sandbox.Options{})
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, g.stop(), backend.close()) }()

	capsule := backend.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: int64(p.size)})
	watch := p.watch(ctx, g)
	start := time.Now()
	err = p.post(ctx, upload{url: g.url + verifyPath, capsule: capsule, rate: int64(p.rate)})
	u.took = time.Since(start)
	var watchErr error
	u.buffered, watchErr = watch()
	if err := errors.Join(err, watchErr); err != nil {
		return u, err
	}
	if err := backend.settle(ctx, p.phones, int64(len(capsule))); err != nil {
		return u, err
	}
	if memory != "" && (u.buffered > int64(p.memory) || u.buffered == 0) {
		return u, fmt.Errorf("%d bytes were buffered (want 1 to %d)", u.buffered, int64(p.memory))
	}
	u.resident, err = peakMemory(g.pid())
	return u, err
}

func phonesPeer(option string) peer {
	return peer{name: ozInstant.name, decides: true, directives: `
	oz_instant ` + verifyPath + ` http://{$OZ} {
		upload_timeout 1h
		` + option + `
	}
	reverse_proxy {$APP}`}
}

// post makes all phones post at once, and returns when all are served.
func (p *phonesRun) post(ctx context.Context, u upload) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := newClient()
	var all sync.WaitGroup
	for range p.phones {
		all.Go(func() {
			a := u.post(ctx, client)
			if a.err == nil && a.status != http.StatusOK {
				a.err = fmt.Errorf("a capsule was answered with %d: %s", a.status, a.text)
			}
			if a.err != nil {
				cancel(a.err)
			} else {
				p.served.Add(1)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// watch polls how much the gateway buffers of capsules until stop is called, which returns the most of it.
func (p *phonesRun) watch(ctx context.Context, g *gateway) (stop func() (int64, error)) {
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
