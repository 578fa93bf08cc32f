package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// profiling is one run of profile.
type profiling struct {
	workspace
	sizes     []string
	protocols []string
	bestShot  sandbox.Size
	clients   int
	load      time.Duration
}

func profileCommand() *cobra.Command {
	p := &profiling{bestShot: 400_000}
	cmd := p.command("profile", "Tell what the gateway spends its CPU time on", p)
	flags := cmd.Flags()
	flags.StringSliceVar(&p.sizes, "sizes", []string{"200000", "2MiB"}, "`sizes` of capsules")
	flags.StringSliceVar(&p.protocols, "protocols", protocolNames, "`names` of protocols that clients use")
	flags.Var(&p.bestShot, "best-shot", "length of the best shot in Oz's answer, in base64")
	flags.IntVar(&p.clients, "clients", 4, "concurrent clients")
	flags.DurationVar(&p.load, "for", 15*time.Second, "how long each profile takes, a second at least")
	return cmd
}

func (p *profiling) check() error {
	if p.clients < 1 || p.load < time.Second || p.load > timeLimit-time.Second {
		return fmt.Errorf("clients must be at least 1, and --for between 1s and %v", timeLimit-time.Second)
	}
	return errors.Join(checkProtocols(p.protocols), checkSizes(p.sizes))
}

// profile is where the CPU time of one kind of load goes.
type profile struct {
	title    string
	spent    spending
	capsules int64
}

func (p *profiling) measure(ctx context.Context, stdout io.Writer) error {
	var profiles []profile
	for _, text := range p.sizes {
		size, _ := sandbox.ParseSize(text)
		for _, name := range p.protocols {
			protocol := peerProtocols[name]
			w := workload{size, int64(p.bestShot), p.clients, protocol}
			taken, err := p.take(ctx, w)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", text, protocol, err)
			}
			taken.title = text + ", " + protocol.String()
			profiles = append(profiles, taken)
		}
	}
	fmt.Fprintf(stdout, "%s; best shot of %d characters, %d clients\n\n", conditions(p.binary), int64(p.bestShot), p.clients)
	printProfiles(stdout, profiles)
	return nil
}

// take has a gateway profile itself under load.
func (p *profiling) take(ctx context.Context, w workload) (taken profile, err error) {
	var sent atomic.Int64
	p.line.Begin(progress.Phase{Name: fmt.Sprintf("capsules of %d, %s", w.size, w.protocol)})
	r, err := newRig(ctx, p.binary, p.dir, ozInstant, w)
	if err != nil {
		return taken, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	batch := 10 * w.clients
	if err := r.run(ctx, batch); err != nil { // the first meet empty pools
		return taken, err
	}
	loaded, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		var err error
		for err == nil && loaded.Err() == nil {
			if err = r.run(ctx, batch); err == nil {
				sent.Add(int64(batch))
			}
		}
		ended <- err
	}()
	text, err := r.gateway.callAdmin(ctx, http.MethodGet, fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(p.load.Seconds())), "")
	stop()
	taken.capsules = sent.Load()
	if err := errors.Join(err, <-ended); err != nil {
		return taken, err
	}
	taken.spent, err = p.read(ctx, text)
	return taken, err
}

// read has Go's own tool read a profile.
func (p *profiling) read(ctx context.Context, profile string) (spending, error) {
	file := filepath.Join(p.dir, "profile")
	if err := os.WriteFile(file, []byte(profile), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", "pprof", "-traces", file)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool pprof: %w", err)
	}
	return readTraces(string(out))
}

// spending is CPU time by what it is spent on.
type spending map[string]time.Duration

// readTraces reads what pprof -traces prints: for each stack that was seen a line of dashes, the time and the innermost function, and
// those that called it, one a line.
func readTraces(text string) (spending, error) {
	spent := spending{}
	var stack []string
	var took time.Duration
	count := func() {
		if len(stack) > 0 {
			spent[spentOn(stack)] += took
		}
		stack = nil
	}
	lines := bufio.NewScanner(strings.NewReader(text))
	begun := false
	for lines.Scan() {
		fields := strings.Fields(strings.TrimSuffix(lines.Text(), " (inline)"))
		switch {
		case strings.HasPrefix(lines.Text(), "-----"):
			count()
			begun = true
		case !begun || len(fields) == 0:
		case len(stack) > 0:
			stack = append(stack, strings.Join(fields, " "))
		default:
			var err error
			if took, err = time.ParseDuration(fields[0]); err != nil || len(fields) < 2 {
				return nil, fmt.Errorf("no time and function in the line %q", lines.Text())
			}
			stack = append(stack, strings.Join(fields[1:], " "))
		}
	}
	count()
	if len(spent) == 0 {
		return nil, errors.New("nothing in the profile")
	}
	return spent, lines.Err()
}

// What CPU time is spent on, as printed.
const (
	onConnecting = "system calls: connections to Oz"
	onTransfer   = "system calls: bytes, timers, threads"
	onTLS        = "TLS"
	onCopying    = "copying of bytes"
	onMemory     = "allocation and garbage collection"
	onGoroutines = "goroutines: scheduling, stacks"
	onHTTP       = "Go's HTTP/1 and HTTP/2"
	onCaddy      = "Caddy"
	onModule     = "this module"
	onOther      = "other"
)

var spentOnAll = []string{onConnecting, onTransfer, onTLS, onCopying, onMemory, onGoroutines, onHTTP, onCaddy, onModule, onOther}

// spentOn names what the innermost functions of a stack are for. Time in the runtime and in packages that serve everybody, such as
// time and bufio, is that of the code that called them.
func spentOn(stack []string) string {
	in := func(prefixes ...string) bool {
		return slices.ContainsFunc(stack, func(function string) bool {
			return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(function, prefix) })
		})
	}
	leaf := stack[0]
	switch {
	case strings.HasPrefix(leaf, "internal/runtime/syscall"):
		if in("net.(*netFD).connect", "net.(*netFD).dial", "net.(*netFD).Close", "net.socket", "net.newTCPConn", "net.setKeepAlive") {
			return onConnecting
		}
		return onTransfer
	case strings.HasPrefix(leaf, "crypto/"):
		return onTLS
	case leaf == "runtime.memmove":
		return onCopying
	case in("runtime.gcBgMarkWorker", "runtime.bgsweep", "runtime.bgscavenge", "runtime.gcStart", "runtime.mallocgc", "runtime.growslice"):
		return onMemory
	case in("runtime.newstack", "runtime.mcall", "runtime.schedule", "runtime.newproc", "runtime.goready", "runtime.gopark", "runtime.wakep",
		"runtime.mstart", "runtime.selectgo", "runtime.chansend", "runtime.chanrecv"):
		return onGoroutines
	}
	for _, function := range stack {
		for owner, prefixes := range owners {
			if slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(function, prefix) }) {
				return owner
			}
		}
	}
	return onOther
}

var owners = map[string][]string{
	onModule: {"github.com/oz-instant/"},
	onCaddy:  {"github.com/caddyserver/", "main.main"},
	onHTTP:   {"net/http.", "net/textproto.", "golang.org/x/net/", "vendor/golang.org/x/net/"},
	onTLS:    {"crypto/"},
}

func printProfiles(out io.Writer, profiles []profile) {
	fmt.Fprintf(out, "%-38s", "CPU of the gateway per capsule, µs")
	for i := range profiles {
		fmt.Fprintf(out, "%9s", fmt.Sprintf("(%d)", i+1))
	}
	fmt.Fprintln(out)
	totals := make([]float64, len(profiles))
	for _, what := range spentOnAll {
		fmt.Fprintf(out, "  %-36s", what)
		for i, p := range profiles {
			each := float64(p.spent[what].Microseconds()) / float64(p.capsules)
			totals[i] += each
			fmt.Fprintf(out, "%9.0f", each)
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "  %-36s", "in all")
	for _, total := range totals {
		fmt.Fprintf(out, "%9.0f", total)
	}
	fmt.Fprintln(out)
	for i, p := range profiles {
		fmt.Fprintf(out, "%s(%d) capsules of %s: %d\n", "  ", i+1, p.title, p.capsules)
	}
}
