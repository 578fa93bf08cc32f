package integration_test

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// container is row 8: Oz refused the capsule, with this code.
func container(code int) verdict {
	return verdict{decision: "INVALID", reason: "container", http: 400, code: strconv.Itoa(code)}
}

// unexpected is row 13, with Oz's code if it gave one.
func unexpected(code string) verdict {
	v := unavailable("unexpected_status", 502)
	v.code = code
	return v
}

// TestDecisionByContainerError is about row 8: a capsule that Oz refuses is the client's to hear of, with Oz's code, and the
// app is not called. A 400 that is not exactly Oz's object with one of five codes is no word about the capsule: row 13.
func TestDecisionByContainerError(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, decisionSite)
	var cases []decisionCase
	for damage, code := range sandbox.Damages() {
		if damage != sandbox.DamageEmpty { // refused before Oz is asked
			cases = append(cases, decisionCase{name: "8 " + string(damage), spec: sandbox.CapsuleSpec{Damage: damage}, want: container(code)})
		}
	}
	for code := range 16 {
		text := strconv.Itoa(code)
		test := decisionCase{name: "13 code " + text, fault: "oz-error:" + text, want: unexpected(text)}
		switch code {
		case 3, 4, 5, 13, 14:
			test.name, test.want = "8 code "+text, container(code)
		case 0: // the fault takes 0 for its default
			continue
		}
		cases = append(cases, test)
	}
	broken := sandbox.CapsuleSpec{Damage: sandbox.DamageHash}
	for _, fault := range []string{"array", "bom", "trailing", "second-document", "gzip", "truncated", "empty-body"} {
		cases = append(cases, decisionCase{name: "13 error object: " + fault, fault: fault, spec: broken, want: unexpected("")})
	}
	cases = append(cases,
		decisionCase{name: "13 400 without a code", fault: "json:400", want: unexpected("")},
		decisionCase{name: "13 400 in HTML", fault: "html:400", want: unexpected("")},
		decisionCase{name: "13 400 with a folder", fault: "folder:400", want: unexpected("")},
		decisionCase{name: "13 code 14 with another status", fault: "oz-error:14,status=500", want: unexpected("14")},
		decisionCase{name: "13 code 14 with status 422", fault: "oz-error:14,status=422", want: unexpected("14")},
		decisionCase{name: "6 code 14 with status 201", fault: "oz-error:14,status=201", want: verdict{
			decision: "FAILED", reason: "status_unknown", noIDs: true,
		}},
	)
	x.run(t, cases)

	// Only Oz can know that a body of unknown length is empty.
	t.Run("8 an empty capsule of unknown length", func(t *testing.T) {
		x.oz.fault(t, "")
		j := x.observe(t, func() answer {
			conn := x.dialRaw(t)
			conn.sendHead(t, postHead("/verify", -1)...)
			conn.send(t, "0\r\n\r\n")
			return conn.read(t, "POST")
		})
		container(13).assert(t, j, "")
	})
}

// testDecisionByStatus is about rows 10 to 13: whatever the body says, a status that is not 200 or 201 decides nothing. No
// redirect is followed: at the place where the sandbox's lead stands a folder that says SUCCESS.
func testDecisionByStatus(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, decisionSite)
	coded := func(v verdict, code string) verdict {
		v.code = code
		return v
	}
	busy := func(retryAfter, code string) verdict {
		v := coded(unavailable("overloaded", 503), code)
		v.retryAfter = retryAfter
		return v
	}
	unauthorized, tooLarge := unavailable("unauthorized", 502), unavailable("too_large_for_oz", 502)
	cases := []decisionCase{
		{name: "10 401", fault: "status:401", want: coded(unauthorized, "7")},
		{name: "10 403", fault: "status:403", want: coded(unauthorized, "9")},
		{name: "10 401 in HTML", fault: "html:401", want: unauthorized},
		{name: "10 403 with a folder", fault: "folder:403", want: unauthorized},
		{name: "11 429", fault: "status:429", want: busy("7", "11")},
		{name: "11 503", fault: "status:503,retry-after=120", want: busy("120", "11")},
		{name: "11 503 that does not say when", fault: "status:503,retry-after=none", want: busy("any", "11")},
		{name: "11 503 until a date", fault: "status:503,retry-after=Sun Nov  6 08:49:37 1994", want: busy("1", "11")},
		{name: "11 503 that says nonsense", fault: "status:503,retry-after=soon", want: busy("any", "11")},
		{name: "11 503 that says less than nothing", fault: "status:503,retry-after=-5", want: busy("any", "11")},
		{name: "11 429 in HTML", fault: "html:429", want: busy("any", "")},
		{name: "11 503 in HTML", fault: "html:503", want: busy("any", "")},
		{name: "11 503 with a folder", fault: "folder:503", want: busy("any", "")},
		{name: "12 413", fault: "status:413", want: tooLarge},
		{name: "12 413 with a folder", fault: "folder:413", want: tooLarge},
		{name: "12 413 with code 5", fault: "oz-error:5,status=413", want: coded(tooLarge, "5")},
		{name: "13 101", fault: "upgrade", want: unexpected("")},
		{name: "13 500", fault: "status:500", want: unexpected("0")},
		{name: "13 500 in HTML", fault: "html:500", want: unexpected("")},
	}
	for _, status := range []string{"202", "203", "204", "205", "206", "207", "226", "299", "418", "422", "500", "502", "599"} {
		cases = append(cases, decisionCase{name: "13 a folder with " + status, fault: "folder:" + status, want: unexpected("")})
	}
	for _, status := range []string{"204", "206", "300", "301", "302", "303", "304", "305", "307", "308", "502", "504"} {
		cases = append(cases, decisionCase{name: "13 " + status, fault: "status:" + status, want: unexpected("")})
	}
	for status, code := range map[string]string{"404": "10", "405": "1", "501": "2"} {
		cases = append(cases, decisionCase{name: "13 " + status, fault: "status:" + status, want: unexpected(code)})
	}
	x.run(t, cases)
}

// TestDecisionWhenOzRefusesUnread is about Oz, or a server in front of it, that answers by the header alone while the capsule
// is still coming: its word must arrive although writing to it fails.
func TestDecisionWhenOzRefusesUnread(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{MaxCapsule: 1 << 20, AccessToken: "wanted-by-oz"}, `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	oz_instant /known {$OZ} {
		access_token wanted-by-oz
	}
	reverse_proxy {$APP}
}`)
	unauthorized := unavailable("unauthorized", 502)
	unauthorized.code = "6"
	for path, want := range map[string]verdict{"/verify": unauthorized, "/known": unavailable("too_large_for_oz", 502)} {
		x.eachProtocol(t, func(t *testing.T, c *client) {
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 6 << 20})
			for range 5 {
				want.assert(t, x.observe(t, func() answer { return c.post(t, path, capsule) }), "")
			}
		})
	}
}

// TestDecisionEarlyRefusal is about Oz's code 14 in the middle of an upload, with the connection closed on the rest: in every
// single case the client sees it, whether its own upload is still going on or not.
func TestDecisionEarlyRefusal(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, decisionSite)
	x.oz.fault(t, "early:400")
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for i := range 24 {
			capsule := bytes.NewReader(make([]byte, 100_000<<(i%6))) // to 3.2 MB
			req := c.postRequest(t, "/verify", capsule)
			if i%2 == 1 {
				req.ContentLength = -1
			}
			container(14).assert(t, x.observe(t, func() answer { return c.do(t, req) }), "")
		}
	})
	t.Run("while the client waits", func(t *testing.T) {
		conn := x.dialRaw(t)
		conn.sendHead(t, postHead("/verify", 1<<20)...)
		conn.send(t, strings.Repeat("x", 100_000))
		container(14).assertProblem(t, conn.read(t, "POST"))
		conn.ends(t)
	})
}

// testDecisionEarlyFolder is about a folder that comes before the capsule has: what it says cannot be about this capsule. The
// client holds the last byte back, so that there is no doubt.
func testDecisionEarlyFolder(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, decisionSite)
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 400_000})
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, fault := range []string{"early:201", "early:200", "early:201,bytes=400000"} {
			for _, length := range []int64{int64(len(capsule)), -1} {
				x.oz.fault(t, fault)
				body, hold := io.Pipe()
				go hold.Write(capsule[:len(capsule)-1]) // fails when the request is over
				req := c.postRequest(t, "/verify", body)
				req.ContentLength = length
				unexpected("").assert(t, x.observe(t, func() answer { return c.do(t, req) }), "")
				body.Close()
			}
		}
	})
}
