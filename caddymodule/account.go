package caddymodule

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

const (
	// renewTimeout bounds one log-in or refresh.
	renewTimeout = 15 * time.Second
	// holdOff is the least time between a log-in that failed and the next, and
	// refusedHoldOff that between two that Oz refused: accounts are locked for
	// less than one log-in for every capsule.
	holdOff        = 5 * time.Second
	refusedHoldOff = 30 * time.Second
	// maxGrant bounds the answer to a log-in.
	maxGrant = 64 << 10
)

// account is an account at one Oz and its access token. It is shared by all
// sites that use it and outlives reloads, so it holds nothing of any config but
// the links that are in use, through any of which it may speak to Oz.
type account struct {
	key             [sha256.Size]byte
	email, password string

	mu       sync.Mutex
	granters []granter // through any of which Oz can be asked

	current *session
	next    *session // a refreshed one, until it may be used: see acquire

	renewing chan struct{} // closed when the log-in or refresh under way ends; nil if none is
	failure  *fault        // of the last one
	retryAt  time.Time     // when the next may begin, after a failure
	timer    *time.Timer   // for the refresh
}

// session is one access token.
type session struct {
	grant    oz.Grant
	expires  time.Time
	users    int  // calls under way with it
	accepted bool // at least once, by Oz
}

// granter asks Oz for access tokens: a link does.
type granter interface {
	grant(ctx context.Context, path string, body []byte, token string) (oz.Grant, *fault)
}

var accounts = caddy.NewUsagePool()

// openAccount finds or makes the account of o, for l.
func openAccount(l *link, o *Oz) (*account, error) {
	email, err := secret(o.Credentials.Email)
	if err != nil {
		return nil, fmt.Errorf("email: %w", err)
	}
	password, err := secret(o.Credentials.Password)
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	key := accountKey(o, email, password)
	value, _, err := accounts.LoadOrNew(key, func() (caddy.Destructor, error) {
		return &account{key: key, email: email, password: password}, nil
	})
	if err != nil {
		return nil, err
	}
	a := value.(*account)
	a.open(l)
	return a, nil
}

// open puts g to use.
func (a *account) open(g granter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.granters = append(a.granters, g)
}

// accountKey tells accounts apart: by who logs in, and where.
func accountKey(o *Oz, email, password string) (key [sha256.Size]byte) {
	h := sha256.New()
	for _, part := range append([]string{o.BasePath, email, password}, o.upstreamNames()...) {
		fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	h.Sum(key[:0])
	return key
}

// upstreamNames say which Oz this is, in whatever order it is configured. They
// are found before the proxy is provisioned: that takes the raw config of
// dynamic upstreams away.
func (o *Oz) upstreamNames() []string {
	if o.names != nil {
		return o.names
	}
	names := []string{string(o.ReverseProxy.DynamicUpstreamsRaw)}
	for _, u := range o.ReverseProxy.Upstreams {
		names = append(names, u.Dial)
	}
	slices.Sort(names)
	return names
}

// close takes g out of use.
func (a *account) close(g granter) {
	a.mu.Lock()
	a.granters = slices.DeleteFunc(a.granters, func(other granter) bool { return other == g })
	a.mu.Unlock()
	_, _ = accounts.Delete(a.key) // the account's own Destruct never fails
}

// Destruct implements caddy.Destructor: the last user has gone.
func (a *account) Destruct() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stopTimer()
	a.current, a.next = nil, nil
	return nil
}

// acquire returns a session to make a call with, and waits for one if need be.
// Whoever gets one has to release it. Oz is asked through g if nobody else is
// there to ask it: a call under way outlives its config.
//
// Oz forgets a token with the first use of the one that it was refreshed to.
// An upload with the old one that is still under way would be refused, so the
// new one is used when no call needs the old one any more, or when its time is up.
func (a *account) acquire(ctx context.Context, g granter) (*session, *fault) {
	for {
		s, wait, failure := a.tryAcquire(g)
		if wait == nil {
			return s, failure
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, &fault{oz.Timeout, context.Cause(ctx)}
		}
	}
}

// tryAcquire returns a session, or a failure, or what to wait for.
func (a *account) tryAcquire(g granter) (s *session, wait <-chan struct{}, failure *fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if a.next != nil && (a.current == nil || a.current.users == 0 || !now.Before(a.current.expires)) {
		a.current, a.next = a.next, nil
	}
	switch {
	case a.current != nil && now.Before(a.current.expires):
		a.current.users++
		return a.current, nil, nil
	case a.renewing == nil && a.failure != nil && now.Before(a.retryAt):
		return nil, nil, a.failure
	}
	a.renew(g)
	return nil, a.renewing, nil
}

// release gives back the session that c was made with. One that Oz refused is
// dropped, and another one is fetched. A token that Oz has never accepted is
// no reason to ask for the next at once: it would fare no better.
func (a *account) release(g granter, s *session, c *call) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.users--
	if !c.authRefused {
		s.accepted = s.accepted || c.status != 0
		return
	}
	if a.current != s {
		return // it was dropped already
	}
	a.current, a.next = a.next, nil
	switch {
	case a.current != nil:
	case s.accepted:
		a.renew(g)
	default:
		a.failed(&fault{oz.Unauthorized, errNeverAccepted})
	}
}

var errNeverAccepted = errors.New("oz refuses the access token that it gave for these credentials")

// failed keeps the next attempt from coming too soon.
func (a *account) failed(f *fault) {
	a.failure, a.retryAt = f, time.Now().Add(holdOff)
	if f.reason == oz.Unauthorized {
		a.retryAt = time.Now().Add(refusedHoldOff)
	}
}

// renew begins a log-in or refresh unless one is under way. One call at a time
// is made, however many capsules wait for it. It is called with mu held.
func (a *account) renew(g granter) {
	if a.renewing != nil {
		return
	}
	if n := len(a.granters); n > 0 {
		g = a.granters[n-1]
	}
	a.renewing = make(chan struct{})
	expireToken := ""
	if a.current != nil && time.Now().Before(a.current.expires) {
		expireToken = a.current.grant.ExpireToken
	}
	go a.renewBy(g, expireToken)
}

// renewBy asks Oz, for a refresh if there is something to refresh.
func (a *account) renewBy(g granter, expireToken string) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), renewTimeout, errOzTimeout)
	defer cancel()
	var grant oz.Grant
	failure := &fault{reason: oz.Unauthorized}
	if expireToken != "" {
		grant, failure = g.grant(ctx, oz.RefreshPath, oz.RefreshBody(expireToken), a.currentToken())
	}
	if failure != nil && failure.reason == oz.Unauthorized { // nothing to refresh, or no more
		grant, failure = g.grant(ctx, oz.LoginPath, oz.LoginBody(a.email, a.password), "")
	}
	a.renewed(grant, failure)
}

func (a *account) currentToken() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == nil {
		return ""
	}
	return a.current.grant.AccessToken
}

// renewed takes in what came of renewBy.
func (a *account) renewed(grant oz.Grant, failure *fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.renewing)
	a.renewing, a.failure = nil, nil
	if failure != nil {
		a.failed(failure)
		if a.current != nil && failure.reason != oz.Unauthorized {
			a.schedule(holdOff)
		}
		return
	}
	a.next = &session{grant: grant, expires: time.Now().Add(grant.Life)}
	a.schedule(grant.Life * 4 / 5)
}

// schedule sees to it that the token is fresh when the next capsule comes.
func (a *account) schedule(after time.Duration) {
	a.stopTimer()
	a.timer = time.AfterFunc(after, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.next != nil { // it aged unused: the one before was never out of use
			a.current, a.next = a.next, nil
		}
		if a.current != nil && time.Now().Before(a.current.expires) && len(a.granters) > 0 {
			a.renew(nil)
		} // else the next capsule logs in
	})
}

func (a *account) stopTimer() {
	if a.timer != nil {
		a.timer.Stop()
	}
}

// logGrant leaves a line for the operator, and no secret.
func (l *link) logGrant(path string, grant oz.Grant, failure *fault) {
	if failure != nil {
		l.logger.Error("no access token", zap.String("reason", string(failure.reason)), zap.Error(failure.err))
		return
	}
	l.logger.Info("access token", zap.String("by", grantName(path)), zap.Duration("life", grant.Life))
}

// grant makes a log-in or a refresh.
func (l *link) grant(ctx context.Context, path string, body []byte, token string) (oz.Grant, *fault) {
	var grant oz.Grant
	c := &call{
		method: http.MethodPost,
		path:   path,
		header: http.Header{"Content-Type": {"application/json"}},
		body:   io.NopCloser(bytes.NewReader(body)),
		length: int64(len(body)),
		token:  token,
	}
	c.read = func(res *http.Response) (err error) {
		grant, err = c.readGrant(res)
		return err
	}
	l.do(ctx, nil, c)
	var failure *fault
	if c.fault != nil {
		grant, failure = oz.Grant{}, &fault{c.fault.reason, fmt.Errorf("%s: %w", grantName(path), c.fault.err)}
	}
	l.logGrant(path, grant, failure)
	return grant, failure
}

func grantName(path string) string {
	if path == oz.LoginPath {
		return "logging in"
	}
	return "refreshing the access token"
}

func (c *call) readGrant(res *http.Response) (oz.Grant, error) {
	doc, err := readSmall(res, maxGrant)
	if err != nil {
		return oz.Grant{}, err
	}
	if isFolder(res.StatusCode) {
		return oz.ReadGrant(doc, clockOf(res))
	}
	c.answeredBadly(res, doc)
	if res.StatusCode == http.StatusBadRequest {
		// By which status Oz refuses an account is not documented.
		c.fault.reason = oz.Unauthorized
	}
	return oz.Grant{}, nil
}

// clockOf is the time by Oz's clock, in which it also tells when a token
// expires: the two machines need not agree on what time it is. A Date has whole
// seconds, so that it may be one later.
func clockOf(res *http.Response) time.Time {
	if t, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		return t.Add(time.Second)
	}
	return time.Now()
}

// Interface guards
var (
	_ caddy.Destructor = (*account)(nil)
	_ caddy.Destructor = (*link)(nil)
)
