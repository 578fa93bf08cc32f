package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
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

// What comes from Oz is counted, for face matching, too, and adds no series,
// whatever its words are. No answer is none.
func TestOzIsCounted(t *testing.T) {
	m := newMetrics()
	series := testutil.CollectAndCount(m.analyses)
	send := func(oz roundTrip, fields string) {
		h := newHandler(t, oz, fields)
		h.metrics = m
		h.posted(t, &photoApp{serve: serves(200, testPNG)}, "capsule")
	}
	send(matching(answers(201, matched("SUCCESS", "DECLINED"))), `{"biometry": {"reference": "/photo"}}`)
	received := float64(len(success()) + len(matched("SUCCESS", "DECLINED")))
	if count, sum := observed(t, m.answerBytes); count != 2 || sum != received {
		t.Errorf("%d answers of %v bytes, want 2 of %v", count, sum, received)
	}
	pruned := testutil.ToFloat64(m.pruned)
	if n := float64(len(testShot)); pruned < n || pruned > n+40 {
		t.Errorf("%v bytes were pruned, for a best shot of %v", pruned, n)
	}
	send(answers(400, `{"error_code": 14}`), "")
	send(answers(201, strings.Replace(testFolder("FINISHED", "SUCCESS", "DONE", ""), "QUALITY", "DOCUMENTS", 1)), "")
	send(fails(0, errors.New("no route")), "")
	for what, c := range map[string]prometheus.Counter{
		"QUALITY": m.analyses.WithLabelValues(oz.Quality, "SUCCESS"), "BIOMETRY": m.analyses.WithLabelValues(oz.Biometry, "DECLINED"),
		"unknown words": m.analyses.WithLabelValues(otherLabel, otherLabel), "code 14": m.containerErrors.WithLabelValues("14"),
	} {
		if n := testutil.ToFloat64(c); n != 1 {
			t.Errorf("%s: %v", what, n)
		}
	}
	if count, _ := observed(t, m.answerBytes); count != 4 {
		t.Errorf("%d answers, want 4", count)
	}
	if count, _ := observed(t, m.own); count != 4 {
		t.Errorf("%d own times, want 4", count)
	}
	if n := testutil.CollectAndCount(m.analyses); n != series {
		t.Errorf("%d series of %d", n, series)
	}
}

// A capsule that isn't admitted has been measured in nothing but its wait, and
// is no aborted upload before its first byte.
func TestRefusedIsNotMeasured(t *testing.T) {
	h := newHandler(t, neverAsked(t), `{"capacity": {"slots": 1, "queue": 0}}`)
	h.metrics = newMetrics()
	defer taken(t, h).Release(false)
	h.posted(t, noApp(t), "capsule")
	for what, c := range map[string]prometheus.Collector{"own": h.metrics.own, "bytes": h.metrics.capsuleBytes, "answer": h.metrics.answerBytes} {
		if count, _ := observed(t, c); count != 0 {
			t.Errorf("%s was measured", what)
		}
	}
	for _, cause := range upload.Causes() {
		if n := testutil.ToFloat64(h.metrics.aborted.WithLabelValues(string(cause))); n != 0 {
			t.Errorf("aborted by %s: %v", cause, n)
		}
	}
	if n := testutil.ToFloat64(h.metrics.busy.WithLabelValues(string(upload.CauseQueue))); n != 1 {
		t.Errorf("refused for the queue: %v", n)
	}
}

// An aborted upload is counted by what ended it: not a whole one, not one that
// never began, and not one that Oz answered early.
func TestAbortCauses(t *testing.T) {
	part := upload.State{Bytes: 7}
	for _, test := range []struct {
		name  string
		state upload.State
		busy  upload.Cause
		fault error
		want  string
	}{
		{"whole", upload.State{Bytes: 7, Received: true}, "", upload.ErrGone, ""},
		{"not begun", upload.State{}, "", upload.ErrStalled, ""},
		{"answered early", part, "", nil, ""},
		{"displaced", part, upload.CauseDisplaced, nil, "displaced"},
		{"left between reads", part, "", upload.ErrGone, "gone"},
		{"the upload knows better", upload.State{Bytes: 7, Fault: upload.ErrStalled}, "", upload.ErrGone, "stalled"},
		{"too large for the site", part, "", caddyhttp.Error(413, &http.MaxBytesError{Limit: 5}), "too_large"},
		{"too large", part, "", upload.ErrTooLarge, "too_large"},
		{"framed wrongly", part, "", upload.ErrUnreadable, "unreadable"},
	} {
		if got := abortCause(&Result{attempt: attempt{upload: test.state}, busy: test.busy, fault: test.fault}); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// Each access token that is asked for counts once: as issued, or by the reason
// why there is none.
func TestAccessTokensAreCounted(t *testing.T) {
	issued := fmt.Sprintf(`{"access_token": "a", "expire_token": "b", "expire_date": %d}`, time.Now().Add(time.Hour).Unix())
	for result, login := range map[string]roundTrip{
		tokenIssued: answers(200, issued), string(oz.Unauthorized): answers(403, `{"error_code": 3}`), string(oz.Unreachable): fails(0, errors.New("no route")),
	} {
		h := newHandler(t, func(req *http.Request) (*http.Response, error) {
			if req.URL.Path == oz.LoginPath {
				return login(req)
			}
			return answers(201, success())(req)
		}, `{"credentials": {"email": "`+result+`@example.com", "password": "one"}}`) // an account of its own
		counted := func(result string) float64 { return testutil.ToFloat64(h.metrics.refreshes.WithLabelValues(result)) }
		before := make(map[string]float64)
		for _, word := range refreshResults {
			before[word] = counted(word)
		}
		h.posted(t, new(testApp), "capsule")
		for _, word := range refreshResults {
			want := 0.0
			if word == result {
				want = 1
			}
			if n := counted(word) - before[word]; n != want {
				t.Errorf("%s: %s is counted %v times", result, word, n)
			}
		}
	}
}

// observed returns how often a histogram was observed, and the sum.
func observed(t *testing.T, c prometheus.Collector) (count uint64, sum float64) {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatal(families, err)
	}
	h := families[0].GetMetric()[0].GetHistogram()
	return h.GetSampleCount(), h.GetSampleSum()
}
