package caddymodule

import (
	"strings"
	"testing"
)

// A capsule counts once: the second is refused whatever Oz says, and nothing of
// its folder is told.
func TestReplayIsRefused(t *testing.T) {
	h := newHandler(t, answers(201, success()), `{"replay_guard": {}, "pass": ["INVALID"]}`)
	app := new(testApp)
	h.posted(t, app, "capsule")
	if got := app.request.Header.Get(headerDecision); got != "SUCCESS" {
		t.Fatalf("the first is %q", got)
	}
	h.posted(t, app, "capsule")
	if got := app.request.Header; got.Get(headerDecision) != "INVALID" || got.Get("X-Oz-Reason") != "replayed" || got.Get("X-Oz-Folder-Id") != "" {
		t.Errorf("the second is %v", got)
	}
	if !strings.Contains(app.body, "replayed") || strings.Contains(app.body, "folder-1") {
		t.Errorf("the app got %s", app.body)
	}
	h.posted(t, app, "capsulf")
	if got := app.request.Header.Get(headerDecision); got != "SUCCESS" {
		t.Errorf("another capsule is %q", got)
	}
}
