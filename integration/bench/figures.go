package main

import (
	"fmt"
	"io"
	"slices"
)

// pairs are figures of two peers that were taken one right after the other. What else the machine does at that time troubles
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

// spread is what is told of a row of figures. There is no mean: one disturbed figure would move it.
type spread struct {
	min, median, max float64
}

// spreadOf is about one figure or more.
func spreadOf(figures []float64) spread {
	sorted := slices.Sorted(slices.Values(figures))
	n := len(sorted)
	return spread{min: sorted[0], median: (sorted[(n-1)/2] + sorted[n/2]) / 2, max: sorted[n-1]}
}

// finding is a comparison and what is wanted of it.
type finding struct {
	title string
	plain peer // what oz_instant is compared with
	unit  string
	pairs pairs
	goal  float64 // for the median of the ratios, at most
}

func (f finding) ratio() float64 { return spreadOf(f.pairs.ratios()).median }

func (f finding) withinGoal() bool { return f.ratio() <= f.goal }

// print writes the finding for people. The ratio in the last row is the median of the pairs' ratios, and not the ratio of the
// medians above it.
func (f finding) print(out io.Writer) {
	yes := "no"
	if f.withinGoal() {
		yes = "yes"
	}
	fmt.Fprintf(out, "%s\n(%s)\n", f.title, f.plain.note)
	fmt.Fprintf(out, "  %-12s %9s %9s %9s\n", "", "min", "median", "max")
	printRow(out, ozInstant.name, spreadOf(f.pairs.ours), f.unit)
	printRow(out, f.plain.name, spreadOf(f.pairs.plain), f.unit)
	printRow(out, "ratio", spreadOf(f.pairs.ratios()), fmt.Sprintf("within %.1f: %s", f.goal, yes))
}

func printRow(out io.Writer, name string, s spread, note string) {
	fmt.Fprintf(out, "  %-12s %9.2f %9.2f %9.2f  %s\n", name, s.min, s.median, s.max, note)
}
