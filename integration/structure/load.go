package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// pkg is a package below the folder, checked from its source, without its tests.
type pkg struct {
	path  string
	fset  *token.FileSet
	files []*ast.File
	types *types.Package
	info  *types.Info
}

// listed is what `go list` says about a package.
type listed struct {
	Dir, ImportPath, Export string
	GoFiles                 []string
}

// load checks the packages below a folder from source, so that they share their objects. All else comes from export data, as the
// compiler left it in the build cache.
func load(dir, folder string) ([]*pkg, error) {
	list, err := goList(dir, "./"+filepath.ToSlash(folder)+"/...")
	if err != nil {
		return nil, err
	}
	root, err := filepath.Abs(filepath.Join(dir, folder))
	if err != nil {
		return nil, err
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, err
	}
	exports := map[string]string{}
	for _, l := range list {
		exports[l.ImportPath] = l.Export
	}
	fset := token.NewFileSet()
	im := mixedImporter{
		source: map[string]*types.Package{},
		others: importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) }),
	}
	var pkgs []*pkg
	for _, l := range list { // dependencies come before the packages that import them
		if l.Dir != root && !strings.HasPrefix(l.Dir, root+string(filepath.Separator)) {
			continue
		}
		p, err := check(fset, im, l)
		if err != nil {
			return nil, err
		}
		im.source[l.ImportPath] = p.types
		pkgs = append(pkgs, p)
	}
	return pkgs, nil
}

func goList(dir, pattern string) ([]listed, error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=Dir,ImportPath,Export,GoFiles", pattern)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("go list %s: %w\n%s", pattern, err, errs.String())
	}
	var list []listed
	for d := json.NewDecoder(&out); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, err
		}
		list = append(list, l)
	}
}

func check(fset *token.FileSet, im types.Importer, l listed) (*pkg, error) {
	p := &pkg{path: l.ImportPath, fset: fset, info: &types.Info{
		Defs:  map[*ast.Ident]types.Object{},
		Uses:  map[*ast.Ident]types.Object{},
		Types: map[ast.Expr]types.TypeAndValue{},
	}}
	for _, name := range l.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(l.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		p.files = append(p.files, f)
	}
	var err error
	p.types, err = (&types.Config{Importer: im}).Check(l.ImportPath, fset, p.files, p.info)
	return p, err
}

// mixedImporter prefers the packages that were checked from source.
type mixedImporter struct {
	source map[string]*types.Package
	others types.Importer
}

func (m mixedImporter) Import(path string) (*types.Package, error) {
	if p := m.source[path]; p != nil {
		return p, nil
	}
	return m.others.Import(path)
}

// lines returns how many lines of the package hold code.
func (p *pkg) lines() int {
	n := 0
	for _, f := range p.files {
		n += len(codeLines(p.fset.Position(f.Pos()).Filename))
	}
	return n
}

// codeLines returns the numbers of the lines of a file on which a token stands, all lines of a raw string among them.
func codeLines(name string) map[int]bool {
	src, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	file := token.NewFileSet().AddFile(name, -1, len(src))
	var s scanner.Scanner
	s.Init(file, src, nil, 0) // without comments
	lines := map[int]bool{}
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return lines
		}
		if tok == token.SEMICOLON && lit == "\n" {
			continue // the scanner's own
		}
		first := file.Line(pos)
		for i := range strings.Count(lit, "\n") + 1 {
			lines[first+i] = true
		}
	}
}
