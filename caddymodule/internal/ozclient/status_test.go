package ozclient

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

func (a *account) wantStatus(t *testing.T, when string, state TokenState, seconds int) {
	t.Helper()
	s := a.status()
	if s.State != state || s.ExpiresIn != seconds || s.Expires.IsZero() != (seconds == 0) {
		t.Errorf("%s: %+v, want %s for %d s", when, s, state, seconds)
	}
}

// The state of an access token follows its life, and says that a renewal fails
// while the old token is still good.
func TestTokenStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute, takes: time.Second}
		a := newAccount()
		a.wantStatus(t, "before any call", TokenNone, 0)
		go a.use(t, f)
		synctest.Wait()
		a.wantStatus(t, "during the log-in", TokenRenewing, 0)
		time.Sleep(time.Second)
		synctest.Wait()
		a.wantStatus(t, "after it", TokenValid, 900)

		time.Sleep(12 * time.Minute)
		down := &Error{oz.Unreachable, FaultOz, errNeverAccepted}
		f.fail(down, down)
		a.wantToken(t, f, "access-1") // and begins a refresh
		a.wantStatus(t, "during a refresh", TokenRenewing, 180)
		time.Sleep(time.Second)
		synctest.Wait()
		a.wantStatus(t, "after one that failed", TokenFailed, 179)
		time.Sleep(179 * time.Second)
		a.wantStatus(t, "when the token has expired, too", TokenFailed, 0)

		f.fail(nil, nil)
		go a.use(t, f)
		synctest.Wait()
		a.wantStatus(t, "while it is tried again", TokenRenewing, 0)
		a.wantToken(t, f, "access-2")
		a.wantStatus(t, "after a log-in", TokenValid, 900)
		time.Sleep(900 * time.Second)
		a.wantStatus(t, "when nobody has asked for long", TokenNone, 0)
	})
}

// A token that Oz refuses is none, and one that it never accepted is a failure.
func TestTokenStatusOfRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute, takes: time.Second}
		a := newAccount()
		a.refuse(t, f)
		a.wantStatus(t, "never accepted", TokenFailed, 0)
		time.Sleep(refusedHoldOff)
		a.wantToken(t, f, "access-2")
		a.refuse(t, f)
		synctest.Wait()
		a.wantStatus(t, "refused", TokenRenewing, 0)
		time.Sleep(time.Second)
		synctest.Wait()
		a.wantStatus(t, "after the next log-in", TokenValid, 900)
	})
}

func TestTokenStatusOfClients(t *testing.T) {
	for fields, want := range map[string]TokenState{
		"":                                 TokenState(""),
		`{"access_token": "secret-token"}`: TokenFixed,
		`{"credentials": {"email": "gateway@example.com", "password": "secret"}}`: TokenNone,
	} {
		s := newClient(t, nil, fields, "").AccessToken()
		if (s == nil) != (want == "") || s != nil && s.State != want {
			t.Errorf("%s: %+v, want %q", fields, s, want)
		}
		doc, _ := json.Marshal(s)
		for _, secret := range []string{"secret", "gateway"} {
			if strings.Contains(string(doc), secret) {
				t.Errorf("%s shows %q", doc, secret)
			}
		}
	}
}

// Upstreams are told with the addresses of the config, and as down as soon as
// the selector passes over them.
func TestUpstreams(t *testing.T) {
	t.Setenv("OZ_TEST_UPSTREAM", "canary.test:1")
	c := newClient(t, fails(0, errNeverAccepted), "",
		`{"upstreams": [{"dial": "one.test:1"}, {"dial": "{env.OZ_TEST_UPSTREAM}"}], "load_balancing": {"selection_policy": {"policy": "first"}},
		 "health_checks": {"passive": {"fail_duration": "1h"}}}`)
	want := []UpstreamStatus{{"one.test:1", true, 0, 0}, {"{env.OZ_TEST_UPSTREAM}", true, 0, 0}}
	if got, dynamic := c.Upstreams(); !reflect.DeepEqual(got, want) || dynamic != "" {
		t.Errorf("%+v %q, want %+v", got, dynamic, want)
	}
	if _, failure := c.analyzed(t); failure == nil {
		t.Error("a dead Oz has answered")
	}
	want[0] = UpstreamStatus{"one.test:1", false, 0, 1}
	if got, _ := c.Upstreams(); !reflect.DeepEqual(got, want) {
		t.Errorf("after a failure: %+v, want %+v", got, want)
	}
}

// testSource is a source of dynamic upstreams that may not be asked.
type testSource struct{ reverseproxy.UpstreamSource }

func (testSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.upstreams.test"}
}

// Dynamic upstreams are those that the last call has chosen from: to ask for
// them is a call's work.
func TestDynamicUpstreams(t *testing.T) {
	s := &selector{policy: reverseproxy.FirstSelection{}, dynamic: true}
	c := &Client{proxy: &reverseproxy.Handler{
		DynamicUpstreams: testSource{}, LoadBalancing: &reverseproxy.LoadBalancing{SelectionPolicy: s},
	}}
	if got, dynamic := c.Upstreams(); len(got) != 0 || dynamic != "test" {
		t.Errorf("before any call: %+v %q", got, dynamic)
	}
	selected(s, proxyTo("a:1", "b:2").Upstreams, new(call))
	selected(s, proxyTo("c:3").Upstreams, nil) // not a call of ours
	want := []UpstreamStatus{{"a:1", true, 0, 0}, {"b:2", true, 0, 0}}
	if got, _ := c.Upstreams(); !reflect.DeepEqual(got, want) {
		t.Errorf("after a call: %+v, want %+v", got, want)
	}
}
