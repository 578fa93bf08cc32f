//go:build slow

package integration_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestBrowserStates promises the same to people whose camera, hands or network aren't as the page would like them.
func TestBrowserStates(t *testing.T) {
	t.Parallel()
	d := startDemoRun(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *demoRun)
	}{
		{"camera", testBrowserCamera},
		{"keyboard", testBrowserKeyboard},
		{"slow", testBrowserSlow},
		{"lost", testBrowserLost},
		{"offline", testBrowserOffline},
		{"flood", testBrowserFlood},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, d) })
	}
}

// testBrowserCamera promises a decision to people without a camera, too: they refused it, have none, or opened the page without TLS.
func testBrowserCamera(t *testing.T, d *demoRun) {
	for _, test := range []struct {
		name, origin string
		prepare      func(t testing.TB, p *tab)
	}{
		{"denied", d.overHTTP1(), func(t testing.TB, p *tab) { p.setCamera(t, browser.PermissionSettingDenied) }},
		{"none", d.overHTTP1(), func(t testing.TB, p *tab) {
			p.do(t, chromedp.Evaluate[chromedp.Void](`navigator.mediaDevices.enumerateDevices = async () => []; 0`))
		}},
		{"insecure", d.insecure(), func(testing.TB, *tab) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := d.openPage(t, test.origin, "")
			test.prepare(t, p)
			c := d.watch(t, p, 1, func() { p.do(t, chromedp.Click(chromedp.ID("go"))) })
			browserCases[0].assert(t, c)
			if !strings.Contains(c.page.Steps, "Recorded a drawing") {
				t.Errorf("the timeline doesn't say that a drawing was recorded: %s", c.page.Steps)
			}
		})
	}
}

// testBrowserKeyboard promises the whole round to people who use only a keyboard, and that they always see where they are.
func testBrowserKeyboard(t *testing.T, d *demoRun) {
	p := d.openPage(t, d.overHTTP1(), "network error: .* status of 403")
	p.setMedia(t, "prefers-reduced-motion", "reduce")
	c := d.watch(t, p, 1, func() {
		p.tabTo(t, "a.skip")
		p.press(t, kb.Enter)
		p.await(t, `document.activeElement.id === 'try'`)
		p.tabTo(t, "#go")
		p.tabTo(t, "#source-camera")
		p.press(t, kb.ArrowDown)
		p.await(t, `document.getElementById('source-drawing').checked`)
		p.assertFocusShows(t)
		p.do(t, chromedp.KeyEvent(kb.Tab, chromedp.KeyModifiers(chromedp.ModifierShift)))
		p.await(t, `document.activeElement.id === 'go'`)
		p.press(t, kb.Enter)
	})
	browserCases[0].assert(t, c)
	if !strings.Contains(c.page.Steps, "Recorded a drawing") {
		t.Errorf("the arrow key chose nothing: %s", c.page.Steps)
	}
	p.assertFocusShows(t)
	p.tabTo(t, "#whole > summary")
	p.press(t, " ")
	p.await(t, `document.getElementById('whole').open`)
	c = d.watch(t, p, 1, func() {
		p.tabTo(t, button("DECLINED"))
		p.press(t, " ")
	})
	browserCases[1].assert(t, c)
}

// testBrowserLost promises that a capsule whose upload broke is lost to nobody: nothing is decided, the page says so, and the same
// capsule, sent again once the network is back, is decided once.
func testBrowserLost(t *testing.T, d *demoRun) {
	network := startRelay(t, d.HTTP)
	p := d.openPage(t, "http://"+network.Addr, `network error: .* net::ERR_`)
	p.setNetwork(t, false, leastCapsule) // else the whole capsule is in the buffers of sockets before anything breaks
	network.breakAfter("POST /verify", leastCapsule/2)
	d.oz.Forget()
	c := d.watch(t, p, 1, func() { p.do(t, chromedp.Click(chromedp.ID("go"))) })
	got := c.page
	if got.Problem != "network" || got.Status != "0" || got.Class != "wait" || got.Focus != "verdict" || !strings.Contains(got.Meaning, "can be sent again") {
		t.Errorf("the page shows %+v", got)
	}
	if len(c.app)+len(c.decided) > 0 || len(c.counted) != 1 || c.counted[refusalsTotal+`{problem="client-gone"}`] != 1 {
		t.Errorf("decided: %q, counted: %v, and the app got %d requests", c.decided, c.counted, len(c.app))
	}
	p.assertSoundInCI(t, "connection lost")
	network.mend()
	p.setNetwork(t, false, -1)
	c = d.watch(t, p, 1, func() { p.do(t, chromedp.Click(chromedp.ID("again"))) })
	browserCases[0].assert(t, c)
	if want := []string{"upload", "wait", "decision"}; !slices.Equal(c.page.Phases, want) {
		t.Errorf("the phases are %q, want %q", c.page.Phases, want)
	}
}

// testBrowserOffline promises that somebody who is offline is told so, and gets a decision once they are back.
func testBrowserOffline(t *testing.T, d *demoRun) {
	p := d.openPage(t, d.overHTTP2(), "ERR_INTERNET_DISCONNECTED")
	p.setNetwork(t, true, -1)
	c := d.watch(t, p, 0, func() { p.do(t, chromedp.Click(chromedp.ID("go"))) })
	if got := c.page; got.Problem != "offline" || got.Status != "0" || got.Class != "wait" || !strings.Contains(got.Verdict, "offline") || got.Focus != "verdict" {
		t.Errorf("the page shows %+v", got)
	}
	p.assertSoundInCI(t, "offline")
	p.setNetwork(t, false, -1)
	browserCases[0].assert(t, d.watch(t, p, 1, func() { p.do(t, chromedp.Click(chromedp.ID("anew"))) }))
}

// testBrowserSlow promises that somebody on a slow network sees how far the upload is.
func testBrowserSlow(t *testing.T, d *demoRun) {
	p := d.openPage(t, d.overHTTP1(), "")
	p.setNetwork(t, false, leastCapsule)
	p.note(t)
	c := d.watch(t, p, 1, func() {
		p.do(t, chromedp.Click(chromedp.ID("go")))
		p.await(t, `['capture', 'capsule', 'upload', 'wait'].includes(document.body.dataset.state) || `+isOver)
		p.assertSoundInCI(t, "recording")
		p.await(t, `document.body.dataset.state === 'upload' || `+isOver)
		p.assertSound(t, "uploading")
	})
	if !p.hadMoment(t, func(m moment) bool { return m.State == "upload" && m.Progress > 0 && m.Progress < 100 }) {
		t.Error("the page didn't show how far the upload is")
	}
	browserCases[0].assert(t, c)
}

var countdown = regexp.MustCompile(`sent again in \d+ s`)

// fromChromium picks requests of the page, as against those of the flood, which Go makes.
var fromChromium = func(line logLine) bool {
	return strings.Contains(line.Get("request.headers.User-Agent").String(), "Chrome/")
}

// testBrowserFlood promises that a person whom a full gateway refuses is told when the same capsule is sent again, and that it is
// served then: once, without a new capture. Meanwhile the page shows what the gateway does.
func testBrowserFlood(t *testing.T, d *demoRun) {
	// The gateway knows by now how long analyses take, else it would send people away for longer than this test waits.
	d.client(t, "h1").post(t, "/verify", d.oz.Capsule(sandbox.CapsuleSpec{}))
	p := d.openPage(t, d.overHTTP2(), `network error: .* status of 503 .*/verify\)`)
	p.await(t, `document.getElementById('live').dataset.state === 'on'`)
	p.awaitFact(t, "slots", `^0 of 3$`)
	before := p.fact(t, "decision-SUCCESS")
	d.analysisTime(2 * time.Second)
	d.app.take()
	p.note(t)
	p.do(t, chromedp.Click(chromedp.CSS(button("overloaded"))))
	p.await(t, `document.body.dataset.state === 'waiting' || `+isOver)
	p.awaitFact(t, "slots", `^3 of 3$`)
	p.awaitFact(t, "queue", `^[1-9]\d* of 12$`)
	p.do(t, chromedp.Click(chromedp.ID("pause")))
	p.await(t, `document.getElementById('live').dataset.state === 'paused' && document.getElementById('pause').ariaPressed === 'true'`)
	d.analysisTime(0)
	p.darkScreenshot(t, "demo-flood", "#result", desk, 800)
	p.assertSound(t, "flood")
	p.do(t, chromedp.Click(chromedp.ID("pause")))

	p.await(t, `document.body.dataset.state === 'decided' && document.getElementById('result').dataset.decision === 'SUCCESS'`)
	if !p.hadMoment(t, func(m moment) bool {
		return m.State == "waiting" && m.Problem == "overloaded" && m.Status == "503" && countdown.MatchString(m.Advice)
	}) {
		t.Error("the page didn't show that it was refused, and when the capsule is sent again")
	}
	got := p.look(t)
	if got.Tries < "2" || !slices.Equal(got.Phases[:4], []string{"token", "capture", "capsule", "flood"}) || slices.Contains(got.Phases[4:], "capture") {
		t.Errorf("the page shows %+v", got)
	}
	served := slices.DeleteFunc(d.app.take(), func(r rawRequest) bool { return !strings.Contains(r.Value("User-Agent"), "Chrome/") })
	if len(served) != 1 || served[0].Value("X-Oz-Decision") != "SUCCESS" {
		t.Errorf("the app got %d requests of the page, want 1 with SUCCESS", len(served))
	}
	d.assertServedLast(t)

	p.await(t, `document.getElementById('flood-note').textContent.includes('40 of 40')`)
	p.awaitFact(t, "slots", `^0 of 3$`)
	p.await(t, `Number(document.querySelector('[data-fact="decision-SUCCESS"]').textContent) === `+before+` + 41`)
}

// assertServedLast fails the test unless the page's last requests to /verify were refused for want of capacity, and only the very last
// was served.
func (d *demoRun) assertServedLast(t testing.TB) {
	t.Helper()
	var statuses []int64
	for _, line := range d.logLines(isAccess, withField("request.uri", "/verify"), fromChromium) {
		statuses = append(statuses, line.Get("status").Int())
	}
	n := len(statuses)
	if n < 2 || statuses[n-1] != 200 || statuses[n-2] != 503 {
		t.Errorf("the page's capsules were answered %v, want 503 and then 200 at the end", statuses)
	}
}

// analysisTime has Oz take so long for each analysis from now on.
func (d *demoRun) analysisTime(long time.Duration) {
	o := d.oz.Options()
	o.AnalysisTime = long
	d.oz.SetOptions(o)
}

// fact returns what the live view shows under a name.
func (p *tab) fact(t testing.TB, name string) string {
	t.Helper()
	return inPage[string](t, p, `document.querySelector('[data-fact="`+name+`"]').textContent`)
}

// awaitFact returns when the live view shows under a name what a regular expression of JavaScript says.
func (p *tab) awaitFact(t testing.TB, name, pattern string) {
	t.Helper()
	p.await(t, `/`+pattern+`/.test(document.querySelector('[data-fact="`+name+`"]')?.textContent)`)
}

// newcomer is how long somebody who has started the demo waits for a decision at most, from opening the page.
const newcomer = 10 * time.Second

// TestBrowserDecidesSoon promises a newcomer with a camera, who has run ./xcaddy.sh run, a decision at the first click, and soon.
func TestBrowserDecidesSoon(t *testing.T) {
	t.Parallel()
	root, _ := documents(t)
	x := startXcaddyRun(t, root)
	t.Cleanup(func() { x.stop(t) }) // when the tabs are closed: their pages ask the demo now and then
	origin := x.here.Replace("http://localhost:8080")
	chromium := startBrowser(t, fakeCamera)
	took := newcomer + 1
	for try := 0; took > newcomer && try < 3; try++ { // a machine that stands still for a moment says nothing of the page
		p := openTab(t, chromium, origin, "")
		p.setCamera(t, browser.PermissionSettingGranted)
		start := time.Now()
		p.do(t, chromedp.Navigate(origin+"/"), chromedp.Click(chromedp.ID("go")))
		p.await(t, isOver)
		took = time.Since(start)
		if got := p.look(t); got.Verdict != "SUCCESS: welcome" || !strings.Contains(got.Steps, "Recorded the camera") {
			t.Errorf("the page shows %+v", got)
		}
		t.Logf("from opening the page to the decision: %s", took.Round(time.Millisecond))
	}
	if took > newcomer {
		t.Errorf("that took %s, want at most %s", took, newcomer)
	}
}
