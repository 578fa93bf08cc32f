package caddymodule

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// Two handlers of one config share a registry, and a reload brings a new one:
// neither fails, and neither starts from zero.
func TestMetricsSurviveReloads(t *testing.T) {
	m := newMetrics()
	first, second := prometheus.NewPedanticRegistry(), prometheus.NewPedanticRegistry()
	for _, registry := range []*prometheus.Registry{first, first} {
		if err := m.register(registry); err != nil {
			t.Fatal(err)
		}
	}
	m.decided(outcome{verdict: oz.Verdict{Decision: oz.Declined}, capsuleBytes: 1}, time.Second)
	m.refused(kindMethod)
	if err := m.register(second); err != nil {
		t.Fatal(err)
	}
	m.decided(outcome{verdict: oz.Verdict{Decision: oz.Declined}, capsuleBytes: 1}, time.Second)

	for _, registry := range []*prometheus.Registry{first, second} {
		if n := counter(t, registry, "caddy_oz_instant_decisions_total", "DECLINED"); n != 2 {
			t.Errorf("%v decisions counted, want 2", n)
		}
		if n := counter(t, registry, "caddy_oz_instant_refusals_total", kindMethod); n != 1 {
			t.Errorf("%v refusals counted, want 1", n)
		}
	}
}

func counter(t *testing.T, g prometheus.Gatherer, name, label string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, pair := range metric.GetLabel() {
				if family.GetName() == name && pair.GetValue() == label {
					return metric.GetCounter().GetValue()
				}
			}
		}
	}
	t.Fatalf("no series %s with %q", name, label)
	return 0
}

// Every series stands at zero from the start, or an alert misses its first event.
func TestEverySeriesExistsFromTheStart(t *testing.T) {
	m := newMetrics()
	registry := prometheus.NewPedanticRegistry()
	if err := m.register(registry); err != nil {
		t.Fatal(err)
	}
	for _, reason := range oz.Reasons() {
		if n := counter(t, registry, "caddy_oz_instant_decisions_total", string(reason)); n != 0 {
			t.Errorf("%s: %v", reason, n)
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

// README lists the metrics that there are, and the refusals.
func TestReadmeNamesMetricsAndRefusals(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	if err := newMetrics().register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		wantRow(t, string(readme), family.GetName())
	}
	for _, kind := range refusalKinds {
		if kind != kindClientGone {
			wantRow(t, string(readme), kind)
		}
	}
	for _, name := range []string{headerDecision, headerReason, headerFolderID, headerResolutionStatus, headerQuality, headerErrorCode} {
		wantRow(t, string(readme), name)
	}
	for name := range options {
		wantRow(t, string(readme), name)
	}
}

func wantRow(t *testing.T, readme, word string) {
	t.Helper()
	if !strings.Contains(readme, "\n| `"+word+"`") {
		t.Errorf("README has no table row for %s", word)
	}
}

// Each row of README's decision table stands in the order and with the words
// and statuses of the code.
func TestReadmeDecisionTable(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := decisionRows(string(readme))
	outcomes := oz.Outcomes()
	if len(rows) != len(outcomes) {
		t.Fatalf("README has %d rows, the code %d", len(rows), len(outcomes))
	}
	for i, want := range outcomes {
		cells := strings.Split(rows[i], "|")
		decision, reason, end := strings.Trim(cells[3], " `"), strings.Trim(cells[4], " `"), strings.TrimSpace(cells[5])
		if decision != string(want.Decision) || reason != string(want.Reason) {
			t.Errorf("row %d: %s %s, want %s %s", i+1, decision, reason, want.Decision, want.Reason)
		}
		if reachesApp(want.Decision) {
			if end != "to the app" {
				t.Errorf("row %d: %s", i+1, end)
			}
			continue
		}
		p := verdictProblem(outcome{verdict: oz.Verdict{Decision: want.Decision, Reason: want.Reason}})
		if got := end[:3]; got != strconv.Itoa(p.Status) {
			t.Errorf("row %d: %s, the code answers %d", i+1, end, p.Status)
		}
	}
}

func decisionRows(readme string) (rows []string) {
	_, table, _ := strings.Cut(readme, "## Decisions")
	table, _, _ = strings.Cut(table, "\n## ")
	for line := range strings.Lines(table) {
		if len(line) > 2 && line[0] == '|' && line[2] >= '1' && line[2] <= '9' {
			rows = append(rows, line)
		}
	}
	return rows
}
