package demo

import (
	"io/fs"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// every file of the page, as it is served.
func everyFile(t *testing.T, o Options) map[string]*httptest.ResponseRecorder {
	t.Helper()
	app, served := New(o), map[string]*httptest.ResponseRecorder{}
	served["/"] = serve(app, "GET", "/", "", nil)
	names, err := fs.Glob(pageFiles, "page/*")
	if err != nil || len(names) < 5 {
		t.Fatalf("%v %v", names, err)
	}
	for _, name := range names {
		if path := "/assets/" + strings.TrimPrefix(name, "page/"); !strings.HasSuffix(path, ".html") {
			served[path] = serve(app, "GET", path, "", nil)
		}
	}
	return served
}

// The page may run its own files and talk to its own origin: no code of anybody else, no inline code, no other address.
func TestPageKeepsToItself(t *testing.T) {
	outside := regexp.MustCompile(`https?://|@import|//[a-z]+\.`)
	allowed := strings.NewReplacer("http://www.w3.org/2000/svg", "", "https://oz.internal", "")
	for path, w := range everyFile(t, Options{}) {
		if w.Code != 200 || w.Header().Get("Content-Type") == "" {
			t.Errorf("%s: %d %s", path, w.Code, w.Header().Get("Content-Type"))
		}
		for name, want := range map[string]string{
			"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s: %q", path, name, got)
			}
		}
		if found := outside.FindString(allowed.Replace(w.Body.String())); found != "" {
			t.Errorf("%s refers to %s", path, found)
		}
		for _, inline := range []string{"style=", "<style", "onclick=", "javascript:", "innerHTML", "insertAdjacentHTML", "eval("} {
			if strings.Contains(w.Body.String(), inline) {
				t.Errorf("%s has %s", path, inline)
			}
		}
	}
}

// No directive of the policy allows another origin or inline code, and those that default-src does not cover are there.
func TestPolicy(t *testing.T) {
	found := map[string][]string{}
	for directive := range strings.SplitSeq(policy, ";") {
		words := strings.Fields(directive)
		found[words[0]] = words[1:]
		for _, source := range words[1:] {
			if !slices.Contains([]string{"'none'", "'self'"}, source) && directive != " img-src 'self' blob:" && words[0] != "require-trusted-types-for" {
				t.Errorf("%s allows %s", words[0], source)
			}
		}
	}
	for _, name := range []string{"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"} {
		if !slices.Equal(found[name], []string{"'none'"}) {
			t.Errorf("%s is %q", name, found[name])
		}
	}
	if !slices.Equal(found["require-trusted-types-for"], []string{"'script'"}) {
		t.Errorf("text may become markup: %q", found["require-trusted-types-for"])
	}
}

// What the page and its modules load is there, and nothing but the page's files is.
func TestPageIsWhole(t *testing.T) {
	files := everyFile(t, Options{})
	loads := regexp.MustCompile(`(?:href|src)="(/[^"]+)"|from '\.(/[a-z]+\.js)'`)
	found := 0
	for path, w := range files {
		for _, match := range loads.FindAllStringSubmatch(w.Body.String(), -1) {
			found++
			wanted := match[1]
			if wanted == "" {
				wanted = "/assets" + match[2]
			}
			if files[wanted] == nil {
				t.Errorf("%s loads %s, which isn't there", path, wanted)
			}
		}
	}
	if found < 8 {
		t.Errorf("only %d files are loaded", found)
	}
	for _, path := range []string{"/other", "/assets/index.html", "/assets/", "/assets/..%2fdemo.go", "/assets/none.js", "/demo/status", "/demo/flood"} {
		if w := serve(New(Options{}), "GET", path, "", nil); w.Code != 404 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}

// Each id that the scripts use is on the page, once.
func TestPageHasItsIDs(t *testing.T) {
	files := everyFile(t, Options{})
	page := files["/"].Body.String()
	uses := regexp.MustCompile("(?:byId|hide|fill|getElementById)\\(['`]([a-z-]+)['`]")
	found := 0
	for path, w := range files {
		for _, match := range uses.FindAllStringSubmatch(w.Body.String(), -1) {
			found++
			if n := strings.Count(page, ` id="`+match[1]+`"`); n != 1 {
				t.Errorf("%s uses #%s, which is there %d times", path, match[1], n)
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d ids are used", found)
	}
}

func TestPageKnowsWhatThereIs(t *testing.T) {
	page := func(o Options) string { return serve(New(o), "GET", "/", "", nil).Body.String() }
	if got := page(Options{SessionTokenPath: `/a"b`}); !strings.Contains(got, `data-session-token="/a&#34;b"`) || strings.Contains(got, " data-flood>") || strings.Contains(got, " data-live>") {
		t.Errorf("%.900s", got)
	}
	whole := Options{Site: "http://localhost:1", Admin: "http://localhost:2", Capture: anyCapsule}
	if got := page(whole); !strings.Contains(got, `data-session-token="/session_token" data-flood data-live>`) {
		t.Errorf("%.900s", got)
	}
	if got := page(Options{Site: "http://localhost:1"}); strings.Contains(got, " data-flood>") {
		t.Error("floods without a maker of capsules")
	}
}

// The lines for the real Web SDK are those of the documents.
func TestPageShowsTheDocumentedCode(t *testing.T) {
	docs, err := os.ReadFile("../../docs/integration.md")
	if err != nil {
		t.Fatal(err)
	}
	page, err := pageFiles.ReadFile("page/index.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"const {session_token} = await (await fetch('/session_token')).json();", "OzLiveness.open({",
		"  session_token, action: ['video_selfie_blank'],", "  on_capture_complete: (action, capsule) =>", "session_token /session_token",
	} {
		shown := strings.ReplaceAll(line, ">", "&gt;")
		if !strings.Contains(string(docs), line) || !strings.Contains(string(page), shown) {
			t.Errorf("%q is not in both", line)
		}
	}
}
