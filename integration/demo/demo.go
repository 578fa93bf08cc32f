// Package demo is the app that already exists: a page with a button, and an endpoint that decides by reading a header. It
// stands for whatever runs behind the gateway, knows nothing of Oz and handles no capsule.
//
//	GET  /                a page that gets a capsule, posts it and shows what the app received; see page/app.js
//	POST /verify          answers JSON that repeats what the app received
//	GET  /profile/photo   the reference photo of who is signed in, for a gateway that matches faces
//	POST /demo/capsule    makes the capsule that the vendor's SDK would make in the browser (GET does, too)
//	GET  /demo/status     what Caddy's admin API says about the gateway, if [Options.Admin] is set
//	POST /demo/flood      posts many capsules at once to the gateway, if [Options.Site] is set; GET says how that fares
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
)

// DefaultSessionTokenPath is where the page asks the gateway for a session token.
const DefaultSessionTokenPath = "/session_token"

// maxBody is as much as a gateway that leaves the best shot in will deliver.
const maxBody = 64 << 20

// The limits of what the page asks a capsule to be made of.
const (
	maxClip    = 16 << 20
	maxPadding = 24 << 20
)

// maxCaptures is how many capsules are made and sent at once. Each may take 100 MB for as long as its reader likes, and anybody who
// reaches the page may ask for one.
const maxCaptures = 4

// Options for New. The zero value is an app without a maker of capsules.
type Options struct {
	// Capture makes a capsule in place of the vendor's SDK. Nil: Capsules does.
	Capture func(ctx context.Context, scene Scene) ([]byte, error)

	// Capsules is Capture for a camera that everybody looks the same to. Nil as well: /demo/capsule answers 404, as it would
	// in a real app.
	Capsules func(ctx context.Context, outcome, sessionToken string) ([]byte, error)

	// Photos returns the reference photo of a user, if there is one. Nil: nobody has one.
	Photos func(ctx context.Context, user string) (photo []byte, ok bool)

	// Site is the address of the gateway, such as http://localhost:8080, for floods. Empty: no floods.
	Site string

	// Admin is the address of Caddy's admin API, such as http://localhost:2019. Empty: the page does not show the gateway.
	Admin string

	// OzSent returns how many bytes Oz answered with, for the folder with this id: only a sandbox can tell. Nil: not shown.
	OzSent func(folderID string) (bytes int64, ok bool)

	// SessionTokenPath is the gateway's session_token path. The page asks there first and does without if nothing answers.
	// Default: DefaultSessionTokenPath.
	SessionTokenPath string
}

// Scene is what the camera sees, and what is to come of it.
type Scene struct {
	Outcome      string `json:"outcome"`       // how the analysis is to end
	Fault        string `json:"fault"`         // what goes wrong at Oz with this capsule; empty: nothing
	Person       string `json:"person"`        // who is in front of the camera; empty: somebody without a name
	Transaction  string `json:"transaction"`   // what the app ties the capsule to, as its metadata transaction_id
	SessionToken string `json:"session_token"` // what the page got from the gateway; empty when the gateway gives none
	Padding      int64  `json:"padding"`       // how many bytes the capsule is to be larger than its clip
	Clip         []byte `json:"-"`             // what was recorded; nil: anything
}

// New returns the app. It panics if Site isn't a URL.
func New(o Options) http.Handler {
	if o.SessionTokenPath == "" {
		o.SessionTokenPath = DefaultSessionTokenPath
	}
	if o.Capture == nil && o.Capsules != nil {
		o.Capture = func(ctx context.Context, s Scene) ([]byte, error) { return o.Capsules(ctx, s.Outcome, s.SessionToken) }
	}
	if o.Capture == nil {
		o.Site = ""
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", page(o))
	mux.HandleFunc("GET /assets/{file}", asset)
	mux.HandleFunc("POST /verify", o.verify)
	mux.HandleFunc("GET /profile/photo", o.photo)
	if o.Capture != nil {
		mux.HandleFunc("/demo/capsule", atOnce(maxCaptures, o.capsule))
	}
	if o.Admin != "" {
		mux.HandleFunc("GET /demo/status", o.status)
	}
	if o.Site != "" {
		f, err := newFlood(o.Site, func(ctx context.Context) ([]byte, error) {
			return o.Capture(ctx, Scene{Outcome: "SUCCESS", Clip: make([]byte, floodPayload)})
		})
		if err != nil {
			panic(err)
		}
		mux.HandleFunc("POST /demo/flood", f.start)
		mux.HandleFunc("GET /demo/flood", f.show)
	}
	return mux
}

// received is what the app was sent, as it tells the page.
type received struct {
	YouSent       string            `json:"you_sent"`
	Verdict       string            `json:"verdict"`
	OzHeaders     map[string]string `json:"oz_headers"`
	ContentType   string            `json:"content_type"`
	ContentLength int64             `json:"content_length"`
	Resolutions   map[string]string `json:"resolutions,omitempty"`     // of each folder, when there are several
	OzAnswerBytes int64             `json:"oz_answer_bytes,omitempty"` // of Oz's answer, before anything was cut
	Body          any               `json:"body"`
}

// verify is all that an app has to do: read one header. Everything else here is for show.
func (o Options) verify(w http.ResponseWriter, r *http.Request) {
	status, verdict := decide(r.Header)
	out := received{
		YouSent: r.Method + " " + r.URL.Path, Verdict: verdict, OzHeaders: ozHeaders(r.Header),
		ContentType: r.Header.Get("Content-Type"), ContentLength: r.ContentLength,
	}
	if status != http.StatusUnauthorized { // an undecided body may be anything: not read
		body, err := readBody(r)
		if err != nil {
			status, out.Verdict = http.StatusBadRequest, "body unreadable"
		}
		out.Body, out.Resolutions = body, resolutions(body)
		if o.OzSent != nil {
			out.OzAnswerBytes, _ = o.OzSent(r.Header.Get("X-Oz-Folder-Id"))
		}
	}
	writeJSON(w, status, out)
}

func decide(h http.Header) (status int, verdict string) {
	switch decisions := h.Values("X-Oz-Decision"); {
	case len(decisions) != 1:
		return http.StatusUnauthorized, "not decided: this request did not come through oz_instant"
	case decisions[0] == "SUCCESS":
		return http.StatusOK, "welcome"
	default:
		return http.StatusForbidden, "no entry"
	}
}

// ozHeaders are the headers of the gateway, and any spelling that some app might take for one.
func ozHeaders(h http.Header) map[string]string {
	out := map[string]string{}
	for name, values := range h {
		folded := strings.Map(func(c rune) rune {
			if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' {
				return c
			}
			return '-'
		}, strings.ToLower(name))
		if strings.HasPrefix(folded, "x-oz-") {
			out[name] = strings.Join(values, ", ")
		}
	}
	return out
}

// readBody returns the folder, or the names and sizes of the parts when the best shot came beside it.
func readBody(r *http.Request) (any, error) {
	body := http.MaxBytesReader(nil, r.Body, maxBody)
	if kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && kind == "multipart/form-data" {
		return readParts(multipart.NewReader(body, params["boundary"]))
	}
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	return jsonOrText(content), nil
}

func readParts(parts *multipart.Reader) (map[string]any, error) {
	out := map[string]any{}
	for {
		part, err := parts.NextPart()
		if err == io.EOF { // a wrapped one is a body that was cut
			return out, nil
		}
		if err != nil {
			return out, err
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return out, err
		}
		if part.Header.Get("Content-Type") == "application/json" {
			out[part.FormName()] = jsonOrText(content)
		} else {
			out[part.FormName()] = fmt.Sprintf("%s, %d bytes", part.Header.Get("Content-Type"), len(content))
		}
	}
}

// resolutions looks for folders within a body: with face matching there are two, "liveness" and "biometry".
func resolutions(body any) map[string]string {
	if parts, ok := body.(map[string]any); ok { // the best shot came beside them
		body = parts["folder"]
	}
	text, ok := body.(json.RawMessage)
	if !ok {
		return nil
	}
	var folders map[string]json.RawMessage
	if json.Unmarshal(text, &folders) != nil {
		return nil
	}
	out := map[string]string{}
	for _, name := range []string{"liveness", "biometry"} {
		var folder struct {
			Resolution string `json:"system_resolution"`
		}
		if json.Unmarshal(folders[name], &folder) == nil {
			out[name] = folder.Resolution
		}
	}
	return out
}

func jsonOrText(content []byte) any {
	if json.Valid(content) {
		return json.RawMessage(content)
	}
	return string(content)
}

// photo serves the photo that a user gave when signing up. Who that is, the cookie says: a demo, where anybody may be
// anybody. In a real app this is the address of an ordinary profile picture, behind its ordinary log-in.
func (o Options) photo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	user, err := r.Cookie("user")
	if err != nil || user.Value == "" {
		http.Error(w, "nobody is signed in", http.StatusUnauthorized)
		return
	}
	var photo []byte
	var ok bool
	if o.Photos != nil {
		photo, ok = o.Photos(r.Context(), user.Value)
	}
	if !ok {
		http.Error(w, "this user has no photo", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", http.DetectContentType(photo))
	w.Header().Set("Content-Length", strconv.Itoa(len(photo)))
	w.Write(photo)
}

// atOnce refuses a request while limit others are in progress.
func atOnce(limit int, next http.HandlerFunc) http.HandlerFunc {
	places := make(chan struct{}, limit)
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			next(w, r)
		default:
			http.Error(w, "too many at once: try again", http.StatusServiceUnavailable)
		}
	}
}

// capsule does what the SDK does in real life.
func (o Options) capsule(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	scene := Scene{Outcome: r.URL.Query().Get("outcome"), Person: r.URL.Query().Get("person")}
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, maxClip)
		if err := scene.read(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "GET or POST", http.StatusMethodNotAllowed)
		return
	}
	capsule, err := o.Capture(r.Context(), scene)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(capsule)
}

// read takes a scene from a request: from JSON, or from a form with that JSON as its part "scene" and the recording as "clip". The
// recording is held in memory: the parser for whole forms would write a large one to a file.
func (s *Scene) read(r *http.Request) error {
	form, err := r.MultipartReader()
	if err != nil {
		return s.readJSON(r.Body)
	}
	for {
		part, err := form.NextPart()
		switch {
		case err == io.EOF:
			return s.check()
		case err != nil:
			return errors.New("the form is cut, or larger than " + strconv.Itoa(maxClip) + " bytes")
		}
		switch part.FormName() {
		case "scene":
			err = s.readJSON(part)
		case "clip":
			s.Clip, err = io.ReadAll(part)
		}
		if err != nil {
			return err
		}
	}
}

func (s *Scene) readJSON(body io.Reader) error {
	if json.NewDecoder(io.LimitReader(body, 1<<16)).Decode(s) != nil {
		return errors.New("want JSON with outcome, person and session_token")
	}
	return s.check()
}

func (s *Scene) check() error {
	if s.Padding < 0 || s.Padding > maxPadding {
		return errors.New("padding: want 0 to " + strconv.Itoa(maxPadding))
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	enc.Encode(v) // the client may have left
}
