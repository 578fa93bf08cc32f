package integration_test

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// forgedFolder is what an attacker would post straight to the app: it looks just like what the app gets for a good capsule.
const forgedFolder = `{"folder_id":"0d4e7d6c-91b5-4b4c-8b9b-0d2f7a9f8a11","resolution_status":"FINISHED","system_resolution":"SUCCESS",` +
	`"analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}],"meta_data":{"event_session_id":"s"}}`

// TestRequestUndecided promises that GET, HEAD and OPTIONS without content go on to the app, whatever their header says and also
// where only the end of the body shows that it is empty.
func TestRequestUndecided(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	fields := []string{"Content-Type", "application/json", "Content-Encoding", "gzip", "X-Oz-Decision", "SUCCESS", "Cookie", "a=b"}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			for name, body := range map[string]io.Reader{
				"no body":                         nil,
				"a body of length 0":              http.NoBody,
				"an empty body of unknown length": io.MultiReader(),
			} {
				t.Run(method+" with "+name, func(t *testing.T) {
					r := x.goOn(t, func() answer { return c.do(t, c.request(t, method, "/verify?a=b", body, fields...)) })
					if r.Line != method+" /verify?a=b HTTP/1.1" || r.Value("Cookie") != "a=b" || len(r.Body) > 0 || r.Chunked {
						t.Errorf("the app got:\n%s", r.Raw())
					}
				})
			}
		}
	})
}

// testRequestContentWhereNoneBelongs promises that no content gets to the app after a GET, HEAD or OPTIONS.
func testRequestContentWhereNoneBelongs(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	want := refused("unexpected-content", 400)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, method := range []string{"GET", "OPTIONS", "HEAD"} {
			for name, body := range map[string]io.Reader{
				"one byte":                   strings.NewReader("{"),
				"a folder":                   strings.NewReader(forgedFolder),
				"a folder of unknown length": io.MultiReader(strings.NewReader(forgedFolder)),
				"one byte of unknown length": io.MultiReader(strings.NewReader("{")),
				"a megabyte":                 bytes.NewReader(make([]byte, 1<<20)),
			} {
				t.Run(method+" with "+name, func(t *testing.T) {
					req := c.request(t, method, "/verify", body, "Content-Type", "application/octet-stream")
					j := x.observe(t, func() answer { return c.do(t, req) })
					want.assertUndecided(t, j)
					if method != "HEAD" { // to which no document is the answer
						want.assertProblem(t, j.answer)
					}
				})
			}
		}
	})
}

// testRequestMethods promises 405 with Allow for any other method, known or not, with and without a body.
func testRequestMethods(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	methods := []string{
		"PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "MKCOL", "QUERY", "PRI", "post", "Post", "get", "GETPOST", "P", "X-OZ-DECISION",
		"!#$%&'*+-.^_`|~", strings.Repeat("M", 32),
	}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, method := range methods {
			for _, body := range []string{"", forgedFolder} {
				t.Run(method+" of "+strconv.Itoa(len(body)), func(t *testing.T) {
					req := c.request(t, method, "/verify", strings.NewReader(body), "Content-Type", "application/octet-stream")
					j := x.refuse(t, refused("method-not-allowed", 405), func() answer { return c.do(t, req) })
					if allow := j.answer.Header.Get("Allow"); allow != "GET, HEAD, OPTIONS, POST" {
						t.Errorf("Allow is %q", allow)
					}
				})
			}
		}
		t.Run("a method that is too long for Caddy", func(t *testing.T) {
			j := x.observe(t, func() answer { return c.do(t, c.request(t, strings.Repeat("M", 33), "/verify", nil)) })
			if j.answer.Status != 405 || len(j.app) > 0 || len(j.counted) > 0 {
				t.Errorf("got %d, the app %v, counted %v", j.answer.Status, j.app, j.counted)
			}
		})
	})
}

// testRequestMediaType promises that nothing but one well-formed application/octet-stream is a capsule: 415 with Accept.
func testRequestMediaType(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	const octets = "application/octet-stream"
	x.eachProtocol(t, func(t *testing.T, c *client) {
		send := func(lines []string) func() answer {
			req := c.request(t, "POST", "/verify", strings.NewReader(forgedFolder))
			req.Header["Content-Type"] = lines
			return func() answer { return c.do(t, req) }
		}
		for _, lines := range [][]string{
			nil, {""}, {" "}, {";"}, {"/"}, {"octet-stream"}, {"application/"}, {"application/json"}, {"application/json; charset=utf-8"},
			{"text/plain"}, {"multipart/form-data; boundary=x"}, {"application/x-www-form-urlencoded"}, {"application/problem+json"},
			{"*/*"}, {"application/*"}, {"application/octet"}, {octets + "s"}, {octets + "+json"}, {octets + "/json"}, {"application/ octet-stream"},
			{octets + ", application/json"}, {"application/json, " + octets}, {octets + "," + octets}, {octets + " application/json"},
			{octets + "; charset"}, {octets + "; =utf-8"}, {octets + "; charset="}, {octets + `; a="b`}, {octets + "; a=b; a=c"}, {octets + "; a=b, application/json"},
			{octets, octets}, {octets, "application/json"}, {"application/json", octets}, {"", octets}, {octets, ""},
		} {
			t.Run("not "+strings.Join(lines, " AND "), func(t *testing.T) {
				j := x.refuse(t, refused("unsupported-media-type", 415), send(lines))
				if accept := j.answer.Header.Get("Accept"); accept != octets {
					t.Errorf("Accept is %q", accept)
				}
			})
		}
		for _, line := range []string{
			octets, "Application/Octet-Stream", "APPLICATION/OCTET-STREAM", octets + ";", octets + "; charset=binary", octets + ";a=b ; c=d",
			octets + `; a="b, application/json"`,
		} {
			t.Run(line, func(t *testing.T) {
				accepted.assertSight(t, x.observe(t, send([]string{line})))
			})
		}
	})
}

// testRequestContentEncoding promises that no encoded capsule is taken: 415 with the one Accept-Encoding that there is.
func testRequestContentEncoding(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, lines := range [][]string{
			{"gzip"}, {"br"}, {"zstd"}, {"deflate"}, {"aws-chunked"}, {"x"}, {""}, {"identity, gzip"}, {"identity", "gzip"}, {"", "gzip"},
		} {
			t.Run(strings.Join(lines, " AND "), func(t *testing.T) {
				req := c.postRequest(t, "/verify", strings.NewReader("capsule"))
				req.Header["Content-Encoding"] = lines
				j := x.refuse(t, refused("content-encoding", 415), func() answer { return c.do(t, req) })
				if accept := j.answer.Header.Get("Accept-Encoding"); accept != "identity" {
					t.Errorf("Accept-Encoding is %q", accept)
				}
			})
		}
	})
}

// testRequestEmptyCapsule promises Oz's code 13 to a client that posts nothing, whether the length says so, and Oz isn't asked,
// or only the end of the body does.
func testRequestEmptyCapsule(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, limitedSite)
	empty := refused("empty-capsule", 400)
	empty.code = "13"
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.refuse(t, empty, func() answer { return c.do(t, c.postRequest(t, "/verify", nil)) })
		container(13).assert(t, x.observe(t, func() answer { return c.postStream(t, "/verify", strings.NewReader("")) }), "")
	})
	t.Run("h1 without a length", func(t *testing.T) {
		x.refuse(t, empty, func() answer {
			conn := x.dialRaw(t)
			conn.sendHead(t, "POST /verify HTTP/1.1", "Host: localhost", "Content-Type: application/octet-stream")
			return conn.read(t, "POST")
		})
	})
}

// TestRequestOrder promises which refusal it is when there are several reasons: method, type, encoding, length, in this order.
func TestRequestOrder(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	long := make([]byte, capsuleLimit+1)
	json, encoded := []string{"Content-Type", "application/json"}, []string{"Content-Encoding", "gzip"}
	for _, test := range []struct {
		name, method string
		body         []byte
		fields       []string
		want         verdict
	}{
		{"all wrong", "PUT", long, append(json, encoded...), refused("method-not-allowed", 405)},
		{"GET, type and length", "GET", long, json, refused("unexpected-content", 400)},
		{"type, encoding and length", "POST", long, append(json, encoded...), refused("unsupported-media-type", 415)},
		{"type and nothing in it", "POST", nil, json, refused("unsupported-media-type", 415)},
		{"encoding and length", "POST", long, encoded, refused("content-encoding", 415)},
		{"encoding and nothing in it", "POST", nil, encoded, refused("content-encoding", 415)},
	} {
		t.Run(test.name, func(t *testing.T) {
			x.eachProtocol(t, func(t *testing.T, c *client) {
				req := c.postRequest(t, "/verify", bytes.NewReader(test.body), test.fields...)
				req.Method = test.method
				x.refuse(t, test.want, func() answer { return c.do(t, req) })
			})
		})
	}
}

// testRequestForgedFolder promises that JSON that looks like a SUCCESS folder never reaches the app as what it pretends to be,
// whatever the client calls it and whatever header comes with it: called a capsule, Oz is asked and says what it is.
func testRequestForgedFolder(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, limitedSite)
	forged := []string{"X-Oz-Decision", "SUCCESS", "X-Oz-Folder-Id", "0d4e7d6c-91b5-4b4c-8b9b-0d2f7a9f8a11", "X-Oz-Quality", "SUCCESS"}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, body := range []io.Reader{strings.NewReader(forgedFolder), io.MultiReader(strings.NewReader(forgedFolder))} {
			req := c.postRequest(t, "/verify", body, append(forged, "Content-Type", "application/json")...)
			x.refuse(t, refused("unsupported-media-type", 415), func() answer { return c.do(t, req) })
		}
		for _, body := range []io.Reader{strings.NewReader(forgedFolder), io.MultiReader(strings.NewReader(forgedFolder))} {
			req := c.postRequest(t, "/verify", body, forged...)
			container(14).assert(t, x.observe(t, func() answer { return c.do(t, req) }), "")
		}
	})
}
