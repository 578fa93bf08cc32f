package integration_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/demo"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// browserSite is the demo app as people reach it.
const browserSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		session_token /session_token
	}
	reverse_proxy {$APP}
}`

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

// startDemo starts the demo app, with a maker of capsules in place of the vendor's SDK.
func startDemo(t testing.TB, oz *ozServer) (app *demoApp, address string) {
	t.Helper()
	app = &demoApp{Handler: demo.New(demo.Options{Capture: func(_ context.Context, scene demo.Scene) ([]byte, error) {
		spec := sandbox.CapsuleSpec{Outcome: scene.Outcome, SessionToken: scene.SessionToken, EventSession: "in-the-browser", PayloadSize: 2 << 20}
		if scene.Outcome == "damaged" {
			spec.Outcome, spec.Damage = "", sandbox.DamageDamaged
		}
		return sandbox.BuildCapsule(spec)
	}})}
	server := httptest.NewServer(app)
	t.Cleanup(server.Close)
	return app, server.Listener.Addr().String()
}

// shown is what a person sees on the page when it has done its work.
type shown struct {
	Verdict string `json:"verdict"`
	Class   string `json:"class"` // of the verdict: its colour
	Steps   string `json:"steps"`
	Answer  string `json:"answer"`
}

// verify opens the page, chooses an outcome and clicks Verify.
func verify(t testing.TB, browser context.Context, url, outcome string) shown {
	t.Helper()
	ctx, cancel := context.WithTimeout(browser, patience)
	defer cancel()
	err := chromedp.Do(ctx,
		chromedp.Navigate(url),
		chromedp.SetValue(chromedp.ID("outcome"), outcome),
		chromedp.Click(chromedp.ID("go")),
		chromedp.WaitVisible(chromedp.ID("answer")),
		chromedp.WaitEnabled(chromedp.ID("go")),
	)
	check(t, err)
	s, err := chromedp.Run(ctx, chromedp.Evaluate[shown](`({
		verdict: byId('verdict').textContent, class: byId('verdict').className,
		steps: byId('steps').textContent, answer: byId('answer').textContent,
	})`))
	check(t, err)
	return s
}

// TestBrowser lets a real browser do the whole round: it asks the gateway for a session token, gets a capsule, posts it with fetch
// to the app's own address, and shows what the app made of the decision.
func TestBrowser(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{BestShotSize: 400_000})
	app, address := startDemo(t, oz)
	p := startCaddy(t, browserSite, withEnv("OZ", oz.URL), withEnv("APP", address))
	browser := startBrowser(t)
	declined := verdict{decision: "DECLINED", status: "FINISHED", system: "DECLINED", quality: "DECLINED"}

	for proto, url := range map[string]string{"HTTP/1.1": "http://" + p.HTTP, "HTTP/2.0": "https://" + p.HTTPS} {
		for outcome, want := range map[string]struct {
			verdict
			text, class string
		}{
			"SUCCESS":  {accepted, "SUCCESS: welcome", "good"},
			"DECLINED": {declined, "DECLINED: no entry", "bad"},
		} {
			t.Run(proto+" "+outcome, func(t *testing.T) {
				s := verify(t, browser, url+"/", outcome)
				if s.Verdict != want.text || s.Class != want.class {
					t.Errorf("the page says %q in %q, want %q", s.Verdict, s.Class, want.text)
				}
				if !strings.Contains(s.Steps, "Got a session token from the gateway.") || !strings.Contains(s.Steps, "Somebody is really there: "+outcome) {
					t.Errorf("the steps are: %s", s.Steps)
				}
				requests := app.take()
				if len(requests) != 1 {
					t.Fatalf("the app got %d requests, want 1", len(requests))
				}
				r := requests[0]
				assertReserved(t, r, want.headers(r, "in-the-browser"))
				if r.Value("Sec-Fetch-Mode") != "cors" || r.Value("Content-Type") != "application/json" || !gjson.ValidBytes(r.Body) || bytes.Contains(r.Body, []byte("image_b64")) {
					t.Errorf("the app got:\n%s\n%.1000s", r.Raw(), r.Body)
				}
				answer := gjson.Parse(s.Answer)
				if answer.Get("oz_headers.X-Oz-Decision").Str != outcome || answer.Get("body.folder_id").Str != r.Value("X-Oz-Folder-Id") {
					t.Errorf("the page shows %.1000s", s.Answer)
				}
				assertBrowserSpoke(t, p, proto)
			})
		}
		t.Run(proto+" damaged", func(t *testing.T) {
			s := verify(t, browser, url+"/", "damaged")
			problem := gjson.Parse(s.Answer)
			if problem.Get("error_code").Int() != 5 || problem.Get("status").Int() != 400 || s.Verdict != problem.Get("title").Str || s.Class != "wait" {
				t.Errorf("the page says %q in %q, and shows %s", s.Verdict, s.Class, s.Answer)
			}
			if requests := app.take(); len(requests) > 0 {
				t.Errorf("the app got:\n%s", requests[0].Raw())
			}
		})
	}
	for i, r := range oz.Received() {
		if r.Size < 2<<20 || !r.Complete || len(r.Header["Cookie"])+len(r.Header["Origin"])+len(r.Header["Referer"]) > 0 {
			t.Errorf("Oz got as capsule %d: %d bytes, %v", i, r.Size, r.Header)
		}
	}
	if n := len(oz.Received()); n != 6 {
		t.Errorf("Oz got %d capsules, want 6", n)
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
