package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// TestStamp promises that a Caddy which ./xcaddy.sh builds tells the commit that it was built from, in the form that Go gives to
// versions, and never claims to be one that it isn't.
func TestStamp(t *testing.T) {
	t.Parallel()
	bash, git := program(t, "bash"), program(t, "git")
	root, err := caddybin.Root()
	check(t, err)
	script, err := os.ReadFile(filepath.Join(root, "xcaddy.sh"))
	check(t, err)
	function := regexp.MustCompile(`(?s)\nstamp\(\) \{\n.*?\n\}\n`).FindString(string(script))
	run := func(dir, name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir),
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com",
			"GIT_COMMITTER_DATE=2026-01-02T03:04:05+02:00", "TZ=Asia/Tokyo")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	dir := t.TempDir()
	expect := func(dir, state, want string) {
		t.Helper()
		if got := run(dir, bash, "-euo", "pipefail", "-c", function+"stamp"); got != want {
			t.Errorf("%s: stamped %s, want %s", state, got, want)
		}
	}
	expect(dir, "no repository", "v0.0.0-unknown")
	run(dir, git, "init", "-q")
	expect(dir, "no commit", "v0.0.0-unknown")
	commit := func() string {
		run(dir, git, "commit", "-q", "--allow-empty", "-m", "x")
		return "20260102010405-" + run(dir, git, "rev-parse", "--short=12", "HEAD")
	}
	expect(dir, "a commit", "v0.0.0-"+commit())
	run(dir, git, "tag", "v0.3.9")
	expect(dir, "a tag", "v0.3.9")
	check(t, os.WriteFile(filepath.Join(dir, "new.go"), nil, 0o600))
	expect(dir, "a new file", "v0.3.10-0."+"20260102010405-"+run(dir, git, "rev-parse", "--short=12", "HEAD")+".dirty")
	run(dir, git, "add", ".")
	next := commit()
	expect(dir, "a commit after the tag", "v0.3.10-0."+next)
	run(dir, git, "tag", "v0.4.0-rc.1")
	expect(dir, "a tag of a candidate", "v0.4.0-rc.1")
	run(dir, git, "tag", "-d", "v0.4.0-rc.1")
	run(dir, git, "tag", "other")
	expect(dir, "a tag that is no version", "v0.3.10-0."+next)
	part := filepath.Join(dir, "part")
	check(t, os.Mkdir(part, 0o700))
	expect(part, "a folder of another repository", "v0.0.0-unknown")
}

// TestReleaseRefuses promises that nothing is built under a version that cannot be, or of which the changelog says nothing.
func TestReleaseRefuses(t *testing.T) {
	t.Parallel()
	bash := program(t, "bash")
	root, err := caddybin.Root()
	check(t, err)
	script, err := os.ReadFile(filepath.Join(root, ".ci", "release"))
	check(t, err)
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, ".ci"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, ".ci", "release"), script, 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "CHANGELOG.md"), []byte(`# Changelog

## [Unreleased]

- Not yet.

## [0.3.0] - 2026-12-01

### Added

- This.

## [0.2.0] - 2026-11-01

## [0.1.0] - soon

- That.

[0.2.0]: https://example.com
`), 0o600))
	run := func(args ...string) string {
		out, _ := exec.CommandContext(t.Context(), bash, append([]string{filepath.Join(dir, ".ci", "release")}, args...)...).CombinedOutput()
		return string(out)
	}
	for version, want := range map[string]string{
		"v0.3":         "invalid version",
		"v0.03.0":      "invalid version",
		"v0.3.0;x":     "invalid version",
		"v2.0.0":       "in the path of the module",
		"v0.4.0":       "CHANGELOG.md says nothing about v0.4.0", // no section
		"v0.2.0":       "CHANGELOG.md says nothing about v0.2.0", // an empty one
		"v0.1.0":       "CHANGELOG.md says nothing about v0.1.0", // without a day
		"vUnreleased":  "invalid version",
		"v0.3.0-rc.1":  "CHANGELOG.md says nothing about v0.3.0-rc.1",
		"0.3.0":        "want a version",
		"check-all":    "want a version",
		"v0.3.0-RC!.1": "invalid version",
		"v0.3.0":       "there is no commit",
	} {
		if got := run(version, filepath.Join(dir, "out")); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", version, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("a folder was made for what was refused")
	}
	if got, want := run("notes", "v0.3.0"), "### Added\n\n- This.\n\n"; got != want {
		t.Errorf("the notes are %q, want %q", got, want)
	}
}
