package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	email, password = "gateway@example.com", "correct horse"
	right           = `{"credentials": {"email": "` + email + `", "password": "` + password + `"}}`
)

func accounts() map[string]string {
	return map[string]string{email: password, "other@example.com": "battery staple"}
}

// grantView is what comes of a log-in.
type grantView struct {
	Access  string  `json:"access_token"`
	Expire  string  `json:"expire_token"`
	Expires float64 `json:"expire_date"`
}

func (r reply) grant(t *testing.T) grantView {
	t.Helper()
	var g grantView
	if err := json.Unmarshal(r.body, &g); err != nil || r.status != 200 {
		t.Fatalf("%d %.200s %v", r.status, r.body, err)
	}
	return g
}

func logIn(t *testing.T, url string) grantView {
	t.Helper()
	return send(t, url+AuthPath, "application/json", []byte(right)).grant(t)
}

func logInAs(t *testing.T, url, email string) grantView {
	t.Helper()
	body := fmt.Appendf(nil, `{"credentials": {"email": %q, "password": %q}}`, email, accounts()[email])
	return send(t, url+AuthPath, "application/json", body).grant(t)
}

func refresh(t *testing.T, url, access, expire string) reply {
	t.Helper()
	return send(t, url+RefreshPath, "application/json", fmt.Appendf(nil, `{"expire_token": %q}`, expire), accessTokenHeader, access)
}

// wantAccess checks what a token is worth: 0, or an error code.
func wantAccess(t *testing.T, url, access string, code int) {
	t.Helper()
	r := get(t, "GET", url+TokenPath, accessTokenHeader, access)
	switch {
	case code == 0 && r.status != 200:
		t.Errorf("refused: %d %s", r.status, r.body)
	case code == codeForbidden:
		r.wantError(t, http.StatusForbidden, code)
	case code != 0:
		r.wantError(t, http.StatusUnauthorized, code)
	}
}

func TestLogin(t *testing.T) {
	c := newClock()
	s, url := start(t, Options{Accounts: accounts(), Clock: c.Now})
	r := send(t, url+AuthPath, "application/json", []byte(right))
	g := r.grant(t)
	for _, token := range []string{g.Access, g.Expire} {
		if !regexp.MustCompile(`^[0-9a-f]{128}$`).MatchString(token) {
			t.Errorf("token %q", token)
		}
	}
	if g.Access == g.Expire || g.Expires != float64(c.Now().Add(15*time.Minute).Unix()) {
		t.Errorf("%+v", g)
	}
	var all map[string]any
	if err := json.Unmarshal(r.body, &all); err != nil || len(all) <= 3 {
		t.Errorf("no field that is not documented: %v", all)
	}
	for _, path := range []string{TokenPath, FoldersPath} {
		method := map[string]string{TokenPath: "GET", FoldersPath: "POST"}[path]
		get(t, method, url+path).wantText(t, 401, 6, "not provided")
		get(t, method, url+path, accessTokenHeader, g.Expire).wantText(t, 401, 7, "invalid")
	}
	wantAccess(t, url, g.Access, 0)
	send(t, url+FoldersPath, "application/octet-stream", s.Capsule(CapsuleSpec{}), accessTokenHeader, g.Access).wantSuccess(t)
	photosOf("alice", "alice").post(t, url).wantError(t, 401, 6)
	photosOf("alice", "alice").post(t, url, accessTokenHeader, g.Access).wantMatch(t, Success)
	if again := logIn(t, url); again.Access == g.Access || again.Expire == g.Expire {
		t.Error("tokens come twice")
	}
	wantAccess(t, url, g.Access, 0)
}

func TestLoginRefusals(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts()})
	for name, c := range map[string]struct {
		body         string
		status, code int
		text         string
	}{
		"wrong password":   {strings.Replace(right, password, "wrong", 1), 401, 7, "Wrong email or password"},
		"unknown email":    {strings.Replace(right, email, "nobody@example.com", 1), 401, 7, "Wrong email or password"},
		"other's password": {strings.Replace(right, password, "battery staple", 1), 401, 7, "Wrong email or password"},
		"empty password":   {strings.Replace(right, password, "", 1), 401, 7, "Wrong email or password"},
		"no credentials":   {`{}`, 400, 3, "Could not locate field for key_path credentials from provided dict data"},
		"no email":         {`{"credentials": {"password": "x"}}`, 400, 3, "key_path credentials.email"},
		"no password":      {`{"credentials": {"email": "x"}}`, 400, 3, "key_path credentials.password"},
		"flat":             {`{"email": "` + email + `", "password": "` + password + `"}`, 400, 3, "key_path credentials from"},
		"a number":         {`{"credentials": {"email": 1, "password": "x"}}`, 400, 5, "credentials.email"},
		"null":             {`{"credentials": null}`, 400, 5, "credentials"},
		"an array":         {`[]`, 400, 5, "body"},
		"no JSON":          {right[1:], 400, 3, "not JSON"},
		"empty":            {``, 400, 3, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			send(t, url+AuthPath, "application/json", []byte(c.body)).wantText(t, c.status, c.code, c.text)
		})
	}
	send(t, url+AuthPath, "application/x-www-form-urlencoded", []byte(right)).wantError(t, 400, 3)
	send(t, url+AuthPath, "application/json; charset=utf-8", []byte(right)).grant(t)
	large := strings.Replace(right, "{", `{"x": "`+strings.Repeat("x", maxJSON)+`", `, 1)
	if r := send(t, url+AuthPath, "application/json", []byte(large)); r.status != 413 {
		t.Errorf("large: %d", r.status)
	}
	get(t, "GET", url+AuthPath).wantError(t, 405, 1)
	await(t, s, "all of them", func(st Stats) bool { return st.LoginTries == 16 && st.Logins == 1 })
}

func TestRefresh(t *testing.T) {
	c := newClock()
	s, url := start(t, Options{Accounts: accounts(), Clock: c.Now})
	old := logIn(t, url)
	c.turn(10 * time.Minute)
	fresh := refresh(t, url, old.Access, old.Expire).grant(t)
	if fresh.Access == old.Access || fresh.Expire == old.Expire || fresh.Expires != float64(c.Now().Add(15*time.Minute).Unix()) {
		t.Errorf("%+v", fresh)
	}
	wantAccess(t, url, old.Access, 0) // until the new one is used
	wantAccess(t, url, fresh.Access, 0)
	wantAccess(t, url, old.Access, 7)
	refresh(t, url, fresh.Access, old.Expire).wantText(t, 401, 7, "Session not found")
	if st := s.Stats(); st.Logins != 1 || st.Refreshes != 1 || st.RefreshTries != 2 {
		t.Errorf("%+v", st)
	}
}

// A refresh whose answer got lost is done again; the one that is used in the end outlives all before it.
func TestRefreshAgain(t *testing.T) {
	_, url := start(t, Options{Accounts: accounts()})
	first := logIn(t, url)
	second := refresh(t, url, first.Access, first.Expire).grant(t)
	third := refresh(t, url, first.Access, second.Expire).grant(t)
	wantAccess(t, url, third.Access, 0)
	wantAccess(t, url, second.Access, 7)
	wantAccess(t, url, first.Access, 7)
}

func TestRefreshRefusals(t *testing.T) {
	c := newClock()
	s, url := start(t, Options{Accounts: accounts(), Clock: c.Now})
	mine, others := logIn(t, url), logInAs(t, url, "other@example.com")
	body := func(text, access string) reply {
		return send(t, url+RefreshPath, "application/json", []byte(text), accessTokenHeader, access)
	}
	body(`{}`, mine.Access).wantText(t, 400, 3, "Could not locate field for key_path expire_token from provided dict data")
	body(`{"expire_token": 7}`, mine.Access).wantError(t, 400, 5)
	body(`expire_token`, mine.Access).wantError(t, 400, 3)
	refresh(t, url, mine.Access, "unknown").wantText(t, 401, 7, "Session not found")
	refresh(t, url, mine.Access, mine.Access).wantText(t, 401, 7, "Session not found")
	refresh(t, url, mine.Access, others.Expire).wantText(t, 403, 9, "You have not access to refresh this session")
	refresh(t, url, "", mine.Expire).wantError(t, 401, 6)
	refresh(t, url, "unknown", mine.Expire).wantError(t, 401, 7)
	again := logIn(t, url) // two sessions of one account may refresh each other
	refresh(t, url, again.Access, mine.Expire).grant(t)

	o := s.Options()
	o.AccessToken = "fixed"
	s.SetOptions(o)
	refresh(t, url, "fixed", mine.Expire).wantError(t, 403, 9)

	idle := logIn(t, url)
	c.turn(14 * time.Minute)
	busy := logIn(t, url)
	c.turn(time.Minute)
	refresh(t, url, idle.Access, idle.Expire).wantError(t, 401, 8)
	refresh(t, url, busy.Access, idle.Expire).wantText(t, 401, 7, "Session not found")
}

func TestSessionsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		options Options
		ends    time.Duration // after the log-in, with a use every ten minutes
	}{
		"sliding":          {Options{}, 0},
		"fixed":            {Options{FixedExpiry: true}, 20 * time.Minute},
		"another life":     {Options{FixedExpiry: true, SessionLife: time.Hour}, time.Hour},
		"a short life":     {Options{SessionLife: 10 * time.Minute}, 10 * time.Minute},
		"service accounts": {Options{SessionLife: 5 * 365 * 24 * time.Hour, FixedExpiry: true}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			clock := newClock()
			c.options.Accounts, c.options.Clock = accounts(), clock.Now
			_, url := start(t, c.options)
			g := logIn(t, url)
			for at := time.Duration(0); at < 2*time.Hour; at += 10 * time.Minute {
				want := 0
				if c.ends > 0 && at >= c.ends {
					want = codeExpired
				}
				wantAccess(t, url, g.Access, want)
				clock.turn(10 * time.Minute)
			}
		})
	}
}

func TestSessionsThatATestEnds(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts()})
	for name, c := range map[string]struct {
		end                       func()
		code, refreshed, otherTry int // of a call, of a refresh with this token, of a refresh of it with a good token
	}{
		"expired":   {s.ExpireSessions, 8, 8, 7},
		"revoked":   {s.RevokeSessions, 7, 7, 7},
		"forbidden": {s.ForbidSessions, 9, 9, 0},
	} {
		t.Run(name, func(t *testing.T) {
			g := logIn(t, url)
			c.end()
			wantAccess(t, url, g.Access, c.code)
			status := http.StatusUnauthorized
			if c.code == codeForbidden {
				status = http.StatusForbidden
			}
			send(t, url+FoldersPath, "application/octet-stream", nil, accessTokenHeader, g.Access).wantError(t, status, c.code)
			photosOf("alice", "alice").post(t, url, accessTokenHeader, g.Access).wantError(t, status, c.code)
			refresh(t, url, g.Access, g.Expire).wantError(t, status, c.refreshed)
			next := logIn(t, url)
			wantAccess(t, url, next.Access, 0)
			if r := refresh(t, url, next.Access, g.Expire); c.otherTry == 0 {
				r.grant(t)
			} else {
				r.wantError(t, 401, c.otherTry)
			}
		})
	}
}

func TestTheFixedTokenBesideAccounts(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts(), AccessToken: "fixed"})
	wantAccess(t, url, "fixed", 0)
	s.RevokeSessions()
	s.ForbidSessions()
	wantAccess(t, url, "fixed", 0)
	wantAccess(t, url, logIn(t, url).Access, 0)
	wantAccess(t, url, "Fixed", 7)
}

// Without accounts there is no auth component.
func TestNoAccounts(t *testing.T) {
	for name, o := range map[string]Options{"none": {}, "a fixed token": {AccessToken: "fixed"}, "empty": {Accounts: map[string]string{}}} {
		_, url := start(t, o)
		for _, path := range []string{AuthPath, RefreshPath, strings.TrimSuffix(AuthPath, "/")} {
			r := send(t, url+path, "application/json", []byte(right), accessTokenHeader, "fixed")
			if r.wantError(t, 404, 10); t.Failed() {
				t.Errorf("%s: %s", name, path)
			}
		}
	}
}

func TestSpellingsOfLoginPaths(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts()})
	short := strings.TrimSuffix(AuthPath, "/")
	g := send(t, url+short, "application/json", []byte(right)).grant(t)
	send(t, url+strings.TrimSuffix(RefreshPath, "/"), "application/json", []byte(`{}`), accessTokenHeader, g.Access).wantError(t, 400, 3)
	s.SetOptions(Options{Accounts: accounts(), StrictSlash: true})
	send(t, url+short, "application/json", []byte(right)).wantError(t, 404, 10)
	logIn(t, url)
	s.SetOptions(Options{Accounts: accounts(), BasePath: "/oz"})
	send(t, url+AuthPath, "application/json", []byte(right)).wantError(t, 404, 10)
	logIn(t, url+"/oz")
	s.SetOptions(Options{Accounts: accounts(), AllowedHosts: []string{"oz.internal"}})
	if r := send(t, url+AuthPath, "application/json", []byte(right)); r.status != 400 {
		t.Errorf("other host: %d", r.status)
	}
	send(t, url+AuthPath, "application/json", []byte(right), "Host", "oz.internal").grant(t)
}

func TestReceiptsTellTokensApart(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts()})
	first := logIn(t, url)
	wantAccess(t, url, first.Access, 0)
	second := refresh(t, url, first.Access, first.Expire).grant(t)
	wantAccess(t, url, second.Access, 0)
	wantAccess(t, url, "", 6)
	recs := s.Requests()
	for i, want := range []struct{ route, used, given string }{
		{OnAuth, "", first.Access}, {OnToken, first.Access, ""}, {OnRefresh, first.Access, second.Access}, {OnToken, second.Access, ""}, {OnToken, "", ""},
	} {
		digest := func(token string) string {
			if token == "" {
				return ""
			}
			return sha256hex([]byte(token))
		}
		if rec := recs[i]; rec.Route != want.route || rec.TokenDigest != digest(want.used) || rec.GrantDigest != digest(want.given) {
			t.Errorf("%d: %+v", i, rec)
		}
	}
	if recs[0].Size != int64(len(right)) || s.Stats().Bytes != 0 {
		t.Errorf("%+v %+v", recs[0], s.Stats())
	}
}

func TestLogKeepsTokensAndPasswords(t *testing.T) {
	var log bytes.Buffer
	s, url := start(t, Options{Accounts: accounts(), Logger: slog.New(slog.NewJSONHandler(&log, nil))})
	g := logIn(t, url)
	next := refresh(t, url, g.Access, g.Expire).grant(t)
	wantAccess(t, url, next.Access, 0)
	send(t, url+AuthPath, "application/json", []byte(strings.Replace(right, password, "wrong-canary", 1))).wantError(t, 401, 7)
	photosOf("alice", "bob").post(t, url, accessTokenHeader, next.Access).wantMatch(t, Declined)
	awaitEnd(t, s)
	text := log.String()
	for _, secret := range []string{g.Access, g.Expire, next.Access, next.Expire, password, "canary", email, refName} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
	for _, wanted := range []string{`"route":"auth"`, `"route":"refresh"`, "Wrong email or password", s.RequestsOn(OnBiometry)[0].Digest} {
		if !strings.Contains(text, wanted) {
			t.Errorf("%q is not in the log", wanted)
		}
	}
}

// Clients reckon with expire_date and the server's own clock.
func TestDateIsTheClocks(t *testing.T) {
	c := newClock()
	_, url := start(t, Options{Accounts: accounts(), Clock: c.Now})
	for range 2 {
		got, err := http.ParseTime(get(t, "GET", url+VersionPath).header.Get("Date"))
		if err != nil || !got.Equal(c.Now()) {
			t.Errorf("%v %v, want %v", got, err, c.Now())
		}
		c.turn(time.Hour)
	}
}

func TestExpiredSessionsAreForgotten(t *testing.T) {
	var ss sessions
	now := time.Unix(1000, 0)
	for range 5000 {
		ss.open(email, now, 10*time.Second)
		now = now.Add(time.Second)
	}
	if n := len(ss.all); n > 1024 {
		t.Errorf("%d sessions are still remembered", n)
	}
}

// No token is said to live longer than it does.
func TestExpireDateIsNotAfterTheEnd(t *testing.T) {
	for _, at := range []int64{1_764_000_000_000, 1_764_000_000_099, 1_764_000_000_951} {
		ends := time.UnixMilli(at)
		a := pair{ends: ends}.answer()
		if said := a.tree.get("expire_date").(float64); said > float64(at)/1000 || said < float64(at)/1000-0.1 {
			t.Errorf("%d: %v", at, said)
		}
	}
}

// Options belong to whoever set them.
func TestAccountsAreCopied(t *testing.T) {
	mine := accounts()
	s, url := start(t, Options{Accounts: mine})
	clear(mine)
	clear(s.Options().Accounts)
	logIn(t, url)
}

func TestConcurrentSessions(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts()})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 5 {
				r, err := trySend(t, url+AuthPath, "application/json", []byte(right))
				var g grantView
				if err != nil || json.Unmarshal(r.body, &g) != nil {
					t.Errorf("%v %s", err, r.body)
				}
				trySend(t, url+RefreshPath, "application/json", fmt.Appendf(nil, `{"expire_token": %q}`, g.Expire), accessTokenHeader, g.Access)
			}
		})
	}
	all.Go(s.ExpireSessions)
	all.Go(s.RevokeSessions)
	all.Go(s.ForbidSessions)
	all.Go(func() { s.SetOptions(Options{Accounts: accounts(), FixedExpiry: true}) })
	all.Wait()
	await(t, s, "all log-ins", func(st Stats) bool { return st.Logins == 20 && st.RefreshTries == 20 })
}
