package caddymodule

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// linked loads a handler for the link that it has.
func linked(t *testing.T, ctx caddy.Context, fields string) *Handler {
	t.Helper()
	h, err := load[*Handler](ctx, handlerID, ozConfig(t, neverAsked(t), fields))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// Handlers of one config that reach the same Oz in the same way share a link,
// and with it connections, health and access token: session tokens, too. What
// else they do does not matter. It is gone when the last of them is.
func TestLinksAreShared(t *testing.T) {
	ctx, cancel := cancelContext(t)
	h := linked(t, ctx, `{"access_token": "a"}`)
	if other := linked(t, ctx, `{"access_token": "a", "max_capsule": 5, "match": [{"path": ["/other"]}], "best_shot": "keep"}`); other.link != h.link {
		t.Error("another oz_instant for the same Oz has a link of its own")
	}
	tokens, err := load[*SessionToken](ctx, sessionTokenID, ozConfig(t, neverAsked(t), `{"access_token": "a"}`))
	if err != nil || tokens.link != h.link {
		t.Errorf("session tokens have a link of their own (%v)", err)
	}
	for name, fields := range map[string]string{
		"access token": `{"access_token": "b"}`,
		"base path":    `{"access_token": "a", "base_path": "/x"}`,
		"credentials":  withCredentials,
		"upstream":     `{"access_token": "a", "reverse_proxy": {"upstreams": [{"dial": "b.test:1"}]}}`,
		"transport":    `{"access_token": "a", "reverse_proxy": {"transport": {"protocol": "http"}}}`,
		"header":       `{"access_token": "a", "reverse_proxy": {"headers": {"request": {"set": {"X-A": ["b"]}}}}}`,
	} {
		if linked(t, ctx, fields).link == h.link {
			t.Errorf("the %s does not matter", name)
		}
	}
	if linked(t, newContext(t), `{"access_token": "a"}`).link == h.link {
		t.Error("two configs share a link: the reload of one would end the other's")
	}
	if users, _ := links.References(h.key); users != 3 {
		t.Errorf("the link has %d users", users)
	}
	cancel()
	if _, still := links.References(h.key); still {
		t.Error("the link outlives its config")
	}
}

// What fails to load leaves nothing behind: no link, no account, no capacity.
func TestNothingIsLeftOfWhatFails(t *testing.T) {
	for name, fields := range map[string]string{
		"before the link":                     `{"strip": ["*"]}`,
		"an access token":                     `{"access_token": "{env.OZ_NOWHERE}"}`,
		"a password, when the proxy is there": `{"credentials": {"email": "e", "password": "{env.OZ_NOWHERE}"}}`,
		"the proxy":                           `{"reverse_proxy": {"trusted_proxies": ["nonsense"]}}`,
		"the capacity, after the link":        `{"capacity": {"slots": -1}}`,
		"validation, after all":               `{"capacity": {"slots": 1}, "timeout": -1, "credentials": {"email": "e", "password": "p"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			h := new(Handler)
			ctx := newContext(t)
			if err := caddy.StrictUnmarshalJSON([]byte(ozConfig(t, neverAsked(t), fields)), h); err != nil {
				t.Fatal(err)
			}
			err := h.Provision(ctx)
			if err == nil {
				err = h.Validate()
			}
			if err == nil {
				t.Fatal("it loads")
			}
			if err := h.Cleanup(); err != nil {
				t.Errorf("cleanup: %v", err)
			}
			for what, pool := range map[string]*caddy.UsagePool{"link": links, "account": accounts, "capacity": gates} {
				pool.Range(func(key, value any) bool {
					t.Errorf("a %s is left: %v", what, key)
					return true
				})
			}
		})
	}
}

// Dynamic upstreams tell one Oz from another as well as static ones do: for
// capacity, and for access tokens, which must never go to another Oz.
func TestDynamicUpstreamsTellOzApart(t *testing.T) {
	ctx := newContext(t)
	handler := func(name, more string) *Handler {
		t.Helper()
		return linked(t, ctx, `{"capacity": {"slots": 3}, "credentials": {"email": "e", "password": "p"}, "reverse_proxy": {
			"upstreams": null, "dynamic_upstreams": {"source": "a", "name": "`+name+`", "port": "80"}`+more+`}}`)
	}
	one := handler("one.test", "")
	if other := handler("two.test", ""); other.link.account == one.link.account || other.gate.gate == one.gate.gate {
		t.Errorf("another Oz: the account is the same: %v, the capacity: %v",
			other.link.account == one.link.account, other.gate.gate == one.gate.gate)
	}
	for name, more := range map[string]string{"by the same link": "", "by another link": `, "flush_interval": 1`} {
		if other := handler("one.test", more); other.link.account != one.link.account || other.gate.gate != one.gate.gate {
			t.Errorf("the same Oz %s: another account: %v, another capacity: %v", name,
				other.link.account != one.link.account, other.gate.gate != one.gate.gate)
		}
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

func TestFitsHeader(t *testing.T) {
	for value, fits := range map[string]bool{
		"eyJ.a-b_c~!": true, "a b": false, "a\nb": false, "a\tb": false, "\x7f": false, "é": false, " ": false, "~": true, "!": true,
	} {
		if err := fitsHeader(value); (err == nil) != fits {
			t.Errorf("%q: %v", value, err)
		}
	}
}
