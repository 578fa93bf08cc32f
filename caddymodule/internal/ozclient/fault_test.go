package ozclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// Whose fault a failed call was is said in one place, by this table.
func TestBlame(t *testing.T) {
	reset := &net.OpError{Op: "read", Net: "tcp", Err: errors.New("connection reset by peer")}
	slow := &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
	alert := func(number tls.AlertError) error { return &net.OpError{Op: "remote error", Err: number} }
	tried := func(a attempted) attempted { a.tried = true; return a }
	for _, test := range []struct {
		name string
		a    attempted
		want Error
	}{
		{"the client left", tried(attempted{err: reset, cause: upload.ErrGone, sent: true}), Error{"", FaultClient, upload.ErrGone}},
		{"the client left, as net/http tells it", attempted{cause: context.Canceled}, Error{"", FaultClient, upload.ErrGone}},
		{"the client left while Oz answered", tried(attempted{err: reset, cause: upload.ErrGone, sent: true, answered: true}), Error{"", FaultClient, upload.ErrGone}},
		{"the capsule is too large", tried(attempted{err: reset, body: upload.State{Fault: upload.ErrTooLarge}, sent: true}), Error{"", FaultClient, upload.ErrTooLarge}},
		{"the upload stalled, and Oz is late as well", tried(attempted{err: reset, cause: errOzTimeout, body: upload.State{Fault: upload.ErrStalled}, sent: true}), Error{"", FaultClient, upload.ErrStalled}},
		{"the upload took too long", tried(attempted{cause: upload.ErrTimeout, sent: true}), Error{"", FaultClient, upload.ErrTimeout}},
		{"the site's own timeout", tried(attempted{cause: fmt.Errorf("read: %w", upload.ErrSiteTimeout), sent: true}), Error{"", FaultClient, upload.ErrSiteTimeout}},
		{"a header that can't be sent", tried(attempted{err: ErrInvalidHeader}), Error{"", FaultClient, ErrInvalidHeader}},

		{"Oz is late", tried(attempted{err: reset, cause: errOzTimeout, sent: true}), Error{oz.Timeout, FaultOz, errOzTimeout}},
		{"Oz is late with the rest of its answer", tried(attempted{err: io.ErrUnexpectedEOF, cause: errOzTimeout, sent: true, answered: true}), Error{oz.Timeout, FaultOz, errOzTimeout}},
		{"Oz takes nothing", tried(attempted{cause: errOzTimeout, dialed: true, connected: true}), Error{oz.Timeout, FaultOz, errOzTimeout}},
		{"a dial or handshake that hangs", tried(attempted{cause: errOzTimeout, dialed: true}), Error{oz.Unreachable, FaultOz, errNoConnection}},
		{"waiting for a connection", tried(attempted{cause: errOzTimeout}), Error{oz.Timeout, FaultNobody, errOzTimeout}},
		{"waiting for an access token", attempted{cause: errOzTimeout}, Error{oz.Timeout, FaultNobody, errOzTimeout}},
		{"the caller has a deadline", tried(attempted{cause: context.DeadlineExceeded, sent: true}), Error{oz.Timeout, FaultNobody, nil}},

		{"refused", tried(attempted{err: reset, dialed: true}), Error{oz.Unreachable, FaultOz, reset}},
		{"a dial that times out", tried(attempted{err: slow, dialed: true}), Error{oz.Unreachable, FaultOz, slow}},
		{"hung up before anything was sent", tried(attempted{err: io.EOF, dialed: true, connected: true}), Error{oz.Unreachable, FaultOz, nil}},
		{"refused for its certificate, when TLS 1.3 had begun", tried(attempted{err: fmt.Errorf("write: %w", alert(116)), connected: true, sent: true}), Error{oz.Unreachable, FaultOz, nil}},
		{"refused for an unknown authority", tried(attempted{err: alert(48), connected: true, sent: true}), Error{oz.Unreachable, FaultOz, nil}},
		{"another alert", tried(attempted{err: alert(80), connected: true, sent: true}), Error{oz.ConnectionLost, FaultOz, nil}},
		{"no upstream", attempted{err: errors.New("no upstreams available")}, Error{oz.Unreachable, FaultNobody, nil}},
		{"all upstreams full", attempted{err: errAllFull}, Error{oz.Overloaded, FaultNobody, errAllFull}},

		{"lost", tried(attempted{err: reset, sent: true, elapsed: 10 * time.Second, waited: 5 * time.Second}), Error{oz.ConnectionLost, FaultOz, reset}},
		{"lost after waiting for the client", tried(attempted{err: reset, sent: true, elapsed: 10 * time.Second, waited: 5*time.Second + 1}), Error{oz.ConnectionLost, FaultNobody, reset}},
		{"a handshake under a name of the client's", tried(attempted{err: errRequestName, dialed: true}), Error{oz.Unreachable, FaultNobody, errRequestName}},
		{"lost after waiting for a moment", tried(attempted{err: reset, sent: true, elapsed: 20 * time.Millisecond, waited: 19 * time.Millisecond}), Error{oz.ConnectionLost, FaultOz, reset}},
		{"lost while the client is silent", tried(attempted{err: reset, sent: true, elapsed: 10 * time.Second, waited: time.Second, body: upload.State{Silence: time.Second}}), Error{oz.ConnectionLost, FaultNobody, reset}},
		{"lost while the client is silent for a moment", tried(attempted{err: reset, sent: true, elapsed: 10 * time.Second, waited: time.Second, body: upload.State{Silence: time.Second - 1}}), Error{oz.ConnectionLost, FaultOz, reset}},
		{"lost at once", tried(attempted{err: io.EOF, sent: true}), Error{oz.ConnectionLost, FaultOz, nil}},
		{"canceled by the transport", tried(attempted{err: context.Canceled, sent: true}), Error{oz.ConnectionLost, FaultOz, nil}},
		{"the operator's transport is out of patience", tried(attempted{err: slow, sent: true, elapsed: 10 * time.Second, waited: 9 * time.Second}), Error{oz.Timeout, FaultOz, slow}},

		{"not JSON", tried(attempted{err: fmt.Errorf("%w: unexpected character", oz.ErrMalformed), sent: true, answered: true}), Error{oz.MalformedAnswer, FaultOz, oz.ErrMalformed}},
		{"cut", tried(attempted{err: io.ErrUnexpectedEOF, sent: true, answered: true}), Error{oz.MalformedAnswer, FaultOz, io.ErrUnexpectedEOF}},
		{"cut, while the client was slow", tried(attempted{err: io.ErrUnexpectedEOF, sent: true, answered: true, elapsed: 2, waited: 2}), Error{oz.MalformedAnswer, FaultOz, io.ErrUnexpectedEOF}},
		{"encoded", tried(attempted{err: errEncoded, sent: true, answered: true}), Error{oz.MalformedAnswer, FaultOz, errEncoded}},
		{"101", tried(attempted{err: errSwitching, sent: true, answered: true}), Error{oz.UnexpectedStatus, FaultOz, errSwitching}},
		{"a folder too early", tried(attempted{err: errEarlyFolder, sent: true, answered: true}), Error{oz.UnexpectedStatus, FaultNobody, errEarlyFolder}},
		{"nested too deeply", tried(attempted{err: fmt.Errorf("%w: %w", oz.ErrMalformed, oz.ErrTooDeep), sent: true, answered: true}), Error{oz.MalformedAnswer, FaultNobody, oz.ErrTooDeep}},
		{"too large after pruning", tried(attempted{err: oz.ErrTooLarge, sent: true, answered: true}), Error{oz.MalformedAnswer, FaultNobody, oz.ErrTooLarge}},
		{"larger than max_answer", tried(attempted{err: errAnswerTooLarge, sent: true, answered: true}), Error{oz.MalformedAnswer, FaultNobody, errAnswerTooLarge}},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := blame(test.a)
			wantError(t, e, test.want)
			err := e.forProxy()
			if counts := !errors.Is(err, context.Canceled); counts != (test.want.Fault == FaultOz) {
				t.Errorf("%v: counts against the upstream: %v", err, counts)
			}
			var dial reverseproxy.DialError
			if again := errors.As(err, &dial); again != (test.want.Fault == FaultOz && test.want.Reason == oz.Unreachable) {
				t.Errorf("%v: another attempt is allowed: %v", err, again)
			}
			if test.want.Reason != "" && !strings.Contains(err.Error(), string(test.want.Reason)+": ") {
				t.Errorf("reverse_proxy's log says %q", err)
			}
		})
	}
}

// timeoutError is one of the many that only say that they are one.
type timeoutError struct{}

func (timeoutError) Error() string   { return "with a canary in it" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return false }

// An error of the connection is told by what it is and not by its text, in
// which net/http quotes what the peer sent.
func TestPlainErrors(t *testing.T) {
	const canary = "canary"
	reset := &net.OpError{Op: "read", Net: "tcp", Err: errors.New("connection reset by peer")}
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("%s: %w", canary, reset), "read tcp: connection reset by peer"},
		{fmt.Errorf("%s: %w", canary, io.ErrUnexpectedEOF), "connection closed"},
		{fmt.Errorf("%s: %w", canary, io.EOF), "connection closed"},
		{fmt.Errorf("%s: %w", canary, context.DeadlineExceeded), "context deadline exceeded"},
		{fmt.Errorf("%s: %w", canary, timeoutError{}), "timed out"},
		{errors.New(canary), "transport error of type *errors.errorString"},
		{fmt.Errorf("%s: %w", canary, context.Canceled), "transport error of type *fmt.wrapError"},
	} {
		if got := plain(test.err).Error(); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
		if errors.Is(plain(test.err), context.Canceled) {
			t.Errorf("%v: looks as if the client had ended it", test.err)
		}
	}
}

// What net/http itself says of answers that make no sense never comes through.
func TestPlainNeverQuotesTheAnswer(t *testing.T) {
	const canary = "Z2VoZWlt"
	for _, answer := range []string{
		canary + "\r\n\r\n",
		"HTTP/1.1 " + canary + " OK\r\n\r\n",
		"HTTP/1.1 201 Created\r\n" + canary + "\r\n\r\n",
		"HTTP/1.1 201 Created\r\nContent-Length: " + canary + "\r\n\r\n",
		"HTTP/1.1 201 Created\r\nTransfer-Encoding: " + canary + "\r\n\r\n",
	} {
		_, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
		if err == nil {
			t.Fatalf("%q was read", answer)
		}
		if got := plain(err).Error(); strings.Contains(got, canary) {
			t.Errorf("%q: %s", answer, got)
		}
	}
}

// nested is a folder with so many more arrays open in it.
func nested(depth int) string {
	return `{"a": ` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + `}`
}

// An answer that is not fit to be read counts against the upstream. What a whole
// answer says does not, or any client could mark Oz as down by what it puts
// into its metadata, and the error says what is wrong and where.
func TestWhatCountsAgainstAnUpstream(t *testing.T) {
	for _, test := range []struct {
		name  string
		oz    roundTrip
		fails int
		err   string // empty: none
	}{
		{"success", answers(201, success()), 0, ""},
		{"a refused capsule", answers(400, `{"error_code": 14}`), 0, ""},
		{"busy", answers(503, ""), 0, ""},
		{"a page", answers(500, "<html>"), 0, ""},
		{"half an emoji", answers(201, `{"folder_id": "\ud83d"}`), 0, "bad syntax or UTF-8, after byte 12"},
		{"a duplicate name", answers(201, `{"a": 1, "a": 2}`), 0, "duplicate name, after byte 7"},
		{"bad UTF-8", answers(201, "{\"a\": \"\xff\"}"), 0, "after byte 4"},
		{"a bad escape", answers(201, `{"a": "\x"}`), 0, "after byte 4"},
		{"too deep", answers(201, nested(300)), 0, "nested too deeply"},
		{"more than 1 MiB", answers(201, padded(maxFolder+1)), 0, "too large after pruning"},
		{"more than max_answer", answers(201, padded(40<<20)), 0, "larger than max_answer"},
		{"not an object", answers(201, `[]`), 0, "not an object"},
		{"not JSON", answers(201, `<html>`), 1, "unexpected character"},
		{"cut", answers(201, success()[:100]), 1, "ended early"},
		{"101", answers(101, ""), 1, "101"},
		{"lost", fails(1, io.EOF), 1, "connection closed"},
		{"unreachable", fails(0, errors.New("refused")), 1, "refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := testOptions
			opts.KeepBestShot = test.name == "more than max_answer"
			c := clientWith(t, stubConfig(t, test.oz, "", `{"health_checks": {"passive": {"fail_duration": "1h", "max_fails": 5}}}`), opts)
			a, err := c.Analyze(t.Context(), nil, NewMemoryBody([]byte("capsule")), oz.Policy{}, nil)
			if got := c.proxy.Upstreams[0].Fails(); got != test.fails {
				t.Errorf("%d fails, want %d", got, test.fails)
			}
			e := asError(t, err)
			switch {
			case test.err == "":
				wantError(t, e, Error{})
				return
			case e == nil || !strings.Contains(e.Err.Error(), test.err):
				t.Fatalf("because of %v", e)
			}
			if a.Verdict.Decision != oz.Unavailable || a.Verdict.Reason != e.Reason || a.Folder != nil || a.BestShots != nil {
				t.Errorf("%+v", a)
			}
			if (e.Fault == FaultOz) != (test.fails > 0) {
				t.Errorf("the fault is %d", e.Fault)
			}
		})
	}
}
