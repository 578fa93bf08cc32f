package integration_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestRequestExpectContinue promises a client that asks before it sends, that a refusal comes at once and no 100 Continue before it:
// its megabytes stay where they are. The connection is for nothing more then, as nobody can know whether the body comes after all.
func TestRequestExpectContinue(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	head := func(method string, lines ...string) []string {
		return append([]string{method + " /verify HTTP/1.1", "Host: localhost", "Expect: 100-continue"}, lines...)
	}
	const octets, long = "Content-Type: application/octet-stream", "Content-Length: 60000"
	for _, test := range []struct {
		name string
		head []string
		want verdict
	}{
		{"method", head("PUT", octets, long), refused("method-not-allowed", 405)},
		{"method, in chunks", head("PUT", octets, "Transfer-Encoding: chunked"), refused("method-not-allowed", 405)},
		{"GET", head("GET", long), refused("unexpected-content", 400)},
		{"no type", head("POST", long), refused("unsupported-media-type", 415)},
		{"type", head("POST", "Content-Type: application/json", long), refused("unsupported-media-type", 415)},
		{"type, in chunks", head("POST", "Content-Type: application/json", "Transfer-Encoding: chunked"), refused("unsupported-media-type", 415)},
		{"encoding", head("POST", octets, "Content-Encoding: gzip", long), refused("content-encoding", 415)},
		{"length", head("POST", octets, "Content-Length: 900000"), refused("capsule-too-large", 413)},
	} {
		for name, dial := range map[string]func(testing.TB) *rawConn{"": x.dialRaw, " over TLS": x.dialRawTLS} {
			t.Run(test.name+name, func(t *testing.T) {
				x.refuse(t, test.want, func() answer {
					conn := dial(t)
					conn.sendHead(t, test.head...)
					a := conn.read(t, "POST") // of a 100, this would be it
					if a.Header.Get("Connection") != "close" {
						t.Errorf("Connection is %q", a.Header.Get("Connection"))
					}
					return a
				})
			})
		}
	}
	t.Run("over HTTP/2", func(t *testing.T) {
		j := x.refuse(t, refused("capsule-too-large", 413), func() answer {
			conn := x.dialRawH2(t)
			conn.sendFields(t, 1, false, postFields("/verify", 900_000, "expect", "100-continue")...)
			return conn.read(t, 1).plain()
		})
		if statuses := j.answer.Header[":status"]; len(statuses) > 1 {
			t.Errorf("the answers were %v", statuses)
		}
	})
}

// TestRequestExpectContinueOfCapsules promises 100 Continue to a capsule that may come, and none to one for which there is no slot.
// Oz is asked only when the first 32 KiB have arrived: of what comes after them, nothing is sent to a gateway whose Oz is out of reach.
func TestRequestExpectContinueOfCapsules(t *testing.T) {
	t.Parallel()
	hanging := startSandbox(t, sandbox.Options{Fault: sandbox.MustFault("hang")})
	x := startChain(t, sandbox.Options{AcceptAny: true}, limitedSite+`
http://dead.test:{$HTTP_PORT} {
	log
	oz_instant {$DEAD}
	reverse_proxy {$APP}
}
http://full.test:{$HTTP_PORT} {
	oz_instant {$HANGING} {
		client_gone cancel
		capacity {
			slots 1
			queue 0
		}
	}
	reverse_proxy {$APP}
}`, withEnv("DEAD", deadAddress(t)), withEnv("HANGING", hanging.URL))
	t.Run("wanted", func(t *testing.T) {
		accepted.assertSight(t, x.observe(t, func() answer {
			conn := x.dialRaw(t)
			conn.sendHead(t, postHead("/verify", 7, "Expect: 100-continue")...)
			if a := conn.read(t, "POST"); a.Status != 100 {
				t.Fatalf("got %+v, want 100 Continue", a)
			}
			conn.send(t, "capsule")
			return conn.read(t, "POST")
		}))
	})
	t.Run("wanted over HTTP/2", func(t *testing.T) {
		j := x.observe(t, func() answer {
			conn := x.dialRawH2(t)
			conn.sendFields(t, 1, false, postFields("/verify", 7, "expect", "100-continue")...)
			check(t, conn.WriteData(1, true, []byte("capsule")))
			return conn.read(t, 1).plain()
		})
		accepted.assertSight(t, j)
		if statuses := j.answer.Header[":status"]; !slices.Equal(statuses, []string{"100", "200"}) {
			t.Errorf("the answers were %v", statuses)
		}
	})
	t.Run("Oz is out of reach", func(t *testing.T) {
		j := x.observe(t, func() answer {
			conn := x.dialRaw(t)
			conn.sendHead(t, "POST / HTTP/1.1", "Host: dead.test", "Content-Type: application/octet-stream", "Content-Length: 60000", "Expect: 100-continue")
			if a := conn.read(t, "POST"); a.Status != 100 {
				t.Fatalf("got %+v, want 100 Continue", a)
			}
			conn.send(t, strings.Repeat("x", firstPiece))
			return conn.readLast(t, "POST")
		})
		unavailable("unreachable", 502).assert(t, j, "")
	})
	t.Run("too large after all", func(t *testing.T) {
		x.refuseHalfway(t, refused("capsule-too-large", 413), func() answer {
			conn := x.dialRaw(t)
			conn.sendHead(t, postHead("/verify", -1, "Expect: 100-continue")...)
			if a := conn.read(t, "POST"); a.Status != 100 {
				t.Fatalf("got %+v, want 100 Continue", a)
			}
			conn.sendChunk(t, strings.Repeat("x", capsuleLimit+1))
			return conn.readLast(t, "POST")
		})
	})
	t.Run("there is no slot", func(t *testing.T) {
		first := x.dialRaw(t)
		first.sendHead(t, "POST / HTTP/1.1", "Host: full.test", "Content-Type: application/octet-stream", "Content-Length: 7")
		first.send(t, "capsule")
		hanging.await(t, func(s sandbox.Stats) bool { return s.Open == 1 })
		conn := x.dialRaw(t)
		conn.sendHead(t, "POST / HTTP/1.1", "Host: full.test", "Content-Type: application/octet-stream", "Content-Length: 60000", "Expect: 100-continue")
		assertBusy(t, conn.read(t, "POST"))
		conn.ends(t)
	})
}

// TestRequestExpectContinueWithCurl promises the same to curl, which asks first when it has more than a megabyte.
func TestRequestExpectContinueWithCurl(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	file := capsuleFile(t, 2<<20)
	for _, test := range []struct {
		name, want string
		args       []string
	}{
		{"length", "413 0", []string{"-H", "Content-Type: application/octet-stream"}},
		{"type", "415 0", []string{"-H", "Content-Type: application/json"}},
		{"method", "405 0", []string{"-X", "PUT", "-H", "Content-Type: application/octet-stream"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append(test.args, "--expect100-timeout", "20", "--data-binary", "@"+file, "-o", "/dev/null", "-w", "%{http_code} %{size_upload}")
			if got := mustCurl(t, append(args, "http://"+x.HTTP+"/verify")...); got != test.want {
				t.Errorf("status and uploaded bytes are %s, want %s", got, test.want)
			}
		})
	}
}

// capsuleFile writes a file of noise that curl can send.
func capsuleFile(t testing.TB, size int) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "capsule")
	check(t, os.WriteFile(file, randomCapsule(size), 0o600))
	return file
}
