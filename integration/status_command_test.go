package integration_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestStatusCommand promises a table and the gateway's own document, from wherever the admin endpoint is, and an error that says
// what is wrong where there is none.
func TestStatusCommand(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, "{\n\tmetrics\n}"+slotSite)
	if a := x.client(t, "h1").post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	x.awaitStatus(t, "decisions.SUCCESS", "1", "in_flight", "0")
	config := filepath.Join(x.dir, "Caddyfile")
	for name, args := range map[string][]string{
		"--address": {"--address", x.Admin}, "--config": {"--config", config, "--adapter", "caddyfile"}, "environment": nil,
	} {
		got := runCaddy(t, "", x.cmd.Env, append([]string{"oz-instant", "status"}, args...)...)
		if line := missing("ready, running since\nway to Oz 1 of 1\nupstreams … "+x.oz.Addr+" … up\nin flight … 0 of 2\nqueued … 0 of 2\n"+
			"decisions … SUCCESS 1\nfailures … none", got.Out); line != "" || got.Exit != 0 {
			t.Errorf("%s: exit %d, no %q in\n%s%s", name, got.Exit, line, got.Out, got.Err)
		}
	}
	got := runCaddy(t, "", nil, "oz-instant", "status", "--address", x.Admin, "--json")
	if said, want := gjson.Parse(got.Out), x.status(t); got.Exit != 0 || said.Get("@ugly").Raw != want.Get("@ugly").Raw {
		t.Errorf("exit %d, got\n%s\nwant\n%s", got.Exit, said, want)
	}

	socket := filepath.Join(t.TempDir(), "admin.sock")
	check(t, x.Reload("{\n\tadmin unix/"+socket+"\n}"+slotSite))
	got = runCaddy(t, "", nil, "oz-instant", "status", "--address", "unix/"+socket)
	if got.Exit != 0 || !strings.Contains(got.Out, "SUCCESS 1") {
		t.Errorf("on a socket: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
}

// TestStatusCommandErrors promises that without a status the command says what to do, and exits with 1.
func TestStatusCommandErrors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "off.json")
	check(t, os.WriteFile(file, []byte(`{"admin": {"disabled": true}}`), 0o600))
	respond := func(status, body string) string {
		app := newRawApp(t)
		app.Answer(func(rawRequest) string { return rawAnswer(status, body) })
		return app.Addr
	}
	for want, args := range map[string][]string{
		"no admin API answers at":        {"--address", deadAddress(t)},
		"has no oz_instant in it":        {"--address", respond("404 Not Found", "404 page not found\n")},
		"isn't the status of a gateway":  {"--address", respond("200 OK", "<html>\x1b[2J")},
		"HTTP 403":                       {"--address", respond("403 Forbidden", "{\"error\":\"host \x1b[2J not allowed\"}")},
		"the admin API is off":           {"--config", file},
		"unknown flag":                   {"--wacth"},
		"off.json2: no such file or dir": {"--config", file + "2"},
	} {
		got := runCaddy(t, "", nil, append([]string{"oz-instant", "status"}, args...)...)
		if got.Exit != 1 || !strings.Contains(got.Err, want) || strings.Contains(got.Out+got.Err, "\x1b") {
			t.Errorf("%v: exit %d, no %q in\n%s%s", args, got.Exit, want, got.Out, got.Err)
		}
	}
}

// fakeAdmin is an admin endpoint that comes and goes, of a gateway that has decided a given number of capsules.
func fakeAdmin(t testing.TB, address string, decided int) (end func()) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	for start := time.Now(); err != nil && time.Since(start) < patience; listener, err = net.Listen("tcp", address) {
		time.Sleep(10 * time.Millisecond) // a child that is being forked holds the one before for a moment
	}
	check(t, err)
	doc := fmt.Sprintf(`{"started":"2026-11-26T10:00:00Z","ready":true,"ways":[{"decisions":{"SUCCESS":%d},"new":{"in":"later versions"}}]}`, decided)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, doc) }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateIdle {
				t.Error("a connection is kept, and would be one a second")
			}
		},
	}
	go server.Serve(listener)
	return func() { server.Close() }
}

// watched runs a command with --watch, of which each line is to be read.
func watched(t testing.TB, args ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(caddyBinary, append([]string{"oz-instant", "status", "--watch"}, args...)...)
	out, err := cmd.StdoutPipe()
	check(t, err)
	cmd.Stderr = os.Stderr
	dieWithTests(cmd, syscall.SIGKILL)
	check(t, cmd.Start())
	return cmd, bufio.NewScanner(out)
}

// TestStatusWatch promises a block a second in a pipe, through a time without a gateway, until it is interrupted: exit code 0.
func TestStatusWatch(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args              []string
		first, lost, back string
	}{
		"table": {nil, "SUCCESS 1 ", "NO STATUS", "SUCCESS 2 "},
		"JSON":  {[]string{"--json"}, `{"SUCCESS":1},"new":{"in":"later versions"}}]}`, `{"error":"no admin API answers at `, `{"SUCCESS":2}`},
	} {
		t.Run(name, func(t *testing.T) {
			address := deadAddress(t) // one for each: a child that another test has forked may hold a listener a little longer
			end := fakeAdmin(t, address, 1)
			cmd, lines := watched(t, append(test.args, "--address", address)...)
			await := func(text string) {
				t.Helper()
				for lines.Scan() {
					if strings.Contains(lines.Text(), "\x1b") {
						t.Errorf("a pipe gets %q", lines.Text())
					}
					if strings.Contains(lines.Text(), text) {
						return
					}
				}
				t.Errorf("%q did not come: %v", text, lines.Err())
			}
			await(test.first)
			end()
			await(test.lost)
			end = fakeAdmin(t, address, 2)
			await(test.back)
			check(t, cmd.Process.Signal(os.Interrupt))
			for lines.Scan() { // what is left
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("after an interrupt: %v", err)
			}
			end()
		})
	}
}

// TestStatusWatchOnATerminal promises that on a terminal each block overwrites the one before, cut to the window, and that Ctrl-C ends
// it well.
func TestStatusWatchOnATerminal(t *testing.T) {
	t.Parallel()
	address := deadAddress(t)
	defer fakeAdmin(t, address, 1)()
	cmd := exec.Command(program(t, "script"), "--quiet", "--return", "--flush", "--command",
		"stty rows 8 cols 60; exec "+caddyBinary+" oz-instant status --watch --address "+address, os.DevNull)
	cmd.Env = []string{"TERM=xterm", "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}
	keyboard, err := cmd.StdinPipe()
	check(t, err)
	screen, err := cmd.StdoutPipe()
	check(t, err)
	dieWithTests(cmd, syscall.SIGKILL)
	check(t, cmd.Start())
	var text strings.Builder
	interrupt := sync.OnceFunc(func() { _, _ = io.WriteString(keyboard, "\x03") }) // a second one would kill a program that is ending
	for lines := bufio.NewScanner(screen); lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if strings.Count(text.String(), "more lines: make the window higher") == 3 {
			interrupt()
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	if got := text.String(); strings.Count(got, "\x1b[7A") < 2 || strings.Contains(got, "\x1b[2J") || !strings.Contains(got, "\x1b[32mready\x1b[0m") {
		t.Errorf("the terminal got %q", got)
	}
}
