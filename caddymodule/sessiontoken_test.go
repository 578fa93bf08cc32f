package caddymodule

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

const testToken = "header.claims.signature"

// withTokens loads an oz_instant that serves session tokens and whose Oz is a stub.
func withTokens(t *testing.T, oz roundTrip, fields string) (*Handler, *observer.ObservedLogs) {
	t.Helper()
	if fields == "" {
		fields = "{}"
	}
	fields = strings.TrimSuffix(fields, "}") + `, "session_token": {"path": "/session_token", "timeout": "3s"}, "match": [{"path": ["/verify"]}]}`
	h := newHandler(t, oz, strings.Replace(fields, "{, ", "{", 1))
	return h, h.observed()
}

// ask is a client's request for a session token.
func (h *Handler) requested(t *testing.T, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	if err := h.ServeHTTP(w, fromClient(w, r), noApp(t)); err != nil {
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
	h, logs := withTokens(t, func(req *http.Request) (*http.Response, error) {
		if req.Method != http.MethodGet || req.URL.Path != "/api/authorize/session_token" || req.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s, %v", req.Method, req.URL, req.Header)
		}
		if req.Header.Get("Cookie") != "" || req.Header.Get("X-Oz-Decision") != "" {
			t.Errorf("of the client, Oz got %v", req.Header)
		}
		return response(200, `{"session_token": "`+testToken+`", "more": 1}`), nil
	}, "")
	w := h.requested(t, tokenRequest())
	if got := w.Body.String(); w.Code != 200 || got != `{"session_token":"`+testToken+`"}` {
		t.Errorf("%d %s", w.Code, got)
	}
	header := w.Header()
	if header.Get("Cache-Control") != "no-store" || header.Get("Content-Type") != "application/json" || header.Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
		t.Errorf("%v", header)
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

func TestOnlyGETGivesAToken(t *testing.T) {
	h, _ := withTokens(t, neverAsked(t), "")
	for _, method := range []string{"POST", "PUT", "DELETE", "get"} {
		w := h.requested(t, httptest.NewRequest(method, "http://app.test/session_token", nil))
		if w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD, OPTIONS" || !strings.Contains(w.Body.String(), kindMethod) {
			t.Errorf("%s: %d %v %s", method, w.Code, w.Header(), w.Body)
		}
	}
	for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
		w := h.requested(t, httptest.NewRequest(method, "/session_token", strings.NewReader("content")))
		if w.Code != 400 || !strings.Contains(w.Body.String(), kindUnexpectedContent) {
			t.Errorf("%s: %d %s", method, w.Code, w.Body)
		}
	}
	w := h.requested(t, httptest.NewRequest("HEAD", "/session_token", nil))
	if w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("HEAD: %d %v", w.Code, w.Header())
	}
	app := new(testApp)
	w = httptest.NewRecorder()
	if err := h.ServeHTTP(w, fromClient(w, httptest.NewRequest("OPTIONS", "/session_token", nil)), app); err != nil || app.calls != 1 {
		t.Errorf("a preflight: %v, %d calls", err, app.calls)
	}
}

// The matchers of the block hold for session tokens, too, but for path and method.
func TestMatchersOfSessionTokens(t *testing.T) {
	const fields = `{"session_token": {"path": "/t"}, "match": [
		{"host": ["a.test"], "path": ["/verify"], "method": ["POST"]}, {"header": {"X-Beta": ["yes"]}, "path_regexp": {"pattern": "^/beta$"}}]}`
	h := newHandler(t, answers(200, `{"session_token": "`+testToken+`"}`), fields)
	for _, test := range []struct {
		url, beta string
		token     bool
	}{
		{"http://a.test/t", "", true}, {"http://b.test/t", "", false}, {"http://b.test/t", "yes", true}, {"http://a.test/T", "", true},
		{"http://a.test/t/", "", false}, {"http://a.test/verify", "", false},
	} {
		r := httptest.NewRequest("GET", test.url, nil)
		r.Header.Set("X-Beta", test.beta)
		w, app := httptest.NewRecorder(), new(testApp)
		if err := h.ServeHTTP(w, fromClient(w, r), app); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(w.Body.String(), testToken); got != test.token || (app.calls == 0) != test.token {
			t.Errorf("%s, X-Beta %q: %s, %d calls", test.url, test.beta, w.Body, app.calls)
		}
	}
}

// Under a pattern that covers both, a POST of a capsule is one.
func TestCapsulesUnderThePathOfTokens(t *testing.T) {
	h := newHandler(t, answers(201, success()), `{"session_token": {"path": "/api/token"}, "match": [{"path": ["/api/*"]}]}`)
	w, app := httptest.NewRecorder(), new(testApp)
	r := httptest.NewRequest("POST", "/api/token", strings.NewReader("capsule"))
	r.Header.Set("Content-Type", capsuleMediaType)
	if err := h.ServeHTTP(w, fromClient(w, r), app); err != nil || app.calls != 1 || app.request.Header.Get(headerDecision) != "SUCCESS" {
		t.Errorf("%v, %d %s", err, w.Code, w.Body)
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
			h, logs := withTokens(t, func(req *http.Request) (*http.Response, error) {
				if tries++; tries > len(test.tries) {
					t.Fatalf("Oz was asked %d times", tries)
				}
				return test.tries[tries-1](req)
			}, test.fields)
			w := h.requested(t, tokenRequest())
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
		`{"session_token": "a", "x": "` + strings.Repeat("x", 64<<10) + `"}`, "{\"session_token\": \"\xff\"}",
	} {
		h, _ := withTokens(t, answers(200, doc), "")
		w := h.requested(t, tokenRequest())
		if w.Code != 502 || !strings.Contains(w.Body.String(), "malformed_answer") {
			t.Errorf("%.60q: %d %s", doc, w.Code, w.Body)
		}
	}
}

// Each of the attempts has its time, and then the client hears of it.
func TestSessionTokenTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := withTokens(t, func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		}, "")
		start := time.Now()
		w := h.requested(t, tokenRequest())
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
	h, logs := withTokens(t, func(req *http.Request) (*http.Response, error) {
		tries++
		leave()
		<-req.Context().Done()
		return nil, req.Context().Err()
	}, "")
	w := h.requested(t, tokenRequest().WithContext(ctx))
	if w.Code != statusClientGone || tries != 1 || w.Body.Len() > 0 {
		t.Errorf("%d after %d tries: %s", w.Code, tries, w.Body)
	}
	if lines := logs.FilterMessage("session token").All(); len(lines) != 1 || lines[0].ContextMap()["result"] != kindClientGone {
		t.Errorf("%v", lines)
	}
}

// Over HTTP/3 a client that closes its connection ends the request's context
// with its own words. It has left all the same, at Oz or in the queue before,
// and its words are in no log.
func TestSessionTokenOfAClosedConnection(t *testing.T) {
	closed := &quic.ApplicationError{Remote: true, ErrorMessage: "canary"}
	for _, where := range []string{"at Oz", "in the queue"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, leave := context.WithCancelCause(t.Context())
				h, logs := withTokens(t, func(req *http.Request) (*http.Response, error) {
					leave(closed)
					<-req.Context().Done()
					return nil, req.Context().Err()
				}, "")
				if where == "in the queue" {
					for release, err := h.gate.AcquireCall(t.Context(), 0); err == nil; release, err = h.gate.AcquireCall(t.Context(), 0) {
						defer release()
					}
					time.AfterFunc(time.Second, func() { leave(closed) })
				}
				w := h.requested(t, tokenRequest().WithContext(ctx))
				lines := logs.FilterMessage("session token").All()
				if w.Code != statusClientGone || len(lines) != 1 || lines[0].Level != zap.InfoLevel || lines[0].ContextMap()["result"] != kindClientGone {
					t.Errorf("%d %v", w.Code, lines)
				}
				if strings.Contains(fmt.Sprint(logs.All()), "canary") {
					t.Errorf("%v", logs.All())
				}
			})
		})
	}
}

// Where the site has a page for the error, that is the answer.
func TestSessionTokenErrorIsTheSites(t *testing.T) {
	h, _ := withTokens(t, neverAsked(t), "")
	r := at(siteWith(t, "["+errorPage+"]"), "/session_token")
	w := httptest.NewRecorder()
	if err := h.ServeHTTP(w, r, noApp(t)); err != nil || w.Code != 405 || w.Body.String() != "sorry" {
		t.Errorf("%v, %d %s", err, w.Code, w.Body)
	}
}
