package integration_test

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/demo"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestFaceMatchingExample promises what the example says: with the demo app's photos the same person gets in, another one does
// not, and without a photo the reason is told.
func TestFaceMatchingExample(t *testing.T) {
	t.Parallel()
	root, err := caddybin.Root()
	check(t, err)
	text, err := os.ReadFile(filepath.Join(root, "integration", "examples", "face-matching.Caddyfile"))
	check(t, err)
	oz := startSandbox(t, sandbox.Options{BestShotSize: 400_000})
	app := httptest.NewServer(demo.New(demo.Options{Photos: func(_ context.Context, user string) ([]byte, bool) {
		return sandbox.Portrait(user, 480), user == "alice" || user == "bob"
	}}))
	t.Cleanup(app.Close)
	p := startCaddy(t, string(text), withEnv("OZ_URL", oz.URL), withEnv("APP_URL", app.URL))
	p.eachProtocol(t, func(t *testing.T, c *client) {
		for _, test := range []struct {
			user, camera, decision, reason string
			status                         int
		}{
			{"alice", "alice", "SUCCESS", "", 200},
			{"bob", "alice", "DECLINED", "", 403},
			{"alice", "bob", "DECLINED", "", 403},
			{"carol", "carol", "FAILED", "reference_missing", 403},
			{"", "alice", "FAILED", "reference_unavailable", 403},
		} {
			token := gjson.GetBytes(c.get(t, "/session_token").Body, "session_token").Str
			capsule := oz.Capsule(sandbox.CapsuleSpec{Person: test.camera, SessionToken: token})
			var cookie []string
			if test.user != "" {
				cookie = []string{"Cookie", "user=" + test.user}
			}
			a := c.post(t, "/verify", capsule, cookie...)
			headers := gjson.GetBytes(a.Body, "oz_headers")
			if a.Status != test.status || headers.Get("X-Oz-Decision").Str != test.decision || headers.Get("X-Oz-Reason").Str != test.reason {
				t.Errorf("%+v: got %d %s", test, a.Status, a.Body)
			}
		}
	})
}
