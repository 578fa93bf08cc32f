package main

import (
	"fmt"
	"io"
	"math"
	"slices"
)

// pairs are figures of two peers, each pair taken one right after the other. Whatever else the machine does at that time disturbs
// both, so that their ratio says more than either of them.
type pairs struct {
	ours, plain []float64
}

func (p *pairs) add(ours, plain float64) {
	p.ours, p.plain = append(p.ours, ours), append(p.plain, plain)
}

func (p *pairs) ratios() []float64 {
	out := make([]float64, len(p.ours))
	for i := range out {
		out[i] = p.ours[i] / p.plain[i]
	}
	return out
}

// summary describes a row of figures. It has no mean, which one disturbed figure would move.
type summary struct {
	min, median, max float64
	low, high        float64 // the median lies between them, with a confidence of 95 % or more
}

// summarize takes one figure or more.
func summarize(figures []float64) summary {
	sorted := slices.Sorted(slices.Values(figures))
	n := len(sorted)
	s := summary{min: sorted[0], median: (sorted[(n-1)/2] + sorted[n/2]) / 2, max: sorted[n-1], low: math.Inf(-1), high: math.Inf(1)}
	if k := outside(n); k > 0 {
		s.low, s.high = sorted[k-1], sorted[n-k]
	}
	return s
}

// outside returns the highest k for which the k-th lowest and the k-th highest of n figures enclose the median with a confidence of
// 95 %, whatever their distribution: each figure lies below the true median with a probability of one half, so that how many do
// is binomially distributed. It returns 0 for fewer than six figures, of which not even the lowest and the highest suffice.
func outside(n int) int {
	probability, tail := math.Pow(0.5, float64(n)), 0.0 // that k figures lie below, and that at most k do
	for k := range n {
		if tail += probability; tail > 0.025 {
			return k
		}
		probability *= float64(n-k) / float64(k+1)
	}
	return 0
}

// finding is a comparison and its goal.
type finding struct {
	title string
	plain peer // what oz_instant is compared with
	unit  string
	pairs pairs
	goal  float64 // for the median of the ratios, at most
}

func (f finding) ratio() summary { return summarize(f.pairs.ratios()) }

// withinGoal reports whether the goal is met beyond doubt: by the whole interval of the median.
func (f finding) withinGoal() bool { return f.ratio().high <= f.goal }

// print writes the finding for people. The ratio in the last row is the median of the pairs' ratios, and not the ratio of the
// medians above it.
func (f finding) print(out io.Writer) {
	fmt.Fprintf(out, "%s\n(%s)\n", f.title, f.plain.note)
	fmt.Fprintf(out, "  %-12s %9s %9s %9s  %20s\n", "", "min", "median", "max", "interval of median")
	printRow(out, ozInstant.name, summarize(f.pairs.ours), f.unit)
	printRow(out, f.plain.name, summarize(f.pairs.plain), f.unit)
	printRow(out, "ratio", f.ratio(), fmt.Sprintf("within %.2f: %s", f.goal, yesNo(f.withinGoal())))
}

func printRow(out io.Writer, name string, s summary, note string) {
	fmt.Fprintf(out, "  %-12s %9.2f %9.2f %9.2f  %8.2f to %8.2f  %s\n", name, s.min, s.median, s.max, s.low, s.high, note)
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}
