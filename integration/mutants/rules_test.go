package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// TestRulesApply keeps the table true while the module changes: each text that a rule replaces stands there exactly once, and what
// comes of it compiles.
func TestRulesApply(t *testing.T) {
	root, err := caddybin.Root()
	if err != nil {
		t.Fatal(err)
	}
	packages := listPackages(t, root)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			changed, err := r.apply(root)
			if err != nil {
				t.Fatal(err)
			}
			if len(changed) == 0 || r.what == "" {
				t.Errorf("it lacks something: %+v", r)
			}
			for folder := range folders(changed) {
				packages.check(t, root, folder, changed)
			}
		})
	}
}

// TestRulesMustMatch promises an error where the text to replace is not there, or there twice.
func TestRulesMustMatch(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "a.go"), []byte("one two, two"), 0o600); err != nil {
		t.Fatal(err)
	}
	for old, wrong := range map[string]bool{"one": false, "two": true, "three": true} {
		_, err := rule{name: "r", edits: []edit{{"a.go", old, "new"}}}.apply(root)
		if (err != nil) != wrong {
			t.Errorf("%q: %v", old, err)
		}
	}
	if _, err := find("flod"); err == nil || !strings.Contains(err.Error(), "fold") {
		t.Errorf("an unknown rule: %v", err)
	}
}

func folders(changed map[string]string) map[string]bool {
	found := map[string]bool{}
	for file := range changed {
		found[filepath.Dir(filepath.FromSlash(file))] = true
	}
	return found
}

// listed is what `go list` says about the packages that the module is made of.
type listed map[string]struct {
	Dir, ImportPath, Export string
	GoFiles                 []string
}

func listPackages(t *testing.T, root string) listed {
	t.Helper()
	args := slices.Concat([]string{"list"}, caddybin.Flags(), []string{"-export", "-deps", "-json=Dir,ImportPath,Export,GoFiles", "./caddymodule"})
	cmd := exec.CommandContext(t.Context(), "go", args...)
	var errs bytes.Buffer
	cmd.Dir, cmd.Stderr, cmd.Env = root, &errs, append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, errs.String())
	}
	all := listed{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := all[""]
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
}

// check checks the types of the package in a folder, with what changed in it. What it imports comes as the compiler left it: a
// mutant that is built and linked to see this would take seconds each.
func (l listed) check(t *testing.T, root, folder string, changed map[string]string) {
	t.Helper()
	fset := token.NewFileSet()
	for _, p := range l {
		if p.Dir != filepath.Join(root, folder) {
			continue
		}
		var files []*ast.File
		for _, name := range p.GoFiles {
			var source any
			if text, ok := changed[filepath.ToSlash(filepath.Join(folder, name))]; ok {
				source = text
			}
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), source, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		open := func(path string) (io.ReadCloser, error) { return os.Open(l[path].Export) }
		config := types.Config{Importer: importer.ForCompiler(fset, "gc", open)}
		if _, err := config.Check(p.ImportPath, fset, files, nil); err != nil {
			t.Error(err)
		}
		return
	}
	t.Errorf("there is no package in %s", folder)
}
