package observability

import (
	"flag"
	"os"
	"strings"
	"testing"
	"unicode"
)

var update = flag.Bool("update", false, "write dashboard.json")

// TestDashboardIsCurrent promises that dashboard.json is what New makes.
func TestDashboardIsCurrent(t *testing.T) {
	want, err := New().JSON()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("dashboard.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("dashboard.json")
	if err != nil || string(got) != string(want) {
		t.Errorf("dashboard.json isn't current (%v): go test ./integration/deploy/observability -update", err)
	}
}

// TestDashboardPanels promises an operator a question that each panel answers, what to do about it, and a unit, and Grafana a
// layout without overlaps and ids without repeats.
func TestDashboardPanels(t *testing.T) {
	ids, titles, taken := map[int]bool{}, map[string]bool{}, map[[2]int]string{}
	for _, p := range New().Panels {
		if ids[p.ID] || titles[p.Title] {
			t.Errorf("%q comes again, or its id %d", p.Title, p.ID)
		}
		ids[p.ID], titles[p.Title] = true, true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, is := taken[[2]int{x, y}]; is || x >= columns {
					t.Fatalf("%q overlaps %q, or leaves the grid", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		question, todo, asks := strings.Cut(p.Description, "? ")
		if !asks || !unicode.IsUpper(rune(question[0])) || len(todo) < 20 || !strings.HasSuffix(todo, ".") {
			t.Errorf("%q: the description isn't a question and what to do: %q", p.Title, p.Description)
		}
		if p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("%q has no unit or no query", p.Title)
		}
		for _, q := range p.Targets {
			// What has ended is below zero, and must be seen.
			if strings.HasSuffix(q.Expr, "- time()") != (p.FieldConfig.Defaults.Min == nil) {
				t.Errorf("%q: the axis ends where the values don't: %s", p.Title, q.Expr)
			}
			if strings.Contains(q.Expr, "caddy_") != strings.Contains(q.Expr, `job=~"$job", instance=~"$instance"`) {
				t.Errorf("%q doesn't follow the variables: %s", p.Title, q.Expr)
			}
			if strings.Contains(q.Expr, "@") || strings.Contains(q.Expr, "rate(") != strings.Contains(q.Expr, "[$__rate_interval]") {
				t.Errorf("%q: %s", p.Title, q.Expr)
			}
		}
	}
}
