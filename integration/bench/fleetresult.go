package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"
)

// fleetBooks is what is known after a run: from clients and the app, from the gateways' access logs, and from Oz.
type fleetBooks struct {
	*fleetRun
	totals   totals
	oz       ozSide
	analyses []analysis
	turns    []turn
	counts   []phaseCounts // as phases
	before   phaseCounts   // capsules after the last phase
	delays   fleetNotes
}

// fleetNotes are for the reader.
type fleetNotes struct{ copies, resets int64 }

// phaseCounts are the capsules of a phase, by when their client began.
type phaseCounts struct{ sent, decided, refused, gone int }

// books reads everything. It is called after the last process has ended.
func (e *fleetEnv) books() (*fleetBooks, error) {
	b := &fleetBooks{fleetRun: e.fleetRun, delays: fleetNotes{e.copies.Load(), e.resets.Load()}}
	analyzed, begun := map[string]int{}, map[string]time.Duration{}
	for _, h := range e.history {
		all, err := readNotes(h.file, h.killed)
		if err != nil {
			return nil, err
		}
		b.analyses = append(b.analyses, all...)
	}
	for _, a := range b.analyses {
		analyzed[a.id]++
		begun[a.id] = a.begin
	}
	taken := map[string]int{}
	for _, g := range e.logs {
		lines, err := g.logged(accessMessage)
		if err != nil {
			return nil, err
		}
		for _, l := range lines {
			id := l.Request.Header.Get("X-Request-Id")
			taken[id]++
			if at, found := begun[id]; found && l.Oz.Tries == 1 {
				b.turns = append(b.turns, turn{g.addr, at - time.Duration(l.Oz.Queue*float64(time.Second)), at})
			}
		}
	}
	b.totals = e.accounting.totals(taken, analyzed)
	b.oz = e.accounting.ozSide(b.analyses)
	b.countPhases(e)
	return b, nil
}

// countPhases enters each capsule in the phase in which its client began.
func (b *fleetBooks) countPhases(e *fleetEnv) {
	b.counts = make([]phaseCounts, len(b.phases))
	for r := range maps.Values(e.accounting.records) {
		at := e.at(r.response.begun)
		for i, p := range b.phases {
			if i == len(b.phases)-1 || at < p.to { // the last ones began as the last phase ended
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
	fmt.Fprintf(out, "  %-22s %8s %7s %8s %8s %5s  %8s  %12s  %8s  %s\n",
		"", "seconds", "sent", "decided", "refused", "gone", "Oz busy", "beyond grace", "at most", "overtaken by (99 %, most)")
	for i, p := range b.phases {
		c := b.counts[i]
		whole, _ := b.busy(p)
		times := overtaken(b.turns, p.window)
		fmt.Fprintf(out, "  %-22s %8.1f %7d %8d %8d %5d  %6.1f %%  %12s  %2d of %2d  %.2f s, %.2f s\n", p.name, p.length().Seconds(),
			c.sent, c.decided, c.refused, c.gone, 100*whole, b.beyond(p), mostAtOnce(b.analyses, p.window), b.slots,
			percentile(times, 99).Seconds(), percentile(times, 100).Seconds())
	}
	t := b.totals
	fmt.Fprintf(out, "\nclients: sent %d = decided %d + refused %d + gone %d; duplicates %d, lost %d, wrong decisions %d\n",
		t.sent, t.decided, t.refused, t.gone, len(t.duplicates), len(t.lost), len(t.wrong))
	fmt.Fprintf(out, "refused: %s\n", counts(t.refusals))
	fmt.Fprintf(out, "app:     got %d = decided %d + gone after it got them %d\n", t.decided+t.goneDelivered, t.decided, t.goneDelivered)
	fmt.Fprintf(out, "Oz:      began %d = decided %d + cut with an Oz %d + cut with a gateway %d; in none of their books %d\n",
		b.oz.began(), b.oz.decided, b.oz.cutWithOz, b.oz.cutWithGateway, len(b.oz.wrong))
	fmt.Fprintf(out, "%d capsules came twice at the same instant; %d connections were reset before a gateway took them, and tried again\n", b.delays.copies, b.delays.resets)
	fmt.Fprintf(out, "\nEach capsule accounted for, none counted twice, never more than %d analyses at once, slots at least %.0f %% busy: %s\n",
		b.slots, 100*fleetBusyGoal, yesNo(b.err() == nil))
}

// busy returns how busy the slots were in a phase, and in what of it lies outside of the seconds just after a fault.
func (b *fleetBooks) busy(p phase) (whole, beyond float64) {
	whole, _ = busy(b.analyses, b.slots, []window{p.window})
	beyond, known := busy(b.analyses, b.slots, p.without(b.graces))
	if !known {
		beyond = 1
	}
	return whole, beyond
}

func (b *fleetBooks) beyond(p phase) string {
	_, beyond := b.busy(p)
	return fmt.Sprintf("%.1f %%", 100*beyond)
}

// err returns what does not hold.
func (b *fleetBooks) err() error {
	errs := []error{b.totals.err()}
	for _, text := range b.oz.wrong[:min(len(b.oz.wrong), 20)] {
		errs = append(errs, errors.New("oz: "+text))
	}
	for _, p := range b.phases {
		if most := mostAtOnce(b.analyses, p.window); most > b.slots {
			errs = append(errs, fmt.Errorf("%s: %d analyses at once (want at most %d)", p.name, most, b.slots))
		}
		if _, beyond := b.busy(p); beyond < fleetBusyGoal {
			errs = append(errs, fmt.Errorf("%s: the slots are %.1f %% busy beyond the grace after a fault (want %.0f %%)", p.name, 100*beyond, 100*fleetBusyGoal))
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
