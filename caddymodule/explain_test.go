package caddymodule

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// explained is what `caddy oz-instant explain` says.
func explained(t *testing.T, answer string, args ...string) (string, error) {
	t.Helper()
	cmd := explainCommand()
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetIn(strings.NewReader(answer))
	cmd.SetArgs(append(args, "-"))
	err := cmd.Execute()
	return out.String(), err
}

func TestExplain(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		args         []string
		want, absent []string
	}{
		{
			"SUCCESS", success(), nil,
			[]string{"decision   SUCCESS\n", "cut        ", "the app would get:\n\n", "\nX-Oz-Decision: SUCCESS\n", "\nX-Oz-Folder-Id: folder-1\n", `"folder_id": "folder-1"`},
			[]string{"reason", "image_b64", "the client would get"},
		},
		{
			"FAILED", testFolder("FINISHED", "SUCCESS", "DECLINED", ""), nil,
			[]string{"decision   FAILED\n", "reason     analysis_missing\n", "\nX-Oz-Reason: analysis_missing\n"}, nil,
		},
		{
			"INVALID", `{"error_code": 13, "error_message": "empty"}`, []string{"--status", "400"},
			[]string{"decision   INVALID\n", "reason     container\n", "the client would get 400:", `"error_code":13`}, []string{"the app would get"},
		},
		{
			"cut", success()[:100], nil,
			[]string{"decision   UNAVAILABLE\n", "reason     malformed_answer\n", "because    ", "the client would get 502:"}, []string{"the app would get"},
		},
		{
			"HTML", "<html>", []string{"--status", "502"},
			[]string{"decision   UNAVAILABLE\n", "reason     unexpected_status\n", "the client would get 502:"}, nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := explained(t, test.answer, test.args...)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range test.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in\n%s", want, got)
				}
			}
			for _, absent := range test.absent {
				if strings.Contains(got, absent) {
					t.Errorf("%q is in\n%s", absent, got)
				}
			}
		})
	}
}

// Each block of a configuration explains the answer as it would take it, in the
// same order each time.
func TestExplainByConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "caddy.json")
	const config = `{"apps": {"http": {"servers": {
		"a": {"routes": [{"handle": [{"handler": "oz_instant", "best_shot": "attach"}]}]},
		"b": {"routes": [{"handle": [{"handler": "subroute", "routes": [{"handle": [{"handler": "oz_instant", "best_shot": "keep", "pass": ["UNAVAILABLE"], "client_gone": "cancel",
			"require": [{"path": "meta_data.transaction_id", "value": "{http.request.cookie.order}"}]}]}]}]}]},
		"c": {"routes": [{"handle": [{"handler": "oz_instant", "strip": ["media"], "biometry": {"reference": "/photo"}}]}]}}}}}`
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	// Standard input can be read once: the answer is in a file.
	answer := filepath.Join(t.TempDir(), "answer.json")
	if err := os.WriteFile(answer, []byte(success()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := explainCommand()
	var out strings.Builder
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--config", file, answer})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(out.String(), "decision   ")[1:]
	if len(blocks) != 3 {
		t.Fatalf("%d blocks:\n%s", len(blocks), out.String())
	}
	for i, want := range [][]string{
		{"(1 parts best_shot)", "X-Oz-Best-Shot: attached"},
		{testShot, "not looked at: require meta_data.transaction_id {http.request.cookie.order}\n"},
		{"not looked at: face matching", `{"liveness":`, `"biometry":null}`},
	} {
		for _, words := range want {
			if !strings.Contains(blocks[i], words) {
				t.Errorf("block %d: no %q in\n%s", i, words, blocks[i])
			}
		}
	}
	if strings.Contains(blocks[2], "private.mp4") {
		t.Errorf("media was not stripped:\n%s", blocks[2])
	}
}

func TestExplainMistakes(t *testing.T) {
	dir := t.TempDir()
	unloadable := filepath.Join(dir, "unloadable.json")
	if err := os.WriteFile(unloadable, []byte(`{"handler": "oz_instant", "best_shot": "striip"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := explained(t, success(), "--config", unloadable); err == nil || !strings.Contains(err.Error(), `unloadable.json: oz_instant: best_shot: "striip"`) {
		t.Errorf("%v", err)
	}
	if _, err := checked(t, "--config", unloadable); err == nil || !strings.Contains(err.Error(), `oz_instant: best_shot: "striip"`) {
		t.Errorf("%v", err)
	}
	none := filepath.Join(dir, "none.json")
	bad := filepath.Join(dir, "bad.json")
	for file, config := range map[string]string{none: `{"apps": {}}`, bad: `{"handler": "oz_instant", "timeout": []}`} {
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := explained(t, success(), "--config", none); err == nil || !strings.Contains(err.Error(), "there is no oz_instant in "+none) {
		t.Errorf("%v", err)
	}
	if _, err := explained(t, success(), "--config", bad); err == nil || !strings.Contains(err.Error(), bad+": oz_instant: ") {
		t.Errorf("%v", err)
	}
	cmd := explainCommand()
	cmd.SetArgs([]string{filepath.Join(dir, "missing.json")})
	cmd.SilenceErrors = true
	if err := cmd.Execute(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// Without a best shot face matching is over before it begins, and the file says so.
func TestExplainNoBestShotToMatch(t *testing.T) {
	file := filepath.Join(t.TempDir(), "caddy.json")
	if err := os.WriteFile(file, []byte(`{"handler": "oz_instant", "biometry": {"reference": "/photo"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := explained(t, testFolder("FINISHED", "SUCCESS", "SUCCESS", ""), "--config", file)
	if err != nil || !strings.Contains(got, "decision   FAILED\nreason     best_shot_missing\n") || strings.Contains(got, "Decision: SUCCESS") {
		t.Errorf("%v, %s", err, got)
	}
}
