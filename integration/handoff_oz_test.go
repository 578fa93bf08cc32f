package integration_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// toOz is all that Oz may get of a request that has no access token: our own header set, the tracing fields, and the framing of
// one capsule on one connection.
var toOz = map[string]string{
	"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/octet-stream", "User-Agent": "",
	"Traceparent": traceparent, "Tracestate": "vendor=1", "X-Request-Id": "request-1", "Content-Length": "", "Connection": "close",
}

// testHandoffToOz promises Oz a header set of our own: no cookie, no Authorization, no address and no other field of the client,
// also where the client is a trusted proxy. Its Host is the upstream's own name.
func testHandoffToOz(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AllowedHosts: []string{"127.0.0.1"}}, `{
	servers {
		trusted_proxies static private_ranges
	}
}
`+smokeSite)
	fields := slices.Concat(keptFields, staleFields, []string{
		"Tracestate", "vendor=1", "Host", "app.example", "User-Agent", "the client", "Accept", "text/html", "Accept-Encoding", "br",
		"X-Forwarded-For", "203.0.113.7", "X-Forwarded-Proto", "https", "X-Forwarded-Host", "app.example", "Forwarded", "for=203.0.113.7",
		"X-Real-Ip", "203.0.113.7", "Via", "1.1 edge", "Referer", "https://app.example/", "X-Oz-Decision", "SUCCESS",
		"X-Forensic-Access-Token", "of-the-client", "X-Http-Method-Override", "GET", "Proxy-Authorization", "Basic x", "If-None-Match", "*",
		"Content-Disposition", "attachment", "Content-Language", "de", "Te", "trailers", "Sec-Fetch-Mode", "cors",
	})
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.oz.quiet(t)
		x.oz.Forget()
		if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), fields...); a.Status != 200 {
			t.Fatalf("got %d %s", a.Status, a.Body)
		}
		got := x.oz.Received()[0]
		for name, values := range got.Header {
			want, may := toOz[name]
			if !may || len(values) != 1 || (want != "" && values[0] != want) {
				t.Errorf("Oz got %s: %q", name, values)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(toOz)) {
			if len(got.Header[name]) == 0 {
				t.Errorf("Oz did not get %s", name)
			}
		}
		if got.Header.Get("User-Agent") == "the client" {
			t.Error("Oz got the client's User-Agent")
		}
		if got.Host != x.oz.Addr || got.RequestURI != "/api/instant/folders/" || got.Trailer != nil {
			t.Errorf("Oz got %s at %s with trailer %v", got.RequestURI, got.Host, got.Trailer)
		}
	})
}

// TestHandoffHeaderUp promises that an operator may add to what Oz gets, by reverse_proxy's own means and with the client's
// placeholders, and may name another Host; and that base_path stands before Oz's own path.
func TestHandoffHeaderUp(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BasePath: "/deep/oz", StrictSlash: true, AllowedHosts: []string{"oz.internal"}}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		base_path /deep/oz
		header_up Host oz.internal
		header_up X-Tenant bank
		header_up X-User {header.Origin}
		header_up X-Uri {uri}
		header_up X-Forwarded-For {remote_host}
		header_up Via edge
		header_up -X-Request-Id
	}
	reverse_proxy {$APP}
}`)
	c := x.client(t, "h1")
	accepted.assert(t, x.observe(t, func() answer {
		return c.post(t, "/verify?q", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}), keptFields...)
	}), "s")
	got := x.oz.Received()[0]
	for name, want := range map[string]string{
		"X-Tenant": "bank", "X-User": "https://app.example", "X-Uri": "/verify?q", "X-Forwarded-For": "127.0.0.1", "Via": "edge", "X-Request-Id": "",
	} {
		if got.Header.Get(name) != want {
			t.Errorf("Oz got %s: %q, want %q", name, got.Header.Get(name), want)
		}
	}
	if got.Host != "oz.internal" || got.RequestURI != "/deep/oz/api/instant/folders/" {
		t.Errorf("Oz got %s at %s", got.RequestURI, got.Host)
	}
	for _, name := range []string{"X-Tenant", "X-User", "X-Uri"} {
		if len(x.app.Only(t).Values(name)) > 0 {
			t.Errorf("the app got Oz's %s", name)
		}
	}
}

// testHandoffCapsule promises Oz every capsule byte for byte, of any size, with the client's Content-Length when it gave one. When
// it did not, a capsule that ends within the first 32 KiB has one all the same, and a longer one goes in chunks.
func testHandoffCapsule(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, smokeSite)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, size := range []int{1, 2, 511, 512, 32<<10 - 1, 32 << 10, 64<<10 + 1, 1 << 20, 20 << 20} {
			for _, length := range []int64{int64(size), -1} {
				if length < 0 && size == 20<<20 && c.proto != "h1" {
					continue // takes long and shows nothing new
				}
				t.Run(strconv.Itoa(size)+" of "+strconv.FormatInt(length, 10), func(t *testing.T) {
					capsule := randomCapsule(size)
					x.oz.quiet(t)
					x.oz.Forget()
					req := c.postRequest(t, "/verify", bytes.NewReader(capsule))
					req.ContentLength = length
					if a := c.do(t, req); a.Status != 200 {
						t.Fatalf("got %d %s", a.Status, a.Body)
					}
					x.oz.quiet(t)
					got, digest := x.oz.Received()[0], sha256.Sum256(capsule)
					if got.Digest != hex.EncodeToString(digest[:]) || got.Size != int64(size) || !got.Complete {
						t.Errorf("Oz got %d bytes, %s", got.Size, got.Digest)
					}
					told := got.ContentLength == length
					if size <= firstPiece { // at just 32 KiB the end may or may not have been seen
						told = got.ContentLength == int64(size) || size == firstPiece && told
					}
					if !told {
						t.Errorf("Oz was told of %d bytes", got.ContentLength)
					}
				})
			}
		}
	})
}

// randomCapsule is noise that no encoder leaves as it is: every byte, and things that look like text, ends of lines and gzip.
func randomCapsule(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + i>>16)
	}
	copy(b, "\x1f\x8b\r\n\r\n0\r\n\r\n\xef\xbb\xbf{}%00")
	return b
}
