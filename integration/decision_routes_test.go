package integration_test

import (
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// placeholdersInBraces are all that the module sets, for a response to show.
const placeholdersInBraces = `[{http.oz_instant.decision}|{http.oz_instant.reason}|{http.oz_instant.folder_id}|` +
	`{http.oz_instant.event_session_id}|{http.oz_instant.error_code}|{http.oz_instant.quality}|{http.oz_instant.biometry}|` +
	`{http.oz_instant.capsule_bytes}|{http.oz_instant.oz_ms}]`

// emptyPlaceholders is what that comes to on a request that is undecided.
const emptyPlaceholders = "[||||||||]"

// TestDecisionPass promises that an app that asks for INVALID and UNAVAILABLE gets them: the decision in the headers, nothing that
// says SUCCESS, and the problem document that the client would have had as its body. What it did not ask for stays a refusal.
func TestDecisionPass(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /both {$OZ} {
		pass INVALID UNAVAILABLE
	}
	oz_instant /hurried {$OZ} {
		pass INVALID UNAVAILABLE
		timeout 500ms
	}
	oz_instant /invalid {$OZ} {
		pass INVALID
	}
	reverse_proxy {$APP}
}`)
	c := x.client(t, "h1")
	for _, test := range []struct {
		name, path, fault, decision, reason, code string
		status                                    int64
	}{
		{"container", "/both", "oz-error:5", "INVALID", "container", "5", 400},
		{"only invalid", "/invalid", "oz-error:14", "INVALID", "container", "14", 400},
		{"overloaded", "/both", "status:503", "UNAVAILABLE", "overloaded", "11", 503},
		{"timeout", "/hurried", "hang", "UNAVAILABLE", "timeout", "", 504},
		{"malformed", "/both", "dup-declined-success", "UNAVAILABLE", "malformed_answer", "", 502},
		{"early", "/both", "early:400,bytes=1", "INVALID", "container", "14", 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			x.oz.fault(t, test.fault)
			j := x.observe(t, func() answer { return c.post(t, test.path, x.oz.Capsule(sandbox.CapsuleSpec{})) })
			if len(j.app) != 1 {
				t.Fatalf("the app was not called; the client got %d %s", j.answer.Status, j.answer.Body)
			}
			verdict{decision: test.decision, reason: test.reason}.assertSight(t, j)
			r := j.app[0]
			assertReserved(t, r, map[string]string{"X-Oz-Decision": test.decision, "X-Oz-Reason": test.reason, "X-Oz-Error-Code": test.code})
			if r.Value("Content-Type") != "application/problem+json" || gjson.GetBytes(r.Body, "status").Int() != test.status {
				t.Errorf("the app got:\n%s\n%s", r.Raw(), r.Body)
			}
			if strings.Contains(string(r.Body), "SUCCESS") {
				t.Errorf("the app's body says SUCCESS: %s", r.Body)
			}
		})
	}
	t.Run("not asked for", func(t *testing.T) {
		x.oz.fault(t, "status:413")
		j := x.observe(t, func() answer { return c.post(t, "/invalid", x.oz.Capsule(sandbox.CapsuleSpec{})) })
		unavailable("too_large_for_oz", 502).assert(t, j, "")
	})
}

// TestDecisionRoutes promises that handle_decision answers in place of the app for the decisions that it names and no other, that
// its routes know the placeholders, and that a request that falls through them goes on to the app with what they set.
func TestDecisionRoutes(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		handle_decision SUCCESS {
			request_header X-Route success
		}
		handle_decision DECLINED FAILED {
			respond "routed `+placeholdersInBraces+`" 422
		}
		handle_decision OPERATOR_REQUIRED {
			@vip header X-Vip yes
			respond @vip "vip" 299
			header X-Seen operator
		}
		handle_decision INVALID {
			redir * /again?{http.oz_instant.error_code} 303
		}
		handle_decision UNAVAILABLE {
			request_header X-Route unavailable
		}
	}
	reverse_proxy {$APP}
}`)
	c := x.client(t, "h1")
	post := func(t *testing.T, fault, outcome string, fields ...string) observed {
		x.oz.fault(t, fault)
		spec := sandbox.CapsuleSpec{Outcome: outcome, EventSession: "s"}
		return x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(spec), fields...) })
	}
	t.Run("SUCCESS falls through", func(t *testing.T) {
		j := post(t, "", "")
		accepted.assert(t, j, "s")
		if j.app[0].Value("X-Route") != "success" {
			t.Errorf("the app got:\n%s", j.app[0].Raw())
		}
	})
	for outcome, want := range map[string]string{"DECLINED": "[DECLINED|||s||DECLINED||", "FAILED": "[FAILED|analysis_failed||s|11|FAILED||"} {
		t.Run(outcome+" is answered", func(t *testing.T) {
			j := post(t, "", outcome)
			parts := strings.Split(string(j.answer.Body), "|")
			if j.answer.Status != 422 || len(parts) != 9 || !isUUID(parts[2]) || len(j.app) != 0 {
				t.Fatalf("got %d %s", j.answer.Status, j.answer.Body)
			}
			parts[2] = ""
			if got := strings.Join(parts, "|"); !strings.HasPrefix(got, "routed "+want) || strings.Contains(got, "||]") {
				t.Errorf("the placeholders are %s, want %s and two numbers", got, want)
			}
			if j.access.Get("oz_instant.decision").Str != outcome {
				t.Errorf("logged: %s", j.access)
			}
		})
	}
	t.Run("OPERATOR_REQUIRED is answered by a matcher", func(t *testing.T) {
		if j := post(t, "", "OPERATOR_REQUIRED", "X-Vip", "yes"); j.answer.Status != 299 || len(j.app) != 0 {
			t.Errorf("got %d", j.answer.Status)
		}
	})
	t.Run("OPERATOR_REQUIRED falls through", func(t *testing.T) {
		j := post(t, "", "OPERATOR_REQUIRED")
		if len(j.app) != 1 || j.app[0].Value("X-Oz-Decision") != "OPERATOR_REQUIRED" || j.answer.Header.Get("X-Seen") != "operator" {
			t.Errorf("got %d %v", j.answer.Status, j.answer.Header)
		}
	})
	t.Run("INVALID is answered", func(t *testing.T) {
		j := post(t, "oz-error:5", "")
		if j.answer.Status != 303 || j.answer.Header.Get("Location") != "/again?5" || len(j.app) != 0 {
			t.Errorf("got %d %v", j.answer.Status, j.answer.Header)
		}
	})
	t.Run("UNAVAILABLE falls through", func(t *testing.T) {
		j := post(t, "status:500", "")
		if len(j.app) != 1 {
			t.Fatalf("got %d %s", j.answer.Status, j.answer.Body)
		}
		r := j.app[0]
		assertReserved(t, r, map[string]string{"X-Oz-Decision": "UNAVAILABLE", "X-Oz-Reason": "unexpected_status", "X-Oz-Error-Code": "0"})
		if r.Value("X-Route") != "unavailable" || r.Value("Content-Type") != "application/problem+json" {
			t.Errorf("the app got:\n%s\n%s", r.Raw(), r.Body)
		}
	})
}

// TestDecisionPlaceholders promises that on undecided requests the placeholders are empty and not literal text.
func TestDecisionPlaceholders(t *testing.T) {
	t.Parallel()
	p := startCaddy(t, `
{$SITE} {
	oz_instant /verify {$DEAD}
	respond "`+placeholdersInBraces+`"
	handle_errors {
		respond "`+placeholdersInBraces+`" {err.status_code}
	}
}`, withEnv("DEAD", deadAddress(t)))
	p.eachProtocol(t, func(t *testing.T, c *client) {
		for status, a := range map[int]answer{
			200: c.get(t, "/other"),
			415: c.post(t, "/verify", []byte("x"), "Content-Type", "text/plain"),
		} {
			if a.Status != status || string(a.Body) != emptyPlaceholders {
				t.Errorf("got %d %s, want %d %s", a.Status, a.Body, status, emptyPlaceholders)
			}
		}
		if a := c.get(t, "/verify"); a.Status != 200 || string(a.Body) != emptyPlaceholders {
			t.Errorf("undecided: %d %s", a.Status, a.Body)
		}
		if a := c.post(t, "/verify", []byte("x")); !strings.HasPrefix(string(a.Body), "[UNAVAILABLE|unreachable|||||") {
			t.Errorf("decided: %d %s", a.Status, a.Body)
		}
	})
}
