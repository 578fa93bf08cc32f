package ozclient

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"golang.org/x/net/http/httpguts"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// transport wraps the transport of the inner reverse_proxy and reads Oz's
// answer inside RoundTrip. There a cut or malformed answer is an ordinary
// round-trip error, which counts against that upstream's health; outside it
// would be reverse_proxy's panic(http.ErrAbortHandler). And what is added to
// the header here is not in reverse_proxy's debug log: it prints the request
// that it gave us.
type transport struct {
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	k, ok := req.Context().Value(callCtxKey{}).(*call)
	if !ok {
		return t.next.RoundTrip(req) // a health check
	}
	if err := k.over(req.Context()); err != nil {
		return nil, canceled(err)
	}
	return k.roundTrip(t, req)
}

// over says why there may be no further attempt, or returns nil.
//
// A session token is spent by its first use, so that a second send would look
// like fraud: the first attempt's result stands. It stands as well when the
// call's time is up, which reverse_proxy does not look at between attempts.
func (k *call) over(ctx context.Context) error {
	if k.sent {
		return errors.New("the call was already sent once")
	}
	if ctx.Err() == nil {
		return nil
	}
	if e := blame(k.attempted(ctx, nil)); k.failure == nil || e.Fault == FaultClient {
		k.failure = e
	}
	return errors.New("the call has ended")
}

// roundTrip makes one attempt at one upstream. There may be several, as long as
// none of them took anything.
func (k *call) roundTrip(t *transport, req *http.Request) (*http.Response, error) {
	k.report.Tries++
	k.failure, k.report.Status = nil, 0
	if di, ok := reverseproxy.GetDialInfo(req.Context()); ok {
		k.report.Upstream = di.Address
		k.tried = append(k.tried, di.Upstream.String())
	}

	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	a := &attempt{call: k, ctx: ctx, lost: make(chan struct{})}
	res, err := a.send(t, req)
	k.sent = a.touched.Load()
	if err == nil {
		defer res.Body.Close()
		err = k.take(res)
	}
	if err != nil {
		k.failure = blame(a.attempted(req.Context(), err))
		return nil, k.failure.forProxy()
	}
	return &http.Response{
		Status: res.Status, StatusCode: res.StatusCode,
		Proto: res.Proto, ProtoMajor: res.ProtoMajor, ProtoMinor: res.ProtoMinor,
		Header: make(http.Header), Body: http.NoBody, Request: req,
	}, nil
}

// take reads an answer.
func (k *call) take(res *http.Response) error {
	k.report.Status, k.date = res.StatusCode, clockOf(res)
	if res.StatusCode == http.StatusSwitchingProtocols {
		// reverse_proxy would hand the client's connection over.
		return errSwitching
	}
	if isFolder(res.StatusCode) && k.body != nil && k.body.State().SentAt.IsZero() {
		return errEarlyFolder
	}
	return k.read(res)
}

// attempt is what is known of one attempt while it is in progress.
type attempt struct {
	call *call
	ctx  context.Context

	dialed    atomic.Bool
	connected atomic.Bool

	// touched notes that something of the call may have left for Oz: the first
	// attempt to read its body, or, without one, a connection to write to. It
	// is noted inside RoundTrip, since what reverse_proxy itself reads says
	// nothing about what Oz got.
	touched atomic.Bool

	lost    chan struct{} // closed some time after Oz has ended the connection
	mu      sync.Mutex
	conn    net.Conn
	ended   bool
	lostErr error
	lostAt  time.Time    // when the connection ended; zero if it has not
	body    upload.State // at that moment
	timer   *time.Timer
}

// send makes the attempt. It returns when the call's time is up, or when the
// connection is lost, whatever net/http still waits for: after a failure, that
// waits for its read of the body to return, which may take as long as a client
// is silent. An answer that has arrived is preferred to everything.
func (a *attempt) send(t *transport, req *http.Request) (*http.Response, error) {
	out := a.outgoing(t, req)
	if !sendable(out) {
		return nil, ErrInvalidHeader
	}
	defer a.end()
	if a.call.body == nil {
		return t.next.RoundTrip(out)
	}
	type result struct {
		res *http.Response
		err error
	}
	results, left := make(chan result), make(chan struct{})
	defer close(left)
	go func() {
		res, err := t.next.RoundTrip(out)
		select {
		case results <- result{res, err}:
		case <-left:
			if res != nil {
				_ = res.Body.Close()
			}
		}
	}()
	var err error
	select {
	case r := <-results:
		return r.res, r.err
	case <-a.ctx.Done():
		err = context.Cause(a.ctx)
	case <-a.lost:
		err = a.lostErr
	}
	select {
	case r := <-results:
		return r.res, r.err
	default:
		return nil, err
	}
}

// gotConn is called when there is a connection to write to.
func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	a.connected.Store(true)
	if a.call.body == nil { // net/http reports the loss of the connection by itself
		a.touched.Store(true)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	a.conn = info.Conn
	whenEnded(info.Conn, a, a.connEnded)
}

// connEnded gives an answer that came before the end of the connection time to
// arrive, as net/http reads it in another goroutine.
func (a *attempt) connEnded(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended || a.timer != nil {
		return
	}
	a.lostErr, a.lostAt, a.body = err, time.Now(), a.call.state()
	a.timer = time.AfterFunc(answerGrace, func() { close(a.lost) })
}

// attempted returns what is known of an attempt that has failed. How the client
// behaved is that of the moment when the connection ended, where that is known:
// failed writes and late answers are waited for.
func (a *attempt) attempted(ctx context.Context, err error) attempted {
	what := a.call.attempted(ctx, err)
	what.dialed, what.connected = a.dialed.Load(), a.connected.Load()
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.lostAt.IsZero() {
		what.body.Silence = a.body.Silence
		what.elapsed, what.waited = a.lostAt.Sub(a.call.start), a.body.Waited-a.call.waited
	}
	return what
}

func (a *attempt) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	if a.timer != nil {
		a.timer.Stop()
	}
	if a.conn != nil {
		whenEnded(a.conn, a, nil)
	}
}

// outgoing returns what goes on the wire.
func (a *attempt) outgoing(t *transport, req *http.Request) *http.Request {
	out := req.WithContext(httptrace.WithClientTrace(a.ctx, &httptrace.ClientTrace{
		ConnectStart: func(string, string) { a.dialed.Store(true) },
		GotConn:      a.gotConn,
	}))
	if req.Body != nil {
		out.Body, out.GetBody = &watchedBody{req.Body, &a.touched}, nil
	}
	out.Header = req.Header.Clone()
	if via := out.Header["Via"]; len(via) == 1 && via[0] == "1.1 Caddy" {
		delete(out.Header, "Via") // reverse_proxy's own; an operator's stays
	}
	if a.call.token != "" {
		out.Header[accessTokenHeader] = []string{a.call.token}
	}
	if di, ok := reverseproxy.GetDialInfo(a.ctx); ok && (out.Host == "" || out.Host == di.Address) {
		out.Host = hostOf(di, t.tls())
	}
	return out
}

// sendable reports whether net/http will take the header of req. It refuses
// what an operator's placeholders make of a client's request, such as
// "?tx=a%0d%0ab", by an error that can't be told from a failed dial.
func sendable(req *http.Request) bool {
	for name, values := range req.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return false
		}
		for _, value := range values {
			if !httpguts.ValidHeaderFieldValue(value) {
				return false
			}
		}
	}
	host, err := httpguts.PunycodeHostPort(req.Host)
	return err == nil && httpguts.ValidHostHeader(host)
}

// hostOf returns the upstream's own name, which Oz checks (APP_ALLOWED_HOSTS),
// without the scheme's default port.
func hostOf(di reverseproxy.DialInfo, tls bool) string {
	if strings.HasPrefix(di.Network, "unix") {
		return "localhost"
	}
	if (di.Port == "443" && tls) || (di.Port == "80" && !tls) {
		if strings.Contains(di.Host, ":") {
			return "[" + di.Host + "]"
		}
		return di.Host
	}
	return di.Address
}

func (t *transport) tls() bool {
	tt, ok := t.next.(reverseproxy.TLSTransport)
	return ok && tt.TLSEnabled()
}

// watchedBody notes the first attempt to read: from then on bytes of it may
// have left for Oz, or sit lost in a buffer.
type watchedBody struct {
	io.ReadCloser
	touched *atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.touched.Store(true)
	return b.ReadCloser.Read(p)
}

// The optional interfaces of reverse_proxy's transports, forwarded.

// RequestHeaderOps implements reverseproxy.RequestHeaderOpsTransport.
func (t *transport) RequestHeaderOps() *headers.HeaderOps {
	if next, ok := t.next.(reverseproxy.RequestHeaderOpsTransport); ok {
		return next.RequestHeaderOps()
	}
	return nil
}

// OverrideHealthCheckScheme implements reverseproxy.HealthCheckSchemeOverriderTransport.
func (t *transport) OverrideHealthCheckScheme(base *url.URL, port string) {
	if next, ok := t.next.(reverseproxy.HealthCheckSchemeOverriderTransport); ok {
		next.OverrideHealthCheckScheme(base, port)
	}
}

// ProxyProtocolEnabled implements reverseproxy.ProxyProtocolTransport.
func (t *transport) ProxyProtocolEnabled() bool {
	next, ok := t.next.(reverseproxy.ProxyProtocolTransport)
	return ok && next.ProxyProtocolEnabled()
}

// Interface guards
var (
	_ http.RoundTripper                                = (*transport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*transport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*transport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*transport)(nil)
)
