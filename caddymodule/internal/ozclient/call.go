package ozclient

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// userAgent names this gateway in Oz's log.
const userAgent = "caddy-oz-instant"

// call is one request to Oz through the inner reverse_proxy, which may try
// several upstreams for it. It travels in the request's context, as
// reverse_proxy leaves no other way; the selector and the transport record in
// it what happened. The answer is read inside the transport, and what
// reverse_proxy would write to a client is discarded.
type call struct {
	method      string
	path        string      // after base_path
	body        upload.Body // nil without one
	contentType string
	reader      answerReader
	tried       []string // upstreams; a second call begins with those of the first

	token string // the access token; it is added inside the transport

	start     time.Time
	waited    time.Duration // for the client, before the call
	tokenWait time.Duration // waiting for an access token
	sent      bool          // something of the call was taken, or may have been
	allFull   bool          // upstreams are up, and all at their limit
	failure   *Error        // of the last attempt; nil if an answer was taken in
	doc       []byte        // the pruned folder, or what may be an error object
	date      time.Time     // of the answer, by Oz's clock
	shots     []oz.BestShot
	report    Report
}

type callCtxKey struct{}

// authorized makes the call with an access token, if Oz wants one.
func (c *Client) authorized(ctx context.Context, client *http.Request, k *call) *Error {
	defer k.end()
	k.token = c.token
	if c.account == nil {
		return c.do(ctx, client, k)
	}
	asked := time.Now()
	t, failure := c.account.acquire(ctx, c)
	k.tokenWait = time.Since(asked)
	if failure != nil {
		return failure
	}
	k.token = t.value
	failure = c.do(ctx, client, k)
	c.account.used(c, t, k.report.Status, tokenRefused(k.report.Status, k.doc))
	return failure
}

// begin starts the call's time.
func (k *call) begin() {
	k.start = time.Now()
	k.waited = k.state().Waited
}

// end reports how the call's time was spent. Oz's is also that of a log-in, which
// is before the body is sent.
func (k *call) end() {
	now, sentAt := time.Now(), k.state().SentAt
	switch {
	case k.body == nil:
		k.report.Time = now.Sub(k.start)
	case sentAt.IsZero():
		k.report.Upload, k.report.Time = now.Sub(k.start)-k.tokenWait, k.tokenWait
	default:
		k.report.Upload, k.report.Time = sentAt.Sub(k.start)-k.tokenWait, now.Sub(sentAt)+k.tokenWait
	}
}

// state returns the state of the body. Without one, all of it is sent at once.
func (k *call) state() upload.State {
	if k.body == nil {
		return upload.State{Received: true, SentAt: k.start}
	}
	return k.body.State()
}

// attempted returns what is known of the call by now.
func (k *call) attempted(ctx context.Context, err error) attempted {
	s := k.state()
	return attempted{
		err: err, cause: context.Cause(ctx), body: s, tried: k.report.Tries > 0,
		sent: k.sent, answered: k.report.Status != 0,
		elapsed: time.Since(k.start), waited: s.Waited - k.waited,
	}
}

// do makes the call. The client's request, if there is one, lends placeholders
// to header_up, ids for tracing, and its address to the proxy's own options;
// nothing else of it travels. The context of the call is its own.
func (c *Client) do(ctx context.Context, client *http.Request, k *call) *Error {
	err := c.proxy.ServeHTTP(&sink{header: make(http.Header)}, c.request(ctx, client, k), nobody)
	if k.failure == nil && k.report.Status == 0 {
		k.failure = blame(k.attempted(ctx, k.untriedErr(err)))
	}
	if k.failure != nil && k.failure.Reason == oz.Unreachable {
		herr, ok := errors.AsType[caddyhttp.HandlerError](err)
		k.report.NoUpstream = ok && herr.StatusCode == http.StatusServiceUnavailable
	}
	return k.failure
}

// untriedErr says why no upstream was tried.
func (k *call) untriedErr(err error) error {
	switch {
	case k.allFull:
		return errAllFull
	case err == nil: // can't happen, and if it does is not a decision
		return errors.New("the call ended without a result")
	}
	return err
}

// nobody is the next handler of the inner proxy, which never calls it.
var nobody = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// bodyPlaceholder begins the placeholders that read the whole capsule into a text.
const bodyPlaceholder = "http.request.body"

// request returns the sub-request: a header set of our own, so that no cookie,
// no Authorization and no client address travels to Oz unless the operator adds
// it with header_up. It has a context, variables and a replacer of its own,
// because a second reverse_proxy in the same request would otherwise overwrite
// what the first one left there.
func (c *Client) request(ctx context.Context, client *http.Request, k *call) *http.Request {
	sub := &http.Request{
		Method:     k.method,
		URL:        &url.URL{Path: c.basePath + k.path},
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
		Header:     ownHeader(k.contentType),
	}
	if k.body != nil {
		sub.Body, sub.ContentLength = k.body, k.body.Length()
	}
	if client == nil {
		client = &http.Request{RemoteAddr: "0.0.0.0:0"} // policies such as ip_hash need an address
	}
	sub.RemoteAddr = client.RemoteAddr
	c.identify(ctx, sub.Header, client.Header)
	repl := caddy.NewReplacer()
	if r, ok := client.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(func(key string) (any, bool) { // placeholders in header_up speak of the client's request
			if strings.HasPrefix(key, bodyPlaceholder) {
				return "", true // but never of the capsule itself
			}
			return r.Get(key)
		})
	}
	server, ok := client.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok {
		server = new(caddyhttp.Server)
	}
	sub = sub.WithContext(context.WithValue(ctx, callCtxKey{}, k))
	sub = caddyhttp.PrepareRequest(sub, repl, nil, server)
	address, ok := caddyhttp.GetVar(client.Context(), caddyhttp.ClientIPVarKey).(string)
	if !ok {
		address = "0.0.0.0" // proxy_protocol dials for no other kind of text
	}
	trusted, _ := caddyhttp.GetVar(client.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	caddyhttp.SetVar(sub.Context(), caddyhttp.ClientIPVarKey, address)
	caddyhttp.SetVar(sub.Context(), caddyhttp.TrustedProxyVarKey, trusted)
	return sub
}

func ownHeader(contentType string) http.Header {
	return http.Header{
		"Accept":       {"application/json"},
		"Content-Type": {contentType},
		// Go would ask for gzip by itself, which the pruner cannot read.
		"Accept-Encoding": {"identity"},
		"User-Agent":      {userAgent},
		// A nil value keeps reverse_proxy from adding the field.
		"X-Forwarded-For":   nil,
		"X-Forwarded-Host":  nil,
		"X-Forwarded-Proto": nil,
	}
}

// Fields of the client's request that go to Oz, so that one id leads through
// both logs. A trace is the client's own only where Caddy has none.
var (
	idHeaders    = []string{"X-Request-Id"}
	traceHeaders = []string{"Traceparent", "Tracestate"}
)

// identify writes the ids of the call's trace and of the client's request.
func (c *Client) identify(ctx context.Context, to, client http.Header) {
	passOn(to, client, idHeaders)
	if !c.inject(ctx, to) {
		passOn(to, client, traceHeaders)
	}
}

func passOn(to, from http.Header, names []string) {
	for _, name := range names {
		if v := from[name]; len(v) == 1 && traceable(v[0]) {
			to[name] = v
		}
	}
}

// traceable keeps what a client may put into Oz's log within bounds.
func traceable(s string) bool { return s != "" && len(s) <= 512 && printable(s) }

// sink discards what reverse_proxy writes: by then the answer has been read.
// Its header map is its own, where interim answers of Oz end as well.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
