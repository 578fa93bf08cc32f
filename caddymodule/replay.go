package caddymodule

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/minio/highwayhash"
	"github.com/zeebo/blake3"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// ReplayGuard makes a capsule count once. The gateway takes a digest of each
// capsule while it arrives and claims it in a store; the second capsule with the
// same bytes is `INVALID`, `replayed` (409), whatever Oz says about it, and its
// folder reaches nobody. All handlers whose guards have the same store share
// their claims: also those of other sites, other ways to Oz and, with a store
// outside of the gateway, other gateways.
//
// A claim is made when the capsule's last byte is known: beside Oz's analysis,
// or with `capacity` `memory` before the capsule takes a slot, so that Oz never
// sees it twice. A decision makes it last for `window`. Where nothing was decided
// (`UNAVAILABLE`, a client that left, a failed upload) it is given back, so that
// the same capsule can be sent again. A gateway that dies leaves a claim that
// ends by itself, after the longest time that an attempt can take: twice
// `timeout`, `wait` with `capacity` `memory`, both again for face matching, and
// some seconds.
type ReplayGuard struct {
	// Where claims are kept: a module in the namespace
	// `http.handlers.oz_instant.replay`. Default: `memory`, which is this
	// gateway's own.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=http.handlers.oz_instant.replay inline_key=module"`

	// How long a capsule that was decided is remembered. It should outlast
	// the session tokens of Oz. At least a second. Default: `15m`.
	Window caddy.Duration `json:"window,omitempty"`

	// A path in the folder, such as `meta_data.event_session_id`, without `#`.
	// Before a SUCCESS counts, the value there is claimed as well, under a digest
	// of its own. So a capsule of which Oz ignores some bytes doesn't count twice
	// when these are changed. A folder that does not have the value, or has an
	// empty one, or anything but a string or number, is `INVALID`, `binding`.
	// Default: none.
	Also string `json:"also,omitempty"`

	// What happens when the store fails, or takes longer than a second.
	// `refuse`: the decision is `UNAVAILABLE`, `store_unavailable` (503).
	// `allow`: Oz's decision stands, a warning is logged, and
	// a capsule may count more than once. Default: `refuse`.
	OnError string `json:"on_error,omitempty"`

	store    ReplayStore
	alsoPath oz.Path
	attempt  time.Duration // how long a claim lives without a decision
	metrics  *metrics
}

// ReplayStore keeps the claims of a [ReplayGuard]. A module in the namespace
// http.handlers.oz_instant.replay must implement it.
//
// A claim is a key with an owner, and ends by itself. Keys are digests and
// owners random; both are short texts of letters, digits, - and _. A call has at
// most a second, by its context, and those after Oz's decision have one together:
// what takes longer has failed, and may still have happened. Capsules in progress
// may make calls for minutes after the module's Cleanup. Errors may go to the log:
// they must quote no key, owner or secret.
type ReplayStore interface {
	// Claim makes a claim that lives for ttl if there is none under this key,
	// atomically, and reports whether it did. A claim of the same owner, made by
	// a call that seemed to fail, is as good.
	Claim(ctx context.Context, key, owner string, ttl time.Duration) (first bool, err error)

	// Settle makes the owner's claim live for ttl from now on. If it has ended,
	// Settle makes it anew. If it is another owner's, the error is ErrClaimed.
	Settle(ctx context.Context, key, owner string, ttl time.Duration) error

	// Release ends the owner's claim. It leaves another owner's alone.
	Release(ctx context.Context, key, owner string) error
}

// ErrClaimed is the error of a Settle that finds another owner's claim.
var ErrClaimed = errors.New("the claim is another attempt's")

const (
	replayNamespace = "http.handlers.oz_instant.replay"

	defaultWindow = caddy.Duration(15 * time.Minute)
	leastWindow   = caddy.Duration(time.Second)

	onErrorRefuse = "refuse"
	onErrorAllow  = "allow"

	// storeTimeout bounds each call of a store.
	storeTimeout = time.Second

	// attemptMargin is what a claim outlives the longest attempt by: calls of
	// the store and everything else that no option bounds.
	attemptMargin = 5 * time.Second
)

// Contexts of the digests. Gateways of different versions share a store, so
// that they must never change.
const (
	bytesContext   = "oz_instant 2026-11-25 replay guard, bytes of a capsule"
	capsuleContext = "oz_instant 2026-11-25 replay guard, capsule"
	alsoContext    = "oz_instant 2026-11-25 replay guard, value of a folder"
)

var (
	errGuarded      = errors.New("refused by the replay guard")
	errStoreTimeout = errors.New("the store of the replay guard took longer than a second")
	errUnclaimed    = errors.New("decided before the capsule was whole")
)

func (g *ReplayGuard) setDefaults() {
	if g.StoreRaw == nil {
		g.StoreRaw = json.RawMessage(`{"module":"memory"}`)
	}
	setDefault(&g.Window, defaultWindow)
	setDefault(&g.OnError, onErrorRefuse)
}

func (g *ReplayGuard) validate() error {
	if g == nil {
		return nil
	}
	if g.Window < leastWindow {
		return invalid("replay_guard window", errors.New("must be at least a second"))
	}
	if err := oneOf(g.OnError, onErrorRefuse, onErrorAllow); err != nil {
		return invalid("replay_guard on_error", err)
	}
	if g.Also == "" {
		return nil
	}
	path, err := oz.ParsePath(g.Also)
	if err == nil && !path.Single() {
		err = fmt.Errorf("path %q: # selects several values (want the path of one)", g.Also)
	}
	return invalid("replay_guard also", err)
}

func (g *ReplayGuard) provision(ctx caddy.Context, h *Handler) error {
	if g == nil {
		return nil
	}
	loaded, err := ctx.LoadModule(g, "StoreRaw")
	if err != nil {
		return fmt.Errorf("replay_guard: loading the store: %w", err)
	}
	store, ok := loaded.(ReplayStore)
	if !ok {
		return fmt.Errorf("replay_guard: %T is not a store of claims", loaded)
	}
	g.store, g.metrics, g.attempt = store, h.metrics, h.longestAttempt()
	if g.Also != "" {
		g.alsoPath, err = oz.ParsePath(g.Also)
	}
	return err
}

// longestAttempt returns the most that can pass between a capsule's last byte
// and its decision.
func (h *Handler) longestAttempt() time.Duration {
	longest := h.longestAnalysis()
	if c := h.Capacity; c != nil && c.Memory > 0 {
		longest += min(time.Duration(c.Wait), day)
	}
	return longest
}

// day is the most that any option counts for.
const day = 24 * time.Hour

// longestAnalysis returns the most that Oz and face matching can take. A call to
// Oz may take timeout twice: for Oz to take what is buffered, and to answer.
func (h *Handler) longestAnalysis() time.Duration {
	call := 2 * min(time.Duration(h.Timeout), day)
	longest := call + attemptMargin
	if h.Biometry != nil {
		longest += referenceTimeout + call
	}
	return longest
}

// Results of a guard for a capsule that it has tried to claim.
const (
	replayFirst    = "first"    // decided, and remembered
	replayReleased = "released" // nothing was decided, and it may be sent again
	replayReplayed = "replayed" // it was here before
	replayError    = "error"    // the store failed
	replayAllowed  = "allowed"  // the store failed, and the decision stands
)

var replayResults = [...]string{replayFirst, replayReleased, replayReplayed, replayError, replayAllowed}

// Calls of a store, for metrics.
const (
	storeClaim   = "claim"
	storeSettle  = "settle"
	storeRelease = "release"
)

var storeCalls = [...]string{storeClaim, storeSettle, storeRelease}

// guarded is what a guard makes of an attempt.
type guarded struct {
	result string    // empty: the capsule was never whole, or nothing guards it
	reason oz.Reason // empty: the decision stands
	err    error     // of the store
}

// claim is the guard's part of one attempt. The methods of a nil claim do
// nothing: there is no guard.
type claim struct {
	guard *ReplayGuard
	owner string
	hash  hash.Hash
	keys  []string // those that are this attempt's, or may be

	stop func()        // ends the wait for the last byte
	quit chan struct{} // closed by stop
	done chan struct{} // closed when the fields below are final

	made  bool // the store was asked
	first bool
	err   error

	concluded bool
	waited    time.Duration // for the store, by the attempt
}

// guard prepares the claim of a capsule, and its upload for it.
func (g *ReplayGuard) guard(limits *upload.Limits) *claim {
	if g == nil {
		return nil
	}
	c := &claim{
		guard: g, owner: rand.Text(), hash: newCapsuleHash(),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	c.stop = sync.OnceFunc(func() { close(c.quit) })
	limits.Digest = c.hash
	limits.Admit = func(context.Context) error {
		if !c.allows() {
			return errGuarded
		}
		return nil
	}
	return c
}

// watch makes the claim as soon as the capsule is received.
func (c *claim) watch(received <-chan struct{}) {
	if c == nil {
		return
	}
	go func() {
		defer close(c.done)
		select {
		case <-received:
		case <-c.quit:
			select {
			case <-received:
			default:
				return // it will never be whole
			}
		}
		key := derivedKey(capsuleContext, c.hash.Sum(nil))
		c.made = true
		c.first, c.err = c.claim(context.Background(), key)
	}()
}

// newCapsuleHash returns the hash of a capsule's bytes: HighwayHash-256, which
// takes 0.16 ms for 2 MiB where BLAKE3 takes 0.57, a third of what the rest of a
// capsule costs. It is a pseudo-random function and claims no resistance to
// collisions under a key that all know. None is needed: two capsules with one
// digest can only be refused, and it takes a capsule's bytes to make another
// with its digest.
func newCapsuleHash() hash.Hash {
	h, err := highwayhash.New(capsuleHashKey)
	if err != nil { // of a key of another size
		panic(err)
	}
	return h
}

var capsuleHashKey = derived(bytesContext, nil)

// derivedKey returns the key for data, which can't be told from it.
func derivedKey(context string, data []byte) string {
	return base64.RawURLEncoding.EncodeToString(derived(context, data))
}

func derived(context string, data []byte) []byte {
	key := make([]byte, 32)
	blake3.DeriveKey(context, data, key)
	return key
}

// alsoKey returns the key for a value of the folder.
func (g *ReplayGuard) alsoKey(value string) string {
	return derivedKey(alsoContext, []byte(g.Also+"\x00"+value))
}

// wait waits until the claim is made, or never will be.
func (c *claim) wait() {
	defer c.clock(time.Now())
	c.stop()
	<-c.done
}

// clock adds the time since start to what the attempt has waited for the store.
func (c *claim) clock(start time.Time) { c.waited += time.Since(start) }

// storeTime returns how long the attempt has waited for the store.
func (c *claim) storeTime() time.Duration {
	if c == nil {
		return 0
	}
	return c.waited
}

// reason returns what the claim makes of the decision; empty if it may stand.
func (c *claim) reason() oz.Reason {
	switch {
	case !c.made:
		return ""
	case c.err != nil && c.guard.OnError == onErrorAllow:
		return ""
	case c.err != nil:
		return oz.StoreUnavailable
	case !c.first:
		return oz.Replayed
	}
	return ""
}

// allows reports whether the attempt may continue.
func (c *claim) allows() bool {
	if c == nil {
		return true
	}
	c.wait()
	return c.reason() == ""
}

// conclude makes the claim last, if res is a decision, or gives it back. It has
// the last word about the decision.
func (c *claim) conclude(res *Result) guarded {
	if c == nil {
		return guarded{}
	}
	c.wait()
	c.concluded = true
	decided := res.fault == nil && res.verdict.Decision != oz.Unavailable
	switch reason := c.reason(); {
	case !c.made && decided && reachesApp(res.verdict.Decision): // never seen: Oz decides about whole capsules
		return guarded{replayError, oz.StoreUnavailable, errUnclaimed}
	case !c.made:
		return guarded{}
	case reason == oz.Replayed:
		return guarded{replayReplayed, reason, nil}
	case reason != "":
		c.releaseLate() // the call that failed may have made the claim
		return guarded{replayError, reason, c.err}
	case !decided:
		c.release()
		return guarded{replayReleased, "", nil}
	}
	return c.decide(res)
}

// decide makes the claim last for a decision. All of it has one second. That a
// claim is another attempt's counts also where failures are allowed.
func (c *claim) decide(res *Result) guarded {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	defer c.clock(time.Now())
	allow := c.guard.OnError == onErrorAllow
	err := c.settle(ctx, c.keys...)
	var also oz.Reason
	if err == nil || allow && !errors.Is(err, ErrClaimed) {
		var alsoErr error
		also, alsoErr = c.also(ctx, res)
		err = errors.Join(err, alsoErr)
	}
	switch {
	case errors.Is(err, ErrClaimed):
		return guarded{replayReplayed, oz.Replayed, nil}
	case also == oz.Replayed:
		return guarded{replayReplayed, also, nil}
	case err == nil:
		err = c.err
	}
	switch {
	case err == nil:
		return guarded{replayFirst, also, nil}
	case allow:
		return guarded{replayAllowed, also, err}
	}
	c.releaseLate()
	return guarded{replayError, oz.StoreUnavailable, err}
}

// also claims the value of the folder that counts once beside the capsule, for
// good.
func (c *claim) also(ctx context.Context, res *Result) (oz.Reason, error) {
	if c.guard.Also == "" || res.verdict.Decision != oz.Success {
		return "", nil
	}
	value, ok := c.guard.alsoPath.Text(res.liveness.Folder)
	if !ok {
		return oz.Binding, nil
	}
	key := c.guard.alsoKey(value)
	first, err := c.claim(ctx, key)
	switch {
	case err == nil && !first:
		return oz.Replayed, nil
	case err != nil && c.guard.OnError == onErrorRefuse:
		return "", err
	}
	return "", errors.Join(err, c.settle(ctx, key))
}

// claim claims a key, and notes that it is, or may be, this attempt's.
func (c *claim) claim(ctx context.Context, key string) (first bool, err error) {
	g := c.guard
	first, err = call(ctx, g, storeClaim, func(ctx context.Context) (bool, error) {
		return g.store.Claim(ctx, key, c.owner, g.attempt)
	})
	if first || err != nil {
		c.keys = append(c.keys, key)
	}
	return first, err
}

// settle makes claims of this attempt last.
func (c *claim) settle(ctx context.Context, keys ...string) error {
	g := c.guard
	for _, key := range keys {
		_, err := call(ctx, g, storeSettle, func(ctx context.Context) (none, error) {
			return none{}, g.store.Settle(ctx, key, c.owner, time.Duration(g.Window))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// release gives all claims of this attempt back: now, or soon.
func (c *claim) release() {
	defer c.clock(time.Now())
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	if c.releaseAll(ctx) != nil {
		c.releaseLate()
	}
}

func (c *claim) releaseAll(ctx context.Context) error {
	g := c.guard
	var errs []error
	for _, key := range c.keys {
		_, err := call(ctx, g, storeRelease, func(ctx context.Context) (none, error) {
			return none{}, g.store.Release(ctx, key, c.owner)
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// lateReleases are the pauses after a failed call, and between them, after which
// its claim is given back: it may have been made, or be made later by a store
// that has hung, and would keep an honest client from trying again for as long
// as it lives. Reloads do not end them.
var lateReleases = [...]time.Duration{0, 2 * time.Second, 8 * time.Second, 20 * time.Second}

// late counts the attempts that give claims back later. At most mostLate may do
// so, which take some 10 MB. Claims of the others end by themselves: after the
// longest time of an attempt, or if the store has made them last too late, after
// window.
var late atomic.Int32

const mostLate = 1 << 14

func (c *claim) releaseLate() {
	if late.Add(1) > mostLate {
		late.Add(-1)
		return
	}
	c.releaseAfter(lateReleases[:])
}

func (c *claim) releaseAfter(pauses []time.Duration) {
	if len(pauses) == 0 {
		late.Add(-1)
		return
	}
	time.AfterFunc(pauses[0], func() {
		ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
		defer cancel()
		_ = c.releaseAll(ctx) // counted
		c.releaseAfter(pauses[1:])
	})
}

// end gives back the claim of an attempt that did not come to its end: a panic
// passes through.
func (c *claim) end() {
	if c == nil || c.concluded {
		return
	}
	c.wait()
	c.release()
}

type none struct{}

// call calls the store and waits for it no longer than a second, even if it
// doesn't look at its context.
func call[T any](ctx context.Context, g *ReplayGuard, name string, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	type outcome struct {
		value T
		err   error
	}
	start := time.Now()
	answer := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if v := recover(); v != nil { // outside of the server's goroutines it would end the gateway
				o.err = fmt.Errorf("the store of the replay guard panicked: %T", v)
			}
			answer <- o
		}()
		o.value, o.err = f(ctx)
	}()
	var o outcome
	select {
	case o = <-answer:
	case <-ctx.Done():
		o.err = errStoreTimeout
	}
	if errors.Is(o.err, context.DeadlineExceeded) {
		o.err = errStoreTimeout
	}
	g.metrics.storeCalled(name, time.Since(start), o.err)
	return o.value, o.err
}
