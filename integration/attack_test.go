package integration_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/demo"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// attackSite is the module in front of an app.
const attackSite = `
{$SITE} {
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
}`

// attack runs the kit against a site, as fast as it gets.
func attack(t testing.TB, args ...string) command {
	t.Helper()
	return runCaddy(t, "", nil, append([]string{"oz-instant", "attack", "--path", "/verify", "--rate", "2000", "--requests", "2000"}, args...)...)
}

// rowsIn returns the rows of a JSON report that are in a state.
func rowsIn(t testing.TB, report, state string) (rows []string) {
	t.Helper()
	if !gjson.Valid(report) || len(gjson.Get(report, "rows").Array()) == 0 {
		t.Fatalf("no report: %s", report)
	}
	for _, row := range gjson.Get(report, "rows").Array() {
		if row.Get("state").Str == state {
			rows = append(rows, row.Get("row").Str)
		}
	}
	return rows
}

// assertBroken fails the test unless exactly these rows are broken, all others hold, and the exit code says so.
func assertBroken(t testing.TB, got command, want ...string) {
	t.Helper()
	broken := rowsIn(t, got.Out, "broken")
	if !slices.Equal(broken, want) || len(broken)+len(rowsIn(t, got.Out, "holds")) != len(gjson.Get(got.Out, "rows").Array()) {
		t.Errorf("broken: %q\nwant %q, and all others to hold\n%s", broken, want, got.Out)
	}
	wantExit := 0
	if len(want) > 0 {
		wantExit = 1
	}
	if got.Exit != wantExit || gjson.Get(got.Out, "holds").Bool() != (wantExit == 0) || gjson.Get(got.Out, "why_not").Exists() {
		t.Errorf("exit %d, want %d\n%s", got.Exit, wantExit, got.Err)
	}
}

func demoAddr(t testing.TB) string {
	t.Helper()
	app := httptest.NewServer(demo.New(demo.Options{}))
	t.Cleanup(app.Close)
	return app.Listener.Addr().String()
}

// TestAttackHolds promises that behind this module nothing breaks, over TLS and HTTP/2; that the kit announces itself first; and a line
// for each row with an advisory to look up.
func TestAttackHolds(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{})
	sealed := strings.Replace(attackSite, "{$OZ}", "{$OZ} {\n\t\tseal {\n\t\t\taudience app\n\t\t}\n\t}", 1)
	p := startCaddy(t, sealed, withEnv("OZ", oz.URL), withEnv("APP", demoAddr(t)))
	got := attack(t, "--to", "https://localhost:"+port(p.HTTPS), "--ca", p.cert.certFile, "--sandbox", oz.URL)
	if got.Exit != 0 || strings.Contains(got.Out, "BROKEN") || strings.Contains(got.Err, "Error") {
		t.Errorf("exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
	if line := missing("Attack on https://localhost … at most … requests\nGenuine capsules: made by the sandbox\nHOLDS  forged decision … CVE-2026-30851\n"+
		"HOLDS  upgrade to h2c\nHOLDS  header flood, DECLINED\n200 application/json\n0 are broken, 0 were not tried", got.Out); line != "" {
		t.Errorf("%q is not in\n%s", line, got.Out)
	}
	if n := len(p.logLines(withMsg("capsule decided"))); n < 20 {
		t.Errorf("only %d capsules were decided", n)
	}
}

// port returns the port of an address.
func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// signedInSite asks everybody for a cookie first.
const signedInSite = `
{$SITE} {
	@stranger not header Cookie session=alice
	respond @stranger 401
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
}`

// TestAttackFindsReplays promises that the kit notices an Oz that takes a capsule twice, also behind a sign-in.
func TestAttackFindsReplays(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{ReuseTokens: true})
	p := startCaddy(t, signedInSite, withEnv("OZ", oz.URL), withEnv("APP", demoAddr(t)))
	args := []string{"--to", "http://" + p.HTTP, "--sandbox", oz.URL, "--json"}
	if got := attack(t, args...); got.Exit != 2 || gjson.Get(got.Out, "why_not").Str == "" {
		t.Errorf("without a sign-in: exit %d\n%s", got.Exit, got.Out)
	}
	assertBroken(t, attack(t, append(args, "--header", "Cookie: session=alice")...), "replay", "replay at once")
}

// TestAttackFindsForwardAuth promises that the kit finds the holes of a plain Caddy that asks a service by forward_auth: requests that
// aren't capsules are not asked about and keep the client's header, and a client can have the decision deleted.
func TestAttackFindsForwardAuth(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{})
	auth := httptest.NewServer(authBy(oz.URL))
	t.Cleanup(auth.Close)
	p := startCaddy(t, `
{$SITE} {
	route {
		@capsule {
			method POST
			path /verify
			header Content-Type application/octet-stream
		}
		forward_auth @capsule {$AUTH} {
			uri /auth
			method POST
			copy_headers X-Oz-Decision
		}
		request_body @capsule {
			set "{}"
		}
		reverse_proxy {$APP}
	}
}`, withEnv("AUTH", auth.URL), withEnv("APP", demoAddr(t)))
	assertBroken(t, attack(t, "--to", "http://"+p.HTTP, "--sandbox", oz.URL, "--json"),
		"forged decision", "case of a name", "odd values", "header flood", "steering headers", "health checks", "spellings of the path",
		"malformed requests", "lying lengths", "pipelined requests", "CONNECT", "other upgrades", "Connection, SUCCESS")
}

// authBy returns a service as one would write it by hand: it has Oz judge the capsule, and answers with the decision in a header.
func authBy(oz string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		capsule, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, "unreadable", http.StatusBadRequest)
			return
		}
		resp, err := http.Post(oz+sandbox.FoldersPath, "application/octet-stream", bytes.NewReader(capsule))
		if err != nil {
			http.Error(w, "no answer", http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		folder, _ := io.ReadAll(resp.Body)
		if decision := gjson.GetBytes(folder, "system_resolution").Str; resp.StatusCode == http.StatusCreated {
			w.Header().Set("X-Oz-Decision", decision)
			return
		}
		w.WriteHeader(http.StatusBadRequest)
	})
}

// TestAttackWithOneCapsule promises that one capsule is enough for most rows, and that the rows that need more don't pass.
func TestAttackWithOneCapsule(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{})
	p := startCaddy(t, attackSite, withEnv("OZ", oz.URL), withEnv("APP", demoAddr(t)))
	file := filepath.Join(t.TempDir(), "capsule.bin")
	check(t, os.WriteFile(file, oz.Capsule(sandbox.CapsuleSpec{}), 0o600))
	got := attack(t, "--to", "http://"+p.HTTP, "--capsule", file, "--json")
	want := []string{
		"replay at once", "Connection, SUCCESS", "header flood, SUCCESS", "forged decision, DECLINED", "Connection, DECLINED",
		"trailers, DECLINED", "header flood, DECLINED",
	}
	if untried := rowsIn(t, got.Out, "not tried"); got.Exit != 2 || !slices.Equal(untried, want) || len(rowsIn(t, got.Out, "broken")) > 0 {
		t.Errorf("exit %d, not tried %q\n%s%s", got.Exit, untried, got.Out, got.Err)
	}
	// It is spent now, and nothing can be learnt from it.
	got = attack(t, "--to", "http://"+p.HTTP, "--capsule", file)
	if got.Exit != 2 || !strings.Contains(got.Out, "This run could not tell") || strings.Contains(got.Out, "HOLDS") {
		t.Errorf("exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
}

// TestAttackMistakes promises an error for flags that make no sense, before a request is sent.
func TestAttackMistakes(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--to", "localhost:8080", "--sandbox", "http://127.0.0.1:1"},
		{"--to", "http://user:secret@localhost", "--sandbox", "http://127.0.0.1:1"},
		{"--to", "http://127.0.0.1:1", "--sandbox", "http://127.0.0.1:1", "--rate", "0"},
		{"--to", "http://127.0.0.1:1", "--capsule", "/does/not/exist"},
		{"--to", "http://127.0.0.1:1/verify", "--sandbox", "http://127.0.0.1:1"},
		{"--to", "http://127.0.0.1:1", "--sandbox", "http://127.0.0.1:1", "--header", "Authorization secret"},
		{"--to", "http://127.0.0.1:1", "--sandbox", "http://127.0.0.1:1", "--header", "Authorization: secret\r\nX: y"},
		{"--to", "http://127.0.0.1:1"},
	} {
		got := attack(t, args...)
		if got.Exit != 1 || strings.Contains(got.Out+got.Err, "secret") || strings.Contains(got.Out, "Attack on") {
			t.Errorf("%q: exit %d\n%s%s", args, got.Exit, got.Out, got.Err)
		}
	}
}
