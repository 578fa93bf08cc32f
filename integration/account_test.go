package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const (
	email    = "canary-gateway@example.com"
	password = "canary-password-0123456789"
)

var withAccount = []caddyOption{withEnv("OZ_EMAIL", email), withEnv("OZ_PASSWORD", password)}

const accountSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		session_token /session_token
		credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}
	}
	reverse_proxy {$APP}
}`

func accountOptions() sandbox.Options {
	return sandbox.Options{Accounts: map[string]string{email: password}}
}

// grants counts what Oz was asked for: log-ins and refreshes that gave something.
func (o *ozServer) grants() (logins, refreshes int) {
	s := o.Stats()
	return s.Logins, s.Refreshes
}

func (o *ozServer) wantGrants(t testing.TB, logins, refreshes int) {
	t.Helper()
	if l, r := o.grants(); l != logins || r != refreshes {
		t.Errorf("%d log-ins and %d refreshes, want %d and %d", l, r, logins, refreshes)
	}
}

// TestAccount promises one log-in for all that needs a token, on both calls, of all sites, also over a reload.
func TestAccount(t *testing.T) {
	t.Parallel()
	const twoSites = accountSite + `
http://other.test:{$HTTP_PORT} {
	oz_instant /verify {$OZ} {
		credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}
	}
	reverse_proxy {$APP}
}`
	x := startChain(t, accountOptions(), twoSites, withAccount...)
	x.oz.wantGrants(t, 0, 0)
	c := x.client(t, "h1")
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
			if a := c.get(t, "/session_token"); a.Status != 200 {
				t.Errorf("session token: got %d %s", a.Status, a.Body)
			}
			if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), "Host", "other.test"); a.Status != 200 {
				t.Errorf("the other site: got %d %s", a.Status, a.Body)
			}
		})
	}
	all.Wait()
	for range 3 {
		check(t, x.Reload(twoSites))
		c.CloseIdleConnections() // the old server may do so just when a capsule goes out on one
		if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
			t.Errorf("after a reload: got %d %s", a.Status, a.Body)
		}
	}
	x.oz.wantGrants(t, 1, 0)
	digests := map[string]bool{}
	for _, r := range x.oz.Requests() {
		if r.Route != sandbox.OnAuth {
			digests[r.TokenDigest] = true
		}
	}
	if len(digests) != 1 {
		t.Errorf("%d different tokens were used", len(digests))
	}
}

// TestAccountOneRefresh promises that the first call after four fifths of a token's life begins a refresh, and that a hundred
// capsules that wait for it begin no other.
func TestAccountOneRefresh(t *testing.T) {
	t.Parallel()
	for tries := 1; !testOneRefresh(t); tries++ {
		if tries == 3 {
			t.Fatal("no capsule came in the last fifth of a token's life")
		}
	}
}

// testOneRefresh reports false if no call came in the last fifth of the token's life, through which a machine stood still: then there
// is nothing to refresh.
func testOneRefresh(t *testing.T) bool {
	t.Helper()
	options := accountOptions()
	options.SessionLife = 4 * time.Second
	options.FixedExpiry = true
	// Oz's clock stands until the refresh has begun: a capsule that goes out with the old token, and takes long on a busy machine, must
	// not be refused for it.
	begun := time.Now()
	var runs atomic.Bool
	options.Clock = func() time.Time {
		if runs.Load() {
			return time.Now()
		}
		return begun
	}
	x := startChain(t, options, accountSite, withAccount...)
	c := x.client(t, "h1")
	post := func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) }
	if a := post(); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	options = x.oz.Options()
	options.SessionLife = 0 // the token to come lasts for as long as the test
	x.oz.SetOptions(options)
	x.oz.fault(t, "drip:25ms,bytes=5@refresh") // an answer of some 400 bytes: it outlasts the token
	for deadline := time.Now().Add(patience); x.oz.Stats().RefreshTries == 0; time.Sleep(50 * time.Millisecond) {
		if a := post(); a.Status != 200 || time.Now().After(deadline) {
			t.Fatalf("got %d %s, and no refresh yet", a.Status, a.Body)
		}
		if logins, _ := x.oz.grants(); logins > 1 {
			return false
		}
	}
	time.Sleep(time.Second) // until the token has expired: nothing tells of that
	runs.Store(true)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if a := post(); a.Status != 200 {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
		})
	}
	all.Wait()
	if s := x.oz.Stats(); s.Logins != 1 || s.Refreshes < 1 || s.RefreshTries > 2 {
		t.Errorf("%+v", s)
	}
	return true
}

// TestAccountRenewsWhatOzRefuses promises that a token that Oz does not take any more costs one capsule: the next one has another.
func TestAccountRenewsWhatOzRefuses(t *testing.T) {
	t.Parallel()
	x := startChain(t, accountOptions(), accountSite, withAccount...)
	c := x.client(t, "h1")
	post := func() observed {
		return x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"})) })
	}
	accepted.assert(t, post(), "s")
	for i, end := range []struct {
		how  func()
		code string
	}{{x.oz.RevokeSessions, "7"}, {x.oz.ExpireSessions, "8"}, {x.oz.ForbidSessions, "9"}} {
		end.how()
		refused := unavailable("unauthorized", 502)
		refused.code = end.code
		refused.assert(t, post(), "")
		x.oz.await(t, func(s sandbox.Stats) bool { return s.Logins == i+2 })
		accepted.assert(t, post(), "s")
	}
	// A session token is no capsule: it is asked for once more.
	x.oz.RevokeSessions()
	if a := c.get(t, "/session_token"); a.Status != 200 {
		t.Errorf("session token: got %d %s", a.Status, a.Body)
	}
}

// TestAccountWhenLoginFails promises that start-up does not need Oz, and that the first capsule says what is wrong: it is not sent,
// nothing is decided, and the app is not called.
func TestAccountWhenLoginFails(t *testing.T) {
	t.Parallel()
	t.Run("Oz is down", func(t *testing.T) {
		app := newRawApp(t)
		opts := append([]caddyOption{withEnv("OZ", "http://"+deadAddress(t)), withEnv("APP", app.Addr)}, withAccount...)
		x := &chain{startCaddy(t, accountSite, opts...), nil, app}
		c := x.client(t, "h1")
		unavailable("unreachable", 502).assert(t, x.observe(t, func() answer { return c.post(t, "/verify", []byte("capsule")) }), "")
	})
	sideBySide(t, map[string]verdict{
		"status:401@auth":                    unavailable("unauthorized", 502),
		"status:400@auth":                    unavailable("unauthorized", 502),
		"status:403@auth":                    unavailable("unauthorized", 502),
		"status:500@auth":                    unavailable("unexpected_status", 502),
		"status:404@auth":                    unavailable("unexpected_status", 502),
		"status:302@auth":                    unavailable("unexpected_status", 502),
		"html:200@auth":                      unavailable("malformed_answer", 502),
		"truncated@auth":                     unavailable("malformed_answer", 502),
		"gzip@auth":                          unavailable("malformed_answer", 502),
		"field:access_token@auth":            unavailable("malformed_answer", 502),
		`field:access_token="a\nb"@auth`:     unavailable("malformed_answer", 502),
		"field:access_token,bytes=1MiB@auth": unavailable("malformed_answer", 502),
		"field:expire_date=-5@auth":          unavailable("malformed_answer", 502),
		"field:expire_date=1@auth":           unavailable("malformed_answer", 502),
		"reset@auth":                         unavailable("connection_lost", 502),
		"hang@auth":                          unavailable("timeout", 504),
	}, func(t *testing.T, fault string, want verdict) {
		options := accountOptions()
		options.Fault = sandbox.MustFault(fault)
		x := startChain(t, options, accountSite, withAccount...)
		c := x.client(t, "h1")
		j := x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) })
		want.assert(t, j, "")
		if len(j.decided) == 1 && !strings.Contains(j.decided[0].Get("error").Str, "logging in") {
			t.Errorf("the log does not say that it was the log-in: %s", j.decided[0])
		}
		if n := len(x.oz.Received()); n != 0 {
			t.Errorf("Oz got %d capsules", n)
		}
	})
}

// TestAccountUnusualGrants promises that what documents leave open about a log-in's answer does not matter.
func TestAccountUnusualGrants(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{
		"field:expire_date@auth", "field:expire_date=null@auth", `field:expire_date="soon"@auth`, "field:expire_date=1e300@auth",
		"field:expire_token@auth", "field:more={}@auth", "date:none@auth", "status:201@auth",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			options := accountOptions()
			options.Fault = sandbox.MustFault(fault)
			x := startChain(t, options, accountSite, withAccount...)
			c := x.client(t, "h1")
			j := x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"})) })
			accepted.assert(t, j, "s")
		})
	}
}

// TestAccountSecrets promises that e-mail address, password and tokens are in no log at debug level, no metric, no config and no
// file, whatever goes wrong; and that they may come from files.
func TestAccountSecrets(t *testing.T) {
	t.Parallel()
	options := accountOptions()
	file := filepath.Join(t.TempDir(), "password")
	check(t, os.WriteFile(file, []byte(password+"\n"), 0o600))
	x := startChain(t, options, strings.ReplaceAll(accountSite, "{env.OZ_PASSWORD}", "{file.{$PASSWORD_FILE}}"),
		withEnv("OZ_EMAIL", email), withEnv("PASSWORD_FILE", file))
	c := x.client(t, "h1")
	post := func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) }
	if a := post(); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	secrets := [][]byte{[]byte(email), []byte(password)}
	for _, r := range x.oz.Requests() {
		if token := r.Header.Get("X-Forensic-Access-Token"); token != "" {
			secrets = append(secrets, []byte(token))
		}
	}
	if len(secrets) != 3 {
		t.Fatalf("there is no token to look for: %d", len(secrets))
	}
	for _, fault := range []string{"status:401@auth", "truncated@auth", `field:access_token="canary-in-an-answer\nsplit"@auth`, "reset@auth"} {
		x.oz.fault(t, fault)
		x.oz.RevokeSessions()
		post()
	}
	x.assertNoCanary(t, append(secrets, []byte("canary-in-an-answer"))...)
}

// TestAccountConfig promises that what cannot work does not load, and says why without the secret.
func TestAccountConfig(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ block, want string }{
		"no e-mail address": {"credentials {env.NOT_SET} {env.OZ_PASSWORD}", "credentials: email"},
		"no password":       {"credentials {env.OZ_EMAIL} {env.NOT_SET}", "credentials: password"},
		"no file":           {"credentials {env.OZ_EMAIL} {file./not/there}", "credentials: password"},
		"both":              {"access_token {env.OZ_PASSWORD}\n credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}", "exclude each other"},
	} {
		err := validate(t, fmt.Sprintf("{$SITE} {\n oz_instant /verify http://oz.internal {\n %s\n }\n}", test.block), withAccount...)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
