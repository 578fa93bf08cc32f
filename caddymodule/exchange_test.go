package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// exchanged sends what the phone uploads to h's Oz, as a stream.
func (p *phone) exchanged(h *Handler, length int64) outcome {
	r := p.request(length)
	return h.exchange(r, newCapsule(p, r, h.MaxCapsule), length)
}

// wantOutcome fails the test unless o is what it should be. An outcome of the
// client's doing has no verdict.
func wantOutcome(t *testing.T, o outcome, decision oz.Decision, reason oz.Reason, client error) {
	t.Helper()
	if !errors.Is(o.clientFault, client) {
		t.Errorf("the client's fault is %v, want %v", o.clientFault, client)
	}
	if o.verdict.Decision != decision || o.verdict.Reason != reason {
		t.Errorf("%s %s (%v), want %s %s", o.verdict.Decision, o.verdict.Reason, o.err, decision, reason)
	}
	if (o.folder != nil) != (o.verdict.Folder != nil) {
		t.Errorf("a folder %s with %s", o.folder, o.verdict.Decision)
	}
}

// What is told of an exchange is what happened: bytes, times, upstream, tries.
func TestExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent string
		h := newHandler(t, func(req *http.Request) (*http.Response, error) {
			sent, _ = readAll(req)
			time.Sleep(3 * time.Second)
			return response(201, success()), nil
		}, `{"best_shot": "attach"}`)
		p := newPhone(t)
		p.does(func() { p.sendEvery(time.Second, 5, 10) })
		o := p.exchanged(h, 50)
		wantOutcome(t, o, oz.Success, "", nil)
		if len(sent) != 50 || o.capsuleBytes != 50 || o.uploadTime != 5*time.Second || o.ozTime != 3*time.Second {
			t.Errorf("%d bytes sent, %d counted, upload %s, Oz %s", len(sent), o.capsuleBytes, o.uploadTime, o.ozTime)
		}
		if o.upstream != "oz.test:8080" || o.tries != 1 || o.answer.status != 201 || len(o.shots) != 1 || o.unread || o.interrupted || o.clientGone {
			t.Errorf("%+v", o)
		}
	})
}

// Who was slow is measured: by what the upload spent waiting for the client,
// and what for Oz.
func TestUploadLate(t *testing.T) {
	for _, test := range []struct {
		name     string
		slowSend time.Duration // of each of 100 pieces
		slowTake time.Duration
		reason   oz.Reason
		client   error
	}{
		{"a slow client", 2 * time.Second, 0, "", errUploadTimeout},
		{"a slow Oz", 0, 2 * time.Second, oz.Timeout, nil},
		{"a slow client and a less slow Oz", 5 * time.Second, 2 * time.Second, "", errUploadTimeout},
		{"a slow Oz and a client that is little slower", 3 * time.Second, 2 * time.Second, oz.Timeout, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHandler(t, func(req *http.Request) (*http.Response, error) {
					for piece := make([]byte, 10); ; {
						time.Sleep(test.slowTake)
						if err := req.Context().Err(); err != nil {
							return nil, err
						}
						if _, err := req.Body.Read(piece); err != nil {
							return nil, err
						}
					}
				}, "")
				p := newPhone(t)
				p.does(func() { p.sendEvery(test.slowSend, 100, 10) })
				start := time.Now()
				o := p.exchangedAsNetHTTP(h, 1000)
				if test.client != nil {
					wantOutcome(t, o, "", "", test.client)
				} else {
					wantOutcome(t, o, oz.Unavailable, test.reason, nil)
				}
				if took := time.Since(start); took != 2*time.Minute {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// exchangedAsNetHTTP is exchanged with a transport in between that returns, as
// net/http's does, when the context of the request ends, whatever is still
// being read or waited for.
func (p *phone) exchangedAsNetHTTP(h *Handler, length int64) outcome {
	t := h.link.proxy.Transport.(*ozTransport)
	next := t.next
	t.next = roundTrip(func(req *http.Request) (*http.Response, error) {
		type result struct {
			res *http.Response
			err error
		}
		done := make(chan result, 1)
		p.does(func() {
			res, err := next.RoundTrip(req)
			done <- result{res, err}
		})
		select {
		case r := <-done:
			return r.res, r.err
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	})
	return p.exchanged(h, length)
}

// An Oz that takes nothing more is too slow after timeout, and not only when
// the time for the upload is over; as long as it takes something it is not.
func TestStalledOz(t *testing.T) {
	for _, test := range []struct {
		name  string
		every time.Duration
		takes time.Duration // until it ends
		late  bool
	}{
		{"stops for good", time.Hour, 60 * time.Second, true},
		{"takes a little before each time is up", 59 * time.Second, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHandler(t, func(req *http.Request) (*http.Response, error) {
					for range 4 {
						if _, err := io.ReadFull(req.Body, make([]byte, 10)); err != nil {
							return nil, err
						}
						select {
						case <-time.After(test.every):
						case <-req.Context().Done():
							return nil, req.Context().Err()
						}
					}
					return response(201, success()), nil
				}, `{"upload_timeout": "1h"}`)
				p := newPhone(t)
				p.does(func() { p.sendEvery(0, 4, 10) })
				start := time.Now()
				o := p.exchanged(h, 40)
				if test.late {
					wantOutcome(t, o, oz.Unavailable, oz.Timeout, nil)
					if took := time.Since(start); took != test.takes || !errors.Is(o.err, errOzTimeout) {
						t.Errorf("it took %s (%v)", took, o.err)
					}
				} else {
					wantOutcome(t, o, oz.Success, "", nil)
				}
			})
		})
	}
}

// A client that pauses does not make Oz late: that one waits for more.
func TestPausingClientDoesNotMakeOzLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, answers(201, success()), `{"timeout": "10s"}`)
		p := newPhone(t)
		p.does(func() {
			p.send(10)
			p.sendEvery(100*time.Second, 1, 10)
		})
		wantOutcome(t, p.exchanged(h, 20), oz.Success, "", nil)
	})
}

// Oz has its timeout from the capsule's last byte on, however long the upload
// took, and not a moment longer.
func TestOzHasItsTimeoutFromTheLastByte(t *testing.T) {
	for takes, want := range map[time.Duration]oz.Decision{59 * time.Second: oz.Success, 61 * time.Second: oz.Unavailable} {
		synctest.Test(t, func(t *testing.T) {
			h := newHandler(t, func(req *http.Request) (*http.Response, error) {
				_, _ = readAll(req)
				select {
				case <-time.After(takes):
					return response(201, success()), nil
				case <-req.Context().Done():
					return nil, req.Context().Err()
				}
			}, "")
			p := newPhone(t)
			p.does(func() { p.sendEvery(100*time.Second, 1, 10) })
			start := time.Now()
			o := p.exchanged(h, 10)
			if o.verdict.Decision != want {
				t.Errorf("%s: %s %s", takes, o.verdict.Decision, o.verdict.Reason)
			}
			if limit := 100*time.Second + min(takes, time.Minute); time.Since(start) != limit {
				t.Errorf("%s: it took %s", takes, time.Since(start))
			}
			if want == oz.Unavailable && (o.verdict.Reason != oz.Timeout || o.unread) {
				t.Errorf("%+v", o)
			}
		})
	}
}

// A client that leaves ends its upload. Once the capsule is whole that depends
// on client_gone: finish judges it all the same.
func TestClientGone(t *testing.T) {
	for _, test := range []struct {
		gone  string
		after int // bytes of 20 that it sends before it leaves
		ends  bool
	}{
		{clientGoneFinish, 10, true}, {clientGoneFinish, 20, false}, {clientGoneCancel, 10, true}, {clientGoneCancel, 20, true},
	} {
		t.Run(fmt.Sprintf("%s after %d of 20", test.gone, test.after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHandler(t, func(req *http.Request) (*http.Response, error) {
					if _, err := readAll(req); err != nil {
						return nil, err
					}
					select {
					case <-time.After(3 * time.Second):
						return response(201, success()), nil
					case <-req.Context().Done():
						return nil, req.Context().Err()
					}
				}, `{"client_gone": "`+test.gone+`"}`)
				p := newPhone(t)
				p.does(func() {
					p.send(test.after)
					time.Sleep(time.Second)
					p.hangUp()
				})
				start := time.Now()
				o := p.exchanged(h, 20)
				if !o.clientGone {
					t.Error("nobody knows that the client has left")
				}
				if !test.ends {
					wantOutcome(t, o, oz.Success, "", nil)
					return
				}
				wantOutcome(t, o, "", "", errClientGone)
				if took := time.Since(start); took != time.Second {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// A client's fault is told by what it did and is never a decision, whatever the
// transport makes of it.
func TestClientFaults(t *testing.T) {
	for _, test := range []struct {
		name   string
		body   io.Reader
		length int64
		want   error
	}{
		{"too large", strings.NewReader(strings.Repeat("x", 101)), -1, errTooLarge},
		{"too short", strings.NewReader("x"), 10, errShort},
	} {
		h := newHandler(t, answers(201, success()), `{"max_capsule": 100}`)
		w := httptest.NewRecorder()
		r := capsuleRequest(w, test.body)
		r.ContentLength = test.length
		o := h.exchange(r, newCapsule(w, r, h.MaxCapsule), test.length)
		wantOutcome(t, o, "", "", test.want)
		if !o.unread {
			t.Errorf("%s: there is nothing more to come", test.name)
		}
	}
}

// An Oz that answers before it has the whole capsule cannot speak of it. To
// refuse it early is its right; what is left is taken back from the transport
// before anyone else looks at the request.
func TestEarlyAnswers(t *testing.T) {
	for _, test := range []struct {
		name     string
		status   int
		doc      string
		decision oz.Decision
		reason   oz.Reason
	}{
		{"a folder", 201, success(), oz.Unavailable, oz.UnexpectedStatus},
		{"a refusal", 400, `{"error_code": 5}`, oz.Invalid, oz.Container},
		{"busy", 503, "", oz.Unavailable, oz.Overloaded},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reading := make(chan error, 1)
				h := newHandler(t, func(req *http.Request) (*http.Response, error) {
					_, _ = io.ReadFull(req.Body, make([]byte, 10))
					go func() { // as net/http's write loop does
						_, err := req.Body.Read(make([]byte, 10))
						reading <- err
					}()
					synctest.Wait()
					return response(test.status, test.doc), nil
				}, "")
				p := newPhone(t)
				p.does(func() { p.send(10) })
				o := p.exchanged(h, 20)
				wantOutcome(t, o, test.decision, test.reason, nil)
				if err := <-reading; !errors.Is(err, errDetached) {
					t.Errorf("the transport still reads: %v", err)
				}
				if o.answer.status != test.status || !o.unread || !o.interrupted || o.capsuleBytes != 10 || o.clientGone {
					t.Errorf("%+v", o)
				}
			})
		})
	}
}

// A capsule of unknown length is whole when its end was seen, and an answer
// that comes then is about it.
func TestCapsuleOfUnknownLengthIsJudged(t *testing.T) {
	h := newHandler(t, answers(201, success()), "")
	w := httptest.NewRecorder()
	r := capsuleRequest(w, struct{ io.Reader }{strings.NewReader("capsule")})
	o := h.exchange(r, newCapsule(w, r, h.MaxCapsule), -1)
	wantOutcome(t, o, oz.Success, "", nil)
}

// What Oz says is judged with what this request requires, which only this
// request has.
func TestExchangeJudges(t *testing.T) {
	for _, test := range []struct {
		name     string
		status   int
		doc      string
		fields   string
		decision oz.Decision
		reason   oz.Reason
		err      string
	}{
		{"success", 200, success(), "", oz.Success, "", ""},
		{"an analysis is missing", 201, success(), `{"analyses": ["biometry"]}`, oz.Failed, oz.AnalysisMissing, ""},
		{"it is bound", 201, success(), `{"require": [{"path": "meta_data.transaction_id", "value": "{http.request.uri.query.order}"}]}`, oz.Success, "", ""},
		{"it is bound to another", 201, success(), `{"require": [{"path": "folder_id", "value": "{http.request.uri.query.order}"}]}`, oz.Invalid, oz.Binding, ""},
		{"it is bound to nobody", 201, success(), `{"require": [{"path": "folder_id", "value": "{http.request.uri.query.nothing}"}]}`, oz.Invalid, oz.Binding, ""},
		{"not strict", 201, `{"a": 1, "a": 2}`, "", oz.Unavailable, oz.MalformedAnswer, "not a strict JSON folder"},
		{"cut", 201, success()[:100], "", oz.Unavailable, oz.MalformedAnswer, "malformed"},
		{"too large", 201, success(), `{"max_answer": 10}`, oz.Unavailable, oz.MalformedAnswer, "larger than max_answer"},
		{"unauthorized", 401, "", "", oz.Unavailable, oz.Unauthorized, ""},
		{"a page", 500, "<html>", "", oz.Unavailable, oz.UnexpectedStatus, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHandler(t, answers(test.status, test.doc), test.fields)
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, "/verify?order=order-1", strings.NewReader("capsule"))
			r = fromClient(w, r)
			o := h.exchange(r, newCapsule(w, r, h.MaxCapsule), r.ContentLength)
			wantOutcome(t, o, test.decision, test.reason, nil)
			if test.err == "" && o.err != nil || test.err != "" && (o.err == nil || !strings.Contains(o.err.Error(), test.err)) {
				t.Errorf("because of %v", o.err)
			}
		})
	}
}

// An access token that Oz refuses for a capsule is not used for the next one.
func TestRefusedTokenIsDropped(t *testing.T) {
	var logins atomic.Int64
	answer := 201
	h := newHandler(t, func(req *http.Request) (*http.Response, error) {
		if req.URL.Path == oz.LoginPath {
			return answers(200, fmt.Sprintf(`{"access_token": "token-%d"}`, logins.Add(1)))(req)
		}
		if want := fmt.Sprintf("token-%d", logins.Load()); req.Header.Get(accessTokenHeader) != want {
			t.Errorf("sent with %s, want %s", req.Header.Get(accessTokenHeader), want)
		}
		return answers(answer, success())(req)
	}, withCredentials)
	h.posted(t, new(testApp), "capsule")
	answer = 401
	if w := h.posted(t, noApp(t), "capsule"); w.Code != 502 {
		t.Errorf("refused with %d", w.Code)
	}
	answer = 201
	h.posted(t, new(testApp), "capsule")
	if n := logins.Load(); n != 2 {
		t.Errorf("%d log-ins", n)
	}
}

// An answer that is not fit to be read counts against the upstream; one that
// refuses a capsule does not, or any client could mark Oz as down.
func TestWhatCountsAgainstAnUpstream(t *testing.T) {
	for _, test := range []struct {
		name  string
		oz    roundTrip
		fails int
	}{
		{"success", answers(201, success()), 0},
		{"a refused capsule", answers(400, `{"error_code": 14}`), 0},
		{"busy", answers(503, ""), 0},
		{"cut", answers(201, success()[:100]), 1},
		{"not strict", answers(201, `{"a": 1, "a": 2}`), 1},
		{"lost", fails(1, io.EOF), 1},
		{"unreachable", fails(0, errors.New("refused")), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHandler(t, test.oz, `{"reverse_proxy": {"health_checks": {"passive": {"fail_duration": "1h", "max_fails": 5}}}}`)
			w := httptest.NewRecorder()
			r := capsuleRequest(w, strings.NewReader("capsule"))
			h.exchange(r, newCapsule(w, r, h.MaxCapsule), r.ContentLength)
			if got := h.link.proxy.Upstreams[0].Fails(); got != test.fails {
				t.Errorf("%d fails, want %d", got, test.fails)
			}
		})
	}
}

// A capsule that was received before has no upload left: all the time is Oz's.
func TestReceivedCapsuleHasOzTimeOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHandler(t, func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done() // takes nothing
			return nil, req.Context().Err()
		}, `{"capacity": {"memory": 33554432}}`)
		start := time.Now()
		w := h.posted(t, noApp(t), "capsule")
		if w.Code != 504 || time.Since(start) != time.Minute {
			t.Errorf("%d after %s", w.Code, time.Since(start))
		}
	})
}

// What cannot happen is no decision.
func TestExchangeWithoutAResult(t *testing.T) {
	x := &exchange{capsule: testCapsule(strings.NewReader(""), 0, 1), call: new(call)}
	wantOutcome(t, x.outcome(), oz.Unavailable, oz.Unreachable, nil)
	x.call.clientFault = errClientGone
	wantOutcome(t, x.outcome(), "", "", errClientGone)
}

// The cause for which the context ended is told as the client's only where it
// was the client.
func TestClientFaultByCause(t *testing.T) {
	for cause, want := range map[error]error{errClientGone: errClientGone, errUploadTimeout: errUploadTimeout, errOzTimeout: nil, nil: nil} {
		x := &exchange{capsule: testCapsule(strings.NewReader(""), 0, 1)}
		x.ctx, x.cancel = context.WithCancelCause(t.Context())
		x.cancel(cause)
		if got := x.clientFault(); !errors.Is(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%v: %v", cause, got)
		}
	}
}

// An Oz that hangs up on a client that sends nothing is right. It is no use to
// this capsule, and does not count against the upstream. One that hangs up on a
// client that sends is.
func TestStallingClientIsNotOzFault(t *testing.T) {
	for name, want := range map[string]struct {
		pause time.Duration
		fails int
	}{"it stalls": {time.Hour, 0}, "it sends": {100 * time.Millisecond, 1}} {
		synctest.Test(t, func(t *testing.T) {
			h := newHandler(t, func(req *http.Request) (*http.Response, error) {
				read := make(chan struct{})
				go func() {
					defer close(read)
					_, _ = io.Copy(io.Discard, req.Body)
				}()
				select {
				case <-read:
				case <-time.After(30 * time.Second):
				}
				return nil, &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}
			}, `{"reverse_proxy": {"health_checks": {"passive": {"fail_duration": "1h"}}}}`)
			p := newPhone(t)
			p.does(func() { p.sendEvery(want.pause, 1000, 1) })
			r := p.request(1000)
			o := h.decide(r, noApp(t), newCapsule(p, r, h.MaxCapsule))
			p.hangUp()
			if n := h.link.proxy.Upstreams[0].Fails(); n != want.fails || o.verdict.Reason != oz.ConnectionLost {
				t.Errorf("%s: %d fails, %s", name, n, o.verdict.Reason)
			}
		})
	}
}

// countedSource counts how often it is looked at.
type countedSource struct {
	*capsule
	looks atomic.Int64
}

func (c *countedSource) state() uploadState {
	c.looks.Add(1)
	return c.capsule.state()
}

// No clock outlives its exchange, also if it goes off as that ends.
func TestClocksEndWithTheExchange(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			h := newHandler(t, func(*http.Request) (*http.Response, error) {
				time.Sleep(time.Minute) // as the default timeout
				return response(503, ""), nil
			}, "")
			w := httptest.NewRecorder()
			r := capsuleRequest(w, strings.NewReader("capsule"))
			src := &countedSource{capsule: newCapsule(w, r, h.MaxCapsule)}
			h.exchange(r, src, 7)
			synctest.Wait()
			looks := src.looks.Load()
			if time.Sleep(time.Hour); src.looks.Load() > looks+1 {
				t.Errorf("an hour later it was looked at %d times", src.looks.Load()-looks)
			}
		})
	}
}
