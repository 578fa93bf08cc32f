package integration_test

import (
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// The tests of requests bring some that aren't capsules, or not good ones: each is refused, most of them before a byte of the body
// is read, or goes on to the app undecided.

// limitedSite takes capsules of up to 64 KiB at /verify, and at /slow only from clients that upload them within a second.
const limitedSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_capsule 64KiB
	}
	oz_instant /slow {$OZ} {
		upload_timeout 1s
	}
	reverse_proxy {$APP}
}`

const capsuleLimit = 64 << 10

// startLimited starts a limitedSite and an Oz to which every body is a good capsule.
func startLimited(t testing.TB) *chain {
	t.Helper()
	return startChain(t, sandbox.Options{AcceptAny: true}, limitedSite)
}

// refused is a refusal: the word of its problem and its status.
func refused(word string, http int) verdict { return verdict{reason: word, http: http} }

// refuse has send bring one request to the site, which must be refused without a word to Oz. It must be the only request at
// this time.
func (x *chain) refuse(t testing.TB, want verdict, send func() answer) observed {
	t.Helper()
	x.oz.quiet(t)
	x.oz.Forget()
	j := x.observe(t, send)
	want.assertProblem(t, j.answer)
	want.assertUndecided(t, j)
	for _, r := range x.oz.Requests() {
		t.Errorf("Oz got %s %s, %d bytes", r.Method, r.RequestURI, r.Size)
	}
	return j
}

// assertUndecided fails the test unless what came of a request is a refusal and no decision, wherever one looks.
func (want verdict) assertUndecided(t testing.TB, j observed) {
	t.Helper()
	series := refusalsTotal + `{problem="` + want.reason + `"}`
	if len(j.counted) != 1 || j.counted[series] != 1 {
		t.Errorf("counted: %v, want one more of %s", j.counted, series)
	}
	if len(j.decided) > 0 || j.access.Get("oz_instant.decision").Exists() {
		t.Errorf("a decision is logged: %v, %s", j.decided, j.access)
	}
	if status := j.access.Get("status").Int(); status != int64(want.http) {
		t.Errorf("the access log has status %d, want %d", status, want.http)
	}
	for _, r := range j.app {
		t.Errorf("the app got:\n%s", r.Raw())
	}
}

// goOn has send bring one request to the site, which must reach the app as the client sent it: undecided and uncounted.
func (x *chain) goOn(t testing.TB, send func() answer) rawRequest {
	t.Helper()
	x.oz.Forget()
	j := x.observe(t, send)
	if len(j.app) != 1 {
		t.Fatalf("the app got %d requests, want 1; the client got %d %s", len(j.app), j.answer.Status, j.answer.Body)
	}
	if j.answer.Status != 200 || len(j.counted) > 0 || len(j.decided) > 0 || j.access.Get("oz_instant.decision").Exists() {
		t.Errorf("got %d, counted %v, logged %v, %s", j.answer.Status, j.counted, j.decided, j.access)
	}
	assertReserved(t, j.app[0], map[string]string{})
	if n := len(x.oz.Requests()); n > 0 {
		t.Errorf("Oz got %d requests", n)
	}
	return j.app[0]
}
