package integration_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// startServer gives each connection to serve and then closes it, until the test ends. It returns the server's address.
func startServer(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		defer mu.Unlock()
		for conn := range open {
			conn.Close()
		}
	})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return listener.Addr().String()
}

// countingListener counts the connections that come.
type countingListener struct {
	net.Listener
	n atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return conn, err
}

// startCountedSandbox starts a stand-in for Oz that counts the connections to it.
func startCountedSandbox(t testing.TB, options sandbox.Options) (*ozServer, *countingListener) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	counting := &countingListener{Listener: l}
	return serveSandbox(t, counting, options), counting
}

// ozFolder is a folder that says SUCCESS, with fields added at its top.
func ozFolder(fields string) string {
	return `{"folder_id":"0d4e7d6c-91b5-4b4c-8b9b-0d2f7a9f8a11","resolution_status":"FINISHED","system_resolution":"SUCCESS",` +
		`"media":[],"analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS","resolution":"SUCCESS","error_code":null}]` +
		fields + `}`
}

// ozAnswer is an answer of Oz as it stands on the wire.
func ozAnswer(status, body string) string {
	return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

// startRawOz starts a stand-in for Oz that gives this answer to every request.
func startRawOz(t testing.TB, answer string) *rawApp {
	t.Helper()
	oz := newRawApp(t)
	oz.Answer(func(rawRequest) string { return answer })
	return oz
}

// startRawChain is startChain with a stand-in for Oz that gives one answer to everything. It lacks oz.
func startRawChain(t testing.TB, answer, caddyfile string, opts ...caddyOption) (*chain, *rawApp) {
	t.Helper()
	oz, app := startRawOz(t, answer), newRawApp(t)
	opts = append([]caddyOption{withEnv("OZ", "http://"+oz.Addr), withEnv("APP", app.Addr)}, opts...)
	return &chain{caddyProc: startCaddy(t, caddyfile, opts...), app: app}, oz
}

// drip writes n pieces of a body, each after a pause, until the connection fails or the test ends.
func (c *rawConn) drip(t testing.TB, pause time.Duration, n, size int) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	piece := strings.Repeat("x", size)
	for range n {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			return t.Context().Err()
		}
		if _, err := c.Write([]byte(piece)); err != nil {
			return err
		}
	}
	return nil
}

// within fails the test unless f returns in time.
func within(t testing.TB, limit time.Duration, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > limit {
		t.Errorf("%s took %v, want at most %v", what, took.Round(10*time.Millisecond), limit)
	}
}

// problemOf is the last word of a problem's type, or empty where the answer is no problem document.
func problemOf(a answer) string {
	urn := gjson.GetBytes(a.Body, "type").Str
	if a.Header.Get("Content-Type") != "application/problem+json" {
		return ""
	}
	return urn[strings.LastIndexByte(urn, ':')+1:]
}

// wantProblem fails the test unless this is the problem that the client got.
func wantProblem(t testing.TB, a answer, status int, problem string) {
	t.Helper()
	if a.Status != status || problemOf(a) != problem {
		t.Errorf("got %d %.300s, want %d and the problem %s", a.Status, a.Body, status, problem)
	}
}

// wantServed fails the test unless Oz's way is open: a capsule is posted and must reach the app as SUCCESS.
func (x *chain) wantServed(t testing.TB, path string, capsule []byte) {
	t.Helper()
	c := x.client(t, "h1")
	if a := c.post(t, path, capsule); a.Status != http.StatusOK {
		t.Errorf("the next capsule got %d %.300s", a.Status, a.Body)
	}
}

// serveRequest reads one request and answers it, all within limit; then the connection ends.
func serveRequest(limit time.Duration, answer string) func(net.Conn) {
	return func(conn net.Conn) {
		conn.SetDeadline(time.Now().Add(limit))
		if _, err := readRawRequest(bufio.NewReader(conn)); err == nil {
			conn.Write([]byte(answer))
		}
	}
}

// withBinary starts another Caddy than the one under test.
func withBinary(path string) caddyOption {
	return func(p *caddyProc) { p.cmd.Path, p.cmd.Args[0] = path, path }
}

// caddyWithPlugin returns a Caddy with the plugin noUnwrap. Where OZ_CADDY names the one under test, nothing can be added to that,
// and another one is built from the source.
func caddyWithPlugin(t testing.TB) string {
	t.Helper()
	if os.Getenv("OZ_CADDY") == "" {
		return caddyBinary
	}
	path := filepath.Join(t.TempDir(), "caddy")
	check(t, caddybin.Build(t.Context(), path, raceEnabled, noUnwrap))
	return path
}

// keysDir is a folder with a key pair that several stand-ins for Oz may share.
func keysDir(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	check(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	check(t, err)
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "jwt.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "jwt.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600))
	return dir
}

// fileOf writes bytes to a file, for programs to send.
func fileOf(t testing.TB, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "capsule.bin")
	check(t, os.WriteFile(file, data, 0o600))
	return file
}

// besides runs subtests that mostly wait all at once: parallel ones would wait for each other, since testing runs only as many as
// there are processors.
type besides struct {
	t   *testing.T
	all sync.WaitGroup
}

func (b *besides) Run(name string, test func(*testing.T)) {
	b.all.Go(func() { b.t.Run(name, test) })
}

// Wait returns when all have ended. It must be called before the test returns.
func (b *besides) Wait() { b.all.Wait() }
