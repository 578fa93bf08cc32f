package ozclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// fakeOz gives access tokens in the way that a test wants, and counts.
type fakeOz struct {
	mu        sync.Mutex
	logins    int
	refreshes int
	life      time.Duration
	takes     time.Duration
	login     *Error // what a log-in comes to, if it fails
	refresh   *Error // and a refresh
	given     int
}

func (f *fakeOz) grant(ctx context.Context, path string, _ []byte, _ string) (oz.Grant, *Error) {
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
		return oz.Grant{}, &Error{oz.Timeout, FaultOz, context.Cause(ctx)}
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

func (f *fakeOz) fail(login, refresh *Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.login, f.refresh = login, refresh
}

func (f *fakeOz) wantCounts(t *testing.T, logins, refreshes int) {
	t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.logins != logins || f.refreshes != refreshes {
		t.Errorf("%d log-ins and %d refreshes, want %d and %d", f.logins, f.refreshes, logins, refreshes)
	}
}

func newAccount() *account { return &account{email: "gateway@example.com", password: "secret"} }

// use makes a call that takes no time and is accepted, and returns the token
// that it was made with.
func (a *account) use(t *testing.T, f *fakeOz) (string, *Error) {
	t.Helper()
	token, failure := a.acquire(t.Context(), f)
	if failure != nil {
		return "", failure
	}
	a.used(f, token, 201, false)
	return token.value, nil
}

// refuse makes a call whose token Oz refuses.
func (a *account) refuse(t *testing.T, f *fakeOz) {
	t.Helper()
	if token, failure := a.acquire(t.Context(), f); failure == nil {
		a.used(f, token, 401, true)
	}
}

func (a *account) wantToken(t *testing.T, f *fakeOz, want string) {
	t.Helper()
	if got, failure := a.use(t, f); failure != nil || got != want {
		t.Errorf("got %q %v, want %q", got, failure, want)
	}
}

// However many capsules wait, one log-in is made, and one refresh by the first
// call after four fifths of the token's life, for which nobody waits. Without
// calls nothing is renewed.
func TestAccountLogsInOnceAndRefreshesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute, takes: time.Second}
		a := newAccount()
		f.wantCounts(t, 0, 0) // not before it is needed
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { a.wantToken(t, f, "access-1") })
		}
		all.Wait()
		f.wantCounts(t, 1, 0)

		time.Sleep(12*time.Minute - time.Second)
		a.wantToken(t, f, "access-1")
		f.wantCounts(t, 1, 0)
		time.Sleep(time.Second)
		start := time.Now()
		for range 100 {
			all.Go(func() { a.wantToken(t, f, "access-1") })
		}
		all.Wait()
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited for the refresh: %s", waited)
		}
		f.wantCounts(t, 1, 1)
		time.Sleep(time.Second)
		synctest.Wait()
		a.wantToken(t, f, "access-2")
		f.wantCounts(t, 1, 1)

		time.Sleep(14 * time.Minute)
		a.wantToken(t, f, "access-2")
		f.wantCounts(t, 1, 2)
		time.Sleep(time.Hour)
		f.wantCounts(t, 1, 2)
		a.wantToken(t, f, "access-4") // it expired unused: another log-in
		f.wantCounts(t, 2, 2)
	})
}

// The renewed token is used by all later calls at once. A call in progress with
// the old one that Oz then refuses does not cost the new one.
func TestAccountUsesTheRenewedTokenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute}
		a := newAccount()
		inProgress, failure := a.acquire(t.Context(), f)
		if failure != nil {
			t.Fatal(failure)
		}
		time.Sleep(13 * time.Minute)
		a.wantToken(t, f, "access-1")
		f.wantCounts(t, 1, 1)
		a.wantToken(t, f, "access-2")
		a.used(f, inProgress, 401, true)
		a.wantToken(t, f, "access-2")
		f.wantCounts(t, 1, 1)
	})
}

// A token that Oz has stopped to accept is dropped, and the next one fetched
// at once, by a log-in: what it could be refreshed with is gone with it.
func TestAccountRenewsWhatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute, takes: time.Second}
		a := newAccount()
		a.wantToken(t, f, "access-1")
		var inProgress []*accessToken
		for range 50 {
			token, failure := a.acquire(t.Context(), f)
			if failure != nil {
				t.Fatal(failure)
			}
			inProgress = append(inProgress, token)
		}
		for _, token := range inProgress {
			a.used(f, token, 401, true)
		}
		time.Sleep(2 * time.Second)
		f.wantCounts(t, 2, 0)
		a.wantToken(t, f, "access-2")
	})
}

// An account whose tokens are never accepted does not log in for each capsule.
// An answer that says nothing about the token does not make it an accepted one.
func TestAccountHoldsOffWhenNothingIsAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute}
		a := newAccount()
		token, failure := a.acquire(t.Context(), f)
		if failure != nil {
			t.Fatal(failure)
		}
		for _, status := range []int{0, 403, 502} {
			a.used(f, token, status, false)
		}
		for range 20 {
			a.refuse(t, f)
			time.Sleep(time.Second)
		}
		f.wantCounts(t, 1, 0)
		_, failure = a.use(t, f)
		wantError(t, failure, Error{oz.Unauthorized, FaultNobody, errNeverAccepted})
		time.Sleep(refusedHoldOff)
		a.wantToken(t, f, "access-2")
	})
}

// A log-in that fails says why to all who wait, is not repeated at once, and
// is tried again later.
func TestAccountWhenLoginFails(t *testing.T) {
	for _, test := range []struct {
		failure *Error
		again   time.Duration
	}{
		{&Error{oz.Unauthorized, FaultNobody, errors.New("oz answered 401")}, refusedHoldOff},
		{&Error{oz.Unreachable, FaultOz, errors.New("refused")}, holdOff},
		{&Error{oz.MalformedAnswer, FaultOz, errors.New("nonsense")}, holdOff},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeOz{life: 15 * time.Minute, takes: time.Second, login: test.failure}
			a := newAccount()
			var all sync.WaitGroup
			for range 30 {
				all.Go(func() {
					_, failure := a.use(t, f)
					wantError(t, failure, *test.failure)
				})
			}
			all.Wait()
			f.wantCounts(t, 1, 0)
			time.Sleep(test.again - time.Second)
			_, _ = a.use(t, f)
			f.wantCounts(t, 1, 0)
			f.fail(nil, nil)
			time.Sleep(time.Second)
			a.wantToken(t, f, "access-1")
		})
	}
}

// A log-in that hangs ends by itself, and a capsule whose client leaves does
// not wait for it.
func TestAccountWhenLoginHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{takes: time.Hour}
		a := newAccount()
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, upload.ErrGone)
		defer cancel()
		start := time.Now()
		_, failure := a.acquire(ctx, f)
		wantError(t, failure, Error{"", FaultClient, upload.ErrGone})
		if took := time.Since(start); took != time.Second {
			t.Errorf("it took %s", took)
		}
		_, failure = a.acquire(t.Context(), f)
		wantError(t, failure, Error{Reason: oz.Timeout, Fault: FaultOz})
		if took := time.Since(start); took != renewTimeout {
			t.Errorf("it took %s", took)
		}
		f.wantCounts(t, 1, 0)
	})
}

// A refresh that Oz refuses becomes a log-in. One that fails otherwise is tried
// again while the token lasts, and capsules go on with the token.
func TestAccountWhenRefreshFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeOz{life: 15 * time.Minute, refresh: &Error{oz.Unauthorized, FaultNobody, errors.New("session not found")}}
		a := newAccount()
		a.wantToken(t, f, "access-1")
		time.Sleep(13 * time.Minute)
		a.wantToken(t, f, "access-1")
		f.wantCounts(t, 2, 1)
		a.wantToken(t, f, "access-2")

		down := &Error{oz.Unreachable, FaultOz, errors.New("refused")}
		f.fail(down, down)
		time.Sleep(13 * time.Minute)
		for range 60 {
			a.wantToken(t, f, "access-2")
			time.Sleep(time.Second)
		}
		f.wantCounts(t, 2, 13)
		time.Sleep(2 * time.Minute)
		_, failure := a.use(t, f)
		wantError(t, failure, *down)
		f.fail(nil, nil)
		time.Sleep(holdOff)
		a.wantToken(t, f, "access-3")
	})
}

// Accounts are told apart by all that matters, and no key shows a secret.
func TestAccountKey(t *testing.T) {
	one := accountKey("way", "e", "p")
	for name, other := range map[string][32]byte{
		"password": accountKey("way", "e", "q"), "email": accountKey("way", "f", "p"), "way": accountKey("away", "e", "p"),
		"where words end": accountKey("way", "ep", ""),
	} {
		if other == one {
			t.Errorf("the %s does not matter", name)
		}
	}
}

const (
	grantDoc        = `{"access_token": "granted", "expire_token": "e", "expire_date": 4102444800}`
	withCredentials = `{"credentials": {"email": "gateway@example.com", "password": "secret"}}`
)

// With credentials the call waits for a token, which Clients of the same way to
// Oz share: those of a config that replaces another among them.
func TestCallWithCredentials(t *testing.T) {
	var paths, tokens []string
	stub := func(req *http.Request) (*http.Response, error) {
		paths, tokens = append(paths, req.URL.Path), append(tokens, req.Header.Get(accessTokenHeader))
		if req.URL.Path == oz.LoginPath {
			return answers(200, grantDoc)(req)
		}
		return answers(201, success())(req)
	}
	for range 2 {
		c := newClient(t, stub, withCredentials, "")
		if _, e := c.analyzed(t); e != nil {
			t.Fatal(e)
		}
		if life, err := c.Login(t.Context()); err != nil || life < time.Hour {
			t.Errorf("%s, %v", life, err)
		}
	}
	if want := []string{oz.LoginPath, oz.FoldersPath, oz.FoldersPath}; !reflect.DeepEqual(paths, want) {
		t.Errorf("asked for %v", paths)
	}
	if want := []string{"", "granted", "granted"}; !reflect.DeepEqual(tokens, want) {
		t.Errorf("with tokens %v", tokens)
	}
}

// The access token of one Oz never goes to another, which may be told apart by
// its Host alone.
func TestAccountsOfTwoHostsBehindOneAddress(t *testing.T) {
	host := func(name string) *Client {
		return newClient(t, func(req *http.Request) (*http.Response, error) {
			if req.URL.Path == oz.LoginPath {
				return answers(200, `{"access_token": "of-`+req.Host+`"}`)(req)
			}
			if got := req.Header.Get(accessTokenHeader); got != "of-"+req.Host {
				t.Errorf("%s got %s", req.Host, got)
			}
			return answers(201, success())(req)
		}, withCredentials, `{"headers": {"request": {"set": {"Host": ["`+name+`"]}}}}`)
	}
	for _, c := range []*Client{host("one.internal"), host("two.internal")} {
		if _, e := c.analyzed(t); e != nil {
			t.Error(e)
		}
	}
}

// Without a token there is no call: it is a failure with its reason.
func TestCallWithoutAToken(t *testing.T) {
	c := newClient(t, func(req *http.Request) (*http.Response, error) {
		if req.URL.Path != oz.LoginPath {
			t.Errorf("%s without a token", req.URL.Path)
		}
		return answers(401, `{"error_code": 7}`)(req)
	}, withCredentials, "")
	a, e := c.analyzed(t)
	wantError(t, e, Error{Reason: oz.Unauthorized})
	if a.Tries != 0 || a.Verdict.Reason != oz.Unauthorized {
		t.Errorf("%+v", a)
	}
	if _, err := c.Login(t.Context()); asError(t, err) == nil {
		t.Error("it logs in")
	}
}

// An access token that Oz refuses for a capsule is not used for the next one.
// What a firewall forbids, and what a folder says of its analyses, is not about
// the token.
func TestWhatDropsAToken(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		doc    string
		logins int
	}{
		{"unauthorized", 401, "", 2},
		{"forbidden by Oz", 403, `{"error_code": 9}`, 2},
		{"expired, by its code", 400, `{"error_code": 8}`, 2},
		{"forbidden by a firewall", 403, "<html>blocked</html>", 1},
		{"a folder with such a code", 201, `{"resolution_status": "FAILED", "analyses": [{"type": "QUALITY", "error_code": 7}]}`, 1},
		{"a refused capsule", 400, `{"error_code": 14}`, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			logins, status, doc := 0, 201, success()
			c := newClient(t, func(req *http.Request) (*http.Response, error) {
				if req.URL.Path == oz.LoginPath {
					logins++
					return answers(200, fmt.Sprintf(`{"access_token": "token-%d"}`, logins))(req)
				}
				if want := fmt.Sprintf("token-%d", logins); req.Header.Get(accessTokenHeader) != want {
					t.Errorf("sent with %s, want %s", req.Header.Get(accessTokenHeader), want)
				}
				return answers(status, doc)(req)
			}, withCredentials, "")
			_, _ = c.analyzed(t)
			status, doc = test.status, test.doc
			_, _ = c.analyzed(t)
			status, doc = 201, success()
			if _, e := c.analyzed(t); e != nil {
				t.Error(e)
			}
			if logins != test.logins {
				t.Errorf("%d log-ins, want %d", logins, test.logins)
			}
		})
	}
}

// A renewal goes through the Client that asks for it, also when that is closed
// meanwhile.
func TestRenewalThroughAClosedClient(t *testing.T) {
	asked, goOn := make(chan struct{}), make(chan struct{})
	c, err := New(newContext(t), stubConfig(t, func(req *http.Request) (*http.Response, error) {
		if req.URL.Path == oz.LoginPath {
			close(asked)
			<-goOn
			return answers(200, grantDoc)(req)
		}
		return answers(201, success())(req)
	}, withCredentials, ""), testOptions)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan *Error)
	go func() {
		_, e := c.analyzed(t)
		done <- e
	}()
	<-asked
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	close(goOn)
	if e := <-done; e != nil {
		t.Error(e)
	}
}

// The grant of a log-in that fails has the reason, and which of the two it was.
func TestGrant(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		doc    string
		want   Error
		err    string
	}{
		{"granted", 200, grantDoc, Error{}, ""},
		{"refused", 401, `{"error_code": 7}`, Error{Reason: oz.Unauthorized}, "oz answered 401, error_code 7"},
		{"refused by 400", 400, "", Error{Reason: oz.Unauthorized}, "oz answered 400"},
		{"busy", 503, "", Error{Reason: oz.Overloaded}, "oz answered 503"},
		{"no token", 200, `{"access_token": ""}`, Error{Reason: oz.MalformedAnswer}, "no usable access_token"},
		{"not JSON", 200, `secret`, Error{Reason: oz.MalformedAnswer, Fault: FaultOz}, "malformed JSON"},
		{"too long", 200, padded(maxSmall + 1), Error{Reason: oz.MalformedAnswer}, "larger than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClient(t, func(req *http.Request) (*http.Response, error) {
				sent, _ := readAll(req)
				if sent != "login" || req.Header.Get(accessTokenHeader) != "old" || req.Header.Get("Content-Type") != "application/json" {
					t.Errorf("sent %q with %v", sent, req.Header)
				}
				return response(test.status, test.doc), nil
			}, "", "")
			core, logs := observer.New(zap.DebugLevel)
			c.logger = zap.New(core)
			grant, failure := c.grant(t.Context(), oz.RefreshPath, []byte("login"), "old")
			for _, line := range logs.All() {
				if text := fmt.Sprint(line.Entry, line.ContextMap()); strings.Contains(text, "secret") || strings.Contains(text, "granted") {
					t.Errorf("a secret is in the log: %s", text)
				}
			}
			if logs.Len() != 1 {
				t.Errorf("%d lines for the operator", logs.Len())
			}
			wantError(t, failure, test.want)
			if test.err == "" {
				if grant.AccessToken != "granted" || grant.ExpireToken != "e" {
					t.Errorf("%+v", grant)
				}
				return
			}
			if grant != (oz.Grant{}) || !strings.HasPrefix(failure.Err.Error(), "refreshing the access token: ") || !strings.Contains(failure.Err.Error(), test.err) {
				t.Errorf("%v, %+v", failure.Err, grant)
			}
		})
	}
}

// A token's life is reckoned by Oz's clock, if Oz says what time it is.
func TestClockOf(t *testing.T) {
	res := response(200, "")
	res.Header.Set("Date", "Fri, 31 Dec 1999 23:59:59 GMT")
	if got := clockOf(res); !got.Equal(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%s", got)
	}
	res.Header.Set("Date", "today")
	if d := time.Since(clockOf(res)); d < 0 || d > time.Minute {
		t.Errorf("without a date it is %s ago", d)
	}
}
