package integration_test

import (
	"bytes"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

var malformed = unavailable("malformed_answer", 502)

// testDecisionByMalformedAnswer is about row 14: an answer with the right status that is not one whole, well-formed document that
// every reader reads alike. All of these stand over a capsule that Oz finds good, and most of them say SUCCESS somewhere.
func testDecisionByMalformedAnswer(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, decisionSite)
	var cases []decisionCase
	for _, fault := range []string{
		"html:200", "html:201", "array", "empty-body", "truncated", "truncated:1", "truncated:4000", "gzip",
		"bom", "trailing", "trailing:}", "trailing:\x00", "second-document",
		"dup-declined-success", "dup-success-declined", "dup-escaped", "dup-nested", "dup-analyses",
		"other-case", "case-both", "case-fold", "bad-utf8", "lone-surrogate", "depth:256", "depth:300", "depth:10000",
		"cut", "cut:1", "cut:4000", "cut-chunked", "cut-chunked:1", "cut-chunked:4000",
		"length:short", "big-text:2MiB", "big-text:1MiB",
		"image-value:{", "image-value:nul", `image-value:"open`, "image-value:1}",
	} {
		cases = append(cases, decisionCase{name: "14 " + fault, fault: fault, want: malformed})
	}
	cases = append(cases,
		decisionCase{name: "14 over max_answer", path: "/small", fault: "big:1MiB", want: malformed},
		decisionCase{name: "1 under max_answer", path: "/small", fault: "big:900KiB", want: accepted},
		decisionCase{name: "14 over max_answer by a comment", path: "/small", fault: "big-text:1MiB", want: malformed},
		decisionCase{name: "14 image twice, both kept", path: "/keep", fault: "dup-image", want: malformed},
		decisionCase{name: "14 names twice, image kept", path: "/keep", fault: "dup-declined-success", want: malformed},
		decisionCase{name: "14 cut, image kept", path: "/keep", fault: "cut", want: malformed},
		decisionCase{name: "14 analyses none", path: "/none", fault: "dup-declined-success", want: malformed},
		decisionCase{name: "14 nothing to bind", path: "/bound", fault: "truncated", want: malformed},
		decisionCase{name: "6 an object that is no folder", fault: "json:201", want: verdict{
			decision: "FAILED", reason: "status_unknown", noIDs: true,
		}},
	)
	x.run(t, cases)
}

// testDecisionByExactDocument is about documents that a sandbox would not make: here Oz's answer is written out.
func testDecisionByExactDocument(t *testing.T) {
	t.Parallel()
	oz, app := newRawApp(t), newRawApp(t)
	p := startCaddy(t, decisionSite, withEnv("OZ", "http://"+oz.Addr), withEnv("APP", app.Addr))
	x := &chain{p, nil, app}
	c := x.client(t, "h1")

	folder := func(analyses string) string {
		return `{"resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":` + analyses + `}`
	}
	const quality = `{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}`
	const biometry = `{"type":"BIOMETRY","state":"FINISHED","resolution_status":"SUCCESS"}`
	both := accepted
	both.biometry, both.noIDs = "SUCCESS", true
	without := func(reason, quality string) verdict {
		v := failed(reason, "FINISHED", "SUCCESS", quality)
		v.noIDs = true
		return v
	}
	for _, test := range []struct {
		name, path, doc string
		want            verdict
	}{
		{"both analyses", "/both", folder(`[` + biometry + `,` + quality + `]`), both},
		{"white space around", "/both", " \r\n\t" + folder(`[`+quality+`,`+biometry+`]`) + " \n", both},
		{"the worst of three counts", "/verify", folder(`[` + quality + `,{"type":"QUALITY","state":"FAILED","resolution_status":"FAILED"},{"type":"QUALITY","state":"FINISHED","resolution_status":"DECLINED"}]`), without("analysis_missing", "FAILED")},
		{"an unknown word is the worst", "/verify", folder(`[{"type":"QUALITY","state":"FAILED","resolution_status":"FAILED"},{"type":"QUALITY","state":"FINISHED","resolution_status":"MAYBE"}]`), without("analysis_missing", "MAYBE")},
		{"type in lower case", "/verify", folder(`[{"type":"quality","state":"FINISHED","resolution_status":"SUCCESS"}]`), without("analysis_missing", "")},
		{"name in capitals", "/verify", folder(`[{"TYPE":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]`), malformed},
		{"no state", "/verify", folder(`[{"type":"QUALITY","resolution_status":"SUCCESS"}]`), without("analysis_missing", "SUCCESS")},
		{"analyses is an object", "/verify", folder(quality), without("analysis_missing", "")},
		{"analyses is null", "/verify", folder(`null`), without("analysis_missing", "")},
		{"a list inside of the list", "/verify", folder(`[[` + quality + `]]`), without("analysis_missing", "")},
		{"an analysis inside of an analysis", "/verify", folder(`[{"analyses":[` + quality + `]}]`), without("analysis_missing", "")},
		{"a folder inside of a folder", "/none", `{"folder":` + folder(`[`+quality+`]`) + `}`, verdict{decision: "FAILED", reason: "status_unknown", noIDs: true}},
		{"null", "/none", `null`, malformed},
		{"a string", "/none", `"SUCCESS"`, malformed},
		{"nothing but white space", "/none", ` `, malformed},
		{"a comment", "/none", folder(`[]`) + `//`, malformed},
		{"a comma too many", "/none", folder(`[],`), malformed},
		{"single quotes", "/none", `{'resolution_status':'FINISHED','system_resolution':'SUCCESS'}`, malformed},
		{"UTF-16", "/none", utf16(folder(`[]`)), malformed},
		{"a name twice after an image", "/none", `{"system_resolution":"DECLINED","resolution_status":"FINISHED","analyses":[{"results_media":[{"output_images":[{"image_b64":"x"}]}]}],"system_resolution":"SUCCESS"}`, malformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			oz.Answer(func(rawRequest) string { return rawAnswer("201 Created", test.doc) })
			j := x.observe(t, func() answer { return c.post(t, test.path, []byte("capsule")) })
			test.want.assert(t, j, "")
			if len(j.app) > 0 && !bytes.Equal(j.app[0].Body, []byte(test.doc)) {
				t.Errorf("the app's body is %s, want it as it was: %s", j.app[0].Body, test.doc)
			}
		})
	}
}

// utf16 is what some readers make of a document without being asked to.
func utf16(s string) string {
	out := "\xfe\xff"
	for i := range len(s) {
		out += "\x00" + s[i:i+1]
	}
	return out
}
