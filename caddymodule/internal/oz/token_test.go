package oz

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestReadSessionToken(t *testing.T) {
	for doc, want := range map[string]string{
		`{"session_token": "a.b.c"}`:                   "a.b.c",
		`{"x": [1], "session_token": "opaque token"}`:  "opaque token",
		`{"session_token": ""}`:                        "",
		`{"session_token": null}`:                      "",
		`{"session_token": 5}`:                         "",
		`{"Session_Token": "x"}`:                       "",
		`{"session_token": "a", "session_token": "b"}`: "",
		`{"session_token": "a"} {}`:                    "",
		`{"session_token": "a"`:                        "",
		`["a"]`:                                        "",
		`<html>`:                                       "",
		``:                                             "",
		`{"session_token": "` + strings.Repeat("a", maxToken+1) + `"}`: "",
	} {
		got, err := ReadSessionToken([]byte(doc))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.60s: got %q, %v", doc, got, err)
		}
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%.60s: %v", doc, err)
		}
	}
	if got := string(SessionTokenBody(`a"b`)); got != `{"session_token":"a\"b"}` {
		t.Errorf("written as %s", got)
	}
}

func TestReadGrant(t *testing.T) {
	now := time.Unix(1_764_000_000, 0)
	for doc, want := range map[string]time.Duration{
		`{"access_token": "t", "expire_token": "e", "expire_date": 1764000900}`: 15 * time.Minute,
		`{"access_token": "t", "expire_date": 1764000000.5, "user": {"id": 1}}`: 500 * time.Millisecond,
		`{"access_token": "t", "expire_date": 1.7640009e9}`:                     15 * time.Minute,
		`{"access_token": "t"}`:                                                     defaultLife,
		`{"access_token": "t", "expire_date": null}`:                                defaultLife,
		`{"access_token": "t", "expire_date": "1764000900"}`:                        defaultLife,
		`{"access_token": "t", "expire_date": 9e99}`:                                longestLife,
		`{"access_token": "t", "expire_date": 1764000000}`:                          0,
		`{"access_token": "t", "expire_date": -1}`:                                  0,
		`{"access_token": "t", "expire_date": 9e999}`:                               0,
		`{"access_token": ""}`:                                                      0,
		`{"access_token": null}`:                                                    0,
		`{"access_token": "a b"}`:                                                   0,
		`{"access_token": "a\nb"}`:                                                  0,
		`{"access_token": "é"}`:                                                     0,
		`{"access_token": ["t"]}`:                                                   0,
		`{"Access_Token": "t"}`:                                                     0,
		`{"access_token": "t", "access_token": "u"}`:                                0,
		`{"access_token": "t"}x`:                                                    0,
		`{"access_token": "` + strings.Repeat("a", maxToken+1) + `"}`:               0,
		`{"access_token": "t", "expire_token": "` + strings.Repeat("a", 1e4) + `"}`: 0,
	} {
		g, err := ReadGrant([]byte(doc), now)
		if (err == nil) != (want > 0) || err == nil && (g.Life != want || g.AccessToken != "t") {
			t.Errorf("%.80s: got %+v, %v", doc, g, err)
		}
	}
	if got := string(LoginBody("a@b", `p"w`)); got != `{"credentials":{"email":"a@b","password":"p\"w"}}` {
		t.Errorf("log-in: %s", got)
	}
	if got := string(RefreshBody("e")); got != `{"expire_token":"e"}` {
		t.Errorf("refresh: %s", got)
	}
}

// The codes that say that the access token is the matter.
func TestAboutToken(t *testing.T) {
	for code := range 16 {
		if got := (Error{Code: code}).AboutToken(); got != (code >= 6 && code <= 9) {
			t.Errorf("code %d: %v", code, got)
		}
	}
}
