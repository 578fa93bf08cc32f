package ozclient

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
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

	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	a := &attempt{call: k, ctx: ctx, cancel: cancel, leave: func() bool { return false }}
	res, err := a.send(t, req)
	k.sent = a.touched // which is final, as send has ended the attempt
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
	if isFolder(res.StatusCode) && k.state().SentAt.IsZero() {
		return errEarlyFolder
	}
	return k.read(res)
}

// attempt is what is known of one attempt while it is in progress.
type attempt struct {
	call   *call
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu        sync.Mutex
	dialed    bool
	connected bool
	ended     bool

	// touched notes that something of the call may have left for Oz: the first
	// attempt to read its body, or, without one, a connection to write to. It
	// is noted inside RoundTrip, since what reverse_proxy itself reads says
	// nothing about what Oz got.
	touched bool

	conn   *graceConn
	leave  func() bool  // forgets conn
	lostAt time.Time    // when conn ended; zero if it has not
	body   upload.State // at that moment
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
	select {
	case r := <-results:
		return r.res, r.err
	case <-a.ctx.Done():
	}
	select {
	case r := <-results:
		return r.res, r.err
	default:
		return nil, context.Cause(a.ctx)
	}
}

func (a *attempt) connectStart(string, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dialed = true
}

// gotConn is called when there is a connection to write to. It is called again
// if that was a kept one which Oz has closed: net/http then takes another by
// itself, and the end of the first says nothing any more.
func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.connected = true
	if a.call.body == nil { // net/http reports the loss of the connection by itself
		a.touched = true
		return
	}
	a.lostAt = time.Time{}
	if conn, ok := graceConnOf(info.Conn); ok && conn != a.conn {
		a.leave()
		a.conn, a.leave = conn, context.AfterFunc(conn.life, func() { a.ending(conn) })
	}
}

// ending ends the attempt after Oz has ended conn. It gives an answer that came
// before that time to arrive, as net/http reads it in another goroutine.
func (a *attempt) ending(conn *graceConn) {
	if !a.lost(conn) {
		return
	}
	select {
	case <-time.After(answerGrace):
	case <-a.ctx.Done():
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended && a.conn == conn {
		a.cancel(context.Cause(conn.life))
	}
}

// lost notes when conn ended, and reports whether the attempt still needs it.
func (a *attempt) lost(conn *graceConn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended || a.conn != conn {
		return false
	}
	a.lostAt, a.body = time.Now(), a.call.state()
	return true
}

// touch notes a read of the body, and reports whether it may take place. Once
// an attempt that took nothing has ended, the body belongs to the next.
func (a *attempt) touch() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended {
		a.touched = true
	}
	return a.touched
}

// attempted returns what is known of an attempt that has failed. How the client
// behaved is that of the moment when the connection ended, where that is known:
// failed writes and late answers are waited for.
func (a *attempt) attempted(ctx context.Context, err error) attempted {
	what := a.call.attempted(ctx, err)
	a.mu.Lock()
	defer a.mu.Unlock()
	what.dialed, what.connected = a.dialed, a.connected
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
	a.leave()
}

// outgoing returns what goes on the wire.
func (a *attempt) outgoing(t *transport, req *http.Request) *http.Request {
	out := req.WithContext(httptrace.WithClientTrace(a.ctx, &httptrace.ClientTrace{
		ConnectStart: a.connectStart,
		GotConn:      a.gotConn,
	}))
	if req.Body != nil {
		out.Body, out.GetBody = &watchedBody{req.Body, a}, nil
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
		return strings.TrimSuffix(di.Address, ":"+di.Port)
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
	attempt *attempt
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if !b.attempt.touch() {
		return 0, upload.ErrStopped
	}
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
	_ reverseproxy.RequestHeaderOpsTransport           = (*transport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*transport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*transport)(nil)
)
