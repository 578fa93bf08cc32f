package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// start runs a sandbox on a real socket.
func start(t *testing.T, o Options) (*Sandbox, string) {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(s)
	server.Listener = s.Listener(server.Listener)
	server.Start()
	t.Cleanup(func() {
		s.Close()
		server.Close()
	})
	return s, server.URL
}

// patience is how long the tests wait for what must happen. Nobody waits that long unless something is wrong.
const patience = 30 * time.Second

// client follows nothing, asks for no compression and shares no connections.
var client = &http.Client{
	Transport:     &http.Transport{DisableCompression: true, DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

type reply struct {
	status int
	header http.Header
	body   []byte
}

// try posts a capsule and returns what came, even when it broke off.
func try(t *testing.T, url string, capsule io.Reader) (reply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+FoldersPath, capsule)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	return do(req)
}

func do(req *http.Request) (reply, error) {
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, body}, err
}

// post is try for answers that arrive in whole.
func post(t *testing.T, url string, capsule []byte) reply {
	t.Helper()
	r, err := try(t, url, bytes.NewReader(capsule))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func get(t *testing.T, method, url string, header ...string) reply {
	t.Helper()
	r, err := tryGet(t, method, url, header...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryGet(t *testing.T, method, url string, header ...string) (reply, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	return do(req)
}

// wantError checks the one shape that errors have.
func (r reply) wantError(t *testing.T, status, code int) {
	t.Helper()
	var e map[string]any
	if err := json.Unmarshal(r.body, &e); err != nil {
		t.Fatalf("%v in %q", err, r.body)
	}
	_, hasDetails := e["details"]
	if r.status != status || e["error_code"] != float64(code) || e["error_message"] == "" || !hasDetails || len(e) != 3 {
		t.Errorf("got %d %s, want %d with code %d", r.status, r.body, status, code)
	}
	if got := r.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
}

// folderOf reads an answer the way an app would.
type folderView struct {
	ID         string         `json:"folder_id"`
	Status     string         `json:"resolution_status"`
	Resolution string         `json:"system_resolution"`
	Comment    any            `json:"resolution_comment"`
	Meta       map[string]any `json:"meta_data"`
	Media      []map[string]any
	Analyses   []struct {
		ID          string `json:"analyse_id"`
		Type        string
		State       string
		Status      string         `json:"resolution_status"`
		Code        any            `json:"error_code"`
		Message     any            `json:"error_message"`
		Data        map[string]any `json:"results_data"`
		SourceMedia []any          `json:"source_media"`
		Results     []struct {
			Data   map[string]any `json:"results_data"`
			Images []struct {
				Base64 string `json:"image_b64"`
				URL    string `json:"original_url"`
			} `json:"output_images"`
		} `json:"results_media"`
	}
}

func (r reply) folder(t *testing.T) folderView {
	t.Helper()
	var f folderView
	if err := json.Unmarshal(r.body, &f); err != nil {
		t.Fatalf("%v in %.300q", err, r.body)
	}
	return f
}

func (r reply) wantSuccess(t *testing.T) {
	t.Helper()
	if f := r.folder(t); r.status != 201 || f.Resolution != Success {
		t.Errorf("got %d %.200s, want 201 SUCCESS", r.status, r.body)
	}
}

// await fails the test when the counters do not get there.
func await(t *testing.T, s *Sandbox, what string, ok func(Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Await(ctx, ok); err != nil {
		t.Fatalf("waiting for %s: %v, %+v", what, err, s.Stats())
	}
}

// awaitEnd waits until nothing is going on: an answer arrives before its request is over.
func awaitEnd(t *testing.T, s *Sandbox) {
	t.Helper()
	await(t, s, "the end of every request", func(Stats) bool {
		return !slices.ContainsFunc(s.Requests(), func(rec Receipt) bool { return !rec.Finished })
	})
}

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_764_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// chunked hides the length of a body.
func chunked(b []byte) io.Reader { return io.MultiReader(strings.NewReader(""), bytes.NewReader(b)) }

func sha256hex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
