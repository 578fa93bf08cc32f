package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// slowly is a client's body that comes in pieces, each after a pause.
type slowly struct {
	pause  time.Duration
	pieces []string
}

func (s *slowly) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	time.Sleep(s.pause)
	n := copy(p, s.pieces[0])
	s.pieces = s.pieces[1:]
	return n, nil
}

// What the client, Oz, the app and the store take, and waiting, is not the
// gateway's own time, and the rest is: on a clock that stands still while the
// gateway works, a value that takes it 50 ms to look up.
func TestOwnTime(t *testing.T) {
	for mode, capacity := range map[string]string{
		"streamed": "", "with slots": `"capacity": {"slots": 1, "wait": "1h"}, `, "buffered": `"capacity": {"slots": 1, "memory": 67108864, "wait": "1h"}, `,
	} {
		t.Run(mode, func(t *testing.T) {
			upload := 10 * time.Second // the client's nine, and one in which Oz takes nothing
			if mode == "buffered" {
				upload = 9 * time.Second
			}
			synctest.Test(t, func(t *testing.T) { ownTime(t, capacity, upload) })
		})
	}
}

func ownTime(t *testing.T, capacity string, upload time.Duration) {
	store := &script{replies: replies{claim: []reply{{deaf: 400 * time.Millisecond}}, settle: []reply{{deaf: 300 * time.Millisecond}}}}
	answer := matching(answers(201, matched("SUCCESS", "SUCCESS")))
	h := newHandler(t, func(req *http.Request) (*http.Response, error) {
		time.Sleep(time.Second)
		res, err := answer(req) // once it has the whole body
		time.Sleep(2 * time.Second)
		return res, err
	}, `{`+capacity+`"biometry": {"reference": "/photo"}, "require": [{"path": "meta_data.transaction_id", "value": "{test.order}"}], "replay_guard": `+scripted(t, store, "")+`}`)
	logs := h.observed()
	app := &photoApp{serve: func(w http.ResponseWriter, r *http.Request) error {
		time.Sleep(time.Second)
		return serves(200, testPNG)(w, r)
	}}
	start := time.Now()
	w := httptest.NewRecorder()
	r := newCapsuleRequest(w, &slowly{pause: 3 * time.Second, pieces: []string{"cap", "su", "le"}})
	r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Map(func(key string) (any, bool) {
		if key != "test.order" {
			return nil, false
		}
		time.Sleep(50 * time.Millisecond)
		return "order-1", true
	})
	if err := h.ServeHTTP(w, r, app); err != nil {
		t.Fatal(err)
	}
	lines := logs.FilterMessage("capsule decided").All()
	if len(lines) != 1 || w.Code != 200 {
		t.Fatalf("%d %s, %v", w.Code, w.Body, lines)
	}
	fields := lines[0].ContextMap()
	if fields["decision"] != "SUCCESS" || fields["own"] != 50*time.Millisecond || fields["upload"] != upload || fields["oz"] != 2*time.Second || fields["match"] != 2*time.Second {
		t.Errorf("%v", fields)
	}
	if took := time.Since(start); took < 16*time.Second {
		t.Errorf("it all took %s only", took)
	}
}

// A log-in is Oz's time, also before anything of the capsule is sent, and where
// nothing ever is.
func TestLoginIsNotTheClients(t *testing.T) {
	for status, decision := range map[int]string{200: "SUCCESS", 403: "UNAVAILABLE"} {
		synctest.Test(t, func(t *testing.T) {
			h := newHandler(t, func(req *http.Request) (*http.Response, error) {
				if req.URL.Path != oz.LoginPath {
					return answers(201, success())(req)
				}
				time.Sleep(5 * time.Second)
				return answers(status, fmt.Sprintf(`{"access_token": "a", "expire_token": "b", "expire_date": %d}`, time.Now().Add(time.Hour).Unix()))(req)
			}, `{"credentials": {"email": "a@example.com", "password": "one"}}`)
			logs := h.observed()
			w := httptest.NewRecorder()
			body := &slowly{pause: time.Second, pieces: []string{"cap", "su", "le"}}
			if err := h.ServeHTTP(w, newCapsuleRequest(w, body), new(testApp)); err != nil {
				t.Fatal(err)
			}
			fields := logs.FilterMessage("capsule decided").All()[0].ContextMap()
			if fields["decision"] != decision || fields["oz"] != 5*time.Second || fields["upload"] != 3*time.Second || fields["own"] != time.Duration(0) {
				t.Errorf("%v", fields)
			}
		})
	}
}

// What a capsule that was refused for lack of capacity has waited is not the
// gateway's own time, but the queue's. What its client and the store took before
// is neither.
func TestRefusedHasWaited(t *testing.T) {
	for _, memory := range []string{"", `, "memory": 67108864`} {
		synctest.Test(t, func(t *testing.T) {
			store := &script{replies: replies{claim: []reply{{deaf: 400 * time.Millisecond}}}}
			h := newHandler(t, answers(201, success()), `{"capacity": {"slots": 1, "wait": "15s"`+memory+`}, "replay_guard": `+scripted(t, store, "")+`}`)
			logs := h.observed()
			defer taken(t, h).Release(false)
			w := httptest.NewRecorder()
			body := &slowly{pause: 3 * time.Second, pieces: []string{"cap", "sule"}}
			if err := h.ServeHTTP(w, newCapsuleRequest(w, body), noApp(t)); err != nil {
				t.Fatal(err)
			}
			fields := logs.FilterMessage("capsule decided").All()[0].ContextMap()
			if own, there := fields["own"]; there || fields["queue"] != 15*time.Second || fields["reason"] != string(oz.Overloaded) {
				t.Errorf("own time %v: %v", own, fields)
			}
			if made := store.asked() != ""; made != (memory != "") {
				t.Errorf("the store was asked for %q", store.asked())
			}
		})
	}
}

// A client that leaves while nothing is read of its capsule, because Oz takes no
// more of it, has aborted its upload as one that leaves during a read has.
func TestLeavingBetweenReadsIsAnAbort(t *testing.T) {
	var leave context.CancelFunc
	h := newHandler(t, func(req *http.Request) (*http.Response, error) {
		leave()
		<-req.Context().Done()
		return nil, req.Context().Err()
	}, "")
	h.metrics = newMetrics()
	w := httptest.NewRecorder()
	r := newCapsuleRequest(w, strings.NewReader(strings.Repeat("x", 40_000)))
	r.ContentLength = 100_000
	ctx, cancel := context.WithCancel(r.Context())
	leave = cancel
	_ = h.ServeHTTP(w, r.WithContext(ctx), noApp(t))
	if n := testutil.ToFloat64(h.metrics.aborted.WithLabelValues("gone")); n != 1 || testutil.ToFloat64(h.metrics.refusals.WithLabelValues(kindClientGone)) != 1 {
		t.Errorf("%v uploads were aborted", n)
	}
}

// Bad framing is no text of the client's in the log, though net/http's error
// quotes the line of a trailer that is none.
func TestClientsTextIsNotLogged(t *testing.T) {
	h := newHandler(t, answers(201, success()), "")
	logs := h.observed()
	extra := make(chan any, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = fromClient(w, r)
		_ = h.ServeHTTP(w, r, noApp(t))
		extra <- r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey)
	}))
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 40_000 // more than is read before Oz is asked
	fmt.Fprintf(conn, "POST /verify HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\ncanary\r\n\r\n",
		capsuleMediaType, size, strings.Repeat("x", size))
	access := fmt.Sprint(<-extra)
	lines := logs.FilterMessage("capsule refused").All()
	if len(lines) != 1 || lines[0].Level != zap.InfoLevel || lines[0].ContextMap()["problem"] != kindUnreadableCapsule || lines[0].ContextMap()["error"] == nil {
		t.Fatalf("%v", logs.All())
	}
	if strings.Contains(fmt.Sprint(logs.All())+access, "canary") {
		t.Errorf("%v, in the access log %s", lines, access)
	}
}

// meddler is a handler of events that does what it can.
type meddler struct{ seen []map[string]any }

func (m *meddler) Handle(_ context.Context, e caddy.Event) error {
	data := make(map[string]any)
	for key, value := range e.Data {
		data[key] = value
		e.Data[key] = "SUCCESS"
	}
	m.seen = append(m.seen, data)
	return errors.Join(caddy.ErrEventAborted, errors.New("no"))
}

// Handlers of the event hear of each decision once, and can't change it.
func TestEventHandlersCannotDecide(t *testing.T) {
	ctx := newContext(t)
	app, err := ctx.App("events")
	if err != nil {
		t.Fatal(err)
	}
	m := new(meddler)
	if err := app.(*caddyevents.App).On(eventDecision, m); err != nil {
		t.Fatal(err)
	}
	h, err := load[*Handler](ctx, handlerID, ozConfig(t, answers(201, testFolder("FINISHED", "DECLINED", "DECLINED", "")), ""))
	if err != nil {
		t.Fatal(err)
	}
	behind := new(testApp)
	h.posted(t, behind, "capsule")
	h.posted(t, noApp(t), "") // refused: nothing is decided
	if got := behind.request.Header; got.Get(headerDecision) != "DECLINED" || got.Get("X-Oz-Quality") != "DECLINED" {
		t.Errorf("the app got %v", got)
	}
	want := []map[string]any{{
		"decision": "DECLINED", "reason": "", "folder_id": "folder-1", "event_session_id": "session-1", "resolution_status": "FINISHED",
		"system_resolution": "DECLINED", "quality": "DECLINED", "biometry": "", "error_code": "", "best_shot": "",
	}}
	if !reflect.DeepEqual(m.seen, want) {
		t.Errorf("it saw %v", m.seen)
	}
}

// A capsule whose config ends while it is at Oz is decided, without an event.
func TestDecisionAfterAReload(t *testing.T) {
	ctx, end := cancelContext(t)
	app, err := ctx.App("events")
	if err != nil {
		t.Fatal(err)
	}
	m := new(meddler)
	if err := app.(*caddyevents.App).On(eventDecision, m); err != nil {
		t.Fatal(err)
	}
	h, err := load[*Handler](ctx, handlerID, ozConfig(t, func(req *http.Request) (*http.Response, error) {
		end()
		return answers(201, success())(req)
	}, ""))
	if err != nil {
		t.Fatal(err)
	}
	h.metrics = newMetrics()
	behind := new(testApp)
	h.posted(t, behind, "capsule")
	n := testutil.ToFloat64(h.metrics.decisions.WithLabelValues("SUCCESS", ""))
	if behind.calls != 1 || behind.request.Header.Get(headerDecision) != "SUCCESS" || n != 1 || h.way.decisions[oz.Success].Load() != 1 || len(m.seen) != 0 {
		t.Errorf("%d calls of the app, %v decisions, events %v", behind.calls, n, m.seen)
	}
}

// Words that the guide doesn't know are one label, however many there are.
func TestAnalysisLabelsAreClosed(t *testing.T) {
	for word, want := range map[string]string{"QUALITY": "QUALITY", "BIOMETRY": "BIOMETRY", "": otherLabel, "quality": otherLabel, "DOCUMENTS": otherLabel, "_other": otherLabel} {
		if got := labelOf(analysisNames, word); got != want {
			t.Errorf("type %q is counted as %q", word, got)
		}
	}
	if labelOf(analysisStatuses, "FINISHED") != otherLabel || labelOf(analysisStatuses, "OPERATOR_REQUIRED") != "OPERATOR_REQUIRED" {
		t.Error("statuses")
	}
}

// What a capsule costs to be seen: metrics, the fields of its line and an event
// that nobody waits for. The line itself isn't written.
func BenchmarkObserve(b *testing.B) {
	h := &Handler{metrics: newMetrics(), logger: zap.NewNop(), way: &wayUser{way: newWay("")}}
	folder, err := oz.ReadFolder([]byte(testFolder("FINISHED", "SUCCESS", "SUCCESS", "")))
	if err != nil {
		b.Fatal(err)
	}
	a := judged(oz.Verdict{Decision: oz.Success, Folder: folder})
	a.liveness.Status, a.upload.Received = 201, true
	res := newResult(a, false)
	w := httptest.NewRecorder()
	r := newCapsuleRequest(w, strings.NewReader(""))
	r = r.WithContext(context.WithValue(r.Context(), caddyhttp.ExtraLogFieldsCtxKey, new(caddyhttp.ExtraLogFields)))
	b.ReportAllocs()
	for b.Loop() {
		h.observe(r, res, time.Second)
	}
}
