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
			return tryThreats(cmd.Context(), cmd.OutOrStdout(), quick)
		},
	}
	cmd.Flags().BoolVar(&quick, "quick", false, "run some of the tests only: those of the rows that must break, and a few that must hold")
	return cmd
}

// tryThreats runs the tests of threats once for each rule, without it.
func tryThreats(ctx context.Context, out io.Writer, quick bool) error {
	root, err := caddybin.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tests := filepath.Join(dir, "integration.test")
	if err := run(ctx, root, nil, io.Discard, "go", "test", "-c", "-o", tests, "./integration"); err != nil {
		return err
	}
	wrong := 0
	for _, b := range broken {
		start := time.Now()
		found, err := tryRule(ctx, root, dir, tests, b.rule, quick)
		if err != nil {
			return fmt.Errorf("without %s: %w", b.rule, err)
		}
		word := "as it must be"
		if !slices.Equal(found, b.rows) {
			wrong++
			word = fmt.Sprintf("WRONG: want %s", list(b.rows))
		}
		fmt.Fprintf(out, "without %-10s  threats %-8s break, %s  (%.0f s)\n", b.rule, list(found), word, time.Since(start).Seconds())
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d rules break something else than they guard", wrong, len(broken))
	}
	return nil
}

// tryRule returns the threats that break without a rule.
func tryRule(ctx context.Context, root, dir, tests, name string, quick bool) ([]int, error) {
	r, err := find(name)
	if err != nil {
		return nil, err
	}
	caddy := filepath.Join(dir, "caddy-without-"+name)
	if err := r.build(ctx, caddy); err != nil {
		return nil, err
	}
	defer os.Remove(caddy)
	pattern := "^TestThreats$"
	if quick {
		pattern += "/^(" + strings.Join(quickTests, "|") + ")$"
	}
	var log bytes.Buffer
	err = run(ctx, filepath.Join(root, "integration"), []string{"OZ_CADDY=" + caddy}, &log, tests, "-test.run", pattern, "-test.v", "-test.timeout", "10m")
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return nil, err
	}
	return readRows(log.String())
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
