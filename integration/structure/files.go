package main

import "slices"

// graph holds, for each file by its number, the files of its package that it depends on.
type graph []map[int]bool

func (p *pkg) fileGraph() graph {
	g := make(graph, len(p.files))
	number := map[string]int{}
	for i, f := range p.files {
		number[p.fset.Position(f.Pos()).Filename] = i
		g[i] = map[int]bool{}
	}
	for id, obj := range p.info.Uses {
		if obj.Pkg() != p.types {
			continue
		}
		from, to := number[p.fset.Position(id.Pos()).Filename], number[p.fset.Position(obj.Pos()).Filename]
		if from != to {
			g[from][to] = true
		}
	}
	return g
}

func (g graph) edges() int {
	n := 0
	for _, to := range g {
		n += len(to)
	}
	return n
}

// cycles returns the number of each file's cycle. Files outside of every cycle have one of their own. A cycle has a higher number
// than those that it depends on (Tarjan).
func (g graph) cycles() []int {
	var (
		index, low = make([]int, len(g)), make([]int, len(g))
		cycle      = make([]int, len(g))
		stack      []int
		next, last int
		visit      func(int)
	)
	visit = func(v int) {
		next++
		index[v], low[v] = next, next
		stack = append(stack, v)
		for w := range g[v] {
			if index[w] == 0 {
				visit(w)
				low[v] = min(low[v], low[w])
			} else if cycle[w] == 0 {
				low[v] = min(low[v], index[w])
			}
		}
		if low[v] != index[v] {
			return
		}
		last++
		at := slices.Index(stack, v)
		for _, w := range stack[at:] {
			cycle[w] = last
		}
		stack = stack[:at]
	}
	for v := range g {
		if index[v] == 0 {
			visit(v)
		}
	}
	return cycle
}

// largestCycle returns how many files the largest cycle has; 1 means that there is none.
func (g graph) largestCycle() int {
	size := map[int]int{}
	largest := 0
	for _, c := range g.cycles() {
		size[c]++
		largest = max(largest, size[c])
	}
	return largest
}

// layers returns the length of the longest chain of dependencies, each cycle counted as one file.
func (g graph) layers() int {
	cycle := g.cycles()
	layer := map[int]int{}
	highest := 0
	for c := 1; c <= slices.Max(cycle); c++ {
		layer[c] = 1
		for v, to := range g {
			if cycle[v] != c {
				continue
			}
			for w := range to {
				if cycle[w] != c {
					layer[c] = max(layer[c], layer[cycle[w]]+1)
				}
			}
		}
		highest = max(highest, layer[c])
	}
	return highest
}
