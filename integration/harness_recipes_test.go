package integration_test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// recipeFolder is where the recipes are, from the top folder.
const recipeFolder = "integration/examples/recipes"

// recipeMarker marks a block that shows one of its files.
const recipeMarker = "part of " + recipeFolder + "/"

// recipeFile returns the path of one of the recipes' files.
func recipeFile(t testing.TB, name string) string {
	t.Helper()
	root, err := caddybin.Root()
	check(t, err)
	return filepath.Join(root, filepath.FromSlash(recipeFolder), name)
}

// readRecipe returns a file of the recipes less the comment at its head.
func readRecipe(t testing.TB, name string) string {
	t.Helper()
	file, err := os.ReadFile(recipeFile(t, name))
	check(t, err)
	text := string(file)
	for strings.HasPrefix(text, "#") {
		_, text, _ = strings.Cut(text, "\n")
	}
	return strings.TrimLeft(text, "\n")
}

// startRecipe runs a recipe between an Oz and an app.
func startRecipe(t testing.TB, text string, options sandbox.Options, opts ...caddyOption) *chain {
	t.Helper()
	oz, app := startSandbox(t, options), newRawApp(t)
	opts = append([]caddyOption{withEnv("OZ_URL", oz.URL), withEnv("APP_URL", "http://"+app.Addr)}, opts...)
	return &chain{startCaddy(t, text, opts...), oz, app}
}

// replaced returns a text with another piece instead of one that must be there.
func replaced(t testing.TB, text, piece, by string) string {
	t.Helper()
	if !strings.Contains(text, piece) {
		t.Fatalf("%q is not in\n%s", piece, text)
	}
	return strings.Replace(text, piece, by, 1)
}

// clientFrom is a client over HTTP/1.1 with an address of its own, of the loopback network.
func (p *caddyProc) clientFrom(t testing.TB, address string) *client {
	t.Helper()
	c := p.client(t, "h1")
	c.Transport.(*http.Transport).DialContext = dialerFrom(t, address).DialContext
	return c
}

// dialerFrom dials from an address of the loopback network, which other systems than Linux may have to be given first.
func dialerFrom(t testing.TB, address string) *net.Dialer {
	t.Helper()
	listener, err := net.Listen("tcp", address+":0")
	needs(t, "the address "+address, err)
	listener.Close()
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: patience}
}

// unasked fails the test unless neither Oz nor the app got anything.
func (x *chain) unasked(t testing.TB) {
	t.Helper()
	x.app.None(t)
	for _, r := range x.oz.Requests() {
		t.Errorf("Oz got %s %s, %d bytes", r.Method, r.RequestURI, r.Size)
	}
}

// forget drops what Oz and the app got so far.
func (x *chain) forget() {
	x.oz.Forget()
	x.app.Forget()
}
