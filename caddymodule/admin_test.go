package caddymodule

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// Only GET and HEAD are answered, and without a config in force nothing is ready
// and no way is shown, though handlers are provisioned: such a config may still
// fail to load.
func TestAdminAPI(t *testing.T) {
	newHandler(t, neverAsked(t), "")
	for _, route := range (adminAPI{}).Routes() {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
			w := httptest.NewRecorder()
			err := route.Handler.ServeHTTP(w, httptest.NewRequest(method, route.Pattern, nil))
			if method == "GET" || method == "HEAD" {
				if err != nil || w.Header().Get("Content-Type") != "application/json" {
					t.Errorf("%s %s: %v %v", method, route.Pattern, err, w.Header())
				}
				continue
			}
			refusal, ok := errors.AsType[caddy.APIError](err)
			if !ok || refusal.HTTPStatus != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" || w.Body.Len() > 0 {
				t.Errorf("%s %s: %v %v", method, route.Pattern, err, w)
			}
		}
	}
	for path, want := range map[string]struct {
		serve  caddy.AdminHandlerFunc
		status int
		body   string
	}{
		"ready":  {serveReady, 503, `{"ready":false,"reason":"the loaded config has no oz_instant"}`},
		"status": {serveStatus, 200, `{"started":"` + whole(processStarted).Format("2006-01-02T15:04:05Z") + `","ready":false,"ways":[]}`},
	} {
		w := httptest.NewRecorder()
		if err := want.serve(w, httptest.NewRequest("GET", "/", nil)); err != nil || w.Code != want.status || w.Body.String() != want.body+"\n" {
			t.Errorf("%s: %d %s, %v", path, w.Code, w.Body, err)
		}
	}
}
