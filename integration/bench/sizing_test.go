package main

import (
	"math"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Figures are of the time in which the meter ran: what ended before or after it counts for nothing, and what held a slot at its
// beginning or end counts for its part.
func TestReckon(t *testing.T) {
	m := &meter{from: at(10), to: at(20), gatewayCPU: 60 * time.Millisecond, held: 5, read: 100, written: 50}
	answers := []response{servedAt(8, 9), servedAt(9, 11), servedAt(9, 15), servedAt(9, 19), servedAt(19, 21), refusedAt(12, time.Second)}
	line := func(end, oz, queue float64) logLine { return logLine{Time: seconds(at(end)), AtOz: oz, Queue: queue} }
	lines := []logLine{line(9, 1, 9), line(11, 2, 0), line(15, 2, 0.1), line(19, 5, 0.2), line(21, 2, 9), {Time: seconds(at(12)), Queue: 9}}
	r, err := reckon(m, 2, answers, lines)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]float64{
		"rate": {r.Rate, 0.3}, "busy": {r.Busy, (1 + 2 + 5 + 1) / 20.0}, "hold": {r.hold.Seconds(), 3}, "CPU": {r.CPU, 0.02},
		"refused": {float64(r.refused), 1}, "waited": {r.Waits.Share, 2.0 / 3}, "mean": {r.Waits.Mean, 0.1}, "median": {r.Waits.P50, 0.1},
		"95 %": {r.Waits.P95, 0.2}, "received": {r.Client, 10}, "sent": {r.ToOz, 5}, "held": {r.Held, 5},
	} {
		if math.Abs(c[0]-c[1]) > 1e-6 {
			t.Errorf("%s: got %v, want %v", name, c[0], c[1])
		}
	}
	for want, bad := range map[string]response{
		"no answer": {err: errLeft}, "answered with 502": {status: 502, problem: true}, "answered with 503": {status: 503},
	} {
		if _, err := reckon(m, 2, append(answers, bad), lines); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if _, err := reckon(m, 2, answers[:1], lines); err == nil {
		t.Error("figures of no capsule")
	}
}

func TestSizing(t *testing.T) {
	t.Parallel()
	var stdout, stderr strings.Builder
	args := []string{"sizing", "--caddy", caddy(t), "--for", "2s", "--cases", "three-slots", "--redis", ""}
	if err := execute(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	const row = ` +\d+(\.\d+)? +\d+(\.\d+)? +[+-]\d+\.\d %  `
	for _, want := range []string{
		`three-slots: 1440 capsules a minute of 50000, analyses of 100ms, uploads of 0s, 3 slots, for 2s`,
		`\n  capsules` + row + `a second\n`, `\n  slots busy` + row, `\n  CPU per capsule` + row, `\n  sent` + row,
		`\n  cores in use, of \d+: gateway \d`,
	} {
		if !regexp.MustCompile(want).MatchString(stdout.String()) {
			t.Errorf("no %s in\n%s", want, stdout.String())
		}
	}
}

func TestFigure(t *testing.T) {
	for x, want := range map[float64]string{0: "0.00", 0.0123: "0.01", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 12345: "12345"} {
		if got := figure(x); got != want {
			t.Errorf("%v: got %s, want %s", x, got, want)
		}
	}
}
