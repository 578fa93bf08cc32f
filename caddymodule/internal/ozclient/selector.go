package ozclient

import (
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// selector picks upstreams by the operator's policy, from those that the call
// has not tried yet. On its own a policy such as `first` would pick the same
// dead upstream for every attempt.
type selector struct {
	policy  reverseproxy.Selector
	passive *reverseproxy.PassiveHealthChecks

	dynamic bool
	last    atomic.Pointer[reverseproxy.UpstreamPool] // where upstreams are dynamic; nil: no call has chosen yet
}

// Select implements reverseproxy.Selector.
func (s *selector) Select(pool reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	k, ok := r.Context().Value(callCtxKey{}).(*call)
	if !ok {
		return s.policy.Select(pool, r, w)
	}
	s.noted(pool)
	if r.Context().Err() != nil {
		return nowhere()
	}
	if left := untried(pool, k.tried); len(left) > 0 {
		if u := s.pick(left, r, w); u != nil {
			return u
		}
	}
	if u := s.pick(pool, r, w); u != nil {
		return u
	}
	k.allFull = slices.ContainsFunc(pool, func(u *reverseproxy.Upstream) bool { return u.Full() && u.Healthy() })
	return nil
}

// nowhere returns the upstream of a call whose context has ended. To nil,
// reverse_proxy would answer by more attempts until lb_try_duration is over, as
// it doesn't look at the context; the transport ends the call instead, and
// dials nothing.
func nowhere() *reverseproxy.Upstream {
	return &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: "localhost:1"}
}

// pick returns the policy's choice. Where it finds no upstream available, active
// health checks lose their say: on a busy Oz the probe waits behind real work
// and fails, and to refuse all work because there is work would be absurd. An
// upstream that is really down refuses the connection, which costs nothing.
func (s *selector) pick(pool reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	if u := s.policy.Select(pool, r, w); u != nil {
		return u
	}
	var idlest *reverseproxy.Upstream
	for _, u := range pool {
		if u.Full() || s.failed(u) {
			continue
		}
		if idlest == nil || u.NumRequests() < idlest.NumRequests() {
			idlest = u
		}
	}
	return idlest
}

// failed reports whether passive health checks, which count what happened to
// real work, hold u for down.
func (s *selector) failed(u *reverseproxy.Upstream) bool {
	return s.passive != nil && u.Fails() >= s.passive.MaxFails
}

// untried returns the upstreams of pool that a call has not been to.
func untried(pool reverseproxy.UpstreamPool, tried []string) reverseproxy.UpstreamPool {
	if len(tried) == 0 {
		return pool
	}
	var left reverseproxy.UpstreamPool
	for _, u := range pool {
		if !slices.Contains(tried, u.String()) {
			left = append(left, u)
		}
	}
	return left
}
