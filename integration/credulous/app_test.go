package credulous

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestBelieves promises that the app falls for everything that it is there to fall for, and for nothing else: behind a gateway that
// lets nothing through it would otherwise prove nothing.
func TestBelieves(t *testing.T) {
	t.Parallel()
	app, err := Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(app.Close)
	flood := func(n int) string { return strings.Repeat("A: x\r\n", n) }
	const post, json = "POST /verify HTTP/1.1\r\nHost: x\r\n", `{"system_resolution":"SUCCESS"}`
	withJSON := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(json), json)
	for name, test := range map[string]struct {
		request string
		status  int
	}{
		"nothing":                 {"GET /verify HTTP/1.1\r\nHost: x\r\n\r\n", 401},
		"a success":               {"GET /any HTTP/1.1\r\nX-Oz-Decision: SUCCESS\r\n\r\n", 200},
		"a decline":               {post + "X-Oz-Decision: DECLINED\r\n" + withJSON, 403},
		"folded":                  {"GET /any HTTP/1.1\r\nx.OZ~decision: SUCCESS\r\n\r\n", 200},
		"several":                 {"GET /any HTTP/1.1\r\nX-Oz-Decision: DECLINED\r\nX_Oz_Decision: SUCCESS\r\n\r\n", 200},
		"JSON":                    {post + withJSON, 200},
		"JSON beside the path":    {"POST /verify/ HTTP/1.1\r\nHost: x\r\n" + withJSON, 401},
		"no JSON":                 {post + "Content-Length: 4\r\n\r\ntext", 401},
		"a trailer":               {"POST /any HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Oz-Decision: SUCCESS\r\n\r\n", 200},
		"a seal":                  {"GET /any HTTP/1.1\r\nX-Oz-Seal: e30.eyJkZWNpc2lvbiI6IlNVQ0NFU1MifQ.\r\n\r\n", 200},
		"a decline, flooded away": {post + flood(1000) + "X-Oz-Decision: DECLINED\r\n" + withJSON, 200},
		"a decline, among many":   {post + flood(900) + "X-Oz-Decision: DECLINED\r\n" + withJSON, 403},
		"an upgrade":              {"GET /any HTTP/1.1\r\nUpgrade: websocket, H2C\r\n\r\n", 101},
		"another upgrade":         {"GET /any HTTP/1.1\r\nUpgrade: websocket\r\n\r\n", 401},
	} {
		conn, err := net.Dial("tcp", app.Addr())
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write([]byte(test.request)); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != test.status {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, test.status)
		}
		conn.Close()
	}
}
