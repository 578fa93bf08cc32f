package caddymodule

import (
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// handed is the request that the app gets for a capsule that Oz answered with doc.
func handed(t *testing.T, fields, doc string, r *http.Request) (*http.Request, string) {
	t.Helper()
	app := new(testApp)
	w := httptest.NewRecorder()
	if err := newHandler(t, answers(201, doc), fields).ServeHTTP(w, r, app); err != nil {
		t.Fatal(err)
	}
	if app.calls != 1 {
		t.Fatalf("the app was called %d times: %d %s", app.calls, w.Code, w.Body)
	}
	return app.request, app.body
}

// The app gets the client's own request, less what described the capsule.
func TestHandedOn(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/verify?a=b&c", strings.NewReader("capsule"))
	for _, name := range []string{"Connection", "Content-Digest", "Content-Md5", "Content-Range", "Digest", "Expect", "Range", "Repr-Digest", "Content_Type"} {
		r.Header[name] = []string{"stale"}
	}
	r.Header.Set("Content-Type", capsuleMediaType)
	r.Header.Set("Content-Length", "7")
	r.Header.Set("Authorization", "Bearer 1")
	r.Header.Set("Cookie", "user=alice")
	r.Host = "app.example.com"
	r = fromClient(httptest.NewRecorder(), r)
	got, body := handed(t, "", success(), r)

	if got.Method != http.MethodPost || got.URL.String() != "/verify?a=b&c" || got.Host != "app.example.com" {
		t.Errorf("%s %s of %s", got.Method, got.URL, got.Host)
	}
	want := http.Header{
		"Authorization": {"Bearer 1"}, "Cookie": {"user=alice"}, "Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))},
		headerDecision: {"SUCCESS"}, "X-Oz-Folder-Id": {"folder-1"}, "X-Oz-Event-Session-Id": {"session-1"},
		"X-Oz-Resolution-Status": {"FINISHED"}, "X-Oz-System-Resolution": {"SUCCESS"}, "X-Oz-Quality": {"SUCCESS"},
	}
	for name := range got.Header {
		if !slices.Equal(got.Header[name], want[name]) {
			t.Errorf("%s: %q, want %q", name, got.Header[name], want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	if got.ContentLength != int64(len(body)) || got.TransferEncoding != nil || got.Trailer != nil {
		t.Errorf("%d, %v, %v", got.ContentLength, got.TransferEncoding, got.Trailer)
	}
}

// Placeholders of the header are the delivered request's for the handlers after
// this one, and the client's for those around it, however the app ends: what
// they send elsewhere must not carry the decision a second time.
func TestDeliveredHeaderIsForTheNextHandlers(t *testing.T) {
	shown := func(r *http.Request) string {
		repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		return repl.ReplaceAll("{http.request.header.X-Oz-Decision} {http.request.header.Content-Type} {http.request.header.X-Kept}", "")
	}
	for name, end := range map[string]func() error{
		"answers": func() error { return nil },
		"fails":   func() error { return http.ErrNotSupported },
		"panics":  func() error { panic(http.ErrAbortHandler) },
	} {
		w := httptest.NewRecorder()
		r := newCapsuleRequest(w, strings.NewReader("capsule"))
		r.Header.Set("X-Kept", "kept")
		seen := ""
		func() {
			defer func() { _ = recover() }()
			_ = newHandler(t, answers(201, success()), "").ServeHTTP(w, r, caddyhttp.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
				seen = shown(r)
				return end()
			}))
		}()
		if after := shown(r); seen != "SUCCESS application/json kept" || after != "  kept" {
			t.Errorf("%s: the app saw %q, afterwards it was %q", name, seen, after)
		}
		if body, err := io.ReadAll(r.Body); len(body) > 0 || err != nil || r.ContentLength != 0 {
			t.Errorf("%s: afterwards there was a body of %d, %v", name, r.ContentLength, err)
		}
	}
}

// Error routes for what goes wrong after the decision see what the client
// sent, less the reserved names and the spent capsule.
func TestErrorRoutesSeeTheClientsHeader(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/verify", strings.NewReader("capsule"))
	r.Header = http.Header{"Content-Type": {capsuleMediaType}, "X-Kept": {"a", "b"}, "X-Oz-Decision": {"SUCCESS"}}
	w := httptest.NewRecorder()
	r = fromClient(w, r)
	err := newHandler(t, answers(201, success()), "").ServeHTTP(w, r, caddyhttp.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		r.Header["X-Kept"] = []string{"changed"}
		return caddyhttp.Error(502, nil)
	}))
	if err == nil || !reflect.DeepEqual(r.Header, http.Header{"X-Kept": {"a", "b"}}) {
		t.Errorf("%v: %v", err, r.Header)
	}
	if r.Body != http.NoBody || r.ContentLength != 0 {
		t.Errorf("there is a body of %d bytes", r.ContentLength)
	}
}

func TestBodyOfTheApp(t *testing.T) {
	whole := success()
	stripped := strings.Replace(whole, `"image_b64": "`+testShot+`"`, "", 1)
	for _, test := range []struct{ fields, want string }{
		{"", stripped},
		{`{"best_shot": "keep"}`, whole},
		{`{"strip": ["media.#.original_name", "folder_id"]}`, `"media": [{}]`},
	} {
		_, body := handed(t, test.fields, whole, newCapsuleRequest(httptest.NewRecorder(), strings.NewReader("capsule")))
		if body != test.want && !strings.Contains(body, test.want) {
			t.Errorf("%s: %s, want %s", test.fields, body, test.want)
		}
		if strings.Contains(test.fields, "folder_id") && strings.Contains(body, "folder-1") {
			t.Errorf("%s: %s", test.fields, body)
		}
	}
}

// parts of a multipart body: name, file name, type and content of each.
func parts(t *testing.T, r *http.Request, body string) (all [][4]string) {
	t.Helper()
	mediaType, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "multipart/form-data" {
		t.Fatalf("%s, %v", mediaType, err)
	}
	reader := multipart.NewReader(strings.NewReader(body), params["boundary"])
	for {
		p, err := reader.NextRawPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, [4]string{p.FormName(), p.FileName(), p.Header.Get("Content-Type"), string(content)})
	}
}

// An image that cannot be used costs the app the image and not the decision.
func TestAttachedBestShots(t *testing.T) {
	shots := func(values ...string) string {
		return strings.Replace(success(), `{"image_b64": "`+testShot+`"}`, strings.Join(values, ","), 1)
	}
	good, bad := `{"image_b64": "`+testShot+`"}`, `{"image_b64": "!"}`
	for _, test := range []struct {
		name, doc, word string
		images          int
	}{
		{"one", success(), bestShotAttached, 1},
		{"a data URL", shots(`{"image_b64": "data:image/jpeg;base64,` + testShot + `"}`), bestShotAttached, 1},
		{"several", shots(good, good, good), bestShotAttached, 3},
		{"one of two", shots(bad, good), bestShotAttached, 1},
		{"one of two, the other way", shots(good, bad), bestShotAttached, 1},
		{"no base64", shots(bad), bestShotUnusable, 0},
		{"no JPEG", shots(`{"image_b64": "aGVsbG8="}`), bestShotUnusable, 0},
		{"none", shots("{}"), bestShotAbsent, 0},
		{"null", shots(`{"image_b64": null}`), bestShotAbsent, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, body := handed(t, `{"best_shot": "attach"}`, test.doc, newCapsuleRequest(httptest.NewRecorder(), strings.NewReader("capsule")))
			if r.Header.Get(headerDecision) != "SUCCESS" || r.Header.Get("X-Oz-Best-Shot") != test.word {
				t.Errorf("%v", r.Header)
			}
			got := parts(t, r, body)
			if len(got) != 1+test.images || got[0][0] != "folder" || got[0][2] != "application/json" || strings.Contains(got[0][3], "image_b64") {
				t.Fatalf("%d parts, the first is %q", len(got), got[0])
			}
			for i, p := range got[1:] {
				name := "best_shot"
				if i > 0 {
					name = fmt.Sprintf("best_shot_%d", i+1)
				}
				if p != [4]string{name, name + ".jpeg", "image/jpeg", string(testJPEG)} {
					t.Errorf("%q %q %q, %d bytes", p[0], p[1], p[2], len(p[3]))
				}
			}
		})
	}
}

// An app that redirects a decided request to itself would get the capsule again.
func TestRedirectsAreWarnedOf(t *testing.T) {
	for _, test := range []struct {
		status   int
		location string
		warns    bool
	}{
		{301, "/verify/", true}, {307, "/verify/", true}, {308, "http://example.com/verify/", true}, {308, "https://EXAMPLE.com/verify", true},
		{303, "/welcome", false}, {302, "/welcome", false}, {301, "https://other.example/verify/", false}, {200, "/verify/", false},
	} {
		h := newHandler(t, answers(201, success()), "")
		logs := h.observed()
		h.posted(t, caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Location", test.location)
			w.WriteHeader(test.status)
			return nil
		}), "capsule")
		if warned := logs.FilterMessageSnippet("redirects").Len() == 1; warned != test.warns {
			t.Errorf("%d %s: warned %v", test.status, test.location, warned)
		}
	}
}
