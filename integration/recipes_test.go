package integration_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// recipes are the Caddyfiles of integration/examples/recipes, and what each of them promises. A test gets the text as it stands in the file.
var recipes = map[string]func(t *testing.T, text string){
	"basic-auth": recipeBasicAuth, "cdn": recipeCDN, "cors": recipeCORS, "forward-auth": recipeForwardAuth, "limits": recipeLimits,
	"mtls": recipeMTLS, "php": recipePHP, "regions": recipeRegions, "review": recipeReview, "sidecar": recipeSidecar, "spa": recipeSPA,
	"tenants": recipeTenants,
}

// TestRecipes promises that each recipe does what it is for, and withstands the attack on it.
func TestRecipes(t *testing.T) {
	t.Parallel()
	sideBySide(t, recipes, func(t *testing.T, name string, test func(*testing.T, string)) {
		test(t, readRecipe(t, name+".Caddyfile"))
	})
}

// TestRecipesAreShown promises that the document has each recipe as it stands in its file, and that all files are in caddy fmt's form.
func TestRecipesAreShown(t *testing.T) {
	t.Parallel()
	_, docs := documents(t)
	shown := map[string]string{}
	for _, d := range docs {
		for _, b := range d.Blocks {
			if name, is := strings.CutPrefix(b.Marker, recipeMarker); is {
				shown[name] = b.Text
			}
		}
	}
	entries, err := os.ReadDir(recipeFile(t, ""))
	check(t, err)
	var all bytes.Buffer
	for _, entry := range entries {
		name, isCaddyfile := strings.CutSuffix(entry.Name(), ".Caddyfile")
		if isCaddyfile && recipes[name] == nil {
			t.Errorf("%s has no test", entry.Name())
		}
		if want := readRecipe(t, entry.Name()); shown[entry.Name()] != want {
			t.Errorf("%s is not shown as it is, but:\n%s", entry.Name(), shown[entry.Name()])
		}
		if isCaddyfile {
			file, err := os.ReadFile(recipeFile(t, entry.Name()))
			check(t, err)
			all.Write(file)
		}
	}
	if len(entries) < len(recipes) {
		t.Errorf("%d files of %d recipes", len(entries), len(recipes))
	}
	format := exec.CommandContext(t.Context(), caddyBinary, "fmt", "-")
	format.Stdin = bytes.NewReader(all.Bytes())
	if got, err := format.Output(); !bytes.Equal(got, all.Bytes()) {
		t.Errorf("caddy fmt (%v) would write:\n%s", err, got)
	}
}

// recipeCDN promises that a chunked upload gets to Oz byte for byte, with its length, that the app hears the client's address from the
// CDN, and that no one else can claim one.
func recipeCDN(t *testing.T, text string) {
	x := startRecipe(t, text, sandbox.Options{}, withEnv("CDN", "127.0.0.2/32 2001:db8::/32"))
	claims := []string{
		"X-Forwarded-For", "203.0.113.9, 198.51.100.7", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "app.example.com", "X-Real-Ip", "203.0.113.9",
		"X-Oz-Decision", "SUCCESS",
	}
	for _, test := range []struct{ from, ip, chain, proto, host string }{
		{"127.0.0.2", "198.51.100.7", "203.0.113.9, 198.51.100.7, 127.0.0.2", "https", "app.example.com"},
		{"127.0.0.3", "127.0.0.3", "127.0.0.3", "http", x.HTTP},
	} {
		x.forget()
		capsule := x.oz.Capsule(sandbox.CapsuleSpec{Outcome: sandbox.Declined, PayloadSize: 1 << 20})
		if a := x.clientFrom(t, test.from).postStream(t, "/verify", bytes.NewReader(capsule), claims...); a.Status != 200 {
			t.Fatalf("from %s: got %d %s", test.from, a.Status, a.Body)
		}
		got := x.oz.Received()[0]
		if got.Digest != sandbox.Digest(capsule) || got.ContentLength != int64(len(capsule)) {
			t.Errorf("from %s: of %d bytes Oz got %d, with the length %d", test.from, len(capsule), got.Size, got.ContentLength)
		}
		for name := range got.Header {
			if strings.HasPrefix(name, "X-") || name == "Forwarded" {
				t.Errorf("from %s: Oz got %s", test.from, name)
			}
		}
		r := x.app.Only(t)
		for name, want := range map[string]string{
			"X-Real-IP": test.ip, "X-Forwarded-For": test.chain, "X-Forwarded-Proto": test.proto, "X-Forwarded-Host": test.host, "X-Oz-Decision": "DECLINED",
		} {
			if values := r.Values(name); !slices.Equal(values, []string{want}) {
				t.Errorf("from %s: the app got %s %q, want %q", test.from, name, values, want)
			}
		}
		x.waitForLog(t, isAccess, withField("request.client_ip", test.ip))
	}
}

// recipeCORS promises the page of the one origin all that it needs, problems and failures of the app included, and another origin
// nothing: neither an answer that its page may read nor a request that gets to Oz or the app.
func recipeCORS(t *testing.T, text string) {
	const page = "https://www.example.com"
	x := startRecipe(t, text, sandbox.Options{}, withEnv("ORIGIN", page))
	// As an app that has a mind of its own.
	x.app.Answer(func(rawRequest) string {
		return "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nVary: Accept\r\nContent-Length: 2\r\n\r\nok"
	})
	c := x.client(t, "h1")
	from := func(origin string, more ...string) []string { return append([]string{"Origin", origin}, more...) }

	for _, method := range []string{"POST", "GET"} {
		a := c.do(t, c.request(t, "OPTIONS", "/verify", nil, from(page, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", "content-type")...))
		allowed := a.Header.Get("Access-Control-Allow-Methods") + a.Header.Get("Access-Control-Allow-Headers")
		if a.Status != 204 || !mayRead(a, page) || !strings.Contains(allowed, method) || !strings.Contains(allowed, "Content-Type") {
			t.Errorf("preflight: got %d %v", a.Status, a.Header)
		}
	}
	for _, origin := range []string{"https://evil.example", "https://www.example.com.evil.example", "http://www.example.com", "null"} {
		for _, a := range []answer{
			c.do(t, c.request(t, "OPTIONS", "/verify", nil, from(origin, "Access-Control-Request-Method", "POST")...)),
			c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), from(origin)...),
			c.get(t, "/session_token", from(origin)...),
		} {
			if a.Status != 403 || mayRead(a, origin) {
				t.Errorf("%s: got %d %v", origin, a.Status, a.Header)
			}
		}
	}
	x.unasked(t)

	token := c.get(t, "/session_token", from(page, "Cookie", "session=1")...)
	mustRead(t, token, page, 200)
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{SessionToken: gjson.GetBytes(token.Body, "session_token").Str})
	mustRead(t, c.post(t, "/verify", capsule, from(page, "Cookie", "session=1")...), page, 200)
	if r := x.app.Only(t); r.Value("X-Oz-Decision") != "SUCCESS" || r.Value("Cookie") != "session=1" {
		t.Errorf("the app got:\n%s", r.Raw())
	}

	used := c.post(t, "/verify", capsule, from(page)...)
	mustRead(t, used, page, 400)
	wantProblem(t, used, 400, "container")
	x.oz.fault(t, "status:503")
	full := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), from(page)...)
	mustRead(t, full, page, 503)
	if full.Header.Get("Retry-After") == "" || !strings.Contains(full.Header.Get("Access-Control-Expose-Headers"), "Retry-After") {
		t.Errorf("the page cannot tell when to come back: %v", full.Header)
	}
	x.oz.fault(t, "")
	x.app.Answer(func(rawRequest) string { return "" })
	mustRead(t, c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), from(page)...), page, 502)
}

// mayRead reports whether a browser shows an answer to a request with credentials to a page of this origin (Fetch, 4.10, CORS check).
func mayRead(a answer, origin string) bool {
	return slices.Equal(a.Header.Values("Access-Control-Allow-Origin"), []string{origin}) &&
		slices.Equal(a.Header.Values("Access-Control-Allow-Credentials"), []string{"true"})
}

// mustRead fails the test unless this is the answer, a page may read it, and caches keep it apart from those to other origins.
func mustRead(t testing.TB, a answer, origin string, status int) {
	t.Helper()
	if a.Status != status || !mayRead(a, origin) || !slices.Contains(a.Header.Values("Vary"), "Origin") {
		t.Errorf("got %d %v %.300s, want %d for %s to read", a.Status, a.Header, a.Body, status, origin)
	}
}

// aliceHash is of the password "correct horse", by bcrypt at its lowest cost.
const aliceHash = "$2a$04$Vmz5ipoj2eLAIQWUmk25eeWnQXHbROLD7J51kR4QZ0WrOi6RDY9TC"

// recipeBasicAuth promises that a user needs a password and a capsule of her own.
func recipeBasicAuth(t *testing.T, text string) {
	x := startRecipe(t, text, sandbox.Options{}, withEnv("ALICE_HASH", aliceHash))
	authorization := func(userinfo string) []string {
		req := httptest.NewRequest("GET", "/", nil)
		name, password, _ := strings.Cut(userinfo, ":")
		req.SetBasicAuth(name, password)
		return []string{"Authorization", req.Header.Get("Authorization")}
	}
	wrong := map[string][]string{"nobody": {}, "a wrong password": authorization("alice:battery staple")}
	if !raceEnabled { // bcrypt at Caddy's own cost, which takes many seconds with the race detector
		wrong["an unknown user"] = authorization("bob:correct horse")
	}
	x.assertSignIn(t, authorization("alice:correct horse"), wrong)
}

// recipeForwardAuth promises the same with a service that is asked: it hears nothing of the capsule, and a user whom it doesn't name
// is nobody, whatever the client says.
func recipeForwardAuth(t *testing.T, text string) {
	var mu sync.Mutex
	var asked []*http.Request
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if len(body) > 0 || err != nil {
			t.Errorf("the service got a body of %d bytes, %v", len(body), err)
		}
		mu.Lock()
		asked = append(asked, r)
		mu.Unlock()
		switch r.Header.Get("Cookie") {
		case "session=alice":
			w.Header().Set("Remote-User", "alice")
		case "session=guest":
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(service.Close)
	x := startRecipe(t, text, sandbox.Options{}, withEnv("AUTH_URL", service.URL))
	x.assertSignIn(t, []string{"Cookie", "session=alice"}, map[string][]string{
		"nobody": {}, "a name of her own": {"Remote-User", "alice"}, "an unknown session": {"Cookie", "session=mallory", "Remote-User", "alice"},
	})
	for _, r := range asked {
		if r.URL.Path != "/api/verify" || r.Method != http.MethodGet {
			t.Errorf("the service was asked %s %s", r.Method, r.URL)
		}
	}
	x.forget()
	guest := []string{"Cookie", "session=guest", "Remote-User", "alice", "Remote~User", "alice"}
	wantProblem(t, x.client(t, "h1").post(t, "/verify", x.oz.Capsule(aliceCapsule), guest...), 403, "binding")
	x.app.None(t)
}

var aliceCapsule = sandbox.CapsuleSpec{Meta: map[string]string{"user": "alice"}, EventSession: "session-1"}

// assertSignIn fails the test unless Oz and the app hear of those alone who are signed in, and each user gets in by a capsule that is
// the user's. The fields sign alice in; the strangers' don't.
func (x *chain) assertSignIn(t *testing.T, alice []string, strangers map[string][]string) {
	t.Helper()
	c := x.client(t, "h1")
	forged := []string{"X-Oz-Decision", "SUCCESS", "X~Oz~Decision", "SUCCESS", "X-Oz-Quality", "SUCCESS"}
	for name, fields := range strangers {
		fields = append(slices.Clone(fields), forged...)
		for _, a := range []answer{c.post(t, "/verify", x.oz.Capsule(aliceCapsule), fields...), c.get(t, "/session_token", fields...), c.get(t, "/", fields...)} {
			if a.Status != 401 {
				t.Errorf("%s: got %d %s", name, a.Status, a.Body)
			}
		}
	}
	x.unasked(t)

	alice = append(slices.Clone(alice), forged...)
	if a := c.get(t, "/session_token", alice...); a.Status != 200 {
		t.Errorf("the session token: got %d %s", a.Status, a.Body)
	}
	c.post(t, "/verify", x.oz.Capsule(aliceCapsule), alice...)
	assertReserved(t, x.app.Only(t), accepted.headers(x.app.Only(t), aliceCapsule.EventSession))
	x.app.Forget()
	for _, user := range []string{"bob", "Alice", ""} {
		wantProblem(t, c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{Meta: map[string]string{"user": user}}), alice...), 403, "binding")
	}
	wantProblem(t, c.post(t, "/verify", []byte("{}"), append(slices.Clone(alice), "Content-Type", "application/json")...), 415, "unsupported-media-type")
	x.app.None(t)
	c.get(t, "/verify", alice...) // signed in, and undecided
	assertReserved(t, x.app.Only(t), map[string]string{})
}

// recipeTenants promises that each tenant has its own account, app and seals, and that nothing of one is good at the other.
func recipeTenants(t *testing.T, text string) {
	type tenant struct {
		oz         *ozServer
		app        *rawApp
		host, seal string
	}
	tenants := []*tenant{{host: "a.localhost"}, {host: "b.localhost"}}
	var opts []caddyOption
	for i, name := range []string{"A", "B"} {
		x := tenants[i]
		x.oz = startSandbox(t, sandbox.Options{Accounts: map[string]string{name + "@example.com": "password-" + name}})
		x.app = newRawApp(t)
		opts = append(opts, withEnv("OZ_"+name+"_URL", x.oz.URL), withEnv("APP_"+name+"_URL", "http://"+x.app.Addr),
			withEnv(name+"_OZ_EMAIL", name+"@example.com"), withEnv(name+"_OZ_PASSWORD", "password-"+name),
			func(p *caddyProc) { withEnv("SITE_"+name, "http://"+x.host+":"+portOf(p.HTTP))(p) })
	}
	p := startCaddy(t, text, opts...)
	c := p.client(t, "h1")
	for i, x := range tenants {
		other := tenants[1-i]
		other.oz.Forget()
		other.app.Forget()
		token := gjson.GetBytes(c.get(t, "/session_token", "Host", x.host).Body, "session_token").Str
		if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{SessionToken: token}), "Host", x.host); a.Status != 200 {
			t.Errorf("%s: got %d %s", x.host, a.Status, a.Body)
		}
		x.seal = x.app.Only(t).Value("X-Oz-Seal")
		other.app.None(t)
		if n := len(other.oz.Requests()); n > 0 {
			t.Errorf("the Oz of %s got %d requests for %s", other.host, n, x.host)
		}
		x.app.Forget()
		foreign := c.post(t, "/verify", other.oz.Capsule(sandbox.CapsuleSpec{}), "Host", x.host)
		wantProblem(t, foreign, 400, "container")
		x.app.None(t)
		other.app.None(t)
	}
	if a := c.post(t, "/verify", tenants[0].oz.Capsule(sandbox.CapsuleSpec{}), "Host", "c.localhost"); len(a.Body) > 0 {
		t.Errorf("a host that is nobody's: got %d %s", a.Status, a.Body)
	}
	keys := filepath.Join(t.TempDir(), "jwks.json")
	check(t, os.WriteFile(keys, c.get(t, jwksPath, "Host", "b.localhost").Body, 0o600))
	for _, test := range []struct {
		seal string
		want string
	}{{tenants[1].seal, ""}, {tenants[0].seal, "aud"}} {
		out, err := exec.CommandContext(t.Context(), caddyBinary, "oz-instant", "verify", "--jwks", keys, "--audience", "https://b.example.com", test.seal).CombinedOutput()
		if (err == nil) != (test.want == "") || !strings.Contains(string(out), test.want) {
			t.Errorf("want %q, got %v:\n%s", test.want, err, out)
		}
	}
}

// recipeSPA promises that a reload of any page gives index.html, that a file is itself or 404, and that a capsule at a wrong path
// gets neither to Oz nor, as a decision, to the app.
func recipeSPA(t *testing.T, text string) {
	root := t.TempDir()
	check(t, os.Mkdir(filepath.Join(root, "assets"), 0o700))
	check(t, os.WriteFile(filepath.Join(root, "index.html"), []byte("the page"), 0o600))
	check(t, os.WriteFile(filepath.Join(root, "assets", "app.js"), []byte("the script"), 0o600))
	x := startRecipe(t, text, sandbox.Options{}, withEnv("SPA_ROOT", root))
	c := x.client(t, "h1")
	for path, want := range map[string]string{
		"/": "the page", "/profile/settings": "the page", "/verify": "the page", "/api": "the page", "/assets/app.js": "the script", "/assets/gone.js": "",
	} {
		if a := c.get(t, path); string(a.Body) != want || (a.Status == 200) != (want != "") {
			t.Errorf("%s: got %d %q", path, a.Status, a.Body)
		}
	}
	x.unasked(t)

	forged := []string{"X-Oz-Decision", "SUCCESS", "X+Oz+Decision", "SUCCESS"}
	for _, path := range []string{"/verify", "/", "/index.html", "/assets/app.js", "/profile/api/verify"} {
		if a := c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{}), forged...); a.Status != 405 {
			t.Errorf("%s: got %d %s", path, a.Status, a.Body)
		}
	}
	x.unasked(t)
	for _, path := range []string{"/api/verify/", "/api/profile", "/api/verify/index.html", "/assets/../api/profile"} {
		x.app.Forget()
		c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{}), forged...)
		assertReserved(t, x.app.Only(t), map[string]string{})
	}
	if n := len(x.oz.Requests()); n > 0 {
		t.Errorf("Oz got %d requests", n)
	}

	x.app.Forget()
	token := gjson.GetBytes(c.get(t, "/api/session_token").Body, "session_token").Str
	c.post(t, "/api/verify", x.oz.Capsule(sandbox.CapsuleSpec{SessionToken: token, EventSession: "session-1"}), forged...)
	assertReserved(t, x.app.Only(t), accepted.headers(x.app.Only(t), "session-1"))
}

// recipeReview promises that the two decisions for people go to the review service and never to the app, not even while the service
// is down, and that all others, and what is no decision, never get there.
func recipeReview(t *testing.T, text string) {
	review := newRawApp(t)
	review.Answer(func(rawRequest) string { return rawAnswer("202 Accepted", "we will look") })
	x := startRecipe(t, text, sandbox.Options{}, withEnv("REVIEW_URL", "http://"+review.Addr))
	c := x.client(t, "h1")
	post := func(outcome string) answer {
		x.app.Forget()
		review.Forget()
		return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{Outcome: outcome}), "X-Oz-Decision", "SUCCESS")
	}
	for outcome, reviewed := range map[string]bool{
		sandbox.Success: false, sandbox.Declined: false, sandbox.Failed: true, sandbox.OperatorRequired: true,
	} {
		a := post(outcome)
		to, other := x.app, review
		if reviewed {
			to, other = review, x.app
		}
		other.None(t)
		if r := to.Only(t); !slices.Equal(r.Values("X-Oz-Decision"), []string{outcome}) {
			t.Errorf("%s: it got\n%s", outcome, r.Raw())
		} else {
			assertFolder(t, r)
		}
		if (string(a.Body) == "we will look") != reviewed {
			t.Errorf("%s: the client got %d %s", outcome, a.Status, a.Body)
		}
	}
	x.app.Forget()
	review.Forget()
	c.get(t, "/verify", "X-Oz-Decision", "OPERATOR_REQUIRED") // undecided
	x.app.Only(t)
	review.None(t)
	review.close(t)
	if a := post(sandbox.OperatorRequired); a.Status != 502 {
		t.Errorf("without the service: got %d %s", a.Status, a.Body)
	}
	x.app.None(t)
}

// recipePHP promises that $_SERVER has the decision and nothing else by its name, also where Caddy is told to let names through that
// PHP folds to it, and at paths that PHP takes for the same page.
func recipePHP(t *testing.T, text string) {
	socket, root := startPHP(t, nil), t.TempDir()
	app, err := os.ReadFile(filepath.Join(appServers(t), "app.php"))
	check(t, err)
	check(t, os.WriteFile(filepath.Join(root, "index.php"), app, 0o600))
	x := startRecipe(t, forgerOptions(true)+text, sandbox.Options{}, withEnv("PHP_ROOT", root), withEnv("PHP_FPM", "unix/"+socket))
	c := x.client(t, "h1")
	forged := []string{"X_Oz_Decision", "SUCCESS", "X-Oz_Decision", "SUCCESS", "X.Oz.Decision", "SUCCESS", "x_oz_seal", "forged", "X_OZ-QUALITY", "SUCCESS"}
	for _, fields := range [][]string{forged, {"X-Oz-Decision", "SUCCESS", "X-Oz-Seal", "forged"}} {
		r := readReport(t, c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{Outcome: sandbox.Declined, EventSession: "session-1"}), fields...))
		id := r.document.Get("folder_id").Str
		r.assertOurs(t, map[string]string{
			"x-oz-decision": "DECLINED", "x-oz-folder-id": id, "x-oz-event-session-id": "session-1", "x-oz-resolution-status": "FINISHED",
			"x-oz-system-resolution": "DECLINED", "x-oz-quality": "DECLINED",
		})
		for _, path := range []string{"/index.php/verify", "/verify/", "/index.php", "/other"} {
			readReport(t, c.post(t, path, []byte(forgedFolder), append(slices.Clone(fields), "Content-Type", "application/json")...)).assertOurs(t, nil)
		}
	}
	r := readReport(t, c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), forged...))
	if r.decision.Str != "SUCCESS" || r.document.Get("system_resolution").Str != "SUCCESS" {
		t.Errorf("a genuine one: %+v", r)
	}
}

// recipeSidecar promises an app on a socket each decision with its seal, and no seal that a client has brought; that other bodies than
// capsules are small; and that no neighbour can change the configuration.
func recipeSidecar(t *testing.T, text string) {
	dir := t.TempDir()
	socket, admin := filepath.Join(dir, "app.sock"), filepath.Join(dir, "admin.sock")
	app := newRawAppAt(t, "unix", socket)
	x := startRecipe(t, text, sandbox.Options{}, withEnv("APP", "unix/"+socket), withEnv("ADMIN", "unix/"+admin))
	c := x.client(t, "h1")
	if conn, err := net.Dial("tcp", x.Admin); err == nil {
		conn.Close()
		t.Error("the admin endpoint is on a port")
	}
	if _, err := os.Stat(admin); err != nil {
		t.Errorf("there is no admin endpoint: %v", err)
	}
	if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 2 << 20}), "X-Oz-Seal", "forged"); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	r := app.Only(t)
	if claims := sealedBy(t, c.keySet(t), r.Value("X-Oz-Seal")); claims["aud"] != "https://app.example.com" || claims["decision"] != "SUCCESS" {
		t.Errorf("the seal says %v", claims)
	}
	app.Forget()
	c.get(t, "/other", "X-Oz-Seal", r.Value("X-Oz-Seal"), "X-Oz-Decision", "SUCCESS") // who has seen a seal
	assertReserved(t, app.Only(t), map[string]string{})
	if a := c.post(t, "/other", make([]byte, 1_000_001)); a.Status != 413 {
		t.Errorf("a large body elsewhere: got %d %s", a.Status, a.Body)
	}
	if a := c.post(t, "/other", make([]byte, 1_000_000)); a.Status != 200 {
		t.Errorf("the largest body elsewhere: got %d %s", a.Status, a.Body)
	}
	x.app.None(t)
}

// recipeLimits promises that one client gets so many connections and no more while another is served, that the app hears the client's
// address, and that no one can make one up.
func recipeLimits(t *testing.T, text string) {
	haproxy := program(t, "haproxy")
	x := startRecipe(t, text, sandbox.Options{}, withEnv("BALANCER", "127.0.0.1/32"))
	front := deadAddress(t)
	startProgram(t, nil, "tcp", front, "/usr/bin/env", "FRONT="+front, "GATEWAY="+x.HTTP, "CONNECTIONS=3", "RATE=10", haproxy, "-db", "-f", recipeFile(t, "limits.haproxy.cfg"))
	silent := dialRawBy(t, dialerFrom(t, "127.0.0.8"), front)
	silent.send(t, "GET / HTTP/1.1\r\n")
	crowd := func() *rawConn { return dialRawBy(t, dialerFrom(t, "127.0.0.5"), front) }
	var kept []*rawConn
	for range 3 {
		conn := crowd()
		conn.sendHead(t, "GET / HTTP/1.1", "Host: localhost")
		conn.read(t, "GET")
		kept = append(kept, conn)
	}
	if a, err := tryGetFrom(t, "127.0.0.5", front); err == nil {
		t.Errorf("the fourth connection got %d", a.Status)
	}
	for i := range 11 {
		if a, err := tryGetFrom(t, "127.0.0.9", front); (err == nil) != (i < 10) {
			t.Errorf("number %d of connections one after the other: got %d, %v", i+1, a.Status, err)
		}
	}

	x.app.Forget()
	other := x.clientFrom(t, "127.0.0.6")
	other.URL = "http://" + front
	if a := other.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), "X-Forwarded-For", "203.0.113.9"); a.Status != 200 {
		t.Errorf("another client: got %d %s", a.Status, a.Body)
	}
	if r := x.app.Only(t); !slices.Equal(r.Values("X-Forwarded-For"), []string{"127.0.0.6"}) {
		t.Errorf("the app got:\n%s", r.Raw())
	}
	kept[0].sendHead(t, "GET / HTTP/1.1", "Host: localhost")
	if a := kept[0].read(t, "GET"); a.Status != 200 {
		t.Errorf("a kept connection: got %d", a.Status)
	}

	x.app.Forget()
	liar := dialRawBy(t, dialerFrom(t, "127.0.0.7"), x.HTTP)
	liar.send(t, "PROXY TCP4 203.0.113.9 127.0.0.1 1000 80\r\n")
	if a, err := tryGet(liar); err == nil && a.Status < 400 {
		t.Errorf("a client with a PROXY header of its own got %d", a.Status)
	}
	x.app.None(t)

	secure := tls.Client(dialRaw(t, x.HTTPS).Conn, &tls.Config{RootCAs: x.cert.pool, ServerName: "localhost", NextProtos: []string{"h2", "http/1.1"}})
	check(t, secure.HandshakeContext(t.Context()))
	if proto := secure.ConnectionState().NegotiatedProtocol; proto != "http/1.1" {
		t.Errorf("one connection may carry many capsules: %s", proto)
	}
	check(t, silent.SetDeadline(time.Now().Add(patience)))
	silent.ends(t)
}

// tryGetFrom asks for a path by a connection of its own, from an address of the loopback network.
func tryGetFrom(t testing.TB, address, to string) (answer, error) {
	conn, err := dialerFrom(t, address).DialContext(t.Context(), "tcp", to)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	return tryGet(&rawConn{conn, bufio.NewReader(conn)})
}

// tryGet asks for a path where the answer may be the end.
func tryGet(conn *rawConn) (answer, error) {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		return answer{}, err
	}
	a, err := conn.tryRead("GET")
	if err == nil {
		_, err = io.Copy(io.Discard, conn.in) // until the connection is counted no more
	}
	return a, err
}

// recipeMTLS promises that Oz hears of the gateway alone, and the gateway of its Oz alone; and that the operator is told whose
// certificate it is that the other doesn't take.
func recipeMTLS(t *testing.T, text string) {
	server, gateway, stranger := testCert(t), testCert(t), testCert(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	config := server.serverConfig()
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, gateway.pool
	oz := serveSandbox(t, tls.NewListener(listener, config), sandbox.Options{})
	x := startRecipe(t, text, sandbox.Options{}, withEnv("OZ_URL", "https://"+oz.Addr), withEnv("OZ_CA", server.certFile),
		withEnv("OZ_CLIENT_CERT", gateway.certFile), withEnv("OZ_CLIENT_KEY", gateway.keyFile))
	token := gjson.GetBytes(x.client(t, "h1").get(t, "/session_token").Body, "session_token").Str
	if a := x.client(t, "h1").post(t, "/verify", oz.Capsule(sandbox.CapsuleSpec{SessionToken: token})); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	oz.Forget()
	x.app.Forget()
	const own = "tls_client_auth {$OZ_CLIENT_CERT:/etc/caddy/oz-client.pem} {$OZ_CLIENT_KEY:/etc/caddy/oz-client.key}"
	for _, test := range []struct{ changed, says string }{
		{replaced(t, text, own, ""), "remote error: tls: certificate required"},
		{replaced(t, text, own, "tls_client_auth "+stranger.certFile+" "+stranger.keyFile), "remote error: tls: unknown certificate authority"},
		{replaced(t, text, "{$OZ_CA:/etc/caddy/oz-ca.pem}", stranger.certFile), "tls: failed to verify certificate: x509: certificate signed by unknown authority"},
	} {
		check(t, x.Reload(test.changed))
		c, before := x.client(t, "h1"), len(x.logLines(isDecided)) // a new one, since the reload ends connections
		wantProblem(t, c.get(t, "/session_token"), 502, "unreachable")
		x.waitForLog(t, withMsg("session token"), withField("level", "error"), having(test.says))
		// Of a capsule the refusal may come while it is being sent, and be lost with the connection.
		a := c.post(t, "/verify", oz.Capsule(sandbox.CapsuleSpec{}))
		line := x.waitForLogs(t, before+1, isDecided)[before]
		if a.Status != 502 || line.Get("decision").Str != "UNAVAILABLE" || line.Get("level").Str != "error" {
			t.Errorf("%s: got %d %s, logged %s", test.says, a.Status, a.Body, line)
		}
	}
	x.app.None(t)
	if n := len(oz.Requests()); n > 0 {
		t.Errorf("Oz got %d requests", n)
	}
}

// recipeRegions promises that the second Oz takes over from a first that is down; that a capsule which the first has read is not sent
// to the second; and that a capsule which the first has accepted is not accepted by the second.
func recipeRegions(t *testing.T, text string) {
	keys := keysDir(t)
	second := startSandbox(t, sandbox.Options{KeysDir: keys})
	x := startRecipe(t, text, sandbox.Options{KeysDir: keys}, withEnv("OZ_FALLBACK", second.URL))
	c := x.client(t, "h1")
	accepted := x.oz.Capsule(sandbox.CapsuleSpec{})
	if a := c.post(t, "/verify", accepted); a.Status != 200 || len(second.Received()) > 0 {
		t.Errorf("while both are up: got %d %s, and the second %d capsules", a.Status, a.Body, len(second.Received()))
	}
	x.oz.fault(t, "reset")
	lost := x.oz.Capsule(sandbox.CapsuleSpec{})
	wantProblem(t, c.post(t, "/verify", lost), 502, "connection_lost")
	if n := len(second.Received()); n > 0 {
		t.Errorf("a capsule that the first has read was sent to the second")
	}
	// The first is left alone now.
	if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 || len(second.Received()) != 1 {
		t.Errorf("after a failure: got %d %s, and the second %d capsules", a.Status, a.Body, len(second.Received()))
	}
	wantProblem(t, c.post(t, "/verify", accepted), 409, "replayed")
	if n := len(x.oz.Received()); n != 2 {
		t.Errorf("the first got %d capsules", n)
	}

	// Another first goes down after a probe has found it up.
	probed := make(chan struct{}, 1)
	first := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == sandbox.VersionPath {
			select {
			case probed <- struct{}{}:
			default:
			}
		}
	}))
	y := startCaddy(t, text, withEnv("OZ_URL", first.URL), withEnv("OZ_FALLBACK", second.URL), withEnv("APP_URL", "http://"+x.app.Addr))
	select {
	case <-probed:
	case <-time.After(patience):
		t.Error("the first was not probed")
	}
	first.Close()
	c = y.client(t, "h1")
	if a := c.post(t, "/verify", second.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
		t.Errorf("the first capsule while the first is down: got %d %s", a.Status, a.Body)
	}
	token := gjson.GetBytes(c.get(t, "/session_token").Body, "session_token").Str
	if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{SessionToken: token})); a.Status != 200 {
		t.Errorf("the next one: got %d %s", a.Status, a.Body)
	}
}
