package integration_test

import (
	"bufio"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestUnknownSubcommandFails promises that a typing error is one: a script that runs it must not go on as if all were well.
func TestUnknownSubcommandFails(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"chekc"}, {"chekc", "--to", "http://oz"}, {"Check"}, {"check-all"}, {"check", "extra"}, {"explain", "a", "b"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			got := runCaddy(t, "", nil, append([]string{"oz-instant"}, args...)...)
			if got.Exit != 1 || got.Err == "" {
				t.Errorf("exit %d, said %q %q", got.Exit, got.Out, got.Err)
			}
		})
	}
}

// checkConfig runs check on a Caddyfile.
func checkConfig(t testing.TB, caddyfile string, args ...string) command {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Caddyfile")
	check(t, os.WriteFile(file, []byte(caddyfile), 0o600))
	return runCaddy(t, "", nil, append([]string{"oz-instant", "check", "--config", file}, args...)...)
}

// TestCheckPassesNothingItCannotJudge promises that what depends on a request, of which there is none when a config is checked, is
// said to be unknown and keeps the exit code from being 0: live, Oz refuses what was never looked at.
func TestCheckPassesNothingItCannotJudge(t *testing.T) {
	t.Parallel()
	strict := startSandbox(t, sandbox.Options{AllowedHosts: []string{"127.0.0.1"}})
	for name, test := range map[string]struct{ site, say string }{
		"a Host of the request": {"oz_instant " + strict.URL + " {\n header_up Host {host}\n}", "{host}"},
		"an upstream of it":     {"vars oz 127.0.0.1:1\n oz_instant {vars.oz}", "{vars.oz}"},
		"its port":              {"oz_instant 127.0.0.1:{query.port}", "{query.port}"},
		"a TLS name of it":      {"oz_instant https://" + strict.Addr + " {\n transport http {\n  tls_server_name {host}\n }\n}", "{host}"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			site := ":80 {\n " + test.site + "\n}\n"
			got := checkConfig(t, site)
			if got.Exit == 0 {
				t.Errorf("exit 0\n%s", got.Out)
			}
			say := strings.NewReplacer("{", "", "}", "").Replace(test.say)
			if !strings.Contains(got.Out+got.Err, say) && !strings.Contains(got.Out+got.Err, "laceholder") {
				t.Errorf("it does not say what it cannot judge:\n%s%s", got.Out, got.Err)
			}
		})
	}
	t.Run("what does not depend on one", func(t *testing.T) {
		t.Parallel()
		if got := checkConfig(t, ":80 {\n oz_instant "+strict.URL+" {\n  header_up Host 127.0.0.1\n  header_up X-Env {env.HOME}\n }\n}\n"); got.Exit != 0 {
			t.Errorf("exit %d\n%s%s", got.Exit, got.Out, got.Err)
		}
	})
}

// TestCheckTriesTokensAcrossUpstreams promises to find instances that do not share their keys: a token of one must be good at
// the others, as nobody knows which of them gets the capsule.
func TestCheckTriesTokensAcrossUpstreams(t *testing.T) {
	t.Parallel()
	keys := keysDir(t)
	one, two, stranger := startSandbox(t, sandbox.Options{KeysDir: keys}), startSandbox(t, sandbox.Options{KeysDir: keys}), startSandbox(t, sandbox.Options{})
	config := func(oz ...*ozServer) string {
		var list []string
		for _, o := range oz {
			list = append(list, o.URL)
		}
		return ":80 {\n oz_instant " + strings.Join(list, " ") + "\n}\n"
	}
	if got := checkConfig(t, config(one, two)); got.Exit != 0 {
		t.Errorf("two with the same keys: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
	for name, site := range map[string]string{"the second": config(one, stranger), "the first": config(stranger, one), "the third": config(one, two, stranger)} {
		got := checkConfig(t, site)
		if got.Exit == 0 || !strings.Contains(strings.ToLower(got.Out), "key") {
			t.Errorf("%s is a stranger: exit %d\n%s%s", name, got.Exit, got.Out, got.Err)
		}
	}
	if got := checkConfig(t, ":80 {\n oz_instant /a "+one.URL+"\n oz_instant /b "+stranger.URL+"\n}\n"); got.Exit != 0 {
		t.Errorf("two blocks have nothing to do with each other: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
}

// TestCheckSpeaksAsItGoes promises a line as each step ends: with a slow Oz, nobody wants to look at nothing.
func TestCheckSpeaksAsItGoes(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{})
	oz.fault(t, "hang@token")
	cmd := exec.CommandContext(t.Context(), caddyBinary, "oz-instant", "check", "--to", oz.URL, "--timeout", "5m")
	home := t.TempDir()
	cmd.Env = []string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home}
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	t.Cleanup(func() { cmd.Wait() })
	t.Cleanup(func() { cmd.Process.Kill() })
	oz.awaitOn(t, sandbox.OnToken)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	seen := func(want string) {
		t.Helper()
		timeout := time.After(patience)
		for {
			select {
			case line, more := <-lines:
				if strings.Contains(line, want) {
					return
				}
				if !more {
					t.Fatalf("%s never came", want)
				}
			case <-timeout:
				t.Fatalf("no line says %q while Oz takes its time", want)
			}
		}
	}
	seen("configuration")
	seen("connection")
	oz.fault(t, "")
	for range lines { // to the end
	}
}

// awaitOn returns when Oz has got a request of this kind.
func (o *ozServer) awaitOn(t testing.TB, route string) {
	t.Helper()
	for start := time.Now(); len(o.RequestsOn(route)) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatal("Oz was not asked")
		}
	}
}

// TestCheckSpeaksOfADeadOz promises the same where nobody answers at all: what is known comes before the rest is waited for, and the
// JSON report stays one document.
func TestCheckSpeaksOfADeadOz(t *testing.T) {
	t.Parallel()
	dead := httptest.NewServer(nil)
	dead.Close()
	got := runCaddy(t, "", nil, "oz-instant", "check", "--to", dead.URL, "--timeout", "1s")
	if got.Exit == 0 || !strings.Contains(got.Out, "connection") {
		t.Errorf("exit %d\n%s", got.Exit, got.Out)
	}
	got = runCaddy(t, "", nil, "oz-instant", "check", "--to", dead.URL, "--timeout", "1s", "--json")
	if got.Exit == 0 || !gjson.Valid(got.Out) {
		t.Errorf("exit %d\n%s", got.Exit, got.Out)
	}
}
