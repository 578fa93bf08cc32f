package ozclient

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// An option that would break the exchange, or let a client mark Oz as down, is
// refused by name and with what to do instead. All others are the operator's.
func TestValidate(t *testing.T) {
	up := func(name string) string { return `{"headers": {"request": {"set": {"` + name + `": ["a"]}}}}` }
	for _, test := range []struct {
		name, fields, proxy string
		want                string // in the error; empty: it is taken
	}{
		{"an upstream", "", "", ""},
		{"nothing", `{"reverse_proxy": null}`, "", "no Oz upstream"},
		{"no upstream", "", `{"upstreams": null}`, "no Oz upstream"},
		{"dynamic upstreams", "", `{"upstreams": null, "dynamic_upstreams": {"source": "a"}}`, ""},
		{"handle_response", "", `{"handle_response": [{}]}`, "handle_response cannot be used in oz_instant: "},
		{"rewrite", "", `{"rewrite": {}}`, "rewrite cannot"},
		{"request_buffers", "", `{"request_buffers": -1}`, "request_buffers cannot"},
		{"response_buffers", "", `{"response_buffers": 1}`, "response_buffers cannot"},
		{"stream_buffer_size", "", `{"stream_buffer_size": 1}`, "stream_buffer_size cannot"},
		{"circuit_breaker", "", `{"circuit_breaker": {"type": "x"}}`, "circuit_breaker cannot"},
		{"flush_interval", "", `{"flush_interval": -1}`, "flush_interval cannot"},
		{"stream_timeout", "", `{"stream_timeout": "1s"}`, "stream_timeout cannot"},
		{"stream_close_delay", "", `{"stream_close_delay": "1s"}`, "stream_close_delay cannot"},
		{"trusted_proxies", "", `{"trusted_proxies": ["10.0.0.0/8"]}`, "trusted_proxies cannot"},
		{"lb_retry_match", "", `{"load_balancing": {"retry_match": [{"method": ["POST"]}]}}`, "lb_retry_match cannot"},
		{"lb_retries", "", `{"load_balancing": {"retries": 5, "try_duration": "5s", "try_interval": "1s"}}`, ""},
		{"lb_try_interval", "", `{"load_balancing": {"try_interval": "1001ms"}}`, "lb_try_interval: 1.001s is too long (want at most 1s)"},
		{"unhealthy_latency", "", `{"health_checks": {"passive": {"unhealthy_latency": "1s"}}}`, "unhealthy_latency cannot"},
		{"unhealthy_status 400", "", `{"health_checks": {"passive": {"unhealthy_status": [500, 400]}}}`, "unhealthy_status cannot"},
		{"unhealthy_status 413", "", `{"health_checks": {"passive": {"unhealthy_status": [413]}}}`, "unhealthy_status cannot"},
		{"unhealthy_status 4xx", "", `{"health_checks": {"passive": {"unhealthy_status": [4]}}}`, "unhealthy_status cannot"},
		{"unhealthy_status of Oz's own doing", "", `{"health_checks": {"passive": {"unhealthy_status": [500, 5, 429, 404]}}}`, ""},
		{"fail_duration", "", `{"health_checks": {"passive": {"fail_duration": "1m"}}}`, ""},
		{"active checks", "", `{"health_checks": {"active": {"uri": "/"}}}`, ""},

		{"read_timeout", "", `{"transport": {"protocol": "http", "read_timeout": "3s"}}`, "read_timeout cannot be used in oz_instant: it times the client's upload"},
		{"write_timeout", "", `{"transport": {"protocol": "http", "write_timeout": "3s"}}`, "write_timeout cannot"},
		{"max_conns_per_host", "", `{"transport": {"protocol": "http", "max_conns_per_host": 1}}`, "use capacity"},
		{"another transport", "", `{"transport": {"protocol": "stub", "read_timeout": "3s"}}`, ""},
		{"other options", "", `{"transport": {"protocol": "http", "dial_timeout": "3s", "proxy_protocol": "v2", "tls": {"server_name": "{env.X}"}}}`, ""},

		{"header_up", "", up("X-Tenant"), ""},
		{"header_up Host", "", up("Host"), ""},
		{"header_up {name}", "", up("{http.request.header.X}"), "has a placeholder in the name of a field"},
		{"header_up Content-Type", "", up("content-type"), "header_up: Content-Type cannot be changed"},
		{"header_up Content-Length", "", up("Content-Length"), "Content-Length"},
		{"header_up Transfer-Encoding", "", up("Transfer-Encoding"), "Transfer-Encoding"},
		{"header_up Expect", "", up("Expect"), "Expect"},
		{"header_up Trailer", "", up("Trailer"), "Trailer"},
		{"header_up Connection", "", up("Connection"), "Connection"},
		{"header_up Upgrade", "", up("Upgrade"), "Upgrade"},
		{"header_up Accept-Encoding", "", up("Accept-Encoding"), "Accept-Encoding"},
		{"header_up +Expect", "", `{"headers": {"request": {"add": {"Expect": ["a"]}}}}`, "Expect"},
		{"header_up -Content-Type", "", `{"headers": {"request": {"delete": ["Content-Type"]}}}`, "Content-Type"},
		{"header_up -X-*", "", `{"headers": {"request": {"delete": ["X-*"]}}}`, ""},
		{"header_up -Content-*", "", `{"headers": {"request": {"delete": ["Content-*"]}}}`, "Content-Length"},
		{"header_up -*-Type", "", `{"headers": {"request": {"delete": ["*-Type"]}}}`, "Content-Type"},
		{"header_up -*pect*", "", `{"headers": {"request": {"delete": ["*pect*"]}}}`, "Expect"},
		{"header_up -*", "", `{"headers": {"request": {"delete": ["*"]}}}`, "Accept-Encoding"},
		{"header_up Content-Type find replace", "", `{"headers": {"request": {"replace": {"Content-Type": [{"search": "a"}]}}}}`, "Content-Type"},
		{"header_up -X-Forwarded-For", "", `{"headers": {"request": {"delete": ["X-Forwarded-For"]}}}`, ""},
		{"header_down", "", `{"headers": {"response": {"set": {"X-A": ["a"]}}}}`, "header_down cannot"},
		{"an access token by hand", "", up(accessTokenHeader), ""},
		{"an access token twice", `{"access_token": "a"}`, up("x-forensic-access-token"), "header_up: X-Forensic-Access-Token cannot be changed"},
		{"an access token by hand and credentials", withCredentials, up(accessTokenHeader), "X-Forensic-Access-Token"},

		{"both tokens", `{"access_token": "a", "credentials": {"email": "e", "password": "p"}}`, "", "exclude each other"},
		{"a base path", `{"base_path": "/oz"}`, "", ""},
		{"a bad base path", `{"base_path": "oz"}`, "", "base_path: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := stubConfig(t, nil, test.fields, test.proxy).Validate()
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
func TestCheckOption(t *testing.T) {
	for option, refusal := range refusals {
		if err := CheckOption(option); refusal.why == "" || err == nil || err.Error() != option+" cannot be used in oz_instant: "+refusal.why {
			t.Errorf("%s: %v", option, err)
		}
	}
	for _, option := range []string{"unhealthy_status", "header_up", "lb_policy", "fail_duration", "nonsense"} {
		if err := CheckOption(option); err != nil {
			t.Error(err)
		}
	}
}

func TestCheckUpstream(t *testing.T) {
	for address, want := range map[string]string{
		"https://oz.internal/oz":      "want https://oz.internal and base_path /oz",
		"https://oz.internal:8443/a/": "want https://oz.internal:8443 and base_path /a",
		"https://oz.internal/":        "want https://oz.internal)",
		"http://u:secret@oz/oz":       "upstream http://oz/oz",
		"https://oz.internal":         "",
		"oz.internal:8080":            "",
		"unix//run/oz.sock":           "",
		"https://{env.OZ}/oz":         "",
		"://":                         "",
	} {
		err := CheckUpstream(address)
		if (err != nil) != (want != "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// What leads to another Oz has another identity, and nothing else has.
func TestIdentity(t *testing.T) {
	of := func(fields, proxy string) string { return stubConfig(t, nil, fields, proxy).Identity() }
	const http = `"upstreams": [{"dial": "a:1"}, {"dial": "b:2"}], "transport": `
	one := of("", `{`+http+`{"protocol": "http", "tls": {"server_name": "oz", "ca": {"provider": "file"}}}}`)
	for name, same := range map[string]string{
		"order":      of("", `{"upstreams": [{"dial": "b:2"}, {"dial": "a:1"}], "transport": {"tls": {"ca": {"provider":  "file"}, "server_name": "oz"}, "protocol": "http"}}`),
		"policy":     of("", `{`+http+`{"protocol": "http", "tls": {"server_name": "oz", "ca": {"provider": "file"}}}, "load_balancing": {"retries": 3, "selection_policy": {"policy": "first"}}}`),
		"checks":     of("", `{`+http+`{"protocol": "http", "tls": {"server_name": "oz", "ca": {"provider": "file"}}}, "health_checks": {"active": {"uri": "/"}, "passive": {"max_fails": 3}}}`),
		"max":        of("", `{"upstreams": [{"dial": "a:1", "max_requests": 5}, {"dial": "b:2"}], "transport": {"protocol": "http", "tls": {"server_name": "oz", "ca": {"provider": "file"}}}}`),
		"the tokens": of(withCredentials, `{`+http+`{"protocol": "http", "tls": {"server_name": "oz", "ca": {"provider": "file"}}}}`),
	} {
		if same != one {
			t.Errorf("%s matters:\n%s\n%s", name, same, one)
		}
	}
	seen := map[string]string{one: "the first"}
	for name, other := range map[string]string{
		"base path": of(`{"base_path": "/x"}`, `{`+http+`{"protocol": "http", "tls": {"server_name": "oz", "ca": {"provider": "file"}}}}`),
		"upstream":  of("", `{"upstreams": [{"dial": "a:1"}]}`),
		"transport": of("", `{`+http+`{"protocol": "http"}}`),
		"TLS name":  of("", `{`+http+`{"protocol": "http", "tls": {"server_name": "other"}}}`),
		"Host":      of("", `{`+http+`{"protocol": "http"}, "headers": {"request": {"set": {"Host": ["one.internal"]}}}}`),
		"Host 2":    of("", `{`+http+`{"protocol": "http"}, "headers": {"request": {"set": {"Host": ["two.internal"]}}}}`),
		"header":    of("", `{`+http+`{"protocol": "http"}, "headers": {"request": {"add": {"X-Tenant": ["a"]}}}}`),
		"dynamic":   of("", `{"upstreams": null, "dynamic_upstreams": {"source": "a", "name": "one.test", "port": "80"}}`),
		"dynamic 2": of("", `{"upstreams": null, "dynamic_upstreams": {"source": "a", "name": "two.test", "port": "80"}}`),
	} {
		if before, twice := seen[other]; twice {
			t.Errorf("%s has the identity of %s", name, before)
		}
		seen[other] = name
	}
	plain := &Config{ReverseProxy: proxyTo("a:1")}
	explicit := &Config{ReverseProxy: proxyTo("a:1")}
	explicit.ReverseProxy.TransportRaw = json.RawMessage(`{"protocol": "http"}`)
	if plain.Identity() != explicit.Identity() {
		t.Error("the default transport is another than itself")
	}
}

// Gateways recognize an installation by its addresses and Host alone, as they are when the placeholders
// of the environment are replaced.
func TestInstallation(t *testing.T) {
	of := func(fields, proxy string) string { return stubConfig(t, nil, fields, proxy).Installation() }
	t.Setenv("OZ_TEST_HOST", "one.internal")
	const to = `"upstreams": [{"dial": "a:1"}, {"dial": "b:2"}]`
	one := of("", `{`+to+`, "headers": {"request": {"set": {"Host": ["one.internal"]}}}}`)
	for name, same := range map[string]string{
		"order, case": of("", `{"upstreams": [{"dial": "b:2"}, {"dial": "a:1"}], "headers": {"request": {"set": {"host": ["one.internal"]}}}}`),
		"secrets":     of(withCredentials, `{`+to+`, "headers": {"request": {"set": {"Host": ["one.internal"], "X-Key": ["secret"]}}}}`),
		"placeholder": of("", `{`+to+`, "headers": {"request": {"set": {"Host": ["{env.OZ_TEST_HOST}"]}}}}`),
	} {
		if same != one {
			t.Errorf("%s matters:\n%s\n%s", name, same, one)
		}
	}
	for name, other := range map[string]string{
		"base path": of(`{"base_path": "/x"}`, `{`+to+`, "headers": {"request": {"set": {"Host": ["one.internal"]}}}}`),
		"upstream":  of("", `{"upstreams": [{"dial": "a:1"}], "headers": {"request": {"set": {"Host": ["one.internal"]}}}}`),
		"Host":      of("", `{`+to+`, "headers": {"request": {"set": {"Host": ["two.internal"]}}}}`),
		"TLS name":  of("", `{`+to+`, "headers": {"request": {"set": {"Host": ["one.internal"]}}}, "transport": {"protocol": "http", "tls": {"server_name": "two.internal"}}}`),
		"dynamic":   of("", `{"upstreams": null, "dynamic_upstreams": {"source": "a", "name": "one.test", "port": "80"}}`),
	} {
		if other == one {
			t.Errorf("%s doesn't matter", name)
		}
	}
}

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
			decode(t, string(got), &gotDoc)
			decode(t, test.want, &want)
			if !reflect.DeepEqual(gotDoc, want) {
				t.Errorf("%s\nwant %s", got, test.want)
			}
		})
	}
}

func TestBasePath(t *testing.T) {
	for _, good := range []string{"/oz", "/oz/v1", "/a.b-c_~", "/oz..v1"} {
		if err := checkBasePath(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "oz", "/", "/oz/", "//oz", "/oz//v1", "/oz?a", "/oz#a", "/oz%2f", "/{env.X}", `/oz\v1`, "/o z", "/../x", "/oz/..", "/./x", "/oz/.", "/öz", "/oz\t", "/oz\x7f",
	} {
		if err := checkBasePath(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// Secrets come from where they are kept. A file's end of line is not part of
// one, and no error shows any of it.
func TestSecrets(t *testing.T) {
	t.Setenv("OZ_TEST_SECRET", "from-env")
	t.Setenv("OZ_TEST_EMPTY", "")
	dir := t.TempDir()
	for name, content := range map[string]string{"lf": "from-file\n", "crlf": "from-file\r\n", "empty": "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ given, want string }{
		{"plain", "plain"},
		{"{env.OZ_TEST_SECRET}", "from-env"},
		{"Bearer-{env.OZ_TEST_SECRET}", "Bearer-from-env"},
		{"{file." + dir + "/lf}", "from-file"},
		{"{file." + dir + "/crlf}", "from-file"},
	} {
		if got, err := secret(test.given); err != nil || got != test.want {
			t.Errorf("%s: %q, %v", test.given, got, err)
		}
	}
	for _, bad := range []string{
		"", "\r\n", "{env.OZ_TEST_EMPTY}", "{env.OZ_TEST_NOWHERE}", "{file." + dir + "/empty}", "{no.such.placeholder}",
		"hunter2{no.such.placeholder}", "hunter2{env.OZ_TEST_EMPTY}",
	} {
		got, err := secret(bad)
		if err == nil || got != "" {
			t.Errorf("%q came out as %q", bad, got)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows it: %v", err)
		}
	}
}

func TestHeaderSecret(t *testing.T) {
	for value, fits := range map[string]bool{
		"eyJ.a-b_c~!": true, "a b": false, "a\nb": false, "a\tb": false, "\x7f": false, "é": false, " ": false, "~": true, "!": true,
	} {
		if got, err := headerSecret(value); (err == nil) != fits || fits && got != value {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
}
