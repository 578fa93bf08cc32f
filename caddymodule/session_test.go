package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const testToken = "header.claims.signature"

// newSessionToken loads an oz_instant_session_token whose Oz is a stub.
func newSessionToken(t *testing.T, oz roundTrip, fields string) (*SessionToken, *observer.ObservedLogs) {
	t.Helper()
	s, err := load[*SessionToken](newContext(t), sessionTokenID, ozConfig(t, oz, fields))
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	s.logger = zap.New(core)
	return s, logs
}

// ask is a client's request for a session token.
func (s *SessionToken) ask(t *testing.T, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	if err := s.ServeHTTP(w, fromClient(w, r), noApp(t)); err != nil {
		t.Fatal(err)
	}
	return w
}

func tokenRequest() *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/session_token", nil)
	r.Header.Set("Cookie", "user=alice")
	r.Header.Set("X-Oz-Decision", "SUCCESS")
	return r
}

// The token comes from Oz by the guide's call, and goes to the client and
// nowhere else.
func TestSessionTokenIsServed(t *testing.T) {
	s, logs := newSessionToken(t, func(req *http.Request) (*http.Response, error) {
		if req.Method != http.MethodGet || req.URL.Path != "/api/authorize/session_token" || req.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s, %v", req.Method, req.URL, req.Header)
		}
		if req.Header.Get("Cookie") != "" || req.Header.Get("X-Oz-Decision") != "" {
			t.Errorf("of the client, Oz got %v", req.Header)
		}
		return response(200, `{"session_token": "`+testToken+`", "more": 1}`), nil
	}, "")
	w := s.ask(t, tokenRequest())
	if got := w.Body.String(); w.Code != 200 || got != `{"session_token":"`+testToken+`"}` {
		t.Errorf("%d %s", w.Code, got)
	}
	h := w.Header()
	if h.Get("Cache-Control") != "no-store" || h.Get("Content-Type") != "application/json" || h.Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
		t.Errorf("%v", h)
	}
	if logs.FilterMessage("session token").Len() != 1 {
		t.Errorf("%v", logs.All())
	}
	for _, line := range logs.All() {
		if text := fmt.Sprint(line.Entry, line.ContextMap()); strings.Contains(text, "signature") {
			t.Errorf("the token is in the log: %s", text)
		}
	}
}

func TestSessionTokenDoor(t *testing.T) {
	s, _ := newSessionToken(t, neverAsked(t), "")
	for _, method := range []string{"POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "get"} {
		w := s.ask(t, httptest.NewRequest(method, "http://app.test/session_token", nil))
		if w.Code != 405 || w.Header().Get("Allow") != "GET" || !strings.Contains(w.Body.String(), kindMethod) {
			t.Errorf("%s: %d %v %s", method, w.Code, w.Header(), w.Body)
		}
	}
	w := s.ask(t, httptest.NewRequest("GET", "/session_token", strings.NewReader("content")))
	if w.Code != 400 || !strings.Contains(w.Body.String(), kindUnexpectedContent) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// What went wrong may go right a second time. What will not is told at once.
func TestSessionTokenIsTriedTwice(t *testing.T) {
	good := `{"session_token": "` + testToken + `"}`
	lost := func(*http.Request) (*http.Response, error) { return nil, net.ErrClosed }
	for _, test := range []struct {
		name   string
		tries  []roundTrip
		fields string
		status int
		word   string
	}{
		{"the second is good", []roundTrip{answers(500, ""), answers(200, good)}, "", 200, testToken},
		{"a lost connection", []roundTrip{lost, answers(200, good)}, "", 200, testToken},
		{"both fail", []roundTrip{answers(500, ""), answers(502, "")}, "", 502, "unexpected_status"},
		{"nonsense", []roundTrip{answers(200, "<html>"), answers(200, good)}, "", 200, testToken},
		{"a fixed token is refused", []roundTrip{answers(401, "")}, `{"access_token": "a"}`, 502, "unauthorized"},
		{"busy, and the only one", []roundTrip{answers(503, "")}, "", 503, "overloaded"},
		{"busy, and there is another", []roundTrip{answers(503, ""), answers(200, good)},
			`{"reverse_proxy": {"upstreams": [{"dial": "one.test:80"}, {"dial": "two.test:80"}]}}`, 200, testToken},
	} {
		t.Run(test.name, func(t *testing.T) {
			tries := 0
			s, logs := newSessionToken(t, func(req *http.Request) (*http.Response, error) {
				if tries++; tries > len(test.tries) {
					t.Fatalf("Oz was asked %d times", tries)
				}
				return test.tries[tries-1](req)
			}, test.fields)
			w := s.ask(t, tokenRequest())
			if w.Code != test.status || !strings.Contains(w.Body.String(), test.word) || tries != len(test.tries) {
				t.Errorf("after %d tries: %d %s", tries, w.Code, w.Body)
			}
			if lines := logs.FilterMessage("session token").All(); len(lines) != 1 || lines[0].ContextMap()["upstream_tries"] != int64(tries) {
				t.Errorf("%v", lines)
			}
			if w.Header().Get("Cache-Control") != "no-store" || (w.Header().Get("Retry-After") != "") != (test.status == 503) {
				t.Errorf("%v", w.Header())
			}
		})
	}
}

// What is no token in the guide's form is none.
func TestSessionTokenNonsense(t *testing.T) {
	for _, doc := range []string{
		"", "null", "[]", `"token"`, "{}", `{"session_token": ""}`, `{"session_token": null}`, `{"session_token": 1}`, `{"session_token": ["a"]}`,
		`{"Session_Token": "a"}`, `{"session_token": "a", "session_token": "b"}`, `{"session_token": "a"} {}`, `{"session_token": "a"`,
		`{"session_token": "a", "x": "` + strings.Repeat("x", maxSessionAnswer) + `"}`, "{\"session_token\": \"\xff\"}",
	} {
		s, _ := newSessionToken(t, answers(200, doc), "")
		w := s.ask(t, tokenRequest())
		if w.Code != 502 || !strings.Contains(w.Body.String(), "malformed_answer") {
			t.Errorf("%.60q: %d %s", doc, w.Code, w.Body)
		}
	}
}

// Each of the attempts has its time, and then the client hears of it.
func TestSessionTokenTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newSessionToken(t, func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		}, `{"timeout": "3s"}`)
		start := time.Now()
		w := s.ask(t, tokenRequest())
		if took := time.Since(start); w.Code != 504 || took != 3*time.Second {
			t.Errorf("%d after %s: %s", w.Code, took, w.Body)
		}
	})
}

// Nobody waits for a token of a client that has left, and nothing is tried
// again for it.
func TestSessionTokenOfAClientThatLeaves(t *testing.T) {
	tries := 0
	ctx, leave := context.WithCancel(t.Context())
	s, logs := newSessionToken(t, func(req *http.Request) (*http.Response, error) {
		tries++
		leave()
		<-req.Context().Done()
		return nil, req.Context().Err()
	}, "")
	w := s.ask(t, tokenRequest().WithContext(ctx))
	if w.Code != statusClientGone || tries != 1 || w.Body.Len() > 0 {
		t.Errorf("%d after %d tries: %s", w.Code, tries, w.Body)
	}
	if lines := logs.FilterMessage("session token").All(); len(lines) != 1 || lines[0].ContextMap()["result"] != kindClientGone {
		t.Errorf("%v", lines)
	}
}

func TestSessionTokenConfig(t *testing.T) {
	for fields, want := range map[string]string{
		`{"timeout": "-1s"}`: "timeout: must be greater than zero", `{"access_token": "{env.NOT_SET_ANYWHERE}"}`: "access_token",
	} {
		_, err := load[*SessionToken](newContext(t), sessionTokenID, ozConfig(t, neverAsked(t), fields))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", fields, err)
		}
	}
	s, _ := newSessionToken(t, neverAsked(t), "")
	if s.Timeout != defaultSessionTimeout {
		t.Errorf("%s", time.Duration(s.Timeout))
	}
}

// Where the site has a page for the error, that is the answer.
func TestSessionTokenErrorIsTheSites(t *testing.T) {
	s, _ := newSessionToken(t, neverAsked(t), "")
	site := siteWith(t, "["+errorPage+"]")
	r := at(site, "/session_token")
	r.Method = http.MethodPost
	err := s.ServeHTTP(httptest.NewRecorder(), r, noApp(t))
	if handlerErr := (caddyhttp.HandlerError{}); !errors.As(err, &handlerErr) || handlerErr.StatusCode != 405 {
		t.Errorf("%v", err)
	}
}
