package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

func (c *peerComparison) print(out io.Writer, all []contender, cells []cell, checks []h2loadCheck) {
	fmt.Fprintf(out, "%s%s\n%s\n", conditions(c.binary), processor(), strings.Join(peerVersions(all), ", "))
	fmt.Fprintf(out, "best shot of %d characters; CPU and latency: one client, %d rounds of %d capsules (of 10 MiB: %d); memory: %d clients, %d rounds\n",
		int64(c.bestShot), c.rounds, c.capsules, c.capsulesOf(cell{size: 10 << 20}), c.memoryClients, c.memoryRounds)
	for _, cell := range cells {
		cell.print(out)
	}
	if len(checks) > 0 {
		printChecks(out, checks)
	}
}

func (c cell) print(out io.Writer) {
	const columns = "  %-18s %4s %4s %4s %7s %-18s %6s %-18s %-20s %s\n"
	fmt.Fprintf(out, "\n%s\n", c.title())
	fmt.Fprintf(out, columns, "", "JSON", "disk", "hops", "CPU ms", "ratio", "MiB", "ratio", "added p50, ms", "added p99, ms")
	ours := c.rows[0]
	for _, r := range c.rows {
		fmt.Fprintf(out, columns, r.name, yesNo(r.readsJSON), yesNo(r.disk), strconv.Itoa(r.hops()),
			fmt.Sprintf("%.2f", summarize(r.cpu).median), within(r.ratios(r.cpu, ours.cpu)),
			fmt.Sprintf("%.1f", summarize(r.memory).median), within(r.ratios(r.memory, ours.memory)), c.added(r, 0.5), c.added(r, 0.99))
	}
	fmt.Fprintf(out, "  less CPU, of those that read the JSON: %s\n",
		c.less(func(r row) []float64 { return r.cpu }, func(r row) bool { return r.readsJSON }))
	fmt.Fprintf(out, "  less memory, of those that touch no disk: %s\n",
		c.less(func(r row) []float64 { return r.memory }, func(r row) bool { return !r.disk }))
}

func (r row) ratios(theirs, ours []float64) []float64 {
	p := pairs{ours: theirs, plain: ours}
	return p.ratios()
}

// less names those that need less than oz_instant beyond doubt: all of the interval of their ratio is below 1.
func (c cell) less(figures func(row) []float64, counts func(row) bool) string {
	var names []string
	for _, r := range c.rows[1:] {
		if counts(r) && summarize(r.ratios(figures(r), figures(c.rows[0]))).high < 1 {
			names = append(names, r.name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " and ")
}

// within writes a median and its interval, if there are enough figures for one.
func within(figures []float64) string {
	s := summarize(figures)
	if math.IsInf(s.high, 1) {
		return fmt.Sprintf("%.2f", s.median)
	}
	return fmt.Sprintf("%.2f [%.2f, %.2f]", s.median, s.low, s.high)
}

// processor is for the reader, as are the versions: what can't tell its own was measured all the same.
func processor() string {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return ""
	}
	cpus, err := fs.CPUInfo()
	if err != nil || len(cpus) == 0 || cpus[0].ModelName == "" {
		return ""
	}
	return " (" + cpus[0].ModelName + ")"
}

var versionNumber = regexp.MustCompile(`\d+\.\d+[-.\w]*`)

// versionOf has a program tell its version.
func versionOf(name string, args ...string) string {
	path, err := programPath(name)
	if err != nil {
		return "of unknown version"
	}
	said, err := exec.Command(path, args...).CombinedOutput()
	if found := versionNumber.Find(said); err == nil && found != nil {
		return string(found)
	}
	return "of unknown version"
}

// peerVersions returns the versions of what contenders run, but for Caddy's, each once.
func peerVersions(all []contender) (versions []string) {
	for _, c := range all {
		if c.program == nil {
			continue
		}
		switch c.program.folder {
		case "njs":
			versions = append(versions, "nginx "+versionOf("nginx", "-v"), "njs "+packageVersion("libnginx-mod-http-js"))
		case "lua":
			versions = append(versions, "nginx's Lua module "+packageVersion("libnginx-mod-http-lua"))
		case "express":
			versions = append(versions, "Node.js "+versionOf("node", "--version"), "Express "+expressVersion())
		case "haproxy":
			versions = append(versions, "HAProxy "+versionOf("haproxy", "-v"))
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(versions)))
}

func packageVersion(name string) string {
	return versionOf("dpkg-query", "-W", "-f", "${Version}", name)
}

func expressVersion() string {
	root, err := caddybin.Root()
	if err != nil {
		return "of unknown version"
	}
	text, err := os.ReadFile(filepath.Join(root, "integration/bench/peers/express/node_modules/express/package.json"))
	if err != nil {
		return "of unknown version"
	}
	return string(versionNumber.Find(regexp.MustCompile(`"version": "[^"]*"`).Find(text)))
}
