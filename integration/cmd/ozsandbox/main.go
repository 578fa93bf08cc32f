// Command ozsandbox runs a stand-in for Oz Instant and an app to put behind the gateway, and makes capsules to post.
//
//	ozsandbox [run] [flags]       the sandbox and the demo app
//	ozsandbox capsule [flags]     writes a capsule to a file, for curl
//	ozsandbox photo [flags]       writes a reference photo to a file: of the person that a capsule shows
//	ozsandbox faults              lists what can be made to go wrong
//
// Each takes -h.
package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

func main() { cli.Main("ozsandbox", dispatch) }

func dispatch(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command, args := cli.Command(args, "run")
	switch command {
	case "run":
		return run(ctx, args, stdout, stderr)
	case "capsule":
		return capsule(ctx, args, stdout, stderr)
	case "photo":
		return photo(args, stdout, stderr)
	case "faults":
		return faults(stdout)
	}
	return fmt.Errorf("no command %q: want run, capsule, photo or faults", command)
}

func faults(stdout io.Writer) error {
	fmt.Fprintln(stdout, `Faults are given to "ozsandbox run -fault": kind[:value][,name=value...][@`+strings.Join(sandbox.Scopes(), "|@")+`][*times]`)
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
