package integration_test

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testRequestCapsuleTooLarge promises that a capsule of max_capsule passes and that one byte more is 413: by its length before one
// byte of it is sent, else as soon as that byte comes. Then Oz never has a whole capsule, so that no part is ever analysed.
func testRequestCapsuleTooLarge(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	tooLarge := refused("capsule-too-large", 413)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, size := range []int{capsuleLimit - 1, capsuleLimit} {
			t.Run(strconv.Itoa(size)+" bytes", func(t *testing.T) {
				accepted.assertSight(t, x.observe(t, func() answer { return c.post(t, "/verify", make([]byte, size)) }))
				accepted.assertSight(t, x.observe(t, func() answer { return c.postStream(t, "/verify", bytes.NewReader(make([]byte, size))) }))
			})
		}
		for _, size := range []int{capsuleLimit + 1, capsuleLimit + 2, 2 * capsuleLimit, 8 << 20} {
			t.Run(strconv.Itoa(size)+" bytes", func(t *testing.T) {
				x.refuse(t, tooLarge, func() answer { return c.post(t, "/verify", make([]byte, size)) })
			})
			t.Run(strconv.Itoa(size)+" bytes, unsaid", func(t *testing.T) {
				x.refuseHalfway(t, tooLarge, func() answer { return c.postStream(t, "/verify", bytes.NewReader(make([]byte, size))) })
			})
		}
	})
}

// refuseHalfway is refuse for what shows only while the capsule comes: Oz may have had a part of it.
func (x *chain) refuseHalfway(t testing.TB, want verdict, send func() answer) {
	t.Helper()
	x.oz.quiet(t)
	x.oz.Forget()
	refusedBefore := len(x.logLines(isRefused))
	j := x.observe(t, send)
	want.assertProblem(t, j.answer)
	want.assertUndecided(t, j)
	lines := x.logLines(isRefused)[refusedBefore:]
	if len(lines) != 1 || lines[0].Get("problem").Str != want.reason {
		t.Errorf("logged: %v, want one refusal with %s", lines, want.reason)
	}
	x.assertNoWholeCapsule(t, 1)
}

var isRefused = withMsg("capsule refused")

// assertNoWholeCapsule fails the test if Oz got the end of a capsule, or more requests than there were.
func (x *chain) assertNoWholeCapsule(t testing.TB, most int) {
	t.Helper()
	x.oz.quiet(t)
	receipts := x.oz.Received()
	if len(receipts) > most {
		t.Errorf("Oz got %d requests", len(receipts))
	}
	for _, r := range receipts {
		if r.Complete || r.Status != 0 {
			t.Errorf("Oz got a whole capsule of %d bytes and answered %d", r.Size, r.Status)
		}
	}
}

// testRequestLengthBeyondAllReason promises that a length that nobody could send is refused by its number.
func testRequestLengthBeyondAllReason(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	for _, size := range []int{1 << 31, 1 << 40, 1<<63 - 1} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			x.refuse(t, refused("capsule-too-large", 413), func() answer {
				conn := x.dialRaw(t)
				conn.sendHead(t, postHead("/verify", size)...)
				return conn.readLast(t, "POST")
			})
			x.refuse(t, refused("capsule-too-large", 413), func() answer {
				conn := x.dialRawH2(t)
				conn.sendFields(t, 1, false, postFields("/verify", size)...)
				return conn.read(t, 1).plain()
			})
			x.refuse(t, refused("capsule-too-large", 413), func() answer { return x.openH3(t, "/verify", int64(size)).read(t) })
		})
	}
}

// testRequestLimitOfTheSite promises that Caddy's own request_body, where it is the stricter one, makes for the same refusal when only
// the bytes show it. A length that is too large is Caddy's to refuse.
func testRequestLimitOfTheSite(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, strings.Replace(limitedSite, "\tlog\n", "\tlog\n\trequest_body {\n\t\tmax_size 10KiB\n\t}\n", 1))
	x.eachProtocol(t, func(t *testing.T, c *client) {
		post := func(size int) func() answer {
			return func() answer { return c.postStream(t, "/verify", bytes.NewReader(make([]byte, size))) }
		}
		accepted.assertSight(t, x.observe(t, post(10<<10)))
		for _, size := range []int{10<<10 + 1, 60 << 10} {
			x.refuseHalfway(t, refused("capsule-too-large", 413), post(size))
		}
		j := x.observe(t, func() answer { return c.post(t, "/verify", make([]byte, 10<<10+1)) })
		if j.answer.Status != 413 || len(j.app) > 0 || len(j.decided) > 0 {
			t.Errorf("got %d, the app %v, decided %v", j.answer.Status, j.app, j.decided)
		}
	})
}
