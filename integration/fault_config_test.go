package integration_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// testConfigRefusesWhatCannotWork promises that an option of reverse_proxy that would do nothing here, or harm, does not load, and
// that the error names it and its line.
func testConfigRefusesWhatCannotWork(t *testing.T) {
	t.Parallel()
	transport := func(line string) string { return "transport http {\n\t\t\t" + line + "\n\t\t}" }
	for _, test := range []struct {
		option string // the line to be found in the error
		block  string
		say    []string
	}{
		{"read_timeout 3s", transport("read_timeout 3s"), []string{"read_timeout", "timeout"}}, // it times the client's upload
		{"write_timeout 3s", transport("write_timeout 3s"), []string{"write_timeout"}},
		{"max_conns_per_host 1", transport("max_conns_per_host 1"), []string{"max_conns_per_host", "capacity"}},
		{"header_down X-Foo bar", "", []string{"header_down"}},
		{"header_down -Server", "", []string{"header_down"}},
		{"flush_interval -1", "", []string{"flush_interval"}},
		{"stream_timeout 5m", "", []string{"stream_timeout"}},
		{"stream_close_delay 5m", "", []string{"stream_close_delay"}},
		{"trusted_proxies private_ranges", "", []string{"trusted_proxies"}},
		{"lb_retry_match path /verify", "", []string{"lb_retry_match"}},
		{"header_up Content-Length 5", "", []string{"Content-Length"}},
		{"header_up -Content-Length", "", []string{"Content-Length"}},
		{"header_up content-type text/plain", "", []string{"content-type"}},
		{"header_up +Content-Type text/plain", "", []string{"Content-Type"}},
		{"header_up -Content-Type", "", []string{"Content-Type"}},
		{"header_up -Content-*", "", []string{"Content-"}},
		{"header_up Content-Type octet text", "", []string{"Content-Type"}},
		{"header_up Transfer-Encoding chunked", "", []string{"Transfer-Encoding"}},
		{"header_up Expect 100-continue", "", []string{"Expect"}},
		{"header_up ?Expect 100-continue", "", []string{"Expect"}},
		{"header_down Content-Length 5", "", []string{"header_down"}},
		{"header_down Content-Type text/plain", "", []string{"header_down"}},
		{"header_down Transfer-Encoding chunked", "", []string{"header_down"}},
		{"header_down Expect x", "", []string{"header_down"}},
	} {
		t.Run(test.option, func(t *testing.T) {
			t.Parallel()
			block := test.block
			if block == "" {
				block = test.option
			}
			assertRefused(t, "{$SITE} {\n\toz_instant /verify http://oz {\n\t\tfail_duration 30s\n\t\t"+block+"\n\t}\n}", test.option, test.say)
		})
	}
}

// assertRefused fails the test unless the site does not load for the sake of this line.
func assertRefused(t testing.TB, site, option string, say []string) {
	t.Helper()
	err := validate(t, site)
	if err == nil {
		t.Fatal("it loads")
	}
	for _, word := range say {
		if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(word)) {
			t.Errorf("the error does not say %s: %v", word, err)
		}
	}
	line := 1 + strings.Count(withHarness(site)[:strings.Index(withHarness(site), option)], "\n")
	if !regexp.MustCompile(fmt.Sprintf(`Caddyfile:%d\b`, line)).MatchString(err.Error()) {
		t.Errorf("the error does not say Caddyfile:%d: %v", line, err)
	}
}

// TestConfigSaysBasePath promises an upstream with a path the name of the option that is for it.
func TestConfigSaysBasePath(t *testing.T) {
	t.Parallel()
	for _, upstream := range []string{"https://oz.internal/oz", "http://oz.internal:8080/oz/", "https://oz.internal/a/b"} {
		for name, site := range map[string]string{
			"argument": "{$SITE} {\n\toz_instant /verify " + upstream + "\n}",
			"to":       "{$SITE} {\n\toz_instant /verify {\n\t\tto " + upstream + "\n\t}\n}",
			"second":   "{$SITE} {\n\toz_instant /verify http://oz " + upstream + "\n}",
		} {
			t.Run(upstream+" "+name, func(t *testing.T) {
				t.Parallel()
				err := validate(t, site)
				if err == nil || !strings.Contains(err.Error(), "base_path") || !strings.Contains(err.Error(), "Caddyfile:") {
					t.Errorf("loading says %v", err)
				}
			})
		}
	}
	if err := validate(t, "{$SITE} {\n\toz_instant /verify https://oz.internal {\n\t\tbase_path /oz\n\t}\n}"); err != nil {
		t.Error(err)
	}
}

// TestConfigStillTakesTheRest promises that what does work loads as before.
func TestConfigStillTakesTheRest(t *testing.T) {
	t.Parallel()
	for _, option := range []string{
		"header_up Host oz.internal", "header_up X-Tx {query.tx}", "header_up -X-Foo", "lb_policy least_conn", "lb_try_duration 2s",
		"transport http {\n\t\t\tdial_timeout 2s\n\t\t\tresponse_header_timeout 30s\n\t\t}", "transport http {\n\t\t\tkeepalive 30s\n\t\t}",
		"max_header 20KiB", "unhealthy_request_count 3",
	} {
		if err := validate(t, "{$SITE} {\n\toz_instant /verify http://oz {\n\t\t"+option+"\n\t}\n}"); err != nil {
			t.Errorf("%s: %v", option, err)
		}
	}
}
