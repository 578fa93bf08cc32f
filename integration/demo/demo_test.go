package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func serve(h http.Handler, method, path, body string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "localhost"
	if header != nil {
		r.Header = header
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestVerifyDecidesByTheHeader(t *testing.T) {
	app := New(Options{})
	for name, c := range map[string]struct {
		decisions []string
		status    int
	}{
		"success":           {[]string{"SUCCESS"}, 200},
		"declined":          {[]string{"DECLINED"}, 403},
		"failed":            {[]string{"FAILED"}, 403},
		"operator":          {[]string{"OPERATOR_REQUIRED"}, 403},
		"unknown word":      {[]string{"success"}, 403},
		"undecided":         {nil, 401},
		"two contradictory": {[]string{"DECLINED", "SUCCESS"}, 401},
	} {
		w := serve(app, "POST", "/verify", "{}", http.Header{"X-Oz-Decision": c.decisions})
		if w.Code != c.status {
			t.Errorf("%s: %d, want %d", name, w.Code, c.status)
		}
	}
	if w := serve(app, "POST", "/verify", "{}", http.Header{"X_oz_decision": {"SUCCESS"}}); w.Code != 401 {
		t.Errorf("another spelling: %d", w.Code)
	}
}

func TestVerifyShowsWhatItReceived(t *testing.T) {
	const folder = `{"folder_id":"f-1","note":"<&>"}`
	w := serve(New(Options{}), "POST", "/verify?x=1", folder, http.Header{
		"X-Oz-Decision": {"SUCCESS"}, "X-Oz-Folder-Id": {"f-1"}, "X_oz_forged": {"1", "2"}, "Cookie": {"secret=1"},
		"Content-Type": {"application/json"},
	})
	var got struct {
		YouSent       string            `json:"you_sent"`
		OzHeaders     map[string]string `json:"oz_headers"`
		ContentType   string            `json:"content_type"`
		ContentLength int               `json:"content_length"`
		Body          map[string]string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.YouSent != "POST /verify" || got.ContentType != "application/json" || got.ContentLength != len(folder) || got.Body["note"] != "<&>" {
		t.Errorf("%+v", got)
	}
	if len(got.OzHeaders) != 3 || got.OzHeaders["X-Oz-Folder-Id"] != "f-1" || got.OzHeaders["X_oz_forged"] != "1, 2" {
		t.Errorf("%v", got.OzHeaders)
	}
	if strings.Contains(w.Body.String(), "secret") || !strings.Contains(w.Body.String(), "<&>") {
		t.Errorf("%s", w.Body)
	}
}

func TestVerifyDoesNotReadWhatWasNotDecided(t *testing.T) {
	r := httptest.NewRequest("POST", "/verify", unreadable{t})
	w := httptest.NewRecorder()
	New(Options{}).ServeHTTP(w, r)
	if w.Code != 401 || !strings.Contains(w.Body.String(), "not decided") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, errors.New("unreadable")
}

func TestVerifyOtherBodies(t *testing.T) {
	app := New(Options{})
	decided := func(kind string) http.Header {
		return http.Header{"X-Oz-Decision": {"SUCCESS"}, "Content-Type": {kind}}
	}
	if w := serve(app, "POST", "/verify", "no JSON", decided("text/plain")); w.Code != 200 || !strings.Contains(w.Body.String(), `"body": "no JSON"`) {
		t.Errorf("text: %d %s", w.Code, w.Body)
	}
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for name, part := range map[string][2]string{"folder": {"application/json", `{"folder_id":"f-1"}`}, "best_shot": {"image/jpeg", "\xff\xd8"}} {
		w, err := form.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="` + name + `"`}, "Content-Type": {part[0]}})
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(part[1]))
	}
	form.Close()
	w := serve(app, "POST", "/verify", body.String(), decided(form.FormDataContentType()))
	if w.Code != 200 || !strings.Contains(w.Body.String(), `"best_shot": "image/jpeg, 2 bytes"`) || !strings.Contains(w.Body.String(), `"folder_id": "f-1"`) {
		t.Errorf("parts: %d %s", w.Code, w.Body)
	}
	if w := serve(app, "POST", "/verify", body.String()[:body.Len()-20], decided(form.FormDataContentType())); w.Code != 400 {
		t.Errorf("cut parts: %d", w.Code)
	}
}

func TestCapsule(t *testing.T) {
	app := New(Options{Capsules: func(_ context.Context, outcome, token string) ([]byte, error) {
		if outcome == "" {
			return nil, errors.New("which outcome?")
		}
		return []byte(outcome + "+" + token), nil
	}})
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/demo/capsule?outcome=SUCCESS", "", 200, "SUCCESS+"},
		{"POST", "/demo/capsule", `{"outcome":"FAILED","session_token":"t"}`, 200, "FAILED+t"},
		{"GET", "/demo/capsule", "", 400, "which outcome?\n"},
		{"POST", "/demo/capsule", "outcome=SUCCESS", 400, "want JSON with outcome, person and session_token\n"},
		{"PUT", "/demo/capsule", "", 405, "GET or POST\n"},
	} {
		w := serve(app, c.method, c.path, c.body, nil)
		if w.Code != c.status || w.Body.String() != c.want {
			t.Errorf("%s %s: %d %q", c.method, c.path, w.Code, w.Body)
		}
		if kind := w.Header().Get("Content-Type"); c.status == 200 && kind != "application/octet-stream" {
			t.Errorf("%s %s: %s", c.method, c.path, kind)
		}
	}
	if w := serve(New(Options{}), "GET", "/demo/capsule?outcome=SUCCESS", "", nil); w.Code != 404 {
		t.Errorf("without a maker: %d", w.Code)
	}
}

// The page sends its recording along, and gets it back within the capsule.
func TestCapsuleAroundAClip(t *testing.T) {
	app := New(Options{Capture: func(_ context.Context, s Scene) ([]byte, error) {
		return fmt.Appendf(nil, "%s %s %s %d %s", s.Outcome, s.Fault, s.Transaction, s.Padding, s.Clip), nil
	}})
	form := func(parts ...string) (string, http.Header) {
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		for i := 0; i < len(parts); i += 2 {
			part, err := w.CreateFormFile(parts[i], "blob")
			if err != nil {
				t.Fatal(err)
			}
			part.Write([]byte(parts[i+1]))
		}
		w.Close()
		return body.String(), http.Header{"Content-Type": {w.FormDataContentType()}}
	}
	const scene = `{"outcome":"SUCCESS","fault":"cut","transaction":"t-1","padding":7}`
	for name, c := range map[string]struct {
		parts  []string
		cut    int
		status int
		want   string
	}{
		"a clip":        {[]string{"scene", scene, "clip", "\x00film"}, 0, 200, "SUCCESS cut t-1 7 \x00film"},
		"other order":   {[]string{"clip", "film", "other", "ignored", "scene", scene}, 0, 200, "SUCCESS cut t-1 7 film"},
		"no clip":       {[]string{"scene", scene}, 0, 200, "SUCCESS cut t-1 7 "},
		"no JSON":       {[]string{"scene", "outcome", "clip", "film"}, 0, 400, "want JSON"},
		"padding":       {[]string{"scene", `{"padding":99999999999}`}, 0, 400, "padding: want 0 to"},
		"less than 0":   {[]string{"scene", `{"padding":-1}`}, 0, 400, "padding: want 0 to"},
		"cut":           {[]string{"scene", scene, "clip", "film"}, 20, 400, ""},
		"a large film":  {[]string{"scene", scene, "clip", strings.Repeat("x", maxClip)}, 0, 400, "too large"},
		"a large scene": {[]string{"scene", strings.Repeat(" ", 1<<16) + scene}, 0, 400, "want JSON"},
	} {
		body, header := form(c.parts...)
		w := serve(app, "POST", "/demo/capsule", body[:len(body)-c.cut], header)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: %d %.200q", name, w.Code, w.Body)
		}
	}
}

// A small request asks for a large capsule, so few are made at once.
func TestCapsulesAtOnce(t *testing.T) {
	making, goOn := make(chan struct{}), make(chan struct{})
	var open atomic.Int32
	app := New(Options{Capture: func(context.Context, Scene) ([]byte, error) {
		defer open.Add(-1)
		if n := open.Add(1); n > maxCaptures {
			return nil, fmt.Errorf("%d at once", n)
		}
		making <- struct{}{}
		<-goOn
		return nil, nil
	}})
	ask := func() int { return serve(app, "GET", "/demo/capsule?outcome=SUCCESS", "", nil).Code }
	var all sync.WaitGroup
	for range maxCaptures {
		all.Go(func() {
			if status := ask(); status != 200 {
				t.Errorf("got %d", status)
			}
		})
		<-making
	}
	if status := ask(); status != 503 {
		t.Errorf("one more got %d", status)
	}
	close(goOn)
	all.Wait()
	all.Go(func() { <-making })
	if status := ask(); status != 200 {
		t.Errorf("after them one got %d", status)
	}
	all.Wait()
}

func TestVerifyShowsWhatOzSent(t *testing.T) {
	app := New(Options{OzSent: func(folderID string) (int64, bool) {
		if folderID == "f-1" {
			return 411_000, true
		}
		return 0, false
	}})
	for id, want := range map[string]bool{"f-1": true, "f-2": false} {
		w := serve(app, "POST", "/verify", "{}", http.Header{"X-Oz-Decision": {"SUCCESS"}, "X-Oz-Folder-Id": {id}, "Content-Type": {"application/json"}})
		if got := strings.Contains(w.Body.String(), `"oz_answer_bytes": 411000`); got != want {
			t.Errorf("%s: %s", id, w.Body)
		}
	}
}

func TestCaptureKnowsWhoIsThere(t *testing.T) {
	app := New(Options{
		Capture: func(_ context.Context, s Scene) ([]byte, error) {
			return []byte(s.Person + "+" + s.Outcome + "+" + s.SessionToken), nil
		},
		Capsules: func(context.Context, string, string) ([]byte, error) { return nil, errors.New("Capture comes first") },
	})
	for body, want := range map[string]string{
		`{"outcome":"FAILED","person":"alice","session_token":"t"}`: "alice+FAILED+t",
		`{"outcome":"FAILED"}`: "+FAILED+",
	} {
		if w := serve(app, "POST", "/demo/capsule", body, nil); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: %d %q", body, w.Code, w.Body)
		}
	}
	if w := serve(app, "GET", "/demo/capsule?outcome=SUCCESS&person=bob", "", nil); w.Body.String() != "bob+SUCCESS+" {
		t.Errorf("%q", w.Body)
	}
}

func TestProfilePhoto(t *testing.T) {
	const jpeg, png = "\xff\xd8\xff\xe0 a photo", "\x89PNG\r\n\x1a\n a photo"
	photos := func(_ context.Context, user string) ([]byte, bool) {
		photo, ok := map[string]string{"alice": jpeg, "bob": png}[user]
		return []byte(photo), ok
	}
	for name, c := range map[string]struct {
		photos func(context.Context, string) ([]byte, bool)
		cookie string
		status int
		kind   string
		body   string
	}{
		"alice":             {photos, "user=alice", 200, "image/jpeg", jpeg},
		"a PNG":             {photos, "theme=dark; user=bob", 200, "image/png", png},
		"nobody":            {photos, "", 401, "", "nobody is signed in\n"},
		"signed out":        {photos, "user=", 401, "", "nobody is signed in\n"},
		"another cookie":    {photos, "User=alice", 401, "", "nobody is signed in\n"},
		"no photo":          {photos, "user=carol", 404, "", "this user has no photo\n"},
		"photos of no one":  {nil, "user=alice", 404, "", "this user has no photo\n"},
		"nobody, no photos": {nil, "", 401, "", "nobody is signed in\n"},
	} {
		header := http.Header{}
		if c.cookie != "" {
			header.Set("Cookie", c.cookie)
		}
		w := serve(New(Options{Photos: c.photos}), "GET", "/profile/photo", "", header)
		if w.Code != c.status || w.Body.String() != c.body || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v %q", name, w.Code, w.Header(), w.Body)
		}
		if kind := w.Header().Get("Content-Type"); c.kind != "" && kind != c.kind {
			t.Errorf("%s: %s", name, kind)
		}
	}
	if w := serve(New(Options{Photos: photos}), "POST", "/profile/photo", "", nil); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}
}

// With face matching the app gets two folders, as its body or in the part "folder".
func TestVerifyShowsBothFolders(t *testing.T) {
	const folders = `{"liveness":{"folder_id":"l-1","system_resolution":"SUCCESS"},"biometry":{"folder_id":"b-1","system_resolution":"DECLINED"}}`
	multi := "--x\r\nContent-Disposition: form-data; name=\"folder\"\r\nContent-Type: application/json\r\n\r\n" + folders +
		"\r\n--x\r\nContent-Disposition: form-data; name=\"best_shot\"\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8\r\n--x--\r\n"
	for name, c := range map[string]struct {
		kind, body string
		want       map[string]string
		ids        []string
	}{
		"two folders": {"application/json", folders, map[string]string{"liveness": "SUCCESS", "biometry": "DECLINED"}, []string{"l-1", "b-1"}},
		"in parts":    {"multipart/form-data; boundary=x", multi, map[string]string{"liveness": "SUCCESS", "biometry": "DECLINED"}, []string{"l-1", "b-1", "image/jpeg, 2 bytes"}},
		"one folder":  {"application/json", `{"folder_id":"l-1","system_resolution":"SUCCESS"}`, nil, []string{"l-1"}},
		"no biometry": {"application/json", `{"liveness":{"folder_id":"l-1"},"biometry":"none"}`, map[string]string{"liveness": ""}, []string{"l-1"}},
		"an array":    {"application/json", `["liveness"]`, nil, []string{"liveness"}},
		"a text":      {"text/plain", `liveness`, nil, []string{"liveness"}},
	} {
		w := serve(New(Options{}), "POST", "/verify", c.body, http.Header{"X-Oz-Decision": {"DECLINED"}, "Content-Type": {c.kind}})
		var got struct{ Resolutions map[string]string }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 403 || !maps.Equal(got.Resolutions, c.want) {
			t.Errorf("%s: %d %v %v", name, w.Code, got, err)
		}
		for _, id := range c.ids {
			if !strings.Contains(w.Body.String(), id) {
				t.Errorf("%s: no %s in %s", name, id, w.Body)
			}
		}
	}
}
