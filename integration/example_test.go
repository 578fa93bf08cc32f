package integration_test

import (
	"bytes"
	"crypto/elliptic"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// commentedOption is an option in Caddyfile.example as against a comment, which has a space after the number sign.
var commentedOption = regexp.MustCompile(`(?m)^(\t+)#([^ \n])`)

// TestExampleShowsEveryOption promises that each option in Caddyfile.example works once its number sign is removed, and that none
// of the directive's own is missing.
func TestExampleShowsEveryOption(t *testing.T) {
	t.Parallel()
	file := exampleFile(t)
	text, err := os.ReadFile(file)
	check(t, err)
	all := commentedOption.ReplaceAllString(string(text), "$1$2")
	key := keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P256()))
	for _, other := range []string{"credentials", "access_token"} { // there can be only one of them
		options := regexp.MustCompile("(?m)^\\t+"+other+" .*$").ReplaceAllString(all, "")
		err = validate(t, options, withEnv("SITE", "http://localhost:8080"), withEnv("OZ_URL", "https://oz.internal"),
			withEnv("OZ_ACCESS_TOKEN", "a-token"), withEnv("OZ_EMAIL", "gateway@example.com"), withEnv("OZ_PASSWORD", "a-password"), withEnv("SEAL_KEY", key))
		if err != nil {
			t.Errorf("with all options but %s: %v", other, err)
		}
	}
	for _, option := range []string{
		"base_path", "access_token", "credentials", "biometry", "capacity", "max_capsule", "max_header", "max_answer", "upload_timeout", "timeout", "best_shot", "strip", "analyses",
		"require", "replay_guard", "pass", "handle_decision", "client_gone", "seal",
	} {
		if !strings.Contains(string(text), "\n\t\t#"+option+" ") && !strings.Contains(string(text), "\n\t\t"+option+" ") {
			t.Errorf("%s is not shown", option)
		}
	}
}

// TestExampleIsProduction promises what the file's head does: three variables make it a production configuration.
func TestExampleIsProduction(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(exampleFile(t))
	check(t, err)
	json, err := adapt(t, string(text), withEnv("SITE", "app.example.com"), withEnv("OZ_URL", "https://oz.internal"),
		withEnv("APP_URL", "http://app:3000"))
	check(t, err)
	for _, part := range []string{`"app.example.com"`, `"oz.internal:443"`, `"app:3000"`} {
		if !strings.Contains(json, part) {
			t.Errorf("%s is not in %s", part, json)
		}
	}
}

// TestExampleIsFormatted promises that caddy fmt has nothing to change.
func TestExampleIsFormatted(t *testing.T) {
	t.Parallel()
	file := exampleFile(t)
	want, err := os.ReadFile(file)
	check(t, err)
	got, err := exec.Command(caddyBinary, "fmt", file).Output()
	if !bytes.Equal(got, want) {
		t.Errorf("caddy fmt (%v) would write:\n%s", err, got)
	}
}

func exampleFile(t testing.TB) string {
	t.Helper()
	root, err := caddybin.Root()
	check(t, err)
	return filepath.Join(root, "Caddyfile.example")
}
