package integration_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/ports"
)

// buildPatience is for a first build of Caddy by xcaddy on a small and busy machine.
const buildPatience = 6 * time.Minute

// document is a Markdown file of the project.
type document struct {
	Name   string // its path from the top folder, with slashes
	Text   string
	Blocks []block
}

// documents returns everything that a reader is told: the papers in the top folder, and docs.
func documents(t testing.TB) (root string, docs []document) {
	t.Helper()
	root, err := caddybin.Root()
	check(t, err)
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
		check(t, err)
		if len(files) == 0 {
			t.Fatalf("there is no %s", pattern)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			check(t, err)
			name, err := filepath.Rel(root, file)
			check(t, err)
			docs = append(docs, document{filepath.ToSlash(name), string(text), readBlocks(string(text))})
		}
	}
	return root, docs
}

// TestDocsRun promises that what the documents tell a newcomer to do works, and prints what they say.
func TestDocsRun(t *testing.T) {
	t.Parallel()
	bash := program(t, "bash")
	program(t, "curl") // for the documents' lines
	root, docs := documents(t)
	x := startXcaddyRun(t, root)
	folder := linkedFolder(t, root)
	ran := 0
	for _, d := range docs {
		found, errs := examples(d.Blocks)
		for _, err := range errs {
			t.Errorf("%s, %v", d.Name, err)
		}
		for _, e := range found {
			ran++
			cmd := exec.CommandContext(t.Context(), bash, "-e", "-c", x.here.Replace(e.Text))
			cmd.Dir = folder
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%s, line %d: %v\n%s%s", d.Name, e.Line, err, e.Text, out)
			} else if line := missing(x.here.Replace(e.Prints), string(out)); line != "" {
				t.Errorf("%s, line %d: %q does not come in what this prints:\n%s%s", d.Name, e.Line, line, e.Text, out)
			}
		}
	}
	if ran == 0 {
		t.Error("the documents have nothing to run")
	}
	x.stop(t)
}

// TestDocsAdapt promises that each Caddyfile in the documents can be used as it stands, and that JSON shown beside one is what it
// means.
func TestDocsAdapt(t *testing.T) {
	t.Parallel()
	_, docs := documents(t)
	for _, d := range docs {
		adapted := ""
		for _, b := range d.Blocks {
			switch {
			case strings.HasPrefix(b.Marker, recipeMarker): // TestRecipes runs it
			case b.Lang == "caddyfile":
				config, err := adapt(t, b.Text)
				if err != nil {
					t.Errorf("%s, line %d: %v", d.Name, b.Line, err)
				}
				adapted = config
			case b.Marker == "handler":
				if got, want := ozHandler(t, adapted), decoded(t, b.Text); !reflect.DeepEqual(got, want) {
					t.Errorf("%s, line %d: the Caddyfile above means\n%v\nand not\n%v", d.Name, b.Line, got, want)
				}
			}
		}
	}
}

// TestDocsParts promises that code which is shown as a part of a file stands there.
func TestDocsParts(t *testing.T) {
	t.Parallel()
	root, docs := documents(t)
	for _, d := range docs {
		for _, b := range d.Blocks {
			name, marked := strings.CutPrefix(b.Marker, "part of ")
			if !marked {
				continue
			}
			file, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
			if err != nil || !strings.Contains(string(file), b.Text) {
				t.Errorf("%s, line %d: this is no part of %s (%v)", d.Name, b.Line, name, err)
			}
		}
	}
}

// ozHandler returns the first oz_instant handler of a configuration.
func ozHandler(t testing.TB, config string) any {
	t.Helper()
	if config == "" {
		return nil
	}
	return findHandler(decoded(t, config))
}

func findHandler(tree any) any {
	switch node := tree.(type) {
	case []any:
		for _, child := range node {
			if found := findHandler(child); found != nil {
				return found
			}
		}
	case map[string]any:
		if node["handler"] == "oz_instant" {
			return node
		}
		for _, child := range node {
			if found := findHandler(child); found != nil {
				return found
			}
		}
	}
	return nil
}

func decoded(t testing.TB, text string) (tree any) {
	t.Helper()
	check(t, json.Unmarshal([]byte(text), &tree))
	return tree
}

var (
	markdownLink    = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	markdownHeading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	fencedBlock     = regexp.MustCompile("(?ms)^```.*?^```$")
	notInAnchor     = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestDocsLinks promises that links within the project lead somewhere, and that README links every page.
func TestDocsLinks(t *testing.T) {
	t.Parallel()
	root, docs := documents(t)
	anchors := map[string]map[string]bool{}
	for i, d := range docs {
		docs[i].Text = fencedBlock.ReplaceAllString(d.Text, "")
		anchors[d.Name] = map[string]bool{}
		for _, heading := range markdownHeading.FindAllStringSubmatch(docs[i].Text, -1) {
			text := notInAnchor.ReplaceAllString(strings.ToLower(heading[1]), "")
			anchors[d.Name][strings.ReplaceAll(text, " ", "-")] = true
		}
	}
	inReadme := map[string]bool{}
	for _, d := range docs {
		for _, link := range markdownLink.FindAllStringSubmatch(d.Text, -1) {
			target, anchor, _ := strings.Cut(link[1], "#")
			if strings.Contains(target, ":") {
				continue // elsewhere
			}
			file := d.Name
			if target != "" {
				file = path.Join(path.Dir(d.Name), target)
			}
			if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(file))); err != nil {
				t.Errorf("%s: %s leads nowhere", d.Name, link[1])
			} else if anchor != "" && !anchors[file][anchor] {
				t.Errorf("%s: %s has no heading for %s", d.Name, file, link[1])
			}
			if d.Name == "README.md" {
				inReadme[file] = true
			}
		}
	}
	for _, d := range docs {
		if d.Name != "README.md" && !inReadme[d.Name] {
			t.Errorf("README.md does not link %s", d.Name)
		}
	}
}

// figuresBlock is what a command of the bench printed, in the document that shows the command.
var figuresBlock = regexp.MustCompile(`(?s)<!-- figures: (.+?) -->\n(.*?)\n<!-- end of figures -->`)

// TestDocsFigures promises that figures are there, as a command printed them, and that the reader is told which command.
func TestDocsFigures(t *testing.T) {
	t.Parallel()
	_, docs := documents(t)
	for _, d := range docs {
		blocks := figuresBlock.FindAllStringSubmatch(d.Text, -1)
		if begun := strings.Count(d.Text, "<!-- figures"); begun != len(blocks) {
			t.Errorf("%s: of %d blocks of figures %d end", d.Name, begun, len(blocks))
		}
		for _, b := range blocks {
			if !slices.ContainsFunc(d.Blocks, func(shown block) bool { return shown.Lang == "sh" && shown.Text == b[1]+"\n" }) {
				t.Errorf("%s: no block shows %s", d.Name, b[1])
			}
			if !printedFigures.MatchString(b[2]) || notPrinted.MatchString(b[2]) {
				t.Errorf("%s: these are no figures of %s:\n%.300s", d.Name, b[1], b[2])
			}
		}
	}
}

// TestDocsVersions promises that a reader is told to build with what go.mod names, by which all is tested, and with the Go by which a
// release is built. In a night with Caddy's main branch go.mod has a version between two releases, of which no document speaks.
func TestDocsVersions(t *testing.T) {
	t.Parallel()
	root, docs := documents(t)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		check(t, err)
		return string(text)
	}
	module := read("go.mod")
	caddy := regexp.MustCompile(`(?m)^\s*github.com/caddyserver/caddy/v2 (v\S+)`).FindStringSubmatch(module)[1]
	xcaddy := regexp.MustCompile(`(?m)^\s*github.com/caddyserver/xcaddy (v\S+)`).FindStringSubmatch(module)[1]
	toolchain := regexp.MustCompile(`GOTOOLCHAIN: (go\S+)`).FindStringSubmatch(read(".github/workflows/release.yml"))[1]
	texts := map[string]string{"Dockerfile": read("integration/deploy/container/Dockerfile")}
	for _, d := range docs {
		if d.Name != "CHANGELOG.md" {
			texts[d.Name] = figuresBlock.ReplaceAllString(d.Text, "")
		}
	}
	for _, rule := range []struct{ found, want string }{
		{`xcaddy build (v[\d.]+)`, caddy}, {`\*\* Caddy (v[\d.]+)`, caddy}, {`cmd/xcaddy@(v[\d.]+)`, xcaddy}, {`GOTOOLCHAIN=(go[\d.]+)`, toolchain},
		{`GOLANG=\S+golang:([\d.]+)-`, strings.TrimPrefix(toolchain, "go")},
	} {
		found := false
		for name, text := range texts {
			for _, match := range regexp.MustCompile(rule.found).FindAllStringSubmatch(text, -1) {
				found = true
				if match[1] != rule.want && !strings.Contains(rule.want, "-") {
					t.Errorf("%s has %q (want %s)", name, match[0], rule.want)
				}
			}
		}
		if !found {
			t.Errorf("nothing says %s", rule.found)
		}
	}
}

var (
	printedFigures = regexp.MustCompile(`(?m)^ {4}.*\d`)
	notPrinted     = regexp.MustCompile(`(?m)^ {0,3}\S`)
)

// linkedFolder returns a folder that shows everything in root, and in which commands may leave files.
func linkedFolder(t *testing.T, root string) string {
	t.Helper()
	folder := t.TempDir()
	entries, err := os.ReadDir(root)
	check(t, err)
	for _, entry := range entries {
		if entry.Name() != ".git" {
			check(t, os.Symlink(filepath.Join(root, entry.Name()), filepath.Join(folder, entry.Name())))
		}
	}
	return folder
}

// xcaddyRun is ./xcaddy.sh run.
type xcaddyRun struct {
	cmd   *exec.Cmd
	logs  *logBook
	ended chan struct{}
	ports []int             // what it listens on
	here  *strings.Replacer // turns the documents' addresses into those in use
}

// startXcaddyRun runs ./xcaddy.sh run on free ports and returns when it says that it is up.
func startXcaddyRun(t *testing.T, root string) *xcaddyRun {
	t.Helper()
	x := &xcaddyRun{cmd: exec.Command("./xcaddy.sh", "run"), logs: newLogBook(), ended: make(chan struct{})}
	x.cmd.Dir, x.cmd.Env = root, os.Environ()
	var pairs []string
	for _, setting := range []struct{ variable, before, port string }{
		{"SITE", "http://localhost:", "8080"},
		{"OZ_URL", "http://127.0.0.1:", "9000"},
		{"APP_URL", "http://127.0.0.1:", "3000"},
		{"CADDY_ADMIN", "localhost:", "2019"},
	} {
		number := freePort(t)
		port := strconv.Itoa(number)
		x.ports = append(x.ports, number)
		x.cmd.Env = append(x.cmd.Env, setting.variable+"="+setting.before+port)
		for _, host := range []string{"localhost:", "127.0.0.1:"} {
			pairs = append(pairs, host+setting.port, host+port)
		}
		if setting.variable == "OZ_URL" { // whose place the maker of capsules would guess
			pairs = append(pairs, "ozsandbox capsule", "ozsandbox capsule --oz "+setting.before+port)
		}
	}
	x.here = strings.NewReplacer(pairs...)
	x.cmd.Stdout, x.cmd.Stderr = x.logs, x.logs
	dieWithTests(x.cmd, syscall.SIGTERM)
	check(t, x.cmd.Start())
	go func() {
		x.cmd.Wait() // stop looks at how it ended
		close(x.ended)
	}()
	t.Cleanup(func() { x.end() })

	if len(x.logs.wait(buildPatience, 1, x.ended, having("==> running"))) == 0 {
		x.end()
		t.Fatalf("./xcaddy.sh run did not come up:\n%s", x.logs)
	}
	return x
}

// end tells it to end and waits until it has.
func (x *xcaddyRun) end() {
	x.cmd.Process.Signal(syscall.SIGTERM)
	<-x.ended
}

// stop ends it and fails the test if it leaves anything running.
func (x *xcaddyRun) stop(t *testing.T) {
	t.Helper()
	x.end()
	if code := x.cmd.ProcessState.ExitCode(); code != 128+int(syscall.SIGTERM) {
		t.Errorf("./xcaddy.sh run ended with %v:\n%s", x.cmd.ProcessState, x.logs)
	}
	for _, port := range x.ports {
		if !ports.Unused(strconv.Itoa(port)) {
			t.Errorf("port %d is still in use after ./xcaddy.sh run has ended", port)
		}
	}
}
