package caddymodule

import (
	"fmt"
	"strings"
	"testing"
)

// A JSON config that makes no sense does not load, and the message says which
// field it is. The Caddyfile's own refusals are in testdata.
func TestConfigsThatMustNotLoad(t *testing.T) {
	for _, test := range []struct{ fields, want string }{
		{`{"max_capsule": -1}`, "max_capsule: must be greater than zero"},
		{`{"max_answer": -1}`, "max_answer: must be greater than zero"},
		{`{"upload_timeout": -1}`, "upload_timeout: must be greater than zero"},
		{`{"timeout": -1}`, "timeout: must be greater than zero"},

		{`{"best_shot": "drop"}`, `best_shot: "drop" is not strip or keep or attach`},
		{`{"client_gone": "wait"}`, `client_gone: "wait" is not finish or cancel`},
		{`{"strip": ["media.*"]}`, `strip: path "media.*"`},
		{`{"analyses": ["none", "quality"]}`, "analyses: none stands alone"},
		{`{"analyses": ["liveness"]}`, `analyses: unknown analysis "liveness"`},
		{`{"require": [{"path": "a|b", "value": "c"}]}`, `require: path "a|b"`},
		{`{"require": [{"path": "a.b", "value": ""}]}`, "require a.b: the value is empty and could never hold"},

		{`{"pass": ["SUCCESS"]}`, "pass: SUCCESS reaches the app anyway"},
		{`{"pass": ["INVALID", "FAILED"]}`, "pass: FAILED reaches the app anyway"},
		{`{"pass": ["invalid"]}`, `pass: "invalid" is not a decision; there are SUCCESS, DECLINED, OPERATOR_REQUIRED, FAILED, INVALID, UNAVAILABLE`},
		{`{"handle_decision": [{"decisions": []}]}`, "handle_decision: name at least one decision"},
		{`{"handle_decision": [{"decisions": ["MAYBE"]}]}`, `handle_decision: "MAYBE" is not a decision`},
		{`{"handle_decision": [{"decisions": ["FAILED", "FAILED"]}]}`, "handle_decision: FAILED has routes already"},
		{`{"handle_decision": [{"decisions": ["FAILED"]}, {"decisions": ["INVALID", "FAILED"]}]}`, "handle_decision: FAILED has routes already"},
		{`{"handle_decision": [{"decisions": ["FAILED"]}, {"decisions": ["INVALID"], "routes": [{"handle": [{"handler": "nonsense"}]}]}]}`, "handle_decision 1: "},
		{`{"match": [{"nonsense": true}]}`, "loading matchers"},

		{`{"biometry": {}}`, `biometry: reference: "" is not a path of the app`},
		{`{"biometry": {"reference": "photo"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "//evil.example/photo"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "http://evil.example/photo"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "/photo#a"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "/my photo"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "/photo\\a"}}`, "biometry: reference: "},
		{`{"biometry": {"reference": "/photo", "tag": "a b"}}`, `biometry: tag: "a b" is not a tag`},
		{`{"biometry": {"reference": "/photo", "max_reference": -1}}`, "biometry: max_reference: must be greater than zero"},

		{`{"capacity": {}}`, "capacity: name slots, or memory, or both"},
		{`{"capacity": {"slots": -1}}`, "capacity: slots: must be greater than zero"},
		{`{"capacity": {"slots": 1, "queue": -1}}`, "capacity: queue: must not be less than zero"},
		{`{"capacity": {"slots": 1, "wait": -1}}`, "capacity: wait: must be greater than zero"},
		{`{"capacity": {"slots": 1, "memory": -1}}`, "capacity: memory: must be greater than zero"},
		{`{"require": [{"path": "a", "value": "x{http.request.body}"}]}`, "require a: the capsule itself is no value"},
		{`{"capacity": {"memory": 33554431}}`, "capacity: memory: 32 MiB cannot hold a capsule of max_capsule, 32 MiB"},

		{`{"reverse_proxy": null}`, "no Oz upstream"},
		{`{"reverse_proxy": {"upstreams": []}}`, "no Oz upstream"},
		{`{"base_path": "oz"}`, `base_path: "oz" is not a plain path`},
		{`{"access_token": "a", "credentials": {"email": "e", "password": "p"}}`, "access_token and credentials exclude each other"},
		{`{"access_token": "{env.OZ_TEST_NOWHERE}"}`, "access_token: "},
		{`{"access_token": "hunter 2"}`, "access_token: it has characters that cannot stand in a header field"},
		{`{"credentials": {"email": "", "password": "p"}}`, "credentials: email: it is empty"},
		{`{"credentials": {"email": "e", "password": "{env.OZ_TEST_NOWHERE}"}}`, "credentials: password: "},
		{`{"reverse_proxy": {"transport": {"protocol": "nonsense"}}}`, "loading transport"},
		{`{"reverse_proxy": {"trusted_proxies": ["nonsense"]}}`, "provisioning reverse_proxy"},
		{`{"nonsense": true}`, "unknown field"},
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
			if h := newHandler(t, neverAsked(t), fields); h.link == nil {
				t.Error("there is no way to Oz")
			}
		})
	}
}

func TestSessionTokenConfigsThatMustNotLoad(t *testing.T) {
	for fields, want := range map[string]string{
		`{"timeout": -1}`:                                "timeout: must be greater than zero",
		`{"reverse_proxy": {"upstreams": []}}`:           "no Oz upstream",
		`{"base_path": "/oz/"}`:                          "base_path: ",
		`{"max_capsule": 5}`:                             "unknown field",
		`{"credentials": {"email": "", "password": ""}}`: "credentials: email: it is empty",
	} {
		if _, err := load[*SessionToken](newContext(t), sessionTokenID, ozConfig(t, neverAsked(t), fields)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", fields, err)
		}
	}
}

// Memory is counted in pieces: what is as large as a capsule, and no piece
// larger, may not hold one.
func TestMemoryInPieces(t *testing.T) {
	for memory, ok := range map[int64]bool{10_000_000: false, roundUp(10_000_000): true} {
		config := fmt.Sprintf(`{"max_capsule": 10000000, "capacity": {"slots": 1, "memory": %d}}`, memory)
		if _, err := load[*Handler](newContext(t), handlerID, ozConfig(t, neverAsked(t), config)); (err == nil) != ok {
			t.Errorf("%d: %v", memory, err)
		}
	}
}
