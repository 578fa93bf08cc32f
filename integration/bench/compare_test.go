package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

var binaryDir string

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

// runTests is TestMain with room for defer.
func runTests(m *testing.M) int {
	var err error
	if binaryDir, err = os.MkdirTemp("", "oz-instant-bench-test"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(binaryDir)
	return m.Run()
}

// buildCaddy is done once, by the first test that wants one.
var buildCaddy = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(binaryDir, "caddy")
	return binary, caddybin.Build(context.Background(), binary, false)
})

func caddy(t *testing.T) string {
	t.Helper()
	binary, err := buildCaddy()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// execute runs a command line in this process.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	return cmd.ExecuteContext(ctx)
}

func TestCompare(t *testing.T) {
	t.Parallel()
	args := []string{
		"--caddy", caddy(t), "--rounds", "1", "--capsules", "10", "--clients", "2",
		"--memory-rounds", "1", "--memory-capsules", "8", "--memory-clients", "4", "--memory-size", "1MiB",
	}
	var stdout, stderr strings.Builder
	if err := execute(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	const figures = ` +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d +-Inf to +\+Inf  ` // too few pairs for an interval
	for _, want := range []string{
		`^Caddy v2\.\S+, go1\.\S+, linux/\S+, \d+ CPUs; best shot of 400000 characters\n`,
		`\nCPU of the gateway per capsule of 2MiB, HTTP/1\.1, .*\n.*\n.*\n  oz_instant` + figures + `ms\n  plain Caddy` + figures + `ms\n  ratio` + figures + `within 0\.95: no\n`,
		`\nCPU of the gateway per capsule of 200000, HTTP/1\.1, .* 40 capsules\n(.*\n)+  ratio` + figures + `within 1\.00: no\n`,
		`\nCPU of the gateway per capsule of 2MiB, HTTP/1\.1 over TLS, `,
		`\nCPU of the gateway per capsule of 2MiB, HTTP/2 over TLS, `,
		`\n  oz_instant` + figures + `MiB\n  plain Caddy` + figures + `MiB\n  ratio` + figures + `within 1\.20: no\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout.String()) {
			t.Errorf("no %s in\n%s", want, stdout.String())
		}
	}
}

// A gateway whose work is not done yields no figures, however quick it was.
func TestRunsThatFail(t *testing.T) {
	t.Parallel()
	for _, p := range []peer{ozInstant, plainReceiving, plainUnreading} {
		for _, kind := range []string{"status:500", "reset"} {
			t.Run(p.name+" "+kind, func(t *testing.T) {
				t.Parallel()
				b, err := newRig(t.Context(), caddy(t), t.TempDir(), p, workload{size: 1000, bestShot: 20_000, clients: 2, protocol: h1})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { b.close() })
				if err := b.run(t.Context(), 5); err != nil {
					t.Fatal(err)
				}
				fault, err := sandbox.ParseFault(kind)
				if err != nil {
					t.Fatal(err)
				}
				b.backend.oz.SetFault(fault)
				if err := b.run(t.Context(), 5); err == nil || !strings.HasPrefix(err.Error(), p.name+": a capsule was answered with 50") {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

func TestNoFiguresAfterAnError(t *testing.T) {
	notCaddy := filepath.Join(t.TempDir(), "caddy")
	if err := os.WriteFile(notCaddy, []byte("#!/bin/sh\necho of no use; exit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var stdout strings.Builder
	err := execute(t.Context(), []string{"--caddy", notCaddy}, &stdout, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "of no use") {
		t.Errorf("got %v", err)
	}
	if stdout.Len() > 0 {
		t.Errorf("printed %s", stdout.String())
	}
}

func TestOnlyCheckJudges(t *testing.T) {
	over, within := finding{title: "Work", goal: 1}, finding{title: "Room", goal: 1.2}
	for range 6 {
		over.pairs.add(1.1, 1)
		within.pairs.add(1.1, 1)
	}
	c := comparison{}
	if err := c.judge([]finding{over, within}); err != nil {
		t.Errorf("without --check: %v", err)
	}
	c.strict = true
	if err := c.judge([]finding{within}); err != nil {
		t.Errorf("within: %v", err)
	}
	if err := c.judge([]finding{over, within}); err == nil || err.Error() != "Work: the ratio is 1.10 to 1.10 (want at most 1.00)" {
		t.Errorf("over: %v", err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"no-such-command", "unknown command"},
		{"compare extra", `unknown command "extra"`},
		{"soak extra", `unknown command "extra"`},
		{"--no-such-flag", "unknown flag"},
		{"--rounds 0", "at least 1"},
		{"--memory-clients -1", "at least 1"},
		{"--memory-size much", "not a size"},
		{"--memory-size 0", "at least 1"},
		{"--cases cpu,gpu", `unknown case "gpu"`},
		{"peers --peers oz_instant,Apache", `unknown peer "Apache"`},
		{"peers --peers HAProxy", "oz_instant is missing"},
		{"peers --sizes much", "not a size"},
		{"peers --protocols h3", `unknown protocol "h3"`},
		{"peers --rounds 0", "at least 1"},
		{"capacity --overload 0", "more than zero"},
		{"capacity --attackers 15,0", "more than zero"},
		{"capacity --kinds idle,rude", `unknown kind "rude"`},
		{"capacity --for 2s", "three times --analysis"},
		{"phones --phones 0", "at least 1"},
		{"soak --clients 0", "--clients at least 1"},
	} {
		if err := execute(t.Context(), strings.Fields(c.line), io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.line, err, c.want)
		}
	}
	for line, want := range map[string]string{"-h": "(default 10MiB)", "help capacity": "--attackers", "completion bash": "__start_bench", "__complete --cases ": "cpu-tls-h2\n"} {
		var stdout strings.Builder
		if err := execute(t.Context(), strings.Split(line, " "), &stdout, io.Discard); err != nil || !strings.Contains(stdout.String(), want) {
			t.Errorf("%s: no %q in %s (%v)", line, want, stdout.String(), err)
		}
	}
}
