package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

const accessTokenHeader = "X-Forensic-Access-Token"

var errSwitching = errors.New("oz answered 101 Switching Protocols")

// ozTransport wraps the transport of the inner reverse_proxy and reads Oz's
// answer inside RoundTrip. There a cut, oversized or malformed answer is an
// ordinary round-trip error, which counts against that upstream's health;
// outside it would be reverse_proxy's panic(http.ErrAbortHandler). And what is
// added to the header here is not in reverse_proxy's debug log: it prints the
// request that it gave us.
type ozTransport struct {
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *ozTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	c, ok := req.Context().Value(callCtxKey{}).(*call)
	if !ok {
		return t.next.RoundTrip(req) // a health check
	}
	return c.roundTrip(t, req)
}

// roundTrip is one attempt at one upstream. There may be several, as long as
// none of them took anything.
func (c *call) roundTrip(t *ozTransport, req *http.Request) (*http.Response, error) {
	if c.sent {
		// A session token is spent by its first use, so that a second
		// send would look like fraud. The first attempt's result stands.
		return nil, canceled(errors.New("the call was already sent once"))
	}
	c.tries++
	c.fault, c.status = nil, 0
	if di, ok := reverseproxy.GetDialInfo(req.Context()); ok {
		c.upstream = di.Address
		c.tried = append(c.tried, di.Upstream.String())
	}

	a := attempt{call: c}
	res, err := t.next.RoundTrip(a.outgoing(t, req))
	a.end()
	c.sent = a.touched.Load()
	if err == nil {
		defer res.Body.Close()
		err = c.take(res)
	} else {
		err = c.lost(err)
	}
	if err != nil {
		return nil, c.failed(req.Context(), err)
	}
	return &http.Response{
		Status: res.Status, StatusCode: res.StatusCode,
		Proto: res.Proto, ProtoMajor: res.ProtoMajor, ProtoMinor: res.ProtoMinor,
		Header: make(http.Header), Body: http.NoBody, Request: req,
	}, nil
}

// attempt is what is known of one attempt while it is under way.
type attempt struct {
	call *call

	// touched notes that something of the call may have left for Oz: the first
	// attempt to read of its body, or, where there is none, a connection to
	// write to. It is noted inside RoundTrip, since what reverse_proxy itself
	// reads says nothing about what Oz got.
	touched atomic.Bool

	mu   sync.Mutex
	conn net.Conn
}

// gotConn is called when there is a connection to write to.
func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	if a.call.body == nil {
		a.touched.Store(true)
	}
	if a.call.onLost == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn = info.Conn
	whenEnded(info.Conn, a, a.call.onLost)
}

func (a *attempt) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conn != nil {
		whenEnded(a.conn, a, nil)
	}
}

// outgoing is what goes on the wire.
func (a *attempt) outgoing(t *ozTransport, req *http.Request) *http.Request {
	c := a.call
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: a.gotConn})
	out := req.WithContext(ctx)
	if req.Body != nil {
		out.Body, out.GetBody = &watchedBody{req.Body, &a.touched}, nil
	}
	out.Header = req.Header.Clone()
	if via := out.Header["Via"]; len(via) == 1 && via[0] == "1.1 Caddy" {
		delete(out.Header, "Via") // reverse_proxy's own; an operator's stays
	}
	if c.token != "" {
		out.Header[accessTokenHeader] = []string{c.token}
	}
	if di, ok := reverseproxy.GetDialInfo(ctx); ok && (out.Host == "" || out.Host == di.Address) {
		out.Host = hostOf(di, t.tls())
	}
	return out
}

// hostOf is the upstream's own name, which Oz checks (APP_ALLOWED_HOSTS),
// without a port that goes without saying.
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

func (t *ozTransport) tls() bool {
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

// take reads an answer.
func (c *call) take(res *http.Response) error {
	c.status = res.StatusCode
	if res.StatusCode == http.StatusSwitchingProtocols {
		// reverse_proxy would hand the client's connection over.
		return &fault{oz.UnexpectedStatus, errSwitching}
	}
	return c.read(res)
}

// lost says what an attempt's end without an answer means.
func (c *call) lost(err error) error {
	if !c.sent {
		return &fault{oz.Unreachable, err} // dial or TLS
	}
	if isTimeout(err) { // by the operator's transport options
		return &fault{oz.Timeout, plain(err)}
	}
	return &fault{oz.ConnectionLost, plain(err)}
}

// failed records why an attempt failed, and tells reverse_proxy whose fault it
// was. Its error is a new one: it must not look like context.Canceled, which
// would spare the upstream, unless it was the client.
func (c *call) failed(ctx context.Context, err error) error {
	if c.blame != nil {
		if fault := c.blame(); fault != nil {
			c.clientFault = fault
			return canceled(fault)
		}
	}
	f := new(fault)
	if !errors.As(err, &f) {
		f = &fault{oz.MalformedAnswer, err}
	}
	switch {
	case errors.Is(context.Cause(ctx), errOzTimeout):
		f = &fault{oz.Timeout, errOzTimeout}
	case c.sent && c.status == 0 && c.paused != nil && c.paused():
		c.fault = f
		return canceled(f)
	}
	c.fault = f
	plainErr := errors.New(f.Error())
	if f.reason == oz.Unreachable {
		return reverseproxy.NewDialError(plainErr) // another upstream may be tried
	}
	return plainErr
}

// canceled marks err as not the upstream's doing: reverse_proxy then neither
// counts it nor tries again.
func canceled(err error) error { return fmt.Errorf("%w: %w", context.Canceled, err) }

// plain is err without what the peer sent: net/http quotes malformed answers,
// and a piece of Oz's answer may be a piece of a face.
func plain(err error) error {
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		return op
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("connection closed")
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case isTimeout(err):
		return errors.New("timed out")
	}
	return fmt.Errorf("transport error of type %T", err)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// The optional interfaces of reverse_proxy's transports, forwarded.

// RequestHeaderOps implements reverseproxy.RequestHeaderOpsTransport.
func (t *ozTransport) RequestHeaderOps() *headers.HeaderOps {
	if next, ok := t.next.(reverseproxy.RequestHeaderOpsTransport); ok {
		return next.RequestHeaderOps()
	}
	return nil
}

// OverrideHealthCheckScheme implements reverseproxy.HealthCheckSchemeOverriderTransport.
func (t *ozTransport) OverrideHealthCheckScheme(base *url.URL, port string) {
	if next, ok := t.next.(reverseproxy.HealthCheckSchemeOverriderTransport); ok {
		next.OverrideHealthCheckScheme(base, port)
	}
}

// ProxyProtocolEnabled implements reverseproxy.ProxyProtocolTransport.
func (t *ozTransport) ProxyProtocolEnabled() bool {
	next, ok := t.next.(reverseproxy.ProxyProtocolTransport)
	return ok && next.ProxyProtocolEnabled()
}

// Interface guards
var (
	_ http.RoundTripper                                = (*ozTransport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*ozTransport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*ozTransport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*ozTransport)(nil)
)
