package integration_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// What the client says besides the capsule: first what the app must get as it was, then what described the capsule.
var (
	keptFields = []string{
		"Cookie", "session=s%3D1; transaction=order-1", "Authorization", "Bearer user-token", "Accept-Language", "de, en;q=0.5",
		"Origin", "https://app.example", "X-Custom", "one", "X-Custom", "two", "Traceparent", traceparent, "X-Request-Id", "request-1",
	}
	staleFields = []string{
		"Content-Md5", "Q2hlY2sgSW50ZWdyaXR5IQ==", "Digest", "sha-256=x", "Content-Digest", "sha-256=:x:", "Repr-Digest", "sha-256=:x:",
		"Range", "bytes=0-1", "Content-Range", "bytes 0-1/2",
	}
)

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

// testHandoffRequest promises the app the client's own request: method, path, query, cookies, Authorization and all else, with
// the folder in place of the capsule and nothing left that describes the capsule.
func testHandoffRequest(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	const target = "/verify?a=b&a=c%2Fd&;x=%00&e"
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, length := range []string{"known", "unknown"} {
			x.app.Forget()
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{})
			req := c.postRequest(t, target, strings.NewReader(string(capsule)), slices.Concat(keptFields, staleFields)...)
			if length == "unknown" {
				req.ContentLength = -1
			}
			if a := c.do(t, req); a.Status != 200 {
				t.Fatalf("got %d %s", a.Status, a.Body)
			}
			r := x.app.Only(t)
			if r.Line != "POST "+target+" HTTP/1.1" {
				t.Errorf("the app got %q", r.Line)
			}
			assertKept(t, r)
			assertFolder(t, r)
		}
	})
}

func assertKept(t testing.TB, r rawRequest) {
	t.Helper()
	for i := 0; i < len(keptFields); i += 2 {
		if name, value := keptFields[i], keptFields[i+1]; !slices.Contains(r.Values(name), value) {
			t.Errorf("%s is %q, want %q", name, r.Values(name), value)
		}
	}
	for i := 0; i < len(staleFields); i += 2 {
		if name := staleFields[i]; len(r.Values(name)) > 0 {
			t.Errorf("%s: %s is left of the capsule", name, r.Value(name))
		}
	}
	for _, name := range []string{"Content-Encoding", "Expect", "Trailer", "Transfer-Encoding"} {
		if len(r.Values(name)) > 0 {
			t.Errorf("%s: %s is left of the capsule", name, r.Value(name))
		}
	}
}

// testHandoffExpectAndTrailer is about what only a client of bytes can send: Expect: 100-continue is answered when the capsule is
// wanted, and neither it nor an announced trailer goes on to the app. The connection then serves another capsule.
func testHandoffExpectAndTrailer(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	conn := x.dialRaw(t)
	for range 2 {
		x.app.Forget()
		capsule := x.oz.Capsule(sandbox.CapsuleSpec{})
		conn.sendHead(t, postHead("/verify", -1, "Expect: 100-continue", "Trailer: X-Late", "TE: trailers", "Connection: TE")...)
		if a := conn.read(t, "POST"); a.Status != 100 {
			t.Fatalf("got %+v, want 100 Continue", a)
		}
		conn.sendChunk(t, string(capsule[:1000]))
		conn.sendChunk(t, string(capsule[1000:]))
		conn.sendChunk(t, "")
		conn.sendHead(t, "X-Late: yes")
		if a := conn.read(t, "POST"); a.Status != 200 {
			t.Fatalf("got %d %s", a.Status, a.Body)
		}
		r := x.app.Only(t)
		if names := r.Names("x-late"); len(names) != 0 || r.Value("Expect")+r.Value("Trailer") != "" {
			t.Errorf("the app got:\n%s", r.Raw())
		}
		assertFolder(t, r)
	}
}

// TestHandoffFromBrowser sends a capsule as a page does with fetch: the fields are Chrome's.
func TestHandoffFromBrowser(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BestShotSize: 400_000}, smokeSite)
	chrome := []string{
		"Sec-Ch-Ua-Platform", `"Android"`, "User-Agent", "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36",
		"Sec-Ch-Ua", `"Chromium";v="140", "Not=A?Brand";v="24", "Google Chrome";v="140"`, "Sec-Ch-Ua-Mobile", "?1", "Accept", "*/*",
		"Origin", "https://localhost", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty",
		"Referer", "https://localhost/", "Accept-Encoding", "gzip, deflate, br, zstd", "Accept-Language", "en-US,en;q=0.9",
		"Cookie", "session=1", "Priority", "u=1, i",
	}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for range 3 { // on one connection
			capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 2 << 20, EventSession: "from-chrome"})
			j := x.observe(t, func() answer { return c.post(t, "/verify", capsule, chrome...) })
			accepted.assert(t, j, "from-chrome")
			for i := 0; i < len(chrome); i += 2 {
				if got := j.app[0].Value(chrome[i]); got != chrome[i+1] {
					t.Errorf("%s is %q", chrome[i], got)
				}
			}
		}
	})
}
