// Command mutants builds a Caddy with the module less one of its rules: the rule's tests, and an attack, must notice.
//
//	go run ./integration/mutants list
//	go run ./integration/mutants build fold -o /tmp/caddy-without-fold
//	OZ_CADDY=/tmp/caddy-without-fold go test ./integration -run TestThreats    # must fail
//	go run ./integration/mutants threats    # does that for five rules, and says whether the right threats break
//	go run ./integration/mutants attack     # attacks without each rule, and says whether the right rows break
//	go run ./integration/mutants all        # does both, and builds each Caddy once
//
// The source of the module stays as it is: the compiler sees other text in its place. See rules.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/cli"
)

func main() { cli.Main(rootCommand()) }

func rootCommand() *cobra.Command {
	root := &cobra.Command{Use: "mutants", Short: "Build Caddy with the module, less one of its rules", SilenceUsage: true}
	root.AddCommand(listCommand(), buildCommand(), threatsCommand(), attackCommand(), allCommand())
	return root
}

// allCommand is for CI. Each Caddy costs five seconds of CPU to link.
func allCommand() *cobra.Command {
	var quick bool
	cmd := &cobra.Command{
		Use:   "all",
		Short: "Do what threats and attack do, with each Caddy built once",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			line := progress.New(cmd.ErrOrStderr())
			defer line.Close()
			return tryAll(cmd.Context(), line, line.Above(cmd.OutOrStdout()), quick)
		},
	}
	addQuick(cmd, &quick)
	return cmd
}

func tryAll(ctx context.Context, line *progress.Line, out io.Writer, quick bool) error {
	line.Begin(progress.Phase{Name: "building the tests"})
	tests, err := buildThreats(ctx, quick)
	if err != nil {
		return err
	}
	defer tests.close()
	var errs []error
	err = attackAll(ctx, line, out, nil, func(b built) error {
		if wanted := rowsOf(b.rule.name); wanted != nil {
			err := tests.try(ctx, out, b.rule.name, b.binary, wanted)
			if !errors.Is(err, errWrongRows) {
				return err
			}
			errs = append(errs, err)
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the rules that can be taken out",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, r := range rules {
				fmt.Fprintf(table, "%s\t%s\n", r.name, r.what)
			}
			return table.Flush()
		},
	}
}

func buildCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "build <rule>",
		Short: "Build Caddy without a rule",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := find(args[0])
			if err != nil {
				return err
			}
			return r.build(cmd.Context(), out)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "`file` to write the binary to")
	cobra.CheckErr(cmd.MarkFlagRequired("output"))
	return cmd
}

// build writes a Caddy without the rule to out. A rule without edits leaves it whole.
func (r rule) build(ctx context.Context, out string) error {
	root, err := caddybin.Root()
	if err != nil {
		return err
	}
	changed, err := r.apply(root)
	if err != nil {
		return err
	}
	return caddybin.BuildChanged(ctx, out, changed)
}
