package caddymodule

import (
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
	m.decided(newResult(judged(oz.Verdict{Decision: oz.Declined}), false), time.Second, 0)
	m.refused(kindMethod)
	if err := m.register(second); err != nil {
		t.Fatal(err)
	}
	m.decided(newResult(judged(oz.Verdict{Decision: oz.Declined}), false), time.Second, 0)

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
	for _, row := range oz.Outcomes() {
		if n := counter(t, registry, "caddy_oz_instant_decisions_total", string(row.Reason)); n != 0 {
			t.Errorf("%s: %v", row.Reason, n)
		}
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
