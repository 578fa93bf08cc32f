package ozclient

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
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

// newCall is a call with a body.
func newCall(body upload.Body) *call {
	return &call{
		method: http.MethodPost, path: oz.FoldersPath, body: body, reader: testOptions.folderReader(false),
		contentType: capsuleMediaType,
	}
}

func capsule() *MemoryBody { return NewMemoryBody([]byte("capsule")) }

// exchanged is a call through a transport with next behind it.
func exchanged(k *call, next http.RoundTripper, more ...func(*http.Request)) (*http.Response, error) {
	if k.start.IsZero() {
		k.begin()
	}
	ctx := context.WithValue(context.Background(), callCtxKey{}, k)
	var body io.Reader
	if k.body != nil {
		body = k.body
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://oz/", body)
	if err != nil {
		return nil, err
	}
	for _, f := range more {
		f(req)
	}
	return (&transport{next: next}).RoundTrip(req)
}

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
			k := newCall(capsule())
			res, err := exchanged(k, fails(test.take, test.err))
			if res != nil || err == nil {
				t.Fatalf("%v, %v", res, err)
			}
			wantError(t, k.failure, Error{Reason: test.reason, Fault: FaultOz})
			var dial reverseproxy.DialError
			if again := errors.As(err, &dial); again != (test.reason == oz.Unreachable) {
				t.Errorf("another attempt is allowed: %v", again)
			}
			if k.sent != (test.take > 0) || k.report.Tries != 1 {
				t.Errorf("sent %v, %d tries", k.sent, k.report.Tries)
			}
		})
	}
}

// An attempt to read the capsule counts as a send even if it gave nothing:
// bytes may be lost in a buffer.
func TestReadingIsSending(t *testing.T) {
	k := newCall(NewMemoryBody(nil))
	_, _ = exchanged(k, fails(1, io.EOF))
	if wantError(t, k.failure, Error{Reason: oz.ConnectionLost, Fault: FaultOz}); !k.sent {
		t.Error("it does not count as sent")
	}
}

// A call without a body is sent as soon as there is a connection for it.
func TestConnectionIsSendingWithoutABody(t *testing.T) {
	connects := roundTrip(func(req *http.Request) (*http.Response, error) {
		httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{Conn: brokenConn{}})
		return nil, io.EOF
	})
	k := newCall(nil)
	if _, _ = exchanged(k, connects); !k.sent || k.failure.Reason != oz.ConnectionLost {
		t.Errorf("without a body: sent %v, %v", k.sent, k.failure)
	}
	k = newCall(capsule())
	if _, _ = exchanged(k, connects); k.sent || k.failure.Reason != oz.Unreachable {
		t.Errorf("with a body that nobody read: sent %v, %v", k.sent, k.failure)
	}
}

// A session token is spent by its first use. Whoever asks for a second send, it
// does not take place, the first one's result stands, and no upstream is blamed.
func TestSecondSendIsRefused(t *testing.T) {
	k := newCall(capsule())
	if _, err := exchanged(k, answers(201, "cut off")); err == nil {
		t.Fatal("an answer that could not be read was taken")
	}
	first := k.failure
	res, err := exchanged(k, neverAsked(t))
	if res != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("the second send: %v, %v", res, err)
	}
	if k.failure != first || k.report.Tries != 1 {
		t.Errorf("after the second send: %v, %d tries", k.failure, k.report.Tries)
	}
}

// A next attempt forgets what came of the one before.
func TestNextAttemptStartsAnew(t *testing.T) {
	k := newCall(capsule())
	if _, err := exchanged(k, fails(0, errors.New("refused"))); err == nil || k.failure == nil {
		t.Fatalf("%v, %v", err, k.failure)
	}
	if _, err := exchanged(k, answers(201, success())); err != nil || k.failure != nil || k.report.Status != 201 || k.report.Tries != 2 {
		t.Errorf("%v: %+v", err, k)
	}
}

// A call whose time is up makes no further attempt. What the last one failed
// with stands, but for a client that has left meanwhile.
func TestNoAttemptAfterTheEnd(t *testing.T) {
	refused := &Error{oz.Unreachable, FaultOz, errors.New("refused")}
	for _, test := range []struct {
		name    string
		cause   error
		failure *Error
		want    Error
	}{
		{"nothing was tried", errOzTimeout, nil, Error{oz.Timeout, FaultNobody, errOzTimeout}},
		{"an attempt failed", errOzTimeout, refused, *refused},
		{"the client left", upload.ErrGone, refused, Error{"", FaultClient, upload.ErrGone}},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := newCall(capsule())
			k.failure = test.failure
			_, err := exchanged(k, neverAsked(t), func(req *http.Request) {
				ctx, cancel := context.WithCancelCause(req.Context())
				cancel(test.cause)
				*req = *req.WithContext(ctx)
			})
			if !errors.Is(err, context.Canceled) || k.report.Tries != 0 {
				t.Errorf("%v, %d tries", err, k.report.Tries)
			}
			wantError(t, k.failure, test.want)
		})
	}
}

// What reverse_proxy gets is the status and nothing else: the answer was read.
func TestAnswerGoesNoFurther(t *testing.T) {
	k := newCall(capsule())
	closed := false
	res, err := exchanged(k, roundTrip(func(req *http.Request) (*http.Response, error) {
		_, _ = readAll(req)
		res := response(201, success())
		res.Header.Set("Set-Cookie", "a=b")
		res.Body = closing{res.Body, &closed}
		return res, nil
	}))
	if err != nil || len(k.doc) == 0 || !closed {
		t.Fatalf("%v: read %q, closed %v", err, k.doc, closed)
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
	k := newCall(capsule())
	res, err := exchanged(k, answers(101, "anything"))
	if res != nil || err == nil || k.report.Status != 101 || k.doc != nil {
		t.Errorf("%v, %v, %+v", res, err, k)
	}
	wantError(t, k.failure, Error{oz.UnexpectedStatus, FaultOz, errSwitching})
}

// A header that net/http would refuse is the client's doing: nothing is sent,
// and nothing is dialed.
func TestInvalidHeaderIsNotSent(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"a line":   func(r *http.Request) { r.Header.Set("X-Tx", "a\r\nb") },
		"NUL":      func(r *http.Request) { r.Header.Set("X-Tx", "a\x00b") },
		"a name":   func(r *http.Request) { r.Header["X Tx"] = []string{"a"} },
		"the Host": func(r *http.Request) { r.Host = "oz test" },
	} {
		k := newCall(capsule())
		_, err := exchanged(k, neverAsked(t), change)
		if !errors.Is(err, context.Canceled) || k.sent {
			t.Errorf("%s: %v, sent %v", name, err, k.sent)
		}
		wantError(t, k.failure, Error{"", FaultClient, ErrInvalidHeader})
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
			k := newCall(capsule())
			k.token = "secret"
			_, err := exchanged(k, roundTrip(func(req *http.Request) (*http.Response, error) {
				wire, getBody = req.Header, req.GetBody != nil
				_, _ = readAll(req)
				return response(201, "{}"), nil
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
	_, err := exchanged(newCall(nil), roundTrip(func(req *http.Request) (*http.Response, error) {
		if _, has := req.Header[accessTokenHeader]; has {
			t.Error("an access token where there is none")
		}
		return response(201, "{}"), nil
	}))
	if err != nil {
		t.Error(err)
	}
}

// Health checks are not calls: they go through as they are.
func TestOtherRequestsPassUntouched(t *testing.T) {
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://oz/health", nil)
	want := response(200, "well")
	res, err := (&transport{next: roundTrip(func(got *http.Request) (*http.Response, error) {
		if got != req {
			t.Error("it is not the same request")
		}
		return want, nil
	})}).RoundTrip(req)
	if err != nil || res != want {
		t.Errorf("%v, %v", res, err)
	}
}

// A connection that Oz ends while net/http waits for more of the capsule ends
// the attempt, after an answer has had time to arrive; the client is silent for
// as long as it likes.
func TestLostConnectionEndsTheAttempt(t *testing.T) {
	for name, answer := range map[string]*http.Response{"no answer": nil, "an answer": response(503, "")} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				conn := newGraceConn(near)
				body := newPhone(t, 10)
				defer body.hangUp()
				k := newCall(body)
				start := time.Now()
				_, err := exchanged(k, roundTrip(func(req *http.Request) (*http.Response, error) {
					httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{Conn: conn})
					_ = far.Close()
					_, _ = conn.Read(make([]byte, 1)) // as net/http's read loop
					if answer != nil {
						time.Sleep(answerGrace / 2)
						return answer, nil
					}
					_, err := req.Body.Read(make([]byte, 1)) // as its write loop, for which RoundTrip waits
					return nil, err
				}))
				if answer != nil {
					if err != nil || k.report.Status != 503 {
						t.Errorf("the answer is lost: %v", err)
					}
					return
				}
				wantError(t, k.failure, Error{Reason: oz.ConnectionLost, Fault: FaultOz})
				if took := time.Since(start); took != answerGrace || !k.sent {
					t.Errorf("it took %s, sent %v", took, k.sent)
				}
			})
		})
	}
}

// net/http turns to another connection by itself if one that it kept turns out
// to be closed. The end of the first one is not that of the attempt.
func TestKeptConnectionThatWasClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept, end := net.Pipe()
		fresh, _ := net.Pipe()
		first, second := newGraceConn(kept), newGraceConn(fresh)
		k := newCall(capsule())
		_, err := exchanged(k, roundTrip(func(req *http.Request) (*http.Response, error) {
			trace := httptrace.ContextClientTrace(req.Context())
			trace.GotConn(httptrace.GotConnInfo{Conn: first, Reused: true})
			_ = end.Close()
			_, _ = first.Read(make([]byte, 1))
			trace.GotConn(httptrace.GotConnInfo{Conn: second})
			_, _ = readAll(req)
			time.Sleep(time.Second)
			return response(503, ""), nil
		}))
		if err != nil || k.report.Status != 503 {
			t.Errorf("the answer is lost: %v", err)
		}
	})
}

// A capsule of which an attempt took nothing belongs to the next attempt: the
// one that was given up may not take anything of it later.
func TestNothingIsTakenAfterTheAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		conn := newGraceConn(near)
		body := capsule()
		k := newCall(body)
		_, _ = exchanged(k, roundTrip(func(req *http.Request) (*http.Response, error) {
			httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{Conn: conn})
			_ = far.Close()
			_, _ = conn.Read(make([]byte, 1))
			time.Sleep(time.Hour)
			_, err := req.Body.Read(make([]byte, 1))
			return nil, err
		}))
		wantError(t, k.failure, Error{Reason: oz.Unreachable, Fault: FaultOz})
		time.Sleep(2 * time.Hour)
		if got, err := io.ReadAll(body); k.sent || string(got) != "capsule" {
			t.Errorf("sent %v, and the next attempt gets %q (%v)", k.sent, got, err)
		}
	})
}

// An answer that comes when the attempt was given up is closed.
func TestLateAnswerIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := false
		k := newCall(capsule())
		_, err := exchanged(k, roundTrip(func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Hour)
			res := response(201, "")
			res.Body = closing{res.Body, &closed}
			return res, nil
		}), func(req *http.Request) {
			ctx, cancel := context.WithCancelCause(req.Context())
			time.AfterFunc(time.Second, func() { cancel(errOzTimeout) })
			*req = *req.WithContext(ctx)
		})
		if err == nil {
			t.Error("it did not end")
		}
		wantError(t, k.failure, Error{Reason: oz.Timeout})
		time.Sleep(time.Hour)
		synctest.Wait()
		if !closed {
			t.Error("the answer that nobody reads holds its connection")
		}
	})
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
	wrapped, bare := &transport{next: full}, &transport{next: roundTrip(nil)}
	wrapped.OverrideHealthCheckScheme(new(url.URL), "443")
	bare.OverrideHealthCheckScheme(new(url.URL), "443")
	if wrapped.RequestHeaderOps() == nil || !wrapped.ProxyProtocolEnabled() || !wrapped.tls() || len(full.schemes) != 1 {
		t.Error("the wrapper hides what the transport can do")
	}
	if bare.RequestHeaderOps() != nil || bare.ProxyProtocolEnabled() || bare.tls() {
		t.Error("the wrapper says more than the transport can do")
	}
}
