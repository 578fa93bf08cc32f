package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
)

// h2loadCheck is what h2load and bench's own clients measured of one peer: capsules a second, in turn.
type h2loadCheck struct {
	name       string
	own, other []float64
}

const (
	checkClients  = 4
	checkCapsules = 100
)

// checkWithH2load has another load generator do what bench's clients do: capsules of 2 MiB, HTTP/2 over TLS. If figures depended on
// how bench sends, the order of the peers would be another one.
func (c *peerComparison) checkWithH2load(ctx context.Context, all []contender) (checks []h2loadCheck, err error) {
	if c.checkRounds == 0 {
		return nil, nil
	}
	path, err := programPath("h2load")
	if err != nil {
		return nil, fmt.Errorf("%w (want it installed, see --help, or --check-rounds 0)", err)
	}
	var rigs []*rig
	defer func() {
		for _, r := range rigs {
			err = errors.Join(err, r.close())
		}
	}()
	w := workload{2 << 20, int64(c.bestShot), checkClients, h2TLS}
	for _, contender := range all {
		if contender.noHTTP2 {
			continue
		}
		r, err := newRig(ctx, c.binary, c.dir, contender.peer, w)
		if err != nil {
			return nil, err
		}
		rigs, checks = append(rigs, r), append(checks, h2loadCheck{name: contender.name})
		if err := r.run(ctx, checkClients); err != nil {
			return nil, err
		}
	}
	capsule := filepath.Join(c.dir, "capsule")
	if err := os.WriteFile(capsule, rigs[0].load.capsule, 0o600); err != nil {
		return nil, err
	}
	var done atomic.Int64
	c.line.Begin(progress.Phase{Name: "h2load", Amount: progress.Of(&done, c.checkRounds, "rounds")})
	for range c.checkRounds {
		for i, r := range rigs {
			own, err := r.rate(ctx, checkCapsules)
			if err != nil {
				return nil, err
			}
			other, err := h2load(ctx, path, r, capsule, checkCapsules)
			if err != nil {
				return nil, err
			}
			checks[i].own, checks[i].other = append(checks[i].own, own), append(checks[i].other, other)
		}
		done.Add(1)
	}
	return checks, nil
}

// rate returns how many capsules a second went through.
func (r *rig) rate(ctx context.Context, capsules int) (float64, error) {
	start := time.Now()
	if err := r.load.run(ctx, capsules); err != nil {
		return 0, fmt.Errorf("%s: %w", r.peer.name, err)
	}
	took := time.Since(start)
	return float64(capsules) / took.Seconds(), r.settle(ctx, capsules)
}

var (
	h2loadRate      = regexp.MustCompile(`(?m)^finished in [^,]*, ([\d.]+) req/s`)
	h2loadSucceeded = regexp.MustCompile(`(?m)^requests: .* (\d+) succeeded`)
)

// h2load posts the capsule that many times. That all of it reached Oz and the app is part of the figure.
func h2load(ctx context.Context, path string, r *rig, capsule string, capsules int) (float64, error) {
	cmd := exec.CommandContext(ctx, path, "-n", strconv.Itoa(capsules), "-c", strconv.Itoa(checkClients), "-m", "1", "-d", capsule,
		"-H", "Content-Type: application/octet-stream", r.load.url)
	said, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, said)
	}
	perSecond, err := readH2load(string(said), capsules)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", r.peer.name, err)
	}
	return perSecond, r.settle(ctx, capsules)
}

// readH2load returns how many requests a second h2load says it made, if it says that all of them were answered with success.
func readH2load(said string, requests int) (float64, error) {
	rate, succeeded := h2loadRate.FindStringSubmatch(said), h2loadSucceeded.FindStringSubmatch(said)
	if rate == nil || succeeded == nil || succeeded[1] != strconv.Itoa(requests) {
		return 0, fmt.Errorf("not %d answers with success\n%s", requests, said)
	}
	return strconv.ParseFloat(rate[1], 64)
}

func printChecks(out io.Writer, checks []h2loadCheck) {
	fmt.Fprintf(out, "\ncapsules of 2MiB a second, HTTP/2 over TLS, %d clients, %d rounds of %d capsules\n",
		checkClients, len(checks[0].own), checkCapsules)
	fmt.Fprintf(out, "  %-18s %-24s %s\n", "", "bench's own clients", "h2load")
	for _, c := range checks {
		fmt.Fprintf(out, "  %-18s %-24s %s\n", c.name, within(c.own), within(c.other))
	}
}
