package integration_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

var (
	stepRow  = regexp.MustCompile(`(?m)^\| ([1-7])\. [^|]+ \| (.+) \|$`)
	codeSpan = regexp.MustCompile("`([^`]+)`")
)

// TestDocsSteps promises that the configuration below the table of the guide's steps has each of its lines, and does what the step
// asks for.
func TestDocsSteps(t *testing.T) {
	t.Parallel()
	root, err := caddybin.Root()
	check(t, err)
	page, err := os.ReadFile(filepath.Join(root, "docs", "integration.md"))
	check(t, err)
	_, section, found := strings.Cut(string(page), "## The vendor's guide, step by step")
	if !found {
		t.Fatal("docs/integration.md has no steps")
	}
	blocks := readBlocks(section)
	steps := stepRow.FindAllStringSubmatch(section, -1)
	if len(steps) != 7 || blocks[0].Lang != "caddyfile" {
		t.Fatalf("%d steps, then a block of %s", len(steps), blocks[0].Lang)
	}
	config := blocks[0].Text
	for _, step := range steps {
		for _, span := range codeSpan.FindAllStringSubmatch(step[2], -1) {
			if !inConfig(config, span[1]) {
				t.Errorf("step %s: %q is not in the configuration", step[1], span[1])
			}
		}
	}

	oz, app := startSandbox(t, accountOptions()), newRawApp(t)
	photos(app, map[string]string{"user=alice": photoAnswer(sandbox.Portrait("alice", 300))})
	site := strings.NewReplacer("app.example.com", "{$SITE}", "https://oz.internal", "{$OZ}", "app:3000", "{$APP}", "reverse_proxy", "log\n\treverse_proxy").Replace(config)
	opts := append([]caddyOption{withEnv("OZ", oz.URL), withEnv("APP", app.Addr)}, withAccount...)
	x := &chain{startCaddy(t, site, opts...), oz, app}
	c := x.client(t, "h2")
	post := func(spec sandbox.CapsuleSpec) observed {
		return x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(spec), "Cookie", "user=alice") })
	}

	// Step 1.
	token := gjson.GetBytes(c.get(t, "/session_token").Body, "session_token").Str
	if token == "" {
		t.Fatal("step 1: no session token")
	}
	// Steps 2 to 5, and the smaller response of step 6.
	j := post(sandbox.CapsuleSpec{SessionToken: token, Person: "alice"})
	r := j.app[len(j.app)-1]
	if r.Value("X-Oz-Decision") != "SUCCESS" || r.Value("X-Oz-Quality") != "SUCCESS" || r.Value("X-Oz-Biometry") != "SUCCESS" || len(r.Body) > 10_000 {
		t.Errorf("steps 2 to 6: the app got %d bytes:\n%s", len(r.Body), r.Raw())
	}
	if logins, _ := oz.grants(); logins != 1 || oz.Received()[0].TokenDigest == "" {
		t.Errorf("step 3: %d log-ins, %+v", logins, oz.Received()[0])
	}
	// Step 6: outcomes other than success.
	for _, outcome := range []string{"DECLINED", "FAILED"} {
		if j := post(sandbox.CapsuleSpec{Outcome: outcome, Person: "alice"}); j.answer.Status != 303 || j.answer.Header.Get("Location") != "/try-again" {
			t.Errorf("step 6, %s: got %d %v", outcome, j.answer.Status, j.answer.Header)
		}
	}
	// Step 7.
	file := filepath.Join(t.TempDir(), "Caddyfile")
	check(t, os.WriteFile(file, []byte(strings.NewReplacer("https://oz.internal", oz.URL).Replace(config)), 0o600))
	env := []string{"OZ_EMAIL=" + email, "OZ_PASSWORD=" + password}
	if got := runCaddy(t, "", env, "oz-instant", "check", "--config", file); got.Exit != 0 {
		t.Errorf("step 7: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
}

// inConfig reports whether what the table shows stands in the configuration: as it is, or in the form of a block.
func inConfig(config, line string) bool {
	if strings.HasPrefix(line, "caddy ") {
		return true // a command, not a line
	}
	flat := strings.Join(strings.Fields(config), " ")
	for piece := range strings.SplitSeq(line, "…") {
		if !strings.Contains(flat, strings.TrimSpace(strings.Trim(piece, "}"))) {
			return false
		}
	}
	return true
}
