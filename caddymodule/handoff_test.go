package caddymodule

import (
	"context"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
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

// The app gets the client's own request, less what described the capsule. The
// client's header is left as it was, for error routes.
func TestHandedOn(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/verify?a=b&c", strings.NewReader("capsule"))
	for _, name := range staleHeaders {
		if name != "Transfer-Encoding" && name != "Content-Encoding" && name != "Trailer" {
			r.Header.Set(name, "stale")
		}
	}
	r.Header.Set("Content-Type", capsuleMediaType)
	r.Header.Set("Content-Length", "7")
	r.Header.Set("Authorization", "Bearer 1")
	r.Header.Set("Cookie", "user=alice")
	r.Host = "app.example.com"
	r = fromClient(httptest.NewRecorder(), r)
	before := r.Header.Clone()
	got, body := handed(t, "", success(), r)

	if got.Method != http.MethodPost || got.URL.String() != "/verify?a=b&c" || got.Host != "app.example.com" {
		t.Errorf("%s %s of %s", got.Method, got.URL, got.Host)
	}
	want := http.Header{
		"Authorization": {"Bearer 1"}, "Cookie": {"user=alice"}, "Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))},
		headerDecision: {"SUCCESS"}, headerFolderID: {"folder-1"}, headerEventSessionID: {"session-1"},
		headerResolutionStatus: {"FINISHED"}, headerSystemResolution: {"SUCCESS"}, headerQuality: {"SUCCESS"},
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
	for name := range before {
		if !slices.Equal(r.Header[name], before[name]) {
			t.Errorf("of the client's own request, %s was changed to %q", name, r.Header[name])
		}
	}
	if r.Header.Get(headerDecision) != "" {
		t.Error("the client's own request has a decision")
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
		_, body := handed(t, test.fields, whole, capsuleRequest(httptest.NewRecorder(), strings.NewReader("capsule")))
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
	image := [4]string{"best_shot", "best_shot.jpeg", "image/jpeg", string(testJPEG)}
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
			r, body := handed(t, `{"best_shot": "attach"}`, test.doc, capsuleRequest(httptest.NewRecorder(), strings.NewReader("capsule")))
			if r.Header.Get(headerDecision) != "SUCCESS" || r.Header.Get(headerBestShot) != test.word {
				t.Errorf("%v", r.Header)
			}
			got := parts(t, r, body)
			if len(got) != 1+test.images || got[0][0] != "folder" || got[0][2] != "application/json" || strings.Contains(got[0][3], "image_b64") {
				t.Fatalf("%d parts, the first is %q", len(got), got[0])
			}
			for _, p := range got[1:] {
				if p != image {
					t.Errorf("%q %q %q, %d bytes", p[0], p[1], p[2], len(p[3]))
				}
			}
		})
	}
}

// With finish the app has appGrace when its client has left, and as long as it
// likes while it is there. With cancel it ends with its client.
func TestAppContext(t *testing.T) {
	left := func(t *testing.T, clientGone string, o outcome) (ctx context.Context, leave, stop func()) {
		client, leave := context.WithCancel(t.Context())
		h := &Handler{ClientGone: clientGone}
		ctx, stop = h.appContext(httptest.NewRequest(http.MethodPost, "/", nil).WithContext(client), o)
		return ctx, leave, stop
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, leave, stop := left(t, clientGoneFinish, outcome{})
		defer stop()
		time.Sleep(time.Hour)
		leave()
		time.Sleep(appGrace - time.Nanosecond)
		if synctest.Wait(); ctx.Err() != nil {
			t.Error("finish: it ended with its client")
		}
		time.Sleep(time.Nanosecond)
		if synctest.Wait(); ctx.Err() == nil {
			t.Error("finish: it goes on for good")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, leave, stop := left(t, clientGoneFinish, outcome{})
		stop()
		if leave(); ctx.Err() == nil {
			t.Error("finish: stopped, it goes on")
		}
	})
	ctx, leave, stop := left(t, clientGoneCancel, outcome{})
	defer stop()
	if leave(); ctx.Err() == nil {
		t.Error("cancel: it outlives its client")
	}
	// The request's own context says nothing of the client any more.
	ctx, leave, stop = left(t, clientGoneCancel, outcome{interrupted: true})
	defer stop()
	if leave(); ctx.Err() != nil {
		t.Error("interrupted: it ended at once")
	}
}
