package integration_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// These tests promise every client the answer to a body that nobody will read, also those that write all of it before they read.

// lingerSite refuses at the door at /verify, and by an early answer of Oz elsewhere.
const lingerSite = `
{
	servers {
		protocols h1 h2 h2c h3
	}
}
{$SITE} {
	log
	oz_instant /verify {$CALM} {
		max_capsule 4MiB
	}
	oz_instant /early {$OZ}
	oz_instant /pass {$OZ} {
		pass INVALID
	}
	oz_instant /handled {$OZ} {
		handle_decision INVALID {
			respond "handled" 422
		}
	}
	reverse_proxy {$APP}
	{$ERRORS}
}`

// startLinger starts it, with an Oz that answers early everywhere but at /verify.
func startLinger(t testing.TB, opts ...caddyOption) *chain {
	t.Helper()
	calm := startSandbox(t, sandbox.Options{})
	x := startChain(t, sandbox.Options{}, lingerSite, append(opts, withEnv("CALM", calm.URL))...)
	x.oz.fault(t, "early:400,bytes=40000")
	return x
}

// lateAnswers are answers that come while most of the body is unsent.
var lateAnswers = []struct {
	name, method, path, contentType string
	status                          int
	body                            string // the whole of it, or empty for a problem document
}{
	{"413", "POST", "/verify", "application/octet-stream", 413, ""},
	{"415", "POST", "/verify", "text/plain", 415, ""},
	{"405", "PUT", "/verify", "application/octet-stream", 405, ""},
	{"early 400 of Oz", "POST", "/early", "application/octet-stream", 400, ""},
	{"the app's", "POST", "/pass", "application/octet-stream", 200, "seen by the app\n"},
	{"a route's", "POST", "/handled", "application/octet-stream", 422, "handled"},
}

// writer sends a file and returns what it got: the status and the body.
type writer func(t testing.TB, x *chain, method, path, contentType, file string) (status int, body string, err error)

// writers are clients that people have. Those that write before they read are the ones that lose answers.
var writers = map[string]writer{
	"wget":                   wget(false),
	"wget over TLS":          wget(true),
	"Python":                 python(false, "length"),
	"Python over TLS":        python(true, "length"),
	"Python chunked":         python(false, "chunked"),
	"Python chunked and TLS": python(true, "chunked"),
	"HTTP::Tiny":             perl,
	"curl":                   curlWriter(false, "--http1.1"),
	"curl chunked":           curlWriter(false, "--http1.1", "-H", "Transfer-Encoding: chunked"),
	"curl over TLS":          curlWriter(true, "--http1.1"),
	"curl h2":                curlWriter(true, "--http2"),
	"curl h2c":               curlWriter(false, "--http2-prior-knowledge"),
}

func (x *chain) address(overTLS bool, path string) string {
	if overTLS {
		return "https://localhost:" + portOf(x.HTTPS) + path
	}
	return "http://localhost:" + portOf(x.HTTP) + path
}

// run runs a client and returns what it wrote.
func run(t testing.TB, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, name), args...)
	cmd.Env = []string{"no_proxy=*", "HOME=" + t.TempDir(), "PATH=/usr/local/bin:/usr/bin:/bin"}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), err
}

// firstLine splits what a client wrote into a status and a body.
func firstLine(out, errs string) (int, string, error) {
	line, body, _ := strings.Cut(out, "\n")
	status, err := strconv.Atoi(line)
	if err != nil {
		lines := strings.Split(strings.TrimSpace(errs), "\n")
		return 0, body, errors.New(lines[len(lines)-1])
	}
	return status, body, nil
}

func wget(overTLS bool) writer {
	return func(t testing.TB, x *chain, method, path, contentType, file string) (int, string, error) {
		out, errs, _ := run(t, "wget", "--no-config", "--no-hsts", "-S", "-t", "1", "-T", "20", "-O", "-", "--content-on-error",
			"--ca-certificate="+x.cert.certFile, "--method="+method, "--body-file="+file, "--header=Content-Type: "+contentType, x.address(overTLS, path))
		for line := range strings.Lines(errs) {
			if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[0], "HTTP/1.") {
				status, err := strconv.Atoi(fields[1])
				return status, out, err
			}
		}
		return 0, out, errors.New("no answer")
	}
}

const pythonWriter = `
import http.client, ssl, sys
port, ca, method, path, kind, file, mode = sys.argv[1:]
if ca:
    context = ssl.create_default_context(cafile=ca)
    conn = http.client.HTTPSConnection("localhost", int(port), context=context, timeout=20)
else:
    conn = http.client.HTTPConnection("localhost", int(port), timeout=20)
data = whole = open(file, "rb").read()
if mode == "chunked":
    data = (whole[i:i + 65536] for i in range(0, len(whole), 65536))
conn.request(method, path, body=data, headers={"Content-Type": kind})
answer = conn.getresponse()
print(answer.status)
sys.stdout.flush()
sys.stdout.buffer.write(answer.read())
`

func python(overTLS bool, mode string) writer {
	return func(t testing.TB, x *chain, method, path, contentType, file string) (int, string, error) {
		port, ca := portOf(x.HTTP), ""
		if overTLS {
			port, ca = portOf(x.HTTPS), x.cert.certFile
		}
		out, errs, _ := run(t, "python3", "-c", pythonWriter, port, ca, method, path, contentType, file, mode)
		return firstLine(out, errs)
	}
}

const perlWriter = `
my ($url, $method, $kind, $file) = @ARGV;
open my $in, "<:raw", $file or die; local $/; my $data = <$in>;
my $r = HTTP::Tiny->new(timeout => 20)->request($method, $url, {headers => {"Content-Type" => $kind}, content => $data});
print "$r->{status}\n$r->{content}";
`

func perl(t testing.TB, x *chain, method, path, contentType, file string) (int, string, error) {
	out, errs, _ := run(t, "perl", "-MHTTP::Tiny", "-e", perlWriter, x.address(false, path), method, contentType, file)
	return firstLine(out, errs)
}

const rubyWriter = `
require "net/http"
require "openssl"
url, ca, method, kind, file = ARGV
uri = URI(url)
http = Net::HTTP.new(uri.host, uri.port, nil)
http.max_retries = 0
if uri.scheme == "https"
  http.use_ssl = true
  http.ca_file = ca
end
sends_body = has_answer = true
request = Net::HTTPGenericRequest.new(method, sends_body, has_answer, uri.request_uri, "Content-Type" => kind)
request.body = File.binread(file)
answer = http.request(request)
puts answer.code
print answer.body
`

func ruby(overTLS bool) writer {
	return func(t testing.TB, x *chain, method, path, contentType, file string) (int, string, error) {
		out, errs, _ := run(t, "ruby", "-e", rubyWriter, x.address(overTLS, path), x.cert.certFile, method, contentType, file)
		return firstLine(out, errs)
	}
}

// withRuby adds Ruby's client where there is one: it isn't among the programs that these tests need.
func withRuby() map[string]writer {
	all := maps.Clone(writers)
	if _, err := exec.LookPath("ruby"); err == nil {
		all["Ruby"], all["Ruby over TLS"] = ruby(false), ruby(true)
	}
	return all
}

func curlWriter(overTLS bool, options ...string) writer {
	return func(t testing.TB, x *chain, method, path, contentType, file string) (int, string, error) {
		args := append([]string{
			"-X", method, "-H", "Content-Type: " + contentType, "-H", "Expect:", "--data-binary", "@" + file, "--cacert", x.cert.certFile, "-w", "\n%{http_code}",
		}, options...)
		r := curl(t, append(args, x.address(overTLS, path))...)
		end := strings.LastIndexByte(r.Out, '\n')
		if r.Exit != 0 || end < 0 {
			return 0, r.Out, fmt.Errorf("exit %d: %s", r.Exit, r.Err)
		}
		status, err := strconv.Atoi(r.Out[end+1:])
		return status, r.Out[:end], err
	}
}

// TestUnreadBodyCostsNobodyItsAnswer promises each of these clients every answer, whole, with megabytes unsent. In CI each is tried; in
// a quick run each client gets half of them, and each answer goes to half of the clients.
func TestUnreadBodyCostsNobodyItsAnswer(t *testing.T) {
	t.Parallel()
	x := startLinger(t)
	long, more := fileOf(t, make([]byte, 8<<20)), fileOf(t, make([]byte, 5<<19))
	clients := withRuby()
	for n, name := range slices.Sorted(maps.Keys(clients)) {
		write := clients[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			times, file := 1, long
			if strings.HasPrefix(name, "curl h2") {
				times = 2 // it loses one in a few
			}
			if status, body, err := write(t, x, "POST", "/other", "text/plain", file); err != nil || status != 200 || body != "seen by the app\n" {
				t.Fatalf("where the body is read: got %d %.200s, %v", status, body, err)
			}
			for i, want := range lateAnswers {
				if times == 1 && (n+i)%2 > 0 && !allTests {
					continue
				}
				if times > 1 && want.status == 200 {
					file = more // than the window of a stream, and read in the half second for it by a busy machine, too
				}
				for range times {
					status, body, err := write(t, x, want.method, want.path, want.contentType, file)
					if whole := body == want.body || want.body == "" && gjson.Get(body, "status").Int() == int64(want.status); err != nil || status != want.status || !whole {
						t.Errorf("%s: got %d %.200s, %v", want.name, status, body, err)
					}
				}
			}
		})
	}
}

// TestUnreadBodyCostsNobodyTheRoutesAnswer promises the same where an error route writes the answer.
func TestUnreadBodyCostsNobodyTheRoutesAnswer(t *testing.T) {
	t.Parallel()
	x := startLinger(t, withEnv("ERRORS", "handle_errors {\n respond \"routed\"\n}"))
	file := fileOf(t, make([]byte, 8<<20))
	for _, name := range []string{"wget", "Python over TLS", "Python chunked", "curl h2c"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, want := range lateAnswers[:4] {
				status, body, err := writers[name](t, x, want.method, want.path, want.contentType, file)
				if err != nil || status != want.status || body != "routed" {
					t.Errorf("%s: got %d %.200s, %v", want.name, status, body, err)
				}
			}
		})
	}
}

// TestSlowWriterGetsItsAnswer promises it to a client that takes seconds to write its body, and only then reads.
func TestSlowWriterGetsItsAnswer(t *testing.T) {
	t.Parallel()
	x := startLinger(t)
	for _, want := range lateAnswers {
		for way, dial := range map[string]func(testing.TB) *rawConn{"": x.dialRaw, " over TLS": x.dialRawTLS} {
			t.Run(want.name+way, func(t *testing.T) {
				t.Parallel()
				conn := dial(t)
				const size, pieces = 6 << 20, 24
				conn.sendHead(t, want.method+" "+want.path+" HTTP/1.1", "Host: localhost", "Content-Type: "+want.contentType, fmt.Sprintf("Content-Length: %d", size))
				if err := conn.drip(t, 100*time.Millisecond, pieces, size/pieces); err != nil {
					t.Errorf("it could not write its body: %v", err)
				}
				if a, err := conn.tryRead(want.method); err != nil || a.Status != want.status {
					t.Errorf("got %d, %v", a.Status, err)
				}
			})
		}
	}
}

// TestAnswerComesBeforeTheRestIsAwaited promises that nobody waits for an answer because others need one: it comes at once, and the
// connection of a client that says nothing more ends within seconds.
func TestAnswerComesBeforeTheRestIsAwaited(t *testing.T) {
	t.Parallel()
	x := startLinger(t)
	for _, want := range lateAnswers {
		t.Run(want.name, func(t *testing.T) {
			t.Parallel()
			conn := x.dialRaw(t)
			conn.sendHead(t, want.method+" "+want.path+" HTTP/1.1", "Host: localhost", "Content-Type: "+want.contentType, "Content-Length: 12000000")
			conn.send(t, strings.Repeat("x", 100_000))
			// While it writes, the rest is awaited for half a minute, and an answer that came after that too late for the connection.
			answered, wrote := make(chan struct{}), make(chan error, 1)
			go func() { wrote <- conn.writeUntil(answered, 0) }()
			if a := conn.read(t, want.method); a.Status != want.status {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
			close(answered)
			if err := <-wrote; err != nil {
				t.Errorf("it could not write more of its body: %v", err)
			}
			within(t, 15*time.Second, "the end of the connection", func() { conn.ends(t) })
		})
		t.Run(want.name+", over HTTP/2", func(t *testing.T) {
			t.Parallel()
			conn := x.dialRawH2(t)
			fields := postFields(want.path, 12_000_000)
			fields[1], fields[9] = want.method, want.contentType
			conn.sendFields(t, 1, false, fields...)
			for range 10 {
				check(t, conn.WriteData(1, false, make([]byte, 10_000)))
			}
			stop := conn.dripOn(1)
			if a := conn.read(t, 1); a.Status != want.status || !a.HasEnd {
				t.Errorf("got %+v", a)
			}
			stop()
		})
	}
}

// TestExpectGetsNoLinger promises a client that asked before it sent, and sent nothing, its answer and the end at once.
func TestExpectGetsNoLinger(t *testing.T) {
	t.Parallel()
	x := startLinger(t)
	for _, want := range lateAnswers[:3] {
		t.Run(want.name, func(t *testing.T) {
			t.Parallel()
			conn := x.dialRaw(t)
			conn.sendHead(t, want.method+" "+want.path+" HTTP/1.1", "Host: localhost", "Content-Type: "+want.contentType, "Content-Length: 12000000", "Expect: 100-continue")
			if a := conn.read(t, want.method); a.Status != want.status {
				t.Errorf("got %d", a.Status)
			}
			// A gateway that awaits the rest reads what comes now, for half a minute, and the connection is left open.
			ended := make(chan struct{})
			go conn.writeUntil(ended, 0) // until it fails
			conn.ends(t)
			close(ended)
		})
	}
}

// dripOn writes a byte on a stream now and then, also while the connection is read, until the returned function is called.
func (c *rawH2) dripOn(stream uint32) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(300 * time.Millisecond):
			}
			c.writing.Lock()
			err := c.WriteData(stream, false, []byte("x"))
			c.writing.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// testLingeringClientHoldsNothing promises that a client whose answer is out and whose body still comes takes nobody's slot, place
// or memory.
func testLingeringClientHoldsNothing(t *testing.T) {
	t.Parallel()
	sideBySide(t, map[string]string{"streamed": "", "held": "memory 128MiB"}, func(t *testing.T, _, memory string) {
		x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_capsule 2MiB
		capacity {
			slots 1
			queue 0
			{$MEMORY}
		}
	}
	reverse_proxy {$APP}
}`, withEnv("MEMORY", memory))
		for what, head := range map[string][]string{
			"413":          postHead("/verify", 12_000_000),
			"413, chunked": postHead("/verify", -1),
			"early":        postHead("/verify", 2_000_000),
		} {
			if what == "early" && memory != "" {
				continue // what is held is not answered early
			}
			if what == "early" {
				x.oz.fault(t, "early:400,bytes=40000")
			}
			conn := x.dialRaw(t)
			conn.sendHead(t, head...)
			want := 413
			switch what {
			case "413, chunked":
				conn.send(t, fmt.Sprintf("%x\r\n%s", 8<<20, strings.Repeat("x", 3<<20)))
			case "early":
				conn.send(t, strings.Repeat("x", 200_000))
				want = 400
			default:
				conn.send(t, strings.Repeat("x", 200_000))
			}
			if a := conn.read(t, "POST"); a.Status != want {
				t.Errorf("%s: got %d %s", what, a.Status, a.Body)
			}
			// All the while it writes, and is listened to. Silence for five seconds, in which a busy machine may not have served the next
			// client, would end the connection.
			served, wrote := make(chan struct{}), make(chan error, 1)
			go func() { wrote <- conn.writeUntil(served, 6) }()
			x.awaitMetric(t, inFlightMetric, 0) // while it writes it is listened to for longer than this waits
			x.awaitMetric(t, memoryMetric, 0)
			x.oz.fault(t, "")
			x.mustServe(t)
			close(served)
			if err := <-wrote; err != nil {
				t.Errorf("%s: nobody listens to the rest: %v", what, err)
			}
		}
	})
}

// writeUntil writes a little of a body now and then, so many times at least.
func (c *rawConn) writeUntil(end <-chan struct{}, least int) error {
	for n := 0; ; n++ {
		pause := time.After(300 * time.Millisecond) // as such a client writes
		select {
		case <-end:
			if n >= least {
				return nil
			}
			<-pause
		case <-pause:
		}
		if _, err := io.WriteString(c, strings.Repeat("x", 20_000)); err != nil {
			return err
		}
	}
}

// TestNoEarlyAnswerIsLost promises Oz's early answer on each way to it that loads: with PROXY protocol in front, and with a TLS name
// out of a placeholder.
func TestNoEarlyAnswerIsLost(t *testing.T) {
	t.Parallel()
	answer := ozAnswer("400 Bad Request", `{"error_code": 14, "error_message": "Invalid request data", "details": null}`)
	early := func(prelude bool, cert *certificate) string {
		return startServer(t, func(conn net.Conn) {
			in := bufio.NewReader(conn)
			if prelude {
				if _, err := in.ReadString('\n'); err != nil {
					return
				}
			}
			stream := net.Conn(readConn{conn, in})
			if cert != nil {
				stream = tls.Server(stream, cert.serverConfig())
				in = bufio.NewReader(stream)
			}
			readRawLine(in)
			readRawFields(in)
			io.CopyN(io.Discard, in, 40_000)
			io.WriteString(stream, strings.Replace(answer, "\r\n", "\r\nConnection: close\r\n", 1))
		})
	}
	cert := testCert(t)
	for name, test := range map[string]struct{ oz, transport string }{
		"plain":             {early(false, nil), "transport http"},
		"PROXY protocol":    {early(true, nil), "transport http {\n proxy_protocol v1\n}"},
		"PROXY and TLS":     {early(true, &cert), "transport http {\n proxy_protocol v1\n tls_trust_pool file " + cert.certFile + "\n tls_server_name localhost\n}"},
		"TLS":               {early(false, &cert), "transport http {\n tls_trust_pool file " + cert.certFile + "\n tls_server_name localhost\n}"},
		"TLS, a name of it": {early(false, &cert), "transport http {\n tls_trust_pool file " + cert.certFile + "\n tls_server_name {query.name}\n}"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			site := "{$SITE} {\n\tlog\n\toz_instant /verify " + test.oz + " {\n\t\tfail_duration 30s\n\t\t" + test.transport + "\n\t}\n}"
			if err := validate(t, site); err != nil && name != "plain" && name != "TLS" {
				if !strings.Contains(err.Error(), "Caddyfile:") {
					t.Errorf("it does not load, and the error names no line: %v", err)
				}
				return // what cannot keep the promise must not load
			}
			p := startCaddy(t, site)
			c := p.client(t, "h1")
			lost := 0
			var all sync.WaitGroup
			answers := make(chan attempt, 80)
			for range 4 {
				all.Go(func() {
					for range often(20) {
						a, err := c.try(c.postRequest(t, "/verify?name=localhost", bytes.NewReader(make([]byte, 1<<20))))
						answers <- attempt{a, err}
					}
				})
			}
			all.Wait()
			close(answers)
			var first attempt
			for r := range answers {
				if r.err != nil || r.Status != 400 || problemOf(r.answer) != "container" {
					lost++
					first = r
				}
			}
			if lost > 0 {
				t.Errorf("%d of 80 answers were lost; such as %d %.200s, %v", lost, first.Status, first.Body, first.err)
			}
		})
	}
}

// readConn is a connection of which a reader has the first bytes.
type readConn struct {
	net.Conn
	in *bufio.Reader
}

func (c readConn) Read(p []byte) (int, error) { return c.in.Read(p) }

// attempt is an answer, or why there is none.
type attempt struct {
	answer
	err error
}
