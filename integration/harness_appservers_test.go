package integration_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	goexample "github.com/oz-instant/caddy-oz-instant/integration/examples/apps/go"
	goverifier "github.com/oz-instant/caddy-oz-instant/integration/examples/verify/go/verifier"
)

// appReport is what an app of integration/appservers says that it saw of a request.
type appReport struct {
	decision gjson.Result // what its usual way to read X-Oz-Decision gave it
	fields   [][2]string  // all it has, in each of the places where it has them; names in lower case, all but letters and digits as hyphens
	document gjson.Result // what its own JSON reader found in the body
	failure  string       // or why it found nothing
}

// readReport reads the app's answer.
func readReport(t testing.TB, a answer) (r appReport) {
	t.Helper()
	if a.Status != 200 || !gjson.ValidBytes(a.Body) {
		t.Fatalf("got %d %.2000s", a.Status, a.Body)
	}
	all := gjson.ParseBytes(a.Body)
	for _, field := range all.Get("fields").Array() {
		r.fields = append(r.fields, [2]string{field.Get("0").Str, field.Get("1").Str})
	}
	r.decision, r.document, r.failure = all.Get("decision"), all.Get("document"), all.Get("failure").Str
	return r
}

// values returns all values of a field that the app has, in whatever place.
func (r appReport) values(name string) (values []string) {
	for _, field := range r.fields {
		if field[0] == name {
			values = append(values, field[1])
		}
	}
	return values
}

// appServers is the folder of the apps.
func appServers(t testing.TB) string {
	t.Helper()
	root, err := caddybin.Root()
	check(t, err)
	return filepath.Join(root, "integration", "appservers")
}

// startProgram runs a program in a folder until the test ends, with that in its environment, and returns when it listens at an address.
func startProgram(t testing.TB, env []string, network, address, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	home := t.TempDir()
	cmd.Dir = appServers(t)
	cmd.Env = []string{"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH"), "PYTHONDONTWRITEBYTECODE=1"}
	cmd.Env = append(cmd.Env, env...)
	book := newLogBook()
	cmd.Stdout, cmd.Stderr = book, book
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = patience / 4
	dieWithTests(cmd, syscall.SIGTERM)
	check(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() { <-ended }) // the context of the test has ended by now
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial(network, address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %v\n%s", name, cmd.ProcessState, book)
		default:
		}
		if time.Since(start) > startPatience {
			t.Fatalf("%s does not listen: %v\n%s", name, err, book)
		}
	}
}

// phpFPM returns the path of PHP-FPM, whose name has a version on Debian.
func phpFPM(t testing.TB) string {
	t.Helper()
	if found, _ := filepath.Glob("/usr/sbin/php-fpm*"); len(found) > 0 {
		return found[0]
	}
	return program(t, "php-fpm")
}

// startPHP runs PHP-FPM and returns its socket.
func startPHP(t testing.TB, env []string) string {
	t.Helper()
	fpm, dir := phpFPM(t), t.TempDir()
	socket, config := filepath.Join(dir, "s"), filepath.Join(dir, "fpm.conf")
	check(t, os.WriteFile(config, []byte("[global]\ndaemonize = no\nerror_log = /dev/stderr\n[www]\nlisten = "+socket+"\npm = static\npm.max_children = 2\nclear_env = no\n"), 0o600))
	startProgram(t, env, "unix", socket, fpm, "--nodaemonize", "--allow-to-run-as-root", "--fpm-config", config)
	return socket
}

// goFolder is the folder as an app in Go reads it.
type goFolder struct {
	SystemResolution any `json:"system_resolution"`
	ResolutionStatus any `json:"resolution_status"`
	FolderID         any `json:"folder_id"`
	MetaData         any `json:"meta_data"`
	Analyses         any `json:"analyses"`
}

// goApp is the app in Go: what it reads, it reads by encoding/json, which ignores case. The example is in it, too.
func goApp(t testing.TB, jwks string) string {
	t.Helper()
	example := goexample.Verify(&goverifier.Verifier{JWKS: jwks, Audience: exampleAudience, CoolDown: time.Minute, MaxAge: time.Hour}, userInCookie)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/example/go" {
			example(w, r)
			return
		}
		var folder goFolder
		var meta struct {
			EventSessionID any `json:"event_session_id"`
		}
		var analyses []struct {
			Type             any `json:"type"`
			ResolutionStatus any `json:"resolution_status"`
		}
		report := map[string]any{"decision": r.Header.Get("X-Oz-Decision")}
		body, err := io.ReadAll(r.Body)
		check(t, err)
		if err := json.Unmarshal(body, &folder); err != nil {
			report["failure"] = err.Error()
		}
		again := func(part, into any) {
			text, err := json.Marshal(part)
			check(t, err)
			json.Unmarshal(text, into) // what is of another kind has none of it
		}
		again(folder.MetaData, &meta)
		again(folder.Analyses, &analyses)
		var quality []any
		for _, analysis := range analyses {
			if analysis.Type == "QUALITY" {
				quality = append(quality, analysis.ResolutionStatus)
			}
		}
		document := map[string]any{
			"system_resolution": folder.SystemResolution, "resolution_status": folder.ResolutionStatus, "folder_id": folder.FolderID, "event_session_id": meta.EventSessionID,
		}
		if len(quality) == 1 {
			document["quality"] = quality[0]
		}
		var fields [][2]string
		for name, values := range r.Header {
			for _, value := range values {
				fields = append(fields, [2]string{foldName(name), value})
			}
		}
		report["fields"], report["document"] = fields, document
		json.NewEncoder(w).Encode(report)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// userInCookie stands in for an app's own sign-in.
func userInCookie(r *http.Request) string {
	cookie, err := r.Cookie("user")
	if err != nil {
		return ""
	}
	return cookie.Value
}

// isWord reports whether a text of Oz's may stand in one of our headers.
var isWord = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`).MatchString
