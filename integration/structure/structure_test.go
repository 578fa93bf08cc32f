package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// source is a small module: three files in a cycle, one below them, a package that the handler imports and one that it does not.
var source = map[string]string{
	"go.mod": "module example.com/m\n\ngo 1.26\n",
	"p/a.go": `package p

import "example.com/m/p/q"

// Handler has two methods, in two files.
type Handler struct{ s shape }

func (h *Handler) ServeHTTP() { h.two(); q.Run(table[0]) }

var table = []func(){fromTable}

func fromTable() {}

func unreached() {}
`,
	"p/b.go": `package p

func (h *Handler) two() {
	/* A comment,
	   and a blank line. */

	h.s.area()
	low()
}

type body struct{}

func (body) Read([]byte) (int, error) { return 0, nil }
`,
	"p/c.go": `package p

type shape interface{ area() }

type square struct{ owner *Handler }

func (square) area() { _ = body{} }

type circle struct{}

func (circle) area(int) {}
`,
	"p/d.go":      "package p\n\nfunc low() {}\n",
	"p/d_test.go": "package p\n\nfunc helper() { low(); unreached() }\n",
	"p/q/q.go":    "package q\n\nfunc Run(f func()) { f() }\n",
	"p/alone/r.go": `package alone

type T struct{}

func (T) Read([]byte) (int, error) { return 0, nil }
`,
}

func TestStructure(t *testing.T) {
	dir := t.TempDir()
	for name, text := range source {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	cmd := command()
	cmd.SetArgs([]string{"-C", dir, "p"})
	cmd.SetOut(&out)
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	for _, want := range []string{
		"4 7 3 2 22 example.com/m/p",
		"1 0 1 1 3 example.com/m/p/alone",
		"6 27 all",
		// ServeHTTP, two, fromTable, square's area, body's Read and low; Run. Neither circle's area nor the lonely Read.
		"reachable from Handler.ServeHTTP: 7 functions with 10 lines, 4 types, 5 files",
		"6 functions 4 types example.com/m/p",
		"1 functions 0 types example.com/m/p/q",
		"methods of Handler: 2 in 2 files",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no line %q in:\n%s", want, out.String())
		}
	}
}

func TestUnknownRootIsAnError(t *testing.T) {
	cmd := command()
	cmd.SetArgs([]string{"-C", "../..", "integration/structure", "--root", "pkg.nothing"})
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "pkg.nothing") {
		t.Errorf("got %v", err)
	}
}
