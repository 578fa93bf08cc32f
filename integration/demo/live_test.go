package demo

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// startAdmin starts a stand-in for Caddy's admin API.
func startAdmin(t *testing.T, answer http.HandlerFunc) (address string) {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return server.URL
}

func TestStatus(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	say := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			w.Write([]byte(body))
		}
	}
	const status = `{"ready":true,"ways":[]}`
	for name, c := range map[string]struct{ admin, want string }{
		"a status":    {startAdmin(t, say(200, status)), `"ready": true`},
		"with slash":  {startAdmin(t, say(200, status)) + "/", `"ready": true`},
		"no module":   {startAdmin(t, say(404, `{"error":"resource not found"}`)), `"error": "this Caddy has no /oz_instant/status"`},
		"not allowed": {startAdmin(t, say(403, `{"error":"host not allowed: secret"}`)), `"error": "the admin API of Caddy answered 403"`},
		"no JSON":     {startAdmin(t, say(200, "<html>")), `"error": "what the admin API of Caddy answered isn't JSON"`},
		"too long":    {startAdmin(t, say(200, `"`+strings.Repeat("x", maxStatus)+`"`)), `isn't JSON"`},
		"a redirect":  {startAdmin(t, http.RedirectHandler("/elsewhere", http.StatusFound).ServeHTTP), `"error": "the admin API of Caddy answered 302"`},
		"gone":        {gone.URL, `"error": "the admin API of Caddy cannot be reached"`},
		"cut": {startAdmin(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte(status))
		}), `"error": "the answer of the admin API was cut"`},
	} {
		w := serve(New(Options{Admin: c.admin}), "GET", "/demo/status", "", nil)
		if w.Code != 200 || !strings.Contains(w.Body.String(), c.want) || strings.Contains(w.Body.String(), "secret") || strings.Contains(w.Body.String(), "127.0.0.1") {
			t.Errorf("%s: %d %.300s", name, w.Code, w.Body)
		}
		if w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", name, w.Header())
		}
	}
}

func TestStatusIsAskedByItsPath(t *testing.T) {
	var asked string
	admin := startAdmin(t, func(w http.ResponseWriter, r *http.Request) {
		asked = r.Method + " " + r.URL.Path + " " + r.Header.Get("Cookie")
		w.Write([]byte("{}"))
	})
	w := serve(New(Options{Admin: admin}), "GET", "/demo/status", "", http.Header{"Cookie": {"user=alice"}})
	if w.Code != 200 || asked != "GET /oz_instant/status " {
		t.Errorf("%d, asked %q", w.Code, asked)
	}
	if w := serve(New(Options{Admin: admin}), "POST", "/demo/status", "", nil); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
}

// A name that another site had resolved to this machine gets neither a status nor a flood.
func TestOwnName(t *testing.T) {
	app := New(Options{
		Capture: anyCapsule, Site: startGateway(t, func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, nil) }),
		Admin: startAdmin(t, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"ready":true}`)) }),
	})
	named := New(Options{Capture: anyCapsule, Site: "https://app.example.com", Admin: "http://127.0.0.1:1"})
	for host, own := range map[string]bool{
		"localhost:3000": true, "localhost": true, "127.0.0.1:3000": true, "[::1]:3000": true, "192.168.1.5:8080": true,
		"evil.example:3000": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "": false, "app.example.com": false,
	} {
		status, flood := httptest.NewRequest("GET", "/demo/status", nil), floodRequest(`{"count":0}`)
		status.Host, flood.Host = host, host
		if w := do(app, status); w.Code != 200 || strings.Contains(w.Body.String(), "ready") != own || strings.Contains(w.Body.String(), "isn't its own") == own {
			t.Errorf("the status, of %q: %d %s", host, w.Code, w.Body)
		}
		if w := do(app, flood); (w.Code == 400) != own || (w.Code == 403) == own {
			t.Errorf("a flood, of %q: %d %s", host, w.Code, w.Body)
		}
	}
	r := httptest.NewRequest("GET", "/demo/status", nil)
	r.Host = "App.Example.com:8443"
	if w := do(named, r); w.Code != 200 || strings.Contains(w.Body.String(), "isn't its own") {
		t.Errorf("its own name: %d %s", w.Code, w.Body)
	}
}
