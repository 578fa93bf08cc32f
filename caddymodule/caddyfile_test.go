package caddymodule

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

var update = flag.Bool("update", false, "write the adapted JSON, or the error, into the golden files")

func init() { caddy.RegisterModule(new(goldenStore)) }

// goldenStore is a store of claims of somebody else's. Its golden file shows
// what of the block it gets.
type goldenStore struct {
	Tokens []string `json:"tokens"`
}

func (*goldenStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: replayNamespace + ".golden_store", New: func() caddy.Module { return new(goldenStore) }}
}

func (s *goldenStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	for d.Next() {
		s.Tokens = append(s.Tokens, d.Val())
	}
	return nil
}

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

// FuzzCaddyfile adapts any text as the directive's arguments and block. An error must say where; what adapts must be JSON that the
// handler reads strictly and that adapts to the same once more.
func FuzzCaddyfile(f *testing.F) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		f.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		input, _, _ := strings.Cut(string(content), "\n----------\n")
		f.Add(input)
	}
	f.Fuzz(func(t *testing.T, input string) {
		if strings.Contains(input, "import") { // which reads files
			return
		}
		adapted, err := adapt(input)
		if err != nil {
			if strings.HasPrefix(err.Error(), "parsing caddyfile tokens for 'oz_instant'") && !strings.Contains(err.Error(), "Caddyfile:") {
				t.Errorf("the error doesn't say where: %v", err)
			}
			return
		}
		if again, err := adapt(input); err != nil || again != adapted {
			t.Errorf("adapted to\n%s\nand then to\n%s", adapted, again)
		}
		for _, handler := range handlersIn(adapted) {
			if err := caddy.StrictUnmarshalJSON(handler, new(Handler)); err != nil {
				t.Errorf("%v in %s", err, handler)
			}
		}
	})
}

// handlersIn returns the configs of all oz_instant handlers in a config.
func handlersIn(config string) (found [][]byte) {
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, element := range v {
				walk(element)
			}
		case map[string]any:
			if v["handler"] == "oz_instant" {
				delete(v, "handler")
				raw, _ := json.Marshal(v)
				found = append(found, raw)
			}
			for _, element := range v {
				walk(element)
			}
		}
	}
	var root any
	_ = json.Unmarshal([]byte(config), &root)
	walk(root)
	return found
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
