package integration_test

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testSessionTokensHaveALimit promises Oz at most 16 requests for session tokens at once, whatever comes: 64 more wait a moment, and
// the rest is told to come back. They take no capsule's slot, and a capsule takes no place of theirs.
func testSessionTokensHaveALimit(t *testing.T) {
	t.Parallel()
	for name, capacity := range map[string]string{"with capacity": "capacity {\n slots 3\n queue 0\n}", "without": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			oz, connections := startCountedSandbox(t, sandbox.Options{AcceptAny: true})
			app := newRawApp(t)
			x := &chain{startCaddy(t, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		session_token /session_token
		{$CAPACITY}
	}
	oz_instant /more {$OZ} {
		session_token /more_token
		{$CAPACITY}
	}
	reverse_proxy {$APP}
}`, withEnv("OZ", oz.URL), withEnv("APP", app.Addr), withEnv("CAPACITY", capacity)), oz, app}
			// Those at Oz, and those that wait, must do so until all others have their answer, on a machine however busy.
			timeouts := regexp.MustCompile(`"path":"(/session_token|/more_token)"`)
			check(t, x.ReloadJSON(timeouts.ReplaceAllString(x.Config(t), `$0,"timeout":"1m"`)))
			oz.fault(t, "hang@token")
			const clients, atOnce, waiting = 200, 16, 64
			c := x.client(t, "h1")
			answers := make(chan answer, clients)
			var all sync.WaitGroup
			for i := range clients {
				path := []string{"/session_token", "/more_token"}[i%2]
				all.Go(func() {
					a, err := c.try(c.request(t, "GET", path, nil))
					if err != nil {
						t.Error(err)
					}
					answers <- a
				})
			}
			for range clients - atOnce - waiting {
				select {
				case a := <-answers:
					assertBusy(t, a)
				case <-time.After(patience):
					t.Fatal("no answer to those beyond the limit")
				}
			}
			if n := connections.n.Load(); n > atOnce {
				t.Errorf("Oz got %d connections", n)
			}
			x.wantServed(t, "/verify", x.anyCapsule())
			x.oz.fault(t, "") // lets go of what hangs
			all.Wait()
			close(answers)
			served := 0
			for a := range answers {
				if a.Status == 200 {
					served++
				}
			}
			if served < waiting {
				t.Errorf("%d of %d that waited were served", served, waiting)
			}
		})
	}
}

// testSessionTokensWaitNoLonger promises those that wait an answer within seconds, also where Oz gives none.
func testSessionTokensWaitNoLonger(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, sessionSite)
	x.oz.fault(t, "hang@token")
	c := x.client(t, "h2")
	var all sync.WaitGroup
	for range 60 {
		all.Go(func() {
			start := time.Now()
			a, err := c.try(c.request(t, "GET", "/session_token", nil))
			// A wait and a call of five seconds are ten. The last of those who waited for all in front of them would take twenty.
			if took := time.Since(start); err != nil || a.Status != 503 && a.Status != 504 || took > 18*time.Second {
				t.Errorf("got %d, %v after %v", a.Status, err, took)
			} else if a.Status == 503 {
				assertBusy(t, a)
			}
		})
	}
	all.Wait()
}

// testSessionTokenDeadlineEndsRetries promises an answer within two deadlines, however long reverse_proxy may look for an upstream.
func testSessionTokenDeadlineEndsRetries(t *testing.T) {
	t.Parallel()
	silent := startServer(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
	sideBySide(t, map[string]string{
		"nobody there": "http://" + deadAddress(t), "silent": "http://" + silent,
		"closes at once": "http://" + startServer(t, func(net.Conn) {}),
	}, func(t *testing.T, _, upstream string) {
		p := startCaddy(t, `
{$SITE} {
	oz_instant /verify {$OZ} {
		session_token /session_token
		lb_try_duration 20s
		timeout 1s
	}
}`, withEnv("OZ", upstream))
		within(t, 18*time.Second, "the answer", func() { // two attempts of five seconds, and not lb_try_duration
			a := p.client(t, "h1").get(t, "/session_token")
			if a.Status < 500 || problemOf(a) == "" {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
		})
	})
}

// testSessionTokenMethods promises a browser's preflight to the site's own handlers, and HEAD an answer that costs Oz nothing. Only
// GET gets a token.
func testSessionTokenMethods(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		session_token /session_token
	}
	@preflight method OPTIONS
	handle @preflight {
		header Access-Control-Allow-Origin *
		respond 204
	}
	reverse_proxy {$APP}
}`)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.oz.Forget()
		a := c.do(t, c.request(t, "OPTIONS", "/session_token", nil, "Origin", "https://shop.example", "Access-Control-Request-Method", "GET"))
		if a.Status != 204 || a.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("preflight: got %d %v", a.Status, a.Header)
		}
		a = c.do(t, c.request(t, "HEAD", "/session_token", nil))
		if a.Status != 200 || a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "no-store" || len(a.Body) > 0 {
			t.Errorf("HEAD: got %d %v", a.Status, a.Header)
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
			a := c.do(t, c.request(t, method, "/session_token", nil))
			if allow := a.Header.Get("Allow"); a.Status != 405 || !strings.Contains(allow, "GET") || !strings.Contains(allow, "HEAD") {
				t.Errorf("%s: got %d, Allow is %q", method, a.Status, allow)
			}
		}
		if n := len(x.oz.RequestsOn(sandbox.OnToken)); n != 0 {
			t.Errorf("Oz was asked %d times", n)
		}
		if a := c.get(t, "/session_token"); gjson.GetBytes(a.Body, "session_token").Str == "" {
			t.Errorf("GET: got %d %s", a.Status, a.Body)
		}
	})
	x.app.None(t)
	t.Run("GET in chunks, empty", func(t *testing.T) {
		conn := x.dialRaw(t)
		conn.sendHead(t, "GET /session_token HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked")
		conn.send(t, "0\r\n\r\n")
		if a := conn.read(t, "GET"); a.Status != 200 {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
	})
}

// testSessionTokenOfItsOwnOz promises that of two blocks on one path each answers for what its matcher says, so that a token is good
// for the Oz that the same client's capsule will go to.
func testSessionTokenOfItsOwnOz(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ a, b, forA, forB, neither string }{
		"host":              {"host a.test", "host b.test", "Host: a.test", "Host: b.test", "Host: c.test"},
		"host, path":        {"host a.test\n path /verify", "host b.test\n path /verify", "Host: a.test", "Host: b.test", "Host: c.test"},
		"header":            {"header X-Tenant a", "header X-Tenant b", "X-Tenant: a", "X-Tenant: b", "X-Tenant: c"},
		"header and method": {"header X-Tenant a\n method POST", "header X-Tenant b\n method POST", "X-Tenant: a", "X-Tenant: b", "X-Tenant: c"},
		"header_regexp":     {"header_regexp X-Tenant ^a", "header_regexp X-Tenant ^b", "X-Tenant: a1", "X-Tenant: b1", "X-Tenant: c1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			other := startSandbox(t, sandbox.Options{})
			x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	@a {
		`+test.a+`
	}
	@b {
		`+test.b+`
	}
	oz_instant @a {$OZ} {
		session_token /t
	}
	oz_instant @b {$OTHER} {
		session_token /t
	}
	reverse_proxy {$APP}
}`, withEnv("OTHER", other.URL))
			c := x.client(t, "h1")
			for field, oz := range map[string]*ozServer{test.forA: x.oz, test.forB: other} {
				name, value, _ := strings.Cut(field, ": ")
				a := c.get(t, "/t", name, value)
				token := gjson.GetBytes(a.Body, "session_token").Str
				if a.Status != 200 || token == "" {
					t.Errorf("%s: got %d %s", field, a.Status, a.Body)
					continue
				}
				if n := len(oz.RequestsOn(sandbox.OnToken)); n != 1 {
					t.Errorf("%s: its Oz was asked %d times", field, n)
				}
				if a := c.post(t, "/verify", oz.Capsule(sandbox.CapsuleSpec{SessionToken: token}), name, value); a.Status != 200 {
					t.Errorf("%s: its capsule got %d %s", field, a.Status, a.Body)
				}
			}
			x.app.Forget()
			name, value, _ := strings.Cut(test.neither, ": ")
			if a := c.get(t, "/t", name, value); string(a.Body) != "seen by the app\n" {
				t.Errorf("%s: got %d %s", test.neither, a.Status, a.Body)
			}
		})
	}
}

// testSessionTokenNeedsAMatcherThatCanBeShared promises that a matcher from which path and method cannot be taken away, or a path
// that is the capsules' own, does not load, and what to write instead.
func testSessionTokenNeedsAMatcherThatCanBeShared(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		matcher string
		want    []string
	}{
		"expression":        {"expression `{http.request.host} == \"a\"`", []string{"handle", "site"}},
		"expression, paths": {"expression `path('/verify') && host('a')`", []string{"handle", "site"}},
		"not":               {"not path /other", []string{"handle", "site"}},
		"not host":          {"host a\n not method GET", []string{"handle", "site"}},
		"the same path":     {"path /t", []string{"session_token", "/t"}},
		"one of its paths":  {"path /verify /t\n host a", []string{"session_token", "/t"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := validate(t, "{$SITE} {\n\t@m {\n\t\t"+test.matcher+"\n\t}\n\toz_instant @m http://oz {\n\t\tsession_token /t\n\t}\n}")
			if err == nil {
				t.Fatal("it loads")
			}
			for _, word := range test.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%v does not name %s", err, word)
				}
			}
		})
	}
	t.Run("the path as argument", func(t *testing.T) {
		if err := validate(t, "{$SITE} {\n\toz_instant /verify http://oz {\n\t\tsession_token /verify\n\t}\n}"); err == nil {
			t.Error("it loads")
		}
	})
	t.Run("expression without session_token", func(t *testing.T) {
		if err := validate(t, "{$SITE} {\n\t@m expression `path('/verify')`\n\toz_instant @m http://oz\n}"); err != nil {
			t.Error(err)
		}
	})
}

// TestSessionTokenInJSON promises the same endpoint in JSON, as a field of the handler.
func TestSessionTokenInJSON(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, "") // nothing listens on the port yet: a reload may close a connection that nobody has accepted
	_, port, err := net.SplitHostPort(x.HTTP)
	check(t, err)
	check(t, x.ReloadJSON(fmt.Sprintf(`{
	"admin": {"listen": %q},
	"apps": {"http": {"servers": {"s": {"listen": [":%s"], "routes": [{"handle": [
		{"handler": "oz_instant", "match": [{"path": ["/verify"]}],
		 "session_token": {"path": "/session_token", "timeout": "1s"},
		 "reverse_proxy": {"upstreams": [{"dial": %q}]}},
		{"handler": "static_response", "status_code": 404}]}]}}}}}`, x.Admin, port, x.oz.Addr)))
	c := x.client(t, "h1")
	if a := c.get(t, "/session_token"); a.Status != 200 || gjson.GetBytes(a.Body, "session_token").Str == "" {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
	x.oz.fault(t, "hang@token")
	within(t, 8*time.Second, "the answer", func() { // by default it would take ten
		if a := c.get(t, "/session_token"); a.Status != 504 {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
	})
	if a := c.get(t, "/elsewhere"); a.Status != 404 {
		t.Errorf("elsewhere: got %d", a.Status)
	}
}
