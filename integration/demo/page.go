package demo

import (
	"bytes"
	"embed"
	"html/template"
	"net/http"
	"path"
)

//go:embed page
var pageFiles embed.FS

// policy lets the page run its own scripts and styles and talk to its own origin, and nothing else. A script that text from
// elsewhere could turn into markup does not run at all: there are no Trusted Types.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// pageHeaders are those of the page and of everything that it loads.
var pageHeaders = map[string]string{
	"Content-Security-Policy": policy,
	"X-Content-Type-Options":  "nosniff",
	"Referrer-Policy":         "no-referrer",
	"Permissions-Policy":      "camera=(self), microphone=(), geolocation=()",
	"Cache-Control":           "no-cache", // what was rebuilt is seen at once
}

// contentTypes are fixed: those of the machine may be anything, and with nosniff a script of another type does not run.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
}

// page serves the page for these options.
func page(o Options) http.HandlerFunc {
	var text bytes.Buffer
	if err := template.Must(template.ParseFS(pageFiles, "page/index.html")).Execute(&text, o); err != nil {
		panic(err) // the template is part of the program
	}
	return func(w http.ResponseWriter, _ *http.Request) { servePageFile(w, ".html", text.Bytes()) }
}

// asset serves a file that the page loads.
func asset(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	content, err := pageFiles.ReadFile("page/" + name)
	if err != nil || path.Ext(name) == ".html" {
		http.NotFound(w, r)
		return
	}
	servePageFile(w, path.Ext(name), content)
}

func servePageFile(w http.ResponseWriter, ext string, content []byte) {
	for name, value := range pageHeaders {
		w.Header().Set(name, value)
	}
	w.Header().Set("Content-Type", contentTypes[ext])
	w.Write(content)
}
