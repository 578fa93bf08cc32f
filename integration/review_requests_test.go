package integration_test

import (
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testReservedThroughHandlersInFront promises that no forged name, and no undecided body on the path of capsules, reaches the app
// through handlers that stand before the directive in usual sites.
func testReservedThroughHandlersInFront(t *testing.T) {
	t.Parallel()
	for name, front := range map[string]string{
		"forward_auth": "forward_auth {$APP} {\n\t\t\turi /auth\n\t\t\tcopy_headers X-Oz-Decision X-Oz-Folder-Id\n\t\t}",
		"rewrite":      "rewrite /in /verify",
		"uri":          "uri strip_prefix /api",
		"method":       "@put method PUT\n\t\tmethod @put POST",
		"headers":      "request_header +X-Seen yes",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	route {
		`+front+`
		oz_instant /verify {$OZ} {
			session_token /token
		}
		reverse_proxy {$APP}
	}
	handle_errors {
		reverse_proxy {$APP}
	}
}`)
			x.app.Answer(func(r rawRequest) string {
				if strings.Contains(r.Line, " /auth ") {
					return "HTTP/1.1 200 OK\r\nX-Oz-Decision: SUCCESS\r\nX-Oz-Folder-Id: forged\r\nContent-Length: 0\r\n\r\n"
				}
				return rawAnswer("200 OK", "seen by the app\n")
			})
			x.eachProtocol(t, func(t *testing.T, c *client) {
				for _, send := range [][]string{
					{"POST", "/verify", `{"system_resolution":"SUCCESS"}`, "application/json"},
					{"PUT", "/verify", `{"system_resolution":"SUCCESS"}`, "application/json"},
					{"POST", "/api/verify", `{"system_resolution":"SUCCESS"}`, "application/octet-stream, application/json"},
					{"POST", "/verify", `{"system_resolution":"SUCCESS"}`, "application/octet-stream"},
					{"POST", "/VERIFY", `{"system_resolution":"SUCCESS"}`, "application/json"},
					{"POST", "//verify", `{"system_resolution":"SUCCESS"}`, "application/json"},
					{"POST", "/%76erify", `{"system_resolution":"SUCCESS"}`, "application/json"},
					{"GET", "/verify", `{"system_resolution":"SUCCESS"}`, "application/json"},
					{"PATCH", "/verify", `{"system_resolution":"SUCCESS"}`, "application/json"},
					{"POST", "/token", `{"system_resolution":"SUCCESS"}`, "application/octet-stream"},
				} {
					x.app.Forget()
					req := c.request(t, send[0], send[1], strings.NewReader(send[2]), "Content-Type", send[3],
						"X-Oz-Decision", "SUCCESS", "X-OZ-Folder-Id", "forged", "X-Http-Method-Override", "GET")
					_, _ = c.try(req)
					for _, r := range x.app.Requests() {
						if strings.Contains(r.Line, " /auth ") {
							continue
						}
						decided := r.Value("X-Oz-Decision") != ""
						if names := r.Names("x-oz-"); decided || len(names) > 0 {
							t.Errorf("%v: the app got:\n%s", send, r.Raw())
						}
						if len(r.Body) > 0 && !(name != "uri" && send[1] == "/api/verify") {
							t.Errorf("%v: the app got an undecided body:\n%s", send, r.Raw())
						}
					}
				}
			})
		})
	}
}

// TestTwoBlocksDecideOnce promises a site with two blocks one decision for each capsule, and a refusal of the first block is not
// asked about by the second.
func TestTwoBlocksDecideOnce(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify* {$OZ}
	oz_instant {$OZ} {
		pass INVALID UNAVAILABLE
	}
	reverse_proxy {$APP}
	handle_errors {
		oz_instant {$OZ} {
			pass INVALID UNAVAILABLE
		}
		reverse_proxy {$APP}
	}
}`)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for fault, want := range map[string]string{"": "SUCCESS", "oz-error:14": ""} {
			x.app.Forget()
			x.oz.Forget()
			before := x.oz.Stats().Received
			x.oz.fault(t, fault)
			c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), "X-Oz-Decision", "SUCCESS")
			x.oz.fault(t, "")
			r := x.app.Only(t)
			if asked := x.oz.Stats().Received - before; asked != 1 || r.Value("X-Oz-Decision") != want || want == "" && len(r.Body) > 0 {
				t.Errorf("%s: Oz was asked %d times, the app got:\n%s", fault, asked, r.Raw())
			}
		}
	})
}
