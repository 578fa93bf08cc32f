package integration_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// retryingSite does all that there is to have a request sent again. It cannot say which requests may be: lb_retry_match is refused. Where
// a test has Oz hang, TIMEOUT is how long that takes; everywhere else it is longer than a busy machine stands still.
const retryingSite = `
{$SITE} {
	log
	oz_instant /verify {$FIRST} {$OZ} {
		lb_policy first
		lb_try_duration 20s
		lb_try_interval 10ms
		lb_retries 5
		timeout {$TIMEOUT:1m}
		transport http {
			dial_timeout 5s
			keepalive {$KEEPALIVE:off}
		}
	}
	reverse_proxy {$APP}
}`

// halfOpen takes connections and never reads from them.
func halfOpen(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	}()
	return "http://" + l.Addr().String()
}

// TestNeverTwice promises that a capsule is sent again only if not one byte of it was taken, whatever the retry options say: a
// session token is spent by its first use, and a second would look like fraud.
func TestNeverTwice(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault string // of the first Oz; empty: it is not a sandbox
		first string
		want  verdict
		size  int64
		again bool // the second Oz gets the capsule
	}{
		"refuses connections":         {first: "http://" + deadAddress(t), want: accepted, again: true},
		"name unknown":                {first: "http://oz.invalid:80", want: accepted, again: true},
		"half open":                   {first: halfOpen(t), want: unavailable("timeout", 504)},
		"half open, a large capsule":  {first: halfOpen(t), want: unavailable("timeout", 504), size: 20 << 20},
		"takes a byte and dies":       {fault: "reset-body:1", want: unavailable("connection_lost", 502), size: 4 << 20},
		"takes half and dies":         {fault: "reset-body:2MiB", want: unavailable("connection_lost", 502), size: 4 << 20},
		"takes all and dies":          {fault: "reset", want: unavailable("connection_lost", 502)},
		"takes all and closes":        {fault: "close", want: unavailable("connection_lost", 502), size: 4 << 20},
		"takes all and cuts":          {fault: "cut", want: unavailable("malformed_answer", 502)},
		"takes all and hangs":         {fault: "hang", want: unavailable("timeout", 504)},
		"answers nonsense":            {fault: "truncated", want: unavailable("malformed_answer", 502)},
		"answers 500":                 {fault: "html:500", want: unavailable("unexpected_status", 502)},
		"answers 503":                 {fault: "html:503", want: unavailable("overloaded", 503)},
		"refuses the capsule early":   {fault: "early:400", want: container(14), size: 4 << 20},
		"answers 502 like a balancer": {fault: "status:502", want: unavailable("unexpected_status", 502)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first := test.first
			var firstOz *ozServer
			if first == "" {
				firstOz = startSandbox(t, sandbox.Options{Fault: sandbox.MustFault(test.fault), AcceptAny: true})
				first = firstOz.URL
			}
			timeout := "1m"
			if test.want.reason == "timeout" {
				timeout = "1s"
			}
			x := startChain(t, sandbox.Options{}, retryingSite, withEnv("FIRST", first), withEnv("TIMEOUT", timeout))
			c := x.client(t, "h1")
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"})
			if !test.again { // to the first one, the second one's session tokens are forged
				capsule = randomCapsule(max(int(test.size), 60_000))
			}
			j := x.observe(t, func() answer { return c.post(t, "/verify", capsule) })
			// An answer before the end of the capsule is lost where the gateway gets no CPU for a tenth of a second.
			for tries := 1; test.fault == "early:400" && j.answer.Status == 502 && tries < 5; tries++ {
				firstOz.quiet(t)
				firstOz.Forget()
				j = x.observe(t, func() answer { return c.post(t, "/verify", capsule) })
			}
			if test.want.http == 503 {
				test.want.retryAfter = "any"
			}
			test.want.assert(t, j, "s")
			if n := len(x.oz.Received()); n != map[bool]int{true: 1}[test.again] {
				t.Errorf("the second Oz got %d capsules", n)
			}
			if firstOz != nil && len(firstOz.Received()) != 1 {
				t.Errorf("the first Oz got %d capsules", len(firstOz.Received()))
			}
		})
	}
}

// TestNeverTwiceOverTLS promises the same for handshakes: one that fails has taken nothing.
func TestNeverTwiceOverTLS(t *testing.T) {
	t.Parallel()
	sb, err := sandbox.New(sandbox.Options{})
	check(t, err)
	cert := testCert(t)
	good := httptest.NewUnstartedServer(sb)
	good.TLS = cert.serverConfig()
	good.StartTLS()
	t.Cleanup(good.Close)
	untrusted := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(untrusted.Close)
	app := newRawApp(t)
	for name, first := range map[string]string{"not trusted": untrusted.Listener.Addr().String(), "silent": halfOpen(t)[len("http://"):]} {
		limit := "20s"
		if name == "silent" {
			limit = "3s" // which the second one has, too
		}
		p := startCaddy(t, `
{$SITE} {
	log
	oz_instant /verify {$FIRST} {$GOOD} {
		lb_policy first
		lb_try_duration 30s
		transport http {
			tls
			tls_trust_pool file {$TRUST}
			tls_timeout {$TLS_TIMEOUT}
		}
	}
	reverse_proxy {$APP}
}`, withEnv("FIRST", first), withEnv("GOOD", good.Listener.Addr().String()), withEnv("TRUST", cert.certFile), withEnv("TLS_TIMEOUT", limit), withEnv("APP", app.Addr))
		x := &chain{p, nil, app}
		c := x.client(t, "h1")
		before := len(sb.Received())
		j := x.observe(t, func() answer { return c.post(t, "/verify", sb.Capsule(sandbox.CapsuleSpec{EventSession: "s"})) })
		accepted.assert(t, j, "s")
		if n := len(sb.Received()) - before; n != 1 {
			t.Errorf("%s: Oz got %d capsules", name, n)
		}
		if j.decided[0].Get("upstream_tries").Int() != 2 {
			t.Errorf("%s: logged: %s", name, j.decided[0])
		}
	}
}

// TestNeverTwiceWithKeepAlive promises that also an operator who turns keep-alive on loses, at the worst, a capsule: none is sent
// twice when Oz closes a kept connection at the wrong moment.
func TestNeverTwiceWithKeepAlive(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, retryingSite, withEnv("FIRST", "http://"+deadAddress(t)), withEnv("KEEPALIVE", "30s"))
	c := x.client(t, "h1")
	digests := map[string]int{}
	for i := range 60 {
		if i%3 == 0 {
			x.oz.fault(t, "close")
		} else {
			x.oz.fault(t, "")
		}
		capsule := x.oz.Capsule(sandbox.CapsuleSpec{Payload: []byte("capsule " + strconv.Itoa(i))})
		c.post(t, "/verify", capsule)
	}
	x.oz.quiet(t)
	for _, r := range x.oz.Received() {
		if digests[r.Digest]++; r.Complete && digests[r.Digest] > 1 {
			t.Errorf("a capsule came %d times", digests[r.Digest])
		}
	}
	if n := len(x.oz.Received()); n != 60 {
		t.Errorf("60 capsules made %d requests", n)
	}
}
