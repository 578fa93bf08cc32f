package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// smuggled is a request that must never reach the app when it comes inside of another one's body.
const smuggled = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\nX-Oz-Decision: SUCCESS\r\n\r\n"

// testRequestBadChunks promises that a body of bad framing is no capsule, however good it began: 400 and no decision, and nothing
// after it is read as a request.
func testRequestBadChunks(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	for name, chunks := range map[string]string{
		"no number":            "xyz\r\n",
		"negative":             "-1\r\n",
		"with 0x":              "0x5\r\ncapsu\r\n",
		"with a sign":          "+5\r\ncapsu\r\n",
		"with a space before":  " 5\r\ncapsu\r\n",
		"no size":              "\r\ncapsu\r\n",
		"too large a number":   "ffffffffffffffffff\r\n",
		"line ends without CR": "5\ncapsu\n0\n\n",
		"longer than it says":  "3\r\ncapsu\r\n",
		"no line end after it": "5\r\ncapsu5\r\ncapsu\r\n",
		"endless extension":    "5;" + strings.Repeat("x", 100_000) + "\r\ncapsu\r\n",
		"trailer is no field":  "0\r\nno field\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			x.refuseHalfway(t, refused("unreadable-capsule", 400), func() answer {
				conn := x.dialRaw(t)
				conn.sendHead(t, postHead("/verify", -1)...)
				conn.sendChunk(t, "capsule")
				conn.send(t, chunks+smuggled)
				a := conn.read(t, "POST")
				conn.ends(t)
				return a
			})
		})
	}
}

// testRequestAmbiguousLength promises that a request that two readers could take for two different ones is refused, or is decided by
// one reading of which the app never sees another.
func testRequestAmbiguousLength(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	chunked := "7\r\ncapsule\r\n0\r\n\r\n"
	for _, test := range []struct {
		name, fields, body string
	}{
		{"two lengths", "Content-Length: 7\r\nContent-Length: 8", "capsule"},
		{"two lengths on one line", "Content-Length: 7, 8", "capsule"},
		{"a length with a sign", "Content-Length: +7", "capsule"},
		{"a negative length", "Content-Length: -7", "capsule"},
		{"a length in hex", "Content-Length: 0x7", "capsule"},
		{"a length with a space before the colon", "Content-Length : 7", "capsule"},
		{"a length beyond any number", "Content-Length: 99999999999999999999", "capsule"},
		{"unknown coding", "Transfer-Encoding: gzip", "capsule"},
		{"identity", "Transfer-Encoding: identity", "capsule"},
		{"two codings", "Transfer-Encoding: gzip, chunked", chunked},
		{"chunked twice", "Transfer-Encoding: chunked, chunked", chunked},
		{"chunked on two lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", chunked},
		{"chunked and identity", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", chunked},
		{"a space before the colon", "Transfer-Encoding : chunked", chunked},
		{"a coding of odd letters", "Transfer-Encoding: xchunked", chunked},
		{"a folded line", "Transfer-Encoding:\r\n chunked", chunked},
		{"a vertical tab", "Transfer-Encoding: \vchunked", chunked},
		{"length and chunks", "Content-Length: 7\r\nTransfer-Encoding: chunked", chunked},
		{"chunks and length", "Transfer-Encoding: chunked\r\nContent-Length: 100", chunked},
		{"chunks and a length of nothing", "Transfer-Encoding: chunked\r\nContent-Length: 0", chunked},
		{"a length of nothing", "Content-Length: 0", "capsule"},
		{"no length", "X-None: 0", "capsule"},
		{"a length that is too short", "Content-Length: 3", "capsule"},
	} {
		t.Run(test.name, func(t *testing.T) {
			x.app.Forget()
			decided := len(x.logLines(isDecided))
			conn := x.dialRaw(t)
			conn.send(t, "POST /verify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"+test.fields+"\r\n\r\n"+
				test.body+"GARBAGE\r\n\r\n")
			a, err := conn.tryRead("POST") // what is no HTTP at all, Go's server may cut off
			if err != nil || a.Status >= 400 {
				x.app.None(t)
				return
			}
			if second, err := conn.tryRead("GET"); err == nil && second.Status != 400 {
				t.Errorf("what is no request was answered with %d", second.Status)
			}
			x.waitForLogs(t, decided+1, isDecided)
			x.assertOnlyDecided(t, x.app.Requests(), 1)
		})
	}
	if len(x.app.Requests()) == 0 {
		t.Error("the last case of all should have come through")
	}
}

// assertOnlyDecided fails the test unless each of the app's requests is that of a decided capsule.
func (x *chain) assertOnlyDecided(t testing.TB, requests []rawRequest, decided int) {
	t.Helper()
	if len(requests) > decided {
		t.Errorf("%d capsules were decided, and the app got %d requests", decided, len(requests))
	}
	for _, r := range requests {
		if r.Line != "POST /verify HTTP/1.1" || r.Value("X-Oz-Decision") != "SUCCESS" {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		assertFolder(t, r)
	}
}

// testRequestPipeline promises that requests after a capsule, on the same connection and before its answer, are answered in order,
// each for itself: they reach the app whole, undecided and without what came in the capsule's trailer.
func testRequestPipeline(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	capsule := string(x.oz.Capsule(sandbox.CapsuleSpec{}))
	inChunks := fmt.Sprintf("%x\r\n%s\r\n0\r\nX-Oz-Decision: SUCCESS\r\nX_Oz_Decision: SUCCESS\r\nContent-Length: 3\r\n\r\n", len(capsule), capsule)
	other := fmt.Sprintf("POST /other HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"+
		"X-Oz-Decision: SUCCESS\r\n\r\n%s", len(forgedFolder), forgedFolder)
	for name, first := range map[string]string{
		"of known length": strings.Join(postHead("/verify", len(capsule)), "\r\n") + "\r\n\r\n" + capsule,
		"in chunks":       strings.Join(postHead("/verify", -1, "Trailer: X-Oz-Decision", "TE: trailers"), "\r\n") + "\r\n\r\n" + inChunks,
	} {
		t.Run(name, func(t *testing.T) {
			x.app.Forget()
			x.oz.SetOptions(sandbox.Options{ReuseTokens: true})
			conn := x.dialRaw(t)
			conn.send(t, first+other+"GET /verify HTTP/1.1\r\nHost: localhost\r\nX-Oz-Decision: SUCCESS\r\n\r\n")
			for i := range 3 {
				if a := conn.read(t, "POST"); a.Status != 200 {
					t.Fatalf("answer %d is %d %s", i, a.Status, a.Body)
				}
			}
			got := x.app.Wait(t, 3)
			x.assertOnlyDecided(t, got[:1], 1)
			if got[1].Line != "POST /other HTTP/1.1" || string(got[1].Body) != forgedFolder || got[2].Line != "GET /verify HTTP/1.1" || len(got[2].Body) > 0 {
				t.Errorf("the app got:\n%s\n%s", got[1].Raw(), got[2].Raw())
			}
			for _, r := range got {
				if len(r.Trailers) > 0 {
					t.Errorf("the app got trailers:\n%s", r.Raw())
				}
			}
			assertReserved(t, got[1], map[string]string{})
			assertReserved(t, got[2], map[string]string{})
		})
	}
}

// testRequestInRefusedBody promises that nothing of a refused body is read as a request, whether it has come already or not.
func testRequestInRefusedBody(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	length := fmt.Sprintf("Content-Length: %d", len(smuggled))
	long := fmt.Sprintf("Content-Length: %d", 300_000+len(smuggled))
	for name, head := range map[string][]string{
		"method":        {"PUT /verify HTTP/1.1", "Host: localhost", length},
		"GET":           {"GET /verify HTTP/1.1", "Host: localhost", length},
		"type":          {"POST /verify HTTP/1.1", "Host: localhost", "Content-Type: text/plain", length},
		"type, long":    {"POST /verify HTTP/1.1", "Host: localhost", "Content-Type: text/plain", long},
		"encoding":      postHead("/verify", len(smuggled), "Content-Encoding: gzip"),
		"CONNECT":       {"CONNECT /verify HTTP/1.1", "Host: localhost", length},
		"length, by it": postHead("/verify", 300_000+len(smuggled)),
	} {
		t.Run(name, func(t *testing.T) {
			x.app.Forget()
			conn := x.dialRaw(t)
			conn.sendHead(t, head...)
			if slices.Contains(head, long) || name == "length, by it" {
				conn.send(t, strings.Repeat("x", 300_000))
			}
			conn.send(t, smuggled+smuggled)
			if a := conn.read(t, "POST"); a.Status < 400 {
				t.Errorf("got %d", a.Status)
			}
			conn.ends(t)
			x.app.None(t)
		})
	}
}

// testRequestLyingLength promises that over HTTP/2 and HTTP/3 a body that is shorter than its Content-Length is no capsule, and that
// of a longer one nobody gets more than was said.
func testRequestLyingLength(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	for name, size := range map[string]int{"one byte short": saidLength - 1, "empty": 0, "one byte long": saidLength + 1, "long": 60_000} {
		body := strings.Repeat("x", size)
		t.Run("h2 "+name, func(t *testing.T) {
			x.lie(t, size, func() (answer, bool) {
				conn := x.dialRawH2(t)
				conn.sendFields(t, 1, false, postFields("/verify", saidLength)...)
				const most = 16_000
				for ; len(body) > most; body = body[most:] {
					check(t, conn.WriteData(1, false, []byte(body[:most])))
				}
				check(t, conn.WriteData(1, true, []byte(body)))
				a := conn.read(t, 1)
				return a.plain(), a.HasEnd
			})
		})
		t.Run("h3 "+name, func(t *testing.T) {
			x.lie(t, size, func() (answer, bool) {
				stream := x.openH3(t, "/verify", saidLength)
				stream.Write([]byte(body)) // which the server may cut short
				stream.Close()
				a, err := stream.tryRead()
				return a, err == nil
			})
		})
	}
}

// testRequestNoLengthAndContent promises that over HTTP/2 and HTTP/3 content after a Content-Length of 0 reaches nobody: with a POST
// it is an empty capsule, and a GET that has it is refused or continues without it.
func testRequestNoLengthAndContent(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	senders := map[string]func(testing.TB, []string, [][]byte, []string) int{"h2": x.framesOverH2, "h3": x.framesOverH3}
	sent := 0
	for proto, send := range senders {
		for _, method := range []string{"POST", "PUT", "GET", "OPTIONS"} {
			fields := postFields("/verify", 0)
			fields[1] = method
			status := send(t, fields, [][]byte{[]byte(forgedFolder)}, nil)
			sent++
			if status > 0 && status < 300 && (method == "POST" || method == "PUT") {
				t.Errorf("%s %s: got %d", proto, method, status)
			}
		}
	}
	x.waitForLogs(t, sent, isAccess) // the server may end a stream before its handler is through
	for _, r := range x.app.Requests() {
		if len(r.Body) > 0 || strings.HasPrefix(r.Line, "P") {
			t.Errorf("the app got:\n%s", r.Raw())
		}
	}
	x.oz.quiet(t)
	if n := len(x.oz.Received()); n > 0 {
		t.Errorf("Oz got %d capsules", n)
	}
}

const saidLength = 10_000

// lie has send bring a capsule of a size other than saidLength, to which there may be no answer.
func (x *chain) lie(t testing.TB, size int, send func() (answer, bool)) {
	t.Helper()
	x.oz.quiet(t)
	x.oz.Forget()
	var answered bool
	j := x.observe(t, func() (a answer) {
		a, answered = send()
		return a
	})
	for _, r := range x.oz.Received() {
		if r.Size > saidLength {
			t.Errorf("Oz got %d bytes", r.Size)
		}
	}
	if len(j.decided) > 0 && size > saidLength {
		x.assertOnlyDecided(t, j.app, 1) // on what was said
		return
	}
	if answered {
		want := refused("unreadable-capsule", 400)
		want.assertProblem(t, j.answer)
		want.assertUndecided(t, j)
	}
	if len(j.decided) > 0 || len(j.app) > 0 || len(j.counted) != 1 {
		t.Errorf("decided %v, the app %v, counted %v, want one refusal", j.decided, j.app, j.counted)
	}
	if size < saidLength {
		x.assertNoWholeCapsule(t, 1)
	}
}
