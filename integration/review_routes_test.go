package integration_test

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestErrorRoutesMayHaveTheDirective promises an answer where the error routes come across the directive again, which refuses the
// spent request once more: directly, and in a named route.
func TestErrorRoutesMayHaveTheDirective(t *testing.T) {
	t.Parallel()
	for name, routes := range map[string]string{"directly": "oz_instant {$OZ}", "in a named route": "invoke again"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := startChain(t, sandbox.Options{}, `
&(again) {
	oz_instant {$OZ}
}
{$SITE} {
	log
	oz_instant /verify* {$OZ} {
		session_token /token
	}
	reverse_proxy {$APP}
	handle_errors {
		`+routes+`
	}
}`)
			x.eachProtocol(t, func(t *testing.T, c *client) {
				wantProblem(t, c.post(t, "/verify", []byte("{}"), "Content-Type", "application/json"), 415, "unsupported-media-type")
			})
			x.app.None(t)
		})
	}
}

// testNoTrailersForErrorRoutes promises that trailers, which come with the end of a body that the handler reads, reach no app: not
// by the error routes of a refusal or of the app's failure, and not with an undecided request.
func testNoTrailersForErrorRoutes(t *testing.T) {
	t.Parallel()
	h2c := newH2CApp(t)
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify* {$OZ}
	reverse_proxy /verify* h2c://{$H2C}
	oz_instant /fails* {$OZ}
	reverse_proxy /fails* {$DEAD}
	handle_errors {
		reverse_proxy h2c://{$H2C}
	}
}`, withEnv("H2C", h2c.Addr), withEnv("DEAD", deadAddress(t)))
	const forged = "X-Oz-Decision: SUCCESS"
	send := func(t *testing.T, capsule []byte, lines ...string) {
		h2c.Forget()
		conn := x.dialRaw(t)
		conn.sendHead(t, append(lines, "Host: localhost", "Transfer-Encoding: chunked", "Content-Type: application/octet-stream")...)
		if len(capsule) > 0 {
			conn.sendChunk(t, string(capsule))
		}
		conn.sendChunk(t, "")
		conn.sendHead(t, forged)
		conn.read(t, strings.Fields(lines[0])[0])
		r := h2c.Only(t)
		if len(r.Trailer) > 0 || r.Header.Get("Trailer") != "" || r.Header.Get("X-Oz-Decision") != "" {
			t.Errorf("the app got %v, trailer %v", r.Header, r.Trailer)
		}
	}
	for _, announced := range []string{"X-Announced: no", "Trailer: X-Oz-Decision"} {
		t.Run(announced, func(t *testing.T) {
			t.Run("undecided", func(t *testing.T) { send(t, nil, "GET /verify HTTP/1.1", announced) })
			t.Run("refused", func(t *testing.T) {
				x.oz.fault(t, "oz-error:14")
				defer x.oz.fault(t, "")
				send(t, x.oz.Capsule(sandbox.CapsuleSpec{}), "POST /verify HTTP/1.1", announced)
			})
			t.Run("app fails", func(t *testing.T) {
				send(t, x.oz.Capsule(sandbox.CapsuleSpec{}), "POST /fails HTTP/1.1", announced)
			})
		})
	}
}

// TestExpectGetsNoLingerWithErrorRoutes promises a client that sent Expect and no body its answer and the end at once, on a site
// with error routes and where the app answers.
func TestExpectGetsNoLingerWithErrorRoutes(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		pass UNAVAILABLE
		capacity {
			slots 1
			queue 0
		}
	}
	reverse_proxy {$APP}
	handle_errors {
		header X-Error {err.status_code}
	}
}`)
	ended := func(t *testing.T, status int, lines ...string) {
		t.Helper()
		took := time.Hour
		for tries := 0; took > 3*time.Second && tries < 5; tries++ { // the machine may be slow, but not each time
			conn := x.dialRaw(t)
			start := time.Now()
			conn.sendHead(t, append(lines, "Host: localhost", "Content-Length: 12000000", "Expect: 100-continue")...)
			if a := conn.read(t, "POST"); a.Status != status {
				t.Fatalf("got %d %s", a.Status, a.Body)
			}
			conn.ends(t)
			took = time.Since(start)
		}
		if took > 3*time.Second {
			t.Errorf("the connection ended after %v", took)
		}
	}
	t.Run("refused", func(t *testing.T) { ended(t, 415, "POST /verify HTTP/1.1", "Content-Type: application/json") })
	t.Run("passed", func(t *testing.T) {
		defer x.oz.HoldAnalyses()()
		first := x.dialRaw(t)
		capsule := x.oz.Capsule(sandbox.CapsuleSpec{})
		first.sendHead(t, postHead("/verify", len(capsule))...)
		first.send(t, string(capsule))
		x.oz.await(t, func(s sandbox.Stats) bool { return s.Open > 0 })
		ended(t, 200, "POST /verify HTTP/1.1", "Content-Type: application/octet-stream")
	})
}

// TestSessionTokenPathOfAnyCase promises that the path of session tokens is served as it is written, and in any case, as Caddy's
// path matcher has it.
func TestSessionTokenPathOfAnyCase(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		session_token /api/sessionToken
	}
	reverse_proxy {$APP}
}`)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, path := range []string{"/api/sessionToken", "/api/sessiontoken", "/API/SESSIONTOKEN"} {
			if a := c.get(t, path); a.Status != 200 || !strings.Contains(string(a.Body), `"session_token"`) {
				t.Errorf("%s: got %d %s", path, a.Status, a.Body)
			}
		}
	})
	x.app.None(t)
}

// testRefusedBodyIsNobodysAfterwards promises that handlers around the directive, which look at the answer and send the request
// elsewhere, do not find in it what was refused or used.
func testRefusedBodyIsNobodysAfterwards(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	route {
		intercept {
			@all status 2xx 4xx
			handle_response @all {
				header -Content-Length
				reverse_proxy {$APP}
			}
		}
		oz_instant /verify {$OZ}
		respond done
	}
}`)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.app.Forget()
		c.post(t, "/verify", []byte(`{"resolution":"SUCCESS"}`), "Content-Type", "application/json")
		for _, r := range x.app.Requests() {
			if len(r.Body) > 0 || r.Value("X-Oz-Decision") != "" {
				t.Errorf("the app got:\n%s", r.Raw())
			}
		}
		x.app.Forget()
		c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}))
		if r := x.app.Only(t); len(r.Body) > 0 || len(r.Names("X-Oz-")) > 0 {
			t.Errorf("the app got:\n%s", r.Raw())
		}
	})
}

// testMatcherErrorsGiveTheBodyToNobody promises that a body of which a matcher could not say whether it is a capsule's is not sent
// to the app by the error routes.
func testMatcherErrorsGiveTheBodyToNobody(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	@broken expression `+"`{http.request.uri.query.n}.matches({http.request.uri.query.re})`"+`
	oz_instant @broken {$OZ}
	reverse_proxy {$APP}
	handle_errors {
		reverse_proxy {$APP}
	}
}`)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.app.Forget()
		c.post(t, "/verify?n=1&re=(", []byte(`{"resolution":"SUCCESS"}`), "Content-Type", "application/json")
		if r := x.app.Only(t); len(r.Body) > 0 || r.Value("X-Oz-Decision") != "" {
			t.Errorf("the app got:\n%s", r.Raw())
		}
	})
}

// TestErrorRoutesOfClientsThatLeft promises that a route that waits for another server ends when its client has left.
func TestErrorRoutesOfClientsThatLeft(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	handle_errors {
		reverse_proxy {$APP}
	}
}`)
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	x.app.Answer(func(rawRequest) string { <-hold; return "" })
	x.oz.fault(t, "oz-error:14")
	conn := x.dialRaw(t)
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{})
	conn.sendHead(t, postHead("/verify", len(capsule))...)
	conn.send(t, string(capsule))
	x.app.Wait(t, 1)
	conn.Close()
	x.waitForLog(t, isAccess, withField("status", "400")) // nothing else would end it
}

// TestErrorRoutesAnswerInAnyShape promises the answer of an error route whole, whatever its shape, and a problem document that is
// described as what it is where a route wrote no body or failed.
func TestErrorRoutesAnswerInAnyShape(t *testing.T) {
	t.Parallel()
	var text atomic.Value
	answering := startServer(t, func(conn net.Conn) { serveRequest(patience, text.Load().(string))(conn) })
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify* {$OZ}
	handle_errors {
		handle /verify/app {
			reverse_proxy {$ANSWERING} {
				transport http {
					keepalive off
				}
				@again status 418
				handle_response @again {
					error "again" 418
				}
			}
		}
		handle /verify/bodiless {
			header Content-Type text/html
			header Content-Encoding br
			header Content-Length 7
			header ETag "x"
		}
		handle /verify/encoded-twice {
			encode gzip {
				minimum_length 1
				match {
					header Content-Type *
				}
			}
			route {
				encode zstd gzip {
					minimum_length 1
				}
				header >X-Deferred {err.status_code}
			}
		}
		handle /verify/fails {
			error "no" 500
		}
	}
}`, withEnv("ANSWERING", answering))
	big := strings.Repeat("0123456789abcdef", 64<<10)
	const document = `{"type":"urn:oz-instant:problem:unsupported-media-type"`
	tests := map[string]struct {
		path, text string
		status     int
		begins     string
	}{
		"no body":       {"bodiless", "", 415, document},
		"encoded twice": {"encoded-twice", "", 415, document},
		"fails":         {"fails", "", 415, document},
		"large":         {"app", rawAnswer("415 No", big), 415, big},
		"chunked":       {"app", "HTTP/1.1 415 No\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n5\r\nhello\r\n0\r\nX-End: yes\r\n\r\n", 415, "hello"},
		"hints":         {"app", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + rawAnswer("415 No", "hinted"), 415, "hinted"},
		"of the app":    {"app", "HTTP/1.1 415 No\r\nContent-Length: 0\r\nContent-Encoding: gzip\r\n\r\n", 415, document},
		"no content":    {"app", "HTTP/1.1 204 No\r\n\r\n", 204, ""},
		"streamed":      {"app", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n", 200, "data: x\n\n"},
		"hangs up":      {"app", "", 415, document},
		"switches":      {"app", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 415, document},
		"fails later":   {"app", rawAnswer("418 Teapot", "no"), 415, document},
	}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for name, want := range tests {
			t.Run(name, func(t *testing.T) {
				text.Store(want.text)
				a := c.post(t, "/verify/"+want.path, []byte("{}"), "Content-Type", "application/json", "Accept-Encoding", "gzip")
				if a.Status != want.status || !strings.HasPrefix(string(a.Body), want.begins) || want.begins == "" && len(a.Body) > 0 {
					t.Errorf("got %d %.99q", a.Status, a.Body)
				}
				if want.begins == document && (a.Header.Get("Content-Type") != "application/problem+json" || a.Header.Get("Content-Encoding")+a.Header.Get("Etag") != "") {
					t.Errorf("the document is described by %v", a.Header)
				}
			})
		}
	})
}

// TestBodyPlaceholderShowsNoCapsule promises that {http.request.body} gives away nothing of a refused body, and nothing of a
// capsule that Oz answered before it had all of it.
func TestBodyPlaceholderShowsNoCapsule(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	oz_instant /passed {$OZ} {
		pass INVALID
	}
	respond "answer {http.request.body}"
	handle_errors {
		respond "page {http.request.body}"
	}
}`)
	const canary = "canary-of-a-body"
	capsule := []byte(strings.Repeat(canary, 200_000))
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.oz.fault(t, "early:400,bytes=40000")
		defer x.oz.fault(t, "")
		for name, a := range map[string]answer{
			"refused at once": c.post(t, "/verify", []byte(canary), "Content-Type", "application/json"),
			"refused by Oz":   c.post(t, "/verify", capsule),
			"passed":          c.post(t, "/passed", capsule),
		} {
			if body := string(a.Body); strings.Contains(body, canary) || !strings.HasPrefix(body, "page ") && !strings.HasPrefix(body, "answer ") {
				t.Errorf("%s: got %d %.99q", name, a.Status, body)
			}
		}
	})
}
