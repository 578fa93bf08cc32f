package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// foldersPath is where capsules go: step 3 of the vendor's guide. The slash
// at the end is the guide's; a redirect would lose the body.
const foldersPath = "/api/instant/folders/"

// userAgent names this gateway in Oz's log.
const userAgent = "caddy-oz-instant"

// errOzTimeout ends an exchange that Oz holds up.
var errOzTimeout = errors.New("no whole answer within timeout")

// outcome is what came of a capsule.
type outcome struct {
	verdict oz.Verdict
	folder  []byte // the pruned answer, when it is a folder

	// clientFault is set when the client did not deliver the capsule.
	// Nothing was decided then.
	clientFault error

	err           error // why, for the log
	status        int   // Oz's HTTP status, 0 without an answer
	ozRetryAfter  string
	noUpstream    bool // no Oz upstream is up: 503, not 502
	clientGone    bool // the client left in the meantime
	unread        bool // of the capsule there is more on the connection, or may be
	interrupted   bool // the request's context is of no use any more: see capsule.detach
	capsuleBytes  int64
	answerBytes   int64
	cutBytes      int64
	uploadTime    time.Duration
	ozTime        time.Duration // last capsule byte to whole answer
	upstream      string
	upstreamTries int
}

func (o outcome) retryAfter() string {
	if o.ozRetryAfter != "" {
		return o.ozRetryAfter
	}
	return retryAfter
}

// exchange is one capsule's way to Oz and back. Its fields belong to the
// request's goroutine; what the transport's and the timer's goroutines touch
// is behind mu.
type exchange struct {
	h            *Handler
	capsule      *capsule
	requirements []oz.Requirement
	start        time.Time
	ctx          context.Context
	cancel       context.CancelCauseFunc

	sent bool // the capsule was, or may have been, read on Oz's behalf
	out  outcome

	mu         sync.Mutex
	timer      *time.Timer
	uploadedAt time.Time
}

type exchangeCtxKey struct{}

// exchange sends the capsule through the inner reverse_proxy. The answer is
// read inside its transport (see transport.go), which leaves it in x.out;
// what reverse_proxy would write to a client is of no interest.
func (h *Handler) exchange(w http.ResponseWriter, r *http.Request) outcome {
	x := &exchange{
		h:            h,
		capsule:      newCapsule(w, r, h.MaxCapsule),
		requirements: h.requirements(r),
		start:        time.Now(),
	}
	stop := x.watch(r)
	defer stop()

	err := h.ReverseProxy.ServeHTTP(&sink{header: make(http.Header)}, x.request(r), nobody)
	x.out.clientGone = r.Context().Err() != nil
	x.capsule.detach()
	return x.outcome(err)
}

// nobody stands behind the inner proxy, which never calls its next handler.
var nobody = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

// watch starts the clocks. The exchange has a context of its own, since a
// client that leaves ends it only while the upload lasts (client_gone finish).
func (x *exchange) watch(r *http.Request) (stop func()) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	x.ctx, x.cancel = context.WithValue(ctx, exchangeCtxKey{}, x), cancel
	x.capsule.onDone = x.uploaded
	x.timer = time.AfterFunc(time.Duration(x.h.UploadTimeout), x.uploadLate)
	forget := context.AfterFunc(r.Context(), x.clientLeft)
	return func() {
		forget()
		cancel(nil)
		x.capsule.detach() // again, if reverse_proxy panicked
		x.mu.Lock()
		defer x.mu.Unlock()
		x.timer.Stop()
	}
}

// uploaded runs with the last byte of the capsule: from now on it is Oz's time.
func (x *exchange) uploaded() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.timer.Stop()
	x.uploadedAt = time.Now()
	x.timer = time.AfterFunc(time.Duration(x.h.Timeout), func() { x.cancel(errOzTimeout) })
}

// uploadLate tells a client that is slow to send from an Oz that is slow to
// take: only in the first case does a read wait for the client.
func (x *exchange) uploadLate() {
	switch s := x.capsule.state(); {
	case s.done:
	case s.waiting:
		x.cancel(errUploadTimeout)
	default:
		x.cancel(errOzTimeout)
	}
}

func (x *exchange) clientLeft() {
	if x.h.ClientGone == clientGoneCancel || !x.capsule.state().done {
		x.cancel(errClientGone)
	}
}

// request is the sub-request: a header set of our own, so that no cookie, no
// Authorization and no client address travels to Oz unless the operator adds
// it with header_up. It has a context, variables and a replacer of its own,
// because a second reverse_proxy in the same request would otherwise overwrite
// what the first one left there.
func (x *exchange) request(r *http.Request) *http.Request {
	sub := &http.Request{
		Method:        http.MethodPost,
		URL:           &url.URL{Path: x.h.BasePath + foldersPath},
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        ozHeader(r),
		Body:          x.capsule,
		ContentLength: r.ContentLength,
		RemoteAddr:    r.RemoteAddr,
	}
	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	client := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)

	repl := caddy.NewReplacer()
	repl.Map(client.Get) // placeholders in header_up speak of the client's request
	sub = caddyhttp.PrepareRequest(sub.WithContext(x.ctx), repl, nil, server)
	for _, name := range []string{caddyhttp.ClientIPVarKey, caddyhttp.TrustedProxyVarKey} {
		caddyhttp.SetVar(sub.Context(), name, caddyhttp.GetVar(r.Context(), name))
	}
	return sub
}

// tracedHeaders go to Oz so that one trace, or one id, leads through both logs.
var tracedHeaders = []string{"Traceparent", "Tracestate", "X-Request-Id"}

func ozHeader(r *http.Request) http.Header {
	h := http.Header{
		"Content-Type": {capsuleMediaType},
		"Accept":       {"application/json"},
		// Go would ask for gzip by itself, which the pruner cannot read.
		"Accept-Encoding": {"identity"},
		"User-Agent":      {userAgent},
		// A nil value keeps reverse_proxy from adding the field.
		"X-Forwarded-For":   nil,
		"X-Forwarded-Host":  nil,
		"X-Forwarded-Proto": nil,
	}
	for _, name := range tracedHeaders {
		if v := r.Header[name]; len(v) == 1 && traceable(v[0]) {
			h[name] = v
		}
	}
	return h
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

// outcome is called when the capsule is detached, so that nothing moves any more.
func (x *exchange) outcome(proxyErr error) outcome {
	o, s := x.out, x.capsule.state()
	x.mu.Lock()
	defer x.mu.Unlock()

	o.capsuleBytes, o.interrupted, o.unread = s.read, s.interrupted, s.interrupted || !s.done
	end := time.Now()
	if x.uploadedAt.IsZero() {
		o.uploadTime = end.Sub(x.start)
	} else {
		o.uploadTime, o.ozTime = x.uploadedAt.Sub(x.start), end.Sub(x.uploadedAt)
	}
	if o.verdict.Decision == "" && o.clientFault == nil {
		x.unanswered(&o, proxyErr)
	}
	o.noUpstream = o.verdict.Reason == oz.Unreachable && isNoUpstream(proxyErr)
	return o
}

// unanswered is for an exchange that ended before any upstream was tried.
func (x *exchange) unanswered(o *outcome, proxyErr error) {
	switch cause := context.Cause(x.ctx); {
	case errors.Is(cause, errClientGone), errors.Is(cause, errUploadTimeout):
		o.clientFault = cause
	default:
		o.verdict, o.err = oz.ReasonVerdict(oz.Unreachable), proxyErr
	}
}

// sink takes what reverse_proxy writes: by then the answer has been read.
// Its header map is its own, where interim answers of Oz end as well.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
