package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// caddyProc is a running Caddy.
type caddyProc struct {
	HTTP, HTTPS string // addresses for sites, as in {$HTTP_PORT} and {$HTTPS_PORT}
	Admin       string // address of the admin endpoint

	dir   string // all of its files
	cert  certificate
	cmd   *exec.Cmd
	logs  *logBook
	ended chan struct{} // closed when the process has ended

	crashed bool // it was killed by the test

	marks atomic.Int64 // that catchUp made

	clientsMu sync.Mutex
	clients   []*client
}

// caddyOption changes how a Caddy is started.
type caddyOption func(*caddyProc)

// withEnv sets an environment variable of the Caddy: NAME is {$NAME} in the Caddyfile and {env.NAME} at run time.
func withEnv(name, value string) caddyOption {
	return func(p *caddyProc) { p.cmd.Env = append(p.cmd.Env, name+"="+value) }
}

// startCaddy runs a Caddy with a Caddyfile until the test ends, and returns when it serves. The Caddyfile may use
//
//	{$SITE}                     addresses for a site on HTTP and HTTPS, any host name; TLS is seen to
//	{$HTTP_PORT} {$HTTPS_PORT}  the two ports, for sites of another form
//	{$TLS_CERT} {$TLS_KEY}      files for tls directives; clients made by this package trust them
//
// and what withEnv adds. Logs are at debug level. When the test ends Caddy must end by itself, with status 0, and its log may
// hold no panic and no data race.
func startCaddy(t testing.TB, caddyfile string, opts ...caddyOption) *caddyProc {
	t.Helper()
	p := newCaddy(t, "run", caddyfile, opts)
	p.cmd.Stdout, p.cmd.Stderr = p.logs, p.logs
	dieWithTests(p.cmd, syscall.SIGKILL)
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("starting Caddy: %v", err)
	}
	go func() {
		p.cmd.Wait() // stop looks at how it ended
		close(p.ended)
	}()
	t.Cleanup(func() { p.stop(t) })

	if len(p.logs.wait(startPatience, 1, p.ended, withMsg("serving initial configuration"))) == 0 {
		t.Fatalf("Caddy did not start:\n%s", p.logs)
	}
	return p
}

// adapt returns the JSON that a Caddyfile, which may use what startCaddy offers, stands for, or the error.
func adapt(t testing.TB, caddyfile string, opts ...caddyOption) (string, error) {
	t.Helper()
	return newCaddy(t, "adapt", caddyfile, opts).output()
}

// validate has Caddy load and provision a Caddyfile without running it, and returns the error.
func validate(t testing.TB, caddyfile string, opts ...caddyOption) error {
	t.Helper()
	_, err := newCaddy(t, "validate", caddyfile, opts).output()
	return err
}

// newCaddy prepares a Caddy command for a Caddyfile, in a home of its own.
func newCaddy(t testing.TB, command, caddyfile string, opts []caddyOption) *caddyProc {
	t.Helper()
	httpPort, httpsPort := freePort(t), freePort(t)
	p := &caddyProc{
		HTTP: loopback(httpPort), HTTPS: loopback(httpsPort), Admin: loopback(freePort(t)),
		dir: t.TempDir(), cert: testCert(t), logs: newLogBook(), ended: make(chan struct{}),
	}
	file := filepath.Join(p.dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(withHarness(caddyfile)), 0o600); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(caddyBinary, command, "--config", file, "--adapter", "caddyfile")
	p.cmd.Dir = p.dir
	// The environment is made from nothing: a proxy or a Caddy setting of the machine must not decide a test.
	p.cmd.Env = []string{
		"HOME=" + p.dir, "XDG_CONFIG_HOME=" + p.dir, "XDG_DATA_HOME=" + p.dir, "TMPDIR=" + p.dir, "PATH=" + os.Getenv("PATH"),
		"CADDY_ADMIN=" + p.Admin,
		"HTTP_PORT=" + strconv.Itoa(httpPort), "HTTPS_PORT=" + strconv.Itoa(httpsPort),
		fmt.Sprintf("SITE=http://:%d, https://:%d", httpPort, httpsPort),
		"TLS_CERT=" + p.cert.certFile, "TLS_KEY=" + p.cert.keyFile,
		"GOGC=" + os.Getenv("GOGC"), // see collectSeldom
		"GORACE=exitcode=0",         // findTrouble reads what the race detector reports
	}
	for _, opt := range opts {
		opt(p)
	}
	return p
}

// output runs the command to its end. Of its log only errors are part of the error: the rest shows the whole config, in which
// a test would find whatever word it looks for.
func (p *caddyProc) output() (string, error) {
	var stdout bytes.Buffer
	p.cmd.Stdout, p.cmd.Stderr = &stdout, p.logs
	err := p.cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	for _, line := range p.logLines() {
		if level := line.Get("level").String(); level == "" || level == "error" {
			err = fmt.Errorf("%w\n%s", err, line)
		}
	}
	return stdout.String(), err
}

// harnessHost is in the certificate, so that Caddy asks nobody for one.
const harnessHost = "harness.invalid"

// withHarness adds what every test wants. Global options: debug logs, ports that other tests do not use for what Caddy opens by
// itself, no certificate authority in the machine's trust store. And a site that nobody asks for, for its certificate: a site
// for any host name, as {$SITE} is, cannot bring one.
func withHarness(caddyfile string) string {
	const globals = `{
	debug
	http_port {$HTTP_PORT}
	https_port {$HTTPS_PORT}
	auto_https disable_redirects
	skip_install_trust
`
	const site = `
https://` + harnessHost + `:{$HTTPS_PORT} {
	tls {$TLS_CERT} {$TLS_KEY}
}
`
	if rest, has := strings.CutPrefix(strings.TrimSpace(caddyfile), "{\n"); has {
		return globals + rest + "\n" + site
	}
	return globals + "}\n" + caddyfile + "\n" + site
}

// Reload gives the running Caddy another Caddyfile, in the same environment, and returns its error.
func (p *caddyProc) Reload(caddyfile string) error {
	return p.load("text/caddyfile", withHarness(caddyfile))
}

// ReloadJSON gives the running Caddy a config in JSON, as it stands, and returns its error.
func (p *caddyProc) ReloadJSON(config string) error { return p.load("application/json", config) }

// load gives the running Caddy a config. Its clients begin with new connections after it: the servers of the config before close
// those that are kept at some moment after the answer, and a POST that meets it fails, since no client may send one again. At some
// moment they also close their listeners, which until then get a part of the new connections (SO_REUSEPORT) and reset those that they
// did not accept: load returns after it.
func (p *caddyProc) load(contentType, config string) error {
	req, err := http.NewRequest(http.MethodPost, "http://"+p.Admin+"/load", strings.NewReader(config))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Cache-Control", "must-revalidate") // also when nothing has changed
	_, err = adminCall(req)
	for deadline := time.Now().Add(patience); p.listensTwice() && time.Now().Before(deadline); { // nobody tells when it doesn't
		time.Sleep(time.Millisecond)
	}
	p.clientsMu.Lock()
	defer p.clientsMu.Unlock()
	for _, c := range p.clients {
		c.beginAnew()
	}
	return err
}

// AdminGet returns what the admin endpoint answers at a path, such as /metrics or /config/.
func (p *caddyProc) AdminGet(t testing.TB, path string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+p.Admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := adminCall(req)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// Config returns the running config as the admin endpoint shows it.
func (p *caddyProc) Config(t testing.TB) string {
	t.Helper()
	return p.AdminGet(t, "/config/")
}

// Metrics returns what Prometheus would scrape.
func (p *caddyProc) Metrics(t testing.TB) string {
	t.Helper()
	return p.AdminGet(t, "/metrics")
}

// Metric returns the value of one series, written as Prometheus writes it: name{label="value",…} with labels in alphabetical
// order. A series that does not exist counts 0, as with increase().
func (p *caddyProc) Metric(t testing.TB, series string) float64 {
	t.Helper()
	for line := range strings.Lines(p.Metrics(t)) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), series+" ")
		if !ok {
			continue
		}
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("metric %s: %v", series, err)
		}
		return number
	}
	return 0
}

// Goroutines returns the stacks of all goroutines of the Caddy.
func (p *caddyProc) Goroutines(t testing.TB) string {
	t.Helper()
	return p.AdminGet(t, "/debug/pprof/goroutine?debug=2")
}

var adminClient = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}

// adminDo makes a call that may be made twice: with a reload Caddy replaces the server behind its admin endpoint, and ends what the
// old one has just taken.
func adminDo(req *http.Request) (*http.Response, error) {
	resp, err := adminClient.Do(req)
	for tries := 1; (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) && tries < 5; tries++ {
		if req.GetBody != nil {
			req.Body, _ = req.GetBody() // of a string: it can't fail
		}
		resp, err = adminClient.Do(req)
	}
	return resp, err
}

// adminCall makes such a call, and returns the body of the answer, which must be 200.
func adminCall(req *http.Request) (string, error) {
	resp, err := adminDo(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", req.Method, req.URL.Path, resp.Status, body)
	}
	return string(body), err
}

// findTrouble returns what no log of a Caddy may hold, whatever was sent to it, or nothing.
func findTrouble(log string) string {
	if strings.Contains(log, trouble[0]) {
		log = raceReport.ReplaceAllStringFunc(log, func(report string) string {
			if strings.Contains(report, "/caddymodule") {
				return report
			}
			// Caddy's own, in which this module has no part: its access log tells the bytes of a body that reverse_proxy may still be
			// reading, and its TLS app is copied for its name while it starts.
			return ""
		})
	}
	for _, text := range trouble {
		if strings.Contains(log, text) {
			return text
		}
	}
	return ""
}

var raceReport = regexp.MustCompile(`(?s)WARNING: DATA RACE.*?\n={10,}`)

// trouble is what a log may not hold; races come first.
var trouble = []string{"WARNING: DATA RACE", "panic: ", "panic serving", "runtime error: ", "fatal error: ", "unexpected fault address"}

// stop ends the Caddy as systemd would, if it still runs, and judges how it ended.
func (p *caddyProc) stop(t testing.TB) {
	t.Helper()
	if p.crashed {
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
		// On SIGQUIT Caddy would end at once; on SIGABRT the Go runtime shows what it hangs on.
		p.cmd.Process.Signal(syscall.SIGABRT)
		<-p.ended
		t.Errorf("Caddy did not end on SIGTERM within %v:\n%s", patience, p.logs)
		return
	}
	if found := findTrouble(p.logs.String()); found != "" {
		t.Errorf("Caddy's log holds %q:\n%s", found, p.logs)
	} else if !p.cmd.ProcessState.Success() {
		t.Errorf("Caddy ended with %v:\n%s", p.cmd.ProcessState, p.logs)
	}
}
