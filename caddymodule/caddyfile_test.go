package caddymodule

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

var update = flag.Bool("update", false, "write the adapted JSON, or the error, into the golden files")

// Each golden file is a Caddyfile, a dashed line, and the JSON it adapts to or
// the text that its error must contain, file and line included.
func TestCaddyfileAdaptsAsInGoldenFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			golden(t, file)
		})
	}
}

func golden(t *testing.T, file string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	input, want, found := strings.Cut(string(content), "\n----------\n")
	if !found {
		t.Fatal("no dashed line between Caddyfile and expectation")
	}
	want = strings.TrimSpace(want)
	got, err := adapt(input + "\n")
	if wantErr, isErr := strings.CutPrefix(want, "error: "); isErr {
		if err == nil {
			t.Fatalf("adapted without the error %q", wantErr)
		}
		if *update {
			write(t, file, input, "error: "+strings.TrimPrefix(err.Error(), "parsing caddyfile tokens for 'oz_instant': "))
			return
		}
		if !strings.Contains(err.Error(), wantErr) {
			t.Fatalf("error:\n%s\nwant it to contain:\n%s", err, wantErr)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		write(t, file, input, got)
		return
	}
	if got != want {
		t.Errorf("adapted to:\n%s\nwant:\n%s", got, want)
	}
}

func write(t *testing.T, file, input, expectation string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(input+"\n----------\n"+expectation+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func adapt(input string) (string, error) {
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return "", err
	}
	var pretty bytes.Buffer
	err = json.Indent(&pretty, adapted, "", "\t")
	return pretty.String(), err
}
