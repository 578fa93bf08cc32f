package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

func TestAppLooksAtWhatItGets(t *testing.T) {
	const folder = `{"folder_id":"1"}`
	for _, c := range []struct {
		name           string
		decided        bool
		path, decision string
		body           string
		problem        string // empty: none
	}{
		{"decided", true, "/verify", "SUCCESS", folder, ""},
		{"undecided", true, "/verify", "", folder, `decision ""`},
		{"declined", true, "/verify", "DECLINED", folder, `decision "DECLINED"`},
		{"elsewhere", true, "/", "SUCCESS", folder, "asked for /"},
		{"best shot left in", true, "/verify", "SUCCESS", `{"folder_id":"1","image_b64":""}`, "best shot"},
		{"no body", true, "/verify", "SUCCESS", "", "t a folder"},
		{"cut", true, "/verify", "SUCCESS", folder[:10], "t a folder"},
		{"too long", true, "/verify", "SUCCESS", strings.Repeat(" ", maxBody) + folder, "too large"},
		{"plain", false, "/verify", "", "", ""},
		{"plain with a decision", false, "/verify", "SUCCESS", "", "does not decide"},
		{"plain with a body", false, "/verify", "", folder, "does not decide"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &app{decided: c.decided}
			r := httptest.NewRequest(http.MethodPost, c.path, strings.NewReader(c.body))
			if c.decision != "" {
				r.Header.Set("X-Oz-Decision", c.decision)
			}
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			if text := w.Body.String(); (w.Code == http.StatusOK) != (c.problem == "") || !strings.Contains(text, c.problem) {
				t.Errorf("answered %d %q, want %q", w.Code, text, c.problem)
			}
			if served := a.served.Load(); (served == 1) != (c.problem == "") {
				t.Errorf("counted %d", served)
			}
		})
	}
}

// What the counters do not bear out is no run, although every client was happy.
func TestSettleCounts(t *testing.T) {
	s, err := newBackend(ozInstant, sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	capsule := s.oz.Capsule(sandbox.CapsuleSpec{})
	post := func() {
		t.Helper()
		resp, err := http.Post("http://"+s.ozAddr+foldersPath, "application/octet-stream", strings.NewReader(string(capsule)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	settle := func(capsules, size int, want string) {
		t.Helper()
		err := s.settle(t.Context(), capsules, int64(size))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	post()
	settle(1, len(capsule), "the app got 0 requests")
	s.app.served.Add(1)
	settle(0, len(capsule), "")
	settle(0, len(capsule)-1, "bytes")
	post()
	settle(0, len(capsule), "oz got 2 capsules, want 1")
}
