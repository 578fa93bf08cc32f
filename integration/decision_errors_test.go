package integration_test

import (
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestDecisionErrorRoutes promises that a site with handle_errors owns the page of a refusal, with {err.*} and our placeholders,
// and that where no error route is for this error the problem document is the answer, and never an empty page.
func TestDecisionErrorRoutes(t *testing.T) {
	t.Parallel()
	const site = `
	log
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
`
	x := startChain(t, sandbox.Options{}, `
http://all.test:{$HTTP_PORT} {`+site+`
	handle_errors {
		respond "all {err.status_code} {err.message} {http.oz_instant.decision} {http.oz_instant.reason} {http.oz_instant.error_code}" {err.status_code}
	}
}
http://codes.test:{$HTTP_PORT} {`+site+`
	handle_errors 404 500 {
		respond "other code"
	}
}
http://matcher.test:{$HTTP_PORT} {`+site+`
	handle_errors {
		@busy expression {err.status_code} == 503
		respond @busy "busy, try again" 503
	}
}
http://proxy.test:{$HTTP_PORT} {`+site+`
	handle_errors {
		reverse_proxy {$APP} {
			method GET
			rewrite /error-page?{err.status_code}
		}
	}
}
http://none.test:{$HTTP_PORT} {`+site+`
}`)
	c := x.client(t, "h1")
	post := func(t *testing.T, host, fault string) observed {
		x.oz.fault(t, fault)
		return x.observe(t, func() answer {
			return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), "Host", host, "X-Oz-Decision", "SUCCESS")
		})
	}
	t.Run("every error", func(t *testing.T) {
		j := post(t, "all.test", "oz-error:5")
		text := string(j.answer.Body)
		if j.answer.Status != 400 || !strings.HasPrefix(text, "all 400 ") || !strings.HasSuffix(text, " INVALID container 5") || len(text) < 60 {
			t.Errorf("got %d %s", j.answer.Status, text)
		}
		container(5).assertSight(t, j)
	})
	t.Run("every error, with Retry-After", func(t *testing.T) {
		j := post(t, "all.test", "status:503,retry-after=9")
		if j.answer.Status != 503 || j.answer.Header.Get("Retry-After") != "9" || !strings.Contains(string(j.answer.Body), "overloaded 11") {
			t.Errorf("got %d %v %s", j.answer.Status, j.answer.Header, j.answer.Body)
		}
	})
	t.Run("a refused request", func(t *testing.T) {
		a := c.post(t, "/verify", []byte("{}"), "Host", "all.test", "Content-Type", "application/json")
		if a.Status != 415 || !strings.HasPrefix(string(a.Body), "all 415 ") || a.Header.Get("Accept") == "" {
			t.Errorf("got %d %v %s", a.Status, a.Header, a.Body)
		}
	})
	overloaded := unavailable("overloaded", 503)
	overloaded.code, overloaded.retryAfter = "11", "7"
	t.Run("other codes", func(t *testing.T) { overloaded.assert(t, post(t, "codes.test", "status:503"), "") })
	t.Run("another site of the listener", func(t *testing.T) { overloaded.assert(t, post(t, "none.test", "status:503"), "") })
	t.Run("a matcher that fits", func(t *testing.T) {
		if j := post(t, "matcher.test", "status:503"); j.answer.Status != 503 || string(j.answer.Body) != "busy, try again" {
			t.Errorf("got %d %s", j.answer.Status, j.answer.Body)
		}
	})
	t.Run("a matcher that does not fit", func(t *testing.T) {
		unavailable("too_large_for_oz", 502).assert(t, post(t, "matcher.test", "status:413"), "")
	})
	t.Run("a page of the app", func(t *testing.T) {
		j := post(t, "proxy.test", "status:413")
		if len(j.app) != 1 || j.app[0].Line != "GET /error-page?502 HTTP/1.1" || len(j.app[0].Body) > 0 {
			t.Fatalf("got %d %s, the app %v", j.answer.Status, j.answer.Body, j.app)
		}
		assertReserved(t, j.app[0], map[string]string{})
	})
}
