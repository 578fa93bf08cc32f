package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"strings"
)

// calledByOthers names the methods that net/http and Caddy's proxy call in the course of a request on what they were given.
var calledByOthers = []string{"RoundTrip", "Select", "Read", "Write", "Close", "Header", "WriteHeader", "Flush"}

// reached is what a request can reach.
type reached struct {
	receiver *types.Named
	funcs    map[*types.Func]*function
	types    map[*types.TypeName]bool

	decls   map[*types.Func]*function
	values  map[*types.Var]value // of the package variables
	named   []*types.Named       // all types of the module
	visited map[*types.Var]bool
}

// function is the declaration of a function and where it stands.
type function struct {
	decl *ast.FuncDecl
	pkg  *pkg
}

type value struct {
	expr ast.Expr
	pkg  *pkg
}

// reach follows the source from the method that root names, as Type.Method.
func reach(pkgs []*pkg, root string) (*reached, error) {
	r := &reached{
		funcs: map[*types.Func]*function{}, types: map[*types.TypeName]bool{},
		decls: map[*types.Func]*function{}, values: map[*types.Var]value{}, visited: map[*types.Var]bool{},
	}
	start := r.start(pkgs, root)
	if start == nil {
		return nil, fmt.Errorf("no method %s (want Type.Method, of a type below the folder)", root)
	}
	linked := importedBy(start.Pkg())
	for _, p := range pkgs {
		if linked[p.types] {
			r.declare(p)
		}
	}
	r.follow(start)
	for _, name := range calledByOthers {
		for _, t := range r.named {
			r.followMethod(t, name)
		}
	}
	return r, nil
}

// declare notes what a package declares.
func (r *reached) declare(p *pkg) {
	for id, obj := range p.info.Defs {
		if t, ok := obj.(*types.TypeName); ok && id.Name != "_" {
			if named, ok := t.Type().(*types.Named); ok {
				r.named = append(r.named, named)
			}
		}
	}
	for _, f := range p.files {
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if fn, ok := p.info.Defs[d.Name].(*types.Func); ok {
					r.decls[fn] = &function{d, p}
				}
			case *ast.GenDecl:
				r.declareValues(p, d)
			}
		}
	}
}

func (r *reached) declareValues(p *pkg, d *ast.GenDecl) {
	for _, spec := range d.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok || d.Tok != token.VAR {
			continue
		}
		for i, id := range v.Names {
			if obj, ok := p.info.Defs[id].(*types.Var); ok && len(v.Values) > 0 {
				r.values[obj] = value{v.Values[min(i, len(v.Values)-1)], p}
			}
		}
	}
}

// start finds the method that root names, and notes its receiver.
func (r *reached) start(pkgs []*pkg, root string) *types.Func {
	receiver, name, _ := strings.Cut(root, ".")
	for _, p := range pkgs {
		t, ok := p.types.Scope().Lookup(receiver).(*types.TypeName)
		if !ok {
			continue
		}
		obj, _, _ := types.LookupFieldOrMethod(types.NewPointer(t.Type()), false, p.types, name)
		if fn, ok := obj.(*types.Func); ok {
			r.receiver, _ = t.Type().(*types.Named)
			return fn
		}
	}
	return nil
}

// importedBy returns a package with all that it imports, directly or through others.
func importedBy(p *types.Package) map[*types.Package]bool {
	all := map[*types.Package]bool{}
	var add func(*types.Package)
	add = func(p *types.Package) {
		if all[p] {
			return
		}
		all[p] = true
		for _, i := range p.Imports() {
			add(i)
		}
	}
	add(p)
	return all
}

func (r *reached) follow(fn *types.Func) {
	fn = fn.Origin()
	d := r.decls[fn]
	if d == nil || r.funcs[fn] != nil {
		return
	}
	r.funcs[fn] = d
	if recv := fn.Signature().Recv(); recv != nil {
		r.note(recv.Type())
	}
	r.scan(d.decl, d.pkg)
}

// scan follows everything that a piece of source names.
func (r *reached) scan(n ast.Node, p *pkg) {
	ast.Inspect(n, func(n ast.Node) bool {
		if e, ok := n.(ast.Expr); ok {
			r.note(p.info.TypeOf(e))
		}
		id, ok := n.(*ast.Ident)
		if !ok {
			return true
		}
		switch obj := p.info.Uses[id].(type) {
		case *types.Func:
			r.followUse(obj)
		case *types.Var:
			if v, ok := r.values[obj]; ok && !r.visited[obj] {
				r.visited[obj] = true
				r.scan(v.expr, v.pkg)
			}
		}
		return true
	})
}

// followUse follows a function, or for the method of an interface all methods that may be meant.
func (r *reached) followUse(fn *types.Func) {
	recv := fn.Signature().Recv()
	if recv == nil || !types.IsInterface(recv.Type()) {
		r.follow(fn)
		return
	}
	iface := recv.Type().Underlying().(*types.Interface)
	for _, t := range r.named {
		if types.Implements(types.NewPointer(t), iface) {
			r.followMethod(t, fn.Name())
		}
	}
}

func (r *reached) followMethod(t *types.Named, name string) {
	if types.IsInterface(t) {
		return
	}
	obj, _, _ := types.LookupFieldOrMethod(types.NewPointer(t), false, t.Obj().Pkg(), name)
	if fn, ok := obj.(*types.Func); ok {
		r.follow(fn)
	}
}

// note counts the type of a value, below pointers and the like, if it is one of the module's.
func (r *reached) note(t types.Type) {
	switch t := t.(type) {
	case *types.Pointer:
		r.note(t.Elem())
	case *types.Slice:
		r.note(t.Elem())
	case *types.Map:
		r.note(t.Key())
		r.note(t.Elem())
	case *types.Named:
		for _, n := range r.named {
			if n == t.Origin() {
				r.types[n.Obj()] = true
			}
		}
	}
}

func (r *reached) lines() int {
	n := 0
	code := map[string]map[int]bool{}
	for _, f := range r.funcs {
		from, to := f.pkg.fset.Position(f.decl.Pos()), f.pkg.fset.Position(f.decl.End())
		if code[from.Filename] == nil {
			code[from.Filename] = codeLines(from.Filename)
		}
		for line := from.Line; line <= to.Line; line++ {
			if code[from.Filename][line] {
				n++
			}
		}
	}
	return n
}

func (r *reached) files() map[string]bool {
	files := map[string]bool{}
	for _, f := range r.funcs {
		files[f.pkg.fset.Position(f.decl.Pos()).Filename] = true
	}
	return files
}

// of returns how many functions and types of a package were reached.
func (r *reached) of(p *pkg) (funcs, named int) {
	for _, f := range r.funcs {
		if f.pkg == p {
			funcs++
		}
	}
	for t := range r.types {
		if t.Pkg() == p.types {
			named++
		}
	}
	return funcs, named
}

// methodsOf counts the methods that the source declares on a type, and the files that they stand in.
func (r *reached) methodsOf(t *types.Named) (methods, files int) {
	in := map[string]bool{}
	for m := range t.Methods() {
		methods++
		d := r.decls[m]
		in[d.pkg.fset.Position(d.decl.Pos()).Filename] = true
	}
	return methods, len(in)
}
