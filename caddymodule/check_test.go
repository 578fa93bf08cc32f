package caddymodule

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// goodOz answers as Oz does when all is well; wrong changes that.
type goodOz struct {
	wrong map[string]http.HandlerFunc // by method and path
}

func (o goodOz) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f, ok := o.wrong[r.Method+" "+r.URL.Path]; ok {
		f(w, r)
		return
	}
	switch r.Method + " " + r.URL.Path {
	case "GET /api/authorize/session_token":
		_, _ = fmt.Fprintf(w, `{"session_token": "%s"}`, jwt(`{"alg":"ES384"}`, `{"iat":1000,"exp":1900}`))
	case "POST /api/instant/folders/":
		body, _ := io.ReadAll(r.Body)
		switch {
		case len(body) == 0:
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"error_code": 13}`)
		case string(body) == "capsule":
			w.WriteHeader(201)
			_, _ = io.WriteString(w, success())
		default:
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"error_code": 14}`)
		}
	default:
		http.NotFound(w, r)
	}
}

func jwt(header, claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(header)) + "." + encode([]byte(claims)) + ".c2ln"
}

// checked runs `caddy oz-instant check --json`.
func checked(t *testing.T, args ...string) ([]report, error) {
	t.Helper()
	cmd := checkCommand()
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors = true
	cmd.SetArgs(append(args, "--json"))
	cmd.SetContext(t.Context())
	err := cmd.Execute()
	var doc struct {
		Well      bool
		Upstreams []report
	}
	if strings.HasPrefix(out.String(), "{") {
		if jsonErr := json.Unmarshal([]byte(out.String()), &doc); jsonErr != nil {
			t.Fatalf("%v in %s", jsonErr, out.String())
		}
		if doc.Well != (err == nil) {
			t.Errorf("well %v, and the command ended with %v", doc.Well, err)
		}
	}
	return doc.Upstreams, err
}

// states is each check's name and state, one a line.
func (r report) states() string {
	var all []string
	for _, c := range r.Checks {
		all = append(all, c.Name+" "+string(c.State))
	}
	return strings.Join(all, "\n")
}

func TestCheckAllWell(t *testing.T) {
	server := httptest.NewServer(goodOz{})
	t.Cleanup(server.Close)
	capsule := filepath.Join(t.TempDir(), "capsule.bin")
	if err := os.WriteFile(capsule, []byte("capsule"), 0o600); err != nil {
		t.Fatal(err)
	}
	reports, err := checked(t, "--to", server.URL, "--capsule", capsule)
	if err != nil || len(reports) != 1 || !reports[0].Well {
		t.Fatalf("%v, %+v", err, reports)
	}
	const want = "configuration ok\nconnection ok\nsession token ok\nempty capsule ok\ngarbage capsule ok\ncapsule ok"
	if got := reports[0].states(); got != want {
		t.Errorf("%s", got)
	}
	details := map[string]string{
		"session token": "JWT, ES384, good for 900 s", "empty capsule": "400, error_code 13, as it should be",
		"garbage capsule": "400, error_code 14, as it should be", "capsule": "oz answered 201 of 7 B: SUCCESS, answer of",
	}
	for _, c := range reports[0].Checks {
		if !strings.HasPrefix(c.Detail, details[c.Name]) || c.Advice != "" {
			t.Errorf("%s: %q, advice %q", c.Name, c.Detail, c.Advice)
		}
	}
}

// Each thing that is wrong turns its own line red, with advice; what needs it
// is not tried.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	status := func(code int, doc string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, doc)
		}
	}
	const token, folders = "GET /api/authorize/session_token", "POST /api/instant/folders/"
	for _, test := range []struct {
		name   string
		wrong  map[string]http.HandlerFunc
		states string
		detail string // of the first that failed
		advice string
	}{
		{
			"session tokens forbidden", map[string]http.HandlerFunc{token: status(403, "")},
			"configuration ok\nconnection ok\nsession token failed\nempty capsule ok\ngarbage capsule ok", "403", "access_token or credentials",
		},
		{
			"a page for all", map[string]http.HandlerFunc{token: status(200, "<html>"), folders: status(200, "<html>")},
			"configuration ok\nconnection ok\nsession token failed\nempty capsule failed\ngarbage capsule failed", "", "not Oz",
		},
		{
			"wrong base path", map[string]http.HandlerFunc{folders: http.NotFound},
			"configuration ok\nconnection ok\nsession token ok\nempty capsule failed\ngarbage capsule failed", "oz answered 404, want 400 with error_code 13", "base path",
		},
		{
			"accepts everything", map[string]http.HandlerFunc{folders: status(201, success())},
			"configuration ok\nconnection ok\nsession token ok\nempty capsule failed\ngarbage capsule failed", "oz answered 201, want 400 with error_code 13", "no proxy in between",
		},
		{
			"another code", map[string]http.HandlerFunc{folders: status(400, `{"error_code": 13}`)},
			"configuration ok\nconnection ok\nsession token ok\nempty capsule ok\ngarbage capsule failed", "oz answered 400, error_code 13, want 400 with error_code 14", "6.6.1",
		},
		{
			"closes", map[string]http.HandlerFunc{folders: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
			"configuration ok\nconnection ok\nsession token ok\nempty capsule failed\ngarbage capsule failed", "", "closed the connection without an answer",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := httptest.NewServer(goodOz{test.wrong})
			t.Cleanup(server.Close)
			reports, err := checked(t, "--to", server.URL)
			if !errors.Is(err, errNotWell) || len(reports) != 1 {
				t.Fatalf("%v, %+v", err, reports)
			}
			if got := reports[0].states(); got != test.states {
				t.Errorf("%s", got)
			}
			for _, c := range reports[0].Checks {
				if c.State == stateFailed {
					if !strings.Contains(c.Detail, test.detail) || !strings.Contains(c.Advice, test.advice) {
						t.Errorf("%s: %q, advice %q", c.Name, c.Detail, c.Advice)
					}
					break
				}
			}
		})
	}
}

func TestCheckNobodyThere(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	reports, err := checked(t, "--to", "http://"+listener.Addr().String(), "--email", "a@b.c", "--password", "p")
	if !errors.Is(err, errNotWell) {
		t.Fatal(err)
	}
	const want = "configuration ok\nconnection failed\nlog-in skipped\nsession token skipped\nempty capsule skipped\ngarbage capsule skipped"
	if got := reports[0].states(); got != want || !strings.Contains(reports[0].Checks[1].Advice, "port 8080") {
		t.Errorf("%s, %+v", got, reports[0])
	}
	reports, err = checked(t, "--to", "http://127.0.0.1", "--access-token", "{env.NOT_SET_ANYWHERE}")
	if got := reports[0].states(); !errors.Is(err, errNotWell) || !strings.HasPrefix(got, "configuration failed\nsession token skipped\n") {
		t.Errorf("%v, %s", err, got)
	}
}

// The upstreams of a block are looked at one by one, each with its own line.
func TestCheckConfigOfSeveral(t *testing.T) {
	well, sick := httptest.NewServer(goodOz{}), httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(well.Close)
	t.Cleanup(sick.Close)
	file := filepath.Join(t.TempDir(), "caddy.json")
	config := fmt.Sprintf(`{"handler": "oz_instant", "reverse_proxy": {"upstreams": [{"dial": "%s"}, {"dial": "%s"}]}}`,
		well.Listener.Addr(), sick.Listener.Addr())
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	reports, err := checked(t, "--config", file)
	if !errors.Is(err, errNotWell) || len(reports) != 2 || !reports[0].Well || reports[1].Well || reports[1].To != sick.Listener.Addr().String() {
		t.Errorf("%v, %+v", err, reports)
	}
}

func TestCheckMistakes(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.bin")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"is not a URL":                         {"--to", "oz.internal"},
		"empty.bin is empty":                   {"--to", "http://127.0.0.1", "--capsule", empty},
		"[to config]":                          {},
		"[email password]":                     {"--to", "http://127.0.0.1", "--email", "a@b.c"},
		"[access-token email] were all set":    {"--to", "http://127.0.0.1", "--email", "a@b.c", "--password", "p", "--access-token", "t"},
		`unknown command "more" for "check"`:   {"--to", "http://127.0.0.1", "more"},
		"open no-such-file: no such file or d": {"--to", "http://127.0.0.1", "--capsule", "no-such-file"},
	} {
		if _, err := checked(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", args, err, want)
		}
	}
}

func TestOzAt(t *testing.T) {
	for to, want := range map[string]struct{ dial, path, transport string }{
		"http://oz":                {"oz:80", "", ""},
		"http://oz/":               {"oz:80", "", ""},
		"https://oz/base":          {"oz:443", "/base", `{"protocol":"http","tls":{}}`},
		"https://oz/base/":         {"oz:443", "/base", `{"protocol":"http","tls":{}}`},
		"http://[::1]:8080":        {"[::1]:8080", "", ""},
		"https://oz.internal:8443": {"oz.internal:8443", "", `{"protocol":"http","tls":{}}`},
	} {
		o, err := ozAt(to)
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		if dial := o.ReverseProxy.Upstreams[0].Dial; dial != want.dial || o.BasePath != want.path || string(o.ReverseProxy.TransportRaw) != want.transport {
			t.Errorf("%s: %s, %s, %s", to, dial, o.BasePath, o.ReverseProxy.TransportRaw)
		}
	}
	for _, to := range []string{"", "oz", "//oz", "ftp://oz", "http://", "http://oz:port", "unix//run/oz.sock", "http://user:secret@oz", "http://oz?a=b", "http://oz#a"} {
		if _, err := ozAt(to); err == nil {
			t.Errorf("%q was taken", to)
		}
	}
}

func TestAboutToken(t *testing.T) {
	for token, want := range map[string]string{
		jwt(`{"alg":"ES384"}`, `{"iat":1000,"exp":1900}`): "JWT, ES384, good for 900 s",
		jwt(`{"alg":"HS256"}`, `{}`):                      "JWT, HS256, no expiry",
		"opaque":                                          "opaque, 6 characters",
		"a.b.c":                                           "opaque, 5 characters",
	} {
		if got := aboutToken(token); got != want {
			t.Errorf("%s: %s, want %s", token, got, want)
		}
	}
}

// A step that takes too long ends, and is red.
func TestCheckStepsEnd(t *testing.T) {
	c := checker{timeout: time.Millisecond}
	if c.step(t.Context(), "slow", func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", advise(context.Cause(ctx), "wait for %s", "nobody")
	}) {
		t.Error("it went well")
	}
	if got := c.checks[0]; got.State != stateFailed || got.Advice != "wait for nobody" || got.Detail != errOzTimeout.Error() {
		t.Errorf("%+v", got)
	}
}

// The table for people has a line for each check, and the advice below it.
func TestReportForPeople(t *testing.T) {
	r := report{To: "http://oz", Checks: []check{
		{Name: "connection", State: stateOK, Detail: "127.0.0.1:80", MS: 3},
		{Name: "session token", State: stateFailed, Detail: "403", Advice: "Ask for one.", MS: 12},
		{Name: "empty capsule", State: stateSkipped, Detail: "not tried"},
	}}
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	const want = `http://oz
  ok      connection     3 ms   127.0.0.1:80
  FAILED  session token  12 ms  403
                                → Ask for one.
  -       empty capsule  0 ms   not tried
`
	if out.String() != want {
		t.Errorf("%s", out.String())
	}
}
