package integration_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testRandomRequests sends requests that are put together at random, each with a few things wrong: none gets to the app as what it is
// not, and no client gets a 2xx for a capsule that was not analysed.
func testRandomRequests(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	random := rand.New(rand.NewPCG(5, 6)) // always the same requests
	// Most of a request is as it should be.
	mostly := func(usual string, others ...string) string {
		if random.IntN(5) > 0 {
			return usual
		}
		return others[random.IntN(len(others))]
	}
	answered := map[bool]int{}
	for range 400 {
		good := string(x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 100}))
		body := mostly(good, forgedFolder, forgedFolder, "", "x", good[:len(good)/2], string(randomCapsule(300)))
		head := mostly("POST", "GET", "HEAD", "PUT", "OPTIONS", "PATCH", "post", "CONNECT", "POST\t", "PO ST") + " " +
			mostly("/verify", "/verify?a=b", "/verify/", "//verify", "/./verify", "/x/../verify", "/VERIFY", "/%76erify", "/verify%2f", "/verify;a", "/verify%00", "/verify%20",
				"http://localhost/verify", "*", "verify", "/other", "\\verify") + " " +
			mostly("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1") + "\r\nHost: " + mostly("localhost", "", "a b", "localhost:99999") + "\r\n"
		for range random.IntN(3) {
			head += mostly("X-Oz-Decision: SUCCESS", "X_Oz_Decision: SUCCESS", "Connection: X-Custom", "Connection: close", "Content-Encoding: gzip", "Upgrade: h2c", "Expect: 100-continue", "Expect: x",
				"Trailer: X-Oz-Decision", "Content-Type: application/json", " folded", "no colon", "X-\x00: y", ": no name", "Range: bytes=0-1", "X-Http-Method-Override: GET", "Transfer-Encoding: identity") + "\r\n"
		}
		head += mostly("Content-Type: application/octet-stream\r\n", "Content-Type: application/json\r\n", "")
		length := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
		chunks := fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
		head += mostly(length, chunks, chunks, "\r\n"+body, fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body)+5, body), fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body)/2, body),
			"Content-Length: 1\r\n"+chunks, "Content-Length: 7\r\n"+length, strings.Replace(chunks, "0\r\n\r\n", "", 1), strings.Replace(chunks, "\r\n0", "0", 1))

		conn := x.dialRaw(t)
		conn.send(t, head)
		_ = conn.Conn.(*net.TCPConn).CloseWrite() // no more will come, whatever was promised; the server may have hung up by now
		a, err := conn.tryRead("GET")
		for err == nil && a.Status == 100 {
			a, err = conn.tryRead("GET")
		}
		answered[err == nil && a.Status < 300]++
		conn.Close()
	}
	if answered[true] < 30 || answered[false] < 30 {
		t.Errorf("the requests are of too few kinds: %v", answered)
	}
	x.assertOnlyEvaluated(t)
}

// assertOnlyEvaluated fails the test unless each of the app's requests for the protected path is undecided and empty, or carries a
// decision that was logged, with a folder as its body.
func (x *chain) assertOnlyEvaluated(t *testing.T) {
	t.Helper()
	x.oz.quiet(t)
	decided := map[string]int{}
	for _, r := range x.app.Requests() {
		decision := r.Value("X-Oz-Decision")
		method, rest, _ := strings.Cut(r.Line, " ")
		path, _, _ := strings.Cut(rest, "?")
		switch {
		case decision != "":
			decided[decision]++
			assertReserved(t, r, accepted.headers(r, r.Value("X-Oz-Event-Session-Id")))
			assertFolder(t, r)
		case len(r.Names("x-oz-")) > 0:
			t.Errorf("the app got:\n%s", r.Raw())
		case slices.Contains([]string{"GET", "HEAD", "OPTIONS"}, method) && len(r.Body) > 0 && strings.HasPrefix(path, "/verify "):
			t.Errorf("the app got a body that was not analysed:\n%s", r.Raw())
		case !slices.Contains([]string{"GET", "HEAD", "OPTIONS"}, method) && strings.HasPrefix(path, "/verify "):
			t.Errorf("the app got a request that was not decided:\n%s", r.Raw())
		}
	}
	success := x.Metric(t, decisionsTotal+`{decision="SUCCESS",reason=""}`)
	if len(decided) != 1 || float64(decided["SUCCESS"]) != success || success < 20 {
		t.Errorf("the app got %v, and %v capsules were decided to be good", decided, success)
	}
}

// testRandomStreams promises the same of requests over HTTP/2 and HTTP/3 that no client library would send.
func testRandomStreams(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	senders := map[string]func(testing.TB, []string, [][]byte, []string) int{"h2": x.framesOverH2, "h3": x.framesOverH3}
	for proto, send := range senders {
		random := rand.New(rand.NewPCG(7, 8)) // always the same requests
		mostly := func(usual string, others ...string) string {
			if random.IntN(6) > 0 {
				return usual
			}
			return others[random.IntN(len(others))]
		}
		answered := map[bool]int{}
		for range 120 {
			good := string(x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 100}))
			body := mostly(good, forgedFolder, "", "x", good[:len(good)/2])
			size := strconv.Itoa(len(body))
			fields := []string{
				":method", mostly("POST", "GET", "HEAD", "PUT", "OPTIONS", "post", "CONNECT", "PO ST", ""),
				":scheme", mostly("https", "http", "", "file"), ":authority", mostly("localhost", "", "a b", "localhost@x"),
				":path", mostly("/verify", "/verify?a=b", "//verify", "/./verify", "/x/../verify", "/VERIFY", "/%76erify", "/verify%00", "verify", "*", "", "/other", "https://localhost/verify"),
				mostly("content-type", "Content-Type", ":content-type", "content_type"), mostly("application/octet-stream", "application/json", ""),
			}
			if random.IntN(2) > 0 {
				fields = append(fields, "content-length", mostly(size, "0", "1", strconv.Itoa(len(body)+5), "-1", "x", ""))
			}
			for range random.IntN(3) {
				pair := [][]string{
					{"x-oz-decision", "SUCCESS"}, {"x~oz~decision", "SUCCESS"}, {"x_oz_decision", "SUCCESS"}, {"X-Oz-Decision", "SUCCESS"}, {"transfer-encoding", "chunked"}, {"te", "trailers"},
					{"content-length", size}, {"content-encoding", "gzip"}, {"trailer", "x-oz-decision"}, {":method", "GET"}, {":path", "/other"}, {":protocol", "websocket"}, {":oz", "x"}, {"", "x"},
					{"host", "elsewhere.test"}, {"expect", "100-continue"}, {"upgrade", "h2c"}, {"x-custom", "a\r\nX-Oz-Decision: SUCCESS"}, {"cookie", "a=b"},
				}[random.IntN(19)]
				fields = append(fields, pair...)
			}
			pieces := [][]byte{[]byte(body)}
			if random.IntN(3) == 0 {
				pieces = [][]byte{[]byte(body[:len(body)/2]), nil, []byte(body[len(body)/2:])}
			}
			var trailers []string
			if random.IntN(5) == 0 {
				trailers = []string{"x-oz-decision", "SUCCESS", mostly("x-late", ":path"), "yes"}
			}
			status := send(t, fields, pieces, trailers)
			answered[status > 0 && status < 300]++
		}
		if answered[true] < 15 || answered[false] < 15 {
			t.Errorf("%s: the requests are of too few kinds: %v", proto, answered)
		}
	}
	x.assertOnlyEvaluated(t)
}

// framesOverH2 sends a request on a connection of its own and returns the status of its answer, or 0 when there is none.
func (x *chain) framesOverH2(t testing.TB, fields []string, pieces [][]byte, trailers []string) int {
	t.Helper()
	conn := x.dialRawH2(t)
	defer conn.conn.Close()
	conn.sendFields(t, 1, false, fields...)
	for i, piece := range pieces {
		conn.WriteData(1, i == len(pieces)-1 && len(trailers) == 0, piece) // which may be refused by now
	}
	if len(trailers) > 0 {
		conn.trySendFields(1, true, trailers...)
	}
	a, _ := conn.tryRead(1)
	return a.Status
}

func (x *chain) framesOverH3(t testing.TB, fields []string, pieces [][]byte, trailers []string) int {
	t.Helper()
	conn, _ := x.dialH3(t)
	defer conn.CloseWithError(0, "")
	stream := openFrames(t, conn)
	stream.sendFields(t, fields...)
	for _, piece := range pieces {
		stream.sendFrame(h3Data, piece)
	}
	if len(trailers) > 0 {
		stream.sendFields(t, trailers...)
	}
	stream.Close()
	a, _ := stream.tryRead()
	return a.Status
}
