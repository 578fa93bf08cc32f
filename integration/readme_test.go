package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// buildPatience is for a first build of Caddy by xcaddy on a small and busy machine.
const buildPatience = 6 * time.Minute

// TestReadme runs what the README tells a newcomer to do.
func TestReadme(t *testing.T) {
	bash := program(t, "bash")
	program(t, "curl") // for the README's lines
	root, err := caddybin.Root()
	check(t, err)
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	check(t, err)
	blocks := readBlocks(string(text))
	found, errs := examples(blocks)
	for _, err := range errs {
		t.Error("README.md, ", err)
	}
	if len(found) == 0 {
		t.Error("README.md has nothing to run")
	}
	for _, b := range blocks {
		if b.Lang != "caddyfile" {
			continue
		}
		if _, err := adapt(t, b.Text); err != nil {
			t.Errorf("README.md, line %d: %v", b.Line, err)
		}
	}

	x := startXcaddyRun(t, root)
	folder := linkedFolder(t, root)
	for _, e := range found {
		cmd := exec.CommandContext(t.Context(), bash, "-e", "-c", x.here.Replace(e.Text))
		cmd.Dir = folder
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("README.md, line %d: %v\n%s%s", e.Line, err, e.Text, out)
		} else if line := missing(x.here.Replace(e.Prints), string(out)); line != "" {
			t.Errorf("README.md, line %d: %q does not come in what this prints:\n%s%s", e.Line, line, e.Text, out)
		}
	}
	x.stop(t)
}

// linkedFolder returns a folder that shows everything in root, and in which commands may leave files.
func linkedFolder(t *testing.T, root string) string {
	t.Helper()
	folder := t.TempDir()
	entries, err := os.ReadDir(root)
	check(t, err)
	for _, entry := range entries {
		if entry.Name() != ".git" {
			check(t, os.Symlink(filepath.Join(root, entry.Name()), filepath.Join(folder, entry.Name())))
		}
	}
	return folder
}

// xcaddyRun is ./xcaddy.sh run.
type xcaddyRun struct {
	cmd   *exec.Cmd
	logs  *logBook
	ended chan struct{}
	ports []int             // what it listens on
	here  *strings.Replacer // turns the README's addresses into those in use
}

// startXcaddyRun runs ./xcaddy.sh run on free ports and returns when it says that it is up.
func startXcaddyRun(t *testing.T, root string) *xcaddyRun {
	t.Helper()
	x := &xcaddyRun{cmd: exec.Command("./xcaddy.sh", "run"), logs: newLogBook(), ended: make(chan struct{})}
	x.cmd.Dir, x.cmd.Env = root, os.Environ()
	var pairs []string
	for _, setting := range []struct{ variable, before, port string }{
		{"SITE", "http://localhost:", "8080"},
		{"OZ_URL", "http://127.0.0.1:", "9000"},
		{"APP_URL", "http://127.0.0.1:", "3000"},
		{"CADDY_ADMIN", "localhost:", "2019"},
	} {
		number := freePort(t)
		port := strconv.Itoa(number)
		x.ports = append(x.ports, number)
		x.cmd.Env = append(x.cmd.Env, setting.variable+"="+setting.before+port)
		for _, host := range []string{"localhost:", "127.0.0.1:"} {
			pairs = append(pairs, host+setting.port, host+port)
		}
		if setting.variable == "OZ_URL" { // whose place the maker of capsules would guess
			pairs = append(pairs, "ozsandbox capsule", "ozsandbox capsule --oz "+setting.before+port)
		}
	}
	x.here = strings.NewReplacer(pairs...)
	x.cmd.Stdout, x.cmd.Stderr = x.logs, x.logs
	dieWithTests(x.cmd, syscall.SIGTERM)
	check(t, x.cmd.Start())
	go func() {
		x.cmd.Wait() // stop looks at how it ended
		close(x.ended)
	}()
	t.Cleanup(func() { x.end() })

	if len(x.logs.wait(buildPatience, 1, x.ended, having("==> running"))) == 0 {
		x.end()
		t.Fatalf("./xcaddy.sh run did not come up:\n%s", x.logs)
	}
	return x
}

// end tells it to end and waits until it has.
func (x *xcaddyRun) end() {
	x.cmd.Process.Signal(syscall.SIGTERM)
	<-x.ended
}

// stop ends it and fails the test if it leaves anything running.
func (x *xcaddyRun) stop(t *testing.T) {
	t.Helper()
	x.end()
	if code := x.cmd.ProcessState.ExitCode(); code != 128+int(syscall.SIGTERM) {
		t.Errorf("./xcaddy.sh run ended with %v:\n%s", x.cmd.ProcessState, x.logs)
	}
	for _, port := range x.ports {
		if !portIsFree(port) {
			t.Errorf("port %d is still in use after ./xcaddy.sh run has ended", port)
		}
	}
}
