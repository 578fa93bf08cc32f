package main

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	none, all := math.Inf(-1), math.Inf(1)
	for _, c := range []struct {
		figures []float64
		want    summary
	}{
		{[]float64{3}, summary{3, 3, 3, none, all}},
		{[]float64{4, 2}, summary{2, 3, 4, none, all}},
		{[]float64{9, 1, 5}, summary{1, 5, 9, none, all}},
		{[]float64{1, 100, 2, 3}, summary{1, 2.5, 100, none, all}},
		{[]float64{6, 5, 4, 3, 2, 1}, summary{1, 3.5, 6, 1, 6}},
		{[]float64{1, 2, 3, 4, 5, 6, 7, 8, 9}, summary{1, 5, 9, 2, 8}},
	} {
		given := slices.Clone(c.figures)
		if got := summarize(c.figures); got != c.want {
			t.Errorf("%v: got %v, want %v", c.figures, got, c.want)
		}
		if !slices.Equal(given, c.figures) {
			t.Errorf("%v was put in another order: its pairs are lost", given)
		}
	}
}

// The table is that of the sign test at 5 %, two-sided.
func TestIntervalOfTheMedian(t *testing.T) {
	for n, want := range map[int]int{1: 0, 5: 0, 6: 1, 8: 1, 9: 2, 11: 2, 12: 3, 15: 4, 20: 6, 21: 6, 25: 8, 30: 10, 50: 18, 100: 40} {
		if got := outside(n); got != want {
			t.Errorf("%d figures: the interval begins with number %d, want %d", n, got, want)
		}
	}
}

// A disturbance that lasts over a pair of measurements must not show.
func TestRatiosArePaired(t *testing.T) {
	var p pairs
	for range 2 {
		p.add(1, 2)
		p.add(50, 100)
		p.add(6, 6)
	}
	f := finding{pairs: p, goal: 1}
	if got := p.ratios(); !slices.Equal(got, []float64{0.5, 0.5, 1, 0.5, 0.5, 1}) {
		t.Errorf("ratios %v", got)
	}
	if f.ratio().median != 0.5 || !f.withinGoal() {
		t.Errorf("ratio %v", f.ratio())
	}
	f.goal = 0.9 // the median is below it, and the interval reaches over it
	if f.withinGoal() {
		t.Errorf("%v is within %v", f.ratio(), f.goal)
	}
}

func TestPrint(t *testing.T) {
	f := finding{title: "Work", plain: peer{name: "plain Caddy", note: "as it is"}, unit: "ms", goal: 1.2}
	for _, ours := range []float64{1.3, 1.25, 1, 1.25, 1.25, 1.25} {
		f.pairs.add(ours, 1)
	}
	var out strings.Builder
	f.print(&out)
	const want = `Work
(as it is)
                     min    median       max    interval of median
  oz_instant        1.00      1.25      1.30      1.00 to     1.30  ms
  plain Caddy       1.00      1.00      1.00      1.00 to     1.00  ms
  ratio             1.00      1.25      1.30      1.00 to     1.30  within 1.20: no
`
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
	f.goal = 1.3 // at most
	out.Reset()
	if f.print(&out); !strings.Contains(out.String(), ": yes\n") {
		t.Errorf("got\n%s", out.String())
	}
}
