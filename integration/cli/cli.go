// Package cli is what the programs of this tree have in common: commands with flags of their own.
package cli

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

// errUsage says that flag has explained the mistake already.
var errUsage = errors.New("usage")

// Main runs a program until it ends or is interrupted, and exits with 1 after an error.
func Main(name string, dispatch func(ctx context.Context, args []string, stdout, stderr io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := dispatch(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, errUsage) {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		}
		stop()
		os.Exit(1)
	}
}

// Command takes the command from in front of its flags. Without one it is byDefault.
func Command(args []string, byDefault string) (command string, flags []string) {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return args[0], args[1:]
	}
	return byDefault, args
}

// Parse reads flags and refuses anything behind them. help reports that -h was asked for and answered.
func Parse(flags *flag.FlagSet, args []string, stderr io.Writer) (help bool, err error) {
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

// Size is a flag that reads 2MiB.
type Size int64

// Set implements flag.Value.
func (s *Size) Set(text string) error {
	n, err := sandbox.ParseSize(text)
	*s = Size(n)
	return err
}

// String implements flag.Value.
func (s *Size) String() string {
	n := int64(*s)
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprint(n)
}
