//go:build slow

package integration_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// fetched is what a page sees of an answer.
type fetched struct {
	Status int64  `json:"status"`
	Text   string `json:"text"`
	Error  string `json:"error"`
}

// fetchInPage posts so many bytes from the page that the browser shows.
func fetchInPage(t testing.TB, browser context.Context, size int, kind string) fetched {
	t.Helper()
	ctx, cancel := context.WithTimeout(browser, patience)
	defer cancel()
	script := fmt.Sprintf(`fetch('/verify', {method: 'POST', headers: {'Content-Type': %q}, body: new Blob([new Uint8Array(%d)])})
		.then(async answer => ({status: answer.status, text: await answer.text(), error: ''}))
		.catch(error => ({status: 0, text: '', error: String(error)}))`, kind, size)
	got, err := chromedp.Run(ctx, chromedp.Evaluate[fetched](script, chromedp.EvalAwaitPromise))
	if err != nil {
		got.Error = err.Error()
	}
	return got
}

// TestBrowserSeesRefusals promises that a page that posts megabytes sees the refusal, over each protocol, and not a network error.
func TestBrowserSeesRefusals(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	`+plainOnLocalhost+`
	oz_instant /verify {$OZ} {
		max_capsule 10MiB
	}
	reverse_proxy {$APP}
}`)
	browser := startBrowser(t, quicTo(t, x.caddyProc, x.HTTPS)...)
	for _, proto := range []struct{ name, url string }{
		{"HTTP/1.1", "http://" + x.HTTP},
		{"HTTP/2.0", "https://localhost:" + portOf(x.HTTPS)},
		{"HTTP/3.0", "https://" + x.HTTPS},
	} {
		t.Run(proto.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(browser, patience)
			defer cancel()
			check(t, chromedp.Do(ctx, chromedp.Navigate(proto.url+"/page")))
			for _, test := range []struct {
				fault   string
				size    int
				kind    string
				status  int64
				problem string
			}{
				{"", 8_000_000, "text/plain", 415, "unsupported-media-type"},
				{"", 16_000_000, "application/octet-stream", 413, "capsule-too-large"},
				{"early:400", 8_000_000, "application/octet-stream", 400, "container"},
			} {
				x.oz.fault(t, test.fault)
				for range 2 {
					got := fetchInPage(t, browser, test.size, test.kind)
					if got.Status != test.status || !strings.HasSuffix(gjson.Get(got.Text, "type").Str, ":"+test.problem) {
						t.Errorf("%s, %d bytes: the page saw %+v", test.problem, test.size, got)
					}
				}
			}
			assertBrowserSpoke(t, x.caddyProc, proto.name)
		})
	}
}
