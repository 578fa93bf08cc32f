package integration_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// These tests promise that a command that takes its time says how far it has got: on a terminal in one line that moves, elsewhere in
// plain lines, and never among its results.

// slowOz is an Oz that stops reading a capsule of several MiB until it is told to continue.
func slowOz(t testing.TB) (url, capsuleFile string, goOn func()) {
	t.Helper()
	oz := startSandbox(t, sandbox.Options{})
	free := make(chan struct{})
	goOn = sync.OnceFunc(func() { close(free) })
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 1<<20 {
			<-free
		}
		oz.ServeHTTP(w, r)
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(goOn)
	capsuleFile = filepath.Join(t.TempDir(), "capsule.bin")
	check(t, os.WriteFile(capsuleFile, oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 12 << 20}), 0o600))
	return slow.URL, capsuleFile, goOn
}

func checkCapsule(t testing.TB, url, file string, args ...string) *exec.Cmd {
	home := t.TempDir()
	cmd := exec.Command(caddyBinary, append([]string{"oz-instant", "check", "--to", url, "--capsule", file}, args...)...)
	cmd.Env = []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home, "TERM=xterm"}
	return cmd
}

// partSent is the line of a capsule that is partly sent.
const partSent = `capsule: \d+\.\d MiB of 12 MiB sent`

// afterAWhile is what comes after it where that took a while.
const afterAWhile = `(, \d+s)?`

func TestProgressOnTerminal(t *testing.T) {
	t.Parallel()
	url, file, goOn := slowOz(t)
	term := newTerminal(t, 60)
	cmd := checkCapsule(t, url, file)
	term.start(t, cmd)
	term.await(t, regexp.QuoteMeta(url)+": "+partSent)
	goOn()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	got := term.screen(t)
	if line := missing(url+"\nok  configuration\nok  garbage capsule\nok  capsule … 12 MiB: SUCCESS", got); line != "" || strings.Contains(got, "sent") || strings.Count(got, "\n") != 8 || !strings.HasSuffix(got, "\n") {
		t.Errorf("%q is missing, or more is left than results:\n%s", line, got)
	}
}

// An interrupt leaves the results so far and the reason, and says nothing about Oz for it.
func TestProgressIsInterrupted(t *testing.T) {
	t.Parallel()
	url, file, _ := slowOz(t)
	term := newTerminal(t, 60)
	cmd := checkCapsule(t, url, file)
	term.start(t, cmd)
	term.await(t, partSent)
	term.typeIn(t, "\x03")
	cmd.Wait()
	got := term.screen(t)
	if line := missing("ok  garbage capsule\nError: interrupt", got); line != "" || strings.Contains(got, "sent") || strings.Contains(got, "FAILED") || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, %q is missing, or more is left:\n%s", cmd.ProcessState, line, got)
	}
}

// With --json, standard output is one document, whatever the terminal shows.
func TestProgressBesideJSON(t *testing.T) {
	t.Parallel()
	url, file, goOn := slowOz(t)
	term := newTerminal(t, 60)
	cmd := checkCapsule(t, url, file, "--json")
	var out bytes.Buffer
	cmd.Stdout = &out
	term.start(t, cmd)
	term.await(t, partSent)
	goOn()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got := term.screen(t); got != "" || !gjson.ValidBytes(out.Bytes()) || states(t, out.String(), 0)["capsule"] != "ok" {
		t.Errorf("left on the terminal: %q; standard output:\n%s", got, &out)
	}
}

// A log gets plain lines, also if TERM or NO_COLOR ask for them on a terminal.
func TestProgressInLog(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]string{"a pipe": "", "dumb": "TERM=dumb", "no color": "NO_COLOR=1"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, file, goOn := slowOz(t)
			cmd := checkCapsule(t, url, file, "--json")
			cmd.Env = append(cmd.Env, env)
			var out bytes.Buffer
			cmd.Stdout = &out
			var log string
			if env == "" {
				stderr, err := cmd.StderrPipe()
				check(t, err)
				check(t, cmd.Start())
				lines := bufio.NewReader(stderr)
				for sent := regexp.MustCompile(partSent); !sent.MatchString(log); {
					line, err := lines.ReadString('\n')
					check(t, err)
					log += line
				}
				goOn()
				rest, _ := io.ReadAll(lines)
				log += string(rest)
			} else {
				term := newTerminal(t, 60)
				term.start(t, cmd)
				term.await(t, partSent+afterAWhile+`\r?\n`)
				goOn()
				log = term.screen(t)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			// On a busy machine other parts may take long enough for a line, too.
			if !regexp.MustCompile(`^(http://[^\n\r\x1b]*: [^\n\r\x1b]*\n)*http://[^\n\r\x1b]*: `+partSent+afterAWhile+`\n(http://[^\n\r\x1b]*\n)*$`).MatchString(log) || !gjson.ValidBytes(out.Bytes()) {
				t.Errorf("%q, standard output:\n%s", log, &out)
			}
		})
	}
}

// The line counts the attack's rows. With so few requests most of them aren't tried, so that the test is short.
func TestProgressOfAttack(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{})
	p := startCaddy(t, attackSite, withEnv("OZ", oz.URL), withEnv("APP", demoAddr(t)))
	term := newTerminal(t, 80)
	cmd := exec.Command(caddyBinary, "oz-instant", "attack", "--path", "/verify", "--to", "http://"+p.HTTP,
		"--sandbox", oz.URL, "--rate", "20", "--requests", "20")
	cmd.Env = []string{"HOME=" + t.TempDir(), "TERM=xterm"}
	term.start(t, cmd)
	term.await(t, `attacking: [1-9]\d* of \d+ rows, \w+`)
	cmd.Wait()
	got := term.screen(t)
	if line := missing("Attack on\nHOLDS  forged decision\nNOT TRIED\n rows hold", got); line != "" || strings.Contains(got, "attacking:") || strings.Contains(got, "learning") {
		t.Errorf("%q is missing, or more is left than results:\n%s", line, got)
	}
}
