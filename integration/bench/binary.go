package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

func binaryFlag(flags *flag.FlagSet, binary *string) {
	flags.StringVar(binary, "caddy", "", "the Caddy to measure; default: one is built from this checkout")
}

// findBinary builds a Caddy in dir if none was named.
func findBinary(ctx context.Context, named, dir string, progress io.Writer) (string, error) {
	if named != "" {
		return filepath.Abs(named) // gateways run in folders of their own
	}
	fmt.Fprintln(progress, "building Caddy …")
	built := filepath.Join(dir, "caddy")
	return built, caddybin.Build(ctx, built, false)
}

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
