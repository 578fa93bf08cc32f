// Package caddybin builds the Caddy binaries that black-box tests and load tests run.
//
// The source of such a binary is one file of imports, which exists only for the compiler: nothing under integration/ imports
// the module under test (but for the line that shows progress), and nothing is written to the tree.
package caddybin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// source is what xcaddy writes for this module.
const source = `package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/oz-instant/caddy-oz-instant/caddymodule"
	_ "github.com/oz-instant/caddy-oz-instant/caddymodule/redis"
)

func main() { caddycmd.Main() }
`

// Flags returns what packages are compiled with, as by xcaddy, for those who look at compiled packages, too. CGO_ENABLED must be 0: a
// tag, a path or cgo that differs compiles most of Caddy anew. Without the tags come three databases that only a certificate authority
// uses.
func Flags() []string { return []string{"-trimpath", "-tags", "nobadger,nomysql,nopgx"} }

// Root returns the top folder of the Go module that the program was started in. Tests ask for it dozens of times, and Go once.
var Root = sync.OnceValues(findRoot)

func findRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("looking for go.mod: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if file == "" || file == os.DevNull {
		return "", errors.New("looking for go.mod: not inside a Go module")
	}
	return filepath.Dir(file), nil
}

// Build compiles the module and the standard modules into one Caddy and writes it to out. With race, the binary reports
// data races on its standard error and ends with status 66 after one. Plugins are source files of package main to link as well.
func Build(ctx context.Context, out string, race bool, plugins ...string) error {
	return build(ctx, out, race, plugins, nil)
}

// BuildChanged is Build with other text in some files: changed maps their paths below the top folder to it. The files themselves
// stay as they are.
func BuildChanged(ctx context.Context, out string, changed map[string]string) error {
	return build(ctx, out, false, nil, changed)
}

func build(ctx context.Context, out string, race bool, plugins []string, changed map[string]string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "caddybin")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	target, overlay, err := writeOverlay(dir, root, plugins, changed)
	if err != nil {
		return err
	}
	// A stamp of version control is useless here, and asking for one fails in a checkout that belongs to another user.
	args := append([]string{"build"}, Flags()...)
	args = append(args, "-buildvcs=false", "-ldflags", "-w -s", "-overlay", overlay, "-o", out)
	env := append(os.Environ(), "CGO_ENABLED=0")
	if race {
		args = append(args, "-race")
		env = append(env, "CGO_ENABLED=1") // the race detector needs it
	}
	cmd := exec.CommandContext(ctx, "go", append(args, target)...)
	cmd.Dir, cmd.Env = root, env
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy with the module: %w\n%s", err, bytes.TrimSpace(text))
	}
	return nil
}

// writeOverlay puts the sources into dir, tells the compiler to see them in a folder below root that does not exist, and
// returns that folder's import path and the overlay's file. It must be below root for root's go.mod to apply.
func writeOverlay(dir, root string, plugins []string, changed map[string]string) (target, overlay string, err error) {
	overlay = filepath.Join(dir, "overlay.json")
	const folder = "integration/caddybin/overlay"

	texts := maps.Clone(changed)
	if texts == nil {
		texts = map[string]string{}
	}
	for i, text := range append([]string{source}, plugins...) {
		texts[fmt.Sprintf("%s/main%d.go", folder, i)] = text
	}
	seen := map[string]string{}
	for name, text := range texts {
		file := filepath.Join(dir, fmt.Sprintf("%d.go", len(seen)))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return "", "", err
		}
		seen[filepath.Join(root, filepath.FromSlash(name))] = file
	}
	text, err := json.Marshal(map[string]map[string]string{"Replace": seen})
	if err != nil {
		return "", "", err
	}
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		return "", "", err
	}
	return "./" + folder, overlay, nil
}
