// Package cli is what the programs below integration/ have in common.
package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// Main runs a program's command, and ends with 1 if that fails. A signal ends the command's context, so that everything that it
// has started ends with it; a second one ends the program.
func Main(root *cobra.Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

// startLimit is how long a server may take to listen.
const startLimit = 20 * time.Second

// AwaitListening returns when an address can be connected to. Its error says that this took too long, or that the server has ended
// before: ended is closed then, and may be nil.
func AwaitListening(ctx context.Context, addr string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-ended:
			return errors.New("it ended at once")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
