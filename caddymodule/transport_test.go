package caddymodule

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

func TestHostOf(t *testing.T) {
	for _, test := range []struct {
		network, host, port string
		tls                 bool
		want                string
	}{
		{"tcp", "oz.internal", "443", true, "oz.internal"},
		{"tcp", "oz.internal", "80", false, "oz.internal"},
		{"tcp", "oz.internal", "443", false, "oz.internal:443"},
		{"tcp", "oz.internal", "80", true, "oz.internal:80"},
		{"tcp", "oz.internal", "8080", false, "oz.internal:8080"},
		{"tcp", "10.0.0.1", "8443", true, "10.0.0.1:8443"},
		{"tcp", "fd00::1", "443", true, "[fd00::1]"},
		{"tcp", "fd00::1", "80", false, "[fd00::1]"},
		{"tcp", "fd00::1", "8080", false, "[fd00::1]:8080"},
		{"unix", "/run/oz.sock", "", false, "localhost"},
		{"unix+h2c", "/run/oz.sock", "", false, "localhost"},
	} {
		di := reverseproxy.DialInfo{Network: test.network, Host: test.host, Port: test.port, Address: net.JoinHostPort(test.host, test.port)}
		if got := hostOf(di, test.tls); got != test.want {
			t.Errorf("%s %s, TLS %v: %q, want %q", test.host, test.port, test.tls, got, test.want)
		}
	}
}

// timeoutError is one of the many that only say that they are one.
type timeoutError struct{}

func (timeoutError) Error() string   { return "with a canary in it" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return false }

// An error of the connection is told by what it is and not by its text, in
// which net/http quotes what the peer sent.
func TestPlainErrors(t *testing.T) {
	const canary = "canary"
	reset := &net.OpError{Op: "read", Net: "tcp", Err: errors.New("connection reset by peer")}
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("%s: %w", canary, reset), "read tcp: connection reset by peer"},
		{fmt.Errorf("%s: %w", canary, io.ErrUnexpectedEOF), "connection closed"},
		{fmt.Errorf("%s: %w", canary, io.EOF), "connection closed"},
		{fmt.Errorf("%s: %w", canary, context.DeadlineExceeded), "context deadline exceeded"},
		{fmt.Errorf("%s: %w", canary, timeoutError{}), "timed out"},
		{errors.New(canary), "transport error of type *errors.errorString"},
		{fmt.Errorf("%s: %w", canary, context.Canceled), "transport error of type *fmt.wrapError"},
	} {
		if got := plain(test.err).Error(); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
		if errors.Is(plain(test.err), context.Canceled) {
			t.Errorf("%v: looks as if the client had ended it", test.err)
		}
	}
}

// What net/http itself says of answers that make no sense never comes through.
func TestPlainNeverQuotesTheAnswer(t *testing.T) {
	const canary = "Z2VoZWlt"
	for _, answer := range []string{
		canary + "\r\n\r\n",
		"HTTP/1.1 " + canary + " OK\r\n\r\n",
		"HTTP/1.1 201 Created\r\n" + canary + "\r\n\r\n",
		"HTTP/1.1 201 Created\r\nContent-Length: " + canary + "\r\n\r\n",
		"HTTP/1.1 201 Created\r\nTransfer-Encoding: " + canary + "\r\n\r\n",
	} {
		_, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
		if err == nil {
			t.Fatalf("%q was read", answer)
		}
		if got := plain(err).Error(); strings.Contains(got, canary) {
			t.Errorf("%q: %s", answer, got)
		}
	}
}

// exchanged is a call through an ozTransport with next behind it.
func exchanged(c *call, next http.RoundTripper, more ...func(*http.Request)) (*http.Response, error) {
	if c.read == nil {
		c.read = func(*http.Response) error { return nil }
	}
	ctx := context.WithValue(context.Background(), callCtxKey{}, c)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://oz/", c.body)
	if err != nil {
		return nil, err
	}
	for _, f := range more {
		f(req)
	}
	return (&ozTransport{next: next}).RoundTrip(req)
}

func body(text string) io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }

// fails reads so much of what it is sent, and then fails.
func fails(take int64, err error) roundTrip {
	return func(req *http.Request) (*http.Response, error) {
		if take > 0 {
			_, _ = io.CopyN(io.Discard, req.Body, take)
		}
		return nil, err
	}
}

// An attempt that fails before anything was taken is "unreachable", and to
// reverse_proxy a failed dial: it may try the next. After that it never is.
func TestFailedAttempts(t *testing.T) {
	slow := &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
	for _, test := range []struct {
		name   string
		take   int64
		err    error
		reason oz.Reason
	}{
		{"dial", 0, &net.OpError{Op: "dial", Err: errors.New("refused")}, oz.Unreachable},
		{"TLS", 0, x509.UnknownAuthorityError{}, oz.Unreachable},
		{"a dial that times out", 0, slow, oz.Unreachable},
		{"after a byte", 1, io.EOF, oz.ConnectionLost},
		{"after all", 7, &net.OpError{Op: "read", Err: errors.New("reset")}, oz.ConnectionLost},
		{"a transport that is out of patience", 7, slow, oz.Timeout},
		{"canceled by the transport", 1, context.Canceled, oz.ConnectionLost},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &call{body: body("capsule")}
			res, err := exchanged(c, fails(test.take, test.err))
			if res != nil || err == nil || c.fault == nil || c.fault.reason != test.reason || c.clientFault != nil {
				t.Fatalf("err = %v, fault %v", err, c.fault)
			}
			var dial reverseproxy.DialError
			if again := errors.As(err, &dial); again != (test.reason == oz.Unreachable) {
				t.Errorf("another attempt is allowed: %v", again)
			}
			if errors.Is(err, context.Canceled) {
				t.Error("reverse_proxy would take it for the client's doing")
			}
			if c.sent != (test.take > 0) || c.tries != 1 {
				t.Errorf("sent %v, %d tries", c.sent, c.tries)
			}
		})
	}
}

// An attempt to read the capsule counts as a send even if it gave nothing:
// bytes may be lost in a buffer.
func TestReadingIsSending(t *testing.T) {
	c := &call{body: body("")}
	_, err := exchanged(c, fails(1, io.EOF), func(r *http.Request) { r.Body = c.body })
	if !c.sent || c.fault == nil || c.fault.reason != oz.ConnectionLost {
		t.Errorf("sent %v: %v", c.sent, err)
	}
}

// A call without a body is sent as soon as there is a connection for it.
func TestConnectionIsSendingWithoutABody(t *testing.T) {
	connects := roundTrip(func(req *http.Request) (*http.Response, error) {
		httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{Conn: brokenConn{}})
		return nil, io.EOF
	})
	c := new(call)
	if _, err := exchanged(c, connects); !c.sent || c.fault.reason != oz.ConnectionLost {
		t.Errorf("without a body: sent %v, %v", c.sent, err)
	}
	c = &call{body: body("capsule")}
	if _, err := exchanged(c, connects); c.sent || c.fault.reason != oz.Unreachable {
		t.Errorf("with a body that nobody read: sent %v, %v", c.sent, err)
	}
}

// A session token is spent by its first use. Whoever asks for a second send, it
// does not take place, the first one's result stands, and no upstream is blamed.
func TestSecondSendIsRefused(t *testing.T) {
	c := &call{body: body("capsule"), read: func(*http.Response) error { return errors.New("cut off") }}
	if _, err := exchanged(c, answers(201, "")); err == nil {
		t.Fatal("an answer that could not be read was taken")
	}
	first := c.fault
	res, err := exchanged(c, neverAsked(t))
	if res != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("the second send: %v, %v", res, err)
	}
	if c.fault != first || c.tries != 1 {
		t.Errorf("after the second send: %v, %d tries", c.fault, c.tries)
	}
}

// A next attempt forgets what came of the one before.
func TestNextAttemptStartsAnew(t *testing.T) {
	c := &call{body: body("capsule")}
	if _, err := exchanged(c, fails(0, errors.New("refused"))); err == nil || c.fault == nil {
		t.Fatalf("%v, %v", err, c.fault)
	}
	if _, err := exchanged(c, answers(201, "")); err != nil || c.fault != nil || c.status != 201 || c.tries != 2 {
		t.Errorf("%v: %+v", err, c)
	}
}

// What reverse_proxy gets is the status and nothing else: the answer was read.
func TestAnswerGoesNoFurther(t *testing.T) {
	var got string
	c := &call{body: body("capsule"), read: func(res *http.Response) error {
		doc, err := io.ReadAll(res.Body)
		got = string(doc)
		return err
	}}
	closed := false
	res, err := exchanged(c, roundTrip(func(req *http.Request) (*http.Response, error) {
		_, _ = readAll(req)
		res := response(201, "folder")
		res.Header.Set("Set-Cookie", "a=b")
		res.Body = closing{res.Body, &closed}
		return res, nil
	}))
	if err != nil || got != "folder" || !closed {
		t.Fatalf("%v: read %q, closed %v", err, got, closed)
	}
	if rest, _ := io.ReadAll(res.Body); res.StatusCode != 201 || len(res.Header) != 0 || len(rest) != 0 {
		t.Errorf("reverse_proxy gets %d %v %q", res.StatusCode, res.Header, rest)
	}
}

type closing struct {
	io.ReadCloser
	closed *bool
}

func (c closing) Close() error {
	*c.closed = true
	return c.ReadCloser.Close()
}

// A 101 would have reverse_proxy hand the client's connection over.
func TestSwitchingProtocolsIsRefused(t *testing.T) {
	c := &call{body: body("capsule"), read: func(*http.Response) error {
		t.Error("the answer was read")
		return nil
	}}
	res, err := exchanged(c, answers(101, ""))
	if res != nil || err == nil || c.fault == nil || c.fault.reason != oz.UnexpectedStatus || !errors.Is(c.fault.err, errSwitching) {
		t.Errorf("%v, %v", res, err)
	}
	if c.status != 101 {
		t.Errorf("status %d", c.status)
	}
}

// What goes wrong is the client's where the client says so, the clock's where
// that ran out, and otherwise the upstream's.
func TestBlame(t *testing.T) {
	late, cancel := context.WithCancelCause(context.Background())
	cancel(errOzTimeout)
	other, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("shutting down"))
	faulty := &fault{oz.UnexpectedStatus, errors.New("early")}
	for _, test := range []struct {
		name   string
		ctx    context.Context
		client error
		err    error
		reason oz.Reason
	}{
		{"the client left", late, errClientGone, io.EOF, ""},
		{"the client is too large", context.Background(), errTooLarge, faulty, ""},
		{"Oz is late", late, nil, faulty, oz.Timeout},
		{"the answer makes no sense", context.Background(), nil, io.EOF, oz.MalformedAnswer},
		{"it was said what is wrong", other, nil, fmt.Errorf("wrapped: %w", faulty), oz.UnexpectedStatus},
		{"nothing was reached", context.Background(), nil, &fault{oz.Unreachable, io.EOF}, oz.Unreachable},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &call{blame: func() error { return test.client }}
			err := c.failed(test.ctx, test.err)
			if test.client != nil {
				if c.fault != nil || !errors.Is(c.clientFault, test.client) || !errors.Is(err, context.Canceled) || !errors.Is(err, test.client) {
					t.Errorf("%v: fault %v, client's %v", err, c.fault, c.clientFault)
				}
				return
			}
			if c.clientFault != nil || c.fault == nil || c.fault.reason != test.reason || errors.Is(err, context.Canceled) {
				t.Errorf("%v: fault %v, client's %v", err, c.fault, c.clientFault)
			}
			if !strings.HasPrefix(err.Error(), string(test.reason)+": ") {
				t.Errorf("reverse_proxy's log says %q", err)
			}
			if errors.As(err, new(*fault)) {
				t.Error("the error is not a new one")
			}
		})
	}
	if err := (&call{}).failed(context.Background(), io.EOF); errors.Is(err, context.Canceled) {
		t.Errorf("without a client: %v", err)
	}
}

// The access token is on the wire and in no header that anyone else sees;
// reverse_proxy's Via is not on it, an operator's is.
func TestWhatGoesOnTheWire(t *testing.T) {
	for _, test := range []struct {
		name      string
		via, want []string
	}{
		{"reverse_proxy's own", []string{"1.1 Caddy"}, nil},
		{"an operator's", []string{"1.1 gateway"}, []string{"1.1 gateway"}},
		{"both", []string{"1.1 gateway", "1.1 Caddy"}, []string{"1.1 gateway", "1.1 Caddy"}},
		{"none", nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var wire http.Header
			var getBody bool
			var seen *http.Request
			_, err := exchanged(&call{body: body("capsule"), token: "secret"}, roundTrip(func(req *http.Request) (*http.Response, error) {
				wire, getBody = req.Header, req.GetBody != nil
				_, _ = readAll(req)
				return response(201, ""), nil
			}), func(req *http.Request) {
				seen = req
				if test.via != nil {
					req.Header["Via"] = test.via
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := wire[accessTokenHeader]; !reflect.DeepEqual(got, []string{"secret"}) {
				t.Errorf("access token on the wire: %q", got)
			}
			if _, has := seen.Header[accessTokenHeader]; has {
				t.Error("the access token is where reverse_proxy logs it")
			}
			if !reflect.DeepEqual(wire["Via"], test.want) {
				t.Errorf("Via on the wire: %q, want %q", wire["Via"], test.want)
			}
			if !reflect.DeepEqual(seen.Header["Via"], test.via) {
				t.Errorf("reverse_proxy's own header was changed: %q", seen.Header["Via"])
			}
			if getBody {
				t.Error("net/http could send the capsule again")
			}
		})
	}
	_, err := exchanged(new(call), roundTrip(func(req *http.Request) (*http.Response, error) {
		if _, has := req.Header[accessTokenHeader]; has {
			t.Error("an access token where there is none")
		}
		return response(201, ""), nil
	}))
	if err != nil {
		t.Error(err)
	}
}

// Health checks are no calls: they go through as they are.
func TestOtherRequestsPassUntouched(t *testing.T) {
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://oz/health", nil)
	want := response(200, "well")
	res, err := (&ozTransport{next: roundTrip(func(got *http.Request) (*http.Response, error) {
		if got != req {
			t.Error("it is not the same request")
		}
		return want, nil
	})}).RoundTrip(req)
	if err != nil || res != want {
		t.Errorf("%v, %v", res, err)
	}
}

// Whoever brings the capsule hears of a connection that ends, while the
// attempt lasts and no longer.
func TestLostConnectionIsTold(t *testing.T) {
	near, far := net.Pipe()
	conn := &graceConn{Conn: near, closed: make(chan struct{})}
	told := 0
	c := &call{body: body("capsule"), onLost: func() { told++ }}
	_, err := exchanged(c, roundTrip(func(req *http.Request) (*http.Response, error) {
		httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{Conn: conn})
		_ = far.Close()
		_, err := conn.Read(make([]byte, 1))
		return nil, err
	}))
	if err == nil || told != 1 {
		t.Errorf("%v: told %d times", err, told)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || told != 1 {
		t.Errorf("after the attempt: %v, told %d times", err, told)
	}
}

// fullTransport has all that reverse_proxy asks transports for.
type fullTransport struct {
	roundTrip
	schemes []string
}

func (*fullTransport) RequestHeaderOps() *headers.HeaderOps { return new(headers.HeaderOps) }
func (f *fullTransport) OverrideHealthCheckScheme(_ *url.URL, port string) {
	f.schemes = append(f.schemes, port)
}
func (*fullTransport) ProxyProtocolEnabled() bool              { return true }
func (*fullTransport) TLSEnabled() bool                        { return true }
func (*fullTransport) EnableTLS(*reverseproxy.TLSConfig) error { return nil }

// What the wrapped transport can do is not hidden by the wrapper, and what it
// cannot is not made up.
func TestOptionalInterfacesAreForwarded(t *testing.T) {
	full := new(fullTransport)
	wrapped, bare := &ozTransport{next: full}, &ozTransport{next: roundTrip(nil)}
	wrapped.OverrideHealthCheckScheme(new(url.URL), "443")
	bare.OverrideHealthCheckScheme(new(url.URL), "443")
	if wrapped.RequestHeaderOps() == nil || !wrapped.ProxyProtocolEnabled() || !wrapped.tls() || len(full.schemes) != 1 {
		t.Error("the wrapper hides what the transport can do")
	}
	if bare.RequestHeaderOps() != nil || bare.ProxyProtocolEnabled() || bare.tls() {
		t.Error("the wrapper says more than the transport can do")
	}
}
