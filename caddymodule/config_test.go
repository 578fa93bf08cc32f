package caddymodule

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// A config that says nothing gets the defaults that the field comments and
// README name.
func TestDefaults(t *testing.T) {
	h := newHandler(t, neverAsked(t), `{"biometry": {"reference": "/photo"}, "capacity": {"slots": 3}, "session_token": {"path": "/t"}, "replay_guard": {}}`)
	for name, field := range map[string]struct{ got, want any }{
		"max_capsule":            {h.MaxCapsule, int64(32 << 20)},
		"max_answer":             {h.MaxAnswer, int64(64 << 20)},
		"max_header":             {h.MaxHeader, int64(12 << 10)},
		"session_token timeout":  {time.Duration(h.SessionToken.Timeout), 5 * time.Second},
		"upload_timeout":         {time.Duration(h.UploadTimeout), 2 * time.Minute},
		"timeout":                {time.Duration(h.Timeout), time.Minute},
		"best_shot":              {h.BestShot, "strip"},
		"client_gone":            {h.ClientGone, "finish"},
		"analyses":               {h.Analyses, []string{"quality"}},
		"policy":                 {h.policy.Analyses, []string{oz.Quality}},
		"biometry tag":           {h.Biometry.Tag, "photo_selfie"},
		"biometry max_reference": {h.Biometry.MaxReference, int64(10 << 20)},
		"replay_guard store":     {string(h.ReplayGuard.StoreRaw), ""}, // loaded
		"replay_guard window":    {time.Duration(h.ReplayGuard.Window), 15 * time.Minute},
		"replay_guard on_error":  {h.ReplayGuard.OnError, "refuse"},
		"capacity queue":         {*h.Capacity.Queue, 12},
		"capacity wait":          {time.Duration(h.Capacity.Wait), 15 * time.Second},
	} {
		if !reflect.DeepEqual(field.got, field.want) {
			t.Errorf("%s: %v, want %v", name, field.got, field.want)
		}
	}
	if h := newHandler(t, neverAsked(t), ""); h.Biometry != nil || h.Capacity != nil || h.SessionToken != nil || h.ReplayGuard != nil {
		t.Error("a smallest config has more than it asked for")
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

// The module has the name that JSON configs use, and each instance a state of
// its own. To ask for the name copies nothing.
func TestModuleInfo(t *testing.T) {
	info := new(Handler).CaddyModule()
	if string(info.ID) != handlerID || info.New() == info.New() {
		t.Errorf("%v", info)
	}
	if _, err := caddy.GetModule(handlerID); err != nil {
		t.Errorf("not registered: %v", err)
	}
	if _, copied := reflect.TypeAssert[caddy.Module](reflect.ValueOf(new(Handler)).Elem()); copied {
		t.Error("the handler is copied for its name")
	}
}

// A JSON config that makes no sense does not load, and the message says which
// field it is. The Caddyfile's own refusals are in testdata.
func TestConfigsThatMustNotLoad(t *testing.T) {
	for _, test := range []struct{ fields, want string }{
		{`{"max_capsule": -1}`, "max_capsule: must be greater than zero"},
		{`{"max_answer": -1}`, "max_answer: must be greater than zero"},
		{`{"upload_timeout": -1}`, "upload_timeout: must be greater than zero"},
		{`{"timeout": -1}`, "timeout: must be greater than zero"},

		{`{"best_shot": "drop"}`, `best_shot: invalid value "drop" (want strip, keep or attach)`},
		{`{"client_gone": "wait"}`, `client_gone: invalid value "wait" (want finish or cancel)`},
		{`{"replay_guard": {"window": -1}}`, "replay_guard: window: must be at least a second"},
		{`{"replay_guard": {"window": "999ms"}}`, "replay_guard: window: must be at least a second"},
		{`{"replay_guard": {"on_error": "ignore"}}`, `replay_guard: on_error: invalid value "ignore" (want refuse or allow)`},
		{`{"replay_guard": {"also": "a.*"}}`, `replay_guard: also: path "a.*"`},
		{`{"replay_guard": {"also": "a.#.b"}}`, `replay_guard: also: path "a.#.b": # selects several values (want the path of one)`},
		{`{"replay_guard": {"store": {"module": "absent"}}}`, "replay_guard: loading the store: loading module 'absent': unknown module"},
		{`{"replay_guard": {"store": {"module": "golden_store", "tokens": []}}}`, "replay_guard: *caddymodule.goldenStore is not a store of claims"},

		{`{"strip": ["media.*"]}`, `strip: path "media.*"`},
		{`{"analyses": ["none", "quality"]}`, "analyses: none cannot be combined with other values"},
		{`{"analyses": ["liveness"]}`, `analyses: invalid value "liveness" (want quality, biometry or none)`},
		{`{"require": [{"path": "a|b", "value": "c"}]}`, `require: path "a|b"`},
		{`{"require": [{"path": "a.b", "value": ""}]}`, "require: a.b: the value is empty and could never hold"},

		{`{"pass": ["SUCCESS"]}`, "pass: SUCCESS is always passed to the app; only INVALID and UNAVAILABLE can be listed"},
		{`{"pass": ["INVALID", "FAILED"]}`, "pass: FAILED is always passed to the app"},
		{`{"pass": ["invalid"]}`, `pass: invalid value "invalid" (want SUCCESS, DECLINED, OPERATOR_REQUIRED, FAILED, INVALID or UNAVAILABLE)`},
		{`{"handle_decision": [{"decisions": []}]}`, "handle_decision: no decisions (want at least one)"},
		{`{"handle_decision": [{"decisions": ["MAYBE"]}]}`, `handle_decision: invalid value "MAYBE"`},
		{`{"handle_decision": [{"decisions": ["FAILED", "FAILED"]}]}`, "handle_decision: FAILED already has routes"},
		{`{"handle_decision": [{"decisions": ["FAILED"]}, {"decisions": ["INVALID", "FAILED"]}]}`, "handle_decision: FAILED already has routes"},
		{`{"handle_decision": [{"decisions": ["FAILED"]}, {"decisions": ["INVALID"], "routes": [{"handle": [{"handler": "nonsense"}]}]}]}`, "handle_decision 1: "},
		{`{"match": [{"nonsense": true}]}`, "loading matchers"},

		{`{"biometry": {}}`, "biometry: no reference"},
		{`{"biometry": {"reference": "photo"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "//evil.example/photo"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "http://evil.example/photo"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "/photo#a"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "/my photo"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "/photo\\a"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "/photo", "tag": "a b"}}`, `biometry: tag: invalid tag "a b"`},
		{`{"biometry": {"reference": "/photo", "max_reference": -1}}`, "biometry: max_reference: must be greater than zero"},

		{`{"capacity": {}}`, "capacity: set slots, memory, or both"},
		{`{"capacity": {"slots": -1}}`, "capacity: slots: must be greater than zero"},
		{`{"capacity": {"slots": 1, "queue": -1}}`, "capacity: queue: must not be less than zero"},
		{`{"capacity": {"slots": 1, "wait": -1}}`, "capacity: wait: must be greater than zero"},
		{`{"capacity": {"slots": 1, "memory": -1}}`, "capacity: memory: must be greater than zero"},
		{`{"require": [{"path": "a", "value": "x{http.request.body}"}]}`, "require: a: the capsule itself cannot be the value"},
		{`{"capacity": {"memory": 33554431}}`, "capacity: memory: 32 MiB cannot hold a capsule of max_capsule"},

		{`{"reverse_proxy": null}`, "no Oz upstream"},
		{`{"reverse_proxy": {"upstreams": []}}`, "no Oz upstream"},
		{`{"base_path": "oz"}`, `base_path: invalid path "oz"`},
		{`{"access_token": "a", "credentials": {"email": "e", "password": "p"}}`, "access_token and credentials exclude each other"},
		{`{"access_token": "{env.OZ_TEST_NOWHERE}"}`, "access_token: "},
		{`{"access_token": "hunter 2"}`, "access_token: it has characters that cannot stand in a header field"},
		{`{"credentials": {"email": "", "password": "p"}}`, "credentials: email: it is empty"},
		{`{"credentials": {"email": "e", "password": "{env.OZ_TEST_NOWHERE}"}}`, "credentials: password: "},
		{`{"reverse_proxy": {"transport": {"protocol": "nonsense"}}}`, "loading transport"},
		{`{"reverse_proxy": {"load_balancing": {"selection_policy": {"policy": "nonsense"}}}}`, "provisioning reverse_proxy"},
		{`{"nonsense": true}`, "unknown field"},

		{`{"max_header": -1}`, "max_header: must be greater than zero"},
		{`{"session_token": {}}`, `session_token: invalid path ""`},
		{`{"session_token": {"path": "/t*"}}`, `session_token: invalid path "/t*"`},
		{`{"session_token": {"path": "/t", "timeout": -1}}`, "session_token: timeout: must be greater than zero"},
		{`{"session_token": {"path": "/t"}, "match": [{"expression": "true"}]}`, "session_token: the matcher expression"},
		{`{"session_token": {"path": "/t"}, "match": [{"path": ["/a"]}, {"not": [{"host": ["a"]}]}]}`, "session_token: the matcher not"},
		{`{"session_token": {"path": "/verify"}, "match": [{"path": ["/other", "/Verify"]}]}`, "session_token: /verify is the path of the capsules"},
		{`{"session_token": {"path": "/verify"}, "match": [{"path": ["/verify*"]}]}`, "session_token: /verify is the path of the capsules"},
	} {
		t.Run(test.fields, func(t *testing.T) {
			_, err := load[*Handler](newContext(t), handlerID, ozConfig(t, neverAsked(t), test.fields))
			if err == nil {
				t.Fatal("it loads")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v\nwant %s", err, test.want)
			}
			if strings.Contains(err.Error(), "hunter") {
				t.Error("the error shows a secret")
			}
		})
	}
}

// What is at the border of that does load.
func TestConfigsThatLoad(t *testing.T) {
	for _, fields := range []string{
		``,
		`{"max_capsule": 1, "max_answer": 1, "upload_timeout": 1, "timeout": 1}`,
		`{"capacity": {"memory": 33554432}}`,
		`{"capacity": {"slots": 1, "queue": 0}}`,
		`{"handle_decision": [{"decisions": ["FAILED", "INVALID"]}, {"decisions": ["SUCCESS"]}], "pass": ["INVALID", "UNAVAILABLE"]}`,
		`{"biometry": {"reference": "/photo/{http.auth.user.id}?size=large"}}`,
		`{"base_path": "/oz"}`,
	} {
		t.Run(fields, func(t *testing.T) {
			if h := newHandler(t, neverAsked(t), fields); h.client == nil {
				t.Error("the handler has no client for Oz")
			}
		})
	}
}

// Memory is counted in pieces: what is as large as a capsule, and no piece
// larger, may not hold one.
func TestMemoryInPieces(t *testing.T) {
	for memory, ok := range map[int64]bool{10_000_000: false, upload.MinMemory(10_000_000): true} {
		config := fmt.Sprintf(`{"max_capsule": 10000000, "capacity": {"slots": 1, "memory": %d}}`, memory)
		if _, err := load[*Handler](newContext(t), handlerID, ozConfig(t, neverAsked(t), config)); (err == nil) != ok {
			t.Errorf("%d: %v", memory, err)
		}
	}
}
