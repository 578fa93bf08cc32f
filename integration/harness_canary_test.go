package integration_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// assertNoCanary fails the test if one of the secrets stands in anything that the Caddy has shown or kept: its output, which is a log
// at debug level, and spans where the test wants them, its metrics, what its admin endpoint shows, the gateway's status
// included, the stacks of its goroutines, its files and those that it has open, deleted or not. A secret also counts in the guises
// that logs and encoders give it.
func (p *caddyProc) assertNoCanary(t testing.TB, secrets ...[]byte) {
	t.Helper()
	assertNowhere(t, p.shown(t), secrets)
}

// shown is all that the Caddy shows and keeps at this moment.
func (p *caddyProc) shown(t testing.TB) map[string][]byte {
	t.Helper()
	places := map[string][]byte{
		"log":        []byte(p.logs.String()),
		"metrics":    []byte(p.Metrics(t)),
		"config":     []byte(p.Config(t)),
		"upstreams":  []byte(p.AdminGet(t, "/reverse_proxy/upstreams")),
		"status":     []byte(p.AdminGet(t, "/oz_instant/status")),
		"goroutines": []byte(p.Goroutines(t)),
	}
	maps.Copy(places, p.files(t))
	maps.Copy(places, p.openFiles(t))
	return places
}

// assertNowhere fails the test if one of the secrets is in one of the places.
func assertNowhere(t testing.TB, places map[string][]byte, secrets [][]byte) {
	t.Helper()
	for _, secret := range secrets {
		if len(secret) < 10 {
			t.Fatalf("the secret %q is too short to be told from chance", secret)
		}
		for place, content := range places {
			if guise, found := findSecret(content, secret); found {
				t.Errorf("the secret %q is in %s, %s", secret, place, guise)
			}
		}
	}
}

// files returns all files in the Caddy's home, which is also its folder for temporary files, but those of the harness.
func (p *caddyProc) files(t testing.TB) map[string][]byte {
	t.Helper()
	files := filesIn(t, p.dir)
	delete(files, "the file /Caddyfile")
	return files
}

// filesIn returns all files in a folder, but those that go away meanwhile.
func filesIn(t testing.TB, folder string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			return nil
		}
		var content []byte
		if err == nil {
			content, err = os.ReadFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) && path != folder { // such as a lock of Caddy's storage
			return nil
		}
		files["the file "+strings.TrimPrefix(path, folder)] = content
		return err
	})
	check(t, err)
	return files
}

// findSecret looks for a secret as it is and in its guises.
func findSecret(content, secret []byte) (guise string, found bool) {
	for guise, text := range guises(secret) {
		if bytes.Contains(content, text) {
			return guise, true
		}
	}
	return "", false
}

func guises(secret []byte) map[string][]byte {
	quoted := strconv.Quote(string(secret))
	g := map[string][]byte{
		"as it is":        secret,
		"in quotes":       []byte(quoted[1 : len(quoted)-1]),
		"in a URL":        []byte(url.QueryEscape(string(secret))),
		"in a path":       []byte(url.PathEscape(string(secret))),
		"in hex":          []byte(hex.EncodeToString(secret)),
		"in capital hex":  []byte(strings.ToUpper(hex.EncodeToString(secret))),
		"as byte numbers": []byte(strings.Trim(fmt.Sprintf("%d", secret), "[]")),
	}
	// In base64 of something longer, the secret begins at one of three places within a group; the groups at its edges, which
	// depend on what stands beside it, are left out.
	for shift := range 3 {
		padded := append(make([]byte, shift), secret...)
		whole := padded[:len(padded)/3*3]
		inner := base64.StdEncoding.EncodeToString(whole)
		if shift > 0 {
			inner = inner[4:]
		}
		g[fmt.Sprintf("in base64, shifted by %d", shift)] = []byte(inner)
		urlSafe := strings.NewReplacer("+", "-", "/", "_").Replace(inner)
		g[fmt.Sprintf("in base64url, shifted by %d", shift)] = []byte(urlSafe)
	}
	return g
}
