package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fleetBooks is what is known after a run: from clients and the app, from the gateways' access logs, and from Oz.
type fleetBooks struct {
	*fleetRun
	evidence
	totals totals
	oz     ozSide
	counts []phaseCounts // as phases
}

// evidence is what a run leaves behind.
type evidence struct {
	accounting *accounting
	taken      map[string]int // by the id of a request, how often a gateway took it
	analyses   []analysis
	turns      []turn
	at         func(time.Time) time.Duration

	copies, resets int64 // for the reader
}

// phaseCounts are the requests that ended in a phase.
type phaseCounts struct{ sent, decided, refused, gone int }

// collect reads what the processes have written. It is called after the last one has ended.
func (e *fleetEnv) collect() (v evidence, err error) {
	v = evidence{accounting: e.accounting, taken: map[string]int{}, at: e.at, copies: e.copies.Load(), resets: e.resets.Load()}
	begun := map[string]time.Duration{}
	for _, h := range e.history {
		all, err := readNotes(h.file, h.killed)
		if err != nil {
			return v, err
		}
		v.analyses = append(v.analyses, all...)
		for _, a := range all {
			begun[a.id] = a.begin
		}
	}
	for _, g := range e.logs {
		lines, err := g.logged(accessMessage)
		if err != nil {
			return v, err
		}
		for _, l := range lines {
			id := l.Request.Header.Get("X-Request-Id")
			v.taken[id]++
			// One that had to try several Oz waited no longer for that.
			if at, found := begun[id]; found && l.Oz.Tries == 1 {
				v.turns = append(v.turns, turn{g.addr, at - time.Duration(l.Oz.Queue*float64(time.Second)), at})
			}
		}
	}
	return v, nil
}

func (r *fleetRun) books(v evidence) *fleetBooks {
	b := &fleetBooks{fleetRun: r, evidence: v}
	analyzed := map[string]int{}
	for _, a := range v.analyses {
		analyzed[a.id]++
	}
	b.totals = v.accounting.totals(v.taken, analyzed)
	b.oz = v.accounting.ozSide(v.analyses)
	b.countPhases()
	return b
}

// countPhases enters each request in the phase in which it ended; the last ones ended after the last phase.
func (b *fleetBooks) countPhases() {
	b.counts = make([]phaseCounts, len(b.phases))
	for _, r := range b.accounting.records {
		for i, p := range b.phases {
			if i == len(b.phases)-1 || b.at(r.response.ended) < p.to {
				b.counts[i].enter(r.response)
				break
			}
		}
	}
}

func (c *phaseCounts) enter(r response) {
	c.sent++
	switch {
	case r.left:
		c.gone++
	case r.status == http.StatusOK:
		c.decided++
	case r.problem:
		c.refused++
	}
}

func (b *fleetBooks) print(out io.Writer) {
	slots := "shared"
	if b.local {
		slots = "a third of them for each gateway"
	}
	fmt.Fprintf(out, "%d slots, %s; %d gateways, %d Oz by %s records, analyses of %v, capsules of %s, %d times as many as the slots can serve\n",
		b.slots, slots, fleetGateways, fleetOz, strings.ToUpper(b.records), b.analysis, b.size.String(), b.overload)
	fmt.Fprintf(out, "  %-22s %7s %6s %7s %7s %5s %10s %8s %8s %9s  %s\n",
		"", "seconds", "sent", "decided", "refused", "gone", "slots busy", "judged", "at once", "overtaken", "begun by gateway")
	for i, p := range b.phases {
		c := b.counts[i]
		whole, share, known := b.busy(p)
		judged := "-"
		if known {
			judged = fmt.Sprintf("%.1f %%", 100*share)
		}
		most, _ := mostAtOnce(b.analyses, p.window)
		times := overtaken(b.turns, []window{p.window})
		fmt.Fprintf(out, "  %-22s %7.1f %6d %7d %7d %5d %8.1f %% %8s %8d %7.2f s  %s\n", p.name, p.length().Seconds(),
			c.sent, c.decided, c.refused, c.gone, 100*whole, judged, most,
			percentile(times, 100).Seconds(), b.begunBy(p.window))
	}
	t := b.totals
	fmt.Fprintf(out, "\nclients  sent %d = decided %d + refused %d + gone %d; duplicates %d, lost %d, wrong decisions %d\n",
		t.sent, t.decided, t.refused, t.gone, len(t.duplicates), len(t.lost), len(t.wrong))
	fmt.Fprintf(out, "refused  %s\n", counts(t.refusals))
	fmt.Fprintf(out, "app      got %d = decided %d + gone when it had them %d\n", t.decided+t.goneDelivered, t.decided, t.goneDelivered)
	fmt.Fprintf(out, "Oz       began %d = decided %d + cut with an Oz %d + cut with a gateway %d; unexplained %d\n",
		b.oz.began(), b.oz.decided, b.oz.cutWithOz, b.oz.cutWithGateway, len(b.oz.wrong))
	fmt.Fprintf(out, "%d capsules came twice at the same instant; %d connections were reset before a gateway took them, and tried again\n", b.copies, b.resets)
	fmt.Fprintf(out, "\nEach capsule accounted for, none counted twice, never more than %d analyses at once, slots at least %.0f %% busy, first come, first served: %s\n",
		b.slots, 100*fleetBusyGoal, yesNo(b.err() == nil))
}

// printSeconds shows how long a fault is felt.
func (b *fleetBooks) printSeconds(out io.Writer) {
	fmt.Fprintln(out)
	for _, p := range b.phases {
		for from := p.from; from < p.to; from += time.Second {
			w := window{from, min(from+time.Second, p.to)}
			if w.length() < time.Second/10 {
				continue // what is left of a phase
			}
			share, _ := busy(b.analyses, b.slots, []window{w})
			most, at := mostAtOnce(b.analyses, w)
			fmt.Fprintf(out, "  %6.1f s  %5.1f %% busy, %2d at once, begun by gateway: %-10s  overtaken %.2f s; %s\n",
				(from - b.phases[0].from).Seconds(), 100*share, most, b.begunBy(w), percentile(overtaken(b.turns, []window{w}), 100).Seconds(), b.after(max(from, at)))
		}
	}
}

// begunBy says how many analyses were begun for each gateway, those that had to try several Oz left out.
func (b *fleetBooks) begunBy(w window) string {
	begun := map[string]int{}
	for _, t := range b.turns {
		begun[t.gateway] += 0 // there, if only with none
		if w.has(t.turn) {
			begun[t.gateway]++
		}
	}
	var parts []string
	for _, gateway := range slices.Sorted(maps.Keys(begun)) {
		parts = append(parts, strconv.Itoa(begun[gateway]))
	}
	return strings.Join(parts, ", ")
}

// busy returns how busy the slots were in a phase, and in what of it is judged, if anything: what lies outside of the seconds just after a fault.
func (b *fleetBooks) busy(p phase) (whole, judged float64, known bool) {
	whole, _ = busy(b.analyses, b.slots, []window{p.window})
	idle, _ := b.graces()
	judged, known = busy(b.analyses, b.slots, p.without(idle))
	return whole, judged, known
}

// err returns what does not hold.
func (b *fleetBooks) err() error {
	errs := []error{b.totals.err()}
	for _, text := range b.oz.wrong[:min(len(b.oz.wrong), 20)] {
		errs = append(errs, errors.New("oz: "+text))
	}
	if most, at := mostAtOnce(b.analyses, window{0, math.MaxInt64}); most > b.slots {
		errs = append(errs, fmt.Errorf("%d analyses at once, %s (want at most %d)", most, b.after(at), b.slots))
	}
	for _, p := range b.phases {
		if _, judged, known := b.busy(p); known && judged < fleetBusyGoal {
			errs = append(errs, late{fmt.Errorf("%s: the slots are %.1f %% busy, but for the seconds after a fault (want %.0f %%)", p.name, 100*judged, 100*fleetBusyGoal)})
		}
		_, disorderly := b.graces()
		if most := percentile(overtaken(b.turns, p.without(disorderly)), 100); most >= b.analysis {
			errs = append(errs, late{fmt.Errorf("%s: a capsule waited for %v after a later one at another gateway had its turn (want less than %v)", p.name, most, b.analysis)})
		}
	}
	return errors.Join(errs...)
}

// percentile returns the time that so many of the sorted times in a hundred do not exceed.
func percentile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, (len(sorted)*percent+99)/100-1)]
}
