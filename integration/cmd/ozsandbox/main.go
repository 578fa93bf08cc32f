// Command ozsandbox runs a stand-in for Oz Instant and a demo app, and makes capsules to post.
//
//	ozsandbox [run] [flags]       runs the sandbox and the demo app
//	ozsandbox capsule [flags]     writes a capsule to a file, for curl
//	ozsandbox photo [flags]       writes a reference photo to a file: of the person that a capsule shows
//	ozsandbox faults              lists what can be made to go wrong
//
// Each has --help.
package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

func main() { cli.Main(rootCommand()) }

// rootCommand is run itself, with the other commands below it.
func rootCommand() *cobra.Command {
	root := runCommand()
	root.Use = "ozsandbox"
	root.Short = "Stand in for Oz Instant, and make capsules to post"
	root.Long = root.Short + ".\n\nWithout a command, ozsandbox does what ozsandbox run does."
	root.SilenceUsage = true
	root.AddCommand(runCommand(), capsuleCommand(), photoCommand(), faultsCommand())
	return root
}

func faultsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "faults",
		Short: "List what can be made to go wrong",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return faults(cmd.OutOrStdout()) },
	}
}

func faults(stdout io.Writer) error {
	fmt.Fprintln(stdout, `A fault for "ozsandbox run --fault" is written kind[:value][,name=value...][@`+strings.Join(sandbox.Scopes(), "|@")+`][*times]`)
	out := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	group := ""
	for _, k := range sandbox.Kinds() {
		if k.Group != group {
			group = k.Group
			fmt.Fprintf(out, "\n%s\t\n", strings.ToUpper(group))
		}
		fmt.Fprintf(out, "  %s\t%s\n", k.Usage, k.Help)
	}
	return out.Flush()
}
