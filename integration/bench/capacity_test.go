package main

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// at is a time of a trial, in seconds.
func at(seconds float64) time.Time {
	return time.Unix(1_000_000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

func servedAt(begun, ended float64) attempt {
	return attempt{begun: at(begun), ended: at(ended), status: 200, sent: 1}
}

func refusedAt(t float64, retryAfter time.Duration) attempt {
	return attempt{begun: at(t), ended: at(t), status: 503, problem: true, retryAfter: retryAfter}
}

func TestThroughput(t *testing.T) {
	th := throng{trial: trial{slots: 2}, analysis: time.Second}
	for i := range 10 { // two slots in step, each 1.25 s for an analysis of 1 s
		end := 1.25 * float64(i/2+1)
		th.attempts = append(th.attempts, servedAt(0, end))
	}
	th.attempts = append(th.attempts, refusedAt(6.3, time.Second)) // the load lasts as long
	if err := th.sort(); err != nil {
		t.Fatal(err)
	}
	if got := th.throughput(); got < 0.799 || got > 0.801 {
		t.Errorf("got %v", got)
	}
}

func TestRetryAfterIsRight(t *testing.T) {
	th := throng{trial: trial{slots: 1}, analysis: time.Second}
	th.attempts = []attempt{servedAt(0, 1), servedAt(0.1, 2), servedAt(0.2, 3), servedAt(2.5, 4)}
	th.attempts = append(th.attempts, refusedAt(0.5, 2*time.Second), refusedAt(0.5, 3*time.Second), refusedAt(5, time.Second))
	if err := th.sort(); err != nil {
		t.Fatal(err)
	}
	// At 0.5 s three are ahead, of which the last one is done at 3 s. The fourth came later.
	if got := th.toldRight(); got < 0.66 || got > 0.67 {
		t.Errorf("got %v", got)
	}
}

// A broken promise yields no figures.
func TestThrongIsSorted(t *testing.T) {
	good := []attempt{servedAt(0, 1), servedAt(0, 2), refusedAt(0, time.Second)}
	for _, c := range []struct {
		name string
		bad  func(*attempt)
		want string
	}{
		{"Retry-After", func(a *attempt) { a.retryAfter = 0 }, "without Retry-After"},
		{"body", func(a *attempt) { a.sent = 5 }, "after 5 bytes"},
		{"document", func(a *attempt) { a.problem = false }, "answered with 503"},
		{"status", func(a *attempt) { a.status = 502 }, "answered with 502"},
		{"none", func(a *attempt) { a.status, a.err = 0, errLeft }, "no answer"},
	} {
		th := throng{trial: trial{slots: 1}, attempts: append([]attempt{}, good...)}
		if err := th.sort(); err != nil {
			t.Fatal(err)
		}
		th = throng{trial: trial{slots: 1}, attempts: append([]attempt{}, good...)}
		c.bad(&th.attempts[2])
		if err := th.sort(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
}

func TestCapacityGoals(t *testing.T) {
	slow := throng{trial: trial{slots: 1}, analysis: time.Second}
	slow.attempts = []attempt{servedAt(0, 1.1), servedAt(0, 2.2), servedAt(0, 3.3), refusedAt(0.5, time.Second), refusedAt(4, time.Second)}
	if err := slow.sort(); err != nil {
		t.Fatal(err)
	}
	c := crowd{}
	if err := c.judge([]throng{slow}); err != nil {
		t.Errorf("without -check: %v", err)
	}
	c.check = true
	err := c.judge([]throng{slow})
	if err == nil || !strings.Contains(err.Error(), "the throughput is 90.9 %") || !strings.Contains(err.Error(), "50.0 % of the refused were told") {
		t.Errorf("got %v", err)
	}
	slow.slow = true
	if err := c.judge([]throng{slow}); err != nil {
		t.Errorf("slow links: %v", err)
	}
}

func TestCapacity(t *testing.T) {
	var stdout, stderr strings.Builder
	args := []string{"capacity", "-caddy", caddy(t), "-analysis", "100ms", "-for", "1s", "-size", "50000"}
	if err := dispatch(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	const row = ` +\d+ +\d+ +\d+\.\d % +\d\.\d\d s +\d+\.\d %\n`
	for _, want := range []string{
		`\n +1  fast links +streaming` + row + ` +4  fast links +streaming` + row + ` +12  fast links +streaming` + row,
		`\n +12  half of them 2 Mbit/s streaming` + row + ` +12  half of them 2 Mbit/s memory 256MiB` + row,
	} {
		if !regexp.MustCompile(want).MatchString(stdout.String()) {
			t.Errorf("no %s in\n%s", want, stdout.String())
		}
	}
}
