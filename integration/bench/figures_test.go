package main

import (
	"slices"
	"strings"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		figures []float64
		want    spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{4, 2}, spread{2, 3, 4}},
		{[]float64{9, 1, 5}, spread{1, 5, 9}},
		{[]float64{1, 100, 2, 3}, spread{1, 2.5, 100}},
	} {
		given := slices.Clone(c.figures)
		if got := spreadOf(c.figures); got != c.want {
			t.Errorf("%v: got %v, want %v", c.figures, got, c.want)
		}
		if !slices.Equal(given, c.figures) {
			t.Errorf("%v was put in another order: its pairs are lost", given)
		}
	}
}

// A disturbance that lasts over a pair of measurements must not show.
func TestRatiosArePaired(t *testing.T) {
	var p pairs
	p.add(1, 2)
	p.add(50, 100)
	p.add(6, 6)
	f := finding{pairs: p, goal: 1}
	if got := p.ratios(); !slices.Equal(got, []float64{0.5, 0.5, 1}) {
		t.Errorf("ratios %v", got)
	}
	if f.ratio() != 0.5 || !f.withinGoal() {
		t.Errorf("ratio %v", f.ratio())
	}
}

func TestPrint(t *testing.T) {
	f := finding{title: "Work", plain: peer{name: "plain Caddy", note: "as it is"}, unit: "ms", goal: 1.2}
	f.pairs.add(1.3, 1)
	f.pairs.add(1.25, 1)
	f.pairs.add(1, 1)
	var out strings.Builder
	f.print(&out)
	const want = `Work
(as it is)
                     min    median       max
  oz_instant        1.00      1.25      1.30  ms
  plain Caddy       1.00      1.00      1.00  ms
  ratio             1.00      1.25      1.30  within 1.2: no
`
	if out.String() != want {
		t.Errorf("got\n%s", out.String())
	}
	f.goal = 1.25 // at most
	out.Reset()
	if f.print(&out); !strings.Contains(out.String(), ": yes\n") {
		t.Errorf("got\n%s", out.String())
	}
}
