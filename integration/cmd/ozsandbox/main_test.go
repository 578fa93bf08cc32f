package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// execute runs a command line in this process.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	return cmd.ExecuteContext(ctx)
}

// running is ozsandbox run in this process.
type running struct{ oz, app string }

var address = regexp.MustCompile(`http://[0-9.:]+`)

// startRun runs it on free ports until the test ends, and makes sure that it then stops.
func startRun(t *testing.T, args ...string) running {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	out, stdout := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := execute(ctx, append([]string{"run", "--oz", "127.0.0.1:0", "--app", "127.0.0.1:0", "--quiet"}, args...), stdout, io.Discard)
		stdout.CloseWithError(io.EOF)
		ended <- err
	}()
	lines := bufio.NewScanner(out)
	next := func() string {
		if !lines.Scan() {
			t.Fatalf("it ended: %v", <-ended)
		}
		return address.FindString(lines.Text())
	}
	r := running{oz: next(), app: next()}
	go io.Copy(io.Discard, out)
	t.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("stopped with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("does not stop")
		}
	})
	return r
}

func post(t *testing.T, url string, body []byte) (int, string) {
	t.Helper()
	resp, err := http.Post(url, "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// makeCapsule runs ozsandbox capsule.
func makeCapsule(t *testing.T, r running, args ...string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "capsule.bin")
	var stdout bytes.Buffer
	args = append([]string{"capsule", "--oz", r.oz, "--size", "10KiB", "-o", file}, args...)
	if err := execute(t.Context(), args, &stdout, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stdout.String(), "curl -i --data-binary @"+file) || strings.Contains(stdout.String(), "eyJ") {
		t.Errorf("%s", &stdout)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestCapsulesForARunningSandbox(t *testing.T) {
	r := startRun(t, "--analysis-time", "0s", "--best-shot-size", "8KiB")
	for _, outcome := range sandbox.Outcomes() {
		status, answer := post(t, r.oz+sandbox.FoldersPath, makeCapsule(t, r, "--outcome", outcome, "--meta", "transaction_id=t-1"))
		if status != 201 || !strings.Contains(answer, `"system_resolution": "`+outcome+`"`) || !strings.Contains(answer, `"transaction_id": "t-1"`) {
			t.Errorf("%s: %d %.200s", outcome, status, answer)
		}
	}
	for damage, code := range sandbox.Damages() {
		if damage == sandbox.DamageExpired {
			continue // no running sandbox gives expired tokens
		}
		status, answer := post(t, r.oz+sandbox.FoldersPath, makeCapsule(t, r, "--damage", string(damage)))
		var e struct {
			Code int `json:"error_code"`
		}
		if err := json.Unmarshal([]byte(answer), &e); err != nil || status != 400 || e.Code != code {
			t.Errorf("%s: %d %s %v", damage, status, answer, err)
		}
	}
}

func TestCapsuleToStandardOutput(t *testing.T) {
	var stdout bytes.Buffer
	err := execute(t.Context(), []string{"capsule", "--token", "t", "--size", "1k", "-o", "-"}, &stdout, io.Discard)
	if err != nil || !strings.HasPrefix(stdout.String(), "OZSANDB1") || stdout.Len() < 1024 {
		t.Errorf("%v, %d bytes", err, stdout.Len())
	}
}

func TestDemoApp(t *testing.T) {
	r := startRun(t, "--analysis-time", "0s", "--best-shot-size", "0")
	for outcome, want := range map[string]string{"SUCCESS": `"SUCCESS"`, "DECLINED": `"DECLINED"`, "damaged": `"error_code": 5`, "empty": `"error_code": 13`} {
		resp, err := http.Get(r.app + "/demo/capsule?outcome=" + outcome)
		if err != nil {
			t.Fatal(err)
		}
		capsule, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %d %v", outcome, resp.StatusCode, err)
		}
		if _, answer := post(t, r.oz+sandbox.FoldersPath, capsule); !strings.Contains(answer, want) {
			t.Errorf("%s: %.200s", outcome, answer)
		}
		// Straight to the app, past the gateway: nothing was decided.
		if status, answer := post(t, r.app+"/verify", capsule); status != 401 || !strings.Contains(answer, "not decided") {
			t.Errorf("%s: %d %s", outcome, status, answer)
		}
	}
	resp, err := http.Get(r.app + "/demo/capsule?outcome=MAYBE")
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != 400 {
		t.Errorf("unknown outcome: %d", resp.StatusCode)
	}
}

// postScene has the demo app make a capsule, as its page does.
func postScene(t *testing.T, r running, scene, clip string) (status int, capsule []byte) {
	t.Helper()
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	if err := errors.Join(form.WriteField("scene", scene), form.WriteField("clip", clip), form.Close()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(r.app+"/demo/capsule", form.FormDataContentType(), &body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	capsule, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, capsule
}

func TestDemoAppMakesCapsulesOfClips(t *testing.T) {
	r := startRun(t, "--analysis-time", "0s", "--best-shot-size", "0")
	status, capsule := postScene(t, r, `{"outcome":"DECLINED","transaction":"t-1","padding":5}`, "a film")
	if status != 200 || !bytes.Contains(capsule, []byte("a film\x00\x00\x00\x00\x00")) {
		t.Fatalf("%d, %d bytes", status, len(capsule))
	}
	if _, answer := post(t, r.oz+sandbox.FoldersPath, capsule); !strings.Contains(answer, `"DECLINED"`) || !strings.Contains(answer, `"transaction_id": "t-1"`) {
		t.Errorf("%.300s", answer)
	}
	_, capsule = postScene(t, r, `{"outcome":"SUCCESS","fault":"status:500"}`, "a film")
	if status, answer := post(t, r.oz+sandbox.FoldersPath, capsule); status != 500 {
		t.Errorf("with a fault: %d %.200s", status, answer)
	}
	_, token := getFrom(t, r.oz+sandbox.TokenPath, "") // a fresh one, which must not make an expired capsule a good one
	_, capsule = postScene(t, r, `{"outcome":"expired",`+strings.TrimPrefix(strings.TrimSpace(string(token)), "{"), "a film")
	if _, answer := post(t, r.oz+sandbox.FoldersPath, capsule); !strings.Contains(answer, `"error_code": 14`) {
		t.Errorf("expired: %.200s", answer)
	}
	for _, scene := range []string{`{"outcome":"MAYBE"}`, `{"fault":"no-such"}`, `{"fault":"close"}`} {
		if status, answer := postScene(t, r, scene, ""); status != 400 {
			t.Errorf("%s: %d %.200s", scene, status, answer)
		}
	}
}

func TestDemoAppKnowsTheGateway(t *testing.T) {
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"ready":true}`) }))
	defer gateway.Close()
	r := startRun(t, "--site", gateway.URL, "--admin", gateway.URL)
	for path, want := range map[string]string{"/": " data-flood data-live>", "/demo/status": `"ready": true`, "/demo/flood": `"running": false`} {
		if status, body := getFrom(t, r.app+path, ""); status != 200 || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d %.300s", path, status, body)
		}
	}
	for _, flag := range []string{"--site", "--admin"} {
		for _, address := range []string{"localhost:8080", "off", "unix//run/caddy", "http://", "http://a b"} {
			if _, err := read(flag, address); err == nil || !strings.Contains(err.Error(), flag) {
				t.Errorf("%s %s: %v", flag, address, err)
			}
		}
	}
}

func TestFlagsReachTheSandbox(t *testing.T) {
	r := startRun(t, "--analysis-time", "0s", "--fault", "status:503,retry-after=9@token*1", "--single-use=false", "--base-path", "/oz", "--access-token", "secret")
	r.oz = strings.TrimSuffix(r.oz, "/") + "/oz"
	ask := func() (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), "GET", r.oz+sandbox.TokenPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forensic-Access-Token", "secret")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Retry-After")
	}
	if status, after := ask(); status != 503 || after != "9" {
		t.Errorf("fault: %d %s", status, after)
	}
	if status, _ := ask(); status != 200 {
		t.Errorf("after it: %d", status)
	}
	c := makeCapsule(t, r, "--access-token", "secret")
	if status, answer := post(t, r.oz+sandbox.FoldersPath, c); status != 401 {
		t.Errorf("without the access token: %d %s", status, answer)
	}
}

// getFrom asks the demo app, as the user given.
func getFrom(t *testing.T, url, user string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.AddCookie(&http.Cookie{Name: "user", Value: user})
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

func TestPersons(t *testing.T) {
	r := startRun(t, "--analysis-time", "0s", "--best-shot-size", "8KiB", "--photos", "alice,zoe")
	shows := func(capsule []byte, person string) {
		t.Helper()
		shot := base64.StdEncoding.EncodeToString(sandbox.BestShotOf(person, 8<<10))
		if status, answer := post(t, r.oz+sandbox.FoldersPath, capsule); status != 201 || !strings.Contains(answer, shot) {
			t.Errorf("%d, not the best shot of %q", status, person)
		}
	}
	shows(makeCapsule(t, r, "--person", "alice"), "alice")
	shows(makeCapsule(t, r), "")
	_, capsule := getFrom(t, r.app+"/demo/capsule?outcome=SUCCESS&person=zoe", "")
	shows(capsule, "zoe")

	var photo bytes.Buffer
	if err := execute(t.Context(), []string{"photo", "--person", "zoe", "-o", "-"}, &photo, io.Discard); err != nil {
		t.Fatal(err)
	}
	if status, got := getFrom(t, r.app+"/profile/photo", "zoe"); status != 200 || !bytes.Equal(got, photo.Bytes()) {
		t.Errorf("zoe: %d, %d bytes", status, len(got))
	}
	for user, want := range map[string]int{"alice": 200, "carol": 404, "": 401} {
		if status, _ := getFrom(t, r.app+"/profile/photo", user); status != want {
			t.Errorf("%q: %d", user, status)
		}
	}
}

func TestPhoto(t *testing.T) {
	file := filepath.Join(t.TempDir(), "photo.jpeg")
	var stdout bytes.Buffer
	if err := execute(t.Context(), []string{"photo", "--size", "90", "-o", file}, &stdout, io.Discard); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, sandbox.Portrait("", 90)) || !strings.Contains(stdout.String(), file) {
		t.Errorf("%v, %d bytes, %s", err, len(got), &stdout)
	}
}

func TestAccountsByFlag(t *testing.T) {
	r := startRun(t, "--analysis-time", "0s", "--account", "a@example.com:pass:word", "--account", "b@example.com:x", "--access-token-life", "1h", "--sliding=false",
		"--few-media-fail", "--operator-from", "0.5", "--max-image", "1k")
	for account, want := range map[string]string{"a@example.com:pass:word": "", "b@example.com:x": "", "b@example.com:pass:word": "log-in: ", "": "session token"} {
		args := []string{"capsule", "--oz", r.oz, "--size", "1k", "-o", "-"}
		if account != "" {
			args = append(args, "--account", account)
		}
		var stdout bytes.Buffer
		err := execute(t.Context(), args, &stdout, io.Discard)
		if want == "" && (err != nil || !strings.HasPrefix(stdout.String(), "OZSANDB1")) {
			t.Errorf("%s: %v", account, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", account, err, want)
		}
	}
}

// read parses the flags of run.
func read(args ...string) (s settings, err error) {
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	s.add(flags)
	err = errors.Join(flags.Parse(args), s.check())
	return s, err
}

func TestFlagsBecomeOptions(t *testing.T) {
	args := []string{"--account", "a@example.com:pass:word", "--access-token-life", "1h", "--sliding=false", "--few-media-fail", "--operator-from", "0.5", "--max-image", "1k", "--photos", "zoe"}
	set, err := read(args...)
	o := set.options
	if err != nil || o.Accounts["a@example.com"] != "pass:word" || o.SessionLife != time.Hour || !o.FixedExpiry || !o.FewMediaFail || o.OperatorFrom != 0.5 || o.MaxImage != 1024 {
		t.Errorf("%v %+v", err, o)
	}
	set, err = read()
	o = set.options
	if err != nil || o.Accounts != nil || o.SessionLife != 15*time.Minute || o.FixedExpiry || o.FewMediaFail || o.OperatorFrom != 0 || !slices.Equal(set.photos, []string{"alice", "bob"}) {
		t.Errorf("%v %+v", err, set)
	}
}

// A sandbox takes the word of capsules that anybody can forge.
func TestRefusesAddressesThatOthersCanReach(t *testing.T) {
	for addr, local := range map[string]bool{
		"127.0.0.1:9000": true, "127.9.9.9:1": true, "[::1]:9000": true, "localhost:9000": true,
		":9000": false, "0.0.0.0:9000": false, "[::]:9000": false, "192.168.1.5:9000": false, "example.com:80": false, "localhost.example.com:1": false, "9000": false,
	} {
		if got := loopback(addr); got != local {
			t.Errorf("%s: %t", addr, got)
		}
	}
	for _, args := range [][]string{{"run", "--oz", "0.0.0.0:0"}, {"--app", ":0"}} {
		if err := execute(t.Context(), args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "--allow-remote") {
			t.Errorf("%v: %v", args, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := execute(ctx, []string{"--oz", "0.0.0.0:0", "--app", "", "--allow-remote", "--quiet"}, io.Discard, io.Discard); err != nil && ctx.Err() == nil {
		t.Errorf("with -allow-remote: %v", err)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for want, args := range map[string][]string{
		"unknown command":          {"serve"},
		`unknown command "extra"`:  {"run", "extra"},
		"unknown command \"more\"": {"faults", "more"},
		"no such kind":             {"run", "--fault", "no-such"},
		"unknown flag":             {"run", "--no-such-flag"},
		"overflow":                 {"run", "--overflow", "drop", "--oz", "127.0.0.1:0"},
		"keys":                     {"run", "--keys", t.TempDir(), "--oz", "127.0.0.1:0"},
		"address already in use":   {"run", "--oz", taken.Addr().String(), "--app", ""},
		"issues no expired tokens": {"capsule", "--damage", "expired"},
		"unknown outcome":          {"capsule", "--token", "t", "--outcome", "MAYBE"},
		"unknown damage":           {"capsule", "--token", "t", "--damage", "other"},
		"not between":              {"run", "--operator-from", "0.9", "--oz", "127.0.0.1:0"},
		"pixels":                   {"photo", "--size", "0"},
		"session token":            {"capsule", "--oz", "http://" + taken.Addr().String() + "x"},
	} {
		if err := execute(t.Context(), args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	for want, args := range map[string][]string{"capsule ": {"-h"}, "--oz": {"help", "run"}, "--account email:password": {"run", "-h"}, "--person": {"capsule", "-h"}, "--size": {"photo", "-h"}} {
		var stdout bytes.Buffer
		if err := execute(t.Context(), args, &stdout, io.Discard); err != nil || !strings.Contains(stdout.String(), want) {
			t.Errorf("%v: %v %s", args, err, &stdout)
		}
	}
	for _, account := range []string{"a@example.com", ":x", "a@example.com:"} {
		for _, command := range []string{"run", "capsule"} {
			if err := execute(t.Context(), []string{command, "--account", account}, io.Discard, io.Discard); err == nil {
				t.Errorf("%s accepts %q", command, account)
			}
		}
	}
}

func TestCompletion(t *testing.T) {
	for line, want := range map[string]string{
		"__complete ":                   "photo\t",
		"__complete capsule --outcome ": "DECLINED\n",
		"completion bash":               "__start_ozsandbox",
	} {
		args := strings.Split(line, " ")
		var stdout bytes.Buffer
		if err := execute(t.Context(), args, &stdout, io.Discard); err != nil || !strings.Contains(stdout.String(), want) {
			t.Errorf("%q: no %q in %.200s (%v)", line, want, &stdout, err)
		}
	}
}

func TestFaultsAreListed(t *testing.T) {
	var stdout bytes.Buffer
	if err := execute(t.Context(), []string{"faults"}, &stdout, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, scope := range sandbox.Scopes() {
		if !strings.Contains(stdout.String(), "@"+scope) {
			t.Errorf("@%s is not listed", scope)
		}
	}
	for _, k := range sandbox.Kinds() {
		if !strings.Contains(stdout.String(), "  "+k.Usage+" ") {
			t.Errorf("%s is not listed", k.Usage)
		}
	}
}
