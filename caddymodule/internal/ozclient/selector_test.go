package ozclient

import (
	"context"
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func proxyTo(dials ...string) *reverseproxy.Handler {
	rp := new(reverseproxy.Handler)
	for _, dial := range dials {
		rp.Upstreams = append(rp.Upstreams, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: dial})
	}
	return rp
}

// nobodyUp is a policy that finds no upstream available.
type nobodyUp struct{}

func (nobodyUp) Select(reverseproxy.UpstreamPool, *http.Request, http.ResponseWriter) *reverseproxy.Upstream {
	return nil
}

func selected(s *selector, pool reverseproxy.UpstreamPool, k *call) string {
	ctx := context.Background()
	if k != nil {
		ctx = context.WithValue(ctx, callCtxKey{}, k)
	}
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://oz/", nil)
	if u := s.Select(pool, req, nil); u != nil {
		return u.Dial
	}
	return ""
}

// Each attempt goes to an upstream that was not tried, while there is one.
func TestSelectorGoesOn(t *testing.T) {
	pool := proxyTo("a:1", "b:2", "c:3").Upstreams
	s := &selector{policy: reverseproxy.FirstSelection{}}
	k := new(call)
	for _, want := range []string{"a:1", "b:2", "c:3", "a:1"} {
		got := selected(s, pool, k)
		if got != want {
			t.Fatalf("after %v: %q, want %q", k.tried, got, want)
		}
		k.tried = append(k.tried, got)
	}
	if got := selected(s, pool, nil); got != "a:1" {
		t.Errorf("a request that is no call of ours: %q", got)
	}
}

// Active health checks are not believed when they leave nobody. Limits and
// what passive checks saw are.
func TestSelectorStandsByTheBusy(t *testing.T) {
	pool := proxyTo("a:1", "b:2").Upstreams
	s := &selector{policy: nobodyUp{}}
	if got := selected(s, pool, new(call)); got == "" {
		t.Error("nobody was chosen although nothing but a probe has failed")
	}
	passive := &selector{policy: nobodyUp{}, passive: &reverseproxy.PassiveHealthChecks{MaxFails: 0}}
	if got := selected(passive, pool, new(call)); got != "" {
		t.Errorf("%s was chosen although real work has failed there", got)
	}
}

// A call that has ended gets an upstream that is nowhere, so that reverse_proxy
// comes to the transport, which ends it, instead of looking for others until
// lb_try_duration is over.
func TestSelectorEndsACallThatHasEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), callCtxKey{}, new(call)))
	cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://oz/", nil)
	s := &selector{policy: nobodyUp{}}
	if u := s.Select(nil, req, nil); u == nil || u.Host == nil {
		t.Errorf("%v", u)
	}
}
