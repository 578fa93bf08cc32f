package main

import (
	"math"
	"regexp"
	"strings"
	"testing"
	"time"
)

// at is a time of a trial, in seconds.
func at(seconds float64) time.Time {
	return time.Unix(1_000_000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

func servedAt(begun, ended float64) response {
	return response{begun: at(begun), ended: at(ended), status: 200, sent: 1}
}

func refusedAt(t float64, retryAfter time.Duration) response {
	return response{begun: at(t), ended: at(t), status: 503, problem: true, retryAfter: retryAfter}
}

func TestBusy(t *testing.T) {
	r := result{trial: trial{slots: 2}, analysis: time.Second}
	for i := range 10 { // two slots in step, each 1.25 s for an analysis of 1 s
		end := 1.25 * float64(i/2+1)
		r.answers = append(r.answers, servedAt(0, end))
	}
	r.answers = append(r.answers, refusedAt(6.25, time.Second)) // the load lasts as long
	if err := r.sort(); err != nil {
		t.Fatal(err)
	}
	// From 1 s to 6.25 s each slot is busy for 0.25 s and then four times for 1 s.
	if got, want := r.busy(), 4.25/5.25; math.Abs(got-want) > 0.001 {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Slots that are taken away in the course of the load are missed, also if the answers until then came in time.
func TestStarvedOzIsNotBusy(t *testing.T) {
	r := result{trial: trial{slots: 1, attackers: 1}, analysis: time.Second}
	for i := range 5 {
		r.answers = append(r.answers, servedAt(0, float64(i+1)))
	}
	r.answers = append(r.answers, refusedAt(9, time.Second))
	if err := r.sort(); err != nil {
		t.Fatal(err)
	}
	if got := r.busy(); math.Abs(got-0.5) > 0.001 {
		t.Errorf("got %v", got)
	}
}

func TestRetryAfterIsRight(t *testing.T) {
	r := result{trial: trial{slots: 1}, analysis: time.Second}
	r.answers = []response{servedAt(0, 1), servedAt(0.1, 2), servedAt(0.2, 3), servedAt(2.5, 4)}
	r.answers = append(r.answers, refusedAt(0.5, 2*time.Second), refusedAt(0.5, 3*time.Second), refusedAt(5, time.Second))
	if err := r.sort(); err != nil {
		t.Fatal(err)
	}
	// At 0.5 s three are ahead, of which the last one is done at 3 s. The fourth came later.
	if got := r.toldRight(); got < 0.66 || got > 0.67 {
		t.Errorf("got %v", got)
	}
}

// A broken promise yields no figures.
func TestBrokenPromises(t *testing.T) {
	good := []response{servedAt(0, 1), servedAt(0, 2), refusedAt(0, time.Second)}
	for _, c := range []struct {
		name string
		bad  func(*response)
		want string
	}{
		{"Retry-After", func(a *response) { a.retryAfter = 0 }, "without Retry-After"},
		{"body", func(a *response) { a.sent = 5 }, "after 5 bytes"},
		{"document", func(a *response) { a.problem = false }, "answered with 503"},
		{"status", func(a *response) { a.status = 502 }, "answered with 502"},
		{"none", func(a *response) { a.status, a.err = 0, errLeft }, "no answer"},
	} {
		r := result{trial: trial{slots: 1}, answers: append([]response{}, good...)}
		if err := r.sort(); err != nil {
			t.Fatal(err)
		}
		r = result{trial: trial{slots: 1}, answers: append([]response{}, good...)}
		c.bad(&r.answers[2])
		if err := r.sort(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

// Beside hostile uploads a broken promise is a figure, and a lost capsule misses the goal.
func TestBrokenPromisesBesideHostileUploads(t *testing.T) {
	r := &result{trial: trial{slots: 1, attackers: 15, kind: idleUpload}, analysis: time.Second}
	r.answers = []response{
		servedAt(0, 1), servedAt(0, 2), servedAt(0, 3), {begun: at(3), ended: at(3), status: 503, problem: true, sent: 5, retryAfter: time.Second},
	}
	if err := r.sort(); err != nil {
		t.Fatal(err)
	}
	if len(r.served) != 3 || len(r.refused) != 0 || len(r.late) != 1 || len(r.lost) != 0 || r.busy() != 1 || shortfall([]*result{r}) != nil {
		t.Errorf("served %d, refused %d, late %d, lost %d, busy %v", len(r.served), len(r.refused), len(r.late), len(r.lost), r.busy())
	}
	r = &result{trial: r.trial, analysis: r.analysis, answers: append(r.answers, response{begun: at(3), ended: at(3), err: errLeft})}
	if err := r.sort(); err != nil {
		t.Fatal(err)
	}
	if err := shortfall([]*result{r}); len(r.lost) != 1 || err == nil || !strings.Contains(err.Error(), "1 honest capsules") {
		t.Errorf("lost %d: %v", len(r.lost), err)
	}
}

func TestCapacityGoals(t *testing.T) {
	r := &result{trial: trial{slots: 1}, analysis: time.Second}
	r.answers = []response{servedAt(0, 1.1), servedAt(0, 2.2), servedAt(0, 3.3), refusedAt(0.5, time.Second), refusedAt(3.3, time.Second)}
	if err := r.sort(); err != nil {
		t.Fatal(err)
	}
	err := shortfall([]*result{r})
	if err == nil || !strings.Contains(err.Error(), "Oz is 91.3 % busy (want 98 %)") || !strings.Contains(err.Error(), "50.0 % of the refused were told") {
		t.Errorf("got %v", err)
	}
	r.slow = true
	if err := shortfall([]*result{r}); err != nil {
		t.Errorf("slow links: %v", err)
	}
}

func TestCapacity(t *testing.T) {
	t.Parallel()
	var stdout, stderr strings.Builder
	args := []string{"capacity", "--caddy", caddy(t), "--slots", "2,4", "--analysis", "100ms", "--for", "400ms", "--overload", "4", "--size", "50000", "--attackers", "2"}
	if err := execute(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	const row = ` +\d+ +\d+ +\d+ +\d+ +\d+\.\d % +\d+\.\d\d s +\d+\.\d %\n`
	for _, want := range []string{
		`\n +2  fast links +streaming` + row + ` +4  fast links +streaming` + row,
		`\n +4  half of them 2 Mbit/s +streaming` + row + ` +4  half of them 2 Mbit/s +memory 256MiB` + row,
		`\n +4  beside 2 idle uploads +memory 256MiB` + row + ` +4  beside 2 dripping uploads +memory 256MiB` + row + ` +4  beside 2 stalled uploads +memory 256MiB` + row,
	} {
		if !regexp.MustCompile(want).MatchString(stdout.String()) {
			t.Errorf("no %s in\n%s", want, stdout.String())
		}
	}
}
