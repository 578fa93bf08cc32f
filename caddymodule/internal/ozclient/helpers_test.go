package ozclient

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"image"
	"image/jpeg"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

func init() {
	caddy.RegisterModule(stubTransport{})
}

// roundTrip is an Oz that is a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// stubTransport is a transport for reverse_proxy that calls the roundTrip of the
// test that it is named after. So tests provision whole Clients, and need no
// network.
type stubTransport struct {
	Test string `json:"test"`
}

var stubs sync.Map // of roundTrip, by name of test

func (stubTransport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.stub",
		New: func() caddy.Module { return new(stubTransport) },
	}
}

func (s *stubTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	f, ok := stubs.Load(s.Test)
	if !ok {
		panic("no stub for " + s.Test)
	}
	return f.(roundTrip)(req)
}

// newContext returns a context that Clients are made in. It ends with the test.
func newContext(t *testing.T) caddy.Context {
	t.Helper()
	base, err := caddy.ProvisionContext(&caddy.Config{
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{Level: "fatal"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(base)
	t.Cleanup(cancel)
	return ctx
}

// stubConfig returns a Config with an Oz that is a stub, and with more fields,
// those of reverse_proxy among them.
func stubConfig(t *testing.T, oz roundTrip, fields, proxy string) *Config {
	t.Helper()
	stubs.Store(t.Name(), oz)
	t.Cleanup(func() { stubs.Delete(t.Name()) })
	c := new(Config)
	for _, doc := range []string{
		`{"reverse_proxy": {"upstreams": [{"dial": "oz.test:8080"}], "transport": {"protocol": "stub", "test": ` + strconv.Quote(t.Name()) + `}}}`,
		fields,
	} {
		if doc != "" {
			decode(t, doc, c)
		}
	}
	if proxy != "" {
		decode(t, proxy, c.ReverseProxy)
	}
	return c
}

func decode(t *testing.T, doc string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(doc), v); err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
}

var testOptions = Options{Timeout: time.Minute, UploadTimeout: 2 * time.Minute, MaxAnswer: 32 << 20}

// newClient makes a Client whose Oz is a stub.
func newClient(t *testing.T, oz roundTrip, fields, proxy string) *Client {
	t.Helper()
	return clientWith(t, stubConfig(t, oz, fields, proxy), testOptions)
}

func clientWith(t *testing.T, cfg *Config, opts Options) *Client {
	t.Helper()
	c, err := New(newContext(t), cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// analyzed sends a whole capsule for no client in particular.
func (c *Client) analyzed(t *testing.T) (Answer, *Error) {
	t.Helper()
	a, err := c.Analyze(t.Context(), nil, NewMemoryBody([]byte("capsule")), oz.Policy{}, nil)
	return a, asError(t, err)
}

// asError fails the test unless err is nil or an *Error.
func asError(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	if err != nil && !errors.As(err, &e) {
		t.Errorf("%T is not an *Error: %v", err, err)
	}
	return e
}

// wantError fails the test unless e is what it should be. The zero Error stands
// for none.
func wantError(t *testing.T, e *Error, want Error) {
	t.Helper()
	switch {
	case e == nil && want == (Error{}):
	case e == nil || e.Reason != want.Reason || e.Fault != want.Fault || e.Err == nil || want.Err != nil && !errors.Is(e, want.Err):
		t.Errorf("got %#v, want %#v", e, want)
	}
}

// fromClient is r as Caddy's server gives it to its first handler.
func fromClient(w http.ResponseWriter, r *http.Request) *http.Request {
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
}

// response is an answer of Oz.
func response(status int, doc string) *http.Response {
	return &http.Response{
		StatusCode: status, Header: make(http.Header), ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(strings.NewReader(doc)), ContentLength: int64(len(doc)),
	}
}

// answers is an Oz that takes the whole request and then answers.
func answers(status int, doc string) roundTrip {
	return func(req *http.Request) (*http.Response, error) {
		if _, err := readAll(req); err != nil {
			return nil, err
		}
		return response(status, doc), nil
	}
}

func readAll(req *http.Request) (string, error) {
	if req.Body == nil {
		return "", nil
	}
	body, err := io.ReadAll(req.Body)
	return string(body), err
}

// neverAsked is an Oz that nothing may come to.
func neverAsked(t *testing.T) roundTrip {
	return func(req *http.Request) (*http.Response, error) {
		t.Errorf("Oz was asked for %s", req.URL)
		return nil, net.ErrClosed
	}
}

// testFolder is a folder as Oz writes it, with a best shot in it.
func testFolder(system, shot string) string {
	return `{"folder_id": "folder-1", "resolution_status": "FINISHED", "system_resolution": "` + system + `", ` +
		`"meta_data": {"event_session_id": "session-1", "transaction_id": "order-1"}, ` +
		`"media": [{"original_name": "private.mp4"}], "analyses": [{"type": "QUALITY", "state": "FINISHED", ` +
		`"resolution_status": "SUCCESS", "results_media": [{"output_images": [{"image_b64": "` + shot + `"}]}]}]}`
}

// success is a folder that is an accept, with a real image.
func success() string { return testFolder("SUCCESS", testShot) }

// testJPEG is an image, and testShot the same as Oz sends it.
var (
	testJPEG = encoded8x8()
	testShot = base64.StdEncoding.EncodeToString(testJPEG)
)

func encoded8x8() []byte {
	var doc bytes.Buffer
	if err := jpeg.Encode(&doc, image.NewGray(image.Rect(0, 0, 8, 8)), nil); err != nil {
		panic(err)
	}
	return doc.Bytes()
}

// noisyClient is a request with much in its header that is none of Oz's business.
func noisyClient() *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/verify?secret=1", nil)
	r.RemoteAddr = "192.0.2.7:1234"
	for _, name := range []string{
		"Authorization", "Cookie", "Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip",
		"Content-Type", "User-Agent", "Accept", "Accept-Encoding", "Accept-Language", "Connection", "Expect", "Te", "X-Oz-Decision",
		"X-Forensic-Access-Token", "Upgrade", "Transfer-Encoding", "Early-Data",
	} {
		r.Header.Set(name, "of the client")
	}
	for _, name := range slices.Concat(idHeaders, traceHeaders) {
		r.Header.Set(name, "trace")
	}
	return fromClient(nil, r)
}

// phone is the body of a client that a test plays: pieces of it arrive as they
// are sent. As upload.Stream does, it leaves a read in progress to end by itself.
type phone struct {
	length int64
	pieces chan int
	gone   chan struct{}
	all    sync.WaitGroup

	mu      sync.Mutex
	left    int // of the piece that is read
	read    int64
	started time.Time
	since   time.Time // when the read in progress began to wait; zero without one
	waited  time.Duration
	taken   time.Time
	sentAt  time.Time
	stopped bool
	fault   error
}

func newPhone(t *testing.T, length int64) *phone {
	t.Helper()
	p := &phone{length: length, pieces: make(chan int), gone: make(chan struct{}), started: time.Now()}
	p.taken = p.started
	t.Cleanup(p.hangUp)
	return p
}

// does has the phone do something while the test goes on.
func (p *phone) does(f func()) { p.all.Go(f) }

// sendEvery sends so many pieces of n bytes, each after a pause.
func (p *phone) sendEvery(ctx context.Context, pause time.Duration, pieces, n int) {
	for range pieces {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		select {
		case p.pieces <- n:
		case <-p.gone:
			return
		case <-ctx.Done():
			return
		}
	}
}

// hangUp ends the read in progress, as the end of the request does.
func (p *phone) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gone:
	default:
		p.fault = upload.ErrGone
		close(p.gone)
	}
}

func (p *phone) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.stopped:
		return 0, upload.ErrStopped
	case p.fault != nil:
		return 0, p.fault
	case p.read == p.length:
		p.sent()
		return 0, io.EOF
	}
	if p.left == 0 && !p.receive() {
		return 0, p.fault
	}
	n := min(len(b), p.left)
	p.left -= n
	p.read += int64(n)
	p.taken = time.Now()
	if p.read == p.length {
		p.sent()
	}
	return n, nil
}

func (p *phone) sent() {
	if p.sentAt.IsZero() {
		p.sentAt = time.Now()
	}
}

// receive waits for a piece, with mu held but for that time.
func (p *phone) receive() bool {
	p.since = time.Now()
	p.mu.Unlock()
	n := 0
	select {
	case n = <-p.pieces:
	case <-p.gone:
	}
	p.mu.Lock()
	p.waited += time.Since(p.since)
	p.since = time.Time{}
	p.left = n
	return n > 0
}

func (p *phone) Close() error  { return nil }
func (p *phone) Length() int64 { return p.length }

func (p *phone) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
}

func (p *phone) State() upload.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := upload.State{Received: p.read == p.length, SentAt: p.sentAt, Bytes: p.read, Waited: p.waited, Fault: p.fault}
	switch {
	case !p.since.IsZero():
		s.Silence = time.Since(p.since)
		s.Waited += s.Silence
	case p.sentAt.IsZero():
		s.Untaken = time.Since(p.taken)
	}
	return s
}
