package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A drill that is late is tried again where the machine stood still, and nowhere else.
func TestSteadily(t *testing.T) {
	lost := errors.New("a capsule is lost")
	failure := errors.Join(late{errors.New("slots were idle")}, errors.Join(late{errors.New("a capsule was overtaken")}))
	worse := errors.Join(failure, lost)
	for name, test := range map[string]struct {
		ends  []error         // of each run
		still []time.Duration // in each run
		want  error
	}{
		"holds":                            {[]error{nil}, []time.Duration{0}, nil},
		"fails":                            {[]error{failure}, []time.Duration{stillness - 1}, failure},
		"holds though it stood still":      {[]error{nil}, []time.Duration{stillness}, nil},
		"holds once it didn't":             {[]error{failure, nil}, []time.Duration{stillness, 0}, nil},
		"fails, though it didn't any more": {[]error{failure, failure}, []time.Duration{stillness, 0}, failure},
		"loses a capsule":                  {[]error{lost}, []time.Duration{time.Second}, lost},
		"loses a capsule, and is late":     {[]error{worse}, []time.Duration{time.Second}, worse},
		"stands still each time":           {[]error{failure, failure}, []time.Duration{time.Second, time.Second}, failure},
	} {
		var out strings.Builder
		runs := 0
		watch := func() func() time.Duration { return func() time.Duration { return test.still[runs-1] } }
		err := steadily(t.Context(), &out, watch, func() error { runs++; return test.ends[runs-1] })
		if err != test.want || runs != len(test.ends) || strings.Count(out.String(), "stood still") != runs-1 {
			t.Errorf("%s: %v after %d runs\n%s", name, err, runs, &out)
		}
	}
	if stop := watchMachine(); stop() < 0 {
		t.Error("it stood still for less than no time")
	}
}
