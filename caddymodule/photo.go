package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg" // a reference photo is one of these two
	_ "image/png"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// photoWriter takes the app's answer to a GET of the reference photo.
type photoWriter struct {
	header   http.Header
	status   int
	body     bytes.Buffer
	limit    int64
	tooLarge bool
	stop     context.CancelFunc
}

// fill has next answer r. reverse_proxy ends an answer that breaks off by a
// panic of its own, which goes no further than here.
func (p *photoWriter) fill(next caddyhttp.Handler, r *http.Request) (err error) {
	defer func() {
		if v := recover(); v != nil {
			if e, ok := v.(error); !ok || !errors.Is(e, http.ErrAbortHandler) {
				panic(v)
			}
			err = errors.New("the app's answer broke off")
		}
	}()
	return next.ServeHTTP(p, r)
}

// Header implements http.ResponseWriter.
func (p *photoWriter) Header() http.Header { return p.header }

// WriteHeader implements http.ResponseWriter.
func (p *photoWriter) WriteHeader(status int) {
	if p.status == 0 && status >= 200 {
		p.status = status
	}
}

// Write implements http.ResponseWriter. It never fails: a handler would take
// that for a client that left.
func (p *photoWriter) Write(piece []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	if int64(p.body.Len()+len(piece)) > p.limit {
		p.tooLarge = true
		p.stop()
	}
	if !p.tooLarge {
		p.body.Write(piece)
	}
	return len(piece), nil
}

// image is the photo that came, if it is one.
func (p *photoWriter) image() ([]byte, error) {
	switch p.status {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusGone, http.StatusNoContent:
		return nil, &fault{oz.ReferenceMissing, fmt.Errorf("the app answered %d", p.status)}
	default:
		return nil, &fault{oz.ReferenceUnavailable, fmt.Errorf("the app answered %d", p.status)}
	}
	// Other modules in the same Caddy may have brought in more formats.
	if _, format, err := image.DecodeConfig(bytes.NewReader(p.body.Bytes())); err != nil || format != "jpeg" && format != "png" {
		return nil, &fault{oz.ReferenceNotImage, errors.New("the app's answer is no JPEG and no PNG")}
	}
	return p.body.Bytes(), nil
}

// expandReference puts the request's values into the reference. They are
// escaped, so that each stays one segment of the path, or one value of the query.
func expandReference(repl *caddy.Replacer, reference string) (*url.URL, error) {
	path, query, hasQuery := strings.Cut(reference, "?")
	path, err := repl.ReplaceFunc(path, escaped(segment))
	if err != nil {
		return nil, err
	}
	if query, err = repl.ReplaceFunc(query, escaped(queryValue)); err != nil {
		return nil, err
	}
	if hasQuery {
		path += "?" + query
	}
	uri, err := url.ParseRequestURI(path)
	if err != nil {
		return nil, errors.New("the reference does not make a path")
	}
	for part := range strings.SplitSeq(uri.Path, "/") {
		if part == "." || part == ".." {
			return nil, errors.New("the reference has a dot segment in its path")
		}
	}
	return uri, nil
}

// segment escapes a value that is to be one segment of a path. What reads the
// path unescaped, as matchers and file servers do, must see one, too.
func segment(value string) (string, error) {
	if strings.ContainsFunc(value, func(r rune) bool { return r == '/' || r == '\\' || unicode.IsControl(r) }) {
		return "", errors.New("a value in the path of the reference is no segment of a path")
	}
	return url.PathEscape(value), nil
}

func queryValue(value string) (string, error) { return url.QueryEscape(value), nil }

func escaped(escape func(string) (string, error)) caddy.ReplacementFunc {
	return func(name string, value any) (any, error) {
		text := caddy.ToString(value)
		if text == "" {
			return nil, fmt.Errorf("the placeholder {%s} in the reference is empty", name)
		}
		return escape(text)
	}
}
