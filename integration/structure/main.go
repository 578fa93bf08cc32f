// Command structure prints how the packages below a folder are built: how their files depend on each other, and how much code one
// request crosses.
//
//	go run ./integration/structure                       # caddymodule of this checkout
//	go run ./integration/structure -C ../older            # of another one
//
// # What is counted
//
//   - A file depends on another of its package if it uses an identifier that the other declares, also a field or a method. A cycle is
//     a set of files of which each depends on all others, directly or through others.
//   - Reachable is each function that the body of a reachable function names, called or not, and the functions in the initial values
//     of the package variables that it names. A call of an interface's method reaches that method on every type of the module that
//     implements the interface. Caddy's proxy and net/http call methods, too, which no source here shows: those of the names in
//     calledByOthers count as reachable on every type of the packages that the root imports. So the count is rather high than low.
//   - A type is reachable if a reachable function has it as its receiver, names it, or handles a value of it.
//   - Lines are those with code: neither blank nor comment, and of no test.
package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func main() {
	if command().Execute() != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var dir, root string
	cmd := &cobra.Command{
		Use:          "structure [folder]",
		Short:        "Print how the packages below a folder of this module are built (default: caddymodule)",
		Args:         cobra.MaximumNArgs(1),
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			folder := "caddymodule"
			if len(args) > 0 {
				folder = args[0]
			}
			pkgs, err := load(dir, folder)
			if err != nil {
				return err
			}
			printPackages(cmd.OutOrStdout(), pkgs)
			return printReachable(cmd.OutOrStdout(), pkgs, root)
		},
	}
	cmd.Flags().StringVarP(&dir, "dir", "C", ".", "checkout to look at")
	cmd.Flags().StringVar(&root, "root", "Handler.ServeHTTP", "method that a request starts with")
	return cmd
}

func printPackages(w io.Writer, pkgs []*pkg) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "files\tdependencies\tlargest cycle\tlayers\tlines\t  package")
	all, lines := 0, 0
	for _, p := range pkgs {
		g := p.fileGraph()
		cycle := g.largestCycle()
		fmt.Fprintf(table, "%d\t%d\t%d\t%d\t%d\t  %s\n", len(p.files), g.edges(), cycle, g.layers(), p.lines(), p.path)
		all += len(p.files)
		lines += p.lines()
	}
	fmt.Fprintf(table, "%d\t\t\t\t%d\t  all\n", all, lines)
	table.Flush()
}

func printReachable(w io.Writer, pkgs []*pkg, root string) error {
	r, err := reach(pkgs, root)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\nreachable from %s: %d functions with %d lines, %d types, %d files\n",
		root, len(r.funcs), r.lines(), len(r.types), len(r.files()))
	for _, p := range pkgs {
		funcs, types := r.of(p)
		fmt.Fprintf(w, "  %4d functions  %3d types  %s\n", funcs, types, p.path)
	}
	methods, files := r.methodsOf(r.receiver)
	fmt.Fprintf(w, "\nmethods of %s: %d in %d files\n", r.receiver.Obj().Name(), methods, files)
	return nil
}
