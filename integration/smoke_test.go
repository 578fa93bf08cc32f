package integration_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// smokeSite is the smallest use of the directive.
const smokeSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
}`

// TestSmoke takes one capsule all the way: whole to Oz, the decision to the app.
func TestSmoke(t *testing.T) {
	t.Parallel()
	oz, app := startSandbox(t, sandbox.Options{BestShotSize: 400_000}), newRawApp(t)
	p := startCaddy(t, smokeSite, withEnv("OZ", oz.URL), withEnv("APP", app.Addr))
	p.eachProtocol(t, func(t *testing.T, c *client) {
		app.Forget()
		capsule := oz.Capsule(sandbox.CapsuleSpec{})
		if a := c.post(t, "/verify", capsule); a.Status != 200 || string(a.Body) != "seen by the app\n" {
			t.Errorf("the client got %d %s", a.Status, a.Body)
		}
		r := app.Only(t)
		if r.Value("X-Oz-Decision") != "SUCCESS" || r.Value("Content-Type") != "application/json" {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		if bytes.Contains(r.Body, []byte("image_b64")) || !bytes.Contains(r.Body, []byte(`"system_resolution"`)) {
			t.Errorf("the app's body: %.2000s", r.Body)
		}
		oz.quiet(t)
		receipts, digest := oz.Received(), sha256.Sum256(capsule)
		if last := receipts[len(receipts)-1]; last.Digest != hex.EncodeToString(digest[:]) || last.Size != int64(len(capsule)) {
			t.Errorf("Oz got %+v", last)
		}
	})
}
