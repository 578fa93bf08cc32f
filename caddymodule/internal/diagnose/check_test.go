package diagnose

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/caddytls" // the trust pools of transports

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// checked runs a check and returns each upstream's states, one "name state" a
// line, and the reports.
func checked(t *testing.T, opts CheckOptions, targets ...Target) ([]string, []Report) {
	t.Helper()
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	var ended []string
	reports, err := Check(t.Context(), targets, opts, func(e Event) {
		if e.Step.State != "" {
			ended = append(ended, e.To+" "+e.Step.Name)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var all, reported []string
	for _, r := range reports {
		var lines []string
		for _, s := range r.Steps {
			lines = append(lines, s.Name+" "+string(s.State))
			reported = append(reported, r.To+" "+s.Name)
			if s.Advice == "" && (s.State == Failed || s.State == Unknown) {
				t.Errorf("%s without advice: %+v", s.State, s)
			}
		}
		all = append(all, strings.Join(lines, "\n"))
	}
	if !slices.Equal(ended, reported) {
		t.Errorf("observed %q, reported %q", ended, reported)
	}
	return all, reports
}

// detail is the detail and the advice of a step.
func (r Report) about(name string) string {
	for _, s := range r.Steps {
		if s.Name == name {
			return s.Detail + " → " + s.Advice
		}
	}
	return "there is no " + name
}

const allWell = "configuration ok\nconnection ok\nsession token ok\nshared keys ok\nempty capsule ok\ngarbage capsule ok"

func TestCheckAllWell(t *testing.T) {
	server := start(t, nil)
	states, reports := checked(t, CheckOptions{Capsule: []byte(goodCapsule)}, target(address(server)))
	if states[0] != allWell+"\ncapsule ok" || !reports[0].Well || Worst(reports) != OK {
		t.Errorf("%s\n%+v", states[0], reports)
	}
	for name, want := range map[string]string{
		"session token":   "JWT, ES384, good for 900 s",
		"shared keys":     "8 session tokens, all signed with one key",
		"empty capsule":   "400, error_code 13, as it should be",
		"garbage capsule": "400, error_code 14, as it should be",
		"capsule":         "Oz answered 201 to 9 B: SUCCESS, ",
	} {
		if got := reports[0].about(name); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// Each thing that is wrong turns its own line red, with advice. What needs it
// isn't tried.
func TestCheckFindsFaults(t *testing.T) {
	type wrong = map[string]http.HandlerFunc
	const way, rest = "configuration ok\nconnection ok\n", "\nempty capsule ok\ngarbage capsule ok"
	const noToken, noFolders = "session token failed\nshared keys skipped", "\nempty capsule failed\ngarbage capsule failed"
	const token = "session token ok\nshared keys ok"
	for name, test := range map[string]struct {
		wrong  wrong
		states string
		step   string
		about  []string
	}{
		"session tokens forbidden": {wrong{tokenCall: answer(403, "")}, way + noToken + rest, "session token", []string{"unauthorized: oz answered 403", "access_token or credentials"}},
		"a page for everything":    {wrong{tokenCall: answer(200, "<html>"), foldersCall: answer(200, "<html>")}, way + noToken + noFolders, "empty capsule", []string{"malformed_answer", "not Oz"}},
		"wrong base path":          {wrong{foldersCall: http.NotFound}, way + token + noFolders, "empty capsule", []string{"Oz answered 404, want 400 with error_code 13", "base path"}},
		"accepts everything":       {wrong{foldersCall: answer(201, goodFolder)}, way + token + noFolders, "garbage capsule", []string{"Oz answered 201, want 400 with error_code 14", "no proxy in between"}},
		"another code":             {wrong{foldersCall: answer(400, `{"error_code": 13}`)}, way + token + "\nempty capsule ok\ngarbage capsule failed", "garbage capsule", []string{"error_code 13, want 400 with error_code 14", "6.6.1"}},
		"busy":                     {wrong{foldersCall: answer(503, "")}, way + token + noFolders, "empty capsule", []string{"Oz answered 503", "add instances"}},
		"a small body limit":       {wrong{foldersCall: answer(413, "")}, way + token + noFolders, "garbage capsule", []string{"Oz answered 413", "body limit"}},
		"closes": {wrong{foldersCall: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }}, way + token + noFolders, "empty capsule", []string{
			"connection_lost", "closed the connection without an answer"}},
		"cut": {wrong{tokenCall: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"session_`))
		}}, way + noToken + rest, "session token", []string{"malformed_answer", "cuts answers"}},
	} {
		t.Run(name, func(t *testing.T) {
			states, reports := checked(t, CheckOptions{}, target(address(start(t, test.wrong))))
			if states[0] != test.states || reports[0].Well || Worst(reports) != Failed {
				t.Errorf("%s", states[0])
			}
			for _, want := range test.about {
				if got := reports[0].about(test.step); !strings.Contains(got, want) {
					t.Errorf("%s: %q, want %q", test.step, got, want)
				}
			}
		})
	}
}

// A step that Oz doesn't end, ends by itself, and the next ones are taken.
func TestCheckHangingOz(t *testing.T) {
	release := make(chan struct{})
	server := start(t, map[string]http.HandlerFunc{tokenCall: func(http.ResponseWriter, *http.Request) { <-release }})
	defer close(release)
	const want = "configuration ok\nconnection ok\nsession token failed\nshared keys skipped\nempty capsule ok\ngarbage capsule ok"
	said := ""
	for timeout := 300 * time.Millisecond; timeout < time.Minute; timeout *= 4 { // a busy machine needs longer for the others, too
		states, reports := checked(t, CheckOptions{Timeout: timeout}, target(address(server)))
		if said = states[0] + ", " + reports[0].about("session token"); states[0] == want && strings.Contains(said, "TFSS") {
			return
		}
	}
	t.Error(said)
}

func deadAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	return listener.Addr().String()
}

// What is wrong before Oz is reached has a line of its own, and no call is tried.
func TestCheckTheWay(t *testing.T) {
	untried := "\nlog-in skipped\nsession token skipped\nshared keys skipped\nempty capsule skipped\ngarbage capsule skipped"
	account := func(to Target) Target {
		to.Config.Credentials = &ozclient.Credentials{Email: "a@b.c", Password: "p"}
		return to
	}
	noToken := account(target("127.0.0.1:80"))
	noToken.Config.AccessToken = "{env.NOT_SET_ANYWHERE}"
	untrusted := httptest.NewTLSServer(nil)
	t.Cleanup(untrusted.Close)
	for name, test := range map[string]struct {
		target Target
		states string
		step   string
		about  string
	}{
		"no upstream":    {account(Target{}), "configuration failed" + untried, "configuration", "Fix the configuration"},
		"no environment": {noToken, "configuration failed" + untried, "configuration", "this shell's environment"},
		"no such name":   {account(target("oz.invalid:80")), "configuration ok\nname failed\nconnection skipped" + untried, "name", "DNS"},
		"nobody there":   {account(target(deadAddress(t))), "configuration ok\nconnection failed" + untried, "connection", "port 8080"},
		"not trusted":    {account(overTLS(address(untrusted), `{}`)), "configuration ok\nconnection ok\nTLS failed" + untried, "TLS", "tls_trust_pool"},
		"no TLS there":   {account(overTLS(address(start(t, nil)), `{}`)), "configuration ok\nconnection ok\nTLS failed" + untried, "TLS", "TLS port"},
	} {
		t.Run(name, func(t *testing.T) {
			states, reports := checked(t, CheckOptions{}, test.target)
			if states[0] != test.states || !strings.Contains(reports[0].about(test.step), test.about) {
				t.Errorf("%s\n%s", states[0], reports[0].about(test.step))
			}
		})
	}
}

// An account's log-in comes before what needs its token.
func TestCheckLogin(t *testing.T) {
	for name, test := range map[string]struct {
		wrong  map[string]http.HandlerFunc
		states string
		about  string
	}{
		"good":   {nil, strings.Replace(allWell, "session token", "log-in ok\nsession token", 1), "access token for 15m0s"},
		"locked": {map[string]http.HandlerFunc{loginCall: answer(403, `{"error_code": 9}`)}, "configuration ok\nconnection ok\nlog-in failed\nsession token skipped\nshared keys skipped\nempty capsule skipped\ngarbage capsule skipped", "access_token or credentials"},
	} {
		to := target(address(start(t, test.wrong)))
		to.Config.Credentials = &ozclient.Credentials{Email: "a@b.c", Password: "canary-password"}
		states, reports := checked(t, CheckOptions{}, to)
		if states[0] != test.states || !strings.Contains(reports[0].about("log-in"), test.about) {
			t.Errorf("%s: %s\n%s", name, states[0], reports[0].about("log-in"))
		}
		if doc, _ := json.Marshal(reports); strings.Contains(string(doc), "canary") {
			t.Errorf("%s: the password is in %s", name, doc)
		}
	}
}

func overTLS(dial, config string) Target {
	to := target(dial)
	to.Config.ReverseProxy.TransportRaw = json.RawMessage(`{"protocol":"http","tls":` + config + `}`)
	return to
}

// startTLS starts a stand-in with a certificate of that lifetime, and returns
// the transport's TLS configuration that trusts it.
func startTLS(t *testing.T, left time.Duration) (dial, config string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "oz\x1b[2J.test\n  ok  all"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(left), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	plain := start(t, nil)
	server := httptest.NewUnstartedServer(plain.Config.Handler)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return address(server), `{"ca":{"provider":"inline","trusted_ca_certs":["` + base64.StdEncoding.EncodeToString(der) + `"]}}`
}

// A certificate near its end is red, and Oz is checked nevertheless.
func TestCheckCertificate(t *testing.T) {
	dial, config := startTLS(t, 30*24*time.Hour+time.Minute)
	states, reports := checked(t, CheckOptions{}, overTLS(dial, config))
	if want := strings.Replace(allWell, "connection ok", "connection ok\nTLS ok", 1); states[0] != want || !strings.Contains(reports[0].about("TLS"), "valid for 30 days") {
		t.Errorf("%s\n%s", states[0], reports[0].about("TLS"))
	}
	dial, config = startTLS(t, 13*24*time.Hour)
	states, reports = checked(t, CheckOptions{}, overTLS(dial, config))
	if want := strings.Replace(allWell, "connection ok", "connection ok\nTLS failed", 1); states[0] != want || !strings.Contains(reports[0].about("TLS"), "Renew") {
		t.Errorf("%s\n%s", states[0], reports[0].about("TLS"))
	}
	states, reports = checked(t, CheckOptions{}, overTLS(dial, `{"insecure_skip_verify":true}`))
	if !strings.Contains(states[0], "TLS failed") { // its end is near all the same
		t.Errorf("%s\n%s", states[0], reports[0].about("TLS"))
	}
}

// What only a user's request can tell is not passed. Where it can be the cause
// of a failure, the failure is not asserted either.
func TestCheckWhatNeedsARequest(t *testing.T) {
	hosts := func(host string) http.HandlerFunc { // as APP_ALLOWED_HOSTS does
		return func(w http.ResponseWriter, r *http.Request) { answer(400, "<html>"+host)(w, r) }
	}
	picky := start(t, map[string]http.HandlerFunc{foldersCall: hosts("?")})
	good := address(start(t, nil))
	t.Setenv("OZ_ADDRESS", good)
	untried := "\nsession token skipped\nshared keys skipped\nempty capsule skipped\ngarbage capsule skipped"
	withTransport := target(good)
	withTransport.Config.ReverseProxy.TransportRaw = json.RawMessage(`{"protocol":"http","tls":{"server_name":"{http.request.host}"}}`)
	for name, test := range map[string]struct {
		target Target
		states string
		worst  State
		about  string
	}{
		"Host of the request": {withHeader(target(good), "Host", "{http.request.host}"), strings.Replace(allWell, "connection", "placeholders unknown\nconnection", 1), Unknown, "header_up Host {http.request.host}"},
		"that Oz wants": {withHeader(target(address(picky)), "X-Tenant", "{http.vars.tenant}"),
			"configuration ok\nplaceholders unknown\nconnection ok\nsession token ok\nshared keys ok\nempty capsule unknown\ngarbage capsule unknown", Unknown, "header_up X-Tenant {http.vars.tenant}"},
		"upstream of the request": {target("{http.vars.oz}"), "configuration ok\nplaceholders unknown" + untried, Unknown, "upstream {http.vars.oz}"},
		"TLS name of the request": {withTransport, "configuration ok\nplaceholders unknown" + untried, Unknown, "transport {http.request.host}"},
		"upstream of the shell":   {target("{env.OZ_ADDRESS}"), allWell, OK, "there is no"},
		"known without a request": {withHeader(target(good), "X-A", `{env.A} {file./dev/null} {system.hostname} {time.now.unix} {http.reverse_proxy.upstream.hostport} {"a":1} \{http.request.host}`), allWell, OK, "there is no"},
	} {
		t.Run(name, func(t *testing.T) {
			states, reports := checked(t, CheckOptions{}, test.target)
			if states[0] != test.states || Worst(reports) != test.worst || reports[0].Well != (test.worst == OK) || !strings.Contains(reports[0].about("placeholders"), test.about) {
				t.Errorf("%s\n%s", states[0], reports[0].about("placeholders"))
			}
		})
	}
}

func TestNeeds(t *testing.T) {
	to := target("a:1")
	to.Config.ReverseProxy.Headers = withHeader(target(), "X-{http.vars.a}", "{b} {b}").Config.ReverseProxy.Headers
	ops := to.Config.ReverseProxy.Headers.Request
	ops.Add = http.Header{"X-C": {"{http.regexp.x.1}"}}
	ops.Delete = []string{"{c}"}
	if err := json.Unmarshal([]byte(`{"X-D": [{"search_regexp": "a{2}\\d{1,3}", "replace": "{d}"}]}`), &ops.Replace); err != nil {
		t.Fatal(err)
	}
	to.Config.ReverseProxy.DynamicUpstreamsRaw = json.RawMessage(`{"source":"srv","name":"{http.request.host}","resolver":{"addresses":["{e}"]}}`)
	n := needsOf(to.Config)
	if want := "header_up X-C {http.regexp.x.1}, header_up X-{http.vars.a} {http.vars.a}, header_up X-{http.vars.a} {b}, header_up -{c} {c}, header_up X-D {d}"; strings.Join(n.header, ", ") != want {
		t.Errorf("%q", n.header)
	}
	if want := "dynamic upstreams {http.request.host}, dynamic upstreams {e}"; strings.Join(n.address, ", ") != want {
		t.Errorf("%q", n.address)
	}
}

// Upstreams of one block that don't share Oz's JWT keys refuse each other's
// capsules. Their session tokens give that away.
func TestCheckSharedKeys(t *testing.T) {
	ours, theirs := newKey(t), newKey(t)
	signs := func(key *ecdsa.PrivateKey) func(int) string { return func(int) string { return es384(t, key) } }
	always := func(token string) func(int) string { return func(int) string { return token } }
	hmac := func(kid string) func(int) string {
		return always(unsigned(`{"alg":"HS256","kid":"`+kid+`"}`, `{}`) + ".c2ln")
	}
	for name, test := range map[string]struct {
		sign  []func(int) string
		last  State
		worst State
		about string
	}{
		"one key":           {[]func(int) string{signs(ours), signs(ours)}, OK, OK, "8 session tokens, all signed with the key of 127.0.0.1:"},
		"two keys":          {[]func(int) string{signs(ours), signs(theirs)}, Failed, Failed, "different keys signed them → Give all Oz instances of a block the same JWT keys"},
		"two of one":        {[]func(int) string{func(n int) string { return es384(t, []*ecdsa.PrivateKey{ours, theirs}[n%2]) }}, Failed, Failed, "session tokens of this upstream: different keys"},
		"algorithms":        {[]func(int) string{signs(ours), hmac("")}, Failed, Failed, "ES384 and the other by HS256"},
		"kinds":             {[]func(int) string{signs(ours), always("opaque")}, Failed, Failed, "one is a JWT and the other is not"},
		"names of keys":     {[]func(int) string{hmac("a"), hmac("b")}, Failed, Failed, "kid a and b"},
		"one name":          {[]func(int) string{hmac("a"), hmac("a")}, Unknown, Unknown, "a common kid proves nothing → Compare"},
		"opaque":            {[]func(int) string{always("opaque"), always("opaque")}, Unknown, Unknown, "session tokens are opaque"},
		"opaque, alone":     {[]func(int) string{always("opaque")}, Skipped, OK, "session tokens are opaque"},
		"broken signatures": {[]func(int) string{signs(ours), always(unsigned(`{"alg":"ES384"}`, `{}`) + ".c2ln")}, Unknown, Unknown, "don't show their key"},
	} {
		t.Run(name, func(t *testing.T) {
			var dials []string
			for _, sign := range test.sign {
				dials = append(dials, address(startSigning(t, nil, sign)))
			}
			_, reports := checked(t, CheckOptions{}, target(dials...))
			last := reports[len(reports)-1]
			i := slices.IndexFunc(last.Steps, func(s Step) bool { return s.Name == "shared keys" })
			if last.Steps[i].State != test.last || Worst(reports) != test.worst || !strings.Contains(last.about("shared keys"), test.about) {
				t.Errorf("%s, %s: %s", last.Steps[i].State, Worst(reports), last.about("shared keys"))
			}
		})
	}
}

// Dynamic upstreams are found as the block finds them. Which of them answers is
// not in our hand, so tokens that don't tell their key are unknown.
func TestCheckDynamicUpstreams(t *testing.T) {
	dynamic := func(server *httptest.Server) Target {
		to := target()
		_, port, _ := net.SplitHostPort(address(server))
		to.Config.ReverseProxy.DynamicUpstreamsRaw = json.RawMessage(`{"source":"a","name":"localhost","port":"` + port + `","versions":{"ipv4":true}}`)
		return to
	}
	way := strings.Replace(allWell, "connection ok\n", "", 1)
	states, reports := checked(t, CheckOptions{}, dynamic(start(t, nil)))
	if states[0] != way || reports[0].To != "dynamic upstreams" {
		t.Errorf("%s, %+v", states[0], reports)
	}
	states, _ = checked(t, CheckOptions{}, dynamic(startSigning(t, nil, func(int) string { return "opaque" })))
	if states[0] != strings.Replace(way, "shared keys ok", "shared keys unknown", 1) {
		t.Errorf("%s", states[0])
	}
}

// Blocks are about different users: nothing says that they share keys.
func TestCheckBlocksHaveKeysOfTheirOwn(t *testing.T) {
	states, reports := checked(t, CheckOptions{}, target(address(start(t, nil))), target(address(start(t, nil))))
	if len(states) != 2 || states[0] != allWell || states[1] != allWell {
		t.Errorf("%q, %+v", states, reports)
	}
}

// A capsule can be used once: the first upstream that is reached gets it, and
// the others' reports say so.
func TestCheckCapsuleIsSentOnce(t *testing.T) {
	key := newKey(t)
	sign := func(int) string { return es384(t, key) }
	first, second := address(startSigning(t, nil, sign)), address(startSigning(t, nil, sign))
	to := target(deadAddress(t), first, second)
	to.NotJudged = []string{"require meta_data.transaction_id"}
	states, reports := checked(t, CheckOptions{Capsule: []byte(goodCapsule)}, to)
	if !strings.HasSuffix(states[0], "capsule skipped") || states[1] != allWell+"\ncapsule ok" || states[2] != allWell+"\ncapsule skipped" {
		t.Errorf("%q", states)
	}
	if got := reports[1].about("capsule"); !strings.Contains(got, "; not checked: require meta_data.transaction_id") {
		t.Error(got)
	}
	if got := reports[2].about("capsule"); !strings.Contains(got, first+" has had this one") {
		t.Error(got)
	}
	// It is spent now, which is an answer of Oz and a failure.
	to = target(first)
	_, reports = checked(t, CheckOptions{Capsule: []byte(goodCapsule)}, to)
	if got := reports[0].about("capsule"); reports[0].Well || !strings.Contains(got, "error_code 14 to 9 B: INVALID (container)") || !strings.Contains(got, "Capture a new capsule") {
		t.Error(got)
	}
}

// A block's options hold, but no step takes longer than it may.
func TestBounded(t *testing.T) {
	given := ozclient.Options{Timeout: time.Minute, UploadTimeout: 2 * time.Second, MaxAnswer: 7}
	if got, want := bounded(given, 5*time.Second), (ozclient.Options{Timeout: 5 * time.Second, UploadTimeout: 2 * time.Second, MaxAnswer: 7}); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if got := bounded(ozclient.Options{}, time.Second); got.Timeout != time.Second || got.UploadTimeout != time.Second {
		t.Errorf("unset: %+v", got)
	}
}
