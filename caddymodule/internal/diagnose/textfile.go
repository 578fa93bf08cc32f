package diagnose

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// WriteTextfile writes what a run of Check found as a file for the textfile
// collector of Prometheus's node_exporter. It replaces the file as a whole, so
// that a scrape never sees half of one, and anybody may read it: the exporter
// is another user.
func WriteTextfile(name string, reports []Report, ran time.Time) error {
	registry := prometheus.NewRegistry()
	passed := upstreamGauge(registry, "passed", "Whether the last check of this upstream passed: nothing failed and nothing is unknown.")
	run := upstreamGauge(registry, "run_timestamp_seconds", "When the last check of this upstream began.")
	expiry := upstreamGauge(registry, "certificate_expiry_timestamp_seconds", "When the certificate that this upstream showed ends.")
	for _, f := range findings(reports) {
		passed.WithLabelValues(f.To).Set(0)
		if f.Well {
			passed.WithLabelValues(f.To).Set(1)
		}
		run.WithLabelValues(f.To).Set(float64(ran.Unix()))
		if !f.CertificateEnds.IsZero() {
			expiry.WithLabelValues(f.To).Set(float64(f.CertificateEnds.Unix()))
		}
	}
	return prometheus.WriteToTextfile(name, registry)
}

func upstreamGauge(registry *prometheus.Registry, name, help string) *prometheus.GaugeVec {
	gauge := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "oz_instant", Subsystem: "check", Name: name, Help: help}, []string{"upstream"})
	registry.MustRegister(gauge)
	return gauge
}

// findings joins the reports of an upstream that several blocks share: it is
// well where it is for each of them.
func findings(reports []Report) map[string]Report {
	found := make(map[string]Report)
	for _, r := range reports {
		r.To = strings.ToValidUTF8(r.To, "\uFFFD") // a label must be, and an argument need not be
		if other, again := found[r.To]; again {
			r.Well = r.Well && other.Well
			r.CertificateEnds = earlier(r.CertificateEnds, other.CertificateEnds)
		}
		found[r.To] = r
	}
	return found
}

// earlier returns the earlier of two times, either of which may be unknown.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
