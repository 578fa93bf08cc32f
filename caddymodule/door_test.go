package caddymodule

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// untouched is a body that must not be read: the door judges by the header.
type untouched struct{ t *testing.T }

func (u untouched) Read([]byte) (int, error) {
	u.t.Error("the door read from the body")
	return 0, fmt.Errorf("read")
}
func (untouched) Close() error { return nil }

type doorTest struct {
	name    string
	method  string
	header  http.Header
	length  int64
	capsule bool   // goes to Oz
	kind    string // or is refused; neither: goes on to the app undecided
	status  int
	answer  http.Header // fields of the refusal
}

var octets = http.Header{"Content-Type": {capsuleMediaType}}

func withField(name string, values ...string) http.Header {
	h := octets.Clone()
	h[name] = values
	return h
}

func contentType(values ...string) http.Header { return withField("Content-Type", values...) }

// The door of design section 4, rule by rule.
func TestDoor(t *testing.T) {
	notACapsule := http.Header{"Accept": {capsuleMediaType}}
	encoded := http.Header{"Accept-Encoding": {"identity"}}
	methods := http.Header{"Allow": {"GET, HEAD, OPTIONS, POST"}}

	for _, test := range []doorTest{
		{name: "a capsule", method: "POST", header: octets, length: 10, capsule: true},
		{name: "a capsule of unknown length", method: "POST", header: octets, length: -1, capsule: true},
		{name: "a capsule as large as may be", method: "POST", header: octets, length: 100, capsule: true},
		{name: "a byte more", method: "POST", header: octets, length: 101, kind: kindCapsuleTooLarge, status: 413},
		{name: "nothing", method: "POST", header: octets, length: 0, kind: kindEmptyCapsule, status: 400},

		{name: "parameters and case do not matter", method: "POST", header: contentType("Application/Octet-Stream; a=b"), length: 10, capsule: true},
		{name: "JSON that looks like a folder", method: "POST", header: contentType("application/json"), length: 10, kind: kindMediaType, status: 415, answer: notACapsule},
		{name: "multipart", method: "POST", header: contentType("multipart/form-data; boundary=x"), length: 10, kind: kindMediaType, status: 415, answer: notACapsule},
		{name: "no type", method: "POST", header: http.Header{}, length: 10, kind: kindMediaType, status: 415, answer: notACapsule},
		{name: "an empty type", method: "POST", header: contentType(""), length: 10, kind: kindMediaType, status: 415, answer: notACapsule},
		{name: "two types", method: "POST", header: contentType(capsuleMediaType, capsuleMediaType), length: 10, kind: kindMediaType, status: 415, answer: notACapsule},
		{name: "two types in one line", method: "POST", header: contentType(capsuleMediaType + ", application/json"), length: 10, kind: kindMediaType, status: 415, answer: notACapsule},
		{name: "a type of bad form", method: "POST", header: contentType(capsuleMediaType + "; ="), length: 10, kind: kindMediaType, status: 415, answer: notACapsule},
		{name: "a longer type", method: "POST", header: contentType(capsuleMediaType + "x"), length: 10, kind: kindMediaType, status: 415, answer: notACapsule},
		{name: "gzip", method: "POST", header: withField("Content-Encoding", "gzip"), length: 10, kind: kindContentEncoding, status: 415, answer: encoded},
		{name: "identity as a coding", method: "POST", header: withField("Content-Encoding", "identity"), length: 10, kind: kindContentEncoding, status: 415, answer: encoded},

		{name: "GET", method: "GET", header: http.Header{}},
		{name: "HEAD", method: "HEAD", header: http.Header{}},
		{name: "OPTIONS", method: "OPTIONS", header: http.Header{}},
		{name: "GET with content", method: "GET", header: octets, length: 10, kind: kindUnexpectedContent, status: 400},
		{name: "chunked OPTIONS", method: "OPTIONS", header: octets, length: -1, kind: kindUnexpectedContent, status: 400},
		{name: "PUT", method: "PUT", header: octets, length: 10, kind: kindMethod, status: 405, answer: methods},
		{name: "post", method: "post", header: octets, length: 10, kind: kindMethod, status: 405, answer: methods},
		{name: "CONNECT", method: "CONNECT", header: octets, length: -1, kind: kindMethod, status: 405, answer: methods},
		{name: "QUERY", method: "QUERY", header: octets, length: 10, kind: kindMethod, status: 405, answer: methods},
		{name: "an upgrade by GET", method: "GET", header: http.Header{"Upgrade": {"websocket"}}, kind: kindUpgrade, status: 400},
		{name: "an upgrade by POST", method: "POST", header: withField("Upgrade", "h2c"), length: 10, kind: kindUpgrade, status: 400},

		{name: "no header skips the door: health checks", method: "POST", header: http.Header{"User-Agent": {"kube-probe/1.30"}}, length: 10, kind: kindMediaType, status: 415},
		{name: "no header skips the door: overrides", method: "GET", header: http.Header{"X-Http-Method-Override": {"POST"}, "X-Original-Uri": {"/verify"}}},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t) })
	}
}

func (test doorTest) run(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/verify", untouched{t})
	r.Method, r.Header, r.ContentLength = test.method, test.header, test.length
	if test.length == 0 {
		r.Body = http.NoBody
	}
	h := &Handler{MaxCapsule: 100}

	capsule, p := h.door(httptest.NewRecorder(), r)
	if test.kind == "" {
		if p != nil || capsule != test.capsule {
			t.Fatalf("capsule %v, problem %v", capsule, p)
		}
		return
	}
	if p == nil {
		t.Fatalf("let in (capsule %v)", capsule)
	}
	if p.kind != test.kind || p.Status != test.status {
		t.Errorf("%s %d, want %s %d", p.kind, p.Status, test.kind, test.status)
	}
	for name, want := range test.answer {
		if got := p.header[name]; strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if p.Detail == "" || p.Title == "" {
		t.Error("the refusal does not say what to do")
	}
}

// HTTP/2 and HTTP/3 may not say that a GET is empty.
func TestContentOfUnknownLength(t *testing.T) {
	for body, want := range map[string]bool{"": false, "x": true} {
		r := httptest.NewRequest(http.MethodGet, "/verify", strings.NewReader(body))
		r.ContentLength, r.ProtoMajor = -1, 3
		if got := hasContent(httptest.NewRecorder(), r); got != want {
			t.Errorf("%q: %v", body, got)
		}
		if !want && (r.ContentLength != 0 || r.Body != http.NoBody) {
			t.Error("an empty body of unknown length goes on as if it had content")
		}
	}
}
