package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func anyCapsule(context.Context, Scene) ([]byte, error) { return []byte("a capsule"), nil }

// floodRequest asks for a flood as the page does, through a gateway on this machine.
func floodRequest(body string, more ...string) *http.Request {
	r := httptest.NewRequest("POST", "http://localhost:8080/demo/flood", strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:5000"
	r.Header.Set("X-Forwarded-For", "127.0.0.1")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for i := 0; i < len(more); i += 2 {
		if r.Header.Del(more[i]); more[i+1] != "" {
			r.Header.Set(more[i], more[i+1])
		}
	}
	return r
}

func do(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// startGateway starts a stand-in for the gateway.
func startGateway(t *testing.T, answer http.HandlerFunc) (site string) {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return server.URL
}

// floodEnds waits for the end of a flood.
func floodEnds(t *testing.T, app http.Handler) (now floodNumbers) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w := serve(app, "GET", "/demo/flood", "", nil)
		if err := json.Unmarshal(w.Body.Bytes(), &now); err != nil {
			t.Fatal(err)
		}
		if !now.Running {
			return now
		}
		if time.Now().After(end) {
			t.Fatalf("still running: %+v", now)
		}
	}
}

// All capsules come at once; one that is refused comes again, the same one, and is served in the end.
func TestFlood(t *testing.T) {
	const count = 20
	var made atomic.Int32
	var mu sync.Mutex
	seen, refused := map[string]int{}, 0
	all := make(chan struct{})
	site := startGateway(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/verify" || r.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%s %s", r.URL.Path, r.Header.Get("Content-Type"))
		}
		mu.Lock()
		seen[string(body)]++
		first := seen[string(body)] == 1
		if len(seen) == count && first {
			close(all)
		}
		refuse := first && len(seen)%2 == 0
		if refuse {
			refused++
		}
		mu.Unlock()
		select {
		case <-all: // which shows that all of them are here together
		case <-t.Context().Done():
		}
		if refuse {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(503)
			return
		}
		writeJSON(w, []int{200, 403}[len(body)%2], nil) // a decision, which 403 is just as well
	})
	app := New(Options{Site: site, Capture: func(_ context.Context, s Scene) ([]byte, error) {
		if s.Outcome != "SUCCESS" || len(s.Clip) != floodPayload {
			return nil, errors.New("another scene")
		}
		return fmt.Appendf(nil, "capsule %d", made.Add(1)), nil
	}})
	if w := do(app, floodRequest(fmt.Sprintf(`{"count":%d}`, count))); w.Code != 202 || !strings.Contains(w.Body.String(), `"running": true`) {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	now := floodEnds(t, app)
	if now.Count != count || now.Served != count || now.Refused != count/2 || now.Sending+now.Waiting+now.Failed != 0 {
		t.Errorf("%+v", now)
	}
	if len(seen) != count || made.Load() != count || refused != count/2 {
		t.Errorf("%d capsules were made, %d came, %d were refused", made.Load(), len(seen), refused)
	}
}

func TestFloodOneAtATime(t *testing.T) {
	goOn := make(chan struct{})
	app := New(Options{Capture: anyCapsule, Site: startGateway(t, func(w http.ResponseWriter, _ *http.Request) {
		<-goOn
		writeJSON(w, 200, nil)
	})})
	if w := do(app, floodRequest(`{"count":2}`)); w.Code != 202 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := do(app, floodRequest(`{"count":2}`)); w.Code != 409 {
		t.Errorf("a second one: %d %s", w.Code, w.Body)
	}
	close(goOn)
	floodEnds(t, app)
	if w := do(app, floodRequest(`{"count":1}`)); w.Code != 202 {
		t.Errorf("after it: %d %s", w.Code, w.Body)
	}
	if now := floodEnds(t, app); now.Count != 1 || now.Served != 1 {
		t.Errorf("%+v", now)
	}
}

// Only the page may flood, from this machine, and not without bounds.
func TestFloodIsRefused(t *testing.T) {
	app := New(Options{Capture: anyCapsule, Site: startGateway(t, func(http.ResponseWriter, *http.Request) { t.Error("a capsule came") })})
	remote := floodRequest(`{"count":1}`)
	remote.RemoteAddr = "192.168.1.5:5000"
	for name, c := range map[string]struct {
		r      *http.Request
		status int
	}{
		"another site":         {floodRequest(`{"count":1}`, "Sec-Fetch-Site", "cross-site"), 403},
		"a subdomain":          {floodRequest(`{"count":1}`, "Sec-Fetch-Site", "same-site"), 403},
		"another origin":       {floodRequest(`{"count":1}`, "Sec-Fetch-Site", "", "Origin", "http://evil.example"), 403},
		"another machine":      {remote, 403},
		"through the gateway":  {floodRequest(`{"count":1}`, "X-Forwarded-For", "192.168.1.5"), 403},
		"one of two":           {floodRequest(`{"count":1}`, "X-Forwarded-For", "127.0.0.1, 10.0.0.1"), 403},
		"an address that isnt": {floodRequest(`{"count":1}`, "X-Forwarded-For", "unknown"), 403},
		"none":                 {floodRequest(`{"count":0}`), 400},
		"less than none":       {floodRequest(`{"count":-1}`), 400},
		"too many":             {floodRequest(`{"count":101}`), 400},
		"no JSON":              {floodRequest(`count=1`), 400},
		"too long":             {floodRequest(strings.Repeat(" ", 2000) + `{"count":1}`), 400},
	} {
		if w := do(app, c.r); w.Code != c.status {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	if now := floodEnds(t, app); now.Count != 0 {
		t.Errorf("%+v", now)
	}
}

// What is neither served nor refused with a time to come again has failed.
func TestFloodFails(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	refuses := func(status int, retryAfter string) string {
		return startGateway(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", retryAfter)
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(status)
		})
	}
	for name, site := range map[string]string{
		"not there": gone.URL, "another status": refuses(502, "1"), "no time": refuses(503, ""), "a date": refuses(503, "Thu, 26 Nov 2026 01:00:00 GMT"),
		"less than no time": refuses(503, "-5"), "no end of time": refuses(503, "9223372036854775807"),
	} {
		app := New(Options{Capture: anyCapsule, Site: site})
		do(app, floodRequest(`{"count":3}`))
		if now := floodEnds(t, app); now.Failed != 3 || now.Served+now.Refused+now.Sending+now.Waiting != 0 {
			t.Errorf("%s: %+v", name, now)
		}
	}
	app := New(Options{Site: gone.URL, Capture: func(context.Context, Scene) ([]byte, error) { return nil, errors.New("no film") }})
	do(app, floodRequest(`{"count":2}`))
	if now := floodEnds(t, app); now.Failed != 2 {
		t.Errorf("without capsules: %+v", now)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// One that is refused comes again when Retry-After is over and not much later, and gives up in the end.
func TestFloodWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const retryAfter = 4 * time.Second
		var last time.Time
		gateway := roundTripper(func(*http.Request) (*http.Response, error) {
			if waited := time.Since(last); !last.IsZero() && (waited < retryAfter || waited > 2*retryAfter) {
				t.Errorf("it came again after %s", waited)
			}
			last = time.Now()
			return &http.Response{StatusCode: 503, Header: http.Header{"Retry-After": {"4"}}, Body: http.NoBody}, nil
		})
		began := time.Now()
		f := &flood{client: &http.Client{Transport: gateway}, capsule: func(context.Context) ([]byte, error) { return nil, nil }}
		f.begin(1)
		f.run(t.Context(), 1)
		now := f.numbers()
		if took := time.Since(began); took != floodPatience || now.Running || now.Failed != 1 || now.Refused < 10 || now.Sending+now.Waiting+now.Served != 0 {
			t.Errorf("after %s: %+v", took, now)
		}
	})
}

// A flood stays on this machine, whatever the site is called.
func TestFloodStaysHere(t *testing.T) {
	var host atomic.Value
	here, err := url.Parse(startGateway(t, func(w http.ResponseWriter, r *http.Request) {
		host.Store(r.Host)
		writeJSON(w, 200, nil)
	}))
	if err != nil {
		t.Fatal(err)
	}
	name := "app.example.com:" + here.Port()
	app := New(Options{Capture: anyCapsule, Site: "http://" + name + "/"})
	do(app, floodRequest(`{"count":1}`))
	if now := floodEnds(t, app); now.Served != 1 || host.Load() != name {
		t.Errorf("%+v, %v", now, host.Load())
	}
}
