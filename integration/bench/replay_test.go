package main

import (
	"strings"
	"testing"
	"time"
)

// The verdict is no as soon as one capsule counts twice, one does not count, or one client waits too long.
func TestReplayVerdict(t *testing.T) {
	for name, test := range map[string]struct {
		counts replayCounts
		killed bool
		want   string // empty: all holds
	}{
		"all holds":                   {replayCounts{accepted: 10, refused: 10}, false, ""},
		"twice":                       {replayCounts{accepted: 10, refused: 9, twice: 1}, false, "1 capsules counted twice"},
		"never":                       {replayCounts{accepted: 9, refused: 11}, false, "9 of 10 capsules were accepted"},
		"not refused":                 {replayCounts{accepted: 10, refused: 9}, false, "9 of 10 were refused"},
		"another answer":              {replayCounts{accepted: 10, refused: 10, other: []string{"503"}}, false, "1 answers were neither"},
		"lost without a kill":         {replayCounts{accepted: 9, decided: 1, refused: 10}, false, "9 of 10 capsules"},
		"killed":                      {replayCounts{accepted: 10, refused: 4, lost: 6, blocked: 3, longest: claimLife}, true, ""},
		"killed after a decision":     {replayCounts{accepted: 9, decided: 1, refused: 4, lost: 6}, true, ""},
		"killed, twice":               {replayCounts{accepted: 10, twice: 1, lost: 6}, true, "counted twice"},
		"killed, never":               {replayCounts{accepted: 9, lost: 6}, true, "9 of 10 capsules"},
		"killed, blocked for so long": {replayCounts{accepted: 10, blocked: 1, longest: claimLife + 3*time.Second}, true, "blocked for 10s"},
	} {
		err := test.counts.judge(10, test.killed)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// Answers are sorted by what the app saw.
func TestReplayNotes(t *testing.T) {
	ok, replayed, broken := response{status: 200}, response{status: 409, problem: true}, response{err: errLeft}
	for name, test := range map[string]struct {
		answers [2]response
		ins     int
		killed  bool
		want    replayCounts
	}{
		"once":                  {[2]response{ok, replayed}, 1, false, replayCounts{refused: 1}},
		"twice":                 {[2]response{ok, ok}, 2, false, replayCounts{}},
		"never":                 {[2]response{replayed, replayed}, 0, false, replayCounts{refused: 2}},
		"nobody was let in":     {[2]response{ok, replayed}, 0, false, replayCounts{refused: 1, other: []string{""}}},
		"no answer":             {[2]response{broken, ok}, 1, false, replayCounts{other: []string{""}}},
		"no answer of the dead": {[2]response{broken, ok}, 1, true, replayCounts{lost: 1}},
		"none of the living":    {[2]response{ok, broken}, 1, true, replayCounts{other: []string{""}}},
	} {
		p := &replayPart{app: &replayApp{ins: map[string]int{"x": test.ins}}}
		if test.killed {
			p.killed.Store(1)
		}
		if got := p.note(test.answers, "x"); got != test.ins || p.refused != test.want.refused || p.lost != test.want.lost || len(p.other) != len(test.want.other) {
			t.Errorf("%s: %d, %+v", name, got, p.replayCounts)
		}
	}
}
