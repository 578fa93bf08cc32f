package ozclient

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// made is newCall's call, made for a client.
func (c *Client) made(t *testing.T, client *http.Request) *call {
	t.Helper()
	k := newCall(capsule())
	_ = c.authorized(t.Context(), client, k)
	return k
}

// Oz gets a header set of our own, the ids of the client's trace, and nothing
// else that the client sent: no cookie, no Authorization, no address.
func TestCallHasAHeaderOfItsOwn(t *testing.T) {
	for name, client := range map[string]*http.Request{"for a client": noisyClient(), "for nobody": nil} {
		t.Run(name, func(t *testing.T) {
			var wire *http.Request
			c := newClient(t, func(req *http.Request) (*http.Response, error) {
				wire = req
				_, err := readAll(req)
				return response(201, "{}"), err
			}, `{"base_path": "/base"}`, "")
			k := c.made(t, client)
			if k.failure != nil || k.report.Status != 201 || k.report.Tries != 1 || k.report.Upstream != "oz.test:8080" {
				t.Fatalf("%+v", k)
			}
			want := http.Header{
				"Accept": {"application/json"}, "Accept-Encoding": {"identity"}, "Content-Type": {capsuleMediaType},
				"User-Agent": {"caddy-oz-instant"},
			}
			if client != nil {
				for _, name := range slices.Concat(idHeaders, traceHeaders) {
					want[name] = []string{"trace"}
				}
			}
			for name, values := range wire.Header {
				if len(values) == 0 { // absent on the wire
					delete(wire.Header, name)
				}
			}
			if !reflect.DeepEqual(wire.Header, want) {
				t.Errorf("header\n%v, want\n%v", wire.Header, want)
			}
			if wire.Method != http.MethodPost || wire.URL.RequestURI() != "/base/api/instant/folders/" || wire.Host != "oz.test:8080" || wire.ContentLength != 7 {
				t.Errorf("%s %s at %s, length %d", wire.Method, wire.URL, wire.Host, wire.ContentLength)
			}
		})
	}
}

// An operator's own Host goes to Oz as it is.
func TestCallHostOfTheOperator(t *testing.T) {
	c := newClient(t, func(req *http.Request) (*http.Response, error) {
		if req.Host != "oz.public.example" {
			t.Errorf("Host is %s", req.Host)
		}
		return answers(201, "{}")(req)
	}, "", `{"headers": {"request": {"set": {"Host": ["oz.public.example"]}}}}`)
	if k := c.made(t, noisyClient()); k.failure != nil {
		t.Error(k.failure)
	}
}

// Placeholders in header_up speak of the client's request, but never of the
// capsule, and what an operator adds is the one way by which the client's
// address comes to Oz.
func TestCallHeaderUp(t *testing.T) {
	client := noisyClient()
	client.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.auth.user.id", "ada")
	client.Body = unread{t}
	var wire http.Header
	var address, trusted any
	c := newClient(t, func(req *http.Request) (*http.Response, error) {
		wire = req.Header
		address = caddyhttp.GetVar(req.Context(), caddyhttp.ClientIPVarKey)
		trusted = caddyhttp.GetVar(req.Context(), caddyhttp.TrustedProxyVarKey)
		return answers(201, "{}")(req)
	}, "", `{"headers": {"request": {"set": {
		"X-User": ["{http.auth.user.id}"], "X-Path": ["{http.request.uri}"], "X-Client": ["{http.request.remote.host}"],
		"X-Body": ["{http.request.body}"], "X-Encoded": ["{http.request.body_base64}"]}}}}`)
	caddyhttp.SetVar(client.Context(), caddyhttp.ClientIPVarKey, "198.51.100.9")
	caddyhttp.SetVar(client.Context(), caddyhttp.TrustedProxyVarKey, true)
	c.made(t, client)
	for name, want := range map[string]string{
		"X-User": "ada", "X-Path": "/verify?secret=1", "X-Client": "192.0.2.7", "X-Body": "", "X-Encoded": "",
	} {
		if got := wire.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if address != "198.51.100.9" || trusted != true {
		t.Errorf("reverse_proxy's own options know the client as %v, trusted %v", address, trusted)
	}
	if _, left := client.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Get("http.reverse_proxy.upstream.address"); left {
		t.Error("the call left placeholders of its own in the client's request")
	}
}

// unread is a body that nobody may read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the client's body was read for a placeholder")
	return 0, errors.New("unread")
}
func (unread) Close() error { return nil }

// A placeholder whose value can't stand in a header is the client's doing, and
// does not count against the upstream.
func TestCallWithAnInvalidPlaceholder(t *testing.T) {
	client := noisyClient()
	client.URL.RawQuery = "tx=a%0d%0ab"
	c := newClient(t, neverAsked(t), "", `{"headers": {"request": {"set": {"X-Tx": ["{http.request.uri.query.tx}"]}}},
		"load_balancing": {"retries": 3}, "health_checks": {"passive": {"fail_duration": "1h"}}}`)
	a, err := c.Analyze(t.Context(), client, capsule(), oz.Policy{}, nil)
	wantError(t, asError(t, err), Error{"", FaultClient, ErrInvalidHeader})
	if fails := c.proxy.Upstreams[0].Fails(); fails != 0 || !reflect.DeepEqual(a.Verdict, oz.Verdict{}) {
		t.Errorf("%d fails, %+v", fails, a)
	}
}

// What a client may put into Oz's log is bounded.
func TestTraceHeaders(t *testing.T) {
	for _, test := range []struct {
		name   string
		values []string
		goes   bool
	}{
		{"an id", []string{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, true},
		{"with a space", []string{"a b"}, true},
		{"the longest", []string{strings.Repeat("x", 512)}, true},
		{"longer", []string{strings.Repeat("x", 513)}, false},
		{"none", nil, false},
		{"empty", []string{""}, false},
		{"two", []string{"a", "b"}, false},
		{"a tab", []string{"a\tb"}, false},
		{"a line", []string{"a\nb"}, false},
		{"DEL", []string{"a\x7fb"}, false},
		{"not ASCII", []string{"é"}, false},
	} {
		to := make(http.Header)
		passOn(to, http.Header{"X-Request-Id": test.values, "X-Other": {"a"}}, idHeaders)
		if goes := len(to["X-Request-Id"]) > 0; goes != test.goes || len(to["X-Other"]) > 0 {
			t.Errorf("%s: %v", test.name, to)
		}
	}
}

// With an upstream that cannot be reached the next one is tried, by what the
// operator allows, and both are remembered.
func TestCallTriesUpstreamsThatTookNothing(t *testing.T) {
	var asked []string
	c := newClient(t, func(req *http.Request) (*http.Response, error) {
		asked = append(asked, req.Host)
		if req.Host == "a.test:1" {
			return nil, errors.New("refused")
		}
		return answers(201, "{}")(req)
	}, "", `{"upstreams": [{"dial": "a.test:1"}, {"dial": "b.test:2"}],
		"load_balancing": {"selection_policy": {"policy": "first"}, "retries": 3}}`)
	k := c.made(t, nil)
	if want := []string{"a.test:1", "b.test:2"}; !reflect.DeepEqual(asked, want) || !reflect.DeepEqual(k.tried, want) {
		t.Errorf("asked %v, remembered %v", asked, k.tried)
	}
	if k.failure != nil || k.report.Tries != 2 || k.report.Upstream != "b.test:2" || !k.sent {
		t.Errorf("%+v", k)
	}
}

// Whatever the retry options say, what was sent is not sent again.
func TestCallIsNeverSentTwice(t *testing.T) {
	for _, send := range []struct {
		name string
		call func(*Client) *Error
	}{
		{"a capsule", func(c *Client) *Error { _, e := c.analyzed(t); return e }},
		{"images", func(c *Client) *Error {
			_, err := c.Match(t.Context(), nil, oz.MatchRequest("tag", testJPEG, testJPEG))
			return asError(t, err)
		}},
	} {
		t.Run(send.name, func(t *testing.T) {
			sends := 0
			c := newClient(t, func(req *http.Request) (*http.Response, error) {
				sends++
				_, _ = readAll(req)
				return nil, errors.New("reset")
			}, "", `{"upstreams": [{"dial": "a.test:1"}, {"dial": "b.test:2"}], "load_balancing": {"retries": 3, "try_duration": "2s"}}`)
			wantError(t, send.call(c), Error{Reason: oz.ConnectionLost, Fault: FaultOz})
			if sends != 1 {
				t.Errorf("sent %d times", sends)
			}
		})
	}
}

// With no upstream up nothing is tried, and that is told apart from one that
// was tried in vain.
func TestCallWithNoUpstreamUp(t *testing.T) {
	c := newClient(t, func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") },
		"", `{"health_checks": {"passive": {"fail_duration": "1h"}}}`)
	a, e := c.analyzed(t)
	if wantError(t, e, Error{Reason: oz.Unreachable, Fault: FaultOz}); a.NoUpstream {
		t.Errorf("the first call: %+v", a)
	}
	a, e = c.analyzed(t)
	if wantError(t, e, Error{Reason: oz.Unreachable}); !a.NoUpstream || a.Tries != 0 {
		t.Errorf("the second call: %+v", a)
	}
}

// A call that ended before anything was tried has a reason, too.
func TestCallThatWasNotTried(t *testing.T) {
	late, cancel := context.WithCancelCause(t.Context())
	cancel(errOzTimeout)
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(upload.ErrGone)
	c := newClient(t, neverAsked(t), "", "")
	for _, test := range []struct {
		name string
		ctx  context.Context
		want Error
	}{
		{"too late", late, Error{oz.Timeout, FaultNobody, errOzTimeout}},
		{"the client", gone, Error{"", FaultClient, upload.ErrGone}},
	} {
		k := newCall(capsule())
		wantError(t, c.authorized(test.ctx, nil, k), test.want)
		if k.report.Tries != 0 || k.report.NoUpstream {
			t.Errorf("%s: %+v", test.name, k.report)
		}
	}
}

// reverse_proxy goes on for lb_try_duration, whatever the context says. A call
// ends all the same when its time is up, at most one interval later.
func TestCallEndsReverseProxysRetries(t *testing.T) {
	for name, proxy := range map[string]string{
		"unreachable":     `{"load_balancing": {"try_duration": "20s"}}`,
		"nobody is there": `{"load_balancing": {"try_duration": "20s"}, "upstreams": null, "dynamic_upstreams": {"source": "multi"}}`,
		"all are down":    `{"load_balancing": {"try_duration": "20s"}, "health_checks": {"passive": {"fail_duration": "1h"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := stubConfig(t, func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") }, "", proxy)
				c, err := New(newContext(t), cfg, testOptions)
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				const timeout = 5100 * time.Millisecond // no attempt begins as it ends
				_, report, err := c.SessionToken(t.Context(), nil, timeout)
				if took := time.Since(start); took < 2*timeout || took > 2*timeout+500*time.Millisecond {
					t.Errorf("it took %s", took)
				}
				if e := asError(t, err); e == nil || e.Fault == FaultClient || name == "unreachable" && (e.Reason != oz.Unreachable || report.Tries < 20) {
					t.Errorf("%v, %+v", err, report)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Upstreams at their limit of requests are busy and not down.
func TestCallWithAllUpstreamsFull(t *testing.T) {
	inside := make(chan struct{})
	c := newClient(t, func(req *http.Request) (*http.Response, error) {
		inside <- struct{}{}
		<-inside
		return answers(201, "{}")(req)
	}, "", `{"upstreams": [{"dial": "oz.test:8080", "max_requests": 1}]}`)
	first := newCall(capsule())
	done := make(chan struct{})
	go func() {
		_ = c.authorized(context.Background(), nil, first)
		close(done)
	}()
	<-inside
	a, e := c.analyzed(t)
	wantError(t, e, Error{oz.Overloaded, FaultNobody, errAllFull})
	if a.Tries != 0 || a.Verdict.Reason != oz.Overloaded {
		t.Errorf("%+v", a)
	}
	inside <- struct{}{}
	if <-done; first.failure != nil {
		t.Errorf("the one inside: %v", first.failure)
	}
}

// A fixed access token goes with the call; without one there is none.
func TestFixedAccessToken(t *testing.T) {
	for config, want := range map[string]string{"": "", `{"access_token": "tok"}`: "tok"} {
		c := newClient(t, func(req *http.Request) (*http.Response, error) {
			if got := req.Header.Get(accessTokenHeader); got != want {
				t.Errorf("%q: %q on the wire", config, got)
			}
			return answers(201, "{}")(req)
		}, config, "")
		if k := c.made(t, nil); k.failure != nil {
			t.Error(k.failure)
		}
	}
}

// A busy Oz is not asked again, but another may be.
func TestWorthRetryingElsewhere(t *testing.T) {
	c := &Client{proxy: proxyTo("a:1", "b:2")}
	busy := &Error{Reason: oz.Overloaded}
	for _, test := range []struct {
		tried []string
		want  bool
	}{{nil, true}, {[]string{"a:1"}, true}, {[]string{"b:2", "a:1"}, false}} {
		if got := c.worthRetrying(busy, &call{tried: test.tried}); got != test.want {
			t.Errorf("after %v: %v", test.tried, got)
		}
	}
	c.proxy.DynamicUpstreams = reverseproxy.AUpstreams{}
	if !c.worthRetrying(busy, &call{tried: []string{"a:1", "b:2"}}) {
		t.Error("of dynamic upstreams there may always be another")
	}
}

// Interim answers and whatever reverse_proxy writes end here, and never fail it.
func TestSinkTakesAll(t *testing.T) {
	s := &sink{header: make(http.Header)}
	s.Header().Set("Link", "x")
	s.WriteHeader(103)
	s.WriteHeader(99)
	if n, err := s.Write(make([]byte, 5)); n != 5 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
