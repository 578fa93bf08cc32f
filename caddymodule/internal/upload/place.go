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

// parkedTick is how often a parked upload looks after its siblings.
const parkedTick = slowSilence / 4

// upload is one that is at a gate.
type upload struct {
	gate      *gate
	stream    *Stream
	displaced chan struct{} // closed when it is
	why       *Refused
	parked    bool // waits, and is not read
}

// connection is what the uploads of one client's connection share: its window.
type connection struct {
	uploads  []*upload // in order of arrival
	relieved time.Time // when the last of them gave way to another one
}

// arrive notes an upload.
func (g *gate) arrive(s *Stream) *upload {
	u := &upload{gate: g, stream: s, displaced: make(chan struct{})}
	if s.protoMajor >= 2 {
		g.mu.Lock()
		defer g.mu.Unlock()
		c := g.connections[s.remoteAddr]
		if c == nil {
			c = new(connection)
			g.connections[s.remoteAddr] = c
		}
		c.uploads = append(c.uploads, u)
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
	c := g.connections[u.stream.remoteAddr]
	if c.uploads = slices.DeleteFunc(c.uploads, isIt); len(c.uploads) == 0 {
		delete(g.connections, u.stream.remoteAddr)
	}
}

// enter takes a free place. If there is none, but an upload inside is slow, u
// is received outside for now: see contend. If none is slow u is refused unread.
func (g *gate) enter(u *upload) (inside bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.takeFree(u) {
		return true, nil
	}
	if _, anySlow := g.slowest(u.stream.State()); !anySlow {
		return false, g.refusedLocked(CauseQueue)
	}
	u.stream.setProbation(g.refusedLocked(CauseQueue))
	return false, nil
}

// contend has an upload that is received outside take a free place, or that of
// a slow upload that it has proven to be better than: by being complete, or by
// having sent more. The proof must grow with what the slow one has sent. With a
// fixed one, 32 KiB, a hundred clients that sent all but their last byte
// displaced only one another, and no honest upload in 40 s found a slow one
// left.
//
// Uploads outside are as many as come, since any limit would be used up by
// those that never complete. But they end as soon as they are slow themselves,
// or none inside is slow any more.
func (g *gate) contend(u *upload) (inside bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := u.stream.State()
	for !g.takeFree(u) {
		slowest, anySlow := g.slowest(st)
		switch {
		case !anySlow, slowest == nil && st.Received:
			return false, g.refusedLocked(CauseQueue)
		case slowest == nil:
			return false, nil
		}
		g.displace(slowest) // unless it has just become complete, and isn't slow any more
	}
	u.stream.setProbation(nil)
	return true, nil
}

func (g *gate) takeFree(u *upload) bool {
	if g.places > 0 && len(g.inside) >= g.places {
		return false
	}
	g.inside = append(g.inside, u)
	return true
}

// slowest returns the slowest of the slow uploads inside that one with this
// state is better than, and whether there is a slow one at all.
func (g *gate) slowest(newcomer State) (slowest *upload, anySlow bool) {
	now, least := time.Now(), 0.0
	for _, u := range g.inside {
		pace, received, slow := u.stream.pace(now)
		anySlow = anySlow || slow
		better := newcomer.Received || newcomer.Bytes >= chunkSize && newcomer.Bytes > received
		if slow && better && (slowest == nil || pace < least) {
			slowest, least = u, pace
		}
	}
	return slowest, anySlow
}

// displace ends an upload and frees its place. Its memory comes back when it
// has ended. A complete one is never displaced.
func (g *gate) displace(u *upload) {
	why := g.refusedLocked(CauseDisplaced)
	if !u.stream.displace(why) {
		return
	}
	u.why = why
	close(u.displaced)
	g.inside = slices.DeleteFunc(g.inside, func(other *upload) bool { return other == u })
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
			ticker := time.NewTicker(parkedTick)
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

// starvesAnother reports whether u must give way: an upload of the same
// connection has been read in vain for a while, and u came last of those that
// are parked. What u has sent may fill the window. To refuse it gives its part
// of the window back; the next one is refused only if that doesn't help soon.
func (u *upload) starvesAnother() bool {
	g := u.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	c, now := g.connections[u.stream.remoteAddr], time.Now()
	var last *upload
	starving := false
	for _, other := range c.uploads {
		if other.parked {
			last = other
		} else if other.stream.silent(now) {
			starving = true
		}
	}
	if !starving || last != u || now.Sub(c.relieved) < parkedTick {
		return false
	}
	c.relieved = now
	return true
}

// pace returns how fast an upload is, what it has sent, and whether it is slow.
// Only time in reads counts, so one that waits for memory isn't slow for that.
// An upload that is silent comes before all that send.
func (s *Stream) pace(now time.Time) (pace float64, bytes int64, slow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state(now)
	switch {
	case st.Received:
		return 0, st.Bytes, false
	case s.reading && st.Silence > slowSilence:
		return -st.Silence.Seconds(), st.Bytes, true
	case st.Waited <= slowSilence:
		return 0, st.Bytes, false
	}
	pace = float64(st.Bytes) / st.Waited.Seconds()
	return pace, st.Bytes, pace < soundRate
}

// silent reports whether a read in progress has waited for long.
func (s *Stream) silent(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reading && now.Sub(s.since) > slowSilence
}

// setProbation has the upload end with unproven as soon as it is slow. nil ends
// the probation.
func (s *Stream) setProbation(unproven *Refused) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unproven = unproven
}

// untilSlow returns how long the next read may wait before the upload is slow.
func (s *Stream) untilSlow() time.Duration {
	sound := time.Duration(float64(s.bytes) / soundRate * float64(time.Second))
	return max(0, min(slowSilence, max(slowSilence, sound)-s.waited))
}
