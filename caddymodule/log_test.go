package caddymodule

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap/zapcore"
)

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
			r := capsuleRequest(w, strings.NewReader("capsule"))
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
	release, _, err := h.gate.enterSlot(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
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
	r := capsuleRequest(w, strings.NewReader("canary-capsule"))
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
