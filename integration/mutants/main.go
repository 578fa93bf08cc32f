// Command mutants builds a Caddy with the module less one of its rules: the rule's tests, and an attack, must notice.
//
//	go run ./integration/mutants list
//	go run ./integration/mutants build fold -o /tmp/caddy-without-fold
//	OZ_CADDY=/tmp/caddy-without-fold go test ./integration -run TestThreats    # must fail
//	go run ./integration/mutants threats    # does that for five rules, and says whether the right threats break
//	go run ./integration/mutants attack     # attacks without each rule, and says whether the right rows break
//
// The source of the module stays as it is: the compiler sees other text in its place. See rules.go.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{Use: "mutants", Short: "Build Caddy with the module, less one of its rules", SilenceUsage: true}
	root.AddCommand(listCommand(), buildCommand(), threatsCommand(), attackCommand())
	return root
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
