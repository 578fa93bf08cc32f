package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// userAgent names this gateway in Oz's log.
const userAgent = "caddy-oz-instant"

// errOzTimeout is the cause for which a call's context ends when Oz holds it up.
var errOzTimeout = errors.New("no whole answer within timeout")

// call is one request to Oz through the inner reverse_proxy, which may try
// several upstreams for it, and what came of it. The answer is read inside of
// the proxy's transport (see transport.go); what the proxy would write to a
// client is of no interest.
type call struct {
	method string
	path   string // behind base_path
	header http.Header
	body   io.ReadCloser
	length int64 // of the body; -1 is unknown

	// token is the access token. It is added inside of the transport.
	token string

	// read takes in the answer. An error of it is this upstream's fault; one
	// that is no *fault means that the answer was malformed.
	read func(*http.Response) error

	// blame says what the client did to end the call, if it did: then no
	// upstream is to blame. Nil if there is no client.
	blame func() error

	// paused reports whether the client has kept Oz waiting. Who then hangs up,
	// as web servers do, is not to blame. Nil if there is no client.
	paused func() bool

	// onLost is told when Oz has ended the connection, so that nothing more can
	// come of the call but what has come already. Nil if nobody wants to know.
	onLost func()

	// What came of it.
	clientFault error  // the client's
	fault       *fault // Oz's, or the way's to it; nil if the answer was taken
	status      int    // HTTP status of the answer, 0 without one
	retryAfter  string // that came with it
	upstream    string // the last one that was tried
	tried       []string
	tries       int
	sent        bool // something of the call was taken, or may have been
	authRefused bool // Oz refused the access token
	noUpstream  bool // no upstream is up
	allFull     bool // upstreams are up, and all at their limit
}

// fault is what kept an answer from coming, or from being of use.
type fault struct {
	reason oz.Reason
	err    error
}

func (f *fault) Error() string { return string(f.reason) + ": " + f.err.Error() }

type callCtxKey struct{}

// do makes the call. The client's request, if there is one, lends placeholders
// to header_up, ids for tracing, and its address to the proxy's own options;
// nothing else of it travels. The context of the call is its own.
func (l *link) do(ctx context.Context, client *http.Request, c *call) {
	err := l.proxy.ServeHTTP(&sink{header: make(http.Header)}, l.request(ctx, client, c), nobody)
	if c.fault != nil && c.fault.reason == oz.Unreachable || c.tries == 0 {
		c.noUpstream = isNoUpstream(err)
	}
	if c.tries == 0 {
		c.untriedEnd(ctx, err)
	}
}

// authorized makes the call with an access token, if Oz wants one.
func (l *link) authorized(ctx context.Context, client *http.Request, c *call) {
	c.token = l.token
	if l.account == nil {
		l.do(ctx, client, c)
		return
	}
	s, failure := l.account.acquire(ctx, l)
	if failure != nil {
		if c.fault = failure; c.blame != nil {
			c.clientFault = c.blame()
		}
		return
	}
	c.token = s.grant.AccessToken
	l.do(ctx, client, c)
	l.account.release(l, s, c)
}

// noteAuth notes whether Oz refused the access token. A 403 without Oz's error
// object is somebody else's: a firewall in between may not like a capsule.
func (c *call) noteAuth(status int, e *oz.Error) {
	c.authRefused = status == http.StatusUnauthorized || e != nil && (status == http.StatusForbidden || e.AboutToken())
}

// answeredBadly is for an answer that gives nothing but is no fault of this
// upstream: it does not count against its health.
func (c *call) answeredBadly(res *http.Response, doc []byte) {
	status := res.StatusCode
	v := oz.JudgeStatus(status, doc)
	c.retryAfter = cleanRetryAfter(res.Header["Retry-After"])
	if v.Decision != oz.Unavailable { // a code about capsules, where there is none
		v.Reason = oz.UnexpectedStatus
	}
	c.noteAuth(status, v.Error)
	err := fmt.Errorf("oz answered %d", status)
	if v.Error != nil {
		err = fmt.Errorf("oz answered %d, error_code %d", status, v.Error.Code)
	}
	c.fault = &fault{v.Reason, err}
}

// untriedEnd is for a call that ended before any upstream was tried.
func (c *call) untriedEnd(ctx context.Context, err error) {
	if err == nil {
		err = context.Cause(ctx)
	}
	switch {
	case c.blame != nil && c.blame() != nil:
		c.clientFault = c.blame()
	case errors.Is(context.Cause(ctx), errOzTimeout):
		c.fault = &fault{oz.Timeout, errOzTimeout}
	case c.allFull:
		c.fault = &fault{oz.Overloaded, errors.New("all upstreams are at their limit of requests")}
	default:
		c.fault = &fault{oz.Unreachable, err}
	}
}

// nobody stands behind the inner proxy, which never calls its next handler.
var nobody = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// request is the sub-request: a header set of our own, so that no cookie, no
// Authorization and no client address travels to Oz unless the operator adds
// it with header_up. It has a context, variables and a replacer of its own,
// because a second reverse_proxy in the same request would otherwise overwrite
// what the first one left there.
func (l *link) request(ctx context.Context, client *http.Request, c *call) *http.Request {
	sub := &http.Request{
		Method:        c.method,
		URL:           &url.URL{Path: l.basePath + c.path},
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        ownHeader(c.header),
		Body:          c.body,
		ContentLength: c.length,
	}
	sub = sub.WithContext(context.WithValue(ctx, callCtxKey{}, c))
	repl := caddy.NewReplacer()
	if client == nil {
		sub = caddyhttp.PrepareRequest(sub, repl, nil, new(caddyhttp.Server))
		caddyhttp.SetVar(sub.Context(), caddyhttp.ClientIPVarKey, "")
		caddyhttp.SetVar(sub.Context(), caddyhttp.TrustedProxyVarKey, false)
		return sub
	}
	trace(sub.Header, client.Header)
	sub.RemoteAddr = client.RemoteAddr
	if r, ok := client.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(func(key string) (any, bool) { // placeholders in header_up speak of the client's request
			if strings.HasPrefix("{"+key, bodyPlaceholder) {
				return "", true // but never of the capsule itself
			}
			return r.Get(key)
		})
	}
	server, _ := client.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	sub = caddyhttp.PrepareRequest(sub, repl, nil, server)
	for _, name := range []string{caddyhttp.ClientIPVarKey, caddyhttp.TrustedProxyVarKey} {
		caddyhttp.SetVar(sub.Context(), name, caddyhttp.GetVar(client.Context(), name))
	}
	return sub
}

func ownHeader(extra http.Header) http.Header {
	h := http.Header{
		"Accept": {"application/json"},
		// Go would ask for gzip by itself, which the pruner cannot read.
		"Accept-Encoding": {"identity"},
		"User-Agent":      {userAgent},
		// A nil value keeps reverse_proxy from adding the field.
		"X-Forwarded-For":   nil,
		"X-Forwarded-Host":  nil,
		"X-Forwarded-Proto": nil,
	}
	maps.Copy(h, extra)
	return h
}

// tracedHeaders go to Oz so that one trace, or one id, leads through both logs.
var tracedHeaders = []string{"Traceparent", "Tracestate", "X-Request-Id"}

func trace(to, from http.Header) {
	for _, name := range tracedHeaders {
		if v := from[name]; len(v) == 1 && traceable(v[0]) {
			to[name] = v
		}
	}
}

// traceable keeps what a client may put into Oz's log within bounds.
func traceable(s string) bool {
	if s == "" || len(s) > 512 {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// untried are the upstreams that this call has not been to.
func (c *call) untried(pool reverseproxy.UpstreamPool) reverseproxy.UpstreamPool {
	if len(c.tried) == 0 {
		return pool
	}
	var left reverseproxy.UpstreamPool
	for _, u := range pool {
		if !slices.Contains(c.tried, u.String()) {
			left = append(left, u)
		}
	}
	return left
}

// hasOthers reports whether there is an upstream that was not tried. Of dynamic
// ones nobody knows before they are asked for.
func (l *link) hasOthers(tried []string) bool {
	return l.proxy.DynamicUpstreams != nil || len((&call{tried: tried}).untried(l.proxy.Upstreams)) > 0
}

// isNoUpstream reports whether reverse_proxy found no upstream to try.
func isNoUpstream(err error) bool {
	var herr caddyhttp.HandlerError
	return errors.As(err, &herr) && herr.StatusCode == http.StatusServiceUnavailable
}

// sink takes what reverse_proxy writes: by then the answer has been read.
// Its header map is its own, where interim answers of Oz end as well.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
