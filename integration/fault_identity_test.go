package integration_test

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// byName is one address at which two instances of Oz are told apart by Host, by the name that TLS asks for, or by their path.
func byName(t testing.TB, options sandbox.Options) (plain, overTLS string, one, two *sandbox.Sandbox) {
	t.Helper()
	one, err := sandbox.New(options)
	check(t, err)
	two, err = sandbox.New(options)
	check(t, err)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := r.Host + r.URL.Path
		if r.TLS != nil {
			asked = r.TLS.ServerName
		}
		switch {
		case strings.HasPrefix(asked, "one.internal"):
			one.ServeHTTP(w, r)
		case strings.HasPrefix(asked, "two.internal"):
			two.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/one/"):
			http.StripPrefix("/one", one).ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/two/"):
			http.StripPrefix("/two", two).ServeHTTP(w, r)
		default:
			http.Error(w, "no such instance", http.StatusBadGateway)
		}
	})
	server, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	t.Cleanup(secure.Close)
	t.Cleanup(one.Close)
	t.Cleanup(two.Close)
	return server.URL, secure.URL, one, two
}

// testAccountBelongsToOneOz promises that the access token of one Oz is never sent to another, also where both share an address:
// each gets a log-in of its own.
func testAccountBelongsToOneOz(t *testing.T) {
	t.Parallel()
	tlsName := func(name string) string {
		return "transport http {\n\t\t\ttls_insecure_skip_verify\n\t\t\ttls_server_name " + name + ".internal\n\t\t}"
	}
	for name, lines := range map[string][2]string{
		"Host":              {"header_up Host one.internal", "header_up Host two.internal"},
		"Host, placeholder": {"header_up Host {env.ONE}", "header_up Host {env.TWO}"},
		"base_path":         {"base_path /one", "base_path /two"},
		"TLS name":          {tlsName("one"), tlsName("two")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, secure, one, two := byName(t, accountOptions())
			if name == "TLS name" {
				url = secure
			}
			app := newRawApp(t)
			x := &chain{caddyProc: startCaddy(t, `
{$SITE} {
	log
	oz_instant /one {$OZ} {
		session_token /one_token
		credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}
		`+lines[0]+`
		capacity {
			slots 1
			queue 0
		}
	}
	oz_instant /two {$OZ} {
		session_token /two_token
		credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}
		`+lines[1]+`
		capacity {
			slots 1
			queue 0
		}
	}
	reverse_proxy {$APP}
}`, append([]caddyOption{withEnv("OZ", url), withEnv("APP", app.Addr), withEnv("ONE", "one.internal"), withEnv("TWO", "two.internal")}, withAccount...)...), app: app}
			c := x.client(t, "h1")
			for range 2 {
				for path, oz := range map[string]*sandbox.Sandbox{"/one": one, "/two": two} {
					if a := c.post(t, path, oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
						t.Errorf("%s: got %d %s", path, a.Status, a.Body)
					}
					if a := c.get(t, path+"_token"); a.Status != 200 {
						t.Errorf("%s_token: got %d %s", path, a.Status, a.Body)
					}
				}
			}
			for name, oz := range map[string]*sandbox.Sandbox{"one": one, "two": two} {
				if n := oz.Stats().Logins; n != 1 {
					t.Errorf("%s saw %d log-ins, want 1", name, n)
				}
			}
			digests := map[string]string{}
			for _, r := range one.Requests() {
				digests[r.TokenDigest] = "one"
			}
			for _, r := range two.Requests() {
				if r.TokenDigest != "" && digests[r.TokenDigest] != "" {
					t.Error("the token of one was sent to two")
				}
			}

			// One is busy, two is not.
			one.SetFault(sandbox.MustFault("hang"))
			var all sync.WaitGroup
			all.Go(func() { c.try(c.postRequest(t, "/one", bytes.NewReader(one.Capsule(sandbox.CapsuleSpec{})))) })
			(&ozServer{Sandbox: one}).await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
			assertBusy(t, c.post(t, "/one", one.Capsule(sandbox.CapsuleSpec{})))
			if a := c.post(t, "/two", two.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
				t.Errorf("two: got %d %s", a.Status, a.Body)
			}
			one.SetFault(sandbox.Fault{})
			all.Wait()
		})
	}
}

// testAccountsAreApart promises that of two accounts at one Oz each block uses its own.
func testAccountsAreApart(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{Accounts: map[string]string{"one@example.com": "password-of-one", "two@example.com": "password-of-two"}}, `
{$SITE} {
	log
	oz_instant /one {$OZ} {
		credentials one@example.com password-of-one
	}
	oz_instant /two {$OZ} {
		credentials two@example.com password-of-two
	}
	reverse_proxy {$APP}
}`)
	c := x.client(t, "h1")
	tokens := map[string]string{}
	for range 2 {
		for _, path := range []string{"/one", "/two"} {
			x.oz.quiet(t)
			x.oz.Forget()
			if a := c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
				t.Fatalf("%s: got %d %s", path, a.Status, a.Body)
			}
			token := x.oz.RequestsOn(sandbox.OnFolders)[0].TokenDigest
			if tokens[path] != "" && tokens[path] != token {
				t.Errorf("%s has another token than before", path)
			}
			tokens[path] = token
		}
	}
	if tokens["/one"] == tokens["/two"] || tokens["/one"] == "" {
		t.Errorf("the tokens are %v, want two", tokens)
	}
}

// testCapacityBelongsToOneOz promises that blocks that reach different instances need not agree on capacity, and that blocks that
// reach the same one must.
func testCapacityBelongsToOneOz(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		one, two string
		same     bool
	}{
		"Host":            {"header_up Host one", "header_up Host two", false},
		"Host and none":   {"header_up Host one", "", false},
		"base_path":       {"base_path /one", "base_path /two", false},
		"base_path, none": {"base_path /one", "", false},
		"TLS name":        {"transport http {\n tls\n tls_server_name one\n}", "transport http {\n tls\n tls_server_name two\n}", false},
		"address":         {"to http://other:80", "", false},
		"nothing":         {"", "", true},
		"the same Host":   {"header_up Host one", "header_up Host one", true},
		"timeouts":        {"timeout 3s", "timeout 4s", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			block := func(path, line, slots string) string {
				return "\toz_instant " + path + " {\n\t\tto http://oz:80\n\t\t" + line + "\n\t\tcapacity {\n\t\t\tslots " + slots + "\n\t\t}\n\t}\n"
			}
			if strings.Contains(test.one, "transport") {
				block = func(path, line, slots string) string {
					return "\toz_instant " + path + " oz:443 {\n\t\t" + line + "\n\t\tcapacity {\n\t\t\tslots " + slots + "\n\t\t}\n\t}\n"
				}
			}
			err := validate(t, "{$SITE} {\n"+block("/one", test.one, "1")+block("/two", test.two, "2")+"}")
			if (err != nil) != test.same {
				t.Errorf("loading says %v", err)
			}
		})
	}
}

// TestFailedFolderSaysNothingOfTheToken promises that the error code of an analysis, whatever its number, does not cost the access
// token: only an answer that is not a folder speaks of it.
func TestFailedFolderSaysNothingOfTheToken(t *testing.T) {
	t.Parallel()
	sb, err := sandbox.New(accountOptions())
	check(t, err)
	var mu sync.Mutex
	code := "6"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != sandbox.FoldersPath {
			sb.ServeHTTP(w, r)
			return
		}
		io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"folder_id":"0d4e7d6c-91b5-4b4c-8b9b-0d2f7a9f8a11","resolution_status":"FAILED","system_resolution":"FAILED",`+
			`"analyses":[{"type":"QUALITY","state":"FAILED","resolution_status":"FAILED","resolution":"FAILED","error_code":`+code+`,"error_message":"Expired token"}]}`)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(sb.Close)
	app := newRawApp(t)
	x := startCaddy(t, accountSite, append([]caddyOption{withEnv("OZ", server.URL), withEnv("APP", app.Addr)}, withAccount...)...)
	c := x.client(t, "h1")
	for _, n := range []string{"6", "7", "8", "9", `"7"`, "6"} {
		mu.Lock()
		code = n
		mu.Unlock()
		app.Forget()
		if a := c.post(t, "/verify", []byte("capsule")); a.Status != 200 {
			t.Fatalf("code %s: got %d %s", n, a.Status, a.Body)
		}
		if r := app.Only(t); r.Value("X-Oz-Decision") != "FAILED" {
			t.Errorf("code %s: the app got\n%s", n, r.Raw())
		}
	}
	if n := sb.Stats().Logins; n != 1 {
		t.Errorf("%d log-ins, want 1", n)
	}
}

// TestFailedLoadLeavesNoUpstream promises that what a config that does not load would have used is not listed as in use.
func TestFailedLoadLeavesNoUpstream(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	for name, options := range map[string]string{
		"bad health_body":     "health_uri /ok\n health_body \"(\"",
		"no access_token":     "access_token {env.NOT_SET}",
		"too little memory":   "capacity {\n memory 1MiB\n}",
		"missing certificate": "transport http {\n tls\n tls_client_auth /missing.pem /missing.key\n}",
	} {
		t.Run(name, func(t *testing.T) {
			ghost := deadAddress(t)
			err := x.Reload("{$SITE} {\n\toz_instant /ok " + ghost + "\n\toz_instant /verify " + ghost + " {\n\t\t" + options + "\n\t}\n}")
			if err == nil {
				t.Fatal("it loads")
			}
			if _, port, _ := net.SplitHostPort(ghost); strings.Contains(x.AdminGet(t, "/reverse_proxy/upstreams"), ":"+port) {
				t.Errorf("still listed: %s", x.AdminGet(t, "/reverse_proxy/upstreams"))
			}
		})
	}
	if list := x.AdminGet(t, "/reverse_proxy/upstreams"); !strings.Contains(list, x.oz.Addr) {
		t.Errorf("of what runs there is nothing in %s", list)
	}
	x.mustServe(t)
}

// mustServe fails the test unless a capsule is served.
func (x *chain) mustServe(t testing.TB) {
	t.Helper()
	x.wantServed(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}))
}
