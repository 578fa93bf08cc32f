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
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, errUsage) {
			fmt.Fprintln(os.Stderr, "ozsandbox:", err)
		}
		stop()
		os.Exit(1)
	}
}

// errUsage says that flag has explained the mistake already.
var errUsage = errors.New("usage")

func dispatch(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := "run"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
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

// parse reads flags and refuses anything behind them. help reports that -h was asked for and answered.
func parse(flags *flag.FlagSet, args []string, stderr io.Writer) (help bool, err error) {
	flags.SetOutput(stderr)
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return true, nil
	case err != nil:
		return false, errUsage
	case flags.NArg() > 0:
		return false, fmt.Errorf("%s: what is %q?", flags.Name(), flags.Arg(0))
	}
	return false, nil
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

// size is a flag that reads 2MiB.
type size int64

func (s *size) String() string { return fmt.Sprint(int64(*s)) }

func (s *size) Set(text string) error {
	n, err := sandbox.ParseSize(text)
	*s = size(n)
	return err
}
