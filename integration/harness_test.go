package integration_test

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// These tests are of the harness itself, with a Caddy that only proxies: what they promise, every other test relies on.

const plainProxy = `
{$SITE} {
	log
	reverse_proxy {$APP}
}`

func startPlain(t *testing.T, app string) *caddyProc {
	t.Helper()
	return startCaddy(t, plainProxy, withEnv("APP", app))
}

func TestHarnessProtocols(t *testing.T) {
	t.Parallel()
	app := newRawApp(t)
	p := startPlain(t, app.Addr)
	p.eachProtocol(t, func(t *testing.T, c *client) {
		app.Forget()
		a := c.post(t, "/verify?a=b", []byte("body"), "X-Test", "1", "X-Test", "2")
		if a.Status != 200 || string(a.Body) != "seen by the app\n" {
			t.Errorf("got %d %q", a.Status, a.Body)
		}
		r := app.Only(t)
		if r.Line != "POST /verify?a=b HTTP/1.1" || string(r.Body) != "body" || r.Chunked {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		if got := strings.Join(r.Values("x-test"), ","); got != "1,2" {
			t.Errorf("X-Test is %s", got)
		}
		c.postStream(t, "/", strings.NewReader("streamed"))
		if r := app.Last(t); !r.Chunked || string(r.Body) != "streamed" {
			t.Errorf("of a stream the app got:\n%s", r.Raw())
		}
		log := p.waitForLog(t, withLogger("http.log.access"), withField("request.proto", protoNames[c.proto]))
		if log.Get("status").Int() != 200 {
			t.Errorf("logged: %s", log)
		}
	})
}

var protoNames = map[string]string{"h1": "HTTP/1.1", "h2": "HTTP/2.0", "h3": "HTTP/3.0"}

func TestHarnessStreamsAndTrailers(t *testing.T) {
	t.Parallel()
	app, app2 := newRawApp(t), newH2CApp(t)
	p := startCaddy(t, `
{$SITE} {
	reverse_proxy /h2c h2c://{$APP2}
	reverse_proxy {$APP}
}`, withEnv("APP", app.Addr), withEnv("APP2", app2.Addr))
	c := p.client(t, "h2")
	for _, path := range []string{"/", "/h2c"} {
		req := c.postRequest(t, path, strings.NewReader("streamed"), "Host", "elsewhere.example")
		req.ContentLength = -1
		req.Trailer = http.Header{"X-Late": {"yes"}}
		c.do(t, req)
	}
	r := app.Only(t)
	if !r.Chunked || string(r.Body) != "streamed" || strings.Join(r.Trailers, "|") != "X-Late: yes" {
		t.Errorf("the app got:\n%s\n%q", r.Raw(), r.Body)
	}
	if names := r.Names("X_LATE"); len(names) != 1 {
		t.Errorf("names that fold to x-late: %q", names)
	}
	if r.Value("host") != "elsewhere.example" {
		t.Errorf("Host is %q", r.Value("host"))
	}
	if r2 := app2.Only(t); r2.Proto != "HTTP/2.0" || string(r2.Body) != "streamed" || r2.Trailer.Get("X-Late") != "yes" {
		t.Errorf("the h2c app got %+v", r2)
	}
}

func TestHarnessRawClients(t *testing.T) {
	t.Parallel()
	app := newRawApp(t)
	p := startPlain(t, app.Addr)
	for _, dial := range []func(testing.TB) *rawConn{p.dialRaw, p.dialRawTLS} {
		app.Forget()
		conn := dial(t)
		conn.sendHead(t, postHead("/one", -1, "X-Test: \xff")...)
		conn.sendChunk(t, "ab")
		conn.sendChunk(t, "cd")
		conn.sendChunk(t, "")
		conn.sendHead(t, "X-Late: yes")
		// The second request goes out before the first answer comes.
		conn.sendHead(t, append(postHead("/two", 2), "Connection: close")...)
		conn.send(t, "ef")
		one, two := conn.read(t, "POST"), conn.read(t, "POST")
		if one.Status != 200 || two.Status != 200 || two.Header.Get("Connection") != "close" {
			t.Errorf("answers: %+v, %+v", one, two)
		}
		conn.ends(t)
		got := app.Wait(t, 2)
		if string(got[0].Body) != "abcd" || got[0].Value("X-Test") != "\xff" || string(got[1].Body) != "ef" {
			t.Errorf("the app got:\n%s\n%s", got[0].Raw(), got[1].Raw())
		}
	}
}

func TestHarnessRawH2(t *testing.T) {
	t.Parallel()
	app := newRawApp(t)
	p := startPlain(t, app.Addr)
	conn := p.dialRawH2(t)
	conn.sendFields(t, 1, false, postFields("/raw", -1)...)
	check(t, conn.WriteData(1, false, []byte("body")))
	conn.sendFields(t, 1, true, "x-late", "yes")
	if a := conn.read(t, 1); a.Status != 200 || string(a.Body) != "seen by the app\n" {
		t.Errorf("answer: %+v", a)
	}
	if r := app.Only(t); string(r.Body) != "body" {
		t.Errorf("the app got:\n%s", r.Raw())
	}
	conn.sendFields(t, 3, true, postFields("/bad", 0, "Upper", "case")...)
	if a := conn.read(t, 3); !a.IsReset || a.Reset != http2.ErrCodeProtocol {
		t.Errorf("a malformed field was answered with %+v", a)
	}
}

// TestHarnessRawH3 sends fields that no client library sends, over HTTP/3.
func TestHarnessRawH3(t *testing.T) {
	t.Parallel()
	app := newRawApp(t)
	p := startPlain(t, app.Addr)
	conn, _ := p.dialH3(t)
	stream := openFrames(t, conn)
	stream.sendFields(t, postFields("/raw", -1, "x-odd", "a\tb", "x-odd", "\xff")...)
	stream.sendFrame(h3Data, []byte("bo"))
	stream.sendFrame(h3Data, []byte("dy"))
	stream.sendFields(t, "x-late", "yes")
	check(t, stream.Close())
	if a, err := stream.tryRead(); err != nil || a.Status != 200 || string(a.Body) != "seen by the app\n" || a.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("answer: %+v, %v", a, err)
	}
	if r := app.Only(t); string(r.Body) != "body" || r.Value("X-Odd") != "a\tb AND ALSO \xff" {
		t.Errorf("the app got:\n%s", r.Raw())
	}
	bad := openFrames(t, conn)
	bad.sendFields(t, postFields("/bad", 0, "Upper", "case")...)
	if a, err := bad.tryRead(); err == nil && a.Status < 400 {
		t.Errorf("a malformed field was answered with %+v", a)
	}
}

// TestHarnessLongFieldsOverH2 sends more than fits into one frame.
func TestHarnessLongFieldsOverH2(t *testing.T) {
	t.Parallel()
	app := newRawApp(t)
	p := startCaddy(t, "{\n\tservers {\n\t\tmax_header_size 1MB\n\t}\n}"+plainProxy, withEnv("APP", app.Addr))
	conn := p.dialRawH2(t)
	long := strings.Repeat("\\", 20_000) // which HPACK makes no shorter
	conn.sendFields(t, 1, true, postFields("/long", 0, "x-long", long, "x-longer", long)...)
	if a := conn.read(t, 1); a.Status != 200 {
		t.Errorf("answer: %+v", a)
	}
	if r := app.Only(t); r.Value("X-Long") != long || r.Value("X-Longer") != long {
		t.Error("the app got something else")
	}
}

func TestHarnessReload(t *testing.T) {
	t.Parallel()
	app := newRawApp(t)
	p := startPlain(t, app.Addr)
	check(t, p.Reload("{$SITE} {\n\trespond {$APP} 418\n}"))
	if a := p.client(t, "h1").get(t, "/"); a.Status != 418 || string(a.Body) != app.Addr {
		t.Errorf("after the reload: %d %q", a.Status, a.Body)
	}
	if err := p.Reload("{$SITE} {\n\tno_such_directive\n}"); err == nil || !strings.Contains(err.Error(), "no_such_directive") {
		t.Errorf("a bad reload says: %v", err)
	}
	if !strings.Contains(p.Config(t), "418") {
		t.Error("the config is not the one that was loaded last")
	}
	if got := p.Metric(t, `caddy_config_last_reload_successful`); got != 1 {
		t.Errorf("the metric of the last reload is %v", got)
	}
	if !strings.Contains(p.Goroutines(t), "net/http.(*Server).Serve") {
		t.Error("the goroutines are not to be seen")
	}
}

func TestHarnessShowsConfigErrors(t *testing.T) {
	t.Parallel()
	if _, err := adapt(t, ":80 {\n\tno_such_directive\n}"); err == nil || !strings.Contains(err.Error(), "no_such_directive") {
		t.Errorf("adapting says: %v", err)
	}
	if err := validate(t, ":80 {\n\ttls /missing.pem /missing.key\n}"); err == nil || !strings.Contains(err.Error(), "/missing.pem") {
		t.Errorf("validating says: %v", err)
	}
	json, err := adapt(t, "{\n\tgrace_period 3s\n}\n:{$HTTP_PORT} {\n\trespond {$WORD}\n}", withEnv("WORD", "hello"))
	if err != nil || !strings.Contains(json, `"hello"`) || !strings.Contains(json, `"grace_period"`) {
		t.Errorf("adapted to %s, %v", json, err)
	}
}

func TestHarnessCurl(t *testing.T) {
	t.Parallel()
	app := newRawApp(t)
	p := startPlain(t, app.Addr)
	if out := mustCurl(t, "http://"+p.HTTP+"/", "-d", "x=1"); out != "seen by the app\n" {
		t.Errorf("curl got %q", out)
	}
	if r := curl(t, "http://"+deadAddress(t)+"/"); r.Exit != 7 {
		t.Errorf("curl at a dead address: %+v", r)
	}
}

// TestHarnessFindsCanaries leaks secrets in the ways that real ones have leaked.
func TestHarnessFindsCanaries(t *testing.T) {
	t.Parallel()
	secret := []byte("canary \x00 \"of\" ten/bytes+")
	app := newRawApp(t)
	p := startPlain(t, app.Addr)
	mustCurl(t, "http://"+p.HTTP+"/harmless")
	p.assertNoCanary(t, secret)

	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString(append(bytes.Repeat([]byte{'x'}, shift), append(secret, "yy"...)...))
		if _, found := findSecret([]byte(text), secret); !found {
			t.Errorf("not found in %s", text)
		}
	}
	c := p.client(t, "h1")
	c.get(t, "/", "X-Leak", "the-secret-in-a-header")
	p.waitForLog(t, withLogger("http.log.access"), having("the-secret-in-a-header"))
	check(t, os.WriteFile(filepath.Join(p.dir, "spool"), []byte("the-secret-in-a-file"), 0o600))
	for _, secret := range []string{"the-secret-in-a-header", "the-secret-in-a-file"} {
		fake := &recordingTB{TB: t}
		if p.assertNoCanary(fake, []byte(secret)); fake.errors == 0 {
			t.Errorf("%s was not found", secret)
		}
	}
}

// TestHarnessKnowsTrouble shows stop what would make it fail a test, and what would not.
func TestHarnessKnowsTrouble(t *testing.T) {
	for line, bad := range map[string]bool{
		"WARNING: DATA RACE": true,
		raceBetween("caddyhttp.(*Server).logRequest()", "caddyhttp.(*lengthReader).Read()"):                   false,
		raceBetween("caddyhttp.(*Server).logRequest()", "x/caddymodule.(*capsule).Read()"):                    true,
		raceBetween("caddyhttp.a()", "caddyhttp.b()") + raceBetween("x/caddymodule.a()", "x/caddymodule.b()"): true,
		"panic: runtime error: index out of range [3] with length 3":                                          true,
		`{"level":"debug","msg":"http: panic serving 127.0.0.1:1: boom\ngoroutine 7"}`:                        true,
		`{"level":"error","msg":"aborting with incomplete response","error":"EOF"}`:                           false,
		`{"level":"info","logger":"http.log.access","request":{"uri":"/don't-panic"}}`:                        false,
	} {
		if found := findTrouble(line); (found != "") != bad {
			t.Errorf("%s: found %q", line, found)
		}
	}
}

// raceBetween is a report of the race detector, and a race of another kind after it is another report.
func raceBetween(calls ...string) string {
	return "==================\nWARNING: DATA RACE\n" + strings.Join(calls, "\n") + "\n==================\n"
}

// recordingTB counts errors instead of failing.
type recordingTB struct {
	testing.TB
	errors int
}

func (r *recordingTB) Errorf(string, ...any) { r.errors++ }
