package main

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const (
	everyDeclined = 7  // every so many capsules Oz declines
	everyReplayed = 10 // every so many capsules come twice at the same instant

	resetPause = 100 * time.Millisecond // before a client tries again that nobody has listened to
)

// at tells a time of this program's clock by the machine's.
func (e *fleetEnv) at(t time.Time) time.Duration { return e.epochAt + t.Sub(e.epoch) }

// interval is the time between two capsules.
func (r *fleetRun) interval() time.Duration {
	return r.analysis / time.Duration(r.slots*r.overload)
}

// send sends capsules at an even pace until ctx ends, however many are refused, and returns when the last answer is in.
func (e *fleetEnv) send(ctx context.Context) {
	ticker := time.NewTicker(e.interval())
	defer ticker.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		twice := n%everyReplayed == 0 && e.replays.Load()
		all.Go(func() { e.one(n, twice) })
	}
}

// one sends the n-th capsule, and returns when the last answer is in.
func (e *fleetEnv) one(n int, twice bool) {
	id, outcome := "fleet-"+strconv.Itoa(n), sandbox.Success
	if n%everyDeclined == 0 {
		outcome = sandbox.Declined
	}
	u := upload{url: e.front.url + verifyPath, id: id, capsule: e.maker.Capsule(sandbox.CapsuleSpec{
		Meta: map[string]string{"transaction_id": id}, PayloadSize: int64(e.size), Outcome: outcome,
	})}
	if !twice {
		e.account(u, id, outcome)
		return
	}
	e.copies.Add(1)
	var both sync.WaitGroup
	again := u
	again.id += "-again"
	both.Go(func() { e.account(u, id, outcome) })
	both.Go(func() { e.account(again, id, outcome) })
	both.Wait()
}

// account sends a capsule and enters what comes of it.
func (e *fleetEnv) account(u upload, capsule, outcome string) {
	e.accounting.sendingAgain(u.id, capsule, outcome)
	e.accounting.sent(u.id, e.post(u))
}

// post tries again where the gateway in front got no answer, since a reload closes a listening socket together with the connections
// that wait there, unless a kill -9 explains it. A gateway's access log must not hold a second request with this capsule.
func (e *fleetEnv) post(u upload) (a response) {
	for range 20 {
		if a = u.post(context.Background(), e.client); !a.broken() {
			return a
		}
		if e.killed(a) {
			a.left = true
			return a
		}
		e.resets.Add(1)
		time.Sleep(resetPause)
	}
	return a
}

// broken reports whether the gateway that was chosen gave no whole answer.
func (a response) broken() bool {
	return a.err != nil || !a.problem && a.status >= http.StatusBadGateway
}

// killed reports whether the gateway that was chosen for a request was killed while that was in progress.
func (e *fleetEnv) killed(a response) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, k := range e.kills {
		if a.via == k.addr && a.ended.After(k.from) && a.ended.Before(k.to) {
			return true
		}
	}
	return false
}
