package upload

import (
	"context"
	"slices"
	"time"
)

// An upload is slow if its client is silent for a while, or in all sends less
// than a phone does over a poor mobile network. Each second that idle uploads
// keep their places at first is a second in which the upstream may be idle.
const (
	slowSilence = 500 * time.Millisecond
	slowGrace   = 750 * time.Millisecond
	soundRate   = 32 << 10 // bytes a second
)

// starved is how long a read waits before its connection's window is taken to
// be full.
const starved = 2 * time.Second

// smallWindow is less than what a client may send on one connection before any
// of it is read: Go's HTTP/2 server allows 1 MiB, and quic-go 768 KiB at first.
const smallWindow = 512 << 10

// parkedTick is how often a parked upload looks after its siblings.
const parkedTick = starved / 4

// upload is one that is at a gate.
type upload struct {
	gate       *gate
	stream     *Stream
	connection *connection
	end        context.CancelCauseFunc // ends its wait
	release    func(served bool)       // gives its slot back; nil: it has none
	inside     bool                    // has had a place
	parked     bool                    // waits, and is not read
}

// connectionID tells connections apart. On a Unix socket all of one protocol
// have the same address.
type connectionID struct {
	protoMajor int
	remoteAddr string
}

// connection is what the uploads of one client's connection share: its window.
type connection struct {
	uploads  []*upload // in order of arrival
	relieved time.Time // when the last of them gave way to another one
}

// arrive notes an upload.
func (g *gate) arrive(s *Stream, end context.CancelCauseFunc) *upload {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.connections[s.connectionID]
	if c == nil {
		c = new(connection)
		g.connections[s.connectionID] = c
	}
	u := &upload{gate: g, stream: s, connection: c, end: end}
	c.uploads = append(c.uploads, u)
	return u
}

// depart takes back all that an upload has.
func (u *upload) depart(served bool) {
	g := u.gate
	u.stream.Stop()
	if u.release != nil {
		u.release(served)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside = without(g.inside, u)
	u.connection.uploads = without(u.connection.uploads, u)
	if len(u.connection.uploads) == 0 {
		delete(g.connections, u.stream.connectionID)
	}
}

func without(uploads []*upload, u *upload) []*upload {
	return slices.DeleteFunc(uploads, func(other *upload) bool { return other == u })
}

// contend has an upload take a free place, or that of a slow upload that it has
// proven to be better than: by being complete, or by having sent more. Until
// then it is received outside. The proof must grow with what the slow one has
// sent. With a fixed one, 32 KiB, a hundred clients that sent all but their last
// byte displaced only one another, and no honest upload in 40 s found a slow one
// left.
//
// Uploads outside are as many as come, since any limit would be used up by
// those that never complete. But they end as soon as they are slow themselves,
// or none inside is slow any more.
func (g *gate) contend(u *upload) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := u.stream.State()
	for !u.inside && !g.takeFree(u) {
		slowest, anySlow := g.slowest(st)
		switch {
		case !anySlow:
			return g.refused(CauseQueue)
		case slowest == nil:
			u.stream.setProbation(g.refused(CauseQueue))
			return nil
		}
		g.displace(slowest) // unless it has just become complete, and isn't slow any more
	}
	u.stream.setProbation(nil)
	return nil
}

func (g *gate) takeFree(u *upload) bool {
	if g.slots.full(len(g.inside)) {
		return false
	}
	g.inside = append(g.inside, u)
	u.inside = true
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
	why := g.refused(CauseDisplaced)
	if u.stream.displace(why) {
		u.end(why)
		g.inside = without(g.inside, u)
	}
}

func (g *gate) refused(cause Cause) *Refused {
	return &Refused{cause, g.slots.untilDone(len(g.inside))}
}

// await waits for ready, but not longer than wait. Its error says why not.
// u is nil for a call that has no body.
func (u *upload) await(ctx context.Context, ready <-chan struct{}, wait time.Duration, late Cause) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var tick <-chan time.Time
	if u != nil && u.sharesWindow() {
		tick = time.Tick(parkedTick)
		u.park(true)
		defer u.park(false)
	}
	for {
		select {
		case <-ready:
			return nil
		case <-timer.C:
			return &Refused{Cause: late}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick:
			if err := u.giveWay(); err != nil {
				return err
			}
		}
	}
}

// sharesWindow reports whether what u doesn't read can hold up others: a
// connection has one window for all of its streams.
func (u *upload) sharesWindow() bool {
	return u.stream.protoMajor >= 2 && !u.stream.State().Received
}

func (u *upload) park(parked bool) {
	u.gate.mu.Lock()
	defer u.gate.mu.Unlock()
	u.parked = parked
}

// giveWay refuses u if an upload of the same connection has been read in vain
// for a while, and u came last of those that are parked. What they have sent may
// fill the window. To refuse one gives its part of the window back; the next one
// is refused only if that doesn't help soon, and none if all of it can't fill
// the window. A CDN has many clients on a connection, and a silent one of them
// must not end the others.
func (u *upload) giveWay() error {
	u.gate.mu.Lock()
	defer u.gate.mu.Unlock()
	c := u.connection
	var last *upload
	starving, unread := false, int64(0)
	for _, other := range c.uploads {
		switch {
		case other.parked:
			last = other
		case other.stream.State().Silence > starved:
			starving = true
			continue
		}
		unread += other.stream.unread()
	}
	if !starving || unread < smallWindow || last != u || time.Since(c.relieved) < parkedTick {
		return nil
	}
	c.relieved = time.Now()
	return u.gate.refused(CauseDisplaced)
}

// unread returns how much the client may have sent that was not read.
func (s *Stream) unread() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.length < 0 {
		return smallWindow
	}
	return s.length - s.progress.bytes
}

// pace returns how fast an upload is, what it has sent, and whether it is slow.
// Only time in reads counts, so one that waits for memory isn't slow for that.
// An upload that is silent comes before all that send.
func (s *Stream) pace(now time.Time) (pace float64, bytes int64, slow bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state(now)
	slow = !st.Received && st.Silence > s.progress.untilSlow()
	if st.Silence > slowSilence {
		return -st.Silence.Seconds(), st.Bytes, slow
	}
	return float64(st.Bytes) / st.Waited.Seconds(), st.Bytes, slow
}

// setProbation has the upload end with unproven as soon as it is slow. nil ends
// the probation.
func (s *Stream) setProbation(unproven *Refused) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress.unproven = unproven
}
