package integration_test

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// outcomeSite has a path for every way on which a request gets to the app, which is on HTTP/1.1 or, where the query asks for it,
// on HTTP/2.
const outcomeSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	oz_instant /passed {$OZ} {
		pass INVALID UNAVAILABLE
	}
	oz_instant /late {$OZ} {
		pass UNAVAILABLE
		timeout 100ms
	}
	oz_instant /dead {$DEAD} {
		pass UNAVAILABLE
	}
	oz_instant /sealed {$OZ} {
		seal {
			audience app
		}
	}
	oz_instant /routed {$OZ} {
		handle_decision SUCCESS INVALID UNAVAILABLE {
			reverse_proxy @h2c h2c://{$H2C}
			reverse_proxy {$APP}
		}
		handle_decision DECLINED {
			request_header X-Route declined
		}
	}
	@h2c query app=h2c
	reverse_proxy @h2c h2c://{$H2C}
	reverse_proxy {$APP}
}`

// outcome is a request that gets to the app, and what must be decided by then; an undecided one has no decision.
type outcome struct {
	name, method, path, fault string
	spec                      sandbox.CapsuleSpec
	want                      verdict
}

var outcomes = []outcome{
	{name: "success", method: "POST", path: "/verify", want: accepted},
	{name: "success without ids", method: "POST", path: "/verify", fault: "absent", want: verdict{
		decision: "SUCCESS", status: "FINISHED", system: "SUCCESS", quality: "SUCCESS", noIDs: true,
	}},
	{name: "success with ids that are none", method: "POST", path: "/verify", fault: "inject:crlf", want: verdict{
		decision: "SUCCESS", status: "FINISHED", system: "SUCCESS", quality: "SUCCESS", noIDs: true,
	}},
	{name: "declined", method: "POST", path: "/verify", spec: sandbox.CapsuleSpec{Outcome: "DECLINED"}, want: verdict{
		decision: "DECLINED", status: "FINISHED", system: "DECLINED", quality: "DECLINED",
	}},
	{name: "operator", method: "POST", path: "/verify", spec: sandbox.CapsuleSpec{Outcome: "OPERATOR_REQUIRED"}, want: verdict{
		decision: "OPERATOR_REQUIRED", status: "FINISHED", system: "OPERATOR_REQUIRED", quality: "SUCCESS", biometry: "OPERATOR_REQUIRED",
	}},
	{name: "failed", method: "POST", path: "/verify", spec: sandbox.CapsuleSpec{Outcome: "FAILED"}, want: verdict{
		decision: "FAILED", reason: "analysis_failed", status: "FAILED", system: "FAILED", quality: "FAILED", code: "11",
	}},
	{name: "missing", method: "POST", path: "/verify", fault: "no-analyses", want: failed("analysis_missing", "FINISHED", "SUCCESS", "")},
	{name: "unknown", method: "POST", path: "/verify", fault: "absent-decision", want: failed("status_unknown", "", "", "SUCCESS")},
	{name: "invalid, passed", method: "POST", path: "/passed", fault: "oz-error:14", want: verdict{
		decision: "INVALID", reason: "container", code: "14", noIDs: true,
	}},
	{name: "timeout, passed", method: "POST", path: "/late", fault: "hang", want: verdict{decision: "UNAVAILABLE", reason: "timeout", noIDs: true}},
	{name: "malformed, passed", method: "POST", path: "/passed", fault: "truncated", want: verdict{
		decision: "UNAVAILABLE", reason: "malformed_answer", noIDs: true,
	}},
	{name: "status, passed", method: "POST", path: "/passed", fault: "folder:202", want: verdict{
		decision: "UNAVAILABLE", reason: "unexpected_status", noIDs: true,
	}},
	{name: "out of reach, passed", method: "POST", path: "/dead", want: verdict{decision: "UNAVAILABLE", reason: "unreachable", noIDs: true}},
	{name: "success, sealed", method: "POST", path: "/sealed", want: verdict{
		decision: "SUCCESS", status: "FINISHED", system: "SUCCESS", quality: "SUCCESS", sealed: true,
	}},
	{name: "declined, sealed", method: "POST", path: "/sealed", spec: sandbox.CapsuleSpec{Outcome: "DECLINED"}, want: verdict{
		decision: "DECLINED", status: "FINISHED", system: "DECLINED", quality: "DECLINED", sealed: true,
	}},
	{name: "success, routed", method: "POST", path: "/routed", want: accepted},
	{name: "declined, routed", method: "POST", path: "/routed", spec: sandbox.CapsuleSpec{Outcome: "DECLINED"}, want: verdict{
		decision: "DECLINED", status: "FINISHED", system: "DECLINED", quality: "DECLINED",
	}},
	{name: "invalid, routed", method: "POST", path: "/routed", fault: "oz-error:5", want: verdict{
		decision: "INVALID", reason: "container", code: "5", noIDs: true,
	}},
	{name: "unavailable, routed", method: "POST", path: "/routed", fault: "status:500", want: verdict{
		decision: "UNAVAILABLE", reason: "unexpected_status", code: "0", noIDs: true,
	}},

	{name: "undecided GET", method: "GET", path: "/verify", want: verdict{noIDs: true}},
	{name: "undecided HEAD", method: "HEAD", path: "/verify", want: verdict{noIDs: true}},
	{name: "undecided OPTIONS", method: "OPTIONS", path: "/passed", want: verdict{noIDs: true}},
	{name: "another path", method: "GET", path: "/", want: verdict{noIDs: true}},
	{name: "a capsule for another path", method: "POST", path: "/verify/", want: verdict{noIDs: true}},
	{name: "another method and path", method: "PUT", path: "/other", want: verdict{noIDs: true}},
}

// outcomeTrio is a site with outcomeSite, and the app on HTTP/2.
type outcomeTrio struct {
	*chain
	h2c *h2cApp
}

func startOutcomes(t testing.TB, caddyfile string) *outcomeTrio {
	t.Helper()
	h2c := newH2CApp(t)
	return &outcomeTrio{startChain(t, sandbox.Options{}, caddyfile, withEnv("H2C", h2c.Addr), withEnv("DEAD", deadAddress(t))), h2c}
}

// request makes the outcome's request.
func (x *outcomeTrio) request(t testing.TB, o outcome) []byte {
	t.Helper()
	x.oz.fault(t, o.fault)
	x.app.Forget()
	x.h2c.Forget()
	switch o.method {
	case "GET", "HEAD", "OPTIONS":
		return nil
	}
	o.spec.EventSession = "session"
	return x.oz.Capsule(o.spec)
}

// last is the latest request that the app got, on the protocol that the query asks for.
func (x *outcomeTrio) last(t testing.TB, query string) rawRequest {
	t.Helper()
	if strings.Contains(query, "h2c") {
		return x.h2c.Last(t)
	}
	return x.app.Last(t)
}

// assert compares the reserved names that the app got with those that the module must set.
func (x *outcomeTrio) assert(t testing.TB, o outcome, query string) {
	t.Helper()
	r := x.last(t, query)
	if n := len(x.app.Requests()) + x.h2c.count(); n != 1 {
		t.Errorf("the app got %d requests, want 1", n)
	}
	assertReserved(t, r, o.want.headers(r, "session"))
	if len(r.Trailers) > 0 || len(r.Values("Trailer")) > 0 {
		t.Errorf("the app got trailers:\n%s", r.Raw())
	}
}

// testNamesOnEveryOutcome promises that whatever comes of a request, the app sees exactly the reserved names that the module set: no
// line of the client's adds to them, takes the place of one, or stands where there is none.
func testNamesOnEveryOutcome(t *testing.T) {
	t.Parallel()
	tryOutcomes(t, forger{forgerOptions(false) + outcomeSite, forgedLines()})
}

// testSpellingsOnEveryOutcome promises the same of every other spelling of these names.
func testSpellingsOnEveryOutcome(t *testing.T) {
	t.Parallel()
	for name, forger := range forgersOfSpellings(outcomeSite) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tryOutcomes(t, forger)
		})
	}
}

func tryOutcomes(t *testing.T, forger forger) {
	x := startOutcomes(t, forger.caddyfile)
	fields := slices.Concat(forger.fields, []string{"Content-Type", "application/octet-stream"})
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, o := range outcomes {
			for _, query := range []string{"", "?app=h2c"} {
				t.Run(o.name+query, func(t *testing.T) {
					var body io.Reader
					if capsule := x.request(t, o); capsule != nil {
						body = strings.NewReader(string(capsule))
					}
					c.do(t, c.request(t, o.method, o.path+query, body, fields...))
					x.assert(t, o, query)
				})
			}
		}
	})
}
