package integration_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const sessionSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		session_token /session_token
	}
	reverse_proxy {$APP}
}`

const sessionTokensTotal = "caddy_oz_instant_session_tokens_total"

// testSessionToken promises step 1 of the guide: a fresh token from Oz with each GET, that nobody keeps and nothing logs, and that
// a capsule made with it is accepted.
func testSessionToken(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, sessionSite)
	var tokens [][]byte
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.oz.Forget()
		x.app.Forget()
		for range 2 {
			a := c.get(t, "/session_token", "Cookie", "session=1", "Authorization", "Bearer user", "If-None-Match", "*", "X-Oz-Decision", "SUCCESS")
			token := gjson.GetBytes(a.Body, "session_token").Str
			if a.Status != 200 || len(token) < 100 || a.Header.Get("Content-Type") != "application/json" {
				t.Fatalf("got %d %v %s", a.Status, a.Header, a.Body)
			}
			if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Etag") != "" {
				t.Errorf("may be cached: %v", a.Header)
			}
			tokens = append(tokens, []byte(token))
		}
		if string(tokens[len(tokens)-1]) == string(tokens[len(tokens)-2]) {
			t.Error("the same token twice")
		}
		asked := x.oz.RequestsOn(sandbox.OnToken)
		if len(asked) != 2 || asked[0].Method != http.MethodGet || asked[0].RequestURI != "/api/authorize/session_token" {
			t.Fatalf("Oz was asked %+v", asked)
		}
		for name := range asked[0].Header {
			switch name {
			case "Accept", "Accept-Encoding", "Content-Type", "User-Agent", "Connection":
			default:
				t.Errorf("Oz got %s: %s", name, asked[0].Header.Get(name))
			}
		}
		if got := asked[0].Header.Get("Content-Type"); got != "application/json" {
			t.Errorf("Content-Type is %q", got)
		}
		x.app.None(t)
		j := x.observe(t, func() answer {
			return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{SessionToken: string(tokens[len(tokens)-1]), EventSession: "s"}))
		})
		accepted.assert(t, j, "s")
	})
	if n := x.Metric(t, sessionTokensTotal+`{result="issued"}`); n != 6 {
		t.Errorf("%v tokens counted, want 6", n)
	}
	x.assertNoCanary(t, tokens...)
}

// testSessionTokenRefuses promises that nothing but a plain GET gets a token, and that Oz isn't asked for anything else: a HEAD is
// answered without one, and an OPTIONS, as browsers send it first, goes on to the site.
func testSessionTokenRefuses(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, sessionSite)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "TRACE", "GETT"} {
			a := c.do(t, c.request(t, method, "/session_token", nil))
			if a.Status != 405 || a.Header.Get("Allow") != "GET, HEAD, OPTIONS" {
				t.Errorf("%s: got %d %v", method, a.Status, a.Header)
			}
		}
		for _, method := range []string{"GET", "OPTIONS"} {
			a := c.do(t, c.request(t, method, "/session_token", strings.NewReader("x")))
			if a.Status != 400 || !strings.Contains(string(a.Body), "unexpected-content") {
				t.Errorf("%s with content: got %d %s", method, a.Status, a.Body)
			}
		}
		a := c.do(t, c.request(t, "HEAD", "/session_token", nil))
		if a.Status != 200 || a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "no-store" || len(a.Body) > 0 {
			t.Errorf("HEAD: got %d %v %s", a.Status, a.Header, a.Body)
		}
		if a := c.do(t, c.request(t, "OPTIONS", "/session_token", nil)); a.Status != 200 || string(a.Body) != "seen by the app\n" {
			t.Errorf("OPTIONS: got %d %s", a.Status, a.Body)
		}
		if a := c.get(t, "/session_token/more"); a.Status != 200 || string(a.Body) != "seen by the app\n" {
			t.Errorf("another path: got %d %s", a.Status, a.Body)
		}
	})
	if n := len(x.oz.RequestsOn(sandbox.OnToken)); n != 0 {
		t.Errorf("Oz was asked %d times", n)
	}
}

// TestSessionTokenFailures promises that Oz's failures are problem documents with their reason, and never a token.
func TestSessionTokenFailures(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, sessionSite)
	c := x.client(t, "h1")
	for fault, want := range map[string]struct {
		status int
		reason string
		asked  int
	}{
		"status:401@token":                        {502, "unauthorized", 1},
		"status:403@token":                        {502, "unauthorized", 1},
		"status:429@token":                        {503, "overloaded", 1},
		"status:503,retry-after=9@token":          {503, "overloaded", 1},
		"status:500@token":                        {502, "unexpected_status", 2},
		"status:404@token":                        {502, "unexpected_status", 2},
		"status:302@token":                        {502, "unexpected_status", 2},
		"status:204@token":                        {502, "unexpected_status", 2},
		"oz-error:14@token":                       {502, "unexpected_status", 2},
		"upgrade@token":                           {502, "unexpected_status", 2},
		"html:200@token":                          {502, "malformed_answer", 2},
		"gzip@token":                              {502, "malformed_answer", 2},
		"truncated@token":                         {502, "malformed_answer", 2},
		"cut@token":                               {502, "malformed_answer", 2},
		"empty-body@token":                        {502, "malformed_answer", 2},
		"field:session_token@token":               {502, "malformed_answer", 2},
		"field:session_token=null@token":          {502, "malformed_answer", 2},
		`field:session_token=""@token`:            {502, "malformed_answer", 2},
		"field:session_token=[1]@token":           {502, "malformed_answer", 2},
		"field:session_token,bytes=1MiB@token":    {502, "malformed_answer", 2},
		`dup-field:session_token="another"@token`: {502, "malformed_answer", 2},
		"reset@token":                             {502, "connection_lost", 2},
		"close@token":                             {502, "connection_lost", 2},
	} {
		t.Run(fault, func(t *testing.T) {
			x.oz.fault(t, fault)
			start := time.Now()
			before := x.Metric(t, sessionTokensTotal+`{result="`+want.reason+`"}`)
			a := c.get(t, "/session_token")
			v := verdict{http: want.status, reason: want.reason, retryAfter: a.Header.Get("Retry-After")}
			v.code = gjson.GetBytes(a.Body, "error_code").Raw
			v.assertProblem(t, a)
			if want.status == 503 && a.Header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if gjson.GetBytes(a.Body, "session_token").Exists() || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("got %v %s", a.Header, a.Body)
			}
			if n := x.oz.since(start, sandbox.OnToken); n != want.asked {
				t.Errorf("Oz was asked %d times, want %d", n, want.asked)
			}
			if got := x.Metric(t, sessionTokensTotal+`{result="`+want.reason+`"}`); got != before+1 {
				t.Errorf("counted %v, then %v", before, got)
			}
		})
	}
	t.Run("hang", func(t *testing.T) {
		x.oz.fault(t, "hang@token")
		v := verdict{http: 504, reason: "timeout"}
		v.assertProblem(t, c.get(t, "/session_token"))
	})
}

// TestSessionTokenOfAClosedConnection promises that a browser's tab which is closed while Oz is slow is a client that left, and no
// timeout of Oz. Over HTTP/3 it ends the request with words of its own, which stand nowhere.
func TestSessionTokenOfAClosedConnection(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 2)
	silent := startServer(t, func(conn net.Conn) {
		conn.Read(make([]byte, 1))
		asked <- struct{}{}
		io.Copy(io.Discard, conn)
	})
	p := startCaddy(t, "{$SITE} {\n\tlog\n\toz_instant /verify {$OZ} {\n\t\tsession_token /session_token\n\t}\n}", withEnv("OZ", "http://"+silent))
	conn, client := p.dialH3(t)
	stream, err := client.OpenRequestStream(t.Context())
	check(t, err)
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+p.HTTPS+"/session_token", nil)
	check(t, err)
	check(t, stream.SendRequestHeader(req))
	check(t, stream.Close()) // no content
	select {
	case <-asked:
	case <-time.After(patience):
		t.Fatal("Oz was not asked")
	}
	check(t, conn.CloseWithError(0x10c, "canary"))
	if line := p.waitForLog(t, withMsg("session token")); line.Get("level").Str != "info" || line.Get("result").Str != "client-gone" {
		t.Errorf("it is logged as %s", line)
	}
	if n := p.Metric(t, sessionTokensTotal+`{result="client-gone"}`); n != 1 {
		t.Errorf("it is counted %v times", n)
	}
	if lines := p.logLines(having("canary")); len(lines) != 0 {
		t.Errorf("the log has %s", lines)
	}
}

// since counts the requests of one call that came after start. A Forget would leave those in that have not ended yet.
func (o *ozServer) since(start time.Time, route string) (n int) {
	for _, r := range o.RequestsOn(route) {
		if r.Start.After(start) {
			n++
		}
	}
	return n
}

// TestSessionTokenTriesAnother promises one more attempt, on another upstream, whatever the first one did.
func TestSessionTokenTriesAnother(t *testing.T) {
	t.Parallel()
	other := startSandbox(t, sandbox.Options{})
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	oz_instant /verify {$OZ} {$OTHER} {
		session_token /session_token
		lb_policy first
	}
	oz_instant /dead {$DEAD} {$OTHER} {
		session_token /dead_token
		lb_policy first
	}
	reverse_proxy {$APP}
}`, withEnv("OTHER", other.URL), withEnv("DEAD", "http://"+deadAddress(t)))
	c := x.client(t, "h1")
	for _, fault := range []string{"status:500", "status:503", "status:429", "html:200", "reset", "close", "cut"} {
		x.oz.fault(t, fault+"@token")
		before := len(other.RequestsOn(sandbox.OnToken))
		if a := c.get(t, "/session_token"); a.Status != 200 || len(other.RequestsOn(sandbox.OnToken)) != before+1 {
			t.Errorf("%s: got %d %s", fault, a.Status, a.Body)
		}
	}
	if a := c.get(t, "/dead_token"); a.Status != 200 {
		t.Errorf("with the first one dead: got %d %s", a.Status, a.Body)
	}
	other.fault(t, "status:500@token")
	x.oz.fault(t, "status:500@token")
	start := time.Now()
	if a := c.get(t, "/session_token"); a.Status != 502 {
		t.Errorf("with both broken: got %d %s", a.Status, a.Body)
	}
	if n, m := x.oz.since(start, sandbox.OnToken), other.since(start, sandbox.OnToken); n != 1 || m != 1 {
		t.Errorf("asked %d and %d times, want once each", n, m)
	}
}
