package caddymodule

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func init() {
	caddy.RegisterModule(stubTransport{})
}

// roundTrip is an Oz that is a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// stubTransport is a transport for reverse_proxy that calls the roundTrip of the
// test that it is named after. So tests load whole configs, by the way that
// Caddy takes, and need no network.
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

// stubbed makes oz answer what goes to the test's upstreams, and returns the
// configuration of a transport that does so.
func stubbed(t *testing.T, oz roundTrip) (transport string) {
	t.Helper()
	stubs.Store(t.Name(), oz)
	t.Cleanup(func() { stubs.Delete(t.Name()) })
	return `{"protocol": "stub", "test": ` + strconv.Quote(t.Name()) + `}`
}

// newContext is what the modules of one config are loaded in. It ends, with
// all of them, when the test does.
func newContext(t *testing.T) caddy.Context {
	t.Helper()
	ctx, _ := cancelContext(t)
	return ctx
}

// cancelContext is one that a test can end before.
func cancelContext(t *testing.T) (caddy.Context, func()) {
	t.Helper()
	base, err := caddy.ProvisionContext(&caddy.Config{
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{Level: "fatal"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := caddy.NewContext(base)
	end := sync.OnceFunc(cancel)
	t.Cleanup(end)
	return ctx, end
}

const (
	handlerID = "http.handlers.oz_instant"
)

// load loads a module in the way that Caddy does.
func load[T caddy.Module](ctx caddy.Context, id, config string) (module T, err error) {
	loaded, err := ctx.LoadModuleByID(id, json.RawMessage(config))
	if err != nil {
		return module, err
	}
	return loaded.(T), nil
}

// ozConfig is a handler's config with an Oz that is a stub, and more fields.
func ozConfig(t *testing.T, oz roundTrip, fields string) string {
	t.Helper()
	config := map[string]any{"reverse_proxy": map[string]any{
		"transport": json.RawMessage(stubbed(t, oz)),
		"upstreams": []map[string]string{{"dial": "oz.test:8080"}},
	}}
	if fields != "" {
		more := make(map[string]any)
		if err := json.Unmarshal([]byte(fields), &more); err != nil {
			t.Fatalf("%s: %v", fields, err)
		}
		if proxy, ok := more["reverse_proxy"].(map[string]any); ok {
			maps.Copy(config["reverse_proxy"].(map[string]any), proxy)
			delete(more, "reverse_proxy")
		}
		maps.Copy(config, more)
	}
	doc, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// newHandler loads an oz_instant whose Oz is a stub.
func newHandler(t *testing.T, oz roundTrip, fields string) *Handler {
	t.Helper()
	h, err := load[*Handler](newContext(t), handlerID, ozConfig(t, oz, fields))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// observed has the handler's log go to a test.
func (h *Handler) observed() *observer.ObservedLogs {
	core, logs := observer.New(zap.DebugLevel)
	h.logger = zap.New(core)
	return logs
}

// fromClient is r as Caddy's server gives it to its first handler.
func fromClient(w http.ResponseWriter, r *http.Request) *http.Request {
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
}

// capsuleRequest is a POST of a capsule.
func newCapsuleRequest(w http.ResponseWriter, capsule io.Reader) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/verify?a=b", capsule)
	r.Header.Set("Content-Type", capsuleMediaType)
	return fromClient(w, r)
}

// posted is a capsule's whole way through a handler, to an app behind it.
func (h *Handler) posted(t *testing.T, app caddyhttp.Handler, capsule string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	if err := h.ServeHTTP(w, newCapsuleRequest(w, strings.NewReader(capsule)), app); err != nil {
		t.Fatal(err)
	}
	return w
}

// testApp is the app behind the handler. It remembers what it was handed.
type testApp struct {
	calls   int
	request *http.Request
	body    string
}

func (a *testApp) ServeHTTP(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	a.calls, a.request, a.body = a.calls+1, r.Clone(r.Context()), string(body) // the header is another one afterwards
	_, _ = io.WriteString(w, "from the app")
	return err
}

// noApp is an app that nothing may come to.
func noApp(t *testing.T) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		t.Error("the app was called")
		return nil
	})
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
func testFolder(resolution, system, quality, shot string) string {
	return strings.NewReplacer("$RESOLUTION", resolution, "$SYSTEM", system, "$QUALITY", quality, "$SHOT", shot).Replace(
		`{"folder_id": "folder-1", "resolution_status": "$RESOLUTION", "system_resolution": "$SYSTEM", ` +
			`"meta_data": {"event_session_id": "session-1", "transaction_id": "order-1"}, ` +
			`"media": [{"original_name": "private.mp4"}], "analyses": [{"type": "QUALITY", "state": "FINISHED", ` +
			`"resolution_status": "$QUALITY", "results_media": [{"output_images": [{"image_b64": "$SHOT"}]}]}]}`)
}

// success is a folder that is an accept, with a real image.
func success() string { return testFolder("FINISHED", "SUCCESS", "SUCCESS", testShot) }

// matched is Oz's answer to two faces.
func matched(system, biometry string) string {
	return `{"folder_id": "folder-2", "resolution_status": "FINISHED", "system_resolution": "` + system + `", ` +
		`"analyses": [{"type": "BIOMETRY", "state": "FINISHED", "resolution_status": "` + biometry + `"}]}`
}

// testJPEG and testPNG are images, and testShot one as Oz sends it.
var (
	testJPEG = encoded8x8(func(w io.Writer, m image.Image) error { return jpeg.Encode(w, m, nil) })
	testPNG  = encoded8x8(png.Encode)
	testShot = base64.StdEncoding.EncodeToString(testJPEG)
)

func encoded8x8(encode func(io.Writer, image.Image) error) []byte {
	var doc bytes.Buffer
	if err := encode(&doc, image.NewGray(image.Rect(0, 0, 8, 8))); err != nil {
		panic(err)
	}
	return doc.Bytes()
}

// fails is an Oz that reads n bytes of the request and then fails.
func fails(n int64, err error) roundTrip {
	return func(req *http.Request) (*http.Response, error) {
		if n > 0 && req.Body != nil {
			_, _ = io.CopyN(io.Discard, req.Body, n)
		}
		return nil, err
	}
}
