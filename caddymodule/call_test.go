package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// newCall is a call with a body, and an answer that is always taken.
func newCall() *call {
	return &call{
		method: http.MethodPost, path: oz.FoldersPath, body: body("capsule"), length: 7,
		header: http.Header{"Content-Type": {capsuleMediaType}},
		read:   func(*http.Response) error { return nil },
	}
}

// noisyClient is a request with much in its header that is none of Oz's business.
func noisyClient() *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/verify?secret=1", nil)
	r.RemoteAddr = "192.0.2.7:1234"
	for _, name := range []string{
		"Authorization", "Cookie", "Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip",
		"Content-Type", "User-Agent", "Accept", "Accept-Encoding", "Accept-Language", "Connection", "Expect", "Te", "X-Oz-Decision",
		"X-Forensic-Access-Token", "Upgrade", "Transfer-Encoding", "Early-Data",
	} {
		r.Header.Set(name, "of the client")
	}
	for _, name := range tracedHeaders {
		r.Header.Set(name, "trace")
	}
	return fromClient(nil, r)
}

// Oz gets a header set of our own, the ids of the client's trace, and nothing
// else that the client sent: no cookie, no Authorization, no address.
func TestCallHasAHeaderOfItsOwn(t *testing.T) {
	for name, client := range map[string]*http.Request{"for a client": noisyClient(), "for nobody": nil} {
		t.Run(name, func(t *testing.T) {
			var wire *http.Request
			l := newHandler(t, func(req *http.Request) (*http.Response, error) {
				wire = req
				_, err := readAll(req)
				return response(201, ""), err
			}, `{"base_path": "/base"}`).link
			c := newCall()
			l.do(t.Context(), client, c)
			if c.fault != nil || c.status != 201 || c.tries != 1 || c.upstream != "oz.test:8080" {
				t.Fatalf("%+v", c)
			}
			want := http.Header{
				"Accept": {"application/json"}, "Accept-Encoding": {"identity"}, "Content-Type": {capsuleMediaType},
				"User-Agent": {"caddy-oz-instant"},
			}
			if client != nil {
				for _, name := range tracedHeaders {
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
	l := newHandler(t, func(req *http.Request) (*http.Response, error) {
		if req.Host != "oz.public.example" {
			t.Errorf("Host is %s", req.Host)
		}
		_, err := readAll(req)
		return response(201, ""), err
	}, `{"reverse_proxy": {"headers": {"request": {"set": {"Host": ["oz.public.example"]}}}}}`).link
	c := newCall()
	if l.do(t.Context(), noisyClient(), c); c.fault != nil {
		t.Error(c.fault)
	}
}

// Placeholders in header_up speak of the client's request, and what an operator
// adds is the one way by which the client's address comes to Oz.
func TestCallHeaderUp(t *testing.T) {
	client := noisyClient()
	client.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.auth.user.id", "ada")
	var wire http.Header
	var address, trusted any
	l := newHandler(t, func(req *http.Request) (*http.Response, error) {
		wire = req.Header
		address = caddyhttp.GetVar(req.Context(), caddyhttp.ClientIPVarKey)
		trusted = caddyhttp.GetVar(req.Context(), caddyhttp.TrustedProxyVarKey)
		_, err := readAll(req)
		return response(201, ""), err
	}, `{"reverse_proxy": {"headers": {"request": {"set": {
		"X-User": ["{http.auth.user.id}"], "X-Path": ["{http.request.uri}"], "X-Client": ["{http.request.remote.host}"]}}}}}`).link
	caddyhttp.SetVar(client.Context(), caddyhttp.ClientIPVarKey, "198.51.100.9")
	caddyhttp.SetVar(client.Context(), caddyhttp.TrustedProxyVarKey, true)
	l.do(t.Context(), client, newCall())
	for name, want := range map[string]string{"X-User": "ada", "X-Path": "/verify?secret=1", "X-Client": "192.0.2.7"} {
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
		trace(to, http.Header{"X-Request-Id": test.values, "X-Other": {"a"}})
		if goes := len(to["X-Request-Id"]) > 0; goes != test.goes || len(to["X-Other"]) > 0 {
			t.Errorf("%s: %v", test.name, to)
		}
	}
}

// With an upstream that cannot be reached the next one is tried, by what the
// operator allows, and both are remembered.
func TestCallTriesUpstreamsThatTookNothing(t *testing.T) {
	var asked []string
	l := newHandler(t, func(req *http.Request) (*http.Response, error) {
		asked = append(asked, req.Host)
		if req.Host == "a.test:1" {
			return nil, errors.New("refused")
		}
		return answers(201, "")(req)
	}, `{"reverse_proxy": {"upstreams": [{"dial": "a.test:1"}, {"dial": "b.test:2"}],
		"load_balancing": {"selection_policy": {"policy": "first"}, "retries": 3}}}`).link
	c := newCall()
	l.do(t.Context(), nil, c)
	if want := []string{"a.test:1", "b.test:2"}; !reflect.DeepEqual(asked, want) || !reflect.DeepEqual(c.tried, want) {
		t.Errorf("asked %v, remembered %v", asked, c.tried)
	}
	if c.fault != nil || c.tries != 2 || c.upstream != "b.test:2" || !c.sent {
		t.Errorf("%+v", c)
	}
}

// Whatever the retry options say, what was sent is not sent again.
func TestCallIsNeverSentTwice(t *testing.T) {
	sends := 0
	l := newHandler(t, func(req *http.Request) (*http.Response, error) {
		sends++
		_, _ = readAll(req)
		return nil, errors.New("reset")
	}, `{"reverse_proxy": {"upstreams": [{"dial": "a.test:1"}, {"dial": "b.test:2"}],
		"load_balancing": {"retries": 3, "retry_match": [{"method": ["POST"]}]}}}`).link
	c := newCall()
	l.do(t.Context(), nil, c)
	if sends != 1 || c.fault == nil || c.fault.reason != oz.ConnectionLost {
		t.Errorf("sent %d times: %v", sends, c.fault)
	}
}

// passivelyDown is a link whose only upstream is down, by what happened there.
func passivelyDown(t *testing.T) *link {
	t.Helper()
	l := newHandler(t, func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") },
		`{"reverse_proxy": {"health_checks": {"passive": {"fail_duration": "1h"}}}}`).link
	c := newCall()
	l.do(t.Context(), nil, c)
	if c.fault == nil || c.fault.reason != oz.Unreachable || c.noUpstream {
		t.Fatalf("the first call: %v, no upstream %v", c.fault, c.noUpstream)
	}
	return l
}

// With no upstream up nothing is tried, and that is told apart from one that
// was tried in vain.
func TestCallWithNoUpstreamUp(t *testing.T) {
	c := newCall()
	passivelyDown(t).do(t.Context(), nil, c)
	if c.fault == nil || c.fault.reason != oz.Unreachable || !c.noUpstream || c.tries != 0 || c.allFull {
		t.Errorf("%v: %+v", c.fault, c)
	}
}

// The client's faults count against no upstream.
func TestCallOfAClientThatLeft(t *testing.T) {
	l := newHandler(t, func(req *http.Request) (*http.Response, error) {
		_, _ = readAll(req)
		return nil, errors.New("aborted")
	}, `{"reverse_proxy": {"health_checks": {"passive": {"fail_duration": "1h"}}}}`).link
	c := newCall()
	c.blame = func() error { return errClientGone }
	l.do(t.Context(), nil, c)
	if !errors.Is(c.clientFault, errClientGone) || c.fault != nil {
		t.Errorf("client's fault %v, Oz's %v", c.clientFault, c.fault)
	}
	if fails := l.proxy.Upstreams[0].Fails(); fails != 0 {
		t.Errorf("the upstream has %d fails", fails)
	}
}

// A call that ended before anything was tried has a reason, too.
func TestCallThatWasNotTried(t *testing.T) {
	late, cancel := context.WithCancelCause(t.Context())
	cancel(errOzTimeout)
	noUpstream := caddyhttp.Error(http.StatusServiceUnavailable, errors.New("no upstreams available"))
	for _, test := range []struct {
		name   string
		ctx    context.Context
		call   call
		err    error
		reason oz.Reason
		client error
	}{
		{"no upstream", t.Context(), call{}, noUpstream, oz.Unreachable, nil},
		{"all full", t.Context(), call{allFull: true}, noUpstream, oz.Overloaded, nil},
		{"too late", late, call{allFull: true}, noUpstream, oz.Timeout, nil},
		{"no error", late, call{}, nil, oz.Timeout, nil},
		{"the client", late, call{blame: func() error { return errClientGone }}, noUpstream, "", errClientGone},
		{"not the client", t.Context(), call{blame: func() error { return nil }}, noUpstream, oz.Unreachable, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &test.call
			c.untriedEnd(test.ctx, test.err)
			if !errors.Is(c.clientFault, test.client) {
				t.Errorf("client's fault %v", c.clientFault)
			}
			if test.client != nil {
				if c.fault != nil {
					t.Errorf("and Oz's: %v", c.fault)
				}
				return
			}
			if c.fault == nil || c.fault.reason != test.reason || c.fault.err == nil {
				t.Errorf("%v", c.fault)
			}
		})
	}
}

func TestIsNoUpstream(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"503":         {caddyhttp.Error(503, nil), true},
		"502":         {caddyhttp.Error(502, nil), false},
		"nothing":     {nil, false},
		"other error": {errors.New("503"), false},
	} {
		if got := isNoUpstream(test.err); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Upstreams at their limit of requests are busy and not down.
func TestCallWithAllUpstreamsFull(t *testing.T) {
	inside := make(chan struct{})
	l := newHandler(t, func(req *http.Request) (*http.Response, error) {
		inside <- struct{}{}
		<-inside
		return answers(201, "")(req)
	}, `{"reverse_proxy": {"upstreams": [{"dial": "oz.test:8080", "max_requests": 1}]}}`).link
	first := newCall()
	done := make(chan struct{})
	go func() {
		l.do(context.Background(), nil, first)
		close(done)
	}()
	<-inside
	c := newCall()
	l.do(t.Context(), nil, c)
	if c.fault == nil || c.fault.reason != oz.Overloaded || c.tries != 0 {
		t.Errorf("%v", c.fault)
	}
	inside <- struct{}{}
	if <-done; first.fault != nil {
		t.Errorf("the one inside: %v", first.fault)
	}
}

// A fixed access token goes with the call; without one there is none.
func TestFixedAccessToken(t *testing.T) {
	for config, want := range map[string]string{"": "", `{"access_token": "tok"}`: "tok"} {
		l := newHandler(t, func(req *http.Request) (*http.Response, error) {
			if got := req.Header.Get(accessTokenHeader); got != want {
				t.Errorf("%q: %q on the wire", config, got)
			}
			return answers(201, "")(req)
		}, config).link
		c := newCall()
		if l.authorized(t.Context(), nil, c); c.fault != nil {
			t.Error(c.fault)
		}
	}
}

const grantDoc = `{"access_token": "granted", "expire_token": "e", "expire_date": 4102444800}`

const withCredentials = `{"credentials": {"email": "gateway@example.com", "password": "secret"}}`

// With credentials the call waits for a token, and gives it back after.
func TestCallWithCredentials(t *testing.T) {
	var paths, tokens []string
	h := newHandler(t, func(req *http.Request) (*http.Response, error) {
		paths, tokens = append(paths, req.URL.Path), append(tokens, req.Header.Get(accessTokenHeader))
		if req.URL.Path == oz.LoginPath {
			return answers(200, grantDoc)(req)
		}
		return answers(201, "")(req)
	}, withCredentials)
	for range 2 {
		c := newCall()
		h.link.authorized(t.Context(), nil, c)
		if c.fault != nil {
			t.Fatal(c.fault)
		}
	}
	if want := []string{oz.LoginPath, oz.FoldersPath, oz.FoldersPath}; !reflect.DeepEqual(paths, want) {
		t.Errorf("asked for %v", paths)
	}
	if want := []string{"", "granted", "granted"}; !reflect.DeepEqual(tokens, want) {
		t.Errorf("with tokens %v", tokens)
	}
	if a := h.link.account; a.current.users != 0 || !a.current.accepted {
		t.Errorf("the session has %d users, accepted %v", a.current.users, a.current.accepted)
	}
}

// Without a token there is no call: it is a fault with its reason, or the
// client's, if that is what ended the wait.
func TestCallWithoutAToken(t *testing.T) {
	l := newHandler(t, func(req *http.Request) (*http.Response, error) {
		if req.URL.Path != oz.LoginPath {
			t.Errorf("%s without a token", req.URL.Path)
		}
		return answers(401, `{"error_code": 7}`)(req)
	}, withCredentials).link
	c := newCall()
	l.authorized(t.Context(), nil, c)
	if c.fault == nil || c.fault.reason != oz.Unauthorized || c.clientFault != nil || c.tries != 0 {
		t.Errorf("%v, client's %v", c.fault, c.clientFault)
	}
	c = newCall()
	c.blame = func() error { return errClientGone }
	l.authorized(t.Context(), nil, c)
	if !errors.Is(c.clientFault, errClientGone) {
		t.Errorf("client's %v", c.clientFault)
	}
}

// Oz refuses a token by status, or by the code of its error. A 403 that is not
// Oz's own says nothing about the token.
func TestNoteAuth(t *testing.T) {
	for _, test := range []struct {
		status int
		code   int // -1: none
		want   bool
	}{
		{201, -1, false}, {401, -1, true}, {403, -1, false}, {403, 0, true}, {403, 9, true}, {400, -1, false}, {503, -1, false},
		{400, 5, false}, {400, 6, true}, {400, 7, true}, {400, 8, true}, {400, 9, true}, {400, 10, false},
	} {
		var e *oz.Error
		if test.code >= 0 {
			e = &oz.Error{Code: test.code}
		}
		c := new(call)
		if c.noteAuth(test.status, e); c.authRefused != test.want {
			t.Errorf("%d, code %d: %v", test.status, test.code, c.authRefused)
		}
	}
}

// An answer that gives nothing has its reason, and never one about capsules.
func TestAnsweredBadly(t *testing.T) {
	for _, test := range []struct {
		status int
		doc    string
		reason oz.Reason
		err    string
	}{
		{401, "", oz.Unauthorized, "oz answered 401"},
		{403, `{"error_code": 9}`, oz.Unauthorized, "oz answered 403, error_code 9"},
		{429, "", oz.Overloaded, "oz answered 429"},
		{503, "<html>", oz.Overloaded, "oz answered 503"},
		{413, "", oz.TooLargeForOz, "oz answered 413"},
		{400, `{"error_code": 14}`, oz.UnexpectedStatus, "oz answered 400, error_code 14"},
		{302, "", oz.UnexpectedStatus, "oz answered 302"},
		{500, "", oz.UnexpectedStatus, "oz answered 500"},
	} {
		res := response(test.status, "")
		res.Header.Set("Retry-After", "9")
		c := new(call)
		c.answeredBadly(res, []byte(test.doc))
		if c.fault.reason != test.reason || c.fault.err.Error() != test.err || c.retryAfter != "9" {
			t.Errorf("%d: %v, Retry-After %q", test.status, c.fault, c.retryAfter)
		}
		if want := test.reason == oz.Unauthorized; c.authRefused != want {
			t.Errorf("%d: the token was refused: %v", test.status, c.authRefused)
		}
	}
}

func TestHasOthers(t *testing.T) {
	l := &link{proxy: proxyTo("a:1", "b:2")}
	for _, test := range []struct {
		tried []string
		want  bool
	}{{nil, true}, {[]string{"a:1"}, true}, {[]string{"b:2", "a:1"}, false}} {
		if got := l.hasOthers(test.tried); got != test.want {
			t.Errorf("after %v: %v", test.tried, got)
		}
	}
	l.proxy.DynamicUpstreams = reverseproxy.AUpstreams{}
	if !l.hasOthers([]string{"a:1", "b:2"}) {
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

// The grant of a log-in that fails has the reason, and which of the two it was.
func TestGrant(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		doc    string
		reason oz.Reason
		err    string
	}{
		{"granted", 200, grantDoc, "", ""},
		{"refused", 401, `{"error_code": 7}`, oz.Unauthorized, "oz answered 401, error_code 7"},
		{"refused by 400", 400, "", oz.Unauthorized, "oz answered 400"},
		{"busy", 503, "", oz.Overloaded, "oz answered 503"},
		{"nonsense", 200, `{"access_token": ""}`, oz.MalformedAnswer, "no usable access_token"},
		{"too long", 200, padded(maxGrant + 1), oz.MalformedAnswer, errAnswerTooLong.Error()},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newHandler(t, func(req *http.Request) (*http.Response, error) {
				sent, _ := readAll(req)
				if sent != "login" || req.Header.Get(accessTokenHeader) != "old" || req.Header.Get("Content-Type") != "application/json" {
					t.Errorf("sent %q with %v", sent, req.Header)
				}
				return response(test.status, test.doc), nil
			}, "").link
			grant, failure := l.grant(t.Context(), oz.RefreshPath, []byte("login"), "old")
			if test.reason == "" {
				if failure != nil || grant.AccessToken != "granted" || grant.ExpireToken != "e" {
					t.Errorf("%v, %+v", failure, grant)
				}
				return
			}
			if failure == nil || failure.reason != test.reason || grant != (oz.Grant{}) {
				t.Fatalf("%v, %+v", failure, grant)
			}
			if !strings.HasPrefix(failure.err.Error(), "refreshing the access token: ") || !strings.Contains(failure.err.Error(), test.err) {
				t.Errorf("%v", failure.err)
			}
		})
	}
}

// A token's life is reckoned by Oz's clock, if Oz says what time it is.
func TestClockOf(t *testing.T) {
	res := response(200, "")
	res.Header.Set("Date", "Fri, 31 Dec 1999 23:59:59 GMT")
	if got := clockOf(res); !got.Equal(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%s", got)
	}
	res.Header.Set("Date", "today")
	if d := time.Since(clockOf(res)); d < 0 || d > time.Minute {
		t.Errorf("without a date it is %s ago", d)
	}
}

// A capsule never gets into a header, whatever the operator writes there.
func TestHeaderUpOfTheBody(t *testing.T) {
	h := newHandler(t, func(req *http.Request) (*http.Response, error) {
		body, err := readAll(req)
		if body != "capsule" || err != nil || req.Header.Get("X-Body") != "" {
			t.Errorf("%q, %v, %v", body, err, req.Header)
		}
		return response(201, success()), nil
	}, `{"reverse_proxy": {"headers": {"request": {"set": {"X-Body": ["{http.request.body}"], "X-Encoded": ["{http.request.body_base64}"]}}}}}`)
	app := new(testApp)
	h.posted(t, app, "capsule")
	if app.calls != 1 {
		t.Errorf("%d calls", app.calls)
	}
}
