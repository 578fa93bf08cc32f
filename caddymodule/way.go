package caddymodule

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// way is what this gateway remembers of one way to Oz. All handlers with the
// same identity share it, as they share gate and account, and it outlives
// reloads: it holds nothing of a config but its users.
type way struct {
	identity  string // has values of header_up, and is never shown
	since     time.Time
	decisions map[oz.Decision]*atomic.Int64 // made once, and then only read

	mu       sync.Mutex
	users    []*wayUser
	failures map[oz.Reason]failure
}

type failure struct {
	last  time.Time
	count int64
}

// wayUser is one handler's use of a way.
type wayUser struct {
	*way
	config any
	client *ozclient.Client
	gate   *upload.Gate
}

var ways = caddy.NewUsagePool()

// openWay finds or makes the way with this identity. It must be closed.
func openWay(identity string, config any, client *ozclient.Client, gate *upload.Gate) *wayUser {
	value, _, _ := ways.LoadOrNew(identity, func() (caddy.Destructor, error) { return newWay(identity), nil }) // which never fails
	u := &wayUser{way: value.(*way), config: config, client: client, gate: gate}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.users = append(u.users, u)
	return u
}

func newWay(identity string) *way {
	w := &way{
		identity: identity, since: time.Now(),
		decisions: make(map[oz.Decision]*atomic.Int64), failures: make(map[oz.Reason]failure),
	}
	for _, d := range oz.Decisions() {
		w.decisions[d] = new(atomic.Int64)
	}
	return w
}

// Destruct implements caddy.Destructor: the last user has gone.
func (*way) Destruct() error { return nil }

func (u *wayUser) close() {
	u.mu.Lock()
	u.users = slices.DeleteFunc(u.users, func(other *wayUser) bool { return other == u })
	u.mu.Unlock()
	_, _ = ways.Delete(u.identity) // Destruct never fails
}

// decided counts a decision. Only one with a reason costs more than an atomic
// addition.
func (w *way) decided(v oz.Verdict) {
	w.decisions[v.Decision].Add(1)
	if v.Reason == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures[v.Reason] = failure{time.Now(), w.failures[v.Reason].count + 1}
}

// usersOf returns the way's users in configs that are wanted.
func (w *way) usersOf(wanted func(config any) bool) (users []*wayUser) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.users {
		if wanted(u.config) {
			users = append(users, u)
		}
	}
	return users
}

// waysOf returns the users of each way that has some in configs that are
// wanted, in an order that stays.
func waysOf(wanted func(config any) bool) (list [][]*wayUser) {
	ways.Range(func(_, value any) bool {
		if users := value.(*way).usersOf(wanted); len(users) > 0 {
			list = append(list, users)
		}
		return true
	})
	slices.SortFunc(list, func(a, b []*wayUser) int { return cmp.Compare(a[0].identity, b[0].identity) })
	return list
}

// inForce reports whether a config is the one in force. While one is loaded
// there are two, and of one that fails to load nothing is in force ever. When
// Caddy exits it has none any more, but still serves by the last one.
func inForce() func(config any) bool {
	ctx := caddy.ActiveContext()
	active := ctx.GetMetricsRegistry()
	return func(config any) bool {
		return active != nil && config == any(active) || active == nil && caddy.Exiting()
	}
}

// statusOf returns the status of a way by its users, of which there is at least
// one.
func statusOf(users []*wayUser) diagnose.Way {
	w := users[0].way
	s := diagnose.Way{
		Since: whole(w.since), BasePath: users[0].client.BasePath(), GateStatus: users[0].gate.Status(),
		Upstreams: []ozclient.UpstreamStatus{}, Decisions: make(map[oz.Decision]int64), LastFailures: w.lastFailures(),
	}
	for d, n := range w.decisions {
		s.Decisions[d] = n.Load()
	}
	for _, u := range users {
		var upstreams []ozclient.UpstreamStatus
		upstreams, s.DynamicUpstreams = u.client.Upstreams()
		for _, upstream := range upstreams {
			s.Upstreams = withUpstream(s.Upstreams, upstream)
		}
	}
	s.AccessToken = worstToken(users)
	return s
}

// withUpstream adds an upstream. One that is there already belongs to another
// block, and each block has health checks of its own: what one of them holds for
// down is shown as down.
func withUpstream(list []ozclient.UpstreamStatus, u ozclient.UpstreamStatus) []ozclient.UpstreamStatus {
	for i := range list {
		if list[i].Address == u.Address {
			list[i].Healthy = list[i].Healthy && u.Healthy
			return list
		}
	}
	return append(list, u)
}

// worstToken returns the state of the access token that is in most need of
// attention: blocks of one way may have accounts of their own.
func worstToken(users []*wayUser) (worst *ozclient.TokenStatus) {
	rank := func(t *ozclient.TokenStatus) int { return slices.Index(ozclient.TokenStates(), t.State) }
	for _, u := range users {
		t := u.client.AccessToken()
		if t == nil {
			continue
		}
		if worst == nil || cmp.Or(cmp.Compare(rank(t), rank(worst)), cmp.Compare(t.ExpiresIn, worst.ExpiresIn)) < 0 {
			worst = t
		}
	}
	return worst
}

// lastFailures returns one entry for each reason that there was, the newest first.
func (w *way) lastFailures() []diagnose.Failure {
	w.mu.Lock()
	failures := maps.Clone(w.failures)
	w.mu.Unlock()
	reasons := slices.SortedFunc(maps.Keys(failures), func(a, b oz.Reason) int {
		return cmp.Or(failures[b].last.Compare(failures[a].last), cmp.Compare(a, b))
	})
	list := make([]diagnose.Failure, len(reasons))
	for i, reason := range reasons {
		list[i] = diagnose.Failure{Reason: reason, Time: whole(failures[reason].last), Count: failures[reason].count}
	}
	return list
}

// whole returns t as the admin API shows times: UTC, in whole seconds.
func whole(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
