package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// broken are the threats that each rule alone guards against, by their numbers in SECURITY.md. Of no rule but these do the tests of
// threats need to notice that it is gone.
var broken = []struct {
	rule string
	rows []int
}{
	{"fold", []int{2, 3}},
	{"connection", []int{4}},
	{"trailer", []int{6, 24}},  // also a name that described the capsule
	{"upgrade", []int{15, 25}}, // also what follows an upgrade of a POST
	{"strict", []int{17}},
}

// quickTests are enough to break each of those rows. By them, the others may be said to hold or not to be tested.
var quickTests = []string{
	"NamesOnEveryOutcome", "SpellingsInEveryLayout", "ReservedConnectionOfOthers", "ReservedInTrailers", "HandoffExpectAndTrailer", "UpgradeIsIgnoredOnCapsules",
	"TunnelIsNeverOpened", "DecisionByExactDocument", "HeaderOfOz", "RequestForgedFolder", "RandomRequests", "FloodHidesNothing",
}

func threatsCommand() *cobra.Command {
	var quick bool
	cmd := &cobra.Command{
		Use:   "threats",
		Short: "See that without a rule the tests of just the right threats fail",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			line := progress.New(cmd.ErrOrStderr())
			defer line.Close()
			return tryThreats(cmd.Context(), line, line.Above(cmd.OutOrStdout()), quick)
		},
	}
	addQuick(cmd, &quick)
	return cmd
}

func addQuick(cmd *cobra.Command, quick *bool) {
	cmd.Flags().BoolVar(quick, "quick", false, "run some of the tests of threats only: those of the rows that must break, and a few that must hold")
}

// tryThreats runs the tests of threats once for each rule, without it.
func tryThreats(ctx context.Context, line *progress.Line, out io.Writer, quick bool) error {
	line.Begin(progress.Phase{Name: "building the tests"})
	tests, err := buildThreats(ctx, quick)
	if err != nil {
		return err
	}
	defer tests.close()
	var errs []error
	for i, b := range broken {
		line.Begin(progress.Phase{Name: fmt.Sprintf("%d of %d: without %s", i+1, len(broken), b.rule)})
		err := tests.tryRule(ctx, out, b.rule, b.rows)
		if err != nil && !errors.Is(err, errWrongRows) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// threats are the tests of threats as a program.
type threats struct {
	root, dir string
	program   string
	pattern   string
}

func buildThreats(ctx context.Context, quick bool) (t *threats, err error) {
	t = &threats{pattern: "^TestThreats$"}
	if quick {
		t.pattern += "/^(" + strings.Join(quickTests, "|") + ")$"
	}
	if t.root, err = caddybin.Root(); err != nil {
		return nil, err
	}
	if t.dir, err = os.MkdirTemp("", "mutants"); err != nil {
		return nil, err
	}
	t.program = filepath.Join(t.dir, "integration.test")
	if err := run(ctx, t.root, nil, io.Discard, "go", "test", "-c", "-o", t.program, "./integration"); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *threats) close() { os.RemoveAll(t.dir) }

// tryRule builds a Caddy without a rule and tries it.
func (t *threats) tryRule(ctx context.Context, out io.Writer, name string, want []int) error {
	r, err := find(name)
	if err != nil {
		return err
	}
	caddy := filepath.Join(t.dir, "caddy-without-"+name)
	defer os.Remove(caddy)
	if err := r.build(ctx, caddy); err != nil {
		return fmt.Errorf("without %s: %w", name, err)
	}
	return t.try(ctx, out, name, caddy, want)
}

var errWrongRows = errors.New("other threats break than the rule guards against")

// try runs the tests on a Caddy without a rule, and prints which threats break. If others break than expected, it runs them once more:
// without a rule the same ones break each time, and what breaks only once says something of the machine, and is shown.
func (t *threats) try(ctx context.Context, out io.Writer, name, caddy string, want []int) error {
	start := time.Now()
	found, log, err := t.breakWithout(ctx, name, caddy)
	if err != nil {
		return err
	}
	if !slices.Equal(found, want) {
		fmt.Fprintf(out, "without %-10s  threats %s break, which is wrong: once more, after these failed\n%s\n",
			name, list(found), strings.Join(failed.FindAllString(log, 60), "\n"))
		again, _, err := t.breakWithout(ctx, name, caddy)
		if err != nil {
			return err
		}
		found = slices.DeleteFunc(found, func(row int) bool { return !slices.Contains(again, row) })
	}
	word := "as it must be"
	if !slices.Equal(found, want) {
		word, err = fmt.Sprintf("WRONG: want %s", list(want)), fmt.Errorf("without %s: %w", name, errWrongRows)
	}
	fmt.Fprintf(out, "without %-10s  threats %-8s break, %s  (%.0f s)\n", name, list(found), word, time.Since(start).Seconds())
	return err
}

// failed is what the tests print of one that failed, and why.
var failed = regexp.MustCompile(`(?m)^ *(--- FAIL: |\w+_test\.go:\d+: ).*$`)

// breakWithout returns the threats whose tests fail with a Caddy, and what the tests printed.
func (t *threats) breakWithout(ctx context.Context, name, caddy string) (rows []int, printed string, err error) {
	var log bytes.Buffer
	err = run(ctx, filepath.Join(t.root, "integration"), []string{"OZ_CADDY=" + caddy}, &log, t.program, "-test.run", t.pattern, "-test.v", "-test.timeout", "10m")
	if err == nil || errors.As(err, new(*exec.ExitError)) {
		rows, err = readRows(log.String())
	}
	if err != nil {
		return nil, "", fmt.Errorf("without %s: %w", name, err)
	}
	return rows, log.String(), nil
}

// rowsOf returns the threats that a rule alone guards against; nil: it isn't one of those that are tried.
func rowsOf(name string) []int {
	for _, b := range broken {
		if b.rule == name {
			return b.rows
		}
	}
	return nil
}

func run(ctx context.Context, dir string, env []string, out io.Writer, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, append(os.Environ(), env...), out, out
	return cmd.Run()
}

// row is a line of TestThreats.
var row = regexp.MustCompile(`(?m)^ +(\d+)  (holds|NOT TESTED|BROKEN) `)

// readRows returns the numbers of the threats that are broken.
func readRows(log string) (rows []int, err error) {
	lines := row.FindAllStringSubmatch(log, -1)
	if len(lines) == 0 {
		return nil, fmt.Errorf("the tests did not end:\n%s", log[max(0, len(log)-4000):])
	}
	for _, line := range lines {
		number, err := strconv.Atoi(line[1])
		if err != nil {
			return nil, err
		}
		if line[2] == "BROKEN" {
			rows = append(rows, number)
		}
	}
	return rows, nil
}

func list(rows []int) string {
	if len(rows) == 0 {
		return "none"
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(rows), " ", ", "), "[]")
}
