package caddymodule

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
)

// What an operator says of the transport holds; what is not said is filled in:
// no kept connections, no proxy from the environment. Other transports are
// theirs.
func TestTransportDefaults(t *testing.T) {
	const noKeepAlive, noProxy = `"keep_alive": {"enabled": false}`, `"network_proxy": {"from": "none"}`
	for _, test := range []struct{ name, given, want string }{
		{"none", ``, `{"protocol": "http", ` + noKeepAlive + `, ` + noProxy + `}`},
		{"http", `{"protocol": "http"}`, `{"protocol": "http", ` + noKeepAlive + `, ` + noProxy + `}`},
		{"TLS", `{"protocol": "http", "tls": {"server_name": "oz"}}`, `{"protocol": "http", "tls": {"server_name": "oz"}, ` + noKeepAlive + `, ` + noProxy + `}`},
		{"keep-alive", `{"protocol": "http", "keep_alive": {"enabled": true}}`, `{"protocol": "http", "keep_alive": {"enabled": true}, ` + noProxy + `}`},
		{"no keep-alive", `{"protocol": "http", "keep_alive": {"enabled": false}}`, `{"protocol": "http", ` + noKeepAlive + `, ` + noProxy + `}`},
		{
			"keepalive 1m", `{"protocol": "http", "keep_alive": {"idle_timeout": 60000000000}}`,
			`{"protocol": "http", "keep_alive": {"idle_timeout": 60000000000}, ` + noProxy + `}`,
		},
		{
			"other options of keep-alive", `{"protocol": "http", "keep_alive": {"max_idle_conns": 5}}`,
			`{"protocol": "http", "keep_alive": {"max_idle_conns": 5, "enabled": false}, ` + noProxy + `}`,
		},
		{
			"a proxy", `{"protocol": "http", "network_proxy": {"from": "url", "url": "http://p:1"}}`,
			`{"protocol": "http", ` + noKeepAlive + `, "network_proxy": {"from": "url", "url": "http://p:1"}}`,
		},
		{
			"the proxy of the environment", `{"protocol": "http", "network_proxy": {"from": "environment"}}`,
			`{"protocol": "http", ` + noKeepAlive + `, "network_proxy": {"from": "environment"}}`,
		},
		{
			"a proxy in the old way", `{"protocol": "http", "forward_proxy_url": "http://p:1"}`,
			`{"protocol": "http", ` + noKeepAlive + `, "forward_proxy_url": "http://p:1"}`,
		},
		{"another transport", `{"protocol": "stub", "test": "x"}`, `{"protocol": "stub", "test": "x"}`},
		{"no protocol", `{"tls": {}}`, `{"tls": {}}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var raw json.RawMessage
			if test.given != "" {
				raw = json.RawMessage(test.given)
			}
			got, err := transportDefaults(raw)
			if err != nil {
				t.Fatal(err)
			}
			var gotDoc, want any
			if err := json.Unmarshal(got, &gotDoc); err != nil {
				t.Fatalf("%s: %v", got, err)
			}
			if err := json.Unmarshal([]byte(test.want), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(gotDoc, want) {
				t.Errorf("%s\nwant %s", got, test.want)
			}
		})
	}
}

// The defaults reach the transport that is used, and it is wrapped before
// reverse_proxy sees it.
func TestProvisionedTransport(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://proxy.test:3128")
	h := newHandler(t, neverAsked(t), `{"reverse_proxy": {"transport": {"protocol": "http"}}}`)
	wrapper, ok := h.link.proxy.Transport.(*ozTransport)
	if !ok {
		t.Fatalf("the transport is a %T", h.link.proxy.Transport)
	}
	ht := wrapper.next.(*reverseproxy.HTTPTransport)
	if !ht.Transport.DisableKeepAlives {
		t.Error("connections are kept")
	}
	if ht.Transport.Proxy != nil {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://oz.test/", nil)
		if proxy, err := ht.Transport.Proxy(req); proxy != nil || err != nil {
			t.Errorf("it goes through %v (%v)", proxy, err)
		}
	}
	if _, ok := h.link.proxy.LoadBalancing.SelectionPolicy.(*selector); !ok {
		t.Errorf("upstreams are selected by a %T", h.link.proxy.LoadBalancing.SelectionPolicy)
	}
}

// The selector knows of passive health checks where there are some.
func TestSelectorGetsPassiveChecks(t *testing.T) {
	policy := func(fields string) *selector {
		return newHandler(t, neverAsked(t), fields).link.proxy.LoadBalancing.SelectionPolicy.(*selector)
	}
	if policy("").passive != nil || policy(`{"reverse_proxy": {"health_checks": {}}}`).passive != nil {
		t.Error("there are passive checks where none are configured")
	}
	if s := policy(`{"reverse_proxy": {"health_checks": {"passive": {"fail_duration": "1m", "max_fails": 3}}}}`); s.passive == nil || s.passive.MaxFails != 3 {
		t.Errorf("%+v", s.passive)
	}
}

// Transports that hold whole requests, or are none, have no place here.
func TestTransportsThatAreRefused(t *testing.T) {
	for transport, want := range map[string]string{
		`{"protocol": "fastcgi"}`:  "holds whole requests in memory",
		`{"protocol": "nonsense"}`: "loading transport",
	} {
		_, err := load[*Handler](newContext(t), handlerID, ozConfig(t, neverAsked(t), `{"reverse_proxy": {"transport": `+transport+`}}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", transport, err)
		}
	}
}

// An option that would break the exchange, or let a client mark Oz as down, is
// refused by name and with what to do instead. All others are the operator's.
func TestCheckProxy(t *testing.T) {
	with := func(change func(*reverseproxy.Handler)) *reverseproxy.Handler {
		rp := proxyTo("oz:8080")
		change(rp)
		return rp
	}
	passive := func(checks reverseproxy.PassiveHealthChecks) *reverseproxy.Handler {
		return with(func(rp *reverseproxy.Handler) { rp.HealthChecks = &reverseproxy.HealthChecks{Passive: &checks} })
	}
	statuses := func(codes ...int) *reverseproxy.Handler {
		return passive(reverseproxy.PassiveHealthChecks{UnhealthyStatus: codes})
	}
	for _, test := range []struct {
		name  string
		proxy *reverseproxy.Handler
		want  string // in the error; empty: it is taken
	}{
		{"an upstream", proxyTo("oz:8080"), ""},
		{"nothing", nil, "no Oz upstream"},
		{"no upstream", proxyTo(), "no Oz upstream"},
		{"dynamic upstreams", &reverseproxy.Handler{DynamicUpstreamsRaw: json.RawMessage(`{}`)}, ""},
		{"handle_response", with(func(rp *reverseproxy.Handler) { rp.HandleResponse = []caddyhttp.ResponseHandler{{}} }), "handle_response"},
		{"rewrite", with(func(rp *reverseproxy.Handler) { rp.Rewrite = new(rewrite.Rewrite) }), "rewrite"},
		{"request_buffers", with(func(rp *reverseproxy.Handler) { rp.RequestBuffers = -1 }), "request_buffers"},
		{"response_buffers", with(func(rp *reverseproxy.Handler) { rp.ResponseBuffers = 1 }), "response_buffers"},
		{"circuit_breaker", with(func(rp *reverseproxy.Handler) { rp.CBRaw = json.RawMessage(`{}`) }), "circuit_breaker"},
		{"unhealthy_latency", passive(reverseproxy.PassiveHealthChecks{UnhealthyLatency: 1}), "unhealthy_latency"},
		{"unhealthy_status 400", statuses(500, 400), "unhealthy_status"},
		{"unhealthy_status 413", statuses(413), "unhealthy_status"},
		{"unhealthy_status 4xx", statuses(4), "unhealthy_status"},
		{"unhealthy_status of Oz's own doing", statuses(500, 5, 429, 404), ""},
		{"fail_duration", passive(reverseproxy.PassiveHealthChecks{FailDuration: 1}), ""},
		{"active checks", with(func(rp *reverseproxy.Handler) { rp.HealthChecks = new(reverseproxy.HealthChecks) }), ""},
		{"header_up", with(func(rp *reverseproxy.Handler) { rp.Headers = new(headers.Handler) }), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := checkProxy(test.proxy)
			switch {
			case test.want == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !strings.Contains(err.Error(), test.want):
				t.Errorf("%v, want one about %s", err, test.want)
			}
		})
	}
}

// Every option that is refused says why.
func TestRefusedOptionsSayWhy(t *testing.T) {
	for option, why := range refusedOptions {
		if got := refused(option).Error(); why == "" || !strings.HasPrefix(got, option+" cannot be used") || !strings.HasSuffix(got, why) {
			t.Errorf("%s: %s", option, got)
		}
	}
}
