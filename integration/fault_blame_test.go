package integration_test

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// These tests promise that no client can have Oz taken for down: what it sends, and how slowly, is its own doing.

// mixedOz gives the answer odd to a capsule of more than 50 bytes, and a good folder to a smaller one.
func mixedOz(t testing.TB, odd string) *rawApp {
	t.Helper()
	oz := newRawApp(t)
	oz.Answer(func(r rawRequest) string {
		if len(r.Body) > 50 {
			return odd
		}
		return ozAnswer("201 Created", ozFolder(""))
	})
	return oz
}

var namesPlace = regexp.MustCompile(`byte \d+|\d+ bytes|offset \d+|deep|levels|object`)

// testOddMetadataDoesNotMarkOzDown promises that what a whole answer says never counts against Oz, since part of it are the
// device's own words: that one capsule has no decision, and the log says what was wrong and where, without quoting it.
func testOddMetadataDoesNotMarkOzDown(t *testing.T) {
	t.Parallel()
	meta := func(json string) string { return ozFolder(`,"meta_data":` + json) }
	odd := map[string]string{
		"half an emoji":             meta(`{"note":"canary-\ud83d"}`),
		"the other half":            meta(`{"note":"canary-\ude00"}`),
		"two first halves":          meta(`{"note":"canary-\ud83d\ud83d"}`),
		"half an emoji as a name":   meta(`{"canary-\ud83d":1}`),
		"half an emoji in an array": meta(`{"note":["canary-\ud83d"]}`),
		"a duplicate name":          meta(`{"canary-a":1,"canary-a":2}`),
		"a duplicate, escaped":      meta(`{"canary-a":1,"canary-\u0061":2}`),
		"a duplicate deep inside":   meta(`{"note":[{"canary-a":1,"canary-a":2}]}`),
		"one of ours in capitals":   meta(`{"Event_Session_Id":"canary-a"}`),
		"a duplicate at the top":    ozFolder(`,"system_resolution":"SUCCESS"`),
		"300 levels of arrays":      meta(`{"note":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}`),
		"300 levels of objects":     meta(strings.Repeat(`{"a":`, 300) + `1` + strings.Repeat("}", 300)),
		"a megabyte":                meta(`{"note":"` + strings.Repeat("canary-x", 132_000) + `"}`),
		"a megabyte in pieces":      meta(`{"note":[` + strings.Repeat(`"canary-x",`, 97_000) + `1]}`),
		"over max_answer":           meta(`{"note":"` + strings.Repeat("canary-x", 600_000) + `"}`),
		"no UTF-8":                  meta("{\"note\":\"canary-\xff\xfe\"}"),
		"another type":              strings.Replace(ozFolder(""), `"SUCCESS"`, `["SUCCESS"]`, 1),
		"no object":                 `[` + ozFolder("") + `]`,
	}
	var site strings.Builder
	paths := map[string]string{}
	for name, folder := range odd {
		paths[name] = fmt.Sprintf("/odd%d", len(paths))
		fmt.Fprintf(&site, "\toz_instant %s http://%s {\n\t\tfail_duration 30s\n\t\tmax_answer 4MiB\n\t}\n", paths[name], mixedOz(t, ozAnswer("201 Created", folder)).Addr)
	}
	app := newRawApp(t)
	x := &chain{caddyProc: startCaddy(t, "{$SITE} {\n\tlog\n"+site.String()+"\treverse_proxy {$APP}\n}", withEnv("APP", app.Addr)), app: app}
	for name, path := range paths {
		t.Run(name, func(t *testing.T) {
			j := x.observe(t, func() answer { return x.client(t, "h1").post(t, path, make([]byte, 1000)) })
			if len(j.app) == 0 { // else it was good enough for a decision
				wantProblem(t, j.answer, 502, "malformed_answer")
			}
			for _, line := range j.decided {
				if text := line.Get("error").String(); len(j.app) == 0 && !namesPlace.MatchString(text) || strings.Contains(text, "canary") {
					t.Errorf("the log says %q, want the kind of fault and where it is", text)
				}
			}
			x.wantServed(t, path, make([]byte, 10))
		})
	}
}

// testBrokenAnswersMarkOzDown promises the other side: what no client's words can bring about still counts.
func testBrokenAnswersMarkOzDown(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	whole := ozAnswer("201 Created", ozFolder(""))
	for name, broken := range map[string]string{
		"no JSON": ozAnswer("201 Created", "<html>Welcome</html>"), "cut": whole[:len(whole)-20], "closed": "",
	} {
		beside.Run(name, func(t *testing.T) {
			oz := startServer(t, serveRequest(patience, broken))
			c := startCaddy(t, "{$SITE} {\n\toz_instant /verify http://"+oz+" {\n\t\tfail_duration 30s\n\t}\n}").client(t, "h1")
			if a := c.post(t, "/verify", make([]byte, 10)); a.Status != 502 {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
			if a := c.post(t, "/verify", make([]byte, 10)); a.Status != 503 {
				t.Errorf("the next capsule got %d %s, want 503", a.Status, a.Body)
			}
		})
	}
}

// testSlowClientDoesNotMarkOzDown promises that an Oz that gives a request three seconds in all and hangs up is not taken for down
// when it was the client that took them.
func testSlowClientDoesNotMarkOzDown(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	for name, phone := range map[string]struct {
		at          string // how much comes at once
		pause       time.Duration
		piece, size int
	}{
		"100 KB a second":                        {"", 100 * time.Millisecond, 10_000, 900_000},
		"a byte every 1.5 s":                     {"", 1500 * time.Millisecond, 1, 100_000},
		"a byte every 0.2 s":                     {"", 200 * time.Millisecond, 1, 100_000},
		"64 KiB, then a byte every 1.5 s":        {strings.Repeat("x", 64<<10), 1500 * time.Millisecond, 1, 100_000},
		"64 KiB, then a byte every 0.2 s":        {strings.Repeat("x", 64<<10), 200 * time.Millisecond, 1, 100_000},
		"64 KiB, then 1 KB every 50 ms":          {strings.Repeat("x", 64<<10), 50 * time.Millisecond, 1000, 900_000},
		"64 KiB, then nothing for longer":        {strings.Repeat("x", 64<<10), 6 * time.Second, 1, 100_000},
		"64 KiB, in chunks, a byte every 0.2 s":  {fmt.Sprintf("%x\r\n%s\r\n", 64<<10, strings.Repeat("x", 64<<10)), 200 * time.Millisecond, 1, -1},
		"over half, then a byte every 3 seconds": {strings.Repeat("x", 600_000), 3 * time.Second, 1, 900_000},
	} {
		beside.Run(name, func(t *testing.T) {
			var patient atomic.Bool // once the phone has gone
			oz := startServer(t, func(conn net.Conn) {
				limit := 3 * time.Second
				if patient.Load() {
					limit = patience
				}
				serveRequest(limit, ozAnswer("201 Created", ozFolder("")))(conn)
			})
			app := newRawApp(t)
			x := &chain{caddyProc: startCaddy(t, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		fail_duration 30s
		upload_timeout 12s
	}
	reverse_proxy {$APP}
}`, withEnv("OZ", "http://"+oz), withEnv("APP", app.Addr)), app: app}
			conn := x.dialRaw(t)
			conn.sendHead(t, postHead("/verify", phone.size)...)
			conn.send(t, phone.at)
			var sending sync.WaitGroup
			sending.Go(func() {
				if phone.size < 0 {
					conn.dripChunks(t, phone.pause)
					return
				}
				conn.drip(t, phone.pause, phone.size, phone.piece)
			})
			if a, err := conn.tryRead("POST"); err != nil || problemOf(a) == "" {
				t.Errorf("the slow phone got %d %s, %v", a.Status, a.Body, err)
			}
			conn.Close()
			sending.Wait()
			patient.Store(true)
			x.wantServed(t, "/verify", make([]byte, 1000))
		})
	}
}

// dripChunks writes chunks of one byte until the connection fails or the test ends.
func (c *rawConn) dripChunks(t testing.TB, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			return
		}
		if _, err := c.Write([]byte("1\r\nx\r\n")); err != nil {
			return
		}
	}
}

// testOddPlaceholderDoesNotMarkOzDown promises that a value of the client's request that makes no header field is the client's
// doing: it is refused before Oz is asked, on both calls.
func testOddPlaceholderDoesNotMarkOzDown(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		session_token /session_token
		fail_duration 30s
		header_up X-Tx {query.tx}
		header_up +X-Added "a {query.added} b"
		header_up X-Name {query.name}
	}
	reverse_proxy {$APP}
}`)
	c := x.client(t, "h1")
	for name, query := range map[string]string{
		"CR LF":            "tx=a%0d%0ab",
		"LF":               "tx=a%0ab",
		"CR":               "tx=a%0db",
		"a zero byte":      "tx=a%00b",
		"DEL":              "tx=a%7fb",
		"a header of Oz's": "tx=a%0d%0aX-Forensic-Access-Token:%20x",
		"added":            "added=a%0d%0ab",
		"the last of them": "name=%0d%0a",
	} {
		t.Run(name, func(t *testing.T) {
			x.oz.Forget()
			a := c.post(t, "/verify?"+query, x.anyCapsule())
			wantProblem(t, a, 400, "invalid-value")
			if strings.Contains(string(a.Body), "a\r") {
				t.Errorf("the value is quoted: %s", a.Body)
			}
			if n := len(x.oz.Received()); n != 0 {
				t.Errorf("Oz got %d requests", n)
			}
			x.wantServed(t, "/verify?tx=a", x.anyCapsule())
		})
		t.Run(name+", session token", func(t *testing.T) {
			x.oz.Forget()
			wantProblem(t, c.get(t, "/session_token?"+query), 400, "invalid-value")
			if n := len(x.oz.RequestsOn(sandbox.OnToken)); n != 0 {
				t.Errorf("Oz got %d requests", n)
			}
			if a := c.get(t, "/session_token?tx=a"); a.Status != 200 {
				t.Errorf("the next one got %d %s", a.Status, a.Body)
			}
		})
	}
}
