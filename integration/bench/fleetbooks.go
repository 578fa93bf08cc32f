package main

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// window is a part of the machine's time.
type window struct{ from, to time.Duration }

func (w window) has(t time.Duration) bool { return w.from <= t && t < w.to }

func (w window) length() time.Duration { return max(0, w.to-w.from) }

func hasAny(windows []window, t time.Duration) bool {
	return slices.ContainsFunc(windows, func(w window) bool { return w.has(t) })
}

// without returns what is left of w outside of the others.
func (w window) without(others []window) []window {
	left := []window{w}
	for _, o := range others {
		var rest []window
		for _, l := range left {
			for _, part := range []window{{l.from, min(l.to, o.from)}, {max(l.from, o.to), l.to}} {
				if part.length() > 0 {
					rest = append(rest, part)
				}
			}
		}
		left = rest
	}
	return left
}

// busy returns the share of the slots' time in the windows that Oz spent on analyses: from the last byte of a capsule until the answer is
// ready. Less than a second says nothing.
func busy(all []analysis, slots int, windows []window) (share float64, known bool) {
	var worked, there time.Duration
	for _, w := range windows {
		there += w.length()
		for _, a := range all {
			if a.read > 0 {
				worked += window{max(w.from, a.read), min(w.to, a.end)}.length()
			}
		}
	}
	return float64(worked) / float64(max(there, 1)) / float64(slots), there >= time.Second
}

// mostAtOnce returns how many analyses were in progress at most at any instant of the window, and the first such instant: from the head
// of a capsule until the answer is ready. Where one begins at the instant at which another ends, that one ends first.
func mostAtOnce(all []analysis, w window) (most int, first time.Duration) {
	type edge struct {
		at   time.Duration
		step int
	}
	var edges []edge
	for _, a := range all {
		if a.end > w.from && a.begin < w.to && a.end > a.begin {
			edges = append(edges, edge{max(a.begin, w.from), 1}, edge{a.end, -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.step, b.step)) })
	now := 0
	for _, e := range edges {
		if now += e.step; now > most && e.at < w.to {
			most, first = now, e.at
		}
	}
	return most, first
}

// turn is how a capsule came to Oz: which gateway it waited in, since when, and when it had its turn.
type turn struct {
	gateway     string
	since, turn time.Duration
}

// sameTime is how much later one may come to another gateway than its fellow, and count as its equal: Redis hears of both only later.
const sameTime = 50 * time.Millisecond

// overtaken returns how long each of the turns in the windows waited for at most after one had its turn that had begun to wait later, at
// another gateway. It is 0 where nobody was first. They are sorted.
func overtaken(all []turn, windows []window) (times []time.Duration) {
	// From the last that began to wait to the first, those that are sameTime later than t are at hand.
	sorted := slices.SortedFunc(slices.Values(all), func(a, b turn) int { return cmp.Compare(b.since, a.since) })
	earliest := map[string]time.Duration{} // turn, by gateway
	later := 0
	for _, t := range sorted {
		for ; sorted[later].since > t.since+sameTime; later++ {
			o := sorted[later]
			if at, found := earliest[o.gateway]; !found || o.turn < at {
				earliest[o.gateway] = o.turn
			}
		}
		var by time.Duration
		for gateway, at := range earliest {
			if gateway != t.gateway {
				by = max(by, t.turn-at)
			}
		}
		if hasAny(windows, t.turn) {
			times = append(times, by)
		}
	}
	slices.Sort(times)
	return times
}

// ozSide is what Oz has of the capsules: each analysis belongs to a decision, or a kill -9 has cut it off.
type ozSide struct {
	decided, cutWithOz, cutWithGateway int
	wrong                              []string
}

func (o ozSide) began() int { return o.decided + o.cutWithOz + o.cutWithGateway }

// ozSide compares what Oz has of each request with what its client has. It is called after the last answer.
func (a *accounting) ozSide(analyses []analysis) (o ozSide) {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := map[string]bool{}
	for _, x := range analyses {
		e := a.records[x.id]
		seen[x.id] = true
		switch {
		case e == nil:
			o.wrong = append(o.wrong, x.id+": came to Oz, and nobody had sent it")
		case e.response.left:
			o.cutWithGateway++
		case e.response.status == http.StatusOK:
			o.decided++
		case x.cut:
			o.cutWithOz++
		default:
			o.wrong = append(o.wrong, fmt.Sprintf("%s: Oz analyzed it, and its client got %d %s", x.id, e.response.status, problemType(e.response.text)))
		}
	}
	for id, e := range a.records {
		if !e.response.left && e.response.status == http.StatusOK && !seen[id] {
			o.wrong = append(o.wrong, id+": decided, and Oz never got it")
		}
	}
	return o
}
