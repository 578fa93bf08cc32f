package ozclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi" // a transport that is refused

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// bubble runs a test of a Client in a bubble of synctest, in which it ends.
func bubble(t *testing.T, oz roundTrip, proxy string, opts Options, f func(*testing.T, *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c, err := New(newContext(t), stubConfig(t, oz, "", proxy), opts)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}()
		f(t, c)
		time.Sleep(2 * time.Hour) // for attempts that were given up, which end by themselves
	})
}

// phoned sends what the phone uploads. ctx is the lifetime of its upload.
func (c *Client) phoned(t *testing.T, ctx context.Context, p *phone) (Answer, *Error) {
	t.Helper()
	a, err := c.Analyze(ctx, nil, p, oz.Policy{}, nil)
	return a, asError(t, err)
}

// What is told of an exchange is what happened: bytes, times, upstream, tries.
func TestAnalyze(t *testing.T) {
	var sent string
	opts := testOptions
	opts.CollectBestShots = true
	bubble(t, func(req *http.Request) (*http.Response, error) {
		sent, _ = readAll(req)
		time.Sleep(3 * time.Second)
		return response(201, success()), nil
	}, "", opts, func(t *testing.T, c *Client) {
		p := newPhone(t, 50)
		p.does(func() { p.sendEvery(t.Context(), time.Second, 5, 10) })
		a, e := c.phoned(t, t.Context(), p)
		wantError(t, e, Error{})
		if len(sent) != 50 || a.Upload != 5*time.Second || a.Time != 3*time.Second {
			t.Errorf("%d bytes sent, upload %s, Oz %s", len(sent), a.Upload, a.Time)
		}
		if a.Verdict.Decision != oz.Success || a.Upstream != "oz.test:8080" || a.Tries != 1 || a.Status != 201 || len(a.BestShots) != 1 ||
			a.Bytes != int64(len(success())) || a.Cut == 0 || bytes.Contains(a.Folder, []byte(testShot)) {
			t.Errorf("%+v", a)
		}
		if _, err := p.Read(nil); !errors.Is(err, upload.ErrStopped) {
			t.Errorf("the transport may still read: %v", err)
		}
	})
}

// What Oz says is judged by the policy, and with what this request requires.
func TestAnalyzeJudges(t *testing.T) {
	bound := func(path, value string) []oz.Requirement {
		p, err := oz.ParsePath(path)
		if err != nil {
			t.Fatal(err)
		}
		return []oz.Requirement{{Path: p, Value: value}}
	}
	for _, test := range []struct {
		name     string
		status   int
		doc      string
		policy   oz.Policy
		required []oz.Requirement
		decision oz.Decision
		reason   oz.Reason
	}{
		{"success", 200, success(), oz.Policy{}, nil, oz.Success, ""},
		{"an analysis is missing", 201, success(), oz.Policy{Analyses: []string{"BIOMETRY"}}, nil, oz.Failed, oz.AnalysisMissing},
		{"it is bound", 201, success(), oz.Policy{}, bound("meta_data.transaction_id", "order-1"), oz.Success, ""},
		{"it is bound to another", 201, success(), oz.Policy{}, bound("folder_id", "order-1"), oz.Invalid, oz.Binding},
		{"it is bound to nobody", 201, success(), oz.Policy{}, bound("folder_id", ""), oz.Invalid, oz.Binding},
		{"unauthorized", 401, "", oz.Policy{}, nil, oz.Unavailable, oz.Unauthorized},
		{"refused", 400, `{"error_code": 14}`, oz.Policy{}, nil, oz.Invalid, oz.Container},
		{"a page", 500, "<html>", oz.Policy{}, nil, oz.Unavailable, oz.UnexpectedStatus},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newClient(t, answers(test.status, test.doc), "", "")
			a, err := c.Analyze(t.Context(), nil, capsule(), test.policy, test.required)
			if err != nil || a.Verdict.Decision != test.decision || a.Verdict.Reason != test.reason || a.Status != test.status {
				t.Errorf("%v, %+v", err, a)
			}
			if (a.Folder != nil) != (a.Verdict.Folder != nil) {
				t.Errorf("a folder %s with %s", a.Folder, a.Verdict.Decision)
			}
		})
	}
}

// An empty capsule is sent as one, and what Oz says of it is heard.
func TestAnalyzeAnEmptyCapsule(t *testing.T) {
	c := newClient(t, func(req *http.Request) (*http.Response, error) {
		if req.Body != nil && req.Body != http.NoBody || req.ContentLength != 0 {
			t.Errorf("a body %v of length %d", req.Body, req.ContentLength)
		}
		return response(400, `{"error_code": 13}`), nil
	}, "", "")
	a, err := c.Analyze(t.Context(), nil, NewMemoryBody(nil), oz.Policy{}, nil)
	if err != nil || a.Verdict.Reason != oz.Container {
		t.Errorf("%v, %+v", err, a)
	}
}

// slowTaker is an Oz that takes 10 bytes at a time, each after a pause, and
// returns as net/http does when the context ends.
func slowTaker(pause time.Duration) roundTrip {
	return func(req *http.Request) (*http.Response, error) {
		for piece := make([]byte, 10); ; {
			time.Sleep(pause)
			if err := req.Context().Err(); err != nil {
				return nil, err
			}
			if _, err := io.ReadFull(req.Body, piece); err == io.EOF {
				return response(201, success()), nil
			} else if err != nil {
				return nil, err
			}
		}
	}
}

// upload_timeout is for Oz to take the capsule. The client's own time does not
// count: how long that may be is for the body to say.
func TestUploadTimeoutCountsOzTimeOnly(t *testing.T) {
	for _, test := range []struct {
		name     string
		slowSend time.Duration // of each of 100 pieces
		slowTake time.Duration
		late     time.Duration // zero: Oz is not
	}{
		{"a slow client", 5 * time.Second, 0, 0},
		{"a slow Oz", 0, 2 * time.Second, 2 * time.Minute},
		{"a slow client and an Oz that is little faster", 3 * time.Second, time.Second, 0},
		{"both are slow", 3 * time.Second, 2 * time.Second, 179 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, slowTaker(test.slowTake), "", testOptions, func(t *testing.T, c *Client) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				p := newPhone(t, 1000)
				p.does(func() { p.sendEvery(ctx, test.slowSend, 100, 10) })
				start := time.Now()
				a, e := c.phoned(t, t.Context(), p)
				cancel()
				p.hangUp()
				if test.late == 0 {
					if wantError(t, e, Error{}); a.Verdict.Decision != oz.Success {
						t.Errorf("%+v", a)
					}
					return
				}
				wantError(t, e, Error{oz.Timeout, FaultOz, errOzTimeout})
				if took := time.Since(start); took < test.late || took > test.late+3*time.Second {
					t.Errorf("it took %s, want %s", took, test.late)
				}
			})
		})
	}
}

// An Oz that takes nothing more is too slow after timeout, and not only when
// the time for the upload is over; as long as it takes something it is not.
func TestStalledOz(t *testing.T) {
	for _, test := range []struct {
		name  string
		every time.Duration
		late  bool
	}{{"stops for good", time.Hour, true}, {"takes a little before each time is up", 59 * time.Second, false}} {
		t.Run(test.name, func(t *testing.T) {
			opts := testOptions
			opts.UploadTimeout = time.Hour
			bubble(t, func(req *http.Request) (*http.Response, error) {
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
			}, "", opts, func(t *testing.T, c *Client) {
				p := newPhone(t, 40)
				p.does(func() { p.sendEvery(t.Context(), 0, 1, 40) })
				start := time.Now()
				_, e := c.phoned(t, t.Context(), p)
				if !test.late {
					wantError(t, e, Error{})
					return
				}
				wantError(t, e, Error{oz.Timeout, FaultOz, errOzTimeout})
				if took := time.Since(start); took != time.Minute {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}

// A client that pauses does not make Oz late: that one waits for more.
func TestPausingClientDoesNotMakeOzLate(t *testing.T) {
	opts := testOptions
	opts.Timeout, opts.UploadTimeout = 10*time.Second, 10*time.Second
	bubble(t, answers(201, success()), "", opts, func(t *testing.T, c *Client) {
		p := newPhone(t, 20)
		p.does(func() { p.sendEvery(t.Context(), 100*time.Second, 2, 10) })
		_, e := c.phoned(t, t.Context(), p)
		wantError(t, e, Error{})
	})
}

// Oz has its timeout from the capsule's last byte on, however long the upload
// took, and not a moment longer.
func TestOzHasItsTimeoutFromTheLastByte(t *testing.T) {
	for takes, late := range map[time.Duration]bool{59 * time.Second: false, 61 * time.Second: true} {
		t.Run(takes.String(), func(t *testing.T) {
			bubble(t, func(req *http.Request) (*http.Response, error) {
				_, _ = readAll(req)
				select {
				case <-time.After(takes):
					return response(201, success()), nil
				case <-req.Context().Done():
					return nil, req.Context().Err()
				}
			}, "", testOptions, func(t *testing.T, c *Client) {
				p := newPhone(t, 10)
				p.does(func() { p.sendEvery(t.Context(), 100*time.Second, 1, 10) })
				start := time.Now()
				a, e := c.phoned(t, t.Context(), p)
				if late {
					wantError(t, e, Error{oz.Timeout, FaultOz, errOzTimeout})
				} else {
					wantError(t, e, Error{})
				}
				oz := min(takes, time.Minute)
				if took := time.Since(start); took != 100*time.Second+oz || a.Time != oz || a.Upload != 100*time.Second {
					t.Errorf("it took %s, Oz %s", took, a.Time)
				}
			})
		})
	}
}

// A capsule that was received before has no upload left: all the time is Oz's.
func TestReceivedCapsuleHasOzTimeOnly(t *testing.T) {
	bubble(t, func(req *http.Request) (*http.Response, error) {
		_, _ = req.Body.Read(make([]byte, 1)) // and takes no more
		<-req.Context().Done()
		return nil, req.Context().Err()
	}, "", testOptions, func(t *testing.T, c *Client) {
		start := time.Now()
		_, e := c.analyzed(t)
		wantError(t, e, Error{oz.Timeout, FaultOz, errOzTimeout})
		if took := time.Since(start); took != time.Minute {
			t.Errorf("it took %s", took)
		}
	})
}

// A client that leaves ends its upload at once, also while net/http waits for it.
func TestClientThatLeaves(t *testing.T) {
	bubble(t, answers(201, success()), `{"health_checks": {"passive": {"fail_duration": "1h"}}}`, testOptions, func(t *testing.T, c *Client) {
		ctx, cancel := context.WithCancelCause(t.Context())
		p := newPhone(t, 20)
		p.does(func() {
			p.sendEvery(ctx, 0, 1, 10)
			time.Sleep(time.Second)
			cancel(upload.ErrGone)
		})
		start := time.Now()
		_, e := c.phoned(t, ctx, p)
		wantError(t, e, Error{"", FaultClient, upload.ErrGone})
		if took := time.Since(start); took != time.Second || c.proxy.Upstreams[0].Fails() != 0 {
			t.Errorf("it took %s, %d fails", took, c.proxy.Upstreams[0].Fails())
		}
		p.hangUp()
	})
}

// What the body says of its client is the client's fault, whatever the
// transport makes of it.
func TestClientFaults(t *testing.T) {
	for _, fault := range []error{upload.ErrTooLarge, upload.ErrShort, upload.ErrStalled} {
		bubble(t, answers(201, success()), "", testOptions, func(t *testing.T, c *Client) {
			p := newPhone(t, 20)
			p.fault = fault
			a, e := c.phoned(t, t.Context(), p)
			wantError(t, e, Error{"", FaultClient, fault})
			if !reflect.DeepEqual(a.Verdict, oz.Verdict{}) {
				t.Errorf("%+v", a)
			}
		})
	}
}

// An Oz that answers before it has the whole capsule cannot speak of it. To
// refuse it early is its right.
func TestEarlyAnswers(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		doc    string
		want   Error
		reason oz.Reason
	}{
		{"a folder", 201, success(), Error{oz.UnexpectedStatus, FaultNobody, errEarlyFolder}, oz.UnexpectedStatus},
		{"a refusal", 400, `{"error_code": 5}`, Error{}, oz.Container},
		{"busy", 503, "", Error{}, oz.Overloaded},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(req *http.Request) (*http.Response, error) {
				_, _ = io.ReadFull(req.Body, make([]byte, 10))
				go func() { _, _ = req.Body.Read(make([]byte, 10)) }() // as net/http's write loop
				return response(test.status, test.doc), nil
			}, "", testOptions, func(t *testing.T, c *Client) {
				p := newPhone(t, 20)
				p.does(func() { p.sendEvery(t.Context(), 0, 1, 10) })
				a, e := c.phoned(t, t.Context(), p)
				wantError(t, e, test.want)
				if a.Verdict.Reason != test.reason || a.Status != test.status || a.Folder != nil {
					t.Errorf("%+v", a)
				}
				p.hangUp()
			})
		})
	}
}

// An Oz that gives a request so many seconds in all and hangs up on a slow phone
// is right. It is no use to this capsule, and does not count against the
// upstream. One that hangs up on a client that sends is.
func TestSlowClientIsNotOzFault(t *testing.T) {
	for name, test := range map[string]struct {
		pause time.Duration
		takes time.Duration // of each piece
		fault Fault
	}{
		"silent":                  {time.Hour, 0, FaultNobody},
		"a piece every 1.5 s":     {1500 * time.Millisecond, 0, FaultNobody},
		"a piece every 0.2 s":     {200 * time.Millisecond, 0, FaultNobody},
		"a little slower than Oz": {100 * time.Millisecond, 40 * time.Millisecond, FaultNobody},
		"a little faster than Oz": {100 * time.Millisecond, 60 * time.Millisecond, FaultOz},
		"all is there":            {0, 100 * time.Millisecond, FaultOz},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(req *http.Request) (*http.Response, error) {
				read := make(chan struct{})
				go func() {
					defer close(read)
					for {
						if _, err := io.ReadFull(req.Body, make([]byte, 10)); err != nil {
							return
						}
						time.Sleep(test.takes)
					}
				}()
				time.Sleep(3*time.Second - time.Millisecond)
				return nil, &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}
			}, `{"health_checks": {"passive": {"fail_duration": "1h", "max_fails": 5}}}`, testOptions, func(t *testing.T, c *Client) {
				ctx, cancel := context.WithCancel(t.Context())
				p := newPhone(t, 1000)
				p.does(func() { p.sendEvery(ctx, test.pause, 100, 10) })
				_, e := c.phoned(t, t.Context(), p)
				cancel()
				p.hangUp()
				wantError(t, e, Error{Reason: oz.ConnectionLost, Fault: test.fault})
				if n := c.proxy.Upstreams[0].Fails(); (n > 0) != (test.fault == FaultOz) {
					t.Errorf("%d fails", n)
				}
				time.Sleep(time.Second) // the read that was in progress
			})
		})
	}
}

// lookedAt counts how often a body is looked at.
type lookedAt struct {
	*MemoryBody
	looks atomic.Int64
}

func (b *lookedAt) State() upload.State {
	b.looks.Add(1)
	return b.MemoryBody.State()
}

// No clock outlives its call, also if it goes off as that ends.
func TestClockEndsWithTheCall(t *testing.T) {
	for range 50 {
		bubble(t, func(req *http.Request) (*http.Response, error) {
			_, _ = readAll(req)
			time.Sleep(time.Minute)
			return response(503, ""), nil
		}, "", testOptions, func(t *testing.T, c *Client) {
			body := &lookedAt{MemoryBody: capsule()}
			_, _ = c.Analyze(t.Context(), nil, body, oz.Policy{}, nil)
			synctest.Wait()
			looks := body.looks.Load()
			if time.Sleep(time.Hour); body.looks.Load() > looks {
				t.Errorf("an hour later it was looked at %d times", body.looks.Load()-looks)
			}
		})
	}
}

// Two images are sent as one body, and the answer is judged as one about faces.
func TestMatch(t *testing.T) {
	matched := func(system, biometry string) string {
		return `{"folder_id": "folder-2", "resolution_status": "FINISHED", "system_resolution": "` + system + `", ` +
			`"analyses": [{"type": "BIOMETRY", "state": "FINISHED", "resolution_status": "` + biometry + `"}]}`
	}
	for _, test := range []struct {
		status   int
		doc      string
		decision oz.Decision
		reason   oz.Reason
		want     Error
	}{
		{201, matched("SUCCESS", "SUCCESS"), oz.Success, "", Error{}},
		{201, matched("SUCCESS", "DECLINED"), oz.Failed, oz.AnalysisMissing, Error{}},
		{201, matched("DECLINED", "DECLINED"), oz.Declined, "", Error{}},
		{400, `{"error_code": 4}`, oz.Failed, oz.MatchRefused, Error{}},
		{201, `{"a": 1, "a": 2}`, oz.Unavailable, oz.MalformedAnswer, Error{Reason: oz.MalformedAnswer}},
		{201, `{`, oz.Unavailable, oz.MalformedAnswer, Error{Reason: oz.MalformedAnswer, Fault: FaultOz}},
	} {
		images := oz.MatchRequest("photo_selfie", testJPEG, testJPEG)
		c := newClient(t, func(req *http.Request) (*http.Response, error) {
			sent, err := readAll(req)
			if sent != string(images.Bytes()) || req.Header.Get("Content-Type") != images.ContentType || req.URL.Path != oz.FoldersPath ||
				req.ContentLength != images.Length() || err != nil {
				t.Errorf("%d bytes of %d as %q, %v", len(sent), req.ContentLength, req.Header, err)
			}
			return response(test.status, test.doc), nil
		}, "", "")
		a, err := c.Match(t.Context(), noisyClient(), images)
		wantError(t, asError(t, err), test.want)
		if a.Verdict.Decision != test.decision || a.Verdict.Reason != test.reason || (a.Folder != nil) != (a.Verdict.Folder != nil) {
			t.Errorf("%s: %+v", test.doc, a)
		}
	}
}

// A match has timeout for its answer, and ends when its context does.
func TestMatchEnds(t *testing.T) {
	for cause, want := range map[error]Error{nil: {oz.Timeout, FaultOz, errOzTimeout}, upload.ErrGone: {"", FaultClient, upload.ErrGone}} {
		bubble(t, func(req *http.Request) (*http.Response, error) {
			_, _ = readAll(req)
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		}, "", testOptions, func(t *testing.T, c *Client) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			after := time.Minute
			if cause != nil {
				after = time.Second
				time.AfterFunc(after, func() { cancel(cause) })
			}
			start := time.Now()
			_, err := c.Match(ctx, nil, oz.MatchRequest("tag", testJPEG, testJPEG))
			wantError(t, asError(t, err), want)
			if took := time.Since(start); took != after {
				t.Errorf("%v: it took %s", cause, took)
			}
		})
	}
}

const testToken = "header.payload.signature"

// What went wrong may go right a second time. What will not is told at once.
func TestSessionTokenIsTriedTwice(t *testing.T) {
	good := answers(200, `{"session_token": "`+testToken+`", "more": 1}`)
	lost := func(*http.Request) (*http.Response, error) { return nil, net.ErrClosed }
	for _, test := range []struct {
		name   string
		tries  []roundTrip
		fields string
		proxy  string
		want   Error
	}{
		{"the first is good", []roundTrip{good}, "", "", Error{}},
		{"the second is good", []roundTrip{answers(500, ""), good}, "", "", Error{}},
		{"a lost connection", []roundTrip{lost, good}, "", "", Error{}},
		{"both fail", []roundTrip{answers(500, ""), answers(502, "")}, "", "", Error{Reason: oz.UnexpectedStatus}},
		{"nonsense", []roundTrip{answers(200, "<html>"), good}, "", "", Error{}},
		{"a fixed token is refused", []roundTrip{answers(401, "")}, `{"access_token": "a"}`, "", Error{Reason: oz.Unauthorized}},
		{"busy, and the only one", []roundTrip{answers(503, "")}, "", "", Error{Reason: oz.Overloaded}},
		{"busy, and there is another", []roundTrip{answers(503, ""), good}, "", `{"upstreams": [{"dial": "one.test:80"}, {"dial": "two.test:80"}]}`, Error{}},
		{"a token of an account", []roundTrip{answers(200, grantDoc), answers(400, ""), answers(401, ""), answers(200, grantDoc), good}, withCredentials, "", Error{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tries := 0
			c := newClient(t, func(req *http.Request) (*http.Response, error) {
				if tries++; tries > len(test.tries) {
					t.Fatalf("Oz was asked %d times", tries)
				}
				return test.tries[tries-1](req)
			}, test.fields, test.proxy)
			token, report, err := c.SessionToken(t.Context(), noisyClient(), time.Minute)
			if test.fields == withCredentials { // the first two answers make the token an accepted one
				token, report, err = c.SessionToken(t.Context(), noisyClient(), time.Minute)
			}
			wantError(t, asError(t, err), test.want)
			if (token == testToken) != (test.want == Error{}) || tries != len(test.tries) || test.fields != withCredentials && report.Tries != tries {
				t.Errorf("after %d tries: %q, %+v", tries, token, report)
			}
		})
	}
}

// What is not a token in the guide's form is none, and no error quotes it.
func TestSessionTokenNonsense(t *testing.T) {
	for _, doc := range []string{
		"", "null", "[]", `"token"`, "{}", `{"session_token": ""}`, `{"session_token": null}`, `{"session_token": 1}`, `{"session_token": ["a"]}`,
		`{"Session_Token": "a"}`, `{"session_token": "canary", "session_token": "b"}`, `{"session_token": "canary"} {}`, `{"session_token": "canary"`,
		`{"session_token": "a", "x": "` + strings.Repeat("x", maxSmall) + `"}`, "{\"session_token\": \"canary\xff\"}",
	} {
		c := newClient(t, answers(200, doc), "", "")
		token, _, err := c.SessionToken(t.Context(), nil, time.Minute)
		if e := asError(t, err); token != "" || e == nil || e.Reason != oz.MalformedAnswer || strings.Contains(e.Error(), "canary") {
			t.Errorf("%.60q: %q, %v", doc, token, err)
		}
	}
}

// Each of the attempts has its time, and nobody waits for a token of a client
// that has left.
func TestSessionTokenEnds(t *testing.T) {
	hangs := func(req *http.Request) (*http.Response, error) {
		<-req.Context().Done()
		return nil, context.Cause(req.Context())
	}
	for name, test := range map[string]struct {
		proxy string
		leave time.Duration
		want  Error
		took  time.Duration
		tries int
	}{
		"one upstream":    {"", time.Hour, Error{oz.Timeout, FaultNobody, errOzTimeout}, 3 * time.Second, 1},
		"two upstreams":   {`{"upstreams": [{"dial": "one.test:80"}, {"dial": "two.test:80"}]}`, time.Hour, Error{oz.Timeout, FaultNobody, errOzTimeout}, 6 * time.Second, 2},
		"the client left": {"", time.Second, Error{"", FaultClient, upload.ErrGone}, time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, hangs, test.proxy, testOptions, func(t *testing.T, c *Client) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				defer time.AfterFunc(test.leave, cancel).Stop()
				start := time.Now()
				_, report, err := c.SessionToken(ctx, nil, 3*time.Second)
				wantError(t, asError(t, err), test.want)
				if took := time.Since(start); took != test.took || report.Tries != test.tries || report.Time != test.took {
					t.Errorf("it took %s, %+v", took, report)
				}
			})
		})
	}
}

// The defaults reach the transport that is used, and it is wrapped before
// reverse_proxy sees it.
func TestProvisionedTransport(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://proxy.test:3128")
	c := newClient(t, neverAsked(t), "", `{"transport": {"protocol": "http"}}`)
	ht := c.HTTPTransport()
	if ht == nil {
		t.Fatalf("the transport is a %T", c.proxy.Transport)
	}
	if !ht.Transport.DisableKeepAlives {
		t.Error("connections are kept")
	}
	if ht.Transport.TLSHandshakeTimeout != handshakeTimeout {
		t.Errorf("a TLS handshake may last %s", ht.Transport.TLSHandshakeTimeout)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://oz.test/", nil)
	if proxy, err := ht.Transport.Proxy(req); proxy != nil || err != nil {
		t.Errorf("it goes through %v (%v)", proxy, err)
	}
	if _, ok := c.proxy.LoadBalancing.SelectionPolicy.(*selector); !ok {
		t.Errorf("upstreams are selected by a %T", c.proxy.LoadBalancing.SelectionPolicy)
	}
	if newClient(t, neverAsked(t), "", "").HTTPTransport() != nil {
		t.Error("a stub is an HTTPTransport")
	}
}

// The selector knows of passive health checks where there are some.
func TestSelectorGetsPassiveChecks(t *testing.T) {
	policy := func(proxy string) *selector {
		return newClient(t, neverAsked(t), "", proxy).proxy.LoadBalancing.SelectionPolicy.(*selector)
	}
	if policy("").passive != nil || policy(`{"health_checks": {}}`).passive != nil {
		t.Error("there are passive checks where none are configured")
	}
	if s := policy(`{"health_checks": {"passive": {"fail_duration": "1m", "max_fails": 3}}}`); s.passive == nil || s.passive.MaxFails != 3 {
		t.Errorf("%+v", s.passive)
	}
}

// What fails to load says why, and leaves nothing behind: no account, and no
// upstream in the admin API. Upstreams of other configs stay.
func TestNothingIsLeftOfWhatFails(t *testing.T) {
	other := newClient(t, neverAsked(t), "", `{"upstreams": [{"dial": "shared.test:1"}]}`)
	for name, test := range map[string]struct{ fields, proxy, want string }{
		"an access token":           {`{"access_token": "{env.OZ_NOWHERE}"}`, "", "access_token"},
		"one that does not fit":     {`{"access_token": "a b"}`, "", "access_token"},
		"an e-mail address":         {`{"credentials": {"email": "{env.OZ_NOWHERE}", "password": "p"}}`, "", "credentials: email"},
		"a password":                {`{"credentials": {"email": "e", "password": "{env.OZ_NOWHERE}"}}`, "", "credentials: password"},
		"validation":                {`{"base_path": "oz"}`, "", "base_path"},
		"the transport":             {"", `{"transport": {"protocol": "nonsense"}}`, "loading transport"},
		"fastcgi":                   {"", `{"transport": {"protocol": "fastcgi"}}`, "holds whole requests in memory"},
		"the policy":                {withCredentials, `{"load_balancing": {"selection_policy": {"policy": "nonsense"}}}`, "reverse_proxy"},
		"a regexp, at the very end": {withCredentials, `{"health_checks": {"active": {"uri": "/", "expect_body": "("}}}`, "reverse_proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := stubConfig(t, neverAsked(t), test.fields, test.proxy)
			cfg.ReverseProxy.Upstreams = reverseproxy.UpstreamPool{{Dial: "shared.test:1"}, {Dial: "left.test:2"}}
			c, err := New(newContext(t), cfg, testOptions)
			if c != nil || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v", err)
			}
			accounts.Range(func(key, value any) bool {
				t.Errorf("an account is left: %v", key)
				return true
			})
			if listed := upstreams(t); strings.Contains(listed, "left.test") || !strings.Contains(listed, "shared.test") {
				t.Errorf("the admin API lists %s", listed)
			}
		})
	}
	if other.proxy.Upstreams[0].Host == nil {
		t.Error("the other config lost its upstream")
	}
}

// upstreams returns what the admin API lists.
func upstreams(t *testing.T) string {
	t.Helper()
	mod, err := caddy.GetModule("admin.api.reverse_proxy")
	if err != nil {
		t.Fatal(err)
	}
	routes := mod.New().(caddy.AdminRouter).Routes()
	if len(routes) == 0 {
		t.Fatal("there is no such route")
	}
	w := &listing{header: make(http.Header)}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "/reverse_proxy/upstreams", nil)
	if err := routes[0].Handler.ServeHTTP(w, req); err != nil {
		t.Fatal(err)
	}
	return w.String()
}

type listing struct {
	bytes.Buffer
	header http.Header
}

func (l *listing) Header() http.Header { return l.header }
func (*listing) WriteHeader(int)       {}
