package caddymodule

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// metrics are the collectors of all oz_instant handlers of the process. There
// is one set: Caddy makes a new registry for every config that it loads, and
// counts that started at zero with each reload would be worth little. Labels
// come from closed sets.
type metrics struct {
	decisions    *prometheus.CounterVec
	refusals     *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	capsuleBytes prometheus.Histogram
	inFlight     prometheus.Gauge
	queued       prometheus.Gauge
	busy         *prometheus.CounterVec
	memory       prometheus.Gauge
	tokens       *prometheus.CounterVec

	replays         *prometheus.CounterVec
	replayForgotten prometheus.Counter
	storeTime       *prometheus.HistogramVec
	storeErrors     *prometheus.CounterVec
}

var sharedMetrics = newMetrics()

func newMetrics() *metrics {
	const namespace, subsystem = "caddy", "oz_instant"
	m := &metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "decisions_total",
			Help: "Capsules decided, by decision and reason.",
		}, []string{"decision", "reason"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "refusals_total",
			Help: "Requests on the matched path that were refused without a decision, by problem.",
		}, []string{"problem"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "duration_seconds",
			Help:    "Time from the first look at a capsule to its decision: upload is the client's part, queue is waiting for capacity, oz is Oz's, total is all.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120},
		}, []string{"phase"}),
		capsuleBytes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "capsule_bytes",
			Help:    "Size of the capsules that were judged.",
			Buckets: prometheus.ExponentialBuckets(64<<10, 2, 11), // 64 KiB to 64 MiB
		}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "in_flight",
			Help: "Capsules on their way to Oz or waiting for its answer.",
		}),
		queued: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "queued",
			Help: "Capsules that wait for a slot.",
		}),
		busy: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "capacity_refusals_total",
			Help: "Capsules refused for lack of capacity in this gateway, by cause: the queue was full, the wait too long, or no memory became free.",
		}, []string{"cause"}),
		memory: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "memory_bytes",
			Help: "Memory that capsules hold while they are received and wait for a slot.",
		}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "session_tokens_total",
			Help: "Session tokens that were asked for, by result: issued, or the reason why not.",
		}, []string{"result"}),
		replays: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "replay_total",
			Help: "Whole capsules that the replay guard looked at, by result: first was decided and is remembered, released was not decided, replayed was here before, error is a store that failed, allowed the same with a decision that stands.",
		}, []string{"result"}),
		replayForgotten: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "replay_forgotten_total",
			Help: "Claims that the replay guard's memory forgot before their end because it was full.",
		}),
		storeTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "replay_store_seconds",
			Help:    "Time that the replay guard's store took, by call.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1},
		}, []string{"call"}),
		storeErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "replay_store_errors_total",
			Help: "Calls of the replay guard's store that failed or took longer than a second, by call.",
		}, []string{"call"}),
	}
	m.zero()
	return m
}

// zero makes every series exist from the start, so that rates and alerts do
// not miss the first event.
func (m *metrics) zero() {
	for _, row := range oz.Outcomes() {
		m.decisions.WithLabelValues(string(row.Decision), string(row.Reason))
	}
	for _, row := range refusals {
		m.refusals.WithLabelValues(row.kind)
	}
	for _, cause := range upload.Causes() {
		m.busy.WithLabelValues(string(cause))
	}
	for _, result := range tokenResults {
		m.tokens.WithLabelValues(result)
	}
	for _, result := range replayResults {
		m.replays.WithLabelValues(result)
	}
	for _, name := range storeCalls {
		m.storeTime.WithLabelValues(name)
		m.storeErrors.WithLabelValues(name)
	}
	for _, phase := range [...]string{"upload", "queue", "oz", "total"} {
		m.duration.WithLabelValues(phase)
	}
}

// register adds the collectors to a config's registry. Several handlers of
// one config share it.
func (m *metrics) register(registry prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{
		m.decisions, m.refusals, m.duration, m.capsuleBytes, m.inFlight, m.queued, m.busy, m.memory, m.tokens,
		m.replays, m.replayForgotten, m.storeTime, m.storeErrors,
	} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

func (m *metrics) started() (done func()) {
	m.inFlight.Inc()
	return m.inFlight.Dec
}

// gauges are what capacity shows while it is in use.
func (m *metrics) gauges() upload.Gauges { return upload.Gauges{Queued: m.queued, Memory: m.memory} }

func (m *metrics) decided(res *Result, total time.Duration) {
	m.decisions.WithLabelValues(string(res.verdict.Decision), string(res.verdict.Reason)).Inc()
	m.duration.WithLabelValues("queue").Observe(res.queued.Seconds())
	if res.busy != "" {
		m.busy.WithLabelValues(string(res.busy)).Inc()
	}
	if res.refused != nil {
		return // nothing else was measured
	}
	m.duration.WithLabelValues("upload").Observe(res.uploadTime().Seconds())
	m.duration.WithLabelValues("oz").Observe(res.liveness.Time.Seconds())
	m.duration.WithLabelValues("total").Observe(total.Seconds())
	m.capsuleBytes.Observe(float64(res.upload.Bytes))
}

// storeCalled counts a call of the replay guard's store. A claim of
// another attempt isn't a failure.
func (m *metrics) storeCalled(name string, took time.Duration, err error) {
	m.storeTime.WithLabelValues(name).Observe(took.Seconds())
	if err != nil && !errors.Is(err, ErrClaimed) {
		m.storeErrors.WithLabelValues(name).Inc()
	}
}

func (m *metrics) guarded(g guarded) {
	if g.result != "" {
		m.replays.WithLabelValues(g.result).Inc()
	}
}

func (m *metrics) refused(kind string) {
	m.refusals.WithLabelValues(kind).Inc()
}

func (m *metrics) sessionToken(result string) {
	m.tokens.WithLabelValues(result).Inc()
}
