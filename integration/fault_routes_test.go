package integration_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestPlaceholdersShowTheDeliveredRequest promises what comes after the directive the request that the app gets: {header.*} is the
// decision and the folder, as with forward_auth, and on undecided requests nothing that a client could have forged.
func TestPlaceholdersShowTheDeliveredRequest(t *testing.T) {
	t.Parallel()
	const shown = "{header.X-Oz-Decision}|{header.Content-Type}|{header.Content-Length}|{header.X-Oz-Event-Session-Id}|{header.X-Custom}"
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	route {
		oz_instant /respond* {$OZ}
		oz_instant /verify* {$OZ}
		oz_instant /map* {$OZ}
		oz_instant /vars* {$OZ}
		oz_instant /expression* {$OZ}
		oz_instant /matcher* {$OZ}
		oz_instant /rewrite* {$OZ}
		oz_instant /request_header* {$OZ}
		oz_instant /routes* {$OZ} {
			handle_decision SUCCESS {
				respond "`+shown+`"
			}
		}
		respond /respond* "`+shown+`"
		map /map* {header.X-Oz-Decision} {word} {
			SUCCESS let-in
			default kept-out
		}
		respond /map* {word}
		vars /vars* seen "{header.X-Oz-Decision}/{header.Content-Type}"
		respond /vars* {vars.seen}
		@in expression `+"`path('/expression*') && {header.X-Oz-Decision} == 'SUCCESS' && {header.Content-Type} == 'application/json'`"+`
		respond @in in
		respond /expression* out
		@matched {
			path /matcher*
			header X-Oz-Decision SUCCESS
			vars {header.X-Oz-Decision} SUCCESS
		}
		respond @matched in
		respond /matcher* out
		rewrite /rewrite* /rewritten/{header.X-Oz-Decision}
		request_header /request_header* X-Copy {header.X-Oz-Decision}
		reverse_proxy {$APP} {
			header_up X-Up "{header.X-Oz-Decision}/{header.Content-Type}"
			header_up X-Oz-Decision {header.X-Oz-Decision}
		}
	}
}`)
	forged := []string{"X-Oz-Decision", "SUCCESS", "X-Oz-Event-Session-Id", "forged", "X-Custom", "mine"}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		post := func(t *testing.T, path string) string {
			x.app.Forget()
			a := c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}), forged...)
			if a.Status != 200 {
				t.Fatalf("got %d %s", a.Status, a.Body)
			}
			return string(a.Body)
		}
		for _, path := range []string{"/respond", "/routes"} {
			t.Run(path, func(t *testing.T) {
				parts := strings.Split(post(t, path), "|")
				if len(parts) != 5 || parts[0] != "SUCCESS" || parts[1] != "application/json" || len(parts[2]) < 3 || parts[3] != "s" || parts[4] != "mine" {
					t.Errorf("shown: %q", parts)
				}
			})
		}
		for path, want := range map[string]string{"/map": "let-in", "/vars": "SUCCESS/application/json", "/expression": "in", "/matcher": "in"} {
			t.Run(path, func(t *testing.T) {
				if got := post(t, path); got != want {
					t.Errorf("shown: %q, want %q", got, want)
				}
			})
		}
		t.Run("header_up", func(t *testing.T) {
			post(t, "/verify")
			if r := x.app.Only(t); r.Value("X-Up") != "SUCCESS/application/json" || r.Value("X-Oz-Decision") != "SUCCESS" {
				t.Errorf("the app got:\n%s", r.Raw())
			}
		})
		t.Run("rewrite and request_header", func(t *testing.T) {
			post(t, "/rewrite")
			if r := x.app.Only(t); r.Line != "POST /rewritten/SUCCESS HTTP/1.1" {
				t.Errorf("the app got:\n%s", r.Raw())
			}
			post(t, "/request_header")
			if r := x.app.Only(t); r.Value("X-Copy") != "SUCCESS" {
				t.Errorf("the app got:\n%s", r.Raw())
			}
		})
		t.Run("undecided", func(t *testing.T) {
			for path, want := range map[string]string{"/respond": "||||mine", "/map": "kept-out", "/vars": "/", "/expression": "out", "/matcher": "out"} {
				if got := string(c.get(t, path, forged...).Body); got != want {
					t.Errorf("%s shows %q, want %q", path, got, want)
				}
			}
			x.app.Forget()
			c.get(t, "/verify", append(forged, "X_Oz_Decision", "SUCCESS", "x.oz.decision", "SUCCESS")...)
			r := x.app.Only(t)
			if r.Value("X-Up") != "/" || strings.Contains(r.Raw(), "SUCCESS") {
				t.Errorf("the app got:\n%s", r.Raw())
			}
		})
	})
}

// TestFastCGISeesTheDeliveredRequest promises a FastCGI app the same in the variables that a site sets for it, and in those
// that come with the request.
func TestFastCGISeesTheDeliveredRequest(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { listener.Close() })
	go fcgi.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s|%s|%s|%d of %d, %v", fcgi.ProcessEnv(r)["SEEN"], r.Header.Get("X-Oz-Decision"), r.Header.Get("Content-Type"), len(body), r.ContentLength, err)
	}))
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify.php {$OZ}
	reverse_proxy {$PHP} {
		transport fastcgi {
			split .php
			env SEEN "{header.X-Oz-Decision}/{header.Content-Type}"
		}
	}
}`, withEnv("PHP", listener.Addr().String()))
	x.eachProtocol(t, func(t *testing.T, c *client) {
		a := c.post(t, "/verify.php", x.oz.Capsule(sandbox.CapsuleSpec{}), "X-Oz-Decision", "forged")
		seen, size, _ := strings.Cut(string(a.Body), "|application/json|")
		var got, said int
		if _, err := fmt.Sscanf(size, "%d of %d, <nil>", &got, &said); err != nil || got != said || got == 0 || seen != "SUCCESS/application/json|SUCCESS" {
			t.Errorf("the app saw %s", a.Body)
		}
		if a := c.get(t, "/other.php", "X-Oz-Decision", "SUCCESS", "X_Oz_Decision", "SUCCESS"); !strings.HasPrefix(string(a.Body), "/||") {
			t.Errorf("undecided, the app saw %s", a.Body)
		}
	})
}

// TestErrorRoutesSeeWhatTheClientSent promises handle_errors the client's own fields, less the reserved names, and the placeholders
// of what was refused.
func TestErrorRoutesSeeWhatTheClientSent(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
	handle_errors {
		respond "{header.X-Custom}|{header.Cookie}|{header.X-Oz-Decision}|{header.X-Oz-Reason}|{http.oz_instant.decision}|{http.error.status_code}"
	}
}`)
	fields := []string{"X-Custom", "mine", "Cookie", "a=b", "X-Oz-Decision", "SUCCESS", "X-Oz-Reason", "x"}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for fault, want := range map[string]string{"oz-error:5": "mine|a=b|||INVALID|400", "status:503": "mine|a=b|||UNAVAILABLE|503", "early:400": "mine|a=b|||INVALID|400"} {
			x.oz.fault(t, fault)
			if got := string(c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 1 << 20}), fields...).Body); got != want {
				t.Errorf("%s shows %q, want %q", fault, got, want)
			}
		}
		if got, want := string(c.do(t, c.request(t, "PUT", "/verify", nil, fields...)).Body), "mine|a=b||||405"; got != want {
			t.Errorf("405 shows %q, want %q", got, want)
		}
	})
}

// errorRefusals are refusals of each kind: before the body is read, of its content, by Oz, and while it is sent.
var errorRefusals = []struct {
	name, fault, contentType string
	size                     int64
	status                   int
	problem                  string
}{
	{"type", "", "text/plain", 1000, 415, "unsupported-media-type"},
	{"type, large", "", "text/plain", 4 << 20, 415, "unsupported-media-type"},
	{"length", "", "application/octet-stream", 3 << 20, 413, "capsule-too-large"},
	{"by Oz", "oz-error:5", "application/octet-stream", 1000, 400, "container"},
	{"by Oz, early", "early:400,bytes=40000", "application/octet-stream", 1 << 20, 400, "container"},
	{"busy", "status:503", "application/octet-stream", 1000, 503, "overloaded"},
}

// TestErrorRoutesAddToTheProblem promises that routes of handle_errors that only set something leave the client its problem
// document, and that a route that writes a body has the last word.
func TestErrorRoutesAddToTheProblem(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		routes, header string
		body           string // what the route writes
		status         int
	}{
		"header":                    {"header X-Seen yes", "yes", "", 0},
		"header, deferred":          {"header >X-Seen yes", "yes", "", 0},
		"log_append":                {"log_append seen yes\n\t\theader X-Seen yes", "yes", "", 0},
		"vars":                      {"vars seen yes\n\t\theader X-Seen yes", "yes", "", 0},
		"encode":                    {"encode\n\t\theader X-Seen yes", "yes", "", 0},
		"a respond that is not for": {"respond /other \"sorry\"\n\t\theader X-Seen yes", "yes", "", 0},
		"a handle that is not for":  {"@it expression `{err.status_code} == 499`\n\t\thandle @it {\n\t\t\trespond \"sorry\"\n\t\t}\n\t\theader X-Seen yes", "yes", "", 0},
		"nothing":                   {"", "", "", 0},
		"respond":                   {"header X-Seen yes\n\t\trespond \"sorry\"", "yes", "sorry", 0},
		"respond, its own status":   {"header X-Seen yes\n\t\trespond \"sorry\" 299", "yes", "sorry", 299},
		"file-like":                 {"header X-Seen yes\n\t\theader Content-Type text/html\n\t\trespond \"<p>\"", "yes", "<p>", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_capsule 2MiB
	}
	reverse_proxy {$APP}
	handle_errors {
		`+test.routes+`
	}
}`)
			x.eachProtocol(t, func(t *testing.T, c *client) {
				for _, r := range errorRefusals {
					x.oz.fault(t, r.fault)
					a := c.post(t, "/verify", make([]byte, r.size), "Content-Type", r.contentType)
					if a.Header.Get("X-Seen") != test.header {
						t.Errorf("%s: the route's field is %q", r.name, a.Header.Get("X-Seen"))
					}
					if test.body == "" {
						wantProblem(t, a, r.status, r.problem)
						if n := a.Header.Get("Content-Length"); n != "" && n != fmt.Sprint(len(a.Body)) || gjson.GetBytes(a.Body, "status").Int() != int64(r.status) {
							t.Errorf("%s: Content-Length %s of %s", r.name, n, a.Body)
						}
						continue
					}
					want := r.status
					if test.status != 0 {
						want = test.status
					}
					if string(a.Body) != test.body || a.Status != want || a.Header.Get("Content-Type") == "application/problem+json" {
						t.Errorf("%s: got %d %v %s, want the route's own body", r.name, a.Status, a.Header, a.Body)
					}
				}
			})
			x.app.None(t)
		})
	}
}

// TestErrorRoutesMayAskTheApp promises that an error page of the app just works: the request that error routes get has no body, no
// length and no type, since the capsule is spent.
func TestErrorRoutesMayAskTheApp(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_capsule 2MiB
	}
	reverse_proxy {$APP}
	handle_errors {
		rewrite * /sorry/{err.status_code}
		reverse_proxy {$APP}
	}
}`)
	x.app.Answer(func(rawRequest) string { return rawAnswer("200 OK", "the app is sorry\n") })
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, streamed := range []bool{false, true} {
			for _, refusal := range errorRefusals {
				t.Run(fmt.Sprintf("%s, streamed %v", refusal.name, streamed), func(t *testing.T) {
					x.oz.fault(t, refusal.fault)
					x.app.Forget()
					capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: refusal.size})
					req := c.postRequest(t, "/verify", strings.NewReader(string(capsule)), "Content-Type", refusal.contentType, "X-Oz-Decision", "SUCCESS", "Cookie", "a=b")
					if streamed {
						req.ContentLength = -1
					}
					a := c.do(t, req)
					if string(a.Body) != "the app is sorry\n" {
						t.Fatalf("got %d %s", a.Status, a.Body)
					}
					r := x.app.Only(t)
					if want := fmt.Sprintf("POST /sorry/%d HTTP/1.1", refusal.status); r.Line != want || r.Value("Cookie") != "a=b" {
						t.Errorf("the app got:\n%s", r.Raw())
					}
					length := r.Value("Content-Length")
					if len(r.Body) > 0 || r.Chunked || length != "" && length != "0" || len(r.Values("Content-Type")) > 0 || len(r.Values("Content-Encoding")) > 0 {
						t.Errorf("the app got of the spent capsule:\n%s", r.Raw())
					}
					assertReserved(t, r, map[string]string{})
				})
			}
		}
	})
}

// TestErrorRoutesLeaveOthersAlone promises that errors of requests that are no capsules keep their bodies for such a route.
func TestErrorRoutesLeaveOthersAlone(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	error /broken 500
	reverse_proxy {$APP}
	handle_errors {
		rewrite * /sorry
		reverse_proxy {$APP}
	}
}`)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.app.Forget()
		c.post(t, "/broken", []byte("a form"), "Content-Type", "text/plain", "X-Oz-Decision", "SUCCESS")
		r := x.app.Only(t)
		if r.Line != http.MethodPost+" /sorry HTTP/1.1" || string(r.Body) != "a form" || r.Value("Content-Type") != "text/plain" {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		assertReserved(t, r, map[string]string{})
	})
}
