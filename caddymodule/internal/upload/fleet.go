package upload

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"
)

const (
	// heartbeat is how often a gateway tells the store all that it has, at least.
	heartbeat = time.Second

	// gatewayLife is how long the store believes a gateway that says nothing: a
	// heartbeat, a call that takes its time, and as much again. After it the
	// slots of a gateway that has died go to others.
	gatewayLife = 4 * time.Second

	// offerLife is how long a slot is kept for a gateway that has been told of it:
	// many times of what it takes to ask for it.
	offerLife = 500 * time.Millisecond

	// silence is how long a gateway may not have been heard to get slots: a little
	// more than a heartbeat.
	silence = 1500 * time.Millisecond

	// storeTimeout bounds each call of the store.
	storeTimeout = time.Second

	// mostNew is how many newcomers go into one call: while a store works for
	// one gateway, others wait for it. Two gateways that tell of 1,000 in each
	// call have a third one wait for 15 ms, with 100 for 3 ms.
	mostNew = 100
)

// Shared is what it takes to count slots and queue over all gateways.
type Shared struct {
	Store  SlotStore
	Config string        // of the store
	Room   string        // names the upstream, in the same way in all gateways
	Lease  time.Duration // the longest time that an upload can have a slot
	Logger *zap.Logger
}

func (s *Shared) config() string {
	if s == nil {
		return ""
	}
	return s.Config
}

// fleet has a limiter's slots granted by a store. While the store doesn't
// answer, the gateway continues alone with its share of them. One goroutine talks
// to the store, so that calls never overtake each other: what came about between
// two calls goes into the next one, and each second all there is, which mends
// whatever was lost.
type fleet struct {
	limiter *limiter
	room    string
	gateway string
	wake    chan struct{}

	// With the limiter's mu held:

	logger *zap.Logger
	store  SlotStore
	stop   context.CancelFunc
	done   chan struct{} // closed when nothing talks to the store any more

	lease    time.Duration
	lost     bool    // the store doesn't answer
	cautious bool    // others may use slots that the store doesn't know of
	joins    bool    // the store doesn't know this gateway, or may not
	whole    bool    // the next call tells all
	over     []int64 // tickets that the store must forget

	gateways     int       // by the store's last answer; 0: there was none
	own          int       // slots that this one had by it
	othersHold   int       // slots
	othersWait   int       // for one
	settled      time.Time // when all leases from before the store was lost have ended
	untilSettled int       // slots that this gateway may use until then
}

func newFleet(l *limiter, room string) *fleet {
	f := &fleet{limiter: l, room: room, gateway: rand.Text()[:12], wake: make(chan struct{}, 1), done: make(chan struct{})}
	f.stop = func() {}
	close(f.done)
	return f
}

// countBy begins, changes or, with nil, ends counting over all gateways. Nothing
// that the fleet which has ended is still told counts.
func (l *limiter) countBy(s *Shared) (ended *fleet) {
	if l.fleet != nil && (s == nil || l.fleet.room != s.Room) {
		ended, l.fleet = l.fleet, nil
		ended.stop()
	}
	switch {
	case s == nil && ended != nil:
		l.judgeNew()
		return ended
	case s == nil:
		return nil
	case l.fleet == nil:
		l.fleet = newFleet(l, s.Room)
	}
	l.fleet.use(s)
	return ended
}

// busy reports whether there is something that a store counts.
func (l *limiter) busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fleet != nil && len(l.held)+len(l.waiting) > 0
}

// use has the fleet talk to a store: its first one, or that of another config.
func (f *fleet) use(s *Shared) {
	f.logger, f.lease = s.Logger, max(f.lease, s.Lease)
	if f.store == s.Store {
		return
	}
	f.stop()
	ctx, stop := context.WithCancel(context.Background())
	before, done := f.done, make(chan struct{})
	f.store, f.stop, f.done, f.joins, f.whole = s.Store, stop, done, true, true
	go s.Store.Listen(ctx, f.room, f.gateway, f.poke)
	go func() {
		defer close(done)
		await(before)
		f.run(ctx, s.Store)
	}()
}

// await waits until a store isn't talked to any more, unless a call doesn't end.
func await(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-time.After(storeTimeout):
		return false
	}
}

// leave gives back what this gateway has, once the fleet has ended, unless uploads
// still use it. Then the store takes it for dead soon.
func (f *fleet) leave() {
	if f == nil {
		return
	}
	if !await(f.done) {
		return
	}
	f.limiter.mu.Lock()
	idle := len(f.limiter.held) == 0 && !f.lost
	report := f.empty()
	report.Left = true
	f.limiter.mu.Unlock()
	if !idle {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	_, _ = f.store.Sync(ctx, f.room, report) // or its slots come back a little later
}

// run calls the store until ctx ends: when there is something to tell, and each
// second.
func (f *fleet) run(ctx context.Context, store SlotStore) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for ctx.Err() == nil {
		f.sync(ctx, store)
		wake := f.wake
		if f.isLost() { // it is asked again with the next heartbeat
			wake = nil
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
			f.tellAll()
		case <-wake:
		}
	}
}

func (f *fleet) isLost() bool {
	f.limiter.mu.Lock()
	defer f.limiter.mu.Unlock()
	return f.lost
}

func (f *fleet) tellAll() {
	f.limiter.mu.Lock()
	defer f.limiter.mu.Unlock()
	f.whole = true
}

var errNotTakenIn = errors.New("it doesn't take this gateway in")

// sync makes one call. The gateway continues after storeTimeout, also if the call
// doesn't end.
func (f *fleet) sync(ctx context.Context, store SlotStore) {
	report, told := f.report()
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	defer context.AfterFunc(call, func() { f.act(ctx, func() { f.lose(call.Err()) }) })()
	answer, err := store.Sync(call, f.room, report)
	switch {
	case err != nil:
	case call.Err() != nil:
		err = call.Err()
	case answer.Unknown && report.Joins:
		err = errNotTakenIn
	}
	f.act(ctx, func() {
		if err != nil {
			f.lose(err)
			return
		}
		f.accept(told, answer)
	})
}

// act does what is to be done after a call, unless another store is used now, or
// none.
func (f *fleet) act(ctx context.Context, do func()) {
	f.limiter.mu.Lock()
	defer f.limiter.mu.Unlock()
	if ctx.Err() != nil {
		f.whole = true
		return
	}
	do()
}

// report says what has come about since the last call, or all there is. It also
// returns the tickets that the store hears of for the first time.
func (f *fleet) report() (r SlotReport, told []*ticket) {
	l := f.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	r = f.empty()
	r.Joins, r.Cautious, r.Whole, r.Over = f.joins, f.cautious, f.whole, f.over
	if f.cautious {
		r.Share, _ = f.share(l.slots, l.queue)
	}
	f.over = nil
	for _, t := range l.waiting {
		switch {
		case t.told && !f.whole:
			continue
		case t.accepted:
			r.Waiting = append(r.Waiting, t.slotTicket(now))
		case len(r.New) == mostNew:
			f.poke()
			continue
		default:
			r.New = append(r.New, t.slotTicket(now))
		}
		if !t.told {
			told = append(told, t)
		}
	}
	if f.whole {
		r.Held = f.reportHeld(now)
	}
	f.whole = false
	return r, told
}

// empty returns a report of nothing. Its limits and times hold for what the store
// does for other gateways, too.
func (f *fleet) empty() SlotReport {
	l := f.limiter
	return SlotReport{
		Gateway: f.gateway, Slots: l.slots, Queue: l.queue, Share: l.slots,
		Life: gatewayLife.Milliseconds(), Silence: silence.Milliseconds(),
		Lease: f.lease.Milliseconds(), Offer: offerLife.Milliseconds(),
	}
}

// reportHeld says which tickets have a slot. While the gateway is alone, some may
// get one before the answer comes, and it says that they have it already.
func (f *fleet) reportHeld(now time.Time) (held []SlotTicket) {
	l := f.limiter
	for _, t := range l.held {
		held = append(held, t.slotTicket(now))
	}
	if f.lost {
		slots, _ := f.share(l.slots, l.queue)
		for n := len(held); n < slots; n++ {
			held = append(held, SlotTicket{ID: int64(-1 - n)})
		}
	}
	return held
}

func (t *ticket) slotTicket(now time.Time) SlotTicket {
	return SlotTicket{ID: t.id, Age: now.Sub(t.since).Milliseconds()}
}

// accept acts on the store's answer to a report.
func (f *fleet) accept(told []*ticket, a SlotAnswer) {
	l := f.limiter
	if a.Unknown {
		f.beCautious()
		f.poke()
		return
	}
	if f.lost {
		f.lost, f.whole = false, true
		f.poke()
		f.logger.Info("capacity: slots are counted over all gateways again", zap.Int("gateways", a.Gateways))
	}
	f.joins, f.cautious = false, f.cautious && a.Fresh
	if !f.cautious {
		f.gateways, f.own = a.Gateways, len(a.Granted)
	}
	f.take(a.Granted)
	var refused []*ticket
	for _, t := range told {
		if slices.Contains(a.Refused, t.id) {
			refused = append(refused, t)
			continue
		}
		t.told, t.accepted = true, true
	}
	f.othersHold, f.othersWait = max(0, a.Held-len(a.Granted)), max(0, a.Waiting-l.countTold())
	for _, t := range refused {
		l.turnAway(t, CauseQueue)
	}
	f.estimate(told, a.Waiting)
}

// take gives slots to tickets that the store has granted. One that has left in
// the meantime gives its slot back.
func (f *fleet) take(granted []int64) {
	l := f.limiter
	held := make(map[int64]bool, len(l.held))
	for _, t := range l.held {
		held[t.id] = true
	}
	for _, id := range granted {
		if held[id] {
			continue
		}
		i := slices.IndexFunc(l.waiting, func(t *ticket) bool { return t.id == id })
		if i < 0 {
			f.over = append(f.over, id)
			f.poke()
			continue
		}
		l.admit(l.waiting[i])
		l.waiting = slices.Delete(l.waiting, i, i+1)
	}
}

// estimate turns those away that have just begun to wait and would for too long,
// given how many wait in all: they are the last of them.
func (f *fleet) estimate(told []*ticket, waiting int) {
	told = slices.DeleteFunc(told, func(t *ticket) bool { return t.judged || t.isReady() })
	for i, t := range told {
		t.judged = true
		if f.limiter.after(waiting-(len(told)-1-i)) > t.wait && f.limiter.turnAway(t, CauseWait) {
			f.ended(t)
		}
	}
}

// lose has the gateway go on alone, since the store doesn't answer.
func (f *fleet) lose(err error) {
	l := f.limiter
	if !f.lost {
		f.beCautious()
		f.lost = true
		slots, queue := f.part(l.slots, l.queue)
		f.logger.Error("capacity: the store of the slots doesn't answer; until it does, this gateway continues with its share",
			zap.Int("slots", slots), zap.Int("queue", queue), zap.Int("gateways", f.gateways), zap.Error(err))
		l.judgeNew()
	}
	f.whole = true
	l.grant()
}

// beCautious notes that the store may not know what is in use, here and at other
// gateways: it doesn't answer, or has forgotten.
func (f *fleet) beCautious() {
	l := f.limiter
	if !f.cautious {
		free := l.slots - f.own - f.othersHold
		f.untilSettled = max(1, len(l.held), f.own, free/max(1, f.gateways))
		f.settled = time.Now().Add(f.lease)
	}
	f.cautious, f.joins, f.whole = true, true, true
	for _, t := range l.waiting {
		t.told = false
	}
}

// part returns this gateway's part of the limits: at least one slot. How many
// gateways there are is known from the store's last answer. One that never got
// an answer takes one slot. There are no slots once another config has none.
func (f *fleet) part(slots, queue int) (ownSlots, ownQueue int) {
	gateways := f.gateways
	if gateways < 1 {
		gateways = max(1, slots)
	}
	return max(1, slots/gateways), max(min(queue, 1), queue/gateways)
}

// share returns the limits for a gateway that is alone or cautious. Until the
// leases of other gateways have ended that held more than their part, it takes no
// more than what was its own, or its part of what was free, or one.
func (f *fleet) share(slots, queue int) (ownSlots, ownQueue int) {
	ownSlots, ownQueue = f.part(slots, queue)
	if time.Now().Before(f.settled) {
		ownSlots = min(ownSlots, f.untilSettled)
	}
	return ownSlots, ownQueue
}

// partOf returns this gateway's part of the places that there are.
func (f *fleet) partOf(places int) int {
	if !f.grants() {
		return places
	}
	return places / max(1, f.gateways)
}

// grants reports whether the store grants the slots.
func (f *fleet) grants() bool { return f != nil && !f.lost }

// alone reports whether there is a store that doesn't answer.
func (f *fleet) alone() bool { return f != nil && f.lost }

// elsewhere returns how many tickets other gateways have in slots and waiting.
func (f *fleet) elsewhere() (held, waiting int) {
	if !f.grants() {
		return 0, 0
	}
	return f.othersHold, f.othersWait
}

// ended tells the store that a ticket has ended.
func (f *fleet) ended(t *ticket) {
	if !f.grants() {
		return
	}
	f.over = append(f.over, t.id)
	f.poke()
}

// poke has the store called soon.
func (f *fleet) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (l *limiter) countTold() (n int) {
	for _, t := range l.waiting {
		if t.told {
			n++
		}
	}
	return n
}

// turnAway refuses one that waits. It reports whether it still did.
func (l *limiter) turnAway(t *ticket, cause Cause) bool {
	if !remove(&l.waiting, t) {
		return false
	}
	t.refuse(&Refused{cause, l.untilFree()})
	return true
}
