package ozclient

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

const (
	// renewTimeout bounds one log-in or refresh.
	renewTimeout = 15 * time.Second
	// holdOff is the least time between a renewal that failed and the next, and
	// refusedHoldOff that between two that Oz refused: one log-in per capsule
	// could get the account locked.
	holdOff        = 5 * time.Second
	refusedHoldOff = 30 * time.Second
)

// account is an account at one Oz and its access token. All Clients that use
// it share it, and it outlives reloads, so it holds nothing of any config.
type account struct {
	key             [sha256.Size]byte
	email, password string

	mu       sync.Mutex
	current  *accessToken
	renewing chan struct{} // closed when the renewal in progress ends; nil if none is
	failure  *Error        // of the last renewal
	retryAt  time.Time     // when the next may begin, after a failure
}

// accessToken is one access token. Its fields don't change, but for accepted.
type accessToken struct {
	value, refresh string
	life           time.Duration
	renewAt        time.Time
	expires        time.Time
	accepted       bool // by Oz, at least once
}

// granter asks Oz for access tokens: a Client does.
type granter interface {
	grant(ctx context.Context, path string, body []byte, token string) (oz.Grant, *Error)
}

var accounts = caddy.NewUsagePool()

// openAccount finds or makes the account of these credentials at the Oz with
// this identity. It must be closed.
func openAccount(identity, email, password string) *account {
	key := accountKey(identity, email, password)
	value, _, _ := accounts.LoadOrNew(key, func() (caddy.Destructor, error) {
		return &account{key: key, email: email, password: password}, nil
	}) // which never fails
	return value.(*account)
}

func (a *account) close() { _, _ = accounts.Delete(a.key) } // Destruct never fails

// Destruct implements caddy.Destructor: the last user has gone.
func (a *account) Destruct() error { return nil }

// accountKey tells accounts apart by the way to Oz and by the credentials. It
// is a hash, so that no secret is in a key.
func accountKey(identity, email, password string) (key [sha256.Size]byte) {
	h := sha256.New()
	for _, part := range []string{identity, email, password} {
		fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	h.Sum(key[:0])
	return key
}

// acquire returns an access token, and waits for one if there is none.
//
// A token is renewed, through g, by the first call after four fifths of its
// life, which uses the old one and does not wait. The renewed one is used at
// once by all later calls; Oz forgets the old one with its first use, and a call
// still in progress with the old one may be refused.
func (a *account) acquire(ctx context.Context, g granter) (*accessToken, *Error) {
	for {
		t, wait, failure := a.tryAcquire(g)
		if wait == nil {
			return t, failure
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, blame(attempted{cause: context.Cause(ctx)})
		}
	}
}

// tryAcquire returns a token, or a failure, or what to wait for.
func (a *account) tryAcquire(g granter) (t *accessToken, wait <-chan struct{}, failure *Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if t := a.current; t != nil && now.Before(t.expires) {
		if !now.Before(t.renewAt) {
			a.renew(g)
		}
		return t, nil, nil
	}
	if a.renew(g); a.renewing == nil {
		return nil, nil, a.failure
	}
	return nil, a.renewing, nil
}

// used notes what Oz said to a call with t. One that Oz refused is dropped, and
// another one is fetched. A token that Oz has never accepted is no reason to ask
// for the next at once: it would fare no better.
func (a *account) used(g granter, t *accessToken, status int, refused bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !refused:
		t.accepted = t.accepted || isFolder(status) || status == http.StatusBadRequest
	case a.current != t: // it was dropped or renewed already
	case t.accepted:
		a.current = nil
		a.renew(g)
	default:
		a.current = nil
		a.failed(&Error{oz.Unauthorized, FaultNobody, errNeverAccepted})
	}
}

var errNeverAccepted = errors.New("oz rejected the access token that it issued for these credentials")

// failed keeps the next attempt from coming too soon.
func (a *account) failed(e *Error) {
	a.failure, a.retryAt = e, time.Now().Add(holdOff)
	if e.Reason == oz.Unauthorized {
		a.retryAt = time.Now().Add(refusedHoldOff)
	}
}

// renew begins a log-in or refresh, unless one is in progress or has failed a
// moment ago. It must be called with mu held.
//
// It goes through the Client that asks for it. That may be closed before the
// renewal ends, as a call in progress outlives its config: its proxy still
// sends, it only tries no second upstream.
func (a *account) renew(g granter) {
	if a.renewing != nil || a.failure != nil && time.Now().Before(a.retryAt) {
		return
	}
	a.renewing = make(chan struct{})
	go a.renewBy(g, a.current)
}

// renewBy asks Oz, for a refresh if there is something to refresh.
func (a *account) renewBy(g granter, old *accessToken) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), renewTimeout, errOzTimeout)
	defer cancel()
	var grant oz.Grant
	failure := &Error{Reason: oz.Unauthorized}
	if old != nil && old.refresh != "" && time.Now().Before(old.expires) {
		grant, failure = g.grant(ctx, oz.RefreshPath, oz.RefreshBody(old.refresh), old.value)
	}
	if failure != nil && failure.Reason == oz.Unauthorized { // nothing to refresh, or no more
		grant, failure = g.grant(ctx, oz.LoginPath, oz.LoginBody(a.email, a.password), "")
	}
	a.renewed(grant, failure)
}

// renewed takes in what came of renewBy.
func (a *account) renewed(grant oz.Grant, failure *Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.renewing)
	a.renewing, a.failure = nil, nil
	if failure != nil {
		a.failed(failure)
		return
	}
	now := time.Now()
	a.current = &accessToken{
		value: grant.AccessToken, refresh: grant.ExpireToken, life: grant.Life,
		renewAt: now.Add(grant.Life * 4 / 5), expires: now.Add(grant.Life),
	}
}

// grant makes a log-in or a refresh, and leaves a line for the operator that
// has no secret in it.
func (c *Client) grant(ctx context.Context, path string, body []byte, token string) (oz.Grant, *Error) {
	grant, failure := c.askGrant(ctx, path, body, token)
	c.opts.granted(failure)
	if failure != nil {
		failure.Err = fmt.Errorf("%s: %w", grantName(path), failure.Err)
		c.logger.Error("no access token", zap.String("reason", string(failure.Reason)), zap.Error(failure.Err))
		return oz.Grant{}, failure
	}
	c.logger.Info("access token", zap.String("by", grantName(path)), zap.Duration("life", grant.Life))
	return grant, nil
}

func (o Options) granted(failure *Error) {
	switch {
	case o.Granted == nil:
	case failure != nil:
		o.Granted(failure.Reason)
	default:
		o.Granted("")
	}
}

func (c *Client) askGrant(ctx context.Context, path string, body []byte, token string) (oz.Grant, *Error) {
	k := &call{
		method: http.MethodPost, path: path, contentType: "application/json",
		body: NewMemoryBody(body), reader: smallReader, token: token,
	}
	k.begin()
	if failure := c.do(ctx, nil, k); failure != nil {
		if failure.Fault == FaultClient { // there is none
			failure = &Error{oz.Unreachable, FaultNobody, failure.Err}
		}
		return oz.Grant{}, failure
	}
	if !isFolder(k.report.Status) {
		failure := k.unusable()
		if k.report.Status == http.StatusBadRequest {
			// By which status Oz refuses an account is not documented.
			failure.Reason = oz.Unauthorized
		}
		return oz.Grant{}, failure
	}
	grant, err := oz.ReadGrant(k.doc, k.date)
	if err != nil {
		return oz.Grant{}, malformed(err)
	}
	return grant, nil
}

func grantName(path string) string {
	if path == oz.LoginPath {
		return "logging in"
	}
	return "refreshing the access token"
}

// clockOf returns the time by Oz's clock, in which it also tells when a token
// expires: the two machines need not agree on what time it is. A Date has whole
// seconds, so that it may be one later.
func clockOf(res *http.Response) time.Time {
	if t, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		return t.Add(time.Second)
	}
	return time.Now()
}
