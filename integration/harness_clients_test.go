package integration_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// clientSite is a site for the clients of integration/examples/clients. /sdk stands in for the vendor's SDK.
const clientSite = `
{$SITE} {
	log
	handle /sdk {
		reverse_proxy {$SDK}
	}
	handle /busy {
		header Retry-After 5
		respond "slow down" 429
	}
	handle_path /web/* {
		root {$WEB}
		file_server
	}
	handle /page {
		header Content-Type text/html
		respond "<!doctype html><title>page</title><link rel=icon href=data:,>"
	}
	handle {
		oz_instant /verify {$OZ} {
			session_token /session_token
		}
		oz_instant /hurried {$OZ} {
			upload_timeout 4s
		}
		oz_instant /limit {$OZ}
		oz_instant /restarting {$OZ}
		oz_instant /small {$OZ} {
			max_capsule 1KiB
		}
		reverse_proxy {$APP}
	}
}`

// clientTrial is a site, and a network in front of it that fails.
type clientTrial struct {
	*chain
	net      *flakyNet
	web      string       // the folder of the client for the web
	clock    atomic.Int64 // seconds that Oz's clock is ahead
	big      atomic.Bool  // the next capsules are larger than what sockets buffer
	captures atomic.Int32 // how often the SDK made a capsule
	stale    atomic.Value // string: the session token of the next capsule, instead of its own
}

// middleOfCapsule is where a network fails: after so many bytes.
const middleOfCapsule = 100_000

func startClientTrial(t testing.TB) *clientTrial {
	t.Helper()
	x := &clientTrial{}
	root, err := caddybin.Root()
	check(t, err)
	x.web = filepath.Join(root, "integration", "examples", "clients", "web")
	sdk := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x.captures.Add(1)
		token := r.URL.Query().Get("token")
		if stale, _ := x.stale.Swap("").(string); stale != "" {
			token = stale
		}
		size := int64(3 * middleOfCapsule)
		if x.big.Load() {
			size = 24 << 20
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(x.oz.Capsule(sandbox.CapsuleSpec{SessionToken: token, PayloadSize: size}))
	}))
	t.Cleanup(sdk.Close)
	x.stale.Store("")
	options := sandbox.Options{
		BestShotSize: 1000, Clock: func() time.Time { return time.Now().Add(time.Duration(x.clock.Load()) * time.Second) },
	}
	x.chain = startChain(t, options, clientSite, withEnv("SDK", sdk.URL), withEnv("WEB", x.web))
	x.app.Answer(func(r rawRequest) string {
		if strings.HasPrefix(r.Line, "POST /limit ") {
			return strings.Replace(rawAnswer("429 Too Many Requests", "slow down"), "\r\n", "\r\nRetry-After: 5\r\n", 1)
		}
		if strings.HasPrefix(r.Line, "POST /restarting ") {
			return strings.Replace(rawAnswer("503 Service Unavailable", "in a moment"), "\r\n", "\r\nRetry-After: 0\r\n", 1)
		}
		if r.Value("X-Oz-Decision") == "SUCCESS" {
			return rawAnswer("200 OK", `{"message": "welcome"}`)
		}
		return rawAnswer("403 Forbidden", `{"message": "declined"}`)
	})
	x.net = startFlakyNet(t, x.HTTP)
	return x
}

// clientOutcome is what a client says in the end.
type clientOutcome struct {
	Next   string
	Status int
	Waits  []float64 // seconds that it wanted to wait; the tests have it wait no longer than the gateway needs
}

// clientCase is something that happens to a client, and what it must do.
type clientCase struct {
	path  string // default: /verify
	fault string // of Oz
	net   string // of the network
	stale bool   // the session token has ended before the capsule is sent
	spent bool   // Oz refuses a capsule that comes again, even if it was busy the first time
	big   bool   // the capsule is larger than what sockets buffer

	next     string
	status   int
	byItself bool // what runs the client sends a capsule again
	captures int
	whole    int          // capsules that Oz got whole
	waits    [][2]float64 // the shortest and the longest of each
}

// clientCases are about a client that never knows whether it has sent all of a capsule, as in a browser.
var clientCases = map[string]clientCase{
	"accepted":                          {next: "done", status: 200, captures: 1, whole: 1},
	"declined":                          {fault: "outcome:DECLINED", next: "done", status: 403, captures: 1, whole: 1},
	"busy once":                         {fault: "status:503,retry-after=7*1", next: "done", status: 200, captures: 1, whole: 2, waits: [][2]float64{{7, 10.5}}},
	"busy once, and used all the same":  {fault: "status:503,retry-after=7*1", spent: true, next: "done", status: 200, captures: 2, whole: 3, waits: [][2]float64{{7, 10.5}}},
	"429 of Oz once":                    {fault: "status:429,retry-after=3*1", next: "done", status: 200, captures: 1, whole: 2, waits: [][2]float64{{3, 4.5}}},
	"busy for ever":                     {fault: "status:503,retry-after=2", next: "later", status: 503, captures: 1, whole: 4, waits: [][2]float64{{2, 3}, {2, 3}, {2, 3}}},
	"busy for an hour":                  {fault: "status:503,retry-after=3600", next: "later", status: 503, captures: 1, whole: 1},
	"expired session token":             {stale: true, next: "done", status: 200, captures: 2, whole: 2},
	"refused for ever":                  {fault: "oz-error:14", next: "anew", status: 400, captures: 3, whole: 3},
	"Oz lost after the capsule":         {fault: "reset", next: "later", status: 502, captures: 1, whole: 1},
	"lost before the end":               {net: "before", next: "later", status: 0, captures: 1, whole: 0},
	"lost before the answer":            {net: "after", next: "later", status: 0, captures: 1, whole: 1},
	"stalled":                           {path: "/hurried", net: "stall", next: "done", status: 200, captures: 1, whole: 1, waits: [][2]float64{{1, 1.5}}},
	"too large":                         {path: "/small", next: "never", status: 413, captures: 1, whole: 0},
	"429 of the app after the decision": {path: "/limit", next: "later", status: 429, captures: 1, whole: 1},
	"503 of the app after the decision": {path: "/restarting", next: "later", status: 503, captures: 1, whole: 1},
	"429 of the site":                   {path: "/busy", next: "later", status: 429, captures: 1, whole: 0},
	"busy with session tokens once":     {fault: "status:503,retry-after=2@token*1", next: "done", status: 200, captures: 1, whole: 1, waits: [][2]float64{{2, 3}}},
	"no session tokens":                 {fault: "status:500@token", next: "later", status: 502, captures: 0, whole: 0},
}

// try has a client go through the cases. run has it do everything once, with the capsule going to that path. Those in which a connection
// is lost come last: what was on its way may come to Oz when the case is over, and would use up a fault that comes once.
func (x *clientTrial) try(t *testing.T, cases map[string]clientCase, run func(t testing.TB, path string) clientOutcome) {
	for _, lossy := range []bool{false, true} {
		for name, c := range cases {
			if (c.net != "") == lossy {
				t.Run(name, func(t *testing.T) { x.tryCase(t, c, run) })
			}
		}
	}
}

func (x *clientTrial) tryCase(t *testing.T, c clientCase, run func(t testing.TB, path string) clientOutcome) {
	x.oz.quiet(t)
	x.oz.Forget()
	x.captures.Store(0)
	x.big.Store(c.big)
	x.oz.fault(t, c.fault)
	options := x.oz.Options()
	options.ReuseTokens = !c.spent && !c.stale
	x.oz.SetOptions(options)
	x.net.next(c.net)
	if c.stale {
		x.stale.Store(x.oz.NewToken())
		x.clock.Add(1000)
	}
	if c.path == "" {
		c.path = "/verify"
	}
	got := run(t, c.path)
	x.oz.quiet(t)
	if got.Next != c.next || got.Status != c.status || int(x.captures.Load()) != c.captures {
		t.Errorf("got %+v after %d captures, want %s, %d after %d", got, x.captures.Load(), c.next, c.status, c.captures)
	}
	fits := slices.EqualFunc(got.Waits, c.waits, func(wait float64, span [2]float64) bool { return wait >= span[0] && wait <= span[1] })
	if !fits {
		t.Errorf("it waited for %v s, want %v", got.Waits, c.waits)
	}
	x.assertNotTwice(t, c)
}

// assertNotTwice fails the test unless Oz got so many capsules whole, and none a second time that it had used, or may have.
func (x *clientTrial) assertNotTwice(t testing.TB, c clientCase) {
	t.Helper()
	whole := c.whole
	used := map[string]bool{}
	for _, r := range x.oz.RequestsOn(sandbox.OnFolders) {
		if !r.Complete {
			continue
		}
		whole--
		if used[r.Digest] && !c.byItself {
			t.Errorf("a capsule came again that may have been used")
		}
		used[r.Digest] = r.Status != 503 && r.Status != 429
	}
	if whole != 0 {
		t.Errorf("Oz got %d capsules fewer than it should", whole)
	}
}

// clientProgram is a program around a client that reads a path from each line and prints a clientOutcome.
type clientProgram struct {
	in  io.Writer
	out *bufio.Reader
	log *logBook
}

func startClientProgram(t testing.TB, name string, args ...string) clientProgram {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	p := clientProgram{log: newLogBook()}
	cmd.Stderr = p.log
	dieWithTests(cmd, syscall.SIGKILL)
	in, err := cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	p.in, p.out = in, bufio.NewReader(out)
	check(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	return p
}

func (p clientProgram) run(t testing.TB, path string) (o clientOutcome) {
	t.Helper()
	_, err := io.WriteString(p.in, path+"\n")
	check(t, err)
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the client ended: %v\n%s", err, p.log)
	}
	check(t, json.Unmarshal(line, &o))
	return o
}

// flakyNet passes bytes on, and fails once at the next capsule.
type flakyNet struct {
	Addr string

	mu   sync.Mutex
	plan string
}

func startFlakyNet(t testing.TB, to string) *flakyNet {
	t.Helper()
	f := &flakyNet{}
	f.Addr = startServer(t, func(client net.Conn) { f.pass(client, to) })
	return f
}

// next sets what happens at the next capsule: before (the connection is lost in the middle of it), after (it is lost when the answer
// comes), stall (nothing more of it gets through) or nothing.
func (f *flakyNet) next(plan string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan = plan
}

func (f *flakyNet) takePlan() (plan string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	plan, f.plan = f.plan, ""
	return plan
}

func (f *flakyNet) pass(client net.Conn, to string) {
	server, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer server.Close()
	var cutAnswer atomic.Bool
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		defer client.Close()
		piece := make([]byte, 32<<10)
		for {
			n, err := server.Read(piece)
			if err != nil || cutAnswer.Load() {
				return
			}
			if _, err := client.Write(piece[:n]); err != nil {
				return
			}
		}
	}()
	plan, left := "", 0
	piece := make([]byte, 32<<10)
	for {
		n, err := client.Read(piece)
		if err != nil {
			return
		}
		if plan == "" && bytes.Contains(bytes.ToLower(piece[:n]), []byte("application/octet-stream")) {
			plan, left = f.takePlan(), middleOfCapsule
			cutAnswer.Store(plan == "after")
		}
		left -= n
		if plan == "before" && left < 0 {
			return
		}
		if plan == "stall" && left < 0 {
			<-answered
			return
		}
		if _, err := server.Write(piece[:n]); err != nil {
			<-answered // what the server said
			return
		}
	}
}

// casesOfBrowsers are those of Chromium, which does more than the page asks it to: what was lost on a connection that was in use
// before, it sends once more by itself, and so it does after a 408. Oz refuses what comes twice, and then the rule is to capture anew.
func casesOfBrowsers() map[string]clientCase {
	cases := maps.Clone(clientCases)
	cases["lost before the end"] = clientCase{net: "before", next: "done", status: 200, captures: 1, whole: 1}
	cases["stalled"] = clientCase{path: "/hurried", net: "stall", next: "done", status: 200, captures: 1, whole: 1}
	cases["lost before the answer"] = clientCase{net: "after", spent: true, byItself: true, next: "done", status: 200, captures: 2, whole: 3}
	return cases
}

// casesOfWriters are those of a client that knows when it has not sent all of a capsule: then it may send it again. In turn it reads
// nothing until it has sent all, so that it doesn't see an answer of Caddy's own, which reads no more than 256 KiB of what it refuses.
func casesOfWriters() map[string]clientCase {
	cases := maps.Clone(clientCases)
	cases["lost before the end"] = clientCase{net: "before", big: true, next: "done", status: 200, captures: 1, whole: 1, waits: [][2]float64{{1, 1.5}}}
	cases["503 of the app after the decision"] = clientCase{path: "/restarting", next: "later", status: 0, captures: 1, whole: 1} // see CapsuleBody
	delete(cases, "429 of the site")
	return cases
}
