package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// workshop is what every command needs: a Caddy, a folder for all files, and somebody to tell how far it is.
type workshop struct {
	binary   string
	dir      string
	progress io.Writer
}

func (w *workshop) binaryFlag(flags *flag.FlagSet) {
	flags.StringVar(&w.binary, "caddy", "", "the Caddy to measure; default: one is built from this checkout")
}

// open builds a Caddy if none was named. close is due also after an error.
func (w *workshop) open(ctx context.Context) (err error) {
	if w.dir, err = os.MkdirTemp("", "oz-instant-bench"); err != nil {
		return err
	}
	if w.binary != "" {
		w.binary, err = filepath.Abs(w.binary) // gateways run in folders of their own
		return err
	}
	fmt.Fprintln(w.progress, "building Caddy …")
	w.binary = filepath.Join(w.dir, "caddy")
	return caddybin.Build(ctx, w.binary, false)
}

func (w *workshop) close() { os.RemoveAll(w.dir) }

// conditions are what figures were taken with.
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
