package integration_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// command is a run of the Caddy under test as a command.
type command struct {
	Out, Err string
	Exit     int
}

// runCaddy runs a command of the Caddy under test, with nothing of this machine's environment but what env adds.
func runCaddy(t testing.TB, stdin string, env []string, args ...string) command {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), caddyBinary, args...)
	home := t.TempDir()
	cmd.Dir, cmd.Stdin = home, strings.NewReader(stdin)
	cmd.Env = append([]string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home, "GOGC=" + os.Getenv("GOGC")}, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return command{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// states are the checks of one upstream that a JSON report names, each with its state.
func states(t testing.TB, out string, upstream int) map[string]string {
	t.Helper()
	if !gjson.Valid(out) {
		t.Fatalf("not JSON: %s", out)
	}
	found := map[string]string{}
	for _, c := range gjson.Parse(out).Get("upstreams").Array()[upstream].Get("checks").Array() {
		found[c.Get("check").Str] = c.Get("state").Str
		if state := c.Get("state").Str; (state == "failed" || state == "unknown") && c.Get("advice").Str == "" {
			t.Errorf("no advice: %s", c)
		}
	}
	return found
}

// TestCheckAllIsWell promises a table without a complaint and exit code 0 where all is well.
func TestCheckAllIsWell(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{})
	file := filepath.Join(t.TempDir(), "capsule.bin")
	check(t, os.WriteFile(file, oz.Capsule(sandbox.CapsuleSpec{}), 0o600))
	got := runCaddy(t, "", nil, "oz-instant", "check", "--to", oz.URL, "--capsule", file)
	if got.Exit != 0 || strings.Contains(got.Out, "FAILED") || strings.Contains(got.Err, "Error") {
		t.Errorf("exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
	if line := missing(oz.URL+"\nok  configuration\nok  connection\nok  session token … JWT, ES384, good for 900 s\nok  shared keys … one key\n"+
		"ok  empty capsule … 13\nok  garbage capsule … 14\nok  capsule … SUCCESS", got.Out); line != "" {
		t.Errorf("%q is not in\n%s", line, got.Out)
	}
	// The capsule is spent now, and that is not well.
	got = runCaddy(t, "", nil, "oz-instant", "check", "--to", oz.URL, "--capsule", file, "--json")
	if s := states(t, got.Out, 0); got.Exit == 0 || s["capsule"] != "failed" || s["garbage capsule"] != "ok" {
		t.Errorf("exit %d, %v", got.Exit, s)
	}
}

// TestCheckPrintsAsItGoes promises a line as each step ends, so that an Oz that hangs can be watched.
func TestCheckPrintsAsItGoes(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{Fault: sandbox.MustFault("hang@token")})
	cmd := exec.CommandContext(t.Context(), caddyBinary, "oz-instant", "check", "--to", oz.URL, "--timeout", "10m")
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "ok  connection") {
		// The next step never ends.
	}
	if !strings.Contains(lines.Text(), "ok  connection") {
		t.Errorf("no line for the connection while the next step hangs: %v", lines.Err())
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
}

// TestCommandMistakes promises an error and exit code 1 for a command that does not exist: a script must not go on.
func TestCommandMistakes(t *testing.T) {
	t.Parallel()
	got := runCaddy(t, "", nil, "oz-instant", "chekc")
	if got.Exit != 1 || !strings.Contains(got.Err, `unknown command "chekc"`) {
		t.Errorf("exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
	if got := runCaddy(t, "", nil, "oz-instant"); got.Exit != 0 || !strings.Contains(got.Out, "explain") {
		t.Errorf("without a command: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
}

// TestCheckFindsFaults promises, for each thing that can be wrong with an Oz, the right line with what to do about it, and an exit
// code that is not 0.
func TestCheckFindsFaults(t *testing.T) {
	t.Parallel()
	const token, empty, garbage = "session token", "empty capsule", "garbage capsule"
	sideBySide(t, map[string][]string{
		"status:401@all":            {token, empty, garbage},
		"status:500@token":          {token},
		"html:200@token":            {token},
		"hang@token":                {token},
		"field:session_token@token": {token},
		"status:503@folders":        {empty, garbage},
		"status:413@folders":        {empty, garbage},
		"status:502@folders":        {empty, garbage},
		"html:400@folders":          {empty, garbage},
		"oz-error:14@folders":       {empty},
		"oz-error:13@folders":       {garbage},
		"folder:201@folders":        {empty, garbage},
		"reset@all":                 {token, empty, garbage},
		"close@all":                 {token, empty, garbage},
		"hang@all":                  {token, empty, garbage},
		"gzip@all":                  {token, empty, garbage},
	}, func(t *testing.T, fault string, red []string) {
		oz := startSandbox(t, sandbox.Options{Fault: sandbox.MustFault(fault)})
		timeout := "1m" // for what works, on a busy machine
		switch fault {
		case "hang@token":
			timeout = "6s"
		case "hang@all": // for each of three steps
			timeout = "2s"
		}
		got := runCaddy(t, "", nil, "oz-instant", "check", "--to", oz.URL, "--timeout", timeout, "--json")
		if got.Exit == 0 || gjson.Get(got.Out, "well").Bool() {
			t.Errorf("exit %d\n%s", got.Exit, got.Out)
		}
		s := states(t, got.Out, 0)
		for _, name := range []string{token, empty, garbage} {
			want := "ok"
			for _, r := range red {
				if r == name {
					want = "failed"
				}
			}
			if s[name] != want {
				t.Errorf("%s is %s, want %s\n%s", name, s[name], want, got.Out)
			}
		}
	})
}

// TestCheckTheWay promises the right line for what is wrong before Oz is reached.
func TestCheckTheWay(t *testing.T) {
	t.Parallel()
	untrusted := httptest.NewTLSServer(nil)
	t.Cleanup(untrusted.Close)
	plain := startSandbox(t, sandbox.Options{})
	for name, test := range map[string]struct{ to, red string }{
		"no such name":    {"http://oz.invalid", "name"},
		"nobody there":    {"http://" + deadAddress(t), "connection"},
		"not trusted":     {untrusted.URL, "TLS"},
		"no TLS there":    {"https://" + plain.Addr, "TLS"},
		"base path wrong": {plain.URL + "/elsewhere", "session token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := runCaddy(t, "", nil, "oz-instant", "check", "--to", test.to, "--timeout", "5s", "--json")
			s := states(t, got.Out, 0)
			if got.Exit == 0 || s[test.red] != "failed" {
				t.Errorf("exit %d, %v", got.Exit, s)
			}
			if test.red != "session token" && s["session token"] != "skipped" {
				t.Errorf("after %s the rest was tried: %v", test.red, s)
			}
		})
	}
	for name, args := range map[string][]string{
		"no target": {}, "no URL": {"--to", "oz.internal"}, "both": {"--to", plain.URL, "--config", "Caddyfile"},
		"no file": {"--to", plain.URL, "--capsule", "/not/there"}, "no config": {"--config", "/not/there"}, "no password": {"--to", plain.URL, "--email", "a@b"},
	} {
		got := runCaddy(t, "", nil, append([]string{"oz-instant", "check"}, args...)...)
		if got.Exit == 0 || got.Err == "" {
			t.Errorf("%s: exit %d, %s%s", name, got.Exit, got.Out, got.Err)
		}
	}
}

// TestCheckTextfile promises metrics of every upstream in a file, also of one that fails, and no file under a name that
// node_exporter would not read.
func TestCheckTextfile(t *testing.T) {
	t.Parallel()
	oz, folder := startSandbox(t, sandbox.Options{}), t.TempDir()
	for to, passed := range map[string]string{oz.URL: "1", "http://" + deadAddress(t): "0"} {
		file := filepath.Join(folder, passed+".prom")
		got := runCaddy(t, "", nil, "oz-instant", "check", "--to", to, "--textfile", file)
		text, err := os.ReadFile(file)
		if err != nil || (got.Exit == 0) != (passed == "1") || !strings.Contains(string(text), `oz_instant_check_passed{upstream="`+to+`"} `+passed+"\n") {
			t.Errorf("exit %d, %v\n%s%s", got.Exit, err, text, got.Err)
		}
	}
	file := filepath.Join(folder, "oz.txt")
	got := runCaddy(t, "", nil, "oz-instant", "check", "--to", oz.URL, "--textfile", file)
	if _, err := os.Stat(file); got.Exit == 0 || !strings.Contains(got.Err, ".prom") || err == nil {
		t.Errorf("exit %d, %v\n%s", got.Exit, err, got.Err)
	}
}

// TestCheckAccess promises that access tokens and accounts are used as the gateway would, and are in no output.
func TestCheckAccess(t *testing.T) {
	t.Parallel()
	env := []string{"TOKEN=canary-access-token", "EMAIL=" + email, "PASSWORD=" + password}
	withToken := startSandbox(t, sandbox.Options{AccessToken: "canary-access-token"})
	account := startSandbox(t, accountOptions())
	for name, test := range map[string]struct {
		args []string
		exit bool
	}{
		"token":              {[]string{"--to", withToken.URL, "--access-token", "{env.TOKEN}"}, true},
		"no token":           {[]string{"--to", withToken.URL}, false},
		"wrong token":        {[]string{"--to", withToken.URL, "--access-token", "{env.PASSWORD}"}, false},
		"no such variable":   {[]string{"--to", withToken.URL, "--access-token", "{env.NOT_SET}"}, false},
		"account":            {[]string{"--to", account.URL, "--email", "{env.EMAIL}", "--password", "{env.PASSWORD}"}, true},
		"wrong password":     {[]string{"--to", account.URL, "--email", "{env.EMAIL}", "--password", "{env.TOKEN}"}, false},
		"account not needed": {[]string{"--to", withToken.URL, "--email", "{env.EMAIL}", "--password", "{env.PASSWORD}"}, false},
	} {
		got := runCaddy(t, "", env, append([]string{"oz-instant", "check", "--json"}, test.args...)...)
		if (got.Exit == 0) != test.exit || strings.Contains(got.Out+got.Err, "canary") {
			t.Errorf("%s: exit %d\n%s%s", name, got.Exit, got.Out, got.Err)
		}
		if name == "account" && states(t, got.Out, 0)["log-in"] != "ok" {
			t.Errorf("no log-in in %s", got.Out)
		}
		if name == "wrong password" {
			if s := states(t, got.Out, 0); s["log-in"] != "failed" || s["session token"] != "skipped" {
				t.Errorf("%v", s)
			}
		}
	}
}

// TestCheckConfig promises that each upstream of each block of a configuration is checked by itself, in the way that the block
// reaches it: with its token, its base path and its certificates.
func TestCheckConfig(t *testing.T) {
	t.Parallel()
	good := startSandbox(t, sandbox.Options{AccessToken: "a-token", BasePath: "/oz"})
	sick := startSandbox(t, sandbox.Options{AccessToken: "a-token", BasePath: "/oz", Fault: sandbox.MustFault("status:500@token")})
	sb, err := sandbox.New(sandbox.Options{})
	check(t, err)
	cert := testCert(t)
	overTLS := httptest.NewUnstartedServer(sb)
	overTLS.TLS = cert.serverConfig()
	overTLS.StartTLS()
	t.Cleanup(overTLS.Close)
	config := filepath.Join(t.TempDir(), "Caddyfile")
	check(t, os.WriteFile(config, []byte(`
app.example.com {
	oz_instant /verify `+good.URL+` `+sick.URL+` {
		base_path /oz
		access_token {env.TOKEN}
		health_uri /api/version
		lb_policy first
	}
	reverse_proxy app:3000
}
other.example.com {
	handle /sub/* {
		oz_instant `+overTLS.URL+` {
			transport http {
				tls_trust_pool file `+cert.certFile+`
			}
		}
	}
}
`), 0o600))
	got := runCaddy(t, "", []string{"TOKEN=a-token"}, "oz-instant", "check", "--config", config, "--json")
	if n := len(gjson.Get(got.Out, "upstreams").Array()); n != 3 || got.Exit == 0 {
		t.Fatalf("exit %d, %d upstreams\n%s%s", got.Exit, n, got.Out, got.Err)
	}
	// The order of sites in a configuration is not that of the file.
	byName := map[string]map[string]string{}
	for i, u := range gjson.Get(got.Out, "upstreams").Array() {
		byName[u.Get("to").Str] = states(t, got.Out, i)
	}
	if s := byName[good.Addr]; s["session token"] != "ok" || s["garbage capsule"] != "ok" {
		t.Errorf("the good one: %v", s)
	}
	if s := byName[sick.Addr]; s["session token"] != "failed" || s["garbage capsule"] != "ok" {
		t.Errorf("the sick one: %v", s)
	}
	if s := byName[overTLS.Listener.Addr().String()]; s["TLS"] != "ok" || s["session token"] != "ok" {
		t.Errorf("the one with TLS: %v\n%s", s, got.Out)
	}
	got = runCaddy(t, "", nil, "oz-instant", "check", "--config", config, "--json")
	if s := states(t, got.Out, 0); got.Exit == 0 || s["session token"] == "ok" && s["configuration"] == "ok" && len(byName) != 3 {
		t.Errorf("without the environment: exit %d, %v", got.Exit, s)
	}
}

// TestCheckUnknown promises that what has a value only in a user's request is neither passed nor failed, and that what needs no request is
// no obstacle.
func TestCheckUnknown(t *testing.T) {
	t.Parallel()
	oz := startSandbox(t, sandbox.Options{})
	for name, test := range map[string]struct {
		upstream, option string
		exit             int
		states           map[string]string
	}{
		"host":       {oz.URL, "header_up Host {host}", 1, map[string]string{"placeholders": "unknown", "session token": "ok", "garbage capsule": "ok"}},
		"upstream":   {"{vars.oz}", "", 1, map[string]string{"placeholders": "unknown", "session token": "skipped", "garbage capsule": "skipped"}},
		"no request": {"{env.OZ}", "header_up X-A {env.OZ}{system.os}{time.now.unix}{http.reverse_proxy.upstream.hostport}", 0, map[string]string{"placeholders": "", "session token": "ok"}},
	} {
		config := filepath.Join(t.TempDir(), "Caddyfile")
		check(t, os.WriteFile(config, []byte(":80 {\n\toz_instant /verify "+test.upstream+" {\n\t\t"+test.option+"\n\t}\n}\n"), 0o600))
		got := runCaddy(t, "", []string{"OZ=" + oz.Addr}, "oz-instant", "check", "--config", config, "--json")
		if got.Exit != test.exit || gjson.Get(got.Out, "well").Bool() != (test.exit == 0) {
			t.Errorf("%s: exit %d\n%s%s", name, got.Exit, got.Out, got.Err)
			continue
		}
		s := states(t, got.Out, 0)
		for step, want := range test.states {
			if s[step] != want {
				t.Errorf("%s: %s is %q, want %q", name, step, s[step], want)
			}
		}
	}
}

// TestCheckSharedKeys promises that upstreams of one block which refuse each other's capsules are found, though each of them is well by
// itself, and that a capsule is sent to one of them only.
func TestCheckSharedKeys(t *testing.T) {
	t.Parallel()
	keys := sandbox.Options{KeysDir: keysDir(t)}
	shared := []*ozServer{startSandbox(t, keys), startSandbox(t, keys)}
	foreign := startSandbox(t, sandbox.Options{})
	for name, test := range map[string]struct {
		other string
		state string
	}{"shared": {shared[1].URL, "ok"}, "foreign": {foreign.URL, "failed"}} {
		dir := t.TempDir()
		config, capsule := filepath.Join(dir, "Caddyfile"), filepath.Join(dir, "capsule.bin")
		check(t, os.WriteFile(config, []byte(":80 {\n\toz_instant /verify "+shared[0].URL+" "+test.other+"\n}\n"), 0o600))
		check(t, os.WriteFile(capsule, shared[0].Capsule(sandbox.CapsuleSpec{}), 0o600))
		got := runCaddy(t, "", nil, "oz-instant", "check", "--config", config, "--capsule", capsule, "--json")
		first, second := states(t, got.Out, 0), states(t, got.Out, 1)
		if (got.Exit == 0) != (test.state == "ok") || first["shared keys"] != "ok" || second["shared keys"] != test.state {
			t.Errorf("%s: exit %d, %v, %v\n%s", name, got.Exit, first, second, got.Out)
		}
		if first["capsule"] != "ok" || second["capsule"] != "skipped" || second["session token"] != "ok" || second["garbage capsule"] != "ok" {
			t.Errorf("%s: %v, %v\n%s", name, first, second, got.Out)
		}
	}
}

// TestExplain promises to say of a saved answer what an exchange would make of it.
func TestExplain(t *testing.T) {
	t.Parallel()
	folder := func(system string) string {
		return `{"folder_id":"f-1","resolution_status":"FINISHED","system_resolution":"` + system + `","media":[1],"analyses":[{"type":"QUALITY","state":"FINISHED",` +
			`"resolution_status":"SUCCESS","results_media":[{"output_images":[{"image_b64":"` + strings.Repeat("QUJD", 50_000) + `"}]}]}]}`
	}
	config := filepath.Join(t.TempDir(), "Caddyfile")
	check(t, os.WriteFile(config, []byte(`:80 {
	oz_instant /verify http://oz {
		strip media
		analyses biometry
		pass UNAVAILABLE
		require meta_data.transaction_id {cookie.t}
	}
}`), 0o600))
	for name, test := range map[string]struct {
		doc   string
		args  []string
		wants string
		never string
	}{
		"success":  {folder("SUCCESS"), nil, "decision   SUCCESS\ncut        195 KiB\nthe app would get:\nX-Oz-Decision: SUCCESS\nX-Oz-Folder-Id: f-1\n\"media\"", "image_b64"},
		"declined": {folder("DECLINED"), nil, "decision   DECLINED\nX-Oz-Decision: DECLINED", "X-Oz-Decision: SUCCESS"},
		"config":   {folder("SUCCESS"), []string{"--config", config}, "decision   FAILED\nreason     analysis_missing\nnot checked: require meta_data.transaction_id\nthe app would get:", `"media"`},
		"invalid":  {`{"error_code":14,"error_message":"Invalid request data"}`, []string{"--status", "400"}, "decision   INVALID\nreason     container\nthe client would get 400:\n\"error_code\":14", "the app"},
		"cut":      {folder("SUCCESS")[:1000], nil, "decision   UNAVAILABLE\nreason     malformed_answer\nerror\nthe client would get 502:", "the app would"},
		"passed":   {`nonsense`, []string{"--config", config}, "decision   UNAVAILABLE\nthe app would get:\nX-Oz-Decision: UNAVAILABLE", "SUCCESS"},
		"doubled":  {strings.Replace(folder("DECLINED"), `"media"`, `"system_resolution":"SUCCESS","media"`, 1), nil, "decision   UNAVAILABLE\nreason     malformed_answer", "X-Oz"},
	} {
		got := runCaddy(t, test.doc, nil, append([]string{"oz-instant", "explain", "-"}, test.args...)...)
		if line := missing(test.wants, got.Out); got.Exit != 0 || line != "" || strings.Contains(got.Out, test.never) {
			t.Errorf("%s: exit %d, %q is missing, or %q is there:\n%s%s", name, got.Exit, line, test.never, got.Out, got.Err)
		}
	}
	if got := runCaddy(t, "", nil, "oz-instant", "explain", "/not/there"); got.Exit == 0 {
		t.Errorf("without a file: %s", got.Out)
	}
	got := runCaddy(t, folder("SUCCESS"), nil, "oz-instant", "explain", "-", "--json", "--config", config)
	block := gjson.Get(got.Out, "blocks.0")
	if got.Exit != 0 || !gjson.Valid(got.Out) || block.Get("decision").Str != "FAILED" || block.Get("reason").Str != "analysis_missing" || block.Get("cut_bytes").Int() < 200_000 ||
		block.Get("app.header.X-Oz-Reason").Str != "analysis_missing" || block.Get("app.body.folder_id").Str != "f-1" || block.Get("app.body.media").Exists() {
		t.Errorf("exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
	got = runCaddy(t, `{"error_code":14}`, nil, "oz-instant", "explain", "-", "--json", "--status", "400")
	if block := gjson.Get(got.Out, "blocks.0"); got.Exit != 0 || block.Get("client.status").Int() != 400 || block.Get("client.problem.error_code").Int() != 14 || block.Get("app").Exists() {
		t.Errorf("exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
}

// A report for machines is one JSON document, whatever is wrong.
func TestCheckJSON(t *testing.T) {
	t.Parallel()
	got := runCaddy(t, "", nil, "oz-instant", "check", "--to", "http://"+deadAddress(t), "--json")
	dec := json.NewDecoder(strings.NewReader(got.Out))
	var report struct {
		Well      bool
		Upstreams []struct{ To string }
	}
	if err := dec.Decode(&report); err != nil || dec.More() || report.Well || len(report.Upstreams) != 1 {
		t.Errorf("%v, %+v\n%s", err, report, got.Out)
	}
}
