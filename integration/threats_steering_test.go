package integration_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// steeringFields are fields by which clients have made gateways look at another path or method than that of the request, or look
// the other way: as a proxy in front, a framework, or a health check would send them.
var steeringFields = []string{
	"X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/other", "X-Forwarded-Path", "/other", "X-Forwarded-Prefix", "/other", "X-Forwarded-Host", "other.test",
	"X-Forwarded-Proto", "https", "X-Forwarded-For", "127.0.0.1", "X-Forwarded-Server", "other.test", "Forwarded", "for=127.0.0.1;host=other.test;proto=https",
	"X-Real-Ip", "127.0.0.1", "X-Client-Ip", "127.0.0.1", "True-Client-Ip", "127.0.0.1", "Cf-Connecting-Ip", "127.0.0.1",
	"X-Original-Url", "/other", "X-Original-Uri", "/other", "X-Original-Method", "GET", "X-Original-Host", "other.test", "X-Rewrite-Url", "/other",
	"X-Envoy-Original-Path", "/other", "X-Override-Url", "/other", "X-Http-Method-Override", "GET", "X-Http-Method", "GET", "X-Method-Override", "GET",
	"X-Accel-Redirect", "/other", "X-Sendfile", "/other", "X-Auth-Request-Redirect", "/other", "X-Skip-Auth", "true", "X-Health-Check", "1", "X-Debug", "1",
	"Purpose", "prefetch", "Sec-Purpose", "prefetch", "X-Moz", "prefetch", "X-Requested-With", "XMLHttpRequest", "Upgrade-Insecure-Requests", "1",
	"Access-Control-Request-Method", "POST", "Origin", "null", "Cache-Control", "no-cache", "If-None-Match", "*", "Proxy", "http://127.0.0.1:9/",
}

// healthChecks are User-Agents that gateways have let through unasked.
var healthChecks = []string{
	"GoogleHC/1.0", "ELB-HealthChecker/2.0", "kube-probe/1.33", "Amazon-Route53-Health-Check-Service", "Consul Health Check", "Envoy/HC", "UptimeRobot/2.0", "caddy-oz-instant",
}

// testSteering promises that what is decided is what the request line says, and that no field skips it.
func testSteering(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `{
	servers {
		trusted_proxies static private_ranges
	}
}
`+smokeSite)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.trySteering(t, c, steeringFields)
		for _, agent := range healthChecks {
			x.trySteering(t, c, []string{"User-Agent", agent})
		}
		if c.proto != "h1" {
			return // one by one they are the same for all
		}
		for pair := range slices.Chunk(steeringFields, 2) {
			t.Run(pair[0], func(t *testing.T) { x.trySteering(t, c, pair) })
		}
	})
}

// trySteering sends what must not go by, and what must go by, with these fields.
func (x *chain) trySteering(t *testing.T, c *client, fields []string) {
	t.Helper()
	x.app.Forget()
	x.oz.quiet(t)
	x.oz.Forget()
	bad := x.oz.Capsule(sandbox.CapsuleSpec{Damage: sandbox.DamageHash, PayloadSize: 100})
	if a := c.post(t, "/verify?_method=GET&path=/other", []byte(forgedFolder), append(slices.Clone(fields), "Content-Type", "application/json")...); a.Status != 415 {
		t.Errorf("with %q JSON got %d", fields, a.Status)
	}
	if a := c.post(t, "/verify", bad, fields...); a.Status != 400 {
		t.Errorf("with %q a bad capsule got %d", fields, a.Status)
	}
	x.app.None(t)

	if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s", PayloadSize: 100}), fields...); a.Status != 200 {
		t.Errorf("with %q a good capsule got %d", fields, a.Status)
	}
	r := x.app.Last(t)
	assertReserved(t, r, accepted.headers(r, "s"))
	if n := len(x.oz.Received()); n != 2 {
		t.Errorf("with %q Oz got %d capsules, want 2", fields, n)
	}

	x.app.Forget()
	toOther := append(slices.Clone(fields), "X-Original-Uri", "/verify", "X-Forwarded-Uri", "/verify", "X-Rewrite-Url", "/verify")
	c.post(t, "/other", bad, toOther...)
	assertReserved(t, x.app.Only(t), map[string]string{})
	if n := len(x.oz.Received()); n != 2 {
		t.Errorf("with %q Oz was asked about another path", fields)
	}
}

// testProxyOfTheEnvironment promises that Oz is reached without the proxy that the environment names, while it is used where
// an operator's own reverse_proxy would use it; and that no client can name one.
func testProxyOfTheEnvironment(t *testing.T) {
	t.Parallel()
	proxy, app := newRawApp(t), newRawApp(t)
	proxy.Answer(func(r rawRequest) string {
		if strings.HasPrefix(r.Line, "CONNECT") {
			return "" // no tunnel: what would come through it is no HTTP
		}
		return rawAnswer("200 OK", "by proxy")
	})
	url := "http://" + proxy.Addr
	p := startCaddy(t, `
{$SITE} {
	log
	oz_instant /verify http://oz.invalid:9
	oz_instant /tls https://oz.invalid:9
	oz_instant /block http://oz.invalid:9 {
		transport http {
			dial_timeout 5s
		}
	}
	reverse_proxy /plain http://oz.invalid:9
	reverse_proxy /plain-tls https://oz.invalid:9
	reverse_proxy {$APP}
}`, withEnv("APP", app.Addr), withEnv("HTTP_PROXY", url), withEnv("HTTPS_PROXY", url), withEnv("http_proxy", url), withEnv("https_proxy", url))
	x := &chain{p, nil, app}
	askedForOz := func() (n int) {
		for _, r := range proxy.Requests() {
			if !strings.Contains(r.Line, ":443 ") { // a certificate authority, which Caddy asks for by itself
				n++
			}
		}
		return n
	}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		proxy.Forget()
		for _, path := range []string{"/verify", "/tls", "/block"} {
			j := x.observe(t, func() answer { return c.post(t, path, []byte("capsule"), "Proxy", url) })
			unavailable("unreachable", 502).assert(t, j, "")
		}
		if n := askedForOz(); n > 0 {
			t.Errorf("the proxy got %d requests for Oz", n)
		}
		c.get(t, "/plain")
		c.get(t, "/plain-tls")
		if n := askedForOz(); n != 2 {
			t.Errorf("of two plain reverse_proxies the proxy got %d requests: this test proves nothing", n)
		}
	})
}
