package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/gif"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

func newPhotoWriter(limit int64) (p *photoWriter, stopped context.Context) {
	stopped, stop := context.WithCancel(context.Background())
	return &photoWriter{header: make(http.Header), limit: limit, stop: stop}, stopped
}

// reasonOf is the Reason that an error gives, or its text.
func reasonOf(err error) oz.Reason {
	var f *fault
	switch {
	case err == nil:
		return ""
	case errors.As(err, &f):
		return f.reason
	}
	return oz.Reason(err.Error())
}

// Only a 200 with a JPEG or PNG is a photo; that there is none is told apart
// from an app that does not work.
func TestPhotoOfTheApp(t *testing.T) {
	gif87 := encoded8x8(func(w io.Writer, m image.Image) error { return gif.Encode(w, m, nil) })
	for _, test := range []struct {
		name   string
		status int
		body   []byte
		want   oz.Reason
	}{
		{"JPEG", 200, testJPEG, ""},
		{"PNG", 200, testPNG, ""},
		{"GIF", 200, gif87, oz.ReferenceNotImage},
		{"a page", 200, []byte("<html>please sign in</html>"), oz.ReferenceNotImage},
		{"nothing", 200, nil, oz.ReferenceNotImage},
		{"half a header", 200, testJPEG[:10], oz.ReferenceNotImage},
		{"404", 404, testJPEG, oz.ReferenceMissing},
		{"410", 410, nil, oz.ReferenceMissing},
		{"204", 204, nil, oz.ReferenceMissing},
		{"206", 206, testJPEG, oz.ReferenceUnavailable},
		{"302 to a page to sign in", 302, nil, oz.ReferenceUnavailable},
		{"401", 401, nil, oz.ReferenceUnavailable},
		{"500", 500, testJPEG, oz.ReferenceUnavailable},
		{"no answer at all", 0, nil, oz.ReferenceUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := newPhotoWriter(1 << 20)
			if test.status != 0 {
				p.WriteHeader(103) // interim answers are none
				p.WriteHeader(test.status)
				p.WriteHeader(200) // the first one counts
			}
			if len(test.body) > 0 {
				_, _ = p.Write(test.body)
			}
			got, err := p.image()
			if reasonOf(err) != test.want {
				t.Errorf("%v, want %s", err, test.want)
			}
			if test.want == "" && !bytes.Equal(got, test.body) || test.want != "" && got != nil {
				t.Errorf("got %d bytes", len(got))
			}
		})
	}
}

// The limit is exact on both sides. Beyond it the app is stopped and nothing
// is kept, but no write ever fails: a handler would take that for the client's
// leaving.
func TestPhotoLimit(t *testing.T) {
	for _, test := range []struct {
		pieces   []int
		tooLarge bool
	}{{[]int{10}, false}, {[]int{4, 6}, false}, {[]int{11}, true}, {[]int{6, 5, 1}, true}} {
		p, stopped := newPhotoWriter(10)
		for _, n := range test.pieces {
			if written, err := p.Write(make([]byte, n)); written != n || err != nil {
				t.Errorf("%v: wrote %d, %v", test.pieces, written, err)
			}
		}
		if p.tooLarge != test.tooLarge || (stopped.Err() != nil) != test.tooLarge || p.status != 200 {
			t.Errorf("%v: too large %v, stopped %v", test.pieces, p.tooLarge, stopped.Err())
		}
		if p.body.Len() > 10 {
			t.Errorf("%v: %d bytes are held", test.pieces, p.body.Len())
		}
	}
}

// reverse_proxy ends an answer that breaks off by a panic of its own. It is an
// error here; any other panic is not ours to hide.
func TestPhotoThatBreaksOff(t *testing.T) {
	panics := func(v any) caddyhttp.Handler {
		return caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { panic(v) })
	}
	p, _ := newPhotoWriter(10)
	if err := p.fill(panics(http.ErrAbortHandler), nil); err == nil || err.Error() != "the app's answer broke off" {
		t.Errorf("%v", err)
	}
	for _, v := range []any{"a bug", errors.New("a bug")} {
		func() {
			defer func() {
				if got := recover(); got != v {
					t.Errorf("panic %v became %v", v, got)
				}
			}()
			_ = p.fill(panics(v), nil)
		}()
	}
	want := errors.New("no")
	if err := p.fill(caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return want }), nil); !errors.Is(err, want) {
		t.Errorf("%v", err)
	}
}

// Whatever values a request brings, each stays one segment of the path or one
// value of the query: none leads to another user's photo.
func TestExpandReference(t *testing.T) {
	for _, test := range []struct {
		reference, value, want string // want is empty if it makes no reference
	}{
		{"/photo", "", "/photo"},
		{"/photo?size=large", "", "/photo?size=large"},
		{"/users/{v}/photo", "ada", "/users/ada/photo"},
		{"/users/{v}/photo", "a/b", ""},
		{"/users/{v}/photo", `a\b`, ""},
		{"/users/{v}/photo", "a\x00b", ""},
		{"/photo?user={v}", "a/b", "/photo?user=a%2Fb"},
		{"/users/{v}/photo", "a?x=y", "/users/a%3Fx=y/photo"},
		{"/users/{v}/photo", "a#b", "/users/a%23b/photo"},
		{"/users/{v}/photo", "a%2fb", "/users/a%252fb/photo"},
		{"/users/{v}/photo", "a b", "/users/a%20b/photo"},
		{"/users/{v}/photo", "é", "/users/%C3%A9/photo"},
		{"/users/{v}/photo", "..", ""},
		{"/users/{v}/photo", ".", ""},
		{"/users/{v}/photo", "../admin", ""},
		{"/users/{v}/photo", "a/../b", ""},
		{"/users/{v}/photo", "...", "/users/.../photo"},
		{"/users/{v}/photo", "", ""},
		{"/users/{unknown.placeholder}/photo", "", ""},
		{"/photo?user={v}", "a&user=b", "/photo?user=a%26user%3Db"},
		{"/photo?user={v}", "a b", "/photo?user=a+b"},
		{"/photo?user={v}", "..", "/photo?user=.."},
		{"/photo?user={v}", "", ""},
		{"/photo?user={v}&q=?", "a", "/photo?user=a&q=?"},
	} {
		repl := caddy.NewEmptyReplacer()
		repl.Set("v", test.value)
		uri, err := expandReference(repl, test.reference)
		if test.want == "" {
			if err == nil {
				t.Errorf("%s with %q: %s", test.reference, test.value, uri)
			} else if test.value != "" && len(test.value) > 2 && strings.Contains(err.Error(), test.value) {
				t.Errorf("%s: the error shows the value: %v", test.reference, err)
			}
			continue
		}
		if err != nil || uri.RequestURI() != test.want {
			t.Errorf("%s with %q: %v, %v, want %s", test.reference, test.value, uri, err, test.want)
		}
	}
}
