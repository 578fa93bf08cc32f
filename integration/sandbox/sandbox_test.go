package sandbox

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestRoutes(t *testing.T) {
	_, url := start(t, Options{})
	if r := get(t, "GET", url+VersionPath); r.status != 200 {
		t.Errorf("version: %d", r.status)
	}
	if r := get(t, "GET", url+TokenPath); r.status != 200 || !strings.HasPrefix(string(r.body), `{"session_token": "`) {
		t.Errorf("token: %d %s", r.status, r.body)
	}
	for _, c := range []struct{ method, path string }{
		{"GET", FoldersPath}, {"PUT", FoldersPath}, {"POST", TokenPath}, {"DELETE", VersionPath},
	} {
		r := get(t, c.method, url+c.path)
		r.wantError(t, http.StatusMethodNotAllowed, 1)
		if r.header.Get("Allow") == "" {
			t.Errorf("%s %s: 405 without Allow", c.method, c.path)
		}
	}
	for _, path := range []string{"/", "/api/instant/", "/api/folders/", FoldersPath + "x", "/api/instant/folders//"} {
		get(t, "POST", url+path).wantError(t, http.StatusNotFound, 10)
	}
}

func TestBothSpellingsOfPathsUnlessStrict(t *testing.T) {
	s, url := start(t, Options{})
	other := map[string]string{"POST": strings.TrimSuffix(FoldersPath, "/"), "GET": TokenPath + "/"}
	get(t, "POST", url+other["POST"]).wantError(t, 400, 13)
	if r := get(t, "GET", url+other["GET"]); r.status != 200 {
		t.Errorf("token with a slash: %d", r.status)
	}
	s.SetOptions(Options{StrictSlash: true})
	for method, path := range other {
		get(t, method, url+path).wantError(t, http.StatusNotFound, 10)
	}
	get(t, "POST", url+FoldersPath).wantError(t, 400, 13)
}

func TestBasePath(t *testing.T) {
	s, url := start(t, Options{BasePath: "/oz/"})
	get(t, "GET", url+TokenPath).wantError(t, http.StatusNotFound, 10)
	if r := get(t, "GET", url+"/oz"+TokenPath); r.status != 200 {
		t.Errorf("under the base path: %d", r.status)
	}
	post(t, url+"/oz", s.Capsule(CapsuleSpec{})).wantSuccess(t)
}

func TestAccessToken(t *testing.T) {
	_, url := start(t, Options{AccessToken: "secret"})
	const header = "X-Forensic-Access-Token"
	for method, path := range map[string]string{"GET": TokenPath, "POST": FoldersPath} {
		get(t, method, url+path).wantError(t, http.StatusUnauthorized, 6)
		get(t, method, url+path, header, "wrong").wantError(t, http.StatusUnauthorized, 7)
	}
	if r := get(t, "GET", url+TokenPath, header, "secret"); r.status != 200 {
		t.Errorf("with the token: %d", r.status)
	}
	get(t, "POST", url+FoldersPath, header, "secret").wantError(t, 400, 13)
}

func TestAllowedHosts(t *testing.T) {
	_, url := start(t, Options{AllowedHosts: []string{"oz.internal"}})
	r := get(t, "GET", url+TokenPath)
	if r.status != 400 || !strings.HasPrefix(r.header.Get("Content-Type"), "text/html") {
		t.Errorf("other host: %d %s", r.status, r.header)
	}
	for _, host := range []string{"oz.internal", "OZ.internal:8443"} {
		if r := get(t, "GET", url+TokenPath, "Host", host); r.status != 200 {
			t.Errorf("%s: %d", host, r.status)
		}
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for name, o := range map[string]Options{
		"overflow":  {Overflow: "drop"},
		"base path": {BasePath: "oz"},
		"negative":  {Parallel: -1},
		"fault":     {Fault: Fault{Kind: "no-such"}},
		"keys":      {KeysDir: t.TempDir()},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: New accepts %+v", name, o)
		}
	}
	s, _ := start(t, Options{})
	for name, change := range map[string]func(){
		"fault":   func() { s.SetFault(Fault{Kind: "no-such"}) },
		"options": func() { s.SetOptions(Options{Overflow: "drop"}) },
		"outcome": func() { s.Capsule(CapsuleSpec{Outcome: "MAYBE"}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			change()
		}()
	}
}

// The vendor's advice, and ours: digests only.
func TestLogHoldsDigestsAndReasonsButNoData(t *testing.T) {
	var log bytes.Buffer
	s, url := start(t, Options{Logger: slog.New(slog.NewJSONHandler(&log, nil)), AccessToken: "the-access-token"})
	s.SetOptions(Options{Logger: s.Options().Logger})
	good := s.Capsule(CapsuleSpec{Payload: []byte("canary-in-the-media"), Meta: map[string]string{"k": "canary-in-meta"}})
	post(t, url, good).wantSuccess(t)
	post(t, url, good).wantError(t, 400, 14)
	get(t, "GET", url+"/canary-path?canary=query", "X-Canary", "header")
	token := string(get(t, "GET", url+TokenPath).body)
	await(t, s, "all lines", func(Stats) bool {
		all := s.Requests()
		return len(all) == 4 && !slices.ContainsFunc(all, func(rec Receipt) bool { return !rec.Finished })
	})
	text := log.String()
	for _, secret := range []string{"canary", "image_b64", string(s.shots.get(shotKey{"", 0})[:40]), "eyJ", token[20:60], "the-access-token"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	for _, wanted := range []string{s.Received()[0].Digest, "session token used before", `"error_code":14`} {
		if !strings.Contains(text, wanted) {
			t.Errorf("%q is not in the log", wanted)
		}
	}
}

func TestAnalysisTakesItsTime(t *testing.T) {
	const analysis = 50 * time.Millisecond
	s, url := start(t, Options{AnalysisTime: analysis})
	began := time.Now()
	post(t, url, s.Capsule(CapsuleSpec{})).wantSuccess(t)
	if took := time.Since(began); took < analysis {
		t.Errorf("answered after %v", took)
	}
	defer s.HoldAnalyses()()
	post(t, url, []byte("noise")).wantError(t, 400, 14) // which needs no analysis
}

func TestAnalysesAreHeld(t *testing.T) {
	s, url := start(t, Options{})
	release := s.HoldAnalyses()
	var released atomic.Bool
	go func() {
		s.Await(t.Context(), func(s Stats) bool { return s.Busy == 1 })
		released.Store(true)
		release()
	}()
	post(t, url, s.Capsule(CapsuleSpec{})).wantSuccess(t)
	if !released.Load() {
		t.Error("answered while the analysis was held")
	}
	post(t, url, s.Capsule(CapsuleSpec{})).wantSuccess(t)
}

func TestHTTP2(t *testing.T) {
	s, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(s)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	defer s.Close()
	send := func() error {
		resp, err := server.Client().Post(server.URL+FoldersPath, "application/octet-stream", bytes.NewReader(s.Capsule(CapsuleSpec{})))
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	if err := send(); err != nil || s.Received()[0].Proto != "HTTP/2.0" {
		t.Fatalf("%v, %+v", err, s.Received())
	}
	for _, kind := range []string{"reset", "reset-body", "close", "upgrade", "length"} {
		s.SetFault(MustFault(kind))
		if send() == nil {
			t.Errorf("%s: no error", kind)
		}
	}
	s.SetFault(MustFault("early"))
	if err := send(); err != nil {
		t.Errorf("early: %v", err)
	}
}
