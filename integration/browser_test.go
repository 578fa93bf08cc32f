//go:build slow

package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/demo"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// demoApp is the demo app, which notes what it gets at /verify.
type demoApp struct {
	http.Handler
	mu       sync.Mutex
	requests []rawRequest
}

func (a *demoApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/verify" {
		body, err := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		a.mu.Lock()
		a.requests = append(a.requests, rawRequest{
			Line: r.Method + " " + r.RequestURI + " " + r.Proto, Fields: fieldLines(r.Header), Body: body, Broken: err,
		})
		a.mu.Unlock()
	}
	a.Handler.ServeHTTP(w, r)
}

// take returns what came since it was last called.
func (a *demoApp) take() (requests []rawRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	requests, a.requests = a.requests, nil
	return requests
}

// demoRun is what ./xcaddy.sh run shows: Caddyfile.example, a sandbox and the demo app; and a Chromium with a camera.
type demoRun struct {
	*caddyProc
	oz       *ozServer
	app      *demoApp
	chromium context.Context
}

// The origins at which the site is opened. Chromium speaks HTTP/3 to the one, and HTTP/2 to the other, which is told of no HTTP/3.
func (d *demoRun) overHTTP1() string { return "http://" + d.HTTP }
func (d *demoRun) overHTTP2() string { return "https://localhost:" + portOf(d.HTTPS) }
func (d *demoRun) overHTTP3() string { return "https://" + d.HTTPS }

// insecure is the site as another machine reaches it, without TLS. Browsers give such a page no camera.
func (d *demoRun) insecure() string { return "http://phone.example:" + portOf(d.HTTP) }

// startDemoRun starts all of it.
func startDemoRun(t testing.TB) *demoRun {
	t.Helper()
	program(t, "chromium") // before anything is started in vain
	d := &demoRun{app: &demoApp{}, oz: startSandbox(t, sandbox.Options{BestShotSize: 400 << 10, Parallel: 3})}
	server := httptest.NewUnstartedServer(d.app)
	t.Cleanup(server.Close)
	example, err := os.ReadFile(exampleFile(t))
	check(t, err)
	site := strings.Replace(string(example), "\n\tlog\n", "\n\tlog\n\t"+plainOnLocalhost+"\n", 1)
	d.caddyProc = startCaddy(t, site, withEnv("OZ_URL", d.oz.URL), withEnv("APP_URL", "http://"+server.Listener.Addr().String()))
	d.app.Handler = demo.New(demo.Options{
		Capture: d.capture, OzSent: d.oz.AnswerSize, Site: d.overHTTP1(), Admin: "http://" + d.Admin,
	})
	server.Start()
	d.chromium = startBrowser(t, append(quicTo(t, d.caddyProc, d.HTTPS),
		fakeCamera, chromedp.Flag("host-resolver-rules", "MAP phone.example 127.0.0.1"))...)
	return d
}

// leastCapsule is how large a capsule is at least: with a busy CPU a clip may have few frames.
const leastCapsule = 64 << 10

// capture makes a capsule in place of the vendor's SDK, as ozsandbox does.
func (d *demoRun) capture(_ context.Context, scene demo.Scene) ([]byte, error) {
	spec := sandbox.CapsuleSpec{
		Outcome: scene.Outcome, SessionToken: scene.SessionToken, Fault: scene.Fault,
		Payload: append(scene.Clip, make([]byte, leastCapsule+scene.Padding)...), Meta: map[string]string{"transaction_id": scene.Transaction},
	}
	if _, damage := sandbox.Damages()[sandbox.Damage(scene.Outcome)]; damage {
		spec.Outcome, spec.Damage = "", sandbox.Damage(scene.Outcome)
	}
	if spec.Damage == sandbox.DamageExpired {
		spec.SessionToken = "" // the gateway's is fresh
	}
	return d.oz.MakeCapsule(spec)
}

// openPage opens the demo page for somebody who lets it use the camera.
func (d *demoRun) openPage(t testing.TB, origin, expected string) *tab {
	t.Helper()
	p := openTab(t, d.chromium, origin, expected)
	p.setCamera(t, browser.PermissionSettingGranted)
	p.setWidth(t, desk)
	p.do(t, chromedp.Navigate(origin+"/"))
	return p
}

// shown is what a person sees on the page of a case that has ended.
type shown struct {
	Decision, Problem, Status, Tries     string
	Verdict, Class, Meaning, Advice      string
	Phases                               []string
	Steps, Headers, Answer, Focus, Phase string
}

// isOver holds when a case has ended, with or without an answer.
const isOver = `['decided', 'failed'].includes(document.body.dataset.state)`

// look returns what the page shows.
func (p *tab) look(t testing.TB) shown {
	t.Helper()
	return inPage[shown](t, p, `(() => {
		const id = name => document.getElementById(name), seen = name => id(name).innerText;
		const {decision, problem, status, tries} = id('result').dataset;
		return {
			Decision: decision, Problem: problem, Status: status, Tries: tries,
			Verdict: seen('verdict'), Class: id('verdict').className, Meaning: seen('meaning'), Advice: seen('advice'),
			Phases: [...document.querySelectorAll('#steps > li')].map(li => li.dataset.phase),
			Headers: seen('headers'), Answer: id('answer').textContent, Focus: document.activeElement.id, Phase: seen('phase'),
			Steps: seen('steps'),
		};
	})()`)
}

// came is what came of a case, looked at from every side.
type came struct {
	page    shown
	app     []rawRequest
	decided []string           // decision and reason of each line "capsule decided"
	counted map[string]float64 // as observed.counted
}

// watch runs do, which makes this number of posts to /verify, and collects what came of it.
func (d *demoRun) watch(t testing.TB, p *tab, posts int, do func()) (c came) {
	t.Helper()
	isPost := []logFilter{isAccess, withField("request.uri", "/verify")}
	before := d.counts(t)
	d.catchUp(t)
	accessed, decided := len(d.logLines(isPost...)), len(d.logLines(isDecided))
	d.app.take()
	do()
	p.await(t, isOver)
	c.page, c.app = p.look(t), d.app.take()
	d.waitForLogs(t, accessed+posts, isPost...) // the access log comes last: then everything else is written
	if n := len(d.logLines(isPost...)) - accessed; n != posts {
		t.Errorf("%d requests to /verify, want %d", n, posts)
	}
	for _, line := range d.logLines(isDecided)[decided:] {
		c.decided = append(c.decided, strings.TrimSpace(line.Get("decision").Str+" "+line.Get("reason").Str))
	}
	c.counted = d.counts(t)
	for series, value := range c.counted {
		if c.counted[series] = value - before[series]; value == before[series] {
			delete(c.counted, series)
		}
	}
	return c
}

// button is the selector of the button that starts a case.
func button(name string) string { return `button[data-outcome="` + name + `"]` }

// browserCase is what must come of a click.
type browserCase struct {
	name    string
	decided []string // by the gateway, with the reason
	refused string   // the problem, where nothing was decided
	app     string   // the decision that the app gets; empty: the app isn't asked
	page    shown    // in part: what is empty isn't compared, but decision and problem are
	sound   bool     // what the page shows then is looked at in each colour and width; with OZ_ALL_TESTS it always is
}

var browserCases = []browserCase{
	{name: "SUCCESS", decided: []string{"SUCCESS"}, app: "SUCCESS", sound: true,
		page: shown{Decision: "SUCCESS", Status: "200", Class: "good", Verdict: "SUCCESS: welcome"}},
	{name: "DECLINED", decided: []string{"DECLINED"}, app: "DECLINED",
		page: shown{Decision: "DECLINED", Status: "403", Class: "bad", Verdict: "DECLINED: no entry"}},
	{name: "FAILED", decided: []string{"FAILED analysis_failed"}, app: "FAILED",
		page: shown{Decision: "FAILED", Status: "403", Class: "bad", Verdict: "FAILED: no entry"}},
	{name: "damaged", decided: []string{"INVALID container"}, sound: true, page: shown{Problem: "container", Status: "400"}},
	{name: "replayed", decided: []string{"SUCCESS", "INVALID replayed"}, app: "SUCCESS", page: shown{Problem: "replayed", Status: "409"}},
	{name: "oz-error", decided: []string{"UNAVAILABLE unexpected_status"}, page: shown{Problem: "unexpected_status", Status: "502"}},
}

// moreBrowserCases are the page's other buttons, for CI.
var moreBrowserCases = []browserCase{
	{name: "OPERATOR_REQUIRED", decided: []string{"OPERATOR_REQUIRED"}, app: "OPERATOR_REQUIRED",
		page: shown{Decision: "OPERATOR_REQUIRED", Status: "403", Class: "wait", Verdict: "OPERATOR_REQUIRED: no entry"}},
	{name: "empty", refused: "empty-capsule", page: shown{Problem: "empty-capsule", Status: "400"}},
	{name: "oz-lying", decided: []string{"UNAVAILABLE malformed_answer"}, page: shown{Problem: "malformed_answer", Status: "502"}},
	{name: "expired", decided: []string{"INVALID container"}, page: shown{Problem: "container", Status: "400"}},
	{name: "garbled", decided: []string{"INVALID container"}, page: shown{Problem: "container", Status: "400"}},
	{name: "oz-garbage", decided: []string{"UNAVAILABLE malformed_answer"}, page: shown{Problem: "malformed_answer", Status: "502"}},
	{name: "oz-cut", decided: []string{"UNAVAILABLE malformed_answer"}, page: shown{Problem: "malformed_answer", Status: "502"}},
	{name: "lost", refused: "client-gone", page: shown{Problem: "network", Status: "0"}},
	{name: "oz-lost", decided: []string{"UNAVAILABLE connection_lost"}, page: shown{Problem: "connection_lost", Status: "502"}},
}

// assert compares what came of a case with what must.
func (want browserCase) assert(t testing.TB, c came) {
	t.Helper()
	got := c.page
	if got.Decision != want.page.Decision || got.Problem != want.page.Problem || got.Status != want.page.Status || got.Tries != "1" ||
		want.page.Verdict != "" && got.Verdict != want.page.Verdict || want.page.Class != "" && got.Class != want.page.Class {
		t.Errorf("the page shows %+v, want %+v", got, want.page)
	}
	if want.app != "SUCCESS" && (got.Class == "good" || strings.Contains(got.Verdict, "welcome")) {
		t.Errorf("the page welcomes: %+v", got)
	}
	if got.Focus != "verdict" || got.Verdict == "" || got.Meaning == "" || got.Phase != "" {
		t.Errorf("somebody who can't see the page learns nothing: %+v", got)
	}
	if !slices.Equal(c.decided, want.decided) {
		t.Errorf("the gateway decided %q, want %q", c.decided, want.decided)
	}
	series := map[string]float64{}
	for _, words := range want.decided {
		decision, reason, _ := strings.Cut(words, " ")
		series[decisionsTotal+`{decision="`+decision+`",reason="`+reason+`"}`]++
	}
	if want.refused != "" {
		series[refusalsTotal+`{problem="`+want.refused+`"}`]++
	}
	if fmt.Sprint(c.counted) != fmt.Sprint(series) {
		t.Errorf("counted: %v, want %v", c.counted, series)
	}
	want.assertApp(t, c)
}

// assertApp compares what the app got, and what the page says that it got.
func (want browserCase) assertApp(t testing.TB, c came) {
	t.Helper()
	if want.app == "" {
		for _, r := range c.app {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		return
	}
	if len(c.app) != 1 {
		t.Fatalf("the app got %d requests, want 1", len(c.app))
	}
	r := c.app[0]
	if r.Value("X-Oz-Decision") != want.app || !strings.Contains(r.Value("User-Agent"), "Chrome/") || r.Value("Content-Type") != "application/json" ||
		!gjson.ValidBytes(r.Body) || bytes.Contains(r.Body, []byte("image_b64")) {
		t.Errorf("the app got:\n%s\n%.1000s", r.Raw(), r.Body)
	}
	if want.page.Decision == "" { // the page shows a later answer
		return
	}
	for _, name := range r.Names("x-oz-") {
		if !strings.Contains(c.page.Headers, name) || !strings.Contains(c.page.Headers, r.Value(name)) {
			t.Errorf("the page doesn't show %s: %s; it shows %s", name, r.Value(name), c.page.Headers)
		}
	}
	if answer := gjson.Parse(c.page.Answer); answer.Get("body.folder_id").Str != r.Value("X-Oz-Folder-Id") {
		t.Errorf("the page shows %.1000s", c.page.Answer)
	}
}

// TestBrowser promises that a person with a camera comes to know each decision in a real browser, over each protocol: what the page
// says is what the app got and what the gateway decided, once.
func TestBrowser(t *testing.T) {
	t.Parallel()
	d := startDemoRun(t)
	t.Run("tab", func(t *testing.T) { testTabNoticesFaults(t, d.chromium) })
	t.Run("axe-core", func(t *testing.T) {
		_, err := axeScript()
		needs(t, "axe-core (npm ci --prefix integration/browser)", err)
	})
	few, all := browserCases[:1], browserCases
	if allTests {
		few, all = browserCases[:2], slices.Concat(browserCases, moreBrowserCases)
	}
	for _, proto := range []struct {
		name, alpn, origin string
		cases              []browserCase
	}{
		{"HTTP/1.1", "http/1.1", d.overHTTP1(), few},
		{"HTTP/2.0", "h2", d.overHTTP2(), all},
		{"HTTP/3.0", "h3", d.overHTTP3(), few},
	} {
		t.Run(proto.name, func(t *testing.T) {
			expected := ""
			if len(proto.cases) > 1 {
				expected = `network error: .* status of (40[0-9]|502) .*/verify\)`
			}
			p := d.openPage(t, proto.origin, expected)
			if proto.alpn == "h2" {
				p.screenshot(t, "demo-start", "header", desk, 900)
				p.assertSound(t, "start")
			}
			for _, test := range proto.cases {
				t.Run(test.name, func(t *testing.T) {
					posts := max(1, len(test.decided))
					test.assert(t, d.watch(t, p, posts, func() { p.do(t, chromedp.Click(chromedp.CSS(button(test.name)))) }))
					if proto.alpn == "h2" && (test.sound || allTests) {
						p.assertSound(t, test.name)
					}
					if proto.alpn == "h2" && test.app == "SUCCESS" && test.page.Decision != "" {
						p.screenshot(t, "demo-success", "#way", desk, 900)
						p.darkScreenshot(t, "demo-dark", "#way", desk, 900)
						p.screenshot(t, "demo-phone", "#result", phone, 780)
					}
				})
			}
			for _, a := range p.answersTo("/verify") {
				if a.Protocol != proto.alpn {
					t.Errorf("a capsule went over %s, want %s", a.Protocol, proto.alpn)
				}
			}
			assertBrowserSpoke(t, d.caddyProc, proto.name)
		})
	}
	for i, r := range d.oz.Received() {
		if len(r.Header["Cookie"])+len(r.Header["Origin"])+len(r.Header["Referer"]) > 0 {
			t.Errorf("Oz got with capsule %d: %v", i, r.Header)
		}
	}
}

// assertBrowserSpoke fails the test unless the last capsule came over this protocol.
func assertBrowserSpoke(t testing.TB, p *caddyProc, proto string) {
	t.Helper()
	lines := p.waitForLogs(t, 1, isAccess, withField("request.uri", "/verify"), withField("request.proto", proto))
	if len(lines) == 0 || !strings.Contains(lines[0].Get("request.headers.User-Agent").String(), "Chrome/") {
		t.Errorf("logged: %v", lines)
	}
}
