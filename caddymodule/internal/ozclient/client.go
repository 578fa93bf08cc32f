package ozclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.opentelemetry.io/otel/propagation"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// Options of a Client.
type Options struct {
	Timeout          time.Duration // for Oz, from the last byte of the request to the last of the answer
	UploadTimeout    time.Duration // for Oz to take the capsule, the waiting for its client not counted
	MaxAnswer        int64
	KeepBestShot     bool // best shots stay in the folder
	CollectBestShots bool // best shots are decoded

	// Granted, if there is one, is told of each access token that was asked for:
	// the reason why there is none, or "".
	Granted func(oz.Reason)
}

// Client reaches Oz.
type Client struct {
	proxy    *reverseproxy.Handler
	basePath string
	token    string   // a fixed access token, or none
	account  *account // where access tokens come from otherwise
	opts     Options
	logger   *zap.Logger

	propagator propagation.TextMapPropagator // Caddy sets no global one
}

// New makes a Client of cfg, which it validates and consumes. The Client must be
// closed. If New fails, nothing is left of it.
func New(ctx caddy.Context, cfg *Config, opts Options) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Client{proxy: cfg.ReverseProxy, basePath: cfg.BasePath, opts: opts, logger: ctx.Logger(), propagator: newPropagator()}
	email, password, err := c.secrets(cfg)
	if err != nil {
		return nil, err
	}
	identity := cfg.Identity()
	if err := provisionProxy(ctx, c.proxy); err != nil {
		return nil, err
	}
	if cfg.Credentials != nil {
		c.account = openAccount(identity, email, password)
	}
	return c, nil
}

// secrets resolves what cfg has of them.
func (c *Client) secrets(cfg *Config) (email, password string, err error) {
	if cfg.AccessToken != "" {
		if c.token, err = headerSecret(cfg.AccessToken); err != nil {
			return "", "", fmt.Errorf("access_token: %w", err)
		}
	}
	if cfg.Credentials == nil {
		return "", "", nil
	}
	if email, err = secret(cfg.Credentials.Email); err != nil {
		return "", "", fmt.Errorf("credentials: email: %w", err)
	}
	if password, err = secret(cfg.Credentials.Password); err != nil {
		return "", "", fmt.Errorf("credentials: password: %w", err)
	}
	return email, password, nil
}

// Close ends the use of the Client. Calls in progress go on to their end.
func (c *Client) Close() error {
	if c.account != nil {
		c.account.close()
	}
	return c.proxy.Cleanup()
}

// HTTPTransport returns the transport to Oz, or nil if it is not an HTTPTransport.
func (c *Client) HTTPTransport() *reverseproxy.HTTPTransport {
	ht, _ := c.proxy.Transport.(*transport).next.(*reverseproxy.HTTPTransport)
	return ht
}

// Analyze sends a capsule and judges the answer. The client's request lends
// placeholders, tracing ids and its address; nil if there is none. After Analyze
// has returned, nothing of body is taken any more, but a read in progress may
// still be. The error, if any, is an *Error.
func (c *Client) Analyze(ctx context.Context, client *http.Request, body upload.Body, policy oz.Policy, requirements []oz.Requirement) (a Answer, err error) {
	ctx, span := startSpan(ctx, spanAnalyze)
	defer func() { endSpan(span, a.Verdict, a.Report, body.State().Bytes, err) }()
	k := c.folderCall(body, capsuleMediaType, c.opts.CollectBestShots)
	if failure := c.timed(ctx, client, k, body); failure != nil {
		return k.failed(failure)
	}
	return k.judged(policy.Judge(k.report.Status, k.doc, requirements))
}

// capsuleMediaType is the guide's.
const capsuleMediaType = "application/octet-stream"

// Match sends two images and judges the answer. The error, if any, is an *Error.
func (c *Client) Match(ctx context.Context, client *http.Request, images *oz.Multipart) (a Answer, err error) {
	ctx, span := startSpan(ctx, spanMatch)
	defer func() { endSpan(span, a.Verdict, a.Report, 0, err) }()
	body := NewMemoryBody(images.Bytes())
	k := c.folderCall(body, images.ContentType, false)
	if failure := c.timed(ctx, client, k, body); failure != nil {
		return k.failed(failure)
	}
	return k.judged(oz.JudgeMatch(k.report.Status, k.doc))
}

// folderCall returns a call that is answered by a folder.
func (c *Client) folderCall(body upload.Body, contentType string, collect bool) *call {
	k := &call{
		method: http.MethodPost, path: oz.FoldersPath, contentType: contentType,
		reader: c.opts.folderReader(collect),
	}
	if body.Length() != 0 { // net/http takes a body of length 0 for one of unknown length
		k.body = body
	}
	return k
}

// timed makes a call that ends when Oz's time for it is up.
func (c *Client) timed(ctx context.Context, client *http.Request, k *call, body upload.Body) *Error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer body.Stop()
	k.begin()
	defer k.watch(ctx, c.limits(k), cancel)()
	return c.authorized(ctx, client, k)
}

// SessionToken asks for a session token, and once more where that may help.
// Each attempt has timeout; it ends reverse_proxy's own retries, too. The error,
// if any, is an *Error.
func (c *Client) SessionToken(ctx context.Context, client *http.Request, timeout time.Duration) (token string, report Report, err error) {
	ctx, span := startSpan(ctx, spanSessionToken)
	defer func() { endSpan(span, oz.Verdict{Reason: reasonOf(err)}, report, 0, err) }()
	token, k, failure := c.sessionToken(ctx, client, timeout, nil)
	report = k.report
	if failure != nil && c.worthRetrying(failure, k) {
		token, k, failure = c.sessionToken(ctx, client, timeout, k.tried)
		k.report.Tries += report.Tries
		k.report.Time += report.Time
		report = k.report
	}
	if failure != nil {
		return "", report, failure
	}
	return token, report, nil
}

// worthRetrying reports whether a second attempt makes sense: on another
// upstream, with another access token, or with another connection.
func (c *Client) worthRetrying(failure *Error, first *call) bool {
	switch {
	case failure.Fault == FaultClient:
		return false
	case failure.Reason == oz.Unauthorized:
		return c.account != nil && first.report.Tries > 0
	case failure.Reason == oz.Timeout, failure.Reason == oz.Overloaded:
		// Dynamic upstreams are not known before they are asked for.
		return c.proxy.DynamicUpstreams != nil || len(untried(c.proxy.Upstreams, first.tried)) > 0
	}
	return true
}

func (c *Client) sessionToken(ctx context.Context, client *http.Request, timeout time.Duration, tried []string) (string, *call, *Error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errOzTimeout)
	defer cancel()
	k := &call{
		method: http.MethodGet, path: oz.SessionTokenPath, contentType: "application/json",
		reader: smallReader, tried: slices.Clone(tried),
	}
	k.begin()
	if failure := c.authorized(ctx, client, k); failure != nil {
		return "", k, failure
	}
	if !isFolder(k.report.Status) {
		return "", k, k.unusable()
	}
	token, err := oz.ReadSessionToken(k.doc)
	if err != nil {
		return "", k, malformed(err)
	}
	return token, k, nil
}

// Login gets an access token, and says how long it lives. The error, if any, is
// an *Error.
func (c *Client) Login(ctx context.Context) (time.Duration, error) {
	if c.account == nil {
		return 0, &Error{oz.Unauthorized, FaultNobody, errors.New("no credentials are configured")}
	}
	t, failure := c.account.acquire(ctx, c)
	if failure != nil {
		return 0, failure
	}
	return t.life, nil
}

// provisionProxy provisions the inner reverse_proxy around our transport. The
// order matters: the active health checker that Provision starts reads the
// transport, so it must be in place before; and Provision keeps a transport
// that is set.
func provisionProxy(ctx caddy.Context, rp *reverseproxy.Handler) error {
	next, err := loadTransport(ctx, rp)
	if err != nil {
		return err
	}
	rp.TransportRaw = nil
	rp.Transport = &transport{next: next}
	if err := rp.Provision(ctx); err != nil {
		return errors.Join(fmt.Errorf("provisioning reverse_proxy: %w", err), unprovision(rp))
	}
	rp.LoadBalancing.SelectionPolicy = &selector{
		policy: rp.LoadBalancing.SelectionPolicy, passive: passiveChecks(rp), dynamic: rp.DynamicUpstreams != nil,
	}
	return nil
}

// unprovision gives back what a Provision of rp that failed has taken: upstreams
// stay listed in the admin API otherwise, as Caddy cleans up only what it has
// loaded itself. Cleanup also gives back those that were never taken, which
// other configs may hold, so they are removed first.
func unprovision(rp *reverseproxy.Handler) error {
	rp.Upstreams = slices.DeleteFunc(rp.Upstreams, func(u *reverseproxy.Upstream) bool { return u.Host == nil })
	if len(rp.Upstreams) == 0 { // it failed before; Cleanup would panic if at once
		return nil
	}
	return rp.Cleanup()
}

func passiveChecks(rp *reverseproxy.Handler) *reverseproxy.PassiveHealthChecks {
	if rp.HealthChecks == nil {
		return nil
	}
	return rp.HealthChecks.Passive
}

func loadTransport(ctx caddy.Context, rp *reverseproxy.Handler) (http.RoundTripper, error) {
	raw, err := transportDefaults(rp.TransportRaw)
	if err != nil {
		return nil, fmt.Errorf("transport: %w", err)
	}
	rp.TransportRaw = raw
	mod, err := ctx.LoadModule(rp, "TransportRaw")
	if err != nil {
		return nil, fmt.Errorf("loading transport: %w", err)
	}
	next, ok := mod.(http.RoundTripper)
	if !ok {
		return nil, fmt.Errorf("transport is not an http.RoundTripper: %T", mod)
	}
	if bt, ok := next.(reverseproxy.BufferedTransport); ok {
		if requests, answers := bt.DefaultBufferSizes(); requests != 0 || answers != 0 {
			return nil, fmt.Errorf("transport %T holds whole requests in memory; use the http transport", mod)
		}
	}
	if ht, ok := next.(*reverseproxy.HTTPTransport); ok {
		graceDials(ht)
	}
	return next, nil
}
