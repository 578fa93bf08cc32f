package caddymodule

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// untouched is a body that must not be read.
type untouched struct{ t *testing.T }

func (u untouched) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, fmt.Errorf("read")
}
func (untouched) Close() error { return nil }

type classifyTest struct {
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

// What a request is, rule by rule, judged by its header alone.
func TestClassify(t *testing.T) {
	notACapsule := http.Header{"Accept": {capsuleMediaType}}
	encoded := http.Header{"Accept-Encoding": {"identity"}}
	methods := http.Header{"Allow": {"GET, HEAD, OPTIONS, POST"}}

	for _, test := range []classifyTest{
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
		{name: "two codings", method: "POST", header: withField("Content-Encoding", "identity", "br"), length: 10, kind: kindContentEncoding, status: 415, answer: encoded},
		{name: "identity as a coding", method: "POST", header: withField("Content-Encoding", "Identity"), length: 10, kind: "", capsule: true},
		{name: "as many lines as may be", method: "POST", header: withField("X-Many", make([]string, 79)...), length: 10, capsule: true},
		{name: "a line more", method: "POST", header: withField("X-Many", make([]string, 80)...), length: 10, kind: kindHeaderTooLarge, status: 431},
		{name: "a large field", method: "POST", header: withField("Cookie", strings.Repeat("c", 12<<10)), length: 10, kind: kindHeaderTooLarge, status: 431},
		{name: "many fields that are large together", method: "POST", header: withField("X-Many", slices.Repeat([]string{strings.Repeat("c", 300)}, 40)...), length: 10, kind: kindHeaderTooLarge, status: 431},

		{name: "GET", method: "GET", header: http.Header{}},
		{name: "HEAD", method: "HEAD", header: http.Header{}},
		{name: "OPTIONS", method: "OPTIONS", header: http.Header{}},
		{name: "GET with content", method: "GET", header: octets, length: 10, kind: kindUnexpectedContent, status: 400},
		{name: "PUT", method: "PUT", header: octets, length: 10, kind: kindMethod, status: 405, answer: methods},
		{name: "post", method: "post", header: octets, length: 10, kind: kindMethod, status: 405, answer: methods},
		{name: "CONNECT", method: "CONNECT", header: octets, length: -1, kind: kindMethod, status: 405, answer: methods},
		{name: "QUERY", method: "QUERY", header: octets, length: 10, kind: kindMethod, status: 405, answer: methods},

		{name: "no header skips the rules: health checks", method: "POST", header: http.Header{"User-Agent": {"kube-probe/1.30"}}, length: 10, kind: kindMediaType, status: 415},
		{name: "no header skips the rules: overrides", method: "GET", header: http.Header{"X-Http-Method-Override": {"POST"}, "X-Original-Uri": {"/verify"}}},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t) })
	}
}

func (test classifyTest) run(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/verify", untouched{t})
	r.Method, r.Header, r.ContentLength = test.method, test.header, test.length
	if test.length == 0 {
		r.Body = http.NoBody
	}
	h := &Handler{MaxCapsule: 100, MaxHeader: defaultMaxHeader}

	kind, p, err := h.classify(httptest.NewRecorder(), r)
	if err != nil {
		t.Fatal(err)
	}
	if test.kind == "" {
		if p != nil || (kind == capsuleRequest) != test.capsule || kind == sessionTokenRequest {
			t.Fatalf("kind %v, problem %v", kind, p)
		}
		return
	}
	if p == nil {
		t.Fatalf("let in as %v", kind)
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

// withDeadlines is a ResponseWriter whose connection can have read deadlines.
type withDeadlines struct{ *httptest.ResponseRecorder }

func (withDeadlines) SetReadDeadline(time.Time) error { return nil }

// A chunked GET may be empty, and HTTP/2 and HTTP/3 may not say that one is.
func TestContentOfUnknownLength(t *testing.T) {
	for body, want := range map[string]bool{"": false, "x": true} {
		for major := 1; major <= 3; major++ {
			r := httptest.NewRequest(http.MethodGet, "/verify", strings.NewReader(body))
			r.ContentLength, r.ProtoMajor, r.TransferEncoding = -1, major, []string{"chunked"}
			if got := hasContent(withDeadlines{httptest.NewRecorder()}, r); got != want {
				t.Errorf("HTTP/%d %q: %v", major, body, got)
			}
			if !want && (r.ContentLength != 0 || r.Body != http.NoBody || r.TransferEncoding != nil) {
				t.Errorf("HTTP/%d: an empty body of unknown length continues as if it had content", major)
			}
		}
	}
}

// What an Upgrade may be: nothing on a POST, and "websocket" elsewhere. The
// options of Connection that go with it go, too.
func TestStripUpgrade(t *testing.T) {
	const ws = "websocket"
	for _, test := range []struct {
		method   string
		in, want http.Header
	}{
		{"POST", http.Header{"Upgrade": {"h2c"}, "Connection": {"Upgrade, HTTP2-Settings"}, "Http2-Settings": {"AAMAAABkAAQAoAAAAAIAAAAA"}}, http.Header{}},
		{"POST", http.Header{"Upgrade": {ws}, "Connection": {"keep-alive", "upgrade"}}, http.Header{"Connection": {"keep-alive"}}},
		{"POST", http.Header{"Upgrade": {"TLS/1.2"}}, http.Header{}},
		{"GET", http.Header{"Upgrade": {ws}, "Connection": {"Upgrade"}}, http.Header{"Upgrade": {ws}, "Connection": {"Upgrade"}}},
		{"GET", http.Header{"Upgrade": {"WebSocket"}, "Connection": {"keep-alive, Upgrade"}}, http.Header{"Upgrade": {ws}, "Connection": {"keep-alive, Upgrade"}}},
		{"GET", http.Header{"Upgrade": {"h2c"}, "Connection": {"Upgrade, HTTP2-Settings"}, "Http2-Settings": {"x"}}, http.Header{}},
		{"GET", http.Header{"Upgrade": {"h2c, websocket"}, "Connection": {"Upgrade,Http2-Settings"}, "Http2-Settings": {"x"}}, http.Header{"Upgrade": {ws}, "Connection": {"Upgrade"}}},
		{"GET", http.Header{"Upgrade": {"H2C", " Websocket "}, "Connection": {"upgrade"}}, http.Header{"Upgrade": {ws}, "Connection": {"upgrade"}}},
		{"GET", http.Header{"Upgrade": {"websocket/13"}, "Connection": {"upgrade, close"}}, http.Header{"Connection": {"close"}}},
		{"OPTIONS", http.Header{"Upgrade": {"h2c"}}, http.Header{}},
		{"GET", http.Header{"Upgrade": {""}, "Connection": {""}}, http.Header{"Connection": {""}}},
	} {
		r := httptest.NewRequest(test.method, "/", nil)
		r.Header = test.in.Clone()
		if stripUpgrade(r); !reflect.DeepEqual(r.Header, test.want) {
			t.Errorf("%s %v: %v, want %v", test.method, test.in, r.Header, test.want)
		}
	}
}

// What describes the old body is dropped in every spelling that folds to it.
func TestDropStale(t *testing.T) {
	stays := http.Header{"Cookie": {"a"}, "Contents": {"b"}, "Accept-Encoding": {"c"}, "X-Content-Type": {"d"}}
	h := stays.Clone()
	for _, name := range []string{
		"Content-Type", "Content~Type", "content_length", "Content.Encoding", "CONTENT-MD5", "Content-Disposition", "Repr-Digest", "Repr_digest",
		"Digest", "Range", "Expect", "Trailer", "Transfer-Encoding", "Transfer_Encoding", "Connection",
	} {
		h[name] = []string{"x"}
	}
	if dropStale(h); !reflect.DeepEqual(h, stays) {
		t.Errorf("%v", h)
	}
}

// Names are stripped once a request: later ones are our own.
func TestBeginOnce(t *testing.T) {
	r := fromClient(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil))
	r.Header.Set(headerDecision, "SUCCESS")
	p := begin(r)
	if r.Header.Get(headerDecision) != "" {
		t.Error("the client's decision is still there")
	}
	r.Header.Set(headerDecision, "DECLINED")
	if again := begin(r); again != p || r.Header.Get(headerDecision) != "DECLINED" {
		t.Errorf("another state, or the header is %q", r.Header.Get(headerDecision))
	}
	if text := caddyhttp.GetVar(r.Context(), stateVar).(*requestState).String(); text != "" {
		t.Errorf("{http.vars.%s} prints %q", stateVar, text)
	}
}

// trailing is a body that ends with trailers, as net/http files them.
type trailing struct {
	io.Reader
	trailer http.Header
	closed  bool
}

func (b *trailing) Close() error {
	b.closed = true
	b.trailer[headerDecision] = []string{"SUCCESS"}
	return nil
}

// With an error, what a client announced as trailers is gone from the server's
// own request, and with it the body that brings them. Otherwise nothing happens.
func TestEndWithTrailers(t *testing.T) {
	bad := errors.New("bad")
	for _, test := range []struct {
		name      string
		announced bool
		err       error
		closed    bool
	}{
		{"error", true, bad, true}, {"no error", true, nil, false}, {"no trailers", false, bad, false},
	} {
		body := &trailing{Reader: strings.NewReader("x"), trailer: http.Header{"X-Late": nil}}
		servers := fromClient(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", body))
		if test.announced {
			servers.Trailer = body.trailer
		}
		copied := servers.WithContext(servers.Context()) // as forward_auth does it
		if err := begin(copied).end(withDeadlines{httptest.NewRecorder()}, copied, test.err); err != test.err {
			t.Errorf("%s: %v", test.name, err)
		}
		if body.closed != test.closed || test.closed && len(servers.Trailer) != 0 {
			t.Errorf("%s: closed %v, the server has %v", test.name, body.closed, servers.Trailer)
		}
		if copied.Trailer != nil {
			t.Errorf("%s: %v", test.name, copied.Trailer)
		}
	}
}

// tokenChars are the characters besides letters and digits that may stand in a
// header name (RFC 9110 5.6.2).
const tokenChars = "!#$%&'*+-.^_`|~"

// No spelling that an app server could fold onto one of our names survives:
// every separator in both positions that count, in both cases.
func TestReservedNamesInEverySpelling(t *testing.T) {
	for _, a := range tokenChars {
		for _, b := range tokenChars {
			for _, form := range []string{"x%coz%cdecision", "X%cOZ%cDecision", "x%cOz%cQ", "X%coZ%c"} {
				name := strings.Replace(strings.Replace(form, "%c", string(a), 1), "%c", string(b), 1)
				if !reserved(name) {
					t.Errorf("%q is not reserved", name)
				}
			}
		}
	}
}

// An independent fold: what CGI, WSGI, Rack and PHP do between them.
func fold(name string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case 'A' <= c && c <= 'Z':
			return c + 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			return c
		}
		return '-'
	}, name)
}

func FuzzReserved(f *testing.F) {
	for _, seed := range []string{"X-Oz-Decision", "x_oz_decision", "X.Oz.Decision", "Xoz-Decision", "X-Ozz-A", "", "x-oz", "x-oz-"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if want := strings.HasPrefix(fold(strings.ToValidUTF8(name, "-")), "x-oz-"); reserved(strings.ToValidUTF8(name, "-")) != want {
			t.Errorf("reserved(%q) = %v", name, !want)
		}
	})
}

func TestOtherNamesStay(t *testing.T) {
	for _, name := range []string{"X-Ozone", "Xoz-Decision", "X-Oz", "Oz-Decision", "X-O-Z-Decision", "Cookie", "X-Request-Id", ""} {
		if reserved(name) {
			t.Errorf("%q is reserved", name)
		}
	}
}

func TestStripReserved(t *testing.T) {
	for _, test := range []struct {
		name     string
		in, want http.Header
	}{
		{
			name: "fields in all spellings, every line of them",
			in:   http.Header{"X-Oz-Decision": {"SUCCESS", "SUCCESS"}, "X_oz_decision": {"a"}, "X.oz|reason": {"b"}, "Cookie": {"c"}},
			want: http.Header{"Cookie": {"c"}},
		},
		{
			name: "names in Connection, which keeps its other options",
			in:   http.Header{"Connection": {"", "keep-alive, x-oz-decision", "X_OZ_Seal ,Upgrade"}},
			want: http.Header{"Connection": {"keep-alive, Upgrade"}},
		},
		{
			name: "a Connection of nothing but reserved names",
			in:   http.Header{"Connection": {"X-Oz-Decision, ,"}},
			want: http.Header{},
		},
		{
			name: "an ordinary Connection stays as it is",
			in:   http.Header{"Connection": {"close", "Upgrade,  x"}},
			want: http.Header{"Connection": {"close", "Upgrade,  x"}},
		},
		{
			name: "the announcement of trailers",
			in:   http.Header{"Trailer": {"X-Oz-Decision"}},
			want: http.Header{},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.Header, r.Trailer = test.in, http.Header{"X-Oz-Decision": nil}
			stripReserved(r)
			if !reflect.DeepEqual(r.Header, test.want) {
				t.Errorf("header %v, want %v", r.Header, test.want)
			}
			if r.Trailer != nil {
				t.Errorf("trailer %v survived", r.Trailer)
			}
		})
	}
}
