package caddymodule

import (
	"container/heap"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
)

func init() {
	caddy.RegisterModule(new(ReplayMemory))
}

// ReplayMemory is the store of a replay guard in the gateway's memory. All
// handlers of the gateway share it, and it outlives config reloads, but not the
// process: for several gateways, or for claims that outlive a restart, use the
// `redis` store.
type ReplayMemory struct {
	// How many claims are remembered at most; a claim takes about 200 bytes.
	// When there are more, the oldest of capsules that were decided go, and a
	// warning is logged: a capsule that was forgotten can count again. Those of
	// capsules in progress go only where there are no others. Handlers share one memory, whose limit is the largest of theirs.
	// Default: 262144.
	Entries int `json:"entries,omitempty"`

	shared *replayMemory
	logger *zap.Logger
}

const (
	defaultReplayEntries = 1 << 18
	mostReplayEntries    = 1 << 26

	// forgetWarning is how often it is logged that claims were forgotten.
	forgetWarning = time.Minute
)

// CaddyModule returns the Caddy module information.
func (*ReplayMemory) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  replayNamespace + ".memory",
		New: func() caddy.Module { return new(ReplayMemory) },
	}
}

// replayMemories has one element: a capsule counts once in the whole gateway.
var replayMemories = caddy.NewUsagePool()

// Provision implements caddy.Provisioner.
func (m *ReplayMemory) Provision(ctx caddy.Context) error {
	m.logger = ctx.Logger()
	setDefault(&m.Entries, defaultReplayEntries)
	if m.Entries < 1 || m.Entries > mostReplayEntries {
		return errors.New("entries: out of range (want 1 to 67108864)")
	}
	shared, _, err := replayMemories.LoadOrNew("memory", func() (caddy.Destructor, error) { return newReplayMemory(), nil })
	if err != nil {
		return err
	}
	m.shared = shared.(*replayMemory)
	m.shared.join(m)
	return nil
}

// Cleanup implements caddy.CleanerUpper. It also runs after a failed Provision.
func (m *ReplayMemory) Cleanup() error {
	if m.shared == nil {
		return nil
	}
	m.shared.leave(m)
	_, err := replayMemories.Delete("memory")
	return err
}

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	memory {
//	    entries <n>
//	}
func (m *ReplayMemory) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.Err("replay_guard: memory takes no arguments (want redis <url> for several gateways)")
	}
	for d.NextBlock(0) {
		segment := d.NextSegment()
		option := firstToken(segment)
		if name := option.Val(); name != "entries" {
			return option.Errf("replay_guard: unrecognized option%s (want also, entries, on_error or window)", quotable(name))
		}
		if m.Entries != 0 {
			return option.Err("replay_guard: entries was already given")
		}
		if err := countOption(&m.Entries, 1, mostReplayEntries)(firstToken(segment)); err != nil { // it quotes what may be a URL
			return option.Errf("replay_guard: invalid entries (want one number from 1 to %d)", mostReplayEntries)
		}
	}
	return nil
}

// Claim implements ReplayStore.
func (m *ReplayMemory) Claim(_ context.Context, key, owner string, ttl time.Duration) (bool, error) {
	err := m.set(key, owner, ttl, inProgress)
	return err == nil, nil
}

// Settle implements ReplayStore.
func (m *ReplayMemory) Settle(_ context.Context, key, owner string, ttl time.Duration) error {
	return m.set(key, owner, ttl, decided)
}

// Release implements ReplayStore.
func (m *ReplayMemory) Release(_ context.Context, key, owner string) error {
	m.shared.release(key, owner)
	return nil
}

func (m *ReplayMemory) set(key, owner string, ttl time.Duration, state int) error {
	forgotten, warn, err := m.shared.set(key, owner, time.Now(), ttl, state)
	if forgotten > 0 {
		sharedMetrics.replayForgotten.Add(float64(forgotten))
	}
	if warn {
		m.logger.Warn("replay_guard: memory is full of claims that have not ended, and the oldest were forgotten: such a capsule can count again; raise entries")
	}
	return err
}

// replayMemory is what all stores of this kind share. It holds nothing of any
// config but its limits.
type replayMemory struct {
	mu     sync.Mutex
	users  map[*ReplayMemory]none
	limit  int
	claims map[string]*memoryClaim
	queues [decided + 1]claimQueue
	warned time.Time
}

// memoryClaim is a claim in memory.
type memoryClaim struct {
	key, owner string
	ends       time.Time
	state      int // which queue it is in
	at         int // where in it
}

// States of claims.
const (
	inProgress = iota
	decided
)

func newReplayMemory() *replayMemory {
	return &replayMemory{users: make(map[*ReplayMemory]none), claims: make(map[string]*memoryClaim)}
}

// Destruct implements caddy.Destructor.
func (*replayMemory) Destruct() error { return nil }

func (s *replayMemory) join(m *ReplayMemory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[m] = none{}
	s.apply()
}

func (s *replayMemory) leave(m *ReplayMemory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.users, m)
	s.apply()
}

func (s *replayMemory) apply() {
	if len(s.users) == 0 {
		return
	}
	s.limit = 0
	for m := range s.users {
		s.limit = max(s.limit, m.Entries)
	}
}

// set makes or prolongs a claim, unless it is another owner's. It tells how many
// claims were forgotten for it before their end, and whether to warn of that.
func (s *replayMemory) set(key, owner string, now time.Time, ttl time.Duration, state int) (forgotten int, warn bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ends := now.Add(ttl)
	if c := s.claims[key]; c != nil {
		if c.owner != owner && c.ends.After(now) {
			return 0, false, ErrClaimed
		}
		heap.Remove(&s.queues[c.state], c.at)
		c.owner, c.ends, c.state = owner, ends, state
		heap.Push(&s.queues[state], c)
		return 0, false, nil
	}
	forgotten = s.makeRoom(now)
	c := &memoryClaim{key: key, owner: owner, ends: ends, state: state}
	s.claims[key] = c
	heap.Push(&s.queues[state], c)
	if forgotten > 0 && now.Sub(s.warned) >= forgetWarning {
		s.warned, warn = now, true
	}
	return forgotten, warn, nil
}

// sweep is how many claims a new one removes at most: more than one, so that
// those that have ended get fewer, and few, so that no capsule waits for it.
const sweep = 4

// makeRoom removes claims that have ended, and one more that has not if there is
// no room otherwise.
func (s *replayMemory) makeRoom(now time.Time) (forgotten int) {
	for range sweep {
		c := s.oldest(now)
		switch {
		case c == nil:
			return forgotten
		case c.ends.After(now) && len(s.claims) < s.limit:
			return forgotten
		case c.ends.After(now):
			forgotten++
		}
		s.remove(c)
	}
	return forgotten
}

// oldest returns the next claim to go, or nil without any: one that has ended
// before all others, and then one of a capsule that was decided. Junk could
// otherwise have capsules in progress forgotten.
func (s *replayMemory) oldest(now time.Time) (next *memoryClaim) {
	for _, state := range [...]int{decided, inProgress} {
		q := s.queues[state]
		if len(q) > 0 && (next == nil || next.ends.After(now) && !q[0].ends.After(now)) {
			next = q[0]
		}
	}
	return next
}

func (s *replayMemory) remove(c *memoryClaim) {
	heap.Remove(&s.queues[c.state], c.at)
	delete(s.claims, c.key)
}

func (s *replayMemory) release(key, owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.claims[key]; c != nil && c.owner == owner {
		s.remove(c)
	}
}

// claimQueue is a heap.Interface, by the time at which claims end.
type claimQueue []*memoryClaim

func (q claimQueue) Len() int           { return len(q) }
func (q claimQueue) Less(i, j int) bool { return q[i].ends.Before(q[j].ends) }
func (q claimQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push implements heap.Interface.
func (q *claimQueue) Push(x any) {
	c := x.(*memoryClaim)
	c.at = len(*q)
	*q = append(*q, c)
}

// Pop implements heap.Interface.
func (q *claimQueue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return c
}

// Interface guards
var (
	_ ReplayStore           = (*ReplayMemory)(nil)
	_ caddy.Module          = (*ReplayMemory)(nil)
	_ caddy.Provisioner     = (*ReplayMemory)(nil)
	_ caddy.CleanerUpper    = (*ReplayMemory)(nil)
	_ caddyfile.Unmarshaler = (*ReplayMemory)(nil)
)
