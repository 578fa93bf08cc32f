package ozclient

import (
	"math"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// UpstreamStatus is what is known of one upstream. Names of JSON are part of
// the admin API.
type UpstreamStatus struct {
	Address  string `json:"address"` // as configured: placeholders aren't resolved
	Healthy  bool   `json:"healthy"`
	Requests int    `json:"requests"`
	Fails    int    `json:"fails"`
}

// TokenState is a word for an access token's state.
type TokenState string

// States of an access token, from the worst to the best.
const (
	TokenFailed   TokenState = "failed"   // the last log-in or refresh failed; an older token may still be good
	TokenNone     TokenState = "none"     // no call has needed one, or it has expired or was refused
	TokenRenewing TokenState = "renewing" // a log-in or refresh is in progress
	TokenValid    TokenState = "valid"
	TokenFixed    TokenState = "fixed" // it is part of the config, and nobody knows for how long it is good
)

// TokenStates lists every TokenState, from the worst to the best.
func TokenStates() []TokenState {
	return []TokenState{TokenFailed, TokenNone, TokenRenewing, TokenValid, TokenFixed}
}

// TokenStatus is what is known of an access token, less the token.
type TokenStatus struct {
	State     TokenState `json:"state"`
	ExpiresIn int        `json:"expires_in_seconds"` // 0: there is none, or it is fixed
	Expires   time.Time  `json:"-"`                  // zero likewise
}

// Upstreams returns what is known of the upstreams, by the health checks that
// choose among them, and the kind of dynamic upstreams if they are. Dynamic ones
// are those that the last call of this Client chose from: nobody else asks the
// source, and to ask it for a status would be a query to DNS.
func (c *Client) Upstreams() (list []UpstreamStatus, dynamic string) {
	pool := c.proxy.Upstreams
	if source := c.proxy.DynamicUpstreams; source != nil {
		dynamic = "unknown"
		if mod, ok := source.(caddy.Module); ok {
			dynamic = mod.CaddyModule().ID.Name()
		}
		if last := c.selector().last.Load(); last != nil {
			pool = *last
		}
	}
	for _, u := range pool {
		list = append(list, UpstreamStatus{u.Dial, u.Healthy(), u.NumRequests(), u.Fails()})
	}
	return list, dynamic
}

func (c *Client) selector() *selector { return c.proxy.LoadBalancing.SelectionPolicy.(*selector) }

// BasePath returns the path that is put before Oz's own.
func (c *Client) BasePath() string { return c.basePath }

// AccessToken returns the state of the access token, or nil if none is sent.
func (c *Client) AccessToken() *TokenStatus {
	switch {
	case c.token != "":
		return &TokenStatus{State: TokenFixed}
	case c.account != nil:
		return c.account.status()
	}
	return nil
}

func (a *account) status() *TokenStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &TokenStatus{State: TokenNone}
	if t := a.current; t != nil && time.Now().Before(t.expires) {
		s.State, s.Expires = TokenValid, t.expires
		s.ExpiresIn = int(math.Ceil(time.Until(t.expires).Seconds()))
	}
	switch {
	case a.renewing != nil:
		s.State = TokenRenewing
	case a.failure != nil:
		s.State = TokenFailed
	}
	return s
}

// noted keeps the pool that a call chooses from, for Upstreams.
func (s *selector) noted(pool reverseproxy.UpstreamPool) {
	if s.dynamic {
		s.last.Store(&pool)
	}
}
