// Command bench measures what oz_instant costs, on any Linux machine with Go and nothing else.
//
//	bench [compare] [flags]       oz_instant beside a plain Caddy that makes the same two hops and never looks at the JSON
//	bench capacity  [flags]       many more capsules than Oz can take: is it kept busy, and are those refused told when to come back
//	bench phones    [flags]       many slow phones at once: what they take of the gateway's memory
//	bench soak      [flags]       everything that can go wrong, for as long as is asked for: is every capsule accounted for
//
// Each takes -h.
//
// The gateway is a process of its own, and the figures are its own: the clients, the stand-in for Oz and the app are in
// bench, and what they use is not counted. A run in which anything went wrong ends with an error and without figures.
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

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, errUsage) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		stop()
		os.Exit(1)
	}
}

// errUsage says that flag has explained the mistake already.
var errUsage = errors.New("usage")

func dispatch(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command := "compare"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	switch command {
	case "compare":
		return compare(ctx, args, stdout, stderr)
	case "capacity":
		return capacity(ctx, args, stdout, stderr)
	case "phones":
		return phones(ctx, args, stdout, stderr)
	case "soak":
		return soak(ctx, args, stdout, stderr)
	}
	return fmt.Errorf("no command %q: want compare, capacity, phones or soak", command)
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

// size is a flag that reads 2MiB.
type size int64

func (s *size) Set(text string) error {
	n, err := sandbox.ParseSize(text)
	*s = size(n)
	return err
}

func (s *size) String() string {
	n := int64(*s)
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprint(n)
}
