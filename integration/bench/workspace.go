package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// workspace is what every command needs: the Caddy to measure, a folder for its files, and a line that says how far it has got.
type workspace struct {
	binary string
	dir    string
	line   *progress.Line
}

// measurement is one run of a command.
type measurement interface {
	check() error // of its flags
	measure(ctx context.Context, stdout io.Writer) error
}

// command returns a command that prepares the workspace and then measures.
func (w *workspace) command(name, short string, m measurement) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := m.check(); err != nil {
				return err
			}
			w.line = progress.New(cmd.ErrOrStderr())
			defer w.line.Close()
			defer w.close()
			if err := w.open(cmd.Context()); err != nil {
				return err
			}
			return m.measure(cmd.Context(), w.line.Above(cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&w.binary, "caddy", "", "`file` of the Caddy to measure; default: one is built from this checkout")
	return cmd
}

// open builds a Caddy if none was named. close is due also after an error.
func (w *workspace) open(ctx context.Context) (err error) {
	if w.dir, err = os.MkdirTemp("", "oz-instant-bench"); err != nil {
		return err
	}
	if w.binary != "" {
		w.binary, err = filepath.Abs(w.binary) // gateways run in folders of their own
		return err
	}
	w.line.Begin(progress.Phase{Name: "building Caddy"})
	w.binary = filepath.Join(w.dir, "caddy")
	return caddybin.Build(ctx, w.binary, false)
}

func (w *workspace) close() { os.RemoveAll(w.dir) }

// conditions describes what figures were taken with.
func conditions(binary string) string {
	return fmt.Sprintf("Caddy %s, %s, %s/%s, %d CPUs",
		caddyVersion(binary), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
}

// caddyVersion is for the reader: a binary that cannot tell its version was measured all the same.
func caddyVersion(binary string) string {
	out, err := exec.Command(binary, "version").Output()
	if fields := strings.Fields(string(out)); err == nil && len(fields) > 0 {
		return fields[0]
	}
	return "of unknown version"
}
