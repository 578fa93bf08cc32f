package integration_test

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// unreadRefusals are refusals of a body with megabytes to come. The last one is of a length that only the bytes show.
var unreadRefusals = []struct {
	name, method, contentType string
	streamed                  bool
	status                    int
}{
	{"method", "PUT", "application/octet-stream", false, 405},
	{"type", "POST", "application/json", false, 415},
	{"type, streamed", "POST", "application/json", true, 415},
	{"GET", "GET", "application/octet-stream", false, 400},
	{"length", "POST", "application/octet-stream", false, 413},
	{"length, streamed", "POST", "application/octet-stream", true, 413},
}

// TestRequestRefusedUnread promises that a client with megabytes unsent gets its refusal, in every single case, and never a broken
// connection instead: not while it is still sending, and not when its first look at the answer comes after that.
func TestRequestRefusedUnread(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	body := make([]byte, 8<<20)
	times := often(4)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, test := range unreadRefusals {
			t.Run(test.name, func(t *testing.T) {
				var clients sync.WaitGroup // over HTTP/2 and HTTP/3 an answer may end half a second late
				for range times {
					var content io.Reader = bytes.NewReader(body)
					if test.streamed {
						content = io.MultiReader(content)
					}
					req := c.request(t, test.method, "/verify", content, "Content-Type", test.contentType)
					clients.Go(func() {
						a, err := c.try(req)
						if err != nil || a.Status != test.status || a.Header.Get("Content-Type") != "application/problem+json" {
							t.Errorf("got %d %v, %v", a.Status, a.Header, err)
						}
					})
				}
				clients.Wait()
			})
		}
	})
	x.app.None(t)
}

// TestRequestRefusedUnreadByBlockingClients promises the same to a client of the simplest kind, which sends all that it has and only
// then reads. The server waits half a second for each, so they come all at once.
func TestRequestRefusedUnreadByBlockingClients(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	body := strings.Repeat("x", 8<<20)
	chunks := strings.Repeat(fmt.Sprintf("%x\r\n%s\r\n", 64<<10, body[:64<<10]), len(body)>>16)
	var clients sync.WaitGroup
	for name, dial := range map[string]func(testing.TB) *rawConn{"h1": x.dialRaw, "h1 over TLS": x.dialRawTLS} {
		for _, test := range unreadRefusals {
			conn := dial(t)
			framing, content := "Content-Length: "+strconv.Itoa(len(body)), body
			if test.streamed {
				framing, content = "Transfer-Encoding: chunked", chunks
			}
			conn.sendHead(t, test.method+" /verify HTTP/1.1", "Host: localhost", "Content-Type: "+test.contentType, framing)
			clients.Go(func() {
				io.WriteString(conn, content) // may fail in the middle, as it should not be read
				if a, err := conn.tryRead("POST"); err != nil || a.Status != test.status {
					t.Errorf("%s %s: got %d, %v", name, test.name, a.Status, err)
				}
			})
		}
	}
	clients.Wait()
	x.app.None(t)
}

// TestRequestRefusedUnreadByCurl promises the same to curl, which is told not to wait for 100 Continue.
func TestRequestRefusedUnreadByCurl(t *testing.T) {
	t.Parallel()
	x := startLimited(t)
	file := capsuleFile(t, 8<<20)
	trust := []string{"--cacert", x.cert.certFile, "--resolve", "localhost:" + portOf(x.HTTPS) + ":127.0.0.1"}
	for name, site := range map[string][]string{
		"h1":          {"http://" + x.HTTP},
		"h1 over TLS": append(trust, "--http1.1", "https://localhost:"+portOf(x.HTTPS)),
		"h2":          append(trust, "--http2", "https://localhost:"+portOf(x.HTTPS)),
	} {
		for _, test := range unreadRefusals {
			t.Run(name+" "+test.name, func(t *testing.T) {
				args := []string{"-X", test.method, "-H", "Content-Type: " + test.contentType, "-H", "Expect:", "--data-binary", "@" + file, "-o", "/dev/null", "-w", "%{http_code} %{content_type}"}
				if test.streamed && name != "h2" {
					args = append(args, "-H", "Transfer-Encoding: chunked")
				}
				last := len(site) - 1
				args = append(append(args, site[:last]...), site[last]+"/verify")
				result := curl(t, args...)
				if want := strconv.Itoa(test.status) + " application/problem+json"; result.Out != want {
					t.Errorf("curl got %+v, want %s", result, want)
				}
				// Over HTTP/2 a stream is reset without an error after such an answer (RFC 9113, 8.1). There curl 7 loses the
				// document's end now and then, from any server in Go; the status it never loses.
				const partial = 18
				if result.Exit != 0 && !(name == "h2" && result.Exit == partial) {
					t.Errorf("curl ended with %+v", result)
				}
			})
		}
	}
	x.app.None(t)
}

func portOf(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }
