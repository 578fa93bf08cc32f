//go:build slow

package integration_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"image/png"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// startBrowser starts a Chromium of its own, without any setting of the machine, that ends with the test.
func startBrowser(t testing.TB, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	home := t.TempDir()
	options := append([]chromedp.ExecAllocatorOption{
		chromedp.ExecPath(program(t, "chromium")), chromedp.UserDataDir(home), chromedp.Env("HOME=" + home),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.IgnoreCertErrors, // the test's own
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
	}, more...)
	allocator, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel) // which waits for its end
	browser, closeTab := chromedp.NewContext(allocator)
	t.Cleanup(closeTab)
	check(t, chromedp.Do(browser)) // starts it
	return browser
}

// fakeCamera gives Chromium a camera, which shows a clock. Whether a page may use it, its tab says.
var fakeCamera = chromedp.Flag("use-fake-device-for-media-stream", "device-count=1,fps=10")

// quicTo has Chromium speak HTTP/3, and nothing else, to these addresses of a Caddy, with the test's certificate: Chromium asks more
// of a certificate over QUIC than IgnoreCertErrors forgives.
func quicTo(t testing.TB, p *caddyProc, addresses ...string) []chromedp.ExecAllocatorOption {
	t.Helper()
	leaf, err := x509.ParseCertificate(p.cert.Certificate.Certificate[0])
	check(t, err)
	key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return []chromedp.ExecAllocatorOption{
		chromedp.Flag("disable-quic", false), chromedp.Flag("origin-to-force-quic-on", strings.Join(addresses, ",")),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])),
	}
}

// plainOnLocalhost, in a site, keeps Chromium at HTTP/2 under this name: nothing tells it that there is HTTP/3.
const plainOnLocalhost = `@plain host localhost
	header @plain -Alt-Svc`

// tab is a page in a browser context of its own: no cookie, cache or permission of another tab. What no page may do fails the test
// at its end: write to the console, throw, break its own policy, ask another origin.
type tab struct {
	ctx    context.Context
	origin string // the only one that is asked

	mu      sync.Mutex
	faults  []string
	more    chan struct{} // closed with the next fault
	answers []*network.Response
}

// openTab opens an empty tab for a site, such as http://127.0.0.1:8080. Of its faults only those may come that match expected, a
// regular expression, and if there is one, some must: a lost connection, say, is written to the console by Chromium itself.
func openTab(t testing.TB, chromium context.Context, origin, expected string) *tab {
	t.Helper()
	p := &tab{origin: origin, more: make(chan struct{})}
	ctx, closeTab := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext(), chromedp.WithListener(p.hear))
	t.Cleanup(func() {
		closeTab()
		p.judge(t, expected)
	})
	p.ctx = ctx
	check(t, chromedp.Do(ctx)) // opens it
	return p
}

// hear notes what the page does. It runs where chromedp reads its messages and mustn't wait.
func (p *tab) hear(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		var words []string
		for _, arg := range e.Args {
			words = append(words, string(arg.Value)+arg.Description)
		}
		p.fault(fmt.Sprintf("console.%s: %s", e.Type, strings.Join(words, " ")))
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
		p.fault("exception: " + text)
	case *log.EventEntryAdded: // CSP, lost connections, deprecated calls
		if e.Entry.Level == log.EntryLevelWarning || e.Entry.Level == log.EntryLevelError {
			p.fault(fmt.Sprintf("%s %s: %s (%s)", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL))
		}
	case *network.EventRequestWillBeSent:
		if !p.isOwn(e.Request.URL) {
			p.fault("elsewhere: " + e.Request.URL)
		}
	case *network.EventResponseReceived:
		p.answers = append(p.answers, e.Response)
	}
}

// fault must be called with mu held.
func (p *tab) fault(text string) {
	p.faults = append(p.faults, text)
	close(p.more)
	p.more = make(chan struct{})
}

// isOwn reports whether an address leads to the page's own origin, or nowhere.
func (p *tab) isOwn(address string) bool {
	u, err := url.Parse(address)
	return err == nil && (u.Scheme == "data" || u.Scheme == "blob" || u.Scheme+"://"+u.Host == p.origin)
}

func (p *tab) judge(t testing.TB, expected string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	came := false
	for _, fault := range p.faults {
		if expected != "" && regexp.MustCompile(expected).MatchString(fault) {
			came = true
			continue
		}
		t.Errorf("the page did what it mustn't: %s", fault)
	}
	if expected != "" && !came {
		t.Errorf("no message of the browser matches %q", expected)
	}
}

// answersTo returns the responses to requests of a path so far.
func (p *tab) answersTo(path string) (found []*network.Response) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.answers {
		if a.URL == p.origin+path {
			found = append(found, a)
		}
	}
	return found
}

// do runs steps in the tab, within patience.
func (p *tab) do(t testing.TB, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatalf("%v; the page shows:\n%s", err, p.text())
	}
}

// text returns what the page shows, for a test that fails.
func (p *tab) text() string {
	ctx, cancel := context.WithTimeout(p.ctx, 2*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`))
	if err != nil {
		return err.Error()
	}
	return text
}

// inPage returns the value of a JavaScript expression, or of the promise that it is.
func inPage[T any](t testing.TB, p *tab, expression string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		_, condition, _ := strings.Cut(expression, "holds = () => ") // of await
		first, _, _ := strings.Cut(cmp.Or(condition, expression), "\n")
		t.Fatalf("%s: %v; the page shows:\n%s", first, err, p.text())
	}
	return value
}

// await returns when a JavaScript expression is true of the page. The page tells when it changes.
func (p *tab) await(t testing.TB, condition string) {
	t.Helper()
	inPage[bool](t, p, `new Promise(done => {
		const holds = () => `+condition+`;
		if (holds()) { done(true); return; }
		const look = () => { if (holds()) { watcher.disconnect(); clearInterval(clock); done(true); } };
		const watcher = new MutationObserver(look);
		watcher.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
		const clock = setInterval(look, 100); // focus and form values change without a mutation
	})`)
}

// moment is what the page shows for a moment.
type moment struct {
	State, Problem, Status, Advice string
	Progress                       float64 // of the upload, in percent
}

// note has the page note what it shows from now on, each time that it changes: on a busy machine a moment can be over before a test
// has asked for it.
func (p *tab) note(t testing.TB) {
	t.Helper()
	p.do(t, chromedp.Evaluate[chromedp.Void](`window.moments = [], new MutationObserver(() => {
		const id = name => document.getElementById(name), {problem, status} = id('result').dataset;
		moments.push({state: document.body.dataset.state, problem, status, advice: id('advice').textContent, progress: id('progress').value});
	}).observe(document, {subtree: true, childList: true, attributes: true, characterData: true}), 0`))
}

// hadMoment reports whether the page showed something since it began to note it.
func (p *tab) hadMoment(t testing.TB, is func(moment) bool) bool {
	t.Helper()
	return slices.ContainsFunc(inPage[[]moment](t, p, `moments`), is)
}

// setCamera says whether the person lets the page use the camera.
func (p *tab) setCamera(t testing.TB, setting browser.PermissionSetting) {
	t.Helper()
	_, err := chromedp.CallBrowser(p.ctx, browser.SetPermission, browser.SetPermissionParams{
		Permission: &browser.PermissionDescriptor{Name: "camera"}, Setting: setting,
		BrowserContextID: chromedp.FromContext(p.ctx).BrowserContextID,
	})
	check(t, err)
}

// setMedia has the page see what the person prefers, such as prefers-color-scheme: dark.
func (p *tab) setMedia(t testing.TB, features ...string) {
	t.Helper()
	var list []*emulation.MediaFeature
	for pair := range slices.Chunk(features, 2) {
		list = append(list, &emulation.MediaFeature{Name: pair[0], Value: pair[1]})
	}
	_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: list})
	check(t, err)
}

// conditions are those of Network.emulateNetworkConditions. Its successor asks for other parameters in each version of Chromium.
type conditions struct {
	Offline  bool    `json:"offline"`
	Latency  float64 `json:"latency"`
	Download float64 `json:"downloadThroughput"`
	Upload   float64 `json:"uploadThroughput"`
}

var setConditions = cdp.Command[conditions, cdp.Empty]{Method: "Network.emulateNetworkConditions"}

// setNetwork limits the upload to a number of bytes a second (-1: no limit), or cuts the way to the server.
func (p *tab) setNetwork(t testing.TB, offline bool, upload float64) {
	t.Helper()
	_, err := chromedp.Call(p.ctx, setConditions, conditions{Offline: offline, Download: -1, Upload: upload})
	check(t, err)
}

// phone and desk are how wide a page is shown. 360 CSS pixels are the narrowest phones in use.
const (
	phone = 360
	desk  = 1024
)

// setWidth shows the page as wide as that.
func (p *tab) setWidth(t testing.TB, width int64) {
	t.Helper()
	p.do(t, chromedp.EmulateViewport(width, 800))
}

// press presses and releases keys, of package kb or letters, one after the other.
func (p *tab) press(t testing.TB, keys ...string) {
	t.Helper()
	for _, key := range keys {
		p.do(t, chromedp.KeyEvent(key))
	}
}

// tabTo moves the focus on with the Tab key until it is on what a CSS selector says. It fails if it gets round to where it began,
// and if an element that has the focus on the way doesn't show it.
func (p *tab) tabTo(t testing.TB, selector string) {
	t.Helper()
	for range 60 {
		p.press(t, kb.Tab)
		p.assertFocusShows(t)
		if inPage[bool](t, p, `document.activeElement.matches(`+quoteJS(selector)+`)`) {
			return
		}
	}
	t.Fatalf("the Tab key doesn't lead to %s; the page shows:\n%s", selector, p.text())
}

// assertFocusShows fails the test if a person can't see which element has the focus.
func (p *tab) assertFocusShows(t testing.TB) {
	t.Helper()
	const script = `(() => {
		const e = document.activeElement, s = getComputedStyle(e), box = e.getBoundingClientRect();
		if (e === document.body || e === document.documentElement) return '';
		const ringed = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 || s.boxShadow !== 'none';
		const inView = box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight;
		return ringed && inView ? '' : e.outerHTML.slice(0, 200) + ' outline ' + s.outline + ' at ' + JSON.stringify(box);
	})()`
	if hidden := inPage[string](t, p, script); hidden != "" {
		t.Errorf("the focus can't be seen on %s", hidden)
	}
}

// quoteJS returns a text as a JavaScript string.
func quoteJS(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`).Replace(text) + "'"
}

// axeScript returns axe-core, which finds faults of accessibility.
var axeScript = sync.OnceValues(func() (string, error) {
	root, err := caddybin.Root()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(root, "integration", "browser", "node_modules", "axe-core", "axe.min.js"))
	return string(text), err
})

// axe has axe-core look at the page as it is, by all its rules. It goes in past the page's policy, which lets no script from outside
// run.
func (p *tab) axe(t testing.TB, state string) {
	t.Helper()
	script, err := axeScript()
	if err != nil {
		return // TestBrowser/axe-core is skipped, or fails
	}
	if !inPage[bool](t, p, `'axe' in window`) {
		p.do(t, chromedp.Evaluate[chromedp.Void](script+"\n;0"))
	}
	violations := inPage[[]string](t, p, `axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v =>
		v.id + ' (' + v.impact + '): ' + v.nodes.map(n => n.target.join(' ') + ': ' + n.failureSummary).join('; ')))`)
	for _, v := range violations {
		t.Errorf("%s: axe-core finds %s", state, v)
	}
}

// assertFits fails the test if the page must be moved sideways to be read.
func (p *tab) assertFits(t testing.TB, state string) {
	t.Helper()
	const script = `[...document.querySelectorAll('body *')].filter(e => document.scrollingElement.scrollWidth > innerWidth
		&& e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 120))
		.concat(document.scrollingElement.scrollWidth > innerWidth ? [document.scrollingElement.scrollWidth + ' > ' + innerWidth] : [])`
	if wide := inPage[[]string](t, p, script); len(wide) > 0 {
		t.Errorf("%s: the page is too wide: %s", state, strings.Join(wide, "\n"))
	}
}

// assertSound looks at the page's present state as most people see it, and as those do who like the dark, no motion, and hold a
// narrow phone. It leaves the page as it was opened.
func (p *tab) assertSound(t testing.TB, state string) {
	t.Helper()
	p.axe(t, state)
	p.setMedia(t, "prefers-color-scheme", "dark", "prefers-reduced-motion", "reduce")
	p.await(t, `document.getAnimations().length === 0`) // what had begun has ended, and nothing begins
	p.setWidth(t, phone)
	p.assertFits(t, state+", on a phone")
	p.axe(t, state+", dark, on a phone")
	p.setMedia(t)
	p.setWidth(t, desk)
}

// assertSoundInCI does so where time doesn't matter.
func (p *tab) assertSoundInCI(t testing.TB, state string) {
	t.Helper()
	if allTests {
		p.assertSound(t, state)
	}
}

// pictures is the folder where screenshots are kept, if anywhere: OZ_SCREENSHOTS, from the top folder.
func pictures(t testing.TB) string {
	t.Helper()
	folder := os.Getenv("OZ_SCREENSHOTS")
	if folder == "" || filepath.IsAbs(folder) {
		return folder
	}
	root, err := caddybin.Root() // tests run in their package's folder
	check(t, err)
	return filepath.Join(root, folder)
}

// screenshot keeps a picture of the page, from an element downwards, as wide and high as that.
func (p *tab) screenshot(t testing.TB, name, from string, width, height int64) {
	t.Helper()
	folder := pictures(t)
	if folder == "" {
		return
	}
	p.do(t, chromedp.EmulateViewport(width, height))
	p.await(t, `document.getAnimations().length === 0`)
	p.do(t, chromedp.Evaluate[chromedp.Void](`scrollTo(0, document.querySelector(`+quoteJS(from)+`).getBoundingClientRect().top + scrollY - 16)`))
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	check(t, err)
	p.setWidth(t, desk)

	// Chromium compresses fast, not well.
	img, err := png.Decode(bytes.NewReader(picture))
	check(t, err)
	var small bytes.Buffer
	check(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, img))
	check(t, os.MkdirAll(folder, 0o755))
	check(t, os.WriteFile(filepath.Join(folder, name+".png"), small.Bytes(), 0o644))
}

// darkScreenshot does the same for people who prefer dark colours.
func (p *tab) darkScreenshot(t testing.TB, name, from string, width, height int64) {
	t.Helper()
	p.setMedia(t, "prefers-color-scheme", "dark")
	p.screenshot(t, name, from, width, height)
	p.setMedia(t)
}

// relay passes bytes on, as a network does. It can break.
type relay struct {
	Addr string

	mu     sync.Mutex
	broken bool
	word   string // after which bytes are counted; empty: they are
	left   int    // bytes from clients until it breaks; -1: any number
	conns  map[net.Conn]bool
}

// startRelay starts a relay to an address that works until the test ends or breaks it.
func startRelay(t testing.TB, to string) *relay {
	t.Helper()
	r := &relay{left: -1, conns: map[net.Conn]bool{}}
	r.Addr = startServer(t, func(client net.Conn) { r.pass(client, to) })
	return r
}

func (r *relay) pass(client net.Conn, to string) {
	if !r.has(client) {
		return
	}
	defer r.forget(client)
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		io.Copy(client, server)
		client.Close()
	}()
	piece := make([]byte, 16<<10)
	for {
		n, err := client.Read(piece)
		if err != nil || !r.lets(piece[:n]) {
			return
		}
		if _, err := server.Write(piece[:n]); err != nil {
			return
		}
	}
}

// has notes a connection, if there is a network for it.
func (r *relay) has(client net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.broken {
		r.conns[client] = true
	}
	return !r.broken
}

func (r *relay) forget(client net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, client)
}

// lets reports whether bytes of a client get through. With the last that may, everything breaks.
func (r *relay) lets(piece []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.word != "" && bytes.Contains(piece, []byte(r.word)) {
		r.word = ""
	}
	switch {
	case r.broken || r.word != "" || r.left < 0:
	case r.left > len(piece):
		r.left -= len(piece)
	default:
		r.broken = true
		r.closeAll()
	}
	return !r.broken
}

func (r *relay) closeAll() {
	for client := range r.conns {
		client.Close()
	}
}

// cut ends all connections, and lets new ones through.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closeAll()
}

// breakAfter breaks the network once clients have sent a word and then n bytes.
func (r *relay) breakAfter(word string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.word, r.left = word, n
}

// mend lets new connections through.
func (r *relay) mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken, r.word, r.left = false, "", -1
}
