package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

const accessTokenHeader = "X-Forensic-Access-Token"

// ozTransport wraps the transport of the inner reverse_proxy and reads Oz's
// answer inside RoundTrip. There a cut, oversized or malformed answer is an
// ordinary round-trip error, which counts against that upstream's health;
// outside it would be reverse_proxy's panic(http.ErrAbortHandler). And what is
// added to the header here is not in reverse_proxy's debug log: it prints the
// request that it gave us.
type ozTransport struct {
	next        http.RoundTripper
	accessToken string
}

// RoundTrip implements http.RoundTripper.
func (t *ozTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	x, ok := req.Context().Value(exchangeCtxKey{}).(*exchange)
	if !ok {
		return t.next.RoundTrip(req) // a health check
	}
	return x.roundTrip(t, req)
}

// roundTrip is one attempt at one upstream. There may be several, as long as
// none of them took a byte of the capsule.
func (x *exchange) roundTrip(t *ozTransport, req *http.Request) (*http.Response, error) {
	if x.sent {
		// A session token is spent by its first use, so that a second
		// send would look like fraud. The first attempt's result stands.
		return nil, canceled(errors.New("capsule was already sent once"))
	}
	x.out.upstreamTries++
	x.out.upstream = upstreamAddress(req)

	body := &watchedBody{ReadCloser: req.Body}
	res, err := t.next.RoundTrip(t.outgoing(req, body))
	x.sent = body.touched.Load()
	if err != nil {
		return nil, x.failed(err)
	}
	defer res.Body.Close()
	if err := x.receive(res); err != nil {
		return nil, err
	}
	return &http.Response{
		Status: res.Status, StatusCode: res.StatusCode,
		Proto: res.Proto, ProtoMajor: res.ProtoMajor, ProtoMinor: res.ProtoMinor,
		Header: make(http.Header), Body: http.NoBody, Request: req,
	}, nil
}

// outgoing is what goes on the wire.
func (t *ozTransport) outgoing(req *http.Request, body io.ReadCloser) *http.Request {
	out := req.WithContext(req.Context())
	out.Body, out.GetBody = body, nil
	out.Header = req.Header.Clone()
	if via := out.Header["Via"]; len(via) == 1 && via[0] == "1.1 Caddy" {
		delete(out.Header, "Via") // reverse_proxy's own; an operator's stays
	}
	if t.accessToken != "" {
		out.Header[accessTokenHeader] = []string{t.accessToken}
	}
	if di, ok := reverseproxy.GetDialInfo(req.Context()); ok && (out.Host == "" || out.Host == di.Address) {
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

func upstreamAddress(req *http.Request) string {
	di, _ := reverseproxy.GetDialInfo(req.Context())
	return di.Address
}

// watchedBody notes the first attempt to read: from then on bytes of the
// capsule may have left for Oz, or sit lost in a buffer. It is watched here,
// inside RoundTrip, since what reverse_proxy itself reads from the capsule
// says nothing about what an upstream got.
type watchedBody struct {
	io.ReadCloser
	touched atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.touched.Store(true)
	return b.ReadCloser.Read(p)
}

// canceled marks err as not the upstream's doing: reverse_proxy then neither
// counts it nor tries again.
func canceled(err error) error { return fmt.Errorf("%w: %w", context.Canceled, err) }

// failed finds out whose fault an attempt's end without an answer is.
func (x *exchange) failed(err error) error {
	if fault := x.clientFault(); fault != nil {
		x.out.clientFault = fault
		return canceled(fault)
	}
	if errors.Is(context.Cause(x.ctx), errOzTimeout) {
		return x.settle(oz.Timeout, errOzTimeout)
	}
	if !x.sent {
		// Dial or TLS: nothing was accepted, another upstream may be tried.
		return reverseproxy.NewDialError(x.settle(oz.Unreachable, err))
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() { // the operator's transport options
		return x.settle(oz.Timeout, plain(err))
	}
	return x.settle(oz.ConnectionLost, plain(err))
}

// clientFault is what the client did to end the exchange, if it did.
func (x *exchange) clientFault() error {
	s := x.capsule.state()
	if s.fault != nil {
		return s.fault
	}
	if cause := context.Cause(x.ctx); errors.Is(cause, errClientGone) || errors.Is(cause, errUploadTimeout) {
		return cause
	}
	return nil
}

// settle records why there is no decision. Its error is a new one: it must
// not look like context.Canceled to reverse_proxy, which would spare the
// upstream.
func (x *exchange) settle(reason oz.Reason, err error) error {
	x.out.verdict, x.out.err, x.out.folder = oz.ReasonVerdict(reason), err, nil
	return fmt.Errorf("%s: %v", reason, err)
}

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
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return errors.New("timed out")
	}
	return fmt.Errorf("transport error of type %T", err)
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

// isNoUpstream reports whether reverse_proxy found no upstream to try.
func isNoUpstream(err error) bool {
	var herr caddyhttp.HandlerError
	return errors.As(err, &herr) && herr.StatusCode == http.StatusServiceUnavailable
}

// Interface guards
var (
	_ http.RoundTripper                                = (*ozTransport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*ozTransport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*ozTransport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*ozTransport)(nil)
)
