package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// judged is an attempt that Oz has answered.
func judged(v oz.Verdict) attempt { return attempt{liveness: ozclient.Answer{Verdict: v}} }

// taken takes a slot of h.
func taken(t *testing.T, h *Handler) *upload.Admission {
	t.Helper()
	w := httptest.NewRecorder()
	s := upload.NewStream(w, newCapsuleRequest(w, strings.NewReader("x")), upload.Limits{MaxBytes: 10, Timeout: time.Minute})
	admission, err := h.gate.Acquire(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.End)
	return admission
}

// On a request that was not judged, placeholders are known and empty; on one
// that was, a zero is a zero. Other placeholders are not ours.
func TestPlaceholders(t *testing.T) {
	r := fromClient(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", nil))
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	const names = "{http.oz_instant.decision} {http.oz_instant.reason} {http.oz_instant.folder_id} {http.oz_instant.event_session_id} " +
		"{http.oz_instant.error_code} {http.oz_instant.quality} {http.oz_instant.biometry} {http.oz_instant.capsule_bytes} {http.oz_instant.oz_ms} " +
		"{http.oz_instant.resolution_status} {http.oz_instant.system_resolution} {http.oz_instant.best_shot}"
	s := begin(r)
	if got := repl.ReplaceKnown(names, "-"); got != "- - - - - - - - - - - -" {
		t.Errorf("not judged: %q", got)
	}
	folder, err := oz.ReadFolder([]byte(success()))
	if err != nil {
		t.Fatal(err)
	}
	a := judged(oz.Verdict{Decision: oz.Success, Folder: folder})
	a.upload.Bytes, a.liveness.Time = 7, 1500*time.Millisecond
	s.record(newResult(a, false))
	if got, want := repl.ReplaceAll(names, ""), "SUCCESS  folder-1 session-1  SUCCESS  7 1500 FINISHED SUCCESS "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s.record(newResult(judged(oz.Verdict{Decision: oz.Invalid, Reason: oz.Container, Error: &oz.Error{Code: 14}}), false))
	if got, want := repl.ReplaceAll(names, ""), "INVALID container   14   0 0   "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, name := range []string{"{http.oz_instant.secret}", "{http.oz_instant}", "{oz_instant.decision}"} {
		if got := repl.ReplaceKnown(name, ""); got != name {
			t.Errorf("%s is %q", name, got)
		}
	}
}

// words are the facts of a Result by their names.
func (res *Result) named() map[string]string {
	all := make(map[string]string)
	for i, f := range facts {
		if res.words[i] != "" {
			all[f.name] = res.words[i]
		}
	}
	return all
}

// A folder of somebody else says nothing about this request, and words that do
// not fit a header are omitted.
func TestFacts(t *testing.T) {
	folder := func(doc string) *oz.Folder {
		f, err := oz.ReadFolder([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	got := newResult(judged(oz.Verdict{Decision: oz.Invalid, Reason: oz.Binding, Folder: folder(success())}), true).named()
	if want := map[string]string{"decision": "INVALID", "reason": "binding", "folder_id": "folder-1", "event_session_id": "session-1"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("binding: %v", got)
	}
	strange := strings.NewReplacer("folder-1", `a\r\nX-Oz-Decision: SUCCESS`, "session-1", strings.Repeat("x", 129)).Replace(success())
	got = newResult(judged(oz.Verdict{Decision: oz.Success, Folder: folder(strange)}), false).named()
	if got["folder_id"] != "" || got["event_session_id"] != "" || got["decision"] != "SUCCESS" {
		t.Errorf("strange: %v", got)
	}

	a := judged(oz.Verdict{Decision: oz.Success, Folder: folder(success())})
	a.match = &match{answer: ozclient.Answer{Verdict: oz.Verdict{Decision: oz.Declined, Folder: folder(matched("DECLINED", "DECLINED"))}}}
	got = newResult(a, false).named()
	if got["decision"] != "DECLINED" || got["system_resolution"] != "DECLINED" || got["biometry"] != "DECLINED" || got["quality"] != "SUCCESS" || got["folder_id"] != "folder-1" {
		t.Errorf("faces that do not match: %v", got)
	}
	a.match = &match{answer: ozclient.Answer{Verdict: oz.ReasonVerdict(oz.ReferenceMissing)}}
	got = newResult(a, false).named()
	if got["decision"] != "FAILED" || got["system_resolution"] != "" || got["resolution_status"] != "" || got["quality"] != "SUCCESS" {
		t.Errorf("no second folder: %v", got)
	}
}

// The worse of liveness and face matching decides; what came of liveness is
// otherwise kept.
func TestTheWorseDecides(t *testing.T) {
	folder, second := new(oz.Folder), errors.New("second")
	a := judged(oz.Verdict{Decision: oz.Success, Folder: folder})
	if res := newResult(a, false); res.verdict != a.liveness.Verdict || res.fault != nil || res.why != nil {
		t.Errorf("without a match: %+v", res)
	}
	a.match = &match{answer: ozclient.Answer{Verdict: oz.Verdict{Decision: oz.Failed, Reason: oz.AnalysisFailed, Error: &oz.Error{Code: 11}}}, err: second}
	res := newResult(a, false)
	if v := res.verdict; v.Decision != oz.Failed || v.Reason != oz.AnalysisFailed || v.Error.Code != 11 || v.Folder != folder || !errors.Is(res.why, second) {
		t.Errorf("%+v, %v", v, res.why)
	}
}

// With the client's fault there is no decision, whoever noticed it.
func TestNoDecisionWithAClientsFault(t *testing.T) {
	byClient := &ozclient.Error{Fault: ozclient.FaultClient, Err: upload.ErrGone}
	success := oz.Verdict{Decision: oz.Success, Folder: new(oz.Folder)}
	for name, a := range map[string]attempt{
		"before Oz": {refused: upload.ErrGone},
		"at Oz":     {liveness: ozclient.Answer{Verdict: success}, err: byClient},
		"matching":  {liveness: ozclient.Answer{Verdict: success}, match: &match{err: byClient}},
	} {
		res := newResult(a, false)
		if !errors.Is(res.fault, upload.ErrGone) || res.verdict.Decision != "" {
			t.Errorf("%s: %v, %+v", name, res.fault, res.verdict)
		}
		s := new(requestState)
		if s.record(res); s.result != nil {
			t.Errorf("%s: the request is decided", name)
		}
	}
}

func TestHeaderValue(t *testing.T) {
	for _, good := range []string{"SUCCESS", "7b1f2c52-0c0d-4f5e", "a:b_c.d", strings.Repeat("x", 128)} {
		if headerValue(good) != good {
			t.Errorf("%q was refused", good)
		}
	}
	for _, bad := range []string{"a b", "a\r\nX-Oz-Decision: SUCCESS", "é", "{env.HOME}", "a,b", "\x00", strings.Repeat("x", 129)} {
		if got := headerValue(bad); got != "" {
			t.Errorf("%q came out as %q", bad, got)
		}
	}
}

// A capsule leaves one line, with what support will ask for, and the access log
// has the same words.
func TestOneLineACapsule(t *testing.T) {
	const more = `{"error_code": 14, "error_message": "told by Oz"}`
	for _, test := range []struct {
		name, fields string
		status       int
		doc          string
		level        zapcore.Level
		want         map[string]any
		absent       []string
	}{
		{
			"SUCCESS", "", 201, success(), zapcore.InfoLevel,
			map[string]any{
				"decision": "SUCCESS", "folder_id": "folder-1", "event_session_id": "session-1", "quality": "SUCCESS", "capsule_bytes": int64(7),
				"upstream": "oz.test:8080", "upstream_tries": int64(1), "oz_status": int64(201), "answer_bytes": int64(len(success())), "client_gone": false,
			},
			[]string{"reason", "error", "error_code", "best_shots", "match"},
		},
		{
			"attached", `{"best_shot": "attach"}`, 201, strings.Replace(success(), testShot, "!", 1), zapcore.InfoLevel,
			map[string]any{"decision": "SUCCESS", "best_shots": int64(1), "best_shots_unusable": int64(1)}, nil,
		},
		{
			"INVALID", "", 400, more, zapcore.InfoLevel,
			map[string]any{"decision": "INVALID", "reason": "container", "error_code": "14", "oz_status": int64(400)}, []string{"folder_id"},
		},
		{
			"UNAVAILABLE", "", 500, more, zapcore.ErrorLevel,
			map[string]any{"decision": "UNAVAILABLE", "reason": "unexpected_status", "oz_status": int64(500)}, nil,
		},
		{
			"nonsense", "", 201, `{"folder_id": "a", "folder_id": "b"}`, zapcore.ErrorLevel,
			map[string]any{"decision": "UNAVAILABLE", "reason": "malformed_answer"}, []string{"folder_id"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHandler(t, answers(test.status, test.doc), test.fields)
			logs := h.observed()
			w := httptest.NewRecorder()
			r := newCapsuleRequest(w, strings.NewReader("capsule"))
			if err := h.ServeHTTP(w, r, new(testApp)); err != nil {
				t.Fatal(err)
			}
			lines := logs.FilterMessage("capsule decided").All()
			if len(lines) != 1 || logs.FilterMessage("capsule refused").Len() != 0 {
				t.Fatalf("%v", logs.All())
			}
			line := lines[0].ContextMap()
			if lines[0].Level != test.level {
				t.Errorf("level %s", lines[0].Level)
			}
			for name, want := range test.want {
				if line[name] != want {
					t.Errorf("%s: %v (%T), want %v", name, line[name], line[name], want)
				}
			}
			for _, name := range test.absent {
				if _, has := line[name]; has {
					t.Errorf("%s: %v", name, line[name])
				}
			}
			if _, has := line["error"]; has != (test.level == zapcore.ErrorLevel) && test.doc != more {
				t.Errorf("error: %v", line["error"])
			}
			access := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
			if text := fmt.Sprint(access); !strings.Contains(text, "oz_instant") {
				t.Errorf("the access log has %s", text)
			}
		})
	}
}

// A capsule that was not delivered leaves one line, too.
func TestLineOfARefusedCapsule(t *testing.T) {
	h := newHandler(t, answers(201, success()), `{"max_capsule": 10}`)
	logs := h.observed()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/verify", struct{ *strings.Reader }{strings.NewReader(strings.Repeat("x", 20))})
	r.ContentLength = -1
	r.Header.Set("Content-Type", capsuleMediaType)
	if err := h.ServeHTTP(w, fromClient(w, r), noApp(t)); err != nil {
		t.Fatal(err)
	}
	lines := logs.FilterMessage("capsule refused").All()
	if w.Code != 413 || len(lines) != 1 || logs.FilterMessage("capsule decided").Len() != 0 {
		t.Fatalf("%d, %v", w.Code, logs.All())
	}
	if line := lines[0].ContextMap(); line["problem"] != kindCapsuleTooLarge || line["capsule_bytes"] != int64(20) {
		t.Errorf("%v", line)
	}
}

// That this gateway is busy is as configured: no error of anybody's.
func TestBusyIsNoError(t *testing.T) {
	h := newHandler(t, neverAsked(t), `{"capacity": {"slots": 1, "queue": 0}}`)
	logs := h.observed()
	defer taken(t, h).Release(false)
	if w := h.posted(t, noApp(t), "capsule"); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	lines := logs.FilterMessage("capsule decided").All()
	if len(lines) != 1 || lines[0].Level != zapcore.InfoLevel || lines[0].ContextMap()["reason"] != "overloaded" {
		t.Errorf("%v", lines)
	}
}

// Nothing of a capsule or an image is in any line, at any level.
func TestNothingPersonalIsLogged(t *testing.T) {
	doc := strings.Replace(success(), "private.mp4", "canary-name", 1)
	h := newHandler(t, answers(201, doc), `{"best_shot": "attach", "require": [{"path": "meta_data.transaction_id", "value": "{http.request.cookie.c}"}]}`)
	logs := h.observed()
	w := httptest.NewRecorder()
	r := newCapsuleRequest(w, strings.NewReader("canary-capsule"))
	r.Header.Set("Cookie", "c=canary-cookie")
	r.Header.Set("Authorization", "canary-authorization")
	if err := h.ServeHTTP(w, r, noApp(t)); err != nil {
		t.Fatal(err)
	}
	if logs.Len() == 0 {
		t.Fatal("nothing is logged")
	}
	for _, line := range logs.All() {
		text := fmt.Sprint(line.Entry, line.ContextMap())
		if strings.Contains(text, "canary") || strings.Contains(text, testShot[:20]) {
			t.Errorf("%s", text)
		}
	}
}
