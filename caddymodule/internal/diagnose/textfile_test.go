package diagnose

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// readTextfile checks targets, writes the file and returns its series, one a
// line, without the comments.
func readTextfile(t *testing.T, ran time.Time, targets ...Target) string {
	t.Helper()
	_, reports := checked(t, CheckOptions{}, targets...)
	return writeTextfile(t, filepath.Join(t.TempDir(), "oz.prom"), reports, ran)
}

func writeTextfile(t *testing.T, name string, reports []Report, ran time.Time) (series string) {
	t.Helper()
	if err := WriteTextfile(name, reports, ran); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			series += line
		}
	}
	return series
}

// An upstream has its series whatever was found, and one of its certificate if
// it showed one: above all if that has ended.
func TestTextfile(t *testing.T) {
	ran := time.Unix(1_700_000_000, 0)
	secure, config := startTLS(t, 30*24*time.Hour)
	ended, endedConfig := startTLS(t, -time.Minute)
	plain := address(start(t, nil))
	series := readTextfile(t, ran, overTLS(secure, config), overTLS(ended, endedConfig), target(plain), target("127.0.0.1:1"))
	for upstream, passed := range map[string]string{secure: "1", ended: "0", plain: "1", "127.0.0.1:1": "0"} {
		for _, want := range []string{
			`oz_instant_check_passed{upstream="` + upstream + `"} ` + passed + "\n",
			`oz_instant_check_run_timestamp_seconds{upstream="` + upstream + `"} 1.7e+09` + "\n",
		} {
			if !strings.Contains(series, want) {
				t.Errorf("no %s in\n%s", want, series)
			}
		}
		if has := strings.Contains(series, `certificate_expiry_timestamp_seconds{upstream="`+upstream); has != (upstream == secure || upstream == ended) {
			t.Errorf("a certificate of %s: %t\n%s", upstream, has, series)
		}
	}
}

// Blocks that share an upstream have one series for it, that of the worse end.
func TestTextfileOfSharedUpstream(t *testing.T) {
	soon, late := time.Unix(1_800_000_000, 0), time.Unix(1_900_000_000, 0)
	const passed, failed = `oz_instant_check_passed{upstream="a:1"} 1`, `oz_instant_check_passed{upstream="a:1"} 0`
	for name, test := range map[string]struct {
		reports []Report
		want    []string
	}{
		"both well":           {[]Report{{To: "a:1", Well: true, CertificateEnds: late}, {To: "a:1", Well: true, CertificateEnds: soon}}, []string{passed, "1.8e+09"}},
		"ends later":          {[]Report{{To: "a:1", Well: true, CertificateEnds: soon}, {To: "a:1", Well: true, CertificateEnds: late}}, []string{passed, "1.8e+09"}},
		"the first not":       {[]Report{{To: "a:1", CertificateEnds: soon}, {To: "a:1", Well: true, CertificateEnds: late}}, []string{failed, "1.8e+09"}},
		"the second not":      {[]Report{{To: "a:1", Well: true}, {To: "a:1", CertificateEnds: late}}, []string{failed, "1.9e+09"}},
		"not UTF-8":           {[]Report{{To: "a\xff:1"}}, []string{`{upstream="a` + "\uFFFD" + `:1"} 0`}},
		"the quote is quoted": {[]Report{{To: "a\"\n"}}, []string{`{upstream="a\"\n"} 0`}},
	} {
		series := writeTextfile(t, filepath.Join(t.TempDir(), "oz.prom"), test.reports, soon)
		for _, want := range test.want {
			if !strings.Contains(series, want) {
				t.Errorf("%s: no %s in\n%s", name, want, series)
			}
		}
		if n := strings.Count(series, "oz_instant_check_passed"); n != 1 {
			t.Errorf("%s: %d series, want 1\n%s", name, n, series)
		}
	}
}

// The file is replaced as a whole, others may read it, and nothing is left
// beside it.
func TestTextfileIsReplaced(t *testing.T) {
	folder := t.TempDir()
	name := filepath.Join(folder, "oz.prom")
	if err := os.WriteFile(name, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	writeTextfile(t, name, []Report{{To: "a:1", Well: true}}, time.Now())
	before, _ := old.Stat()
	after, err := os.Stat(name)
	if err != nil || os.SameFile(before, after) || after.Mode().Perm() != 0o644 {
		t.Errorf("%v: %v, the same file: %t", err, after.Mode(), os.SameFile(before, after))
	}
	if entries, _ := os.ReadDir(folder); len(entries) != 1 {
		t.Errorf("left beside it: %v", entries)
	}
	if err := WriteTextfile(filepath.Join(folder, "none", "oz.prom"), nil, time.Now()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("into a folder that isn't there: %v", err)
	}
}
