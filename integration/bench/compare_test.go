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

func TestCompare(t *testing.T) {
	args := []string{
		"-caddy", caddy(t), "-rounds", "2", "-capsules", "50", "-clients", "2",
		"-memory-rounds", "1", "-memory-capsules", "8", "-memory-clients", "4", "-memory-size", "1MiB",
	}
	var stdout, stderr strings.Builder
	if err := dispatch(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	const figures = ` +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d  `
	for _, want := range []string{
		`^Caddy v2\.\S+, go1\.\S+, linux/\S+, \d+ CPUs; best shot of 400000 characters\n`,
		`\n  oz_instant` + figures + `ms\n  plain Caddy` + figures + `ms\n  ratio` + figures + `within 1\.0: (yes|no)\n`,
		`\n  oz_instant` + figures + `MiB\n  plain Caddy` + figures + `MiB\n  ratio` + figures + `within 1\.2: (yes|no)\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout.String()) {
			t.Errorf("no %s in\n%s", want, stdout.String())
		}
	}
}

// A gateway whose work is not done yields no figures, however quick it was.
func TestRunsThatFail(t *testing.T) {
	for _, p := range []peer{ozInstant, plainReceiving, plainUnreading} {
		for _, kind := range []string{"status:500", "reset"} {
			t.Run(p.name+" "+kind, func(t *testing.T) {
				b, err := newBed(t.Context(), caddy(t), t.TempDir(), p, workload{size: 1000, bestShot: 20_000, clients: 2})
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
				b.stage.oz.SetFault(fault)
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
	err := dispatch(t.Context(), []string{"-caddy", notCaddy}, &stdout, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "of no use") {
		t.Errorf("got %v", err)
	}
	if stdout.Len() > 0 {
		t.Errorf("printed %s", stdout.String())
	}
}

func TestOnlyCheckJudges(t *testing.T) {
	over, within := finding{title: "Work", goal: 1}, finding{title: "Room", goal: 1.2}
	over.pairs.add(1.1, 1)
	within.pairs.add(1.1, 1)
	c := comparison{}
	if err := c.judge([]finding{over, within}); err != nil {
		t.Errorf("without -check: %v", err)
	}
	c.check = true
	if err := c.judge([]finding{within}); err != nil {
		t.Errorf("within: %v", err)
	}
	if err := c.judge([]finding{over, within}); err == nil || err.Error() != "Work: the ratio is 1.10, over 1.0" {
		t.Errorf("over: %v", err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"no-such-command", "no command"},
		{"compare extra", `what is "extra"`},
		{"-rounds 0", "at least 1"},
		{"-memory-clients -1", "at least 1"},
		{"-size much", "usage"},
		{"-size 0", "at least 1"},
		{"capacity -overload 0", "more than zero"},
		{"capacity -for 1s", "twice -analysis"},
		{"phones -phones 0", "at least 1"},
		{"soak -clients 0", "at least one client"},
	} {
		if err := dispatch(t.Context(), strings.Fields(c.line), io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.line, err, c.want)
		}
	}
	var help strings.Builder
	if err := dispatch(t.Context(), []string{"-h"}, io.Discard, &help); err != nil || !strings.Contains(help.String(), "(default 2MiB)") {
		t.Errorf("%v\n%s", err, help.String())
	}
}
