package caddymodule

import (
	"reflect"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// A config that says nothing gets the defaults that the field comments and
// README name.
func TestDefaults(t *testing.T) {
	h := newHandler(t, neverAsked(t), `{"biometry": {"reference": "/photo"}, "capacity": {"slots": 3}}`)
	for name, field := range map[string]struct{ got, want any }{
		"max_capsule":            {h.MaxCapsule, int64(32 << 20)},
		"max_answer":             {h.MaxAnswer, int64(64 << 20)},
		"upload_timeout":         {time.Duration(h.UploadTimeout), 2 * time.Minute},
		"timeout":                {time.Duration(h.Timeout), time.Minute},
		"best_shot":              {h.BestShot, "strip"},
		"client_gone":            {h.ClientGone, "finish"},
		"analyses":               {h.Analyses, []string{"quality"}},
		"policy":                 {h.policy.Analyses, []string{oz.Quality}},
		"biometry tag":           {h.Biometry.Tag, "photo_selfie"},
		"biometry max_reference": {h.Biometry.MaxReference, int64(10 << 20)},
		"capacity queue":         {*h.Capacity.Queue, 12},
		"capacity wait":          {time.Duration(h.Capacity.Wait), 15 * time.Second},
	} {
		if !reflect.DeepEqual(field.got, field.want) {
			t.Errorf("%s: %v, want %v", name, field.got, field.want)
		}
	}
	if h := newHandler(t, neverAsked(t), ""); h.Biometry != nil || h.Capacity != nil {
		t.Error("a smallest config has more than it asked for")
	}
	s, err := load[*SessionToken](newContext(t), sessionTokenID, ozConfig(t, neverAsked(t), ""))
	if err != nil || time.Duration(s.Timeout) != 5*time.Second {
		t.Errorf("session tokens: %v, timeout %s", err, time.Duration(s.Timeout))
	}
}

// What a config does say is what holds.
func TestGivenValuesStay(t *testing.T) {
	h := newHandler(t, neverAsked(t), `{"max_capsule": 1, "max_answer": 2, "upload_timeout": 3, "timeout": 4, "best_shot": "attach",
		"client_gone": "cancel", "analyses": ["none"], "biometry": {"reference": "/photo", "tag": "a", "max_reference": 5}}`)
	got := []any{
		h.MaxCapsule, h.MaxAnswer, h.UploadTimeout, h.Timeout, h.BestShot, h.ClientGone, h.Biometry.Tag, h.Biometry.MaxReference,
	}
	want := []any{int64(1), int64(2), caddy.Duration(3), caddy.Duration(4), "attach", "cancel", "a", int64(5)}
	if !reflect.DeepEqual(got, want) || h.policy.Analyses != nil {
		t.Errorf("%v, policy %v", got, h.policy)
	}
}

func TestAnalysisTypes(t *testing.T) {
	for _, test := range []struct {
		names, want []string
		ok          bool
	}{
		{[]string{"none"}, nil, true},
		{[]string{"quality"}, []string{oz.Quality}, true},
		{[]string{"biometry", "quality"}, []string{oz.Biometry, oz.Quality}, true},
		{[]string{"none", "quality"}, nil, false},
		{[]string{"quality", "none"}, nil, false},
		{[]string{"none", "none"}, nil, false},
		{[]string{"QUALITY"}, nil, false},
		{[]string{""}, nil, false},
	} {
		got, err := analysisTypes(test.names)
		if !reflect.DeepEqual(got, test.want) || (err == nil) != test.ok {
			t.Errorf("%v: %v, %v", test.names, got, err)
		}
	}
}

// The modules have the names that JSON configs use, and each a state of its own. To ask for a name copies nothing.
func TestModuleInfo(t *testing.T) {
	for id, module := range map[string]caddy.Module{handlerID: new(Handler), sessionTokenID: new(SessionToken)} {
		info := module.CaddyModule()
		if string(info.ID) != id || info.New() == info.New() {
			t.Errorf("%s: %v", id, info)
		}
		if _, err := caddy.GetModule(id); err != nil {
			t.Errorf("%s is not registered: %v", id, err)
		}
		if _, copied := reflect.TypeAssert[caddy.Module](reflect.ValueOf(module).Elem()); copied {
			t.Errorf("%s is copied for its name", id)
		}
	}
}
