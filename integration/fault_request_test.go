package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testUpgradeIsIgnoredOnCapsules promises that a POST whose client offers another protocol, as curl --http2, Java's and Apache's
// clients do by default, is a capsule like any other, and that neither Oz nor the app hears of the offer (RFC 9110, 7.8).
func testUpgradeIsIgnoredOnCapsules(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	offers := map[string][]string{
		"curl --http2":     {"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"},
		"JDK":              {"Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA", "Upgrade: h2c"},
		"Apache":           {"Upgrade: TLS/1.2", "Connection: Upgrade"},
		"websocket":        {"Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"},
		"several":          {"Upgrade: websocket, h2c", "Upgrade: TLS/1.2", "Connection: keep-alive, upgrade"},
		"small letters":    {"upgrade: H2C", "connection: UPGRADE, http2-settings", "http2-settings: AAMAAABk"},
		"without a name":   {"Upgrade: h2c"},
		"without offering": {"Connection: Upgrade"},
	}
	for name, lines := range offers {
		for way, dial := range map[string]func(testing.TB) *rawConn{"": x.dialRaw, " over TLS": x.dialRawTLS} {
			t.Run(name+way, func(t *testing.T) {
				x.oz.quiet(t)
				x.oz.Forget()
				capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"})
				j := x.observe(t, func() answer {
					conn := dial(t)
					conn.sendHead(t, postHead("/verify", len(capsule), lines...)...)
					conn.send(t, string(capsule))
					return conn.read(t, "POST")
				})
				accepted.assert(t, j, "s")
				for _, r := range j.app {
					for _, gone := range []string{"Upgrade", "HTTP2-Settings", "Connection"} {
						if values := r.Values(gone); len(values) > 0 {
							t.Errorf("the app got %s: %q", gone, values)
						}
					}
				}
				x.oz.quiet(t)
				for _, r := range x.oz.Received() {
					for _, gone := range []string{"Upgrade", "Http2-Settings"} {
						if values := r.Header[gone]; len(values) > 0 {
							t.Errorf("Oz got %s: %q", gone, values)
						}
					}
					if strings.Contains(strings.ToLower(strings.Join(r.Header["Connection"], ",")), "upgrade") {
						t.Errorf("Oz got Connection: %q", r.Header["Connection"])
					}
				}
			})
		}
	}
	t.Run("curl", func(t *testing.T) {
		x.app.Forget()
		out := mustCurl(t, "http://"+x.HTTP+"/verify", "--http2", "-H", "Content-Type: application/octet-stream", "--data-binary", "@"+fileOf(t, x.oz.Capsule(sandbox.CapsuleSpec{})))
		if out != "seen by the app\n" {
			t.Errorf("curl got %s", out)
		}
	})
}

// testOnlyWebSocketsTravelOn promises that on every path and method in scope no other upgrade reaches the app: a tunnel that an
// app accepts is one past every rule about headers.
func testOnlyWebSocketsTravelOn(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE"} {
		for _, path := range []string{"/verify", "/other"} {
			if path == "/verify" && (method == "PUT" || method == "DELETE") {
				continue // refused
			}
			for name, test := range map[string]struct {
				lines []string
				want  string
			}{
				"websocket":      {[]string{"Connection: Upgrade", "Upgrade: websocket"}, "websocket"},
				"WebSocket":      {[]string{"connection: upgrade", "upgrade: WebSocket"}, "websocket"},
				"h2c":            {[]string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"}, ""},
				"TLS":            {[]string{"Connection: Upgrade", "Upgrade: TLS/1.2"}, ""},
				"unknown":        {[]string{"Connection: Upgrade", "Upgrade: oz/1"}, ""},
				"h2c with lines": {[]string{"Connection: Upgrade", "Connection: HTTP2-Settings", "Upgrade: h2c", "Upgrade: foo"}, ""},
			} {
				t.Run(method+" "+path+" "+name, func(t *testing.T) {
					x.app.Forget()
					conn := x.dialRaw(t)
					conn.sendHead(t, append([]string{method + " " + path + " HTTP/1.1", "Host: localhost"}, test.lines...)...)
					if a := conn.read(t, method); a.Status != 200 {
						t.Fatalf("got %d %s", a.Status, a.Body)
					}
					r := x.app.Only(t)
					if got := strings.ToLower(r.Value("Upgrade")); got != test.want {
						t.Errorf("the app got Upgrade: %s", got)
					}
					if got := strings.ToLower(r.Value("Connection")); test.want == "" && (strings.Contains(got, "upgrade") || len(r.Values("HTTP2-Settings")) > 0) {
						t.Errorf("the app got:\n%s", r.Raw())
					}
				})
			}
			t.Run(method+" "+path+" both", func(t *testing.T) {
				x.app.Forget()
				conn := x.dialRaw(t)
				conn.sendHead(t, method+" "+path+" HTTP/1.1", "Host: localhost", "Connection: Upgrade", "Upgrade: websocket, h2c")
				conn.read(t, method)
				if r := x.app.Only(t); strings.Contains(strings.ToLower(r.Value("Upgrade")), "h2c") {
					t.Errorf("the app got:\n%s", r.Raw())
				}
			})
		}
	}
}

// TestEmptyChunksAreNoContent promises GET, HEAD and OPTIONS their way to the app where their body is announced and turns out to be
// empty, over HTTP/1.1 as over HTTP/2; content there is refused as before.
func TestEmptyChunksAreNoContent(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
		for name, body := range map[string][]string{
			"at once": {"0\r\n\r\n"}, "in two pieces": {"0\r\n", "\r\n"}, "with an extension": {"0;x=y\r\n\r\n"}, "with a trailer": {"0\r\nX-Late: 1\r\n\r\n"},
		} {
			t.Run(method+" "+name, func(t *testing.T) {
				r := x.goOn(t, func() answer {
					conn := x.dialRaw(t)
					conn.sendHead(t, method+" /verify HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", "Content-Type: application/octet-stream")
					for _, piece := range body {
						conn.send(t, piece)
					}
					return conn.read(t, method)
				})
				if len(r.Body) > 0 || len(r.Trailers) > 0 {
					t.Errorf("the app got:\n%s", r.Raw())
				}
			})
		}
		t.Run(method+" with content", func(t *testing.T) {
			j := x.observe(t, func() answer {
				conn := x.dialRaw(t)
				conn.sendHead(t, method+" /verify HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked")
				conn.send(t, "1\r\nx\r\n0\r\n\r\n")
				return conn.read(t, method)
			})
			refused("unexpected-content", 400).assertUndecided(t, j)
		})
	}
}

// testSilentGetEnds promises that a GET over HTTP/1.1 whose announced body does not come is refused after ten seconds, as one over
// HTTP/2 is: there may be content for all that anybody knows.
func testSilentGetEnds(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	start := time.Now()
	x.refuse(t, refused("unexpected-content", 400), func() answer {
		conn := x.dialRaw(t)
		conn.sendHead(t, "GET /verify HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked")
		return conn.read(t, "GET")
	})
	if took := time.Since(start); took < uploadPatience-time.Second || took > uploadPatience+busyMachine {
		t.Errorf("it took %v", took)
	}
}

// TestIdentityIsNoEncoding promises that a client that says "not encoded" is taken at its word, and that nobody after hears of it.
func TestIdentityIsNoEncoding(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	for _, value := range []string{"identity", "Identity", " identity "} {
		x.eachProtocol(t, func(t *testing.T, c *client) {
			x.oz.quiet(t)
			x.oz.Forget()
			j := x.observe(t, func() answer {
				return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}), "Content-Encoding", value)
			})
			accepted.assert(t, j, "s")
			if len(j.app) > 0 && len(j.app[0].Names("content-encoding")) > 0 {
				t.Errorf("the app got:\n%s", j.app[0].Raw())
			}
			x.oz.quiet(t)
			for _, r := range x.oz.Received() {
				if r.Header.Get("Content-Encoding") != "" {
					t.Errorf("Oz got Content-Encoding: %s", r.Header.Get("Content-Encoding"))
				}
			}
		})
	}
	for _, value := range []string{"gzip", "identity, gzip", "identity;q=1", "zstd"} {
		t.Run(value, func(t *testing.T) {
			wantProblem(t, x.client(t, "h1").post(t, "/verify", []byte("capsule"), "Content-Encoding", value), 415, "content-encoding")
		})
	}
}

// TestErrorCodeMayBeText promises that Oz's code is read where it comes as text, as some of its serializers write it.
func TestErrorCodeMayBeText(t *testing.T) {
	t.Parallel()
	for text, code := range map[string]string{`"14"`: "14", `"5"`: "5", `"13"`: "13", `14`: "14"} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			x, _ := startRawChain(t, ozAnswer("400 Bad Request", `{"error_code": `+text+`, "error_message": "Invalid request data", "details": null}`), smokeSite)
			want := verdict{decision: "INVALID", reason: "container", http: 400, code: code}
			want.assert(t, x.observe(t, func() answer { return x.client(t, "h1").post(t, "/verify", []byte("capsule")) }), "")
		})
	}
	for _, text := range []string{`"x"`, `"14 "`, `"0x0e"`, `""`, `["14"]`, `14.5`} {
		t.Run("no code: "+text, func(t *testing.T) {
			t.Parallel()
			x, _ := startRawChain(t, ozAnswer("400 Bad Request", `{"error_code": `+text+`, "error_message": "x", "details": null}`), smokeSite)
			if a := x.client(t, "h1").post(t, "/verify", []byte("capsule")); a.Status != 502 {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
		})
	}
}

// TestImageElsewhere promises that an image where the guide has none is part of the folder: up to 1 MiB in all the app gets it as
// it is, beyond that the answer is too large for a decision, which isn't a fault of Oz's.
func TestImageElsewhere(t *testing.T) {
	t.Parallel()
	const site = "{$SITE} {\n\tlog\n\toz_instant /verify {$OZ} {\n\t\tfail_duration 30s\n\t}\n\treverse_proxy {$APP}\n}"
	images := func(size int) string { return `,"images":[{"image_b64":"` + strings.Repeat("QUJD", size/4) + `"}]` }
	t.Run("400 KB", func(t *testing.T) {
		t.Parallel()
		x, _ := startRawChain(t, ozAnswer("201 Created", ozFolder(images(400_000))), site)
		if a := x.client(t, "h1").post(t, "/verify", []byte("capsule")); a.Status != 200 {
			t.Fatalf("got %d %s", a.Status, a.Body)
		}
		if r := x.app.Only(t); r.Value("X-Oz-Decision") != "SUCCESS" || len(gjson.GetBytes(r.Body, "images.0.image_b64").Str) != 400_000 {
			t.Errorf("the app got:\n%s", r.Raw())
		}
	})
	t.Run("1.1 MB", func(t *testing.T) {
		t.Parallel()
		oz := mixedOz(t, ozAnswer("201 Created", ozFolder(images(1_100_000))))
		app := newRawApp(t)
		x := &chain{caddyProc: startCaddy(t, site, withEnv("OZ", "http://"+oz.Addr), withEnv("APP", app.Addr)), app: app}
		wantProblem(t, x.client(t, "h1").post(t, "/verify", make([]byte, 1000)), 502, "malformed_answer")
		x.wantServed(t, "/verify", []byte("capsule"))
	})
}

// testHeaderFlood promises that a capsule with more header than any app can be trusted to read is refused before Oz is asked:
// else the app would not hear of the decision, or not of all of it.
func testHeaderFlood(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
}`)
	lines := func(n int) (fields []string) {
		for i := range n {
			fields = append(fields, fmt.Sprintf("A%d", i), "")
		}
		return fields
	}
	same := func(n int) (fields []string) { return slices.Repeat([]string{"A", "b"}, n) }
	want := refused("header-too-large", 431)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for name, fields := range map[string][]string{
			"150 lines":         lines(150),
			"150 times one":     same(150),
			"300 times one":     same(300),
			"13 KiB in one":     {"Cookie", strings.Repeat("x", 13<<10)},
			"13 KiB in several": {"A", strings.Repeat("x", 5<<10), "B", strings.Repeat("x", 5<<10), "C", strings.Repeat("x", 3<<10)},
			"a long name":       {strings.Repeat("A", 13<<10), "x"},
		} {
			t.Run(name, func(t *testing.T) {
				x.refuse(t, want, func() answer { return c.post(t, "/verify", []byte("capsule"), fields...) })
			})
		}
		for name, fields := range map[string][]string{"70 lines": lines(70), "11 KiB": {"Cookie", strings.Repeat("x", 11<<10)}} {
			t.Run(name, func(t *testing.T) {
				if a := c.post(t, "/verify", []byte("capsule"), fields...); a.Status != 200 {
					t.Errorf("got %d %s", a.Status, a.Body)
				}
			})
		}
	})
	t.Run("990 lines of two bytes", func(t *testing.T) {
		x.refuse(t, want, func() answer {
			conn := x.dialRaw(t)
			conn.send(t, strings.Join(postHead("/verify", 7), "\r\n")+"\r\n"+strings.Repeat("A:\r\n", 990)+"\r\ncapsule")
			return conn.read(t, "POST")
		})
	})
	t.Run("what isn't a capsule", func(t *testing.T) {
		c := x.client(t, "h1")
		if a := c.post(t, "/other", []byte("x"), lines(150)...); a.Status != 200 {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
	})
}

// testHeaderLimitIsAnOption promises an app that reads more, or less, its own limit, where Caddy itself takes that much.
func testHeaderLimitIsAnOption(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{
	servers {
		max_header_size 64KiB
	}
}
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_header 24KiB
	}
	oz_instant /narrow {$OZ} {
		max_header 2KiB
	}
	reverse_proxy {$APP}
}`)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		if a := c.post(t, "/verify", []byte("capsule"), "Cookie", strings.Repeat("x", 20<<10)); a.Status != 200 {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
		x.refuse(t, refused("header-too-large", 431), func() answer { return c.post(t, "/verify", []byte("capsule"), "Cookie", strings.Repeat("x", 25<<10)) })
		x.refuse(t, refused("header-too-large", 431), func() answer { return c.post(t, "/narrow", []byte("capsule"), "Cookie", strings.Repeat("x", 3<<10)) })
	})
}

// testStaleNamesNeverReachTheApp promises that what describes the capsule does not describe the folder by another spelling, which
// CGI and its heirs take for the same name.
func testStaleNamesNeverReachTheApp(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	names := []string{
		"Content~Type: text/x", "Content~Length: 1", "Content~Encoding: gzip", "Content_Type: text/x", "Content_Length: 1", "Content_Encoding: gzip",
		"Content.Type: text/x", "Content.Length: 1", "Content.Encoding: gzip", "content!type: text/x", "CONTENT'LENGTH: 1", "Content|Encoding: br",
		"Content_MD5: x", "Content~Range: bytes 0-1/2", "Transfer_Encoding: chunked", "Transfer.Encoding: gzip", "Content~Disposition: attachment",
	}
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"})
	j := x.observe(t, func() answer {
		conn := x.dialRaw(t)
		conn.sendHead(t, postHead("/verify", len(capsule), names...)...)
		conn.send(t, string(capsule))
		return conn.read(t, "POST")
	})
	accepted.assert(t, j, "s")
	for prefix, want := range map[string][]string{
		"content-type": {"Content-Type"}, "content-length": {"Content-Length"}, "content-encoding": nil, "transfer-encoding": nil,
	} {
		if got := j.app[0].Names(prefix); !slices.Equal(got, want) {
			t.Errorf("the app got the names %q for %s", got, prefix)
		}
	}
}

// TestRedirectOfDecidedRequestIsWarnedOf promises an operator a line in the log where the app sends the client of a decided request
// to another path of the same site: the client posts the same capsule again, to a place that may not be looked at.
func TestRedirectOfDecidedRequestIsWarnedOf(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status, location string
		warn             bool
	}{
		"301 to a slash":         {"301 Moved Permanently", "/verify/", true},
		"307 to a slash":         {"307 Temporary Redirect", "/verify/", true},
		"308 to a slash":         {"308 Permanent Redirect", "/verify/", true},
		"308, relative":          {"308 Permanent Redirect", "verify/", true},
		"308, the whole address": {"308 Permanent Redirect", "http://shop.test/verify/", true},
		"308, other scheme":      {"308 Permanent Redirect", "https://shop.test/verify/", true},
		"308, no scheme":         {"308 Permanent Redirect", "//shop.test/verify/", true},
		"308 elsewhere":          {"308 Permanent Redirect", "https://other.test/verify/", false},
		"200 with a Location":    {"200 OK", "/verify/", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := startChain(t, sandbox.Options{}, smokeSite)
			x.app.Answer(func(rawRequest) string {
				return "HTTP/1.1 " + test.status + "\r\nLocation: " + test.location + "\r\nContent-Length: 0\r\n\r\n"
			})
			c := x.client(t, "h1")
			c.do(t, c.request(t, "GET", "/verify", nil, "Host", "shop.test")) // undecided: nothing to warn of
			x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), "Host", "shop.test") })
			warnings := x.logLines(withLogger("http.handlers.oz_instant"), withField("level", "warn"), having("redirect"))
			if want := map[bool]int{true: 1}[test.warn]; len(warnings) != want {
				t.Errorf("%d warnings, want %d: %v", len(warnings), want, warnings)
			}
		})
	}
}

// TestAttachedPartsHaveNamesOfTheirOwn promises that no best shot hides another: frameworks keep one part of a name.
func TestAttachedPartsHaveNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, "{$SITE} {\n\tlog\n\toz_instant /verify {$OZ} {\n\t\tbest_shot attach\n\t}\n\treverse_proxy {$APP}\n}")
	for fault, want := range map[string][]string{
		"": {"folder", "best_shot"}, "several-best-shots:2": {"folder", "best_shot", "best_shot_2"},
		"several-best-shots:4": {"folder", "best_shot", "best_shot_2", "best_shot_3", "best_shot_4"}, "no-best-shot": {"folder"},
	} {
		t.Run(fault, func(t *testing.T) {
			x.oz.fault(t, fault)
			j := x.observe(t, func() answer {
				return x.client(t, "h1").post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}))
			})
			var names []string
			for _, part := range multipartBody(t, j.app[0]) {
				names = append(names, part.name)
				if part.name != "folder" && (part.filename == "" || part.contentType != "image/jpeg") {
					t.Errorf("%s is %q of %s", part.name, part.filename, part.contentType)
				}
			}
			if !slices.Equal(names, want) {
				t.Errorf("the parts are %q, want %q", names, want)
			}
		})
	}
}
