package upload

import (
	"context"
	"slices"
	"time"
)

// An upload is slow if its client keeps it waiting for long, or sends less than
// a phone does over a poor mobile network.
const (
	slowSilence = 2 * time.Second
	soundRate   = 32 << 10 // bytes a second
)

// upload is one that is at a gate.
type upload struct {
	gate      *gate
	stream    *Stream
	displaced chan struct{} // closed when it is
	why       *Refused
	parked    bool // waits, and is not read
}

// arrive notes an upload. Those of one HTTP/2 connection share its window.
func (g *gate) arrive(s *Stream) *upload {
	u := &upload{gate: g, stream: s, displaced: make(chan struct{})}
	if s.protoMajor >= 2 {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.connections[s.remoteAddr] = append(g.connections[s.remoteAddr], u)
	}
	return u
}

// depart takes an upload from all lists.
func (g *gate) depart(u *upload) {
	g.mu.Lock()
	defer g.mu.Unlock()
	isIt := func(other *upload) bool { return other == u }
	g.inside = slices.DeleteFunc(g.inside, isIt)
	if u.stream.protoMajor < 2 {
		return
	}
	addr := u.stream.remoteAddr
	if g.connections[addr] = slices.DeleteFunc(g.connections[addr], isIt); len(g.connections[addr]) == 0 {
		delete(g.connections, addr)
	}
}

// enter takes a place. If there is none, but an upload inside is slow, u can
// prove that it is faster, by its first 32 KiB, and take that one's place. So
// clients that are idle or send a little now and then keep nobody out, also if
// they come back each time. If none is slow u is refused unread.
func (g *gate) enter(u *upload) error {
	if entered, refused := g.tryEnter(u, false); entered || refused != nil {
		return refusedOrNil(refused)
	}
	if err := u.stream.prove(g.refused(CauseQueue)); err != nil {
		return err
	}
	_, refused := g.tryEnter(u, true)
	return refusedOrNil(refused)
}

// refusedOrNil keeps a nil *Refused from becoming an error that isn't nil.
func refusedOrNil(r *Refused) error {
	if r == nil {
		return nil
	}
	return r
}

// tryEnter takes a free place or, once u has proven itself, that of the slowest
// upload. Neither result means that u may prove itself.
func (g *gate) tryEnter(u *upload, proven bool) (entered bool, refused *Refused) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.places > 0 && len(g.inside) >= g.places {
		slowest := g.slowest()
		switch {
		case slowest == nil:
			return false, g.refusedLocked(CauseQueue)
		case !proven:
			return false, nil
		case !g.displace(slowest):
			return false, g.refusedLocked(CauseQueue) // it has just become complete
		}
	}
	g.inside = append(g.inside, u)
	return true, nil
}

// slowest returns the slowest of the slow uploads inside.
func (g *gate) slowest() (slowest *upload) {
	now, least := time.Now(), 0.0
	for _, u := range g.inside {
		if pace, slow := u.stream.pace(now); slow && (slowest == nil || pace < least) {
			slowest, least = u, pace
		}
	}
	return slowest
}

// displace ends an upload and takes its place from it. Its memory comes back
// when it has ended. A complete one is never displaced.
func (g *gate) displace(u *upload) bool {
	why := g.refusedLocked(CauseDisplaced)
	if !u.stream.displace(why) {
		return false
	}
	u.why = why
	close(u.displaced)
	g.inside = slices.DeleteFunc(g.inside, func(other *upload) bool { return other == u })
	return true
}

func (g *gate) refused(cause Cause) *Refused {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refusedLocked(cause)
}

func (g *gate) refusedLocked(cause Cause) *Refused {
	return &Refused{cause, max(time.Second, g.slots.untilDone(len(g.inside)))}
}

// await waits for ready, but not longer than wait. Its error says why not.
// u is nil for a call that has no body.
func (u *upload) await(ctx context.Context, ready <-chan struct{}, wait time.Duration, late Cause) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var displaced <-chan struct{}
	var tick <-chan time.Time
	if u != nil {
		displaced = u.displaced
		if u.sharesWindow() {
			ticker := time.NewTicker(slowSilence / 4)
			defer ticker.Stop()
			tick = ticker.C
			u.park(true)
			defer u.park(false)
		}
	}
	for {
		select {
		case <-ready:
			return nil
		case <-timer.C:
			return &Refused{Cause: late}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-displaced:
			return u.why
		case <-tick:
			if u.starvesAnother() {
				return u.gate.refused(CauseDisplaced)
			}
		}
	}
}

// sharesWindow reports whether what u doesn't read can hold up others: Go's
// HTTP/2 server gives a connection one MiB of window for all of its streams.
func (u *upload) sharesWindow() bool {
	return u.stream.protoMajor >= 2 && !u.stream.State().Received
}

func (u *upload) park(parked bool) {
	u.gate.mu.Lock()
	defer u.gate.mu.Unlock()
	u.parked = parked
}

// starvesAnother reports whether an upload of the same connection has been read
// in vain for a while, and u came last of those that are parked: what u has
// sent may fill the window. To refuse it gives its part of the window back, and
// the next one is only refused if that was not enough.
func (u *upload) starvesAnother() bool {
	g := u.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	var last *upload
	starving, now := false, time.Now()
	for _, other := range g.connections[u.stream.remoteAddr] {
		if other.parked {
			last = other
		} else if other.stream.silent(now) {
			starving = true
		}
	}
	return starving && last == u
}

// pace returns how fast an upload is, and whether that is slow. Only time in
// reads counts, so one that waits for memory isn't slow for that. An upload that
// is silent comes before all that send.
func (s *Stream) pace(now time.Time) (pace float64, slow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state(now)
	switch {
	case st.Received:
		return 0, false
	case s.reading && st.Silence > slowSilence:
		return -st.Silence.Seconds(), true
	case st.Waited <= slowSilence:
		return 0, false
	}
	pace = float64(st.Bytes) / st.Waited.Seconds()
	return pace, pace < soundRate
}

// silent reports whether a read in progress has waited for long.
func (s *Stream) silent(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reading && now.Sub(s.since) > slowSilence
}

// prove receives the head within a short time of waiting. An upload that is
// slower ends with refused.
func (s *Stream) prove(refused *Refused) error {
	s.setProbation(slowSilence, refused)
	err := s.peek()
	s.setProbation(0, nil)
	return err
}

func (s *Stream) setProbation(d time.Duration, unproven error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probation, s.unproven = d, unproven
}
