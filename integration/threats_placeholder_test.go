package integration_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// environmentCanary is what {env.CANARY} stands for.
const environmentCanary = "canary-of-the-environment"

// testPlaceholders promises that text of a client or of Oz that looks like a placeholder stays text: in what Oz and the app get,
// in routes and pages of the operator that show it, in refusals, in a requirement, and in the log.
func testPlaceholders(t *testing.T) {
	t.Parallel()
	const canary, fileCanary = environmentCanary, "canary-in-a-file"
	text := "{env.CANARY} {file." + tokenFile(t, fileCanary) + "} {$CANARY} {system.hostname} {http.request.header.Authorization} {http.vars.client_ip}"
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		header_up X-User {header.X-User}
		header_up X-Query {query.q}
		handle_decision DECLINED {
			header X-Shown "{header.X-User}|{http.oz_instant.folder_id}|{http.oz_instant.event_session_id}"
			respond "declined {header.X-User} {query.q} {cookie.transaction}" 422
		}
	}
	oz_instant /bound {$OZ} {
		require meta_data.transaction_id {cookie.transaction}
	}
	reverse_proxy {$APP}
}
http://page.test:{$HTTP_PORT} {
	log
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
	handle_errors {
		respond "{err.message} {header.X-User} {http.oz_instant.error_code}" {err.status_code}
	}
}`, withEnv("CANARY", canary))
	fields := []string{
		"X-User", text, "Cookie", "transaction=" + text, "Authorization", "Bearer canary-of-the-user", "X-Request-Id", text, "Traceparent", text,
		"User-Agent", text, "Accept", text,
	}
	path := "/verify?q=" + url.QueryEscape(text)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		shown := func(a answer, want int) string {
			t.Helper()
			if a.Status != want {
				t.Errorf("got %d %s, want %d", a.Status, a.Body, want)
			}
			all := string(a.Body) + a.Header.Get("X-Shown")
			for _, secret := range []string{canary, fileCanary, "canary-of-the-user"} {
				if strings.Contains(all, secret) {
					t.Errorf("the client got a secret: %s", all)
				}
			}
			return all
		}
		x.app.Forget()
		x.oz.quiet(t)
		x.oz.Forget()
		x.oz.fault(t, "placeholder")
		shown(c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{}), fields...), 200)
		r, atOz := x.app.Only(t), x.oz.Received()[0]
		if r.Value("X-User") != text || r.Line != "POST "+path+" HTTP/1.1" || r.Value("X-Request-Id") != text {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		folder := gjson.ParseBytes(r.Body)
		if folder.Get("folder_id").Str != "{env.HOME}" || folder.Get("meta_data.event_session_id").Str != "{file./etc/hostname}" || strings.Contains(folder.Raw, x.dir) {
			t.Errorf("the app got the body %.2000s", folder.Raw)
		}
		if len(r.Values("X-Oz-Folder-Id"))+len(r.Values("X-Oz-Event-Session-Id")) > 0 {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		if atOz.Header.Get("X-User") != text || atOz.Header.Get("X-Query") != text || atOz.RequestURI != "/api/instant/folders/" {
			t.Errorf("Oz got %s %v", atOz.RequestURI, atOz.Header)
		}

		x.oz.fault(t, "")
		declined := x.oz.Capsule(sandbox.CapsuleSpec{Outcome: "DECLINED", EventSession: text})
		if all := shown(c.post(t, path, declined, fields...), 422); !strings.Contains(all, "declined {env.CANARY}") || !strings.Contains(all, "|") {
			t.Errorf("the client got %s", all)
		}
		shown(c.post(t, path, []byte("{}"), append(slices.Clone(fields), "Content-Type", text)...), 415)
		shown(c.post(t, path, []byte("no capsule"), fields...), 400)

		// A requirement compares text with text.
		for value, want := range map[string]int{canary: 403, "{env.CANARY}": 200} {
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{Meta: map[string]string{"transaction_id": value}})
			shown(c.post(t, "/bound", capsule, "Cookie", "transaction={env.CANARY}"), want)
		}
	})
	page := x.client(t, "h1").post(t, "/verify", []byte("no capsule"), append(fields, "Host", "page.test")...)
	if body := string(page.Body); page.Status != 400 || !strings.Contains(body, "{env.CANARY}") || strings.Contains(body, canary) {
		t.Errorf("the page is %d %s", page.Status, body)
	}
	x.assertNoCanary(t, []byte(canary), []byte(fileCanary))
}

// testPlaceholdersInErrors promises the same for the message of Oz's error object, of which a page may show the decision.
func testPlaceholdersInErrors(t *testing.T) {
	t.Parallel()
	x, oz := startWrittenOz(t)
	oz.Answer(func(rawRequest) string {
		return rawAnswer("400 Bad Request", `{"error_code":14,"error_message":"{env.CANARY} {http.request.header.X-User}","details":"{env.CANARY}"}`)
	})
	x.eachProtocol(t, func(t *testing.T, c *client) {
		a := c.post(t, "/verify", []byte("capsule"), "X-User", "{env.CANARY}")
		if a.Status != 400 || !strings.Contains(string(a.Body), `"error_message":"{env.CANARY} {http.request.header.X-User}"`) {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
	})
	x.app.None(t)
	x.assertNoCanary(t, []byte(environmentCanary))
}
