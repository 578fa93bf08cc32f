package caddymodule

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// gauges collects what the config in force says, when it is asked. A gauge that
// is set with each config would be wrong after one that failed to load, and
// after one that has fewer ways to Oz.
type gauges struct {
	wanted func() func(config any) bool
}

var (
	slotsGauge = gaugeDesc("slots",
		"How many capsules may be at Oz at once, over all ways to Oz that have a limit. 0: none has.")
	queueGauge = gaugeDesc("queue_limit",
		"How many capsules may wait for a slot, over all ways to Oz that have slots. 0: none has, or no capsule waits.")
	memoryGauge = gaugeDesc("memory_limit_bytes",
		"How much memory capsules may hold while they are received and wait for a slot, over all ways to Oz. 0: none has such a limit.")
	sharedGauge = gaugeDesc("slots_shared",
		"1: slots are counted over all gateways. 0: a store doesn't answer, and the gateway continues with its share. Absent without shared.")
	expiryGauge = gaugeDesc("access_token_expiry_timestamp_seconds",
		"When the first of the access tokens expires. 0: an account has none at the moment. Absent without credentials.")
)

func gaugeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "oz_instant", name), help, nil, nil)
}

// Describe implements prometheus.Collector.
func (gauges) Describe(to chan<- *prometheus.Desc) {
	for _, desc := range [...]*prometheus.Desc{slotsGauge, queueGauge, memoryGauge, sharedGauge, expiryGauge} {
		to <- desc
	}
}

// Collect implements prometheus.Collector.
func (g gauges) Collect(to chan<- prometheus.Metric) {
	var slots, queue int
	var memory int64
	var shared []upload.SharedStatus
	var tokens []*ozclient.TokenStatus
	for _, users := range waysOf(g.wanted()) {
		gate := users[0].gate.Status()
		slots, queue, memory = slots+gate.Slots, queue+gate.Queue, memory+gate.MemoryBytes
		if gate.Shared != nil {
			shared = append(shared, *gate.Shared)
		}
		for _, u := range users {
			if t := u.client.AccessToken(); t != nil && t.State != ozclient.TokenFixed {
				tokens = append(tokens, t)
			}
		}
	}
	send := func(desc *prometheus.Desc, value float64) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
	send(slotsGauge, float64(slots))
	send(queueGauge, float64(queue))
	send(memoryGauge, float64(memory))
	if len(shared) > 0 {
		send(sharedGauge, sharedByAll(shared))
	}
	if len(tokens) > 0 {
		send(expiryGauge, firstExpiry(tokens))
	}
}

// sharedByAll returns 1 if all stores answer.
func sharedByAll(list []upload.SharedStatus) float64 {
	for _, s := range list {
		if s.Alone {
			return 0
		}
	}
	return 1
}

// firstExpiry returns the earliest expiry, or 0 if there is a token missing.
func firstExpiry(tokens []*ozclient.TokenStatus) float64 {
	first := tokens[0].Expires
	for _, t := range tokens {
		if t.Expires.IsZero() {
			return 0
		}
		if t.Expires.Before(first) {
			first = t.Expires
		}
	}
	return float64(first.UnixMilli()) / 1000
}
