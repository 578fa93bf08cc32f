package integration_test

import (
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testTokenStaysUncached promises that the site that the documents show for it, whose deferred header block would replace the token's
// Cache-Control, leaves it alone and sets its own elsewhere.
func testTokenStaysUncached(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, strings.NewReplacer("app.example.com", "{$SITE}", "https://oz.internal", "{$OZ}", "app:3000", "{$APP}").Replace(siteOfDocs(t, "**Keep it uncached.**")))
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, method := range []string{"GET", "HEAD"} {
			a := c.do(t, c.request(t, method, "/session_token", nil))
			if a.Status != 200 || a.Header.Get("Cache-Control") != "no-store" || method == "GET" && gjson.GetBytes(a.Body, "session_token").Str == "" {
				t.Errorf("%s: got %d %v %s", method, a.Status, a.Header, a.Body)
			}
		}
		if a := c.get(t, "/"); a.Header.Get("Cache-Control") != "public, max-age=60" || a.Header.Get("Server") != "" {
			t.Errorf("elsewhere: got %v", a.Header)
		}
		x.oz.fault(t, "status:500@token")
		defer x.oz.fault(t, "")
		if a := c.get(t, "/session_token"); a.Status != 502 || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("a failure: got %d %v", a.Status, a.Header)
		}
	})
}

// siteOfDocs returns the Caddyfile that comes after these words in the documents.
func siteOfDocs(t testing.TB, words string) string {
	t.Helper()
	_, docs := documents(t)
	for _, doc := range docs {
		if _, after, found := strings.Cut(doc.Text, words); found {
			_, after, _ = strings.Cut(after, "```caddyfile\n")
			site, _, _ := strings.Cut(after, "```")
			return site
		}
	}
	t.Fatalf("no document says %s", words)
	return ""
}
