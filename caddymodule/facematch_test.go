package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/gif"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// The first image of a QUALITY analysis is matched, and none that is of another
// kind or no image.
func TestFirstOfQuality(t *testing.T) {
	a, b := []byte("a"), []byte("b")
	folder := &oz.Folder{Analyses: []oz.Analysis{{Type: oz.Biometry}, {Type: oz.Quality}, {Type: "DOCUMENTS"}, {Type: oz.Quality}}}
	for _, test := range []struct {
		name  string
		shots []oz.BestShot
		want  []byte
	}{
		{"none", nil, nil},
		{"of another analysis", []oz.BestShot{{Entry: 0, JPEG: a}, {Entry: 2, JPEG: a}}, nil},
		{"unusable", []oz.BestShot{{Entry: 1}}, nil},
		{"one", []oz.BestShot{{Entry: 0, JPEG: b}, {Entry: 1, JPEG: a}}, a},
		{"two", []oz.BestShot{{Entry: 1, JPEG: a}, {Entry: 3, JPEG: b}}, a},
		{"the first is unusable", []oz.BestShot{{Entry: 1}, {Entry: 3, JPEG: b}}, b},
		{"of no analysis", []oz.BestShot{{Entry: 9, JPEG: a}, {Entry: -1, JPEG: a}}, nil},
	} {
		a := ozclient.Answer{Verdict: oz.Verdict{Folder: folder}, BestShots: test.shots}
		if got := firstOfQuality(a); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// matching is an Oz that finds a live person in every capsule, and compares
// faces by the given answer.
func matching(compare roundTrip) roundTrip {
	return func(req *http.Request) (*http.Response, error) {
		if strings.HasPrefix(req.Header.Get("Content-Type"), "multipart/") {
			return compare(req)
		}
		return answers(201, success())(req)
	}
}

const withBiometry = `{"biometry": {"reference": "/profile/{http.request.cookie.user}/photo?size=l", "max_reference": 5000}}`

// photoApp is an app that has a photo of its user.
type photoApp struct {
	testApp
	photo *http.Request
	serve func(http.ResponseWriter, *http.Request) error
}

func (a *photoApp) ServeHTTP(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodGet {
		return a.testApp.ServeHTTP(w, r)
	}
	a.photo = r
	return a.serve(w, r)
}

func serves(status int, body []byte) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, _ *http.Request) error {
		w.WriteHeader(status)
		_, err := w.Write(body)
		return err
	}
}

// match posts the capsule of a user who is signed in.
func (a *photoApp) match(t *testing.T, h *Handler) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := newCapsuleRequest(w, strings.NewReader("capsule"))
	r.Header.Set("Cookie", "user=ada")
	if err := h.ServeHTTP(w, r, a); err != nil {
		t.Fatal(err)
	}
	return w
}

// Oz gets the user's photo and the best shot, with the tag; the app gets both
// folders, and the decision of the two.
func TestFacesAreMatched(t *testing.T) {
	for _, test := range []struct {
		system, biometry string
		decision, reason string
	}{
		{"SUCCESS", "SUCCESS", "SUCCESS", ""},
		{"DECLINED", "DECLINED", "DECLINED", ""},
		{"OPERATOR_REQUIRED", "OPERATOR_REQUIRED", "OPERATOR_REQUIRED", ""},
		{"SUCCESS", "DECLINED", "FAILED", "analysis_missing"},
	} {
		t.Run(test.system+" "+test.biometry, func(t *testing.T) {
			parts := make(map[string]string)
			h := newHandler(t, matching(func(req *http.Request) (*http.Response, error) {
				_, params, err := mime.ParseMediaType(req.Header.Get("Content-Type"))
				if err != nil {
					t.Error(err)
				}
				for form := multipart.NewReader(req.Body, params["boundary"]); ; {
					part, err := form.NextPart()
					if err != nil {
						break
					}
					content, _ := io.ReadAll(part)
					parts[part.FormName()] = string(content)
				}
				return response(201, matched(test.system, test.biometry)), nil
			}), withBiometry)
			app := &photoApp{serve: serves(200, testPNG)}
			app.match(t, h)

			for name, want := range map[string]string{
				"X-Oz-Decision": test.decision, "X-Oz-Reason": test.reason, "X-Oz-Folder-Id": "folder-1", "X-Oz-Quality": "SUCCESS",
				"X-Oz-Biometry": test.biometry, "X-Oz-System-Resolution": test.system, "X-Oz-Resolution-Status": "FINISHED",
			} {
				if got := app.request.Header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if !strings.HasPrefix(app.body, `{"liveness":{"folder_id": "folder-1"`) || !strings.HasSuffix(app.body, `,"biometry":`+matched(test.system, test.biometry)+`}`) {
				t.Errorf("the app gets %s", app.body)
			}
			if strings.Contains(app.body, testShot) {
				t.Error("the app gets the best shot")
			}
			if len(parts) != 3 || parts["best_shot.jpeg"] != string(testJPEG) || !strings.Contains(parts["payload"], `["photo_selfie"]`) {
				t.Errorf("Oz gets %d parts, and %s", len(parts), parts["payload"])
			}
			for name, content := range parts {
				if strings.HasSuffix(name, ".png") && content != string(testPNG) {
					t.Error("the photo at Oz is not the app's")
				}
			}
		})
	}
}

// The app is asked for the photo as the user would ask for it, and the client's
// own request is not touched by that.
func TestReferenceIsTheUsersOwn(t *testing.T) {
	h := newHandler(t, neverAsked(t), withBiometry)
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/verify?a=b", strings.NewReader("capsule"))
	for _, name := range append([]string{"Connection", "Content-Type", "Content_Length", "Content-Language", "Expect", "Range", "Digest"}, preconditions...) {
		r.Header[name] = []string{"of the capsule"}
	}
	own := http.Header{"Cookie": {"user=a%2f%2Fb"}, "Authorization": {"Bearer x"}, "X-Custom": {"1", "2"}, "User-Agent": {"phone"}}
	maps.Copy(r.Header, own)
	r.Header["Accept"], r.Header["Accept-Encoding"] = []string{"*/*"}, []string{"gzip"}
	r.TransferEncoding = []string{"chunked"}
	r = fromClient(w, r)
	caddyhttp.SetVar(r.Context(), "of the site", "yes")
	r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.auth.user.id", "ada")
	before := r.Header.Clone()

	sub, err := h.Biometry.photoRequest(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := own.Clone()
	want["Accept"], want["Accept-Encoding"] = []string{"image/jpeg, image/png"}, []string{"identity"}
	if !reflect.DeepEqual(sub.Header, want) {
		t.Errorf("header\n%v, want\n%v", sub.Header, want)
	}
	const uri = "/profile/a%252f%252Fb/photo?size=l"
	if sub.Method != http.MethodGet || sub.RequestURI != uri || sub.URL.RequestURI() != uri || sub.Host != r.Host || sub.RemoteAddr != r.RemoteAddr {
		t.Errorf("%s %s (%s) of %s", sub.Method, sub.RequestURI, sub.URL, sub.Host)
	}
	if n, err := sub.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF || sub.ContentLength != 0 || sub.TransferEncoding != nil {
		t.Errorf("it has a body: %d, %v, length %d, %v", n, err, sub.ContentLength, sub.TransferEncoding)
	}
	if caddyhttp.GetVar(sub.Context(), "of the site") != "yes" {
		t.Error("the request's variables are not there")
	}
	repl := sub.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if got := repl.ReplaceAll("{http.auth.user.id} {http.request.uri.path}", ""); got != "ada /profile/a%2f%2Fb/photo" {
		t.Errorf("placeholders: %s", got)
	}

	caddyhttp.SetVar(sub.Context(), "of the site", "changed")
	repl.Set("http.reverse_proxy.upstream.host", "left behind")
	if caddyhttp.GetVar(r.Context(), "of the site") != "yes" {
		t.Error("the photo's request has changed the client's variables")
	}
	if _, left := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Get("http.reverse_proxy.upstream.host"); left {
		t.Error("the photo's request has left placeholders in the client's")
	}
	if r.Method != http.MethodPost || r.URL.RequestURI() != "/verify?a=b" || !reflect.DeepEqual(r.Header, before) {
		t.Errorf("the client's request was changed: %s %s %v", r.Method, r.URL, r.Header)
	}
}

// Whatever keeps a photo from coming has its Reason, and Oz is not asked.
func TestReferenceThatCannotBeHad(t *testing.T) {
	for _, test := range []struct {
		name  string
		serve func(http.ResponseWriter, *http.Request) error
		want  oz.Reason
	}{
		{"404", serves(404, nil), oz.ReferenceMissing},
		{"404 as an error", func(http.ResponseWriter, *http.Request) error { return caddyhttp.Error(404, nil) }, oz.ReferenceMissing},
		{"403 as an error", func(http.ResponseWriter, *http.Request) error { return caddyhttp.Error(403, nil) }, oz.ReferenceUnavailable},
		{"an error", func(http.ResponseWriter, *http.Request) error { return errors.New("no") }, oz.ReferenceUnavailable},
		{"a panic", func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }, oz.ReferenceUnavailable},
		{"no image", serves(200, []byte("<html>")), oz.ReferenceNotImage},
		{"too large", serves(200, make([]byte, 5001)), oz.ReferenceTooLarge},
		{"too large, and then an error", func(w http.ResponseWriter, r *http.Request) error {
			_ = serves(200, make([]byte, 5001))(w, r)
			return r.Context().Err()
		}, oz.ReferenceTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHandler(t, matching(neverAsked(t)), withBiometry)
			logs := h.observed()
			app := &photoApp{serve: test.serve}
			app.match(t, h)
			if got := app.request.Header; got.Get("X-Oz-Decision") != "FAILED" || got.Get("X-Oz-Reason") != string(test.want) || got.Get("X-Oz-Biometry") != "" {
				t.Errorf("the app gets %v", got)
			}
			if !strings.HasSuffix(app.body, `,"biometry":null}`) {
				t.Errorf("the app gets %s", app.body)
			}
			if fields := logs.All()[0].ContextMap(); fields["match_status"] != nil || fields["error"] == nil {
				t.Errorf("the log says %v", fields)
			}
		})
	}
	t.Run("no user", func(t *testing.T) {
		h := newHandler(t, matching(neverAsked(t)), withBiometry)
		app := &photoApp{serve: serves(200, testPNG)}
		h.posted(t, app, "capsule")
		if app.photo != nil || app.request.Header.Get("X-Oz-Reason") != string(oz.ReferenceMissing) {
			t.Errorf("asked for %v: %v", app.photo, app.request.Header)
		}
	})
}

// Without an image that can be matched the app is not even asked.
func TestNoBestShotNoMatch(t *testing.T) {
	for name, shot := range map[string]string{"none": "", "no JPEG": "AAAA"} {
		folder := testFolder("FINISHED", "SUCCESS", "SUCCESS", shot)
		if shot == "" {
			folder = strings.ReplaceAll(folder, "image_b64", "something_else")
		}
		h := newHandler(t, answers(201, folder), withBiometry)
		app := new(photoApp)
		if app.match(t, h); app.photo != nil || app.request.Header.Get("X-Oz-Reason") != string(oz.BestShotMissing) {
			t.Errorf("%s: asked for %v: %v", name, app.photo, app.request.Header)
		}
	}
}

// Only an accept is worth a match.
func TestNoMatchWithoutLiveness(t *testing.T) {
	h := newHandler(t, answers(201, testFolder("FINISHED", "DECLINED", "DECLINED", testShot)), withBiometry)
	app := new(photoApp)
	if app.match(t, h); app.photo != nil || app.request.Header.Get("X-Oz-Decision") != "DECLINED" {
		t.Errorf("asked for %v: %v", app.photo, app.request.Header)
	}
	if !strings.HasSuffix(app.body, `,"biometry":null}`) {
		t.Errorf("the app gets %s", app.body)
	}
}

// A comparison that gives nothing is never an accept, and has the reasons of any
// other call. Its client is never told to send the capsule again, which is used.
func TestMatchThatFails(t *testing.T) {
	for _, test := range []struct {
		name    string
		compare roundTrip
		reason  oz.Reason
		status  int // of the refusal; 0: the app gets it
	}{
		{"busy", answers(503, ""), oz.Overloaded, 503},
		{"unauthorized", answers(401, ""), oz.Unauthorized, 502},
		{"cut", answers(201, matched("SUCCESS", "SUCCESS")[:50]), oz.MalformedAnswer, 502},
		{"not strict", answers(201, `{"a": 1, "a": 2}`), oz.MalformedAnswer, 502},
		{"refused", answers(400, `{"error_code": 3}`), oz.MatchRefused, 0},
		{"refused by another code", answers(400, `{"error_code": 4}`), oz.MatchRefused, 0},
		{"lost", fails(1, io.EOF), oz.ConnectionLost, 502},
		{"unreachable", fails(0, errors.New("refused")), oz.Unreachable, 502},
		{"no faces", answers(201, success()), oz.AnalysisMissing, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHandler(t, matching(test.compare), withBiometry)
			app := &photoApp{serve: serves(200, testJPEG)}
			w := app.match(t, h)
			if test.status != 0 {
				if w.Code != test.status || app.request != nil || !strings.Contains(w.Body.String(), `problem:`+string(test.reason)+`"`) {
					t.Errorf("%d %s", w.Code, w.Body)
				}
				if !strings.Contains(w.Body.String(), "The capsule was used") || strings.Contains(w.Body.String(), "Nothing was sent") {
					t.Errorf("the client is told %s", w.Body)
				}
				return
			}
			if app.request == nil || app.request.Header.Get("X-Oz-Decision") != "FAILED" || app.request.Header.Get("X-Oz-Reason") != string(test.reason) {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

// The app has ten seconds for the photo, and Oz its timeout for the faces.
func TestMatchTakesTooLong(t *testing.T) {
	waits := func(ctx context.Context) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, matching(neverAsked(t)), withBiometry)
		app := &photoApp{serve: func(_ http.ResponseWriter, r *http.Request) error { return waits(r.Context()) }}
		start := time.Now()
		if app.match(t, h); app.request.Header.Get("X-Oz-Reason") != string(oz.ReferenceUnavailable) || time.Since(start) != referenceTimeout {
			t.Errorf("after %s: %v", time.Since(start), app.request.Header)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, matching(func(req *http.Request) (*http.Response, error) {
			_, _ = readAll(req)
			return nil, waits(req.Context())
		}), withBiometry)
		app := &photoApp{serve: serves(200, testPNG)}
		start := time.Now()
		w := app.match(t, h)
		if w.Code != 504 || app.request != nil || time.Since(start) != time.Minute {
			t.Errorf("after %s: %d %s", time.Since(start), w.Code, w.Body)
		}
	})
}

// A client that leaves during the match ends it with client_gone cancel, and
// only then.
func TestClientLeavesDuringTheMatch(t *testing.T) {
	for gone, reaches := range map[string]bool{clientGoneFinish: true, clientGoneCancel: false} {
		for _, during := range []string{"photo", "faces"} {
			t.Run(gone+" "+during, func(t *testing.T) {
				ctx, leave := context.WithCancel(t.Context())
				left := func(ctx context.Context) error {
					leave()
					if !reaches {
						<-ctx.Done() // else it would not be done, ever
					}
					return ctx.Err()
				}
				h := newHandler(t, matching(func(req *http.Request) (*http.Response, error) {
					_, _ = readAll(req)
					if during == "faces" && left(req.Context()) != nil {
						return nil, req.Context().Err()
					}
					return response(201, matched("SUCCESS", "SUCCESS")), nil
				}), strings.TrimSuffix(withBiometry, "}")+`, "client_gone": "`+gone+`"}`)
				app := &photoApp{serve: func(w http.ResponseWriter, r *http.Request) error {
					if during == "photo" && left(r.Context()) != nil {
						return r.Context().Err()
					}
					return serves(200, testPNG)(w, r)
				}}
				w := httptest.NewRecorder()
				r := httptest.NewRequest(http.MethodPost, "/verify", strings.NewReader("capsule")).WithContext(ctx)
				r.Header.Set("Content-Type", capsuleMediaType)
				r.Header.Set("Cookie", "user=ada")
				if err := h.ServeHTTP(w, fromClient(w, r), app); err != nil {
					t.Fatal(err)
				}
				if (app.request != nil) != reaches || !reaches && w.Code != statusClientGone {
					t.Errorf("the app was asked: %v, %d", app.request != nil, w.Code)
				}
				if reaches && app.request.Header.Get("X-Oz-Decision") != "SUCCESS" {
					t.Errorf("the app gets %v", app.request.Header)
				}
			})
		}
	}
}

// What the handlers before the app say of its answer may quote a piece of it.
func TestReferenceIsNotLogged(t *testing.T) {
	h := newHandler(t, answers(201, success()), `{"biometry": {"reference": "/photo"}}`)
	logs := h.observed()
	for _, err := range []error{
		caddyhttp.Error(502, errors.New(`malformed HTTP response "\xff\xd8CANARY-FACE"`)), errors.New("CANARY-FACE"),
	} {
		h.posted(t, caddyhttp.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
			if r.Method == http.MethodGet {
				return err
			}
			return nil
		}), "capsule")
	}
	lines := logs.FilterMessage("capsule decided").All()
	if len(lines) != 2 || lines[0].ContextMap()["reason"] != "reference_unavailable" {
		t.Fatalf("%v", lines)
	}
	for _, line := range logs.All() {
		if text := fmt.Sprint(line.Entry, line.ContextMap()); strings.Contains(text, "CANARY") {
			t.Errorf("%s", text)
		}
	}
}

func newPhotoWriter(limit int64) (p *photoWriter, stopped context.Context) {
	stopped, stop := context.WithCancel(context.Background())
	return &photoWriter{header: make(http.Header), limit: limit, stop: stop}, stopped
}

// reasonOf is the Reason that an error gives.
func reasonOf(err error) oz.Reason {
	if err == nil {
		return ""
	}
	return referenceReason(err)
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
	if err := p.fill(panics(http.ErrAbortHandler), nil); err == nil || err.Error() != "the app's answer was cut off" {
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
