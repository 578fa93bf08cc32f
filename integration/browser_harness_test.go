//go:build slow

package integration_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// badPage does what no page may, when it is asked to.
const badPage = `<!doctype html><html lang="en"><title>Bad</title><style>button { outline: none }</style>
<main><h1>Bad</h1><p style="color: #ccc; background: #fff">pale</p><button>no ring</button><div style="width: 500px">wide</div></main>`

// testTabNoticesFaults shows the tab a page that does what no page may: a test that looks at the demo page must fail then.
func testTabNoticesFaults(t *testing.T, chromium context.Context) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	defer elsewhere.Close()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; connect-src *; img-src 'self'")
		io.WriteString(w, badPage)
	}))
	defer site.Close()
	p := openTab(t, chromium, site.URL, "")
	p.do(t, chromedp.Navigate(site.URL))
	for name, test := range map[string]struct{ script, want string }{
		"console":       {`console.log('hello', 7)`, `console.log: "hello" 7`},
		"exception":     {`setTimeout(() => { throw new Error('boom') })`, "boom"},
		"policy":        {`document.body.append(Object.assign(document.createElement('script'), {textContent: '0'}))`, "Content Security Policy"},
		"other origin":  {`void fetch('` + elsewhere.URL + `', {mode: 'no-cors'})`, "elsewhere: " + elsewhere.URL},
		"network error": {`void fetch('http://` + deadAddress(t) + `').catch(() => 0)`, "ERR_CONNECTION_REFUSED"},
	} {
		t.Run(name, func(t *testing.T) {
			defer p.forgive()
			p.do(t, chromedp.Evaluate[chromedp.Void](test.script+"; 0"))
			p.awaitFault(t, test.want)
			fake := &recordingTB{TB: t}
			if p.judge(fake, ""); fake.errors == 0 {
				t.Error("the tab lets it pass")
			}
			before := fake.errors
			if p.judge(fake, "."); fake.errors != before {
				t.Error("the tab lets nothing pass")
			}
			if p.judge(fake, "what did not come"); fake.errors < before+2 {
				t.Error("the tab doesn't miss what must come")
			}
		})
	}
	for name, look := range map[string]func(testing.TB){
		"contrast": func(t testing.TB) { p.axe(t, "bad") },
		"width":    func(t testing.TB) { p.setWidth(t, phone); p.assertFits(t, "bad") },
		"focus":    func(t testing.TB) { p.tabTo(t, "button") },
	} {
		if _, err := axeScript(); err != nil && name == "contrast" {
			continue // TestBrowser/axe-core is skipped, or fails
		}
		fake := &recordingTB{TB: t}
		if look(fake); fake.errors == 0 {
			t.Errorf("%s: the fault isn't found", name)
		}
	}
}

// forgive forgets what the page has done wrong.
func (p *tab) forgive() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = nil
}

// awaitFault returns when the page has done something wrong.
func (p *tab) awaitFault(t testing.TB, want string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		p.mu.Lock()
		all, more := strings.Join(p.faults, "\n"), p.more
		p.mu.Unlock()
		if strings.Contains(all, want) {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("%q didn't come; the tab noticed: %s", want, all)
		}
	}
}
