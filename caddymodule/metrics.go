package caddymodule

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
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

	containerErrors *prometheus.CounterVec
	analyses        *prometheus.CounterVec
	aborted         *prometheus.CounterVec
	own             prometheus.Histogram
	answerBytes     prometheus.Histogram
	pruned          prometheus.Counter
	refreshes       *prometheus.CounterVec

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
			Help:    "Time from the first look at a capsule until its decision, or the app's request with it, is ready: upload is the client's part, queue is waiting for capacity, oz is Oz's, total is all.",
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
		containerErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "container_errors_total",
			Help: "Capsules that Oz refused, by its error_code.",
		}, []string{"error_code"}),
		analyses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "analyses_total",
			Help: "Analyses in Oz's answers, by type and how they ended, before anything else had a say in the decision.",
		}, []string{"type", "resolution_status"}),
		aborted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "upload_aborted_total",
			Help: "Uploads that ended before the capsule was whole, by cause.",
		}, []string{"cause"}),
		own: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "own_seconds",
			Help:    "Time that the gateway itself adds to a capsule: everything until the app's request is ready that is neither the client's, Oz's, the app's nor waiting.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25},
		}),
		answerBytes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "answer_bytes",
			Help:    "Size of Oz's answers to capsules and to face matching, best shots included.",
			Buckets: prometheus.ExponentialBuckets(1<<10, 4, 9), // 1 KiB to 64 MiB
		}),
		pruned: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "pruned_bytes_total",
			Help: "Bytes of best shots that were cut out of Oz's answers.",
		}),
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "token_refreshes_total",
			Help: "Access tokens that were asked for, by logging in or by refreshing one, by result: issued, or the reason why not.",
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
		m.aborted.WithLabelValues(string(cause)) // once part of the capsule had come
	}
	for _, result := range tokenResults {
		m.tokens.WithLabelValues(result)
	}
	for _, result := range refreshResults {
		m.refreshes.WithLabelValues(result)
	}
	for _, code := range oz.ContainerCodes() {
		m.containerErrors.WithLabelValues(strconv.Itoa(code))
	}
	for _, typ := range analysisNames {
		for _, status := range analysisStatuses {
			m.analyses.WithLabelValues(typ, status)
		}
	}
	for _, cause := range abortCauses {
		m.aborted.WithLabelValues(cause.name)
	}
	m.aborted.WithLabelValues(abortUnreadable)
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
		m.containerErrors, m.analyses, m.aborted, m.own, m.answerBytes, m.pruned, m.refreshes,
		m.replays, m.replayForgotten, m.storeTime, m.storeErrors,
		gauges{inForce},
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

func (m *metrics) decided(res *Result, total, own time.Duration) {
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
	m.own.Observe(own.Seconds())
	m.capsuleBytes.Observe(float64(res.upload.Bytes))
}

// otherLabel stands for all words of Oz that nobody has heard of: labels come
// from closed sets. Caddy's own metrics write it in this way.
const otherLabel = "_other"

var (
	analysisNames    = []string{oz.Quality, oz.Biometry, otherLabel}
	analysisStatuses = append(oz.AnalysisStatuses(), otherLabel)
)

func labelOf(known []string, word string) string {
	if slices.Contains(known, word) {
		return word
	}
	return otherLabel
}

// received counts what came in, from the client and from Oz, whatever was
// decided by it.
func (m *metrics) received(res *Result) {
	if cause := abortCause(res); cause != "" {
		m.aborted.WithLabelValues(cause).Inc()
	}
	m.answered(res.liveness)
	if res.match != nil {
		m.answered(res.match.answer)
	}
}

func (m *metrics) answered(a ozclient.Answer) {
	if a.Status == 0 {
		return
	}
	m.answerBytes.Observe(float64(a.Bytes))
	m.pruned.Add(float64(a.Cut))
	if a.Verdict.Reason == oz.Container {
		m.containerErrors.WithLabelValues(strconv.Itoa(a.Verdict.Error.Code)).Inc()
	}
	if a.Verdict.Folder == nil {
		return
	}
	for _, analysis := range a.Verdict.Folder.Analyses {
		m.analyses.WithLabelValues(labelOf(analysisNames, analysis.Type), labelOf(analysisStatuses, analysis.ResolutionStatus)).Inc()
	}
}

// abortCauses say what ended an upload.
var abortCauses = []struct {
	fault error
	name  string
}{
	{upload.ErrGone, "gone"},
	{upload.ErrStalled, "stalled"},
	{upload.ErrTimeout, "timeout"},
	{upload.ErrSiteTimeout, "site_timeout"},
	{upload.ErrShort, "short"},
	{upload.ErrTooLarge, "too_large"},
}

// abortUnreadable is for bad framing, and for all that is not listed above.
const abortUnreadable = "unreadable"

// abortCause returns what ended the upload before it was whole; empty if
// nothing did, or if it had not begun.
func abortCause(res *Result) string {
	switch {
	case res.upload.Received || res.upload.Bytes == 0:
		return ""
	case res.busy != "":
		return string(res.busy)
	}
	fault := res.upload.Fault
	if fault == nil { // the client left while nothing was read, if it is at fault at all
		fault = res.fault
	}
	if fault == nil {
		return ""
	}
	if _, ofSite := errors.AsType[*http.MaxBytesError](fault); ofSite { // by Caddy's request_body directive
		return "too_large"
	}
	for _, cause := range abortCauses {
		if errors.Is(fault, cause.fault) {
			return cause.name
		}
	}
	return abortUnreadable
}

// refreshResults are the words for what came of an access token.
var refreshResults = []string{
	tokenIssued, string(oz.Unauthorized), string(oz.Overloaded), string(oz.TooLargeForOz), string(oz.UnexpectedStatus),
	string(oz.MalformedAnswer), string(oz.Unreachable), string(oz.ConnectionLost), string(oz.Timeout),
}

// tokenRefreshed counts an access token that came, or did not for a reason.
func (m *metrics) tokenRefreshed(reason oz.Reason) {
	result := tokenIssued
	if reason != "" {
		result = string(reason)
	}
	m.refreshes.WithLabelValues(result).Inc()
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
