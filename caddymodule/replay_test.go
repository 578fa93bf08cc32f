package caddymodule

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/minio/highwayhash"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/zeebo/blake3"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

func init() {
	caddy.RegisterModule(new(scriptedStore))
}

// scriptedStore is a store that does what the test that it is named after says.
type scriptedStore struct {
	Test string `json:"test"`
	*script
}

// replies are how a store answers calls, one after the other; then all is well.
type replies struct{ claim, settle, release []reply }

// script is what a store does, and what was asked of it.
type script struct {
	replies

	mu    sync.Mutex
	calls []string
	ttls  []time.Duration
	keys  []string
}

// reply is how a store answers a call.
type reply struct {
	second bool // the claim is another one's
	err    error
	hangs  bool          // until the call's time is up
	deaf   time.Duration // how long it answers nothing, whatever the call's time is
}

var (
	errStore = errors.New("store broken")
	scripts  sync.Map // of *script, by name of test
)

func (*scriptedStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: replayNamespace + ".scripted", New: func() caddy.Module { return new(scriptedStore) }}
}

func (s *scriptedStore) Provision(caddy.Context) error {
	found, ok := scripts.Load(s.Test)
	if !ok {
		return errors.New("no script")
	}
	s.script = found.(*script)
	return nil
}

// next answers a call.
func (s *script) next(ctx context.Context, call, key string, ttl time.Duration, left *[]reply) reply {
	s.mu.Lock()
	s.calls, s.ttls, s.keys = append(s.calls, call), append(s.ttls, ttl), append(s.keys, key)
	var r reply
	if len(*left) > 0 {
		r, *left = (*left)[0], (*left)[1:]
	}
	s.mu.Unlock()
	time.Sleep(r.deaf)
	if r.hangs {
		<-ctx.Done()
		r.err = ctx.Err()
	}
	return r
}

func (s *script) Claim(ctx context.Context, key, _ string, ttl time.Duration) (bool, error) {
	r := s.next(ctx, storeClaim, key, ttl, &s.claim)
	return !r.second && r.err == nil, r.err
}

func (s *script) Settle(ctx context.Context, key, _ string, ttl time.Duration) error {
	r := s.next(ctx, storeSettle, key, ttl, &s.settle)
	if r.second {
		return ErrClaimed
	}
	return r.err
}

func (s *script) Release(ctx context.Context, key, _ string) error {
	return s.next(ctx, storeRelease, key, 0, &s.release).err
}

// asked returns the calls so far.
func (s *script) asked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.calls, ",")
}

// scripted makes s the store of the test's guards, and returns the config of one
// with more fields.
func scripted(t *testing.T, s *script, fields string) string {
	t.Helper()
	scripts.Store(t.Name(), s)
	t.Cleanup(func() { scripts.Delete(t.Name()) })
	return `{"store": {"module": "scripted", "test": "` + t.Name() + `"}` + fields + `}`
}

// ending is a way in which an attempt can end, and what must come of it.
type ending struct {
	name   string
	oz     roundTrip
	fields string // of the handler
	guard  string // fields of the guard
	store  replies
	body   func(leave func()) io.Reader // of the client; nil: a capsule

	want   oz.Outcome // empty: nothing was decided
	status int        // for the client
	calls  string     // of the store, at once
	later  string     // and within the next minute
	oz0    bool       // Oz was not asked, where the capsule is buffered
}

const buffered = `"capacity": {"slots": 1, "memory": 67108864}, `

// late are the calls that give back what may have been claimed.
func lately(n int) string { return strings.Repeat(","+storeRelease, n) }

var (
	isSuccess  = oz.Outcome{Decision: oz.Success}
	isReplayed = oz.Outcome{Decision: oz.Invalid, Reason: oz.Replayed}
	isBinding  = oz.Outcome{Decision: oz.Invalid, Reason: oz.Binding}
	hasNoStore = oz.Outcome{Decision: oz.Unavailable, Reason: oz.StoreUnavailable}
)

func unavailable(r oz.Reason) oz.Outcome { return oz.Outcome{Decision: oz.Unavailable, Reason: r} }

const (
	requires = `"require": [{"path": "meta_data.transaction_id", "value": "another"}], `
	matches  = `"biometry": {"reference": "/photo"}, `
	also     = `, "also": "meta_data.event_session_id"`
	allow    = `, "on_error": "allow"`
)

// takes is an Oz that takes the capsule and then does something.
func takes(then func(*http.Request) (*http.Response, error)) roundTrip {
	return func(req *http.Request) (*http.Response, error) {
		if _, err := readAll(req); err != nil {
			return nil, err
		}
		return then(req)
	}
}

var endings = []ending{
	// A decision makes the claim last.
	{name: "success", oz: answers(201, success()), want: isSuccess, calls: "claim,settle"},
	{name: "declined", oz: answers(201, folderOf(oz.Declined)), want: oz.Outcome{Decision: oz.Declined}, calls: "claim,settle"},
	{name: "operator", oz: answers(201, folderOf(oz.OperatorRequired)), want: oz.Outcome{Decision: oz.OperatorRequired}, calls: "claim,settle"},
	{name: "failed", oz: answers(201, folderOf(oz.Failed)), want: oz.Outcome{Decision: oz.Failed, Reason: oz.AnalysisFailed}, calls: "claim,settle"},
	{name: "unknown words", oz: answers(201, testFolder("DONE", "SUCCESS", "SUCCESS", testShot)), want: oz.Outcome{Decision: oz.Failed, Reason: oz.StatusUnknown}, calls: "claim,settle"},
	{name: "refused by Oz", oz: answers(400, `{"error_code": 14}`), want: oz.Outcome{Decision: oz.Invalid, Reason: oz.Container}, status: 400, calls: "claim,settle"},
	{name: "require does not hold", oz: answers(201, success()), fields: requires, want: isBinding, status: 403, calls: "claim,settle"},
	{name: "faces match", oz: matching(answers(201, matched("SUCCESS", "SUCCESS"))), fields: matches, want: isSuccess, calls: "claim,settle"},
	{name: "faces do not match", oz: matching(answers(201, matched("DECLINED", "DECLINED"))), fields: matches, want: oz.Outcome{Decision: oz.Declined}, calls: "claim,settle"},

	// No decision gives it back.
	{name: "unreachable", oz: fails(0, errors.New("no route")), want: unavailable(oz.Unreachable), status: 502, calls: "claim,release"},
	{name: "lost", oz: fails(7, io.ErrUnexpectedEOF), want: unavailable(oz.ConnectionLost), status: 502, calls: "claim,release"},
	{name: "timed out", oz: takes(func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, req.Context().Err()
	}), want: unavailable(oz.Timeout), status: 504, calls: "claim,release"},
	{name: "overloaded", oz: answers(503, ""), want: unavailable(oz.Overloaded), status: 503, calls: "claim,release"},
	{name: "unauthorized", oz: answers(401, ""), want: unavailable(oz.Unauthorized), status: 502, calls: "claim,release"},
	{name: "too large for Oz", oz: answers(413, ""), want: unavailable(oz.TooLargeForOz), status: 502, calls: "claim,release"},
	{name: "an odd status", oz: answers(500, ""), want: unavailable(oz.UnexpectedStatus), status: 502, calls: "claim,release"},
	{name: "nonsense", oz: answers(201, "nonsense"), want: unavailable(oz.MalformedAnswer), status: 502, calls: "claim,release"},
	{name: "cut off", oz: answers(201, success()[:100]), want: unavailable(oz.MalformedAnswer), status: 502, calls: "claim,release"},
	{name: "the match is lost", oz: matching(answers(500, "")), fields: matches, want: unavailable(oz.UnexpectedStatus), status: 502, calls: "claim,release"},
	{name: "the client leaves and ends it", oz: leavingOz, fields: `"client_gone": "cancel", `, body: leaving, status: statusClientGone, calls: "claim,release"},
	{name: "the client leaves and does not", oz: leavingOz, body: leaving, want: isSuccess, calls: "claim,settle"},

	// A capsule that never was whole is not claimed.
	{name: "the client leaves before the end", oz: answers(201, success()), body: func(leave func()) io.Reader {
		return io.MultiReader(strings.NewReader("caps"), leaver(leave))
	}, status: statusClientGone, oz0: true},
	{name: "the upload is cut", oz: answers(201, success()), body: func(func()) io.Reader {
		return &shortBody{Reader: strings.NewReader("caps"), length: 7}
	}, status: 400, oz0: true},
	{name: "too large", oz: answers(201, success()), fields: `"max_capsule": 5, `, body: func(func()) io.Reader {
		return io.MultiReader(strings.NewReader("capsule"))
	}, status: 413, oz0: true},

	// The second one is refused, whatever Oz says.
	{name: "second", oz: answers(201, success()), store: replies{claim: []reply{{second: true}}}, want: isReplayed, status: 409, calls: "claim", oz0: true},
	{name: "second, and Oz refuses it", oz: answers(400, `{"error_code": 14}`), store: replies{claim: []reply{{second: true}}}, want: isReplayed, status: 409, calls: "claim", oz0: true},
	{name: "second, and Oz is lost", oz: fails(7, io.EOF), store: replies{claim: []reply{{second: true}}}, want: isReplayed, status: 409, calls: "claim", oz0: true},
	{name: "second, with faces", oz: matching(fails(0, errors.New("asked"))), fields: matches, store: replies{claim: []reply{{second: true}}}, want: isReplayed, status: 409, calls: "claim", oz0: true},
	{name: "lost in the meantime", oz: answers(201, success()), store: replies{settle: []reply{{second: true}}}, want: isReplayed, status: 409, calls: "claim,settle"},
	{name: "lost in the meantime, allow", guard: allow, oz: answers(201, success()), store: replies{settle: []reply{{second: true}}}, want: isReplayed, status: 409, calls: "claim,settle"},

	// A store that fails.
	{name: "claim fails", oz: answers(201, success()), store: replies{claim: []reply{{err: errStore}}}, want: hasNoStore, status: 503, calls: "claim", later: lately(4), oz0: true},
	{name: "claim hangs", oz: answers(201, success()), store: replies{claim: []reply{{hangs: true}}}, want: hasNoStore, status: 503, calls: "claim", later: lately(4), oz0: true},
	{name: "claim does not listen", oz: answers(201, success()), store: replies{claim: []reply{{deaf: time.Minute}}}, want: hasNoStore, status: 503, calls: "claim", later: lately(4), oz0: true},
	{name: "claim fails, and Oz, too", oz: answers(500, ""), store: replies{claim: []reply{{err: errStore}}}, want: hasNoStore, status: 503, calls: "claim", later: lately(4), oz0: true},
	{name: "claim fails, with faces", oz: matching(fails(0, errors.New("asked"))), fields: matches, store: replies{claim: []reply{{err: errStore}}}, want: hasNoStore, status: 503, calls: "claim", later: lately(4), oz0: true},
	{name: "claim fails, allow", guard: allow, oz: answers(201, success()), store: replies{claim: []reply{{err: errStore}}}, want: isSuccess, calls: "claim,settle"},
	{name: "claim fails, allow, and Oz, too", guard: allow, oz: answers(500, ""), store: replies{claim: []reply{{err: errStore}}}, want: unavailable(oz.UnexpectedStatus), status: 502, calls: "claim,release"},
	{name: "claim fails, allow, and it is another's", guard: allow, oz: answers(201, success()), store: replies{claim: []reply{{err: errStore}}, settle: []reply{{second: true}}}, want: isReplayed, status: 409, calls: "claim,settle"},
	{name: "settle fails", oz: answers(201, success()), store: replies{settle: []reply{{err: errStore}}}, want: hasNoStore, status: 503, calls: "claim,settle", later: lately(4)},
	{name: "settle hangs", oz: answers(201, success()), store: replies{settle: []reply{{hangs: true}}}, want: hasNoStore, status: 503, calls: "claim,settle", later: lately(4)},
	{name: "settle of a refusal fails", oz: answers(201, folderOf(oz.Declined)), store: replies{settle: []reply{{err: errStore}}}, want: hasNoStore, status: 503, calls: "claim,settle", later: lately(4)},
	{name: "settle fails, allow", guard: allow, oz: answers(201, success()), store: replies{settle: []reply{{err: errStore}}}, want: isSuccess, calls: "claim,settle"},
	{name: "release fails", oz: answers(500, ""), store: replies{release: []reply{{err: errStore}}}, want: unavailable(oz.UnexpectedStatus), status: 502, calls: "claim,release", later: lately(4)},
	{name: "release hangs", oz: answers(500, ""), store: replies{release: []reply{{hangs: true}}}, want: unavailable(oz.UnexpectedStatus), status: 502, calls: "claim,release", later: lately(4)},

	// A second key out of the folder.
	{name: "also", guard: also, oz: answers(201, success()), want: isSuccess, calls: "claim,settle,claim,settle"},
	{name: "also, declined", guard: also, oz: answers(201, folderOf(oz.Declined)), want: oz.Outcome{Decision: oz.Declined}, calls: "claim,settle"},
	{name: "also, second", guard: also, oz: answers(201, success()), store: replies{claim: []reply{{}, {second: true}}}, want: isReplayed, status: 409, calls: "claim,settle,claim"},
	{name: "also, absent", guard: also, oz: answers(201, strings.Replace(success(), "event_session_id", "session", 1)), want: isBinding, status: 403, calls: "claim,settle"},
	{name: "also, empty", guard: also, oz: answers(201, strings.Replace(success(), "session-1", "", 1)), want: isBinding, status: 403, calls: "claim,settle"},
	{name: "also, an object", guard: also, oz: answers(201, strings.Replace(success(), `"session-1"`, `{"a": 1}`, 1)), want: isBinding, status: 403, calls: "claim,settle"},
	{name: "also, null", guard: also, oz: answers(201, strings.Replace(success(), `"session-1"`, `null`, 1)), want: isBinding, status: 403, calls: "claim,settle"},
	{name: "also, true", guard: also, oz: answers(201, strings.Replace(success(), `"session-1"`, `true`, 1)), want: isBinding, status: 403, calls: "claim,settle"},
	{name: "also, a number", guard: also, oz: answers(201, strings.Replace(success(), `"session-1"`, `7`, 1)), want: isSuccess, calls: "claim,settle,claim,settle"},
	{name: "also fails", guard: also, oz: answers(201, success()), store: replies{claim: []reply{{}, {err: errStore}}}, want: hasNoStore, status: 503, calls: "claim,settle,claim", later: lately(8)},
	{name: "also fails, allow", guard: also + allow, oz: answers(201, success()), store: replies{claim: []reply{{}, {err: errStore}}}, want: isSuccess, calls: "claim,settle,claim,settle"},
	{name: "also fails, allow, and the capsule is another's", guard: also + allow, oz: answers(201, success()), store: replies{claim: []reply{{err: errStore}, {err: errStore}}, settle: []reply{{err: ErrClaimed}}}, want: isReplayed, status: 409, calls: "claim,settle"},
	{name: "also, and it is another's by then", guard: also, oz: answers(201, success()), store: replies{settle: []reply{{}, {second: true}}}, want: isReplayed, status: 409, calls: "claim,settle,claim,settle"},
	{name: "also, its settle fails", guard: also, oz: answers(201, success()), store: replies{settle: []reply{{}, {err: errStore}}}, want: hasNoStore, status: 503, calls: "claim,settle,claim,settle", later: lately(8)},
	{name: "also, with faces that do not match", guard: also, fields: matches, oz: matching(answers(201, matched("DECLINED", "DECLINED"))), want: oz.Outcome{Decision: oz.Declined}, calls: "claim,settle"},
	{name: "also, with faces that match", guard: also, fields: matches, oz: matching(answers(201, matched("SUCCESS", "SUCCESS"))), want: isSuccess, calls: "claim,settle,claim,settle"},
}

// leavingOz takes the capsule, and its client leaves.
func leavingOz(req *http.Request) (*http.Response, error) {
	if _, err := readAll(req); err != nil {
		return nil, err
	}
	leaveNow.Load().(func())()
	synctest.Wait()
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	return response(201, success()), nil
}

// leaver is a body that ends because its client leaves.
type leaver func()

func (l leaver) Read([]byte) (int, error) {
	l()
	return 0, io.ErrUnexpectedEOF
}

// shortBody is shorter than it says.
type shortBody struct {
	io.Reader
	length int64
}

// Each way in which an attempt can end makes the claim last, gives it back or
// never makes it, with and without a buffer; nothing else ever counts.
func TestHowAnAttemptEnds(t *testing.T) {
	for _, e := range endings {
		for mode, capacity := range map[string]string{"streamed": "", "buffered": buffered} {
			t.Run(mode+" "+e.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { e.test(t, capacity) })
			})
		}
	}
}

func (e ending) test(t *testing.T, capacity string) {
	store := &script{replies: e.store}
	asked := 0
	oz := func(req *http.Request) (*http.Response, error) {
		asked++
		return e.oz(req)
	}
	h := newHandler(t, oz, "{"+capacity+e.fields+`"replay_guard": `+scripted(t, store, e.guard)+"}")
	app := &photoApp{serve: serves(200, testPNG)}
	before := testutil.ToFloat64(sharedMetrics.replays.WithLabelValues(replayFirst))
	w, took := e.post(t, h, app)

	if e.status == 0 {
		if app.calls != 1 || app.request.Header.Get(headerDecision) != string(e.want.Decision) || app.request.Header.Get("X-Oz-Reason") != string(e.want.Reason) {
			t.Errorf("the client got %d %s, the app %d calls", w.Code, w.Body, app.calls)
		}
	} else if w.Code != e.status || app.calls != 0 || e.want.Reason != "" && !strings.Contains(w.Body.String(), string(e.want.Reason)) {
		t.Errorf("the client got %d %s, the app %d calls; want %d %s", w.Code, w.Body, app.calls, e.status, e.want.Reason)
	}
	if app.photo != nil && (e.want == isReplayed || e.want == hasNoStore) && e.store.settle == nil {
		t.Error("the app was asked for a photo")
	}
	if capacity != "" && e.oz0 && asked > 0 {
		t.Errorf("Oz was asked %d times", asked)
	}
	if most := 3 * storeTimeout; took > most+time.Duration(h.Timeout) || took > most && e.want != unavailable("timeout") {
		t.Errorf("it took %v", took)
	}
	if counted := testutil.ToFloat64(sharedMetrics.replays.WithLabelValues(replayFirst)) - before; (counted == 1) != (e.decides() && e.guard != allow && e.guard != also+allow) {
		t.Errorf("counted as first: %v", counted)
	}
	time.Sleep(time.Minute)
	if got, want := store.asked(), e.calls+e.later; got != want {
		t.Errorf("the store was asked to %q, want %q", got, want)
	}
	for i, call := range store.calls {
		if ttl := map[string]time.Duration{storeClaim: h.ReplayGuard.attempt, storeSettle: 15 * time.Minute}[call]; store.ttls[i] != ttl {
			t.Errorf("%s for %v, want %v", call, store.ttls[i], ttl)
		}
	}
}

// decides reports whether the claim lasts.
func (e ending) decides() bool {
	return strings.HasSuffix(e.calls, storeSettle) && e.want != hasNoStore && e.want != isReplayed
}

// leaveNow is how the client of the running test leaves.
var leaveNow atomic.Value // of func()

// post has a client send its capsule.
func (e ending) post(t *testing.T, h *Handler, app caddyhttp.Handler) (*httptest.ResponseRecorder, time.Duration) {
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	leaveNow.Store((func())(leave))
	var body io.Reader = strings.NewReader("capsule")
	if e.body != nil {
		body = e.body(leave)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/verify", body).WithContext(ctx)
	if short, ok := body.(*shortBody); ok {
		r.ContentLength = short.length
	}
	r.Header.Set("Content-Type", capsuleMediaType)
	start := time.Now()
	if err := h.ServeHTTP(w, fromClient(w, r), app); err != nil {
		t.Fatal(err)
	}
	return w, time.Since(start)
}

// leaving is a capsule of a client that leaves when Oz has it.
func leaving(func()) io.Reader { return strings.NewReader("capsule") }

// A capsule that waits for a slot in vain is given back.
func TestReplayNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(script)
		free := make(chan struct{})
		h := newHandler(t, takes(func(*http.Request) (*http.Response, error) {
			<-free
			return response(201, success()), nil
		}), `{"capacity": {"slots": 1, "memory": 67108864, "wait": "2s"}, "replay_guard": `+scripted(t, store, "")+`}`)
		var all sync.WaitGroup
		all.Go(func() { h.posted(t, new(testApp), "first") })
		synctest.Wait()
		if w := h.posted(t, noApp(t), "second"); w.Code != 503 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if got := store.asked(); got != "claim,claim,release" || store.keys[1] != store.keys[2] {
			t.Errorf("the store was asked to %s", got)
		}
		close(free)
		all.Wait()
	})
}

// A panic that passes through gives the claim back.
func TestReplayPanic(t *testing.T) {
	store := new(script)
	h := newHandler(t, matching(neverAsked(t)), `{"biometry": {"reference": "/photo"}, "replay_guard": `+scripted(t, store, "")+`}`)
	app := &photoApp{serve: func(http.ResponseWriter, *http.Request) error { panic("boom") }}
	func() {
		defer func() {
			if v := recover(); v != "boom" {
				t.Errorf("recovered %v", v)
			}
		}()
		app.match(t, h)
	}()
	if got := store.asked(); got != "claim,release" {
		t.Errorf("the store was asked to %s", got)
	}
}

// A store that panics has failed.
func TestReplayStorePanics(t *testing.T) {
	h := newHandler(t, answers(201, success()), `{"replay_guard": {"store": {"module": "panicking"}}}`)
	if w := h.posted(t, noApp(t), "capsule"); w.Code != 503 || !strings.Contains(w.Body.String(), "store_unavailable") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func init() { caddy.RegisterModule(new(panickingStore)) }

type panickingStore struct{ ReplayStore }

func (*panickingStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: replayNamespace + ".panicking", New: func() caddy.Module { return new(panickingStore) }}
}

// A claim that a call that failed may have made is given back after a reload, too.
func TestReplayLateReleaseOutlivesReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &script{replies: replies{settle: []reply{{hangs: true}}}}
		ctx, end := cancelContext(t)
		h, err := load[*Handler](ctx, handlerID, ozConfig(t, answers(201, success()), `{"replay_guard": `+scripted(t, store, "")+`}`))
		if err != nil {
			t.Fatal(err)
		}
		if w := h.posted(t, noApp(t), "capsule"); w.Code != 503 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		end()
		time.Sleep(time.Minute)
		if got, want := store.asked(), "claim,settle"+lately(len(lateReleases)); got != want {
			t.Errorf("the store was asked to %q, want %q", got, want)
		}
	})
}

// The claim lives as long as an attempt can take.
func TestReplayLongestAttempt(t *testing.T) {
	for fields, want := range map[string]time.Duration{
		`"timeout": "10s"`: 25 * time.Second,
		`"timeout": "1000000h", "capacity": {"memory": 67108864, "wait": "2000000h"}`:            3*24*time.Hour + attemptMargin,
		`"timeout": "10s", "capacity": {"slots": 1, "wait": "3s"}`:                               25 * time.Second,
		`"timeout": "10s", "capacity": {"slots": 1, "wait": "3s", "memory": 67108864}`:           28 * time.Second,
		`"timeout": "10s", "biometry": {"reference": "/photo"}`:                                  55 * time.Second,
		`"timeout": "1m", "biometry": {"reference": "/photo"}, "capacity": {"memory": 67108864}`: 4*time.Minute + 30*time.Second,
	} {
		h := newHandler(t, neverAsked(t), "{"+fields+`, "replay_guard": {}}`)
		if got := h.ReplayGuard.attempt; got != want {
			t.Errorf("%s: %v, want %v", fields, got, want)
		}
	}
}

// Gateways of all versions share a store: keys stay what they are. The first is
// of HighwayHash and BLAKE3 as anyone has them, and it is told from the value of
// a folder.
func TestReplayKeys(t *testing.T) {
	store := new(script)
	h := newHandler(t, answers(201, success()), `{"replay_guard": `+scripted(t, store, also)+`}`)
	h.posted(t, new(testApp), "session-1")
	want := make([]byte, 32)
	blake3.DeriveKey("oz_instant 2026-11-25 replay guard, bytes of a capsule", nil, want)
	sum := highwayhash.Sum([]byte("session-1"), want)
	blake3.DeriveKey("oz_instant 2026-11-25 replay guard, capsule", sum[:], want)
	if store.keys[0] != base64.RawURLEncoding.EncodeToString(want) {
		t.Errorf("the capsule's key is %s", store.keys[0])
	}
	blake3.DeriveKey("oz_instant 2026-11-25 replay guard, value of a folder", []byte("meta_data.event_session_id\x00session-1"), want)
	if store.keys[2] != base64.RawURLEncoding.EncodeToString(want) || store.keys[0] == store.keys[2] {
		t.Errorf("the session's key is %s", store.keys[2])
	}
}

// The digest is of all bytes, once, however they come.
func TestReplayDigestOfPieces(t *testing.T) {
	capsule := strings.Repeat("0123456789", 20_000)
	store := new(script)
	guard := `"replay_guard": ` + scripted(t, store, "") + `}`
	for _, fields := range []string{"{" + guard, "{" + buffered + guard} {
		h := newHandler(t, answers(201, success()), fields)
		for _, body := range []io.Reader{strings.NewReader(capsule), io.MultiReader(strings.NewReader(capsule[:40_000]), strings.NewReader(capsule[40_000:]))} {
			w := httptest.NewRecorder()
			if err := h.ServeHTTP(w, newCapsuleRequest(w, body), new(testApp)); err != nil || w.Code != 200 {
				t.Fatal(err, w.Code)
			}
		}
	}
	h := newCapsuleHash()
	_, _ = io.WriteString(h, capsule)
	for i, key := range store.keys {
		if key != derivedKey(capsuleContext, h.Sum(nil)) {
			t.Errorf("call %d is for %s", i, key)
		}
	}
}

// The handler decides no capsule that the guard has not seen whole, even if Oz
// did.
func TestReplayNeverWhole(t *testing.T) {
	g := &ReplayGuard{OnError: onErrorAllow, metrics: sharedMetrics}
	c := g.guard(new(upload.Limits))
	c.watch(make(chan struct{}))
	got := c.conclude(&Result{verdict: oz.Verdict{Decision: oz.Success}})
	if got.reason != oz.StoreUnavailable {
		t.Errorf("%+v", got)
	}
}

// A capsule counts once: the second is refused whatever Oz says, and nothing of
// its folder is told. Other handlers and later configs share the memory.
func TestReplayIsRefused(t *testing.T) {
	const guard = `{"replay_guard": {}, "pass": ["INVALID"]}`
	h := newHandler(t, answers(201, success()), guard)
	logs := h.observed()
	app := new(testApp)
	h.posted(t, app, "capsule")
	if got := app.request.Header.Get(headerDecision); got != "SUCCESS" {
		t.Fatalf("the first is %q", got)
	}
	for _, h := range []*Handler{h, newHandler(t, answers(201, success()), guard)} {
		h.posted(t, app, "capsule")
		if got := app.request.Header; got.Get(headerDecision) != "INVALID" || got.Get("X-Oz-Reason") != "replayed" || got.Get("X-Oz-Folder-Id") != "" {
			t.Errorf("the second is %v", got)
		}
		if !strings.Contains(app.body, "replayed") || strings.Contains(app.body, "folder-1") {
			t.Errorf("the app got %s", app.body)
		}
	}
	lines := logs.FilterMessage("capsule decided").All()
	if len(lines) != 2 || lines[1].ContextMap()["replay_guard"] != "replayed" || lines[1].ContextMap()["folder_id"] != "folder-1" {
		t.Errorf("logged: %v", lines)
	}
	h.posted(t, app, "capsulf")
	if got := app.request.Header.Get(headerDecision); got != "SUCCESS" {
		t.Errorf("another capsule is %q", got)
	}
}

// BenchmarkDigest is the price of a capsule of 2 MiB, in pieces as they arrive.
func BenchmarkDigest(b *testing.B) {
	piece := make([]byte, 32<<10)
	b.SetBytes(2 << 20)
	b.ReportAllocs()
	for b.Loop() {
		h := newCapsuleHash()
		for range 64 {
			_, _ = h.Write(piece)
		}
		if key := derivedKey(capsuleContext, h.Sum(nil)); len(key) != 43 {
			b.Fatal(key)
		}
	}
}
