package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// fakeOz gives access tokens in the way that a test wants, and counts.
type fakeOz struct {
	mu        sync.Mutex
	logins    int
	refreshes int
	life      time.Duration
	takes     time.Duration
	login     *fault // what a log-in comes to, if it fails
	refresh   *fault // and a refresh
	given     int
}

func (f *fakeOz) grant(ctx context.Context, path string, body []byte, token string) (oz.Grant, *fault) {
	f.mu.Lock()
	failure := f.login
	if path == oz.RefreshPath {
		f.refreshes++
		failure = f.refresh
	} else {
		f.logins++
	}
	takes := f.takes
	f.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return oz.Grant{}, &fault{oz.Timeout, context.Cause(ctx)}
	}
	if failure != nil {
		return oz.Grant{}, failure
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.given++
	return oz.Grant{
		AccessToken: fmt.Sprintf("access-%d", f.given), ExpireToken: fmt.Sprintf("expire-%d", f.given), Life: f.life,
	}, nil
}

func (f *fakeOz) counts() [2]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return [2]int{f.logins, f.refreshes}
}

func (f *fakeOz) fail(login, refresh *fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.login, f.refresh = login, refresh
}

func newAccount(f *fakeOz) *account {
	a := &account{email: "gateway@example.com", password: "secret"}
	a.open(f)
	return a
}

var accepted, refusedByOz = &call{status: 201}, &call{status: 401, authRefused: true}

// use makes a call that takes no time, and returns the token it was made with.
func (a *account) use(t *testing.T, f *fakeOz, c *call) (string, *fault) {
	t.Helper()
	s, failure := a.acquire(t.Context(), f)
	if failure != nil {
		return "", failure
	}
	defer a.release(f, s, c)
	return s.grant.AccessToken, nil
}

func (a *account) wantToken(t *testing.T, f *fakeOz, want string) {
	t.Helper()
	if got, failure := a.use(t, f, accepted); failure != nil || got != want {
		t.Errorf("got %q %v, want %q", got, failure, want)
	}
}

func (f *fakeOz) wantCounts(t *testing.T, logins, refreshes int) {
	t.Helper()
	if got := f.counts(); got != [2]int{logins, refreshes} {
		t.Errorf("%d log-ins and %d refreshes, want %d and %d", got[0], got[1], logins, refreshes)
	}
}

// However many capsules wait, one log-in is made, and later one refresh, at
// four fifths of the token's life, without anyone having to wait for it.
func TestAccountLogsInOnceAndRefreshesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute, takes: time.Second}
		a := newAccount(f)
		f.wantCounts(t, 0, 0) // not before it is needed
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { a.wantToken(t, f, "access-1") })
		}
		all.Wait()
		f.wantCounts(t, 1, 0)

		time.Sleep(12*time.Minute - 2*time.Second)
		f.wantCounts(t, 1, 0)
		time.Sleep(5 * time.Second)
		f.wantCounts(t, 1, 1)
		start := time.Now()
		for range 100 {
			all.Go(func() { a.wantToken(t, f, "access-2") })
		}
		all.Wait()
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited for the refresh: %s", waited)
		}
		time.Sleep(61 * time.Minute)
		f.wantCounts(t, 1, 6)
		_ = a.Destruct()
	})
}

// An upload under way keeps its token alive: the first use of the one that it
// was refreshed to would end it. When its time is up there is no help.
func TestAccountSparesUploadsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute}
		a := newAccount(f)
		upload, failure := a.acquire(t.Context(), f)
		if failure != nil {
			t.Fatal(failure)
		}
		time.Sleep(13 * time.Minute)
		f.wantCounts(t, 1, 1)
		a.wantToken(t, f, "access-1")
		time.Sleep(3 * time.Minute)
		a.wantToken(t, f, "access-2")
		a.release(f, upload, accepted)
		a.wantToken(t, f, "access-2")

		time.Sleep(12 * time.Minute)
		a.wantToken(t, f, "access-3")
		_ = a.Destruct()
	})
}

// A token that Oz has stopped to accept is dropped, and the next one fetched
// at once, by a log-in: what it could be refreshed with is gone with it.
func TestAccountRenewsWhatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute, takes: time.Second}
		a := newAccount(f)
		a.wantToken(t, f, "access-1")
		var underWay []*session
		for range 50 {
			s, failure := a.acquire(t.Context(), f)
			if failure != nil {
				t.Fatal(failure)
			}
			underWay = append(underWay, s)
		}
		for _, s := range underWay {
			a.release(f, s, refusedByOz)
		}
		time.Sleep(2 * time.Second)
		f.wantCounts(t, 2, 0)
		a.wantToken(t, f, "access-2")
		_ = a.Destruct()
	})
}

// An account whose tokens are never accepted does not log in for each capsule.
func TestAccountHoldsOffWhenNothingIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute}
		a := newAccount(f)
		for range 20 {
			_, _ = a.use(t, f, refusedByOz)
			time.Sleep(time.Second)
		}
		f.wantCounts(t, 1, 0)
		if _, failure := a.use(t, f, accepted); failure == nil || failure.reason != oz.Unauthorized || !errors.Is(failure.err, errNeverAccepted) {
			t.Errorf("got %v", failure)
		}
		time.Sleep(refusedHoldOff)
		a.wantToken(t, f, "access-2")
		_ = a.Destruct()
	})
}

// A log-in that fails says why to all who wait, is not repeated at once, and
// is tried again later.
func TestAccountWhenLoginFails(t *testing.T) {
	for _, test := range []struct {
		failure *fault
		again   time.Duration
	}{
		{&fault{oz.Unauthorized, errors.New("oz answered 401")}, refusedHoldOff},
		{&fault{oz.Unreachable, errors.New("refused")}, holdOff},
		{&fault{oz.MalformedAnswer, errors.New("nonsense")}, holdOff},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeOz{life: 15 * time.Minute, takes: time.Second, login: test.failure}
			a := newAccount(f)
			var all sync.WaitGroup
			for range 30 {
				all.Go(func() {
					if _, failure := a.use(t, f, accepted); failure == nil || failure.reason != test.failure.reason {
						t.Errorf("got %v", failure)
					}
				})
			}
			all.Wait()
			f.wantCounts(t, 1, 0)
			time.Sleep(test.again - time.Second)
			_, _ = a.use(t, f, accepted)
			f.wantCounts(t, 1, 0)
			f.fail(nil, nil)
			time.Sleep(time.Second)
			a.wantToken(t, f, "access-1")
			_ = a.Destruct()
		})
	}
}

// A log-in that hangs ends by itself, and a capsule whose client leaves does
// not wait for it.
func TestAccountWhenLoginHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{takes: time.Hour}
		a := newAccount(f)
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errClientGone)
		defer cancel()
		start := time.Now()
		if _, failure := a.acquire(ctx, f); failure == nil || time.Since(start) != time.Second {
			t.Errorf("got %v after %s", failure, time.Since(start))
		}
		if _, failure := a.acquire(t.Context(), f); failure == nil || failure.reason != oz.Timeout || time.Since(start) != renewTimeout {
			t.Errorf("got %v after %s", failure, time.Since(start))
		}
		f.wantCounts(t, 1, 0)
	})
}

// A refresh that Oz refuses becomes a log-in. One that fails otherwise is tried
// again while the token lasts, and capsules go on with the token.
func TestAccountWhenRefreshFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute, refresh: &fault{oz.Unauthorized, errors.New("session not found")}}
		a := newAccount(f)
		a.wantToken(t, f, "access-1")
		time.Sleep(13 * time.Minute)
		f.wantCounts(t, 2, 1)
		a.wantToken(t, f, "access-2")

		down := &fault{oz.Unreachable, errors.New("refused")}
		f.fail(down, down)
		time.Sleep(13 * time.Minute)
		a.wantToken(t, f, "access-2")
		if f.counts()[1] < 10 {
			t.Errorf("tried to refresh %d times", f.counts()[1])
		}
		time.Sleep(2 * time.Minute)
		if _, failure := a.use(t, f, accepted); failure == nil || failure.reason != oz.Unreachable {
			t.Errorf("with everything down: %v", failure)
		}
		f.fail(nil, nil)
		time.Sleep(holdOff)
		a.wantToken(t, f, "access-3")
		_ = a.Destruct()
	})
}

// When its last site has gone, an account asks no more.
func TestAccountEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute}
		a := newAccount(f)
		a.wantToken(t, f, "access-1")
		_ = a.Destruct()
		time.Sleep(time.Hour)
		f.wantCounts(t, 1, 0)
	})
}

// Accounts are told apart by all that matters, and by nothing else.
func TestAccountKey(t *testing.T) {
	o := func(base string, dials ...string) *Oz { return &Oz{BasePath: base, ReverseProxy: proxyTo(dials...)} }
	one := accountKey(o("", "a:1", "b:2"), "e", "p")
	if accountKey(o("", "b:2", "a:1"), "e", "p") != one {
		t.Error("the order of upstreams matters")
	}
	for name, other := range map[string][32]byte{
		"password":    accountKey(o("", "a:1", "b:2"), "e", "q"),
		"email":       accountKey(o("", "a:1", "b:2"), "f", "p"),
		"base path":   accountKey(o("/x", "a:1", "b:2"), "e", "p"),
		"upstream":    accountKey(o("", "a:1"), "e", "p"),
		"where words": accountKey(o("", "a:1", "b:2"), "ep", ""),
	} {
		if other == one {
			t.Errorf("the %s does not matter", name)
		}
	}
}

// No error and no log field of an account has a secret in it.
func TestAccountErrorsHaveNoSecrets(t *testing.T) {
	for _, doc := range []string{
		`{"access_token": "sec ret"}`, `{"access_token": "secret`, `{"access_token": "secret", "expire_date": 1}`, `["secret"]`, `secret`,
	} {
		if _, err := oz.ReadGrant([]byte(doc), time.Now()); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

// A firewall that forbids a capsule says nothing about the access token: others
// are served with it, and nobody logs in again.
func TestForbiddenCapsuleIsNotTheTokens(t *testing.T) {
	logins := 0
	h := newHandler(t, func(req *http.Request) (*http.Response, error) {
		body, _ := readAll(req)
		switch {
		case strings.HasPrefix(req.URL.Path, "/api/authorize"):
			logins++
			return response(200, `{"access_token": "t", "expire_token": "e"}`), nil
		case strings.Contains(body, "<script>"):
			return response(403, "<html>blocked by the firewall</html>"), nil
		}
		return response(201, success()), nil
	}, `{"credentials": {"email": "a", "password": "b"}}`)
	for range 5 {
		if w := h.posted(t, noApp(t), "<script>"); w.Code != 502 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		app := new(testApp)
		if w := h.posted(t, app, "good capsule"); app.calls != 1 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	if logins != 1 {
		t.Errorf("%d log-ins", logins)
	}
}
