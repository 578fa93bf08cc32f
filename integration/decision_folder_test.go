package integration_test

import (
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// decisionSite has a path for every policy that the decision table speaks of. All of them stand in one site: a capsule for one
// goes by the others undecided.
const decisionSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	oz_instant /none {$OZ} {
		analyses none
	}
	oz_instant /biometry {$OZ} {
		analyses biometry
	}
	oz_instant /both {$OZ} {
		analyses quality biometry
	}
	oz_instant /keep {$OZ} {
		best_shot keep
	}
	oz_instant /small {$OZ} {
		max_answer 1MiB
	}
	oz_instant /short {$OZ} {
		timeout 600ms
		upload_timeout 4s
	}
	oz_instant /bound {$OZ} {
		require meta_data.transaction_id {http.request.cookie.transaction}
	}
	reverse_proxy {$APP}
}`

// decisionCase is a capsule, what goes wrong with it, and what must come of it.
type decisionCase struct {
	name, fault string
	path        string // default /verify
	spec        sandbox.CapsuleSpec
	want        verdict
}

// run brings each case's capsule through the site, one after the other.
func (x *chain) run(t *testing.T, cases []decisionCase) {
	t.Helper()
	c := x.client(t, "h1")
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			if test.path == "" {
				test.path = "/verify"
			}
			test.spec.EventSession = "session-of-" + test.path[1:]
			x.oz.fault(t, test.fault)
			x.oz.quiet(t)
			x.oz.Forget()
			capsule := x.oz.Capsule(test.spec)
			j := x.observe(t, func() answer { return c.post(t, test.path, capsule) })
			test.want.assert(t, j, test.spec.EventSession)
			if requests := x.oz.Requests(); len(requests) > 1 {
				t.Errorf("Oz got %d requests, want 1", len(requests))
			}
		})
	}
}

// testDecisionByFolder is about answers that are folders: rows 1 to 7 of the decision table. Only row 1 is an accept; every
// other one tells the app, or the client, something else, whatever else the folder says.
func testDecisionByFolder(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BestShotSize: 20_000}, decisionSite)
	declined := verdict{decision: "DECLINED", status: "FINISHED", system: "DECLINED", quality: "SUCCESS"}
	missing := func(quality string) verdict { return failed("analysis_missing", "FINISHED", "SUCCESS", quality) }
	unknown := func(status, system string) verdict { return failed("status_unknown", status, system, "SUCCESS") }
	with := func(v verdict, quality, biometry string) verdict {
		v.quality, v.biometry = quality, biometry
		return v
	}
	withoutIDs := accepted
	withoutIDs.noIDs = true
	technical := failed("analysis_failed", "FAILED", "FAILED", "FAILED")
	technical.code = "11"
	operator := verdict{
		decision: "OPERATOR_REQUIRED", status: "FINISHED", system: "OPERATOR_REQUIRED", quality: "SUCCESS", biometry: "OPERATOR_REQUIRED",
	}
	binding := verdict{decision: "INVALID", reason: "binding", http: 403}
	wanted := func(outcome string) sandbox.CapsuleSpec { return sandbox.CapsuleSpec{Outcome: outcome} }

	x.run(t, []decisionCase{
		{name: "1 success", want: accepted},
		{name: "1 with status 200", fault: "folder:200", want: accepted},
		{name: "1 two good liveness analyses", fault: "several-quality:2", want: accepted},
		{name: "1 a hundred best shots", fault: "several-best-shots:100", want: accepted},
		{name: "1 no best shot", fault: "no-best-shot", want: accepted},
		{name: "1 no media", fault: "no-media", want: accepted},
		{name: "1 image by reference", fault: "original-url", want: accepted},
		{name: "1 image is null", fault: "image-value:null", want: accepted},
		{name: "1 image is an object", fault: `image-value:{"a":["x"]}`, want: accepted},
		{name: "1 image twice, both cut out", fault: "dup-image", want: accepted},
		{name: "1 image with escaped slashes", fault: "escaped-slashes", want: accepted},
		{name: "1 image of 20 MiB", fault: "big:20MiB", want: accepted},
		{name: "1 long comment", fault: "big-text:900KiB", want: accepted},
		{name: "1 names with escapes", fault: "escaped-names", want: accepted},
		{name: "1 unknown fields", fault: "extra", want: accepted},
		{name: "1 analysis_id", fault: "analysis-id", want: accepted},
		{name: "1 only what a decision needs", fault: "absent", want: withoutIDs},
		{name: "1 all else is null", fault: "nulls", want: withoutIDs},
		{name: "1 depth 256", fault: "depth:255", want: accepted},
		{name: "1 in chunks", fault: "chunked", want: accepted},
		{name: "1 with a trailer that says SUCCESS", fault: "trailers", want: accepted},
		{name: "1 after interim answers that say SUCCESS", fault: "1xx", want: accepted},
		{name: "1 dripping in time", fault: "drip:1ms,bytes=1000", want: accepted},
		{name: "1 with header fields of its own", fault: "evil-headers", want: accepted},
		{name: "1 analyses none, there are none", path: "/none", fault: "no-analyses", want: with(accepted, "", "")},
		{name: "1 analyses none, liveness is bad", path: "/none", fault: "quality-declined", want: with(accepted, "DECLINED", "")},
		{name: "1 analyses biometry", path: "/biometry", fault: "no-quality", want: with(accepted, "", "SUCCESS")},

		{name: "2 declined", spec: wanted("DECLINED"), want: with(declined, "DECLINED", "")},
		{name: "2 with status 200", spec: wanted("DECLINED"), fault: "folder:200", want: with(declined, "DECLINED", "")},
		{name: "2 analyses none", path: "/none", spec: wanted("DECLINED"), want: with(declined, "DECLINED", "")},

		{name: "3 operator", spec: wanted("OPERATOR_REQUIRED"), want: operator},

		{name: "4 failed", spec: wanted("FAILED"), want: technical},
		{name: "4 failed beside SUCCESS", fault: "contradiction", want: failed("analysis_failed", "FAILED", "SUCCESS", "SUCCESS")},
		{name: "4 finished beside FAILED", fault: "failed-system", want: failed("analysis_failed", "FINISHED", "FAILED", "SUCCESS")},
		{name: "4 analyses none", path: "/none", fault: "contradiction", want: failed("analysis_failed", "FAILED", "SUCCESS", "SUCCESS")},

		{name: "5 no analyses", fault: "no-analyses", want: missing("")},
		{name: "5 only face matching", fault: "no-quality", want: with(missing(""), "", "SUCCESS")},
		{name: "5 liveness declined", fault: "quality-declined", want: missing("DECLINED")},
		{name: "5 liveness failed", fault: "quality-failed", want: missing("FAILED")},
		{name: "5 liveness unfinished", fault: "quality-unfinished", want: missing("SUCCESS")},
		{name: "5 one of two declined", fault: "several-quality-mixed", want: missing("DECLINED")},
		{name: "5 both wanted, one ran", path: "/both", want: missing("SUCCESS")},
		{name: "5 both wanted, the other ran", path: "/both", fault: "no-quality", want: with(missing(""), "", "SUCCESS")},
		{name: "5 both wanted, one is undecided", path: "/both", fault: "word:SUCCESS", spec: wanted("OPERATOR_REQUIRED"),
			want: with(missing(""), "SUCCESS", "OPERATOR_REQUIRED")},
		{name: "5 only the wanted one counts", path: "/biometry", want: missing("SUCCESS")},

		{name: "6 unknown word", fault: "word:APPROVED", want: unknown("FINISHED", "APPROVED")},
		{name: "6 lower case", fault: "word:success", want: unknown("FINISHED", "success")},
		{name: "6 a space after it", fault: "word:SUCCESS ", want: unknown("FINISHED", "")},
		{name: "6 unknown status", fault: "resolution:DONE", want: unknown("DONE", "SUCCESS")},
		{name: "6 not finished", fault: "resolution:PROCESSING", want: unknown("PROCESSING", "SUCCESS")},
		{name: "6 processing", fault: "processing", want: failed("status_unknown", "PROCESSING", "PROCESSING", "PROCESSING")},
		{name: "6 neither word", fault: "absent-decision", want: unknown("", "")},
		{name: "6 null", fault: "null-decision", want: unknown("", "")},
		{name: "6 a list with SUCCESS in it", fault: "wrong-types", want: unknown("FINISHED", "")},
		{name: "6 a word with a header in it", fault: "inject-status:crlf", want: failed("status_unknown", "", "", "")},
		{name: "6 analyses none", path: "/none", fault: "word:APPROVED", want: unknown("FINISHED", "APPROVED")},

		{name: "7 not this user's", path: "/bound", want: binding},
		{name: "7 not this user's, and declined", path: "/bound", spec: wanted("DECLINED"), want: binding},
		{name: "7 not this user's, and failed", path: "/bound", spec: wanted("FAILED"), want: binding},
	})
}
