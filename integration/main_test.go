// Package integration_test looks at oz_instant from outside: a real Caddy, real sockets, a stand-in for Oz Instant on one
// side and an app that notes every byte on the other. It imports nothing of the module.
//
// Run it with go test ./integration. TestMain builds a Caddy with the module in it, with the race detector if the tests have
// it; OZ_CADDY names another binary to test, relative to the top folder or absolute. A test that calls a program that is not
// there is skipped, or fails where OZ_ALL_TESTS is set.
package integration_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// caddyBinary is the Caddy under test. It must be there before the first test.
var caddyBinary string

func TestMain(m *testing.M) {
	flag.Parse()
	runMoreAtOnce()
	collectSeldom()
	os.Exit(runTests(m))
}

// collectSeldom has this program, and what Go programs it starts, collect garbage less often. Hundreds of Caddys run for a moment each,
// and spent a third of the CPU time of their start on garbage that dies with them. GOGC of the environment goes before.
func collectSeldom() {
	if os.Getenv("GOGC") != "" {
		return
	}
	os.Setenv("GOGC", "400")
	debug.SetGCPercent(400)
}

// testsAtOnce returns how many parallel tests run at once. Go takes the number of CPUs, but most tests here wait for a clock. With
// the race detector they need more of the CPU.
func testsAtOnce() int {
	if raceEnabled {
		return 4
	}
	return 16
}

// often returns how often a test tries again what goes wrong once in many: n times where all tests are asked for, as CI does for the
// binary that users get, and else a quarter of that. With the race detector each takes five times as much CPU.
func often(n int) int {
	if raceEnabled || os.Getenv("OZ_ALL_TESTS") == "" {
		return n / 4
	}
	return n
}

// runMoreAtOnce sets -parallel, unless the command line does.
func runMoreAtOnce() {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", strconv.Itoa(testsAtOnce()))
	}
}

// runTests is TestMain with room for defer.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "oz-instant-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if caddyBinary, err = findCaddy(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// findCaddy returns the binary that OZ_CADDY names, or builds one in dir, with the plugin that one of the tests needs.
func findCaddy(dir string) (string, error) {
	named := os.Getenv("OZ_CADDY")
	if named == "" {
		built := filepath.Join(dir, "caddy")
		return built, caddybin.Build(context.Background(), built, raceEnabled, noUnwrap)
	}
	if !filepath.IsAbs(named) {
		// Tests run in their package's folder, and the binary was named from another one.
		root, err := caddybin.Root()
		if err != nil {
			return "", err
		}
		named = filepath.Join(root, named)
	}
	if text, err := exec.Command(named, "version").CombinedOutput(); err != nil {
		return "", fmt.Errorf("OZ_CADDY=%s: %w\n%s", named, err, text)
	}
	return named, nil
}

// sideBySide runs subtests all at once. Those that wait for a clock would begin only after all other tests of this package if they
// called t.Parallel themselves.
func sideBySide[T any](t *testing.T, cases map[string]T, test func(t *testing.T, name string, c T)) {
	var all sync.WaitGroup
	for name, c := range cases {
		all.Go(func() { t.Run(name, func(t *testing.T) { test(t, name, c) }) })
	}
	all.Wait()
}
