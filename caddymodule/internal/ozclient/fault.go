package ozclient

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// Fault says whose doing it was that a call failed.
type Fault int

const (
	// FaultNobody counts against nobody: the upstream may be as well as ever.
	FaultNobody Fault = iota
	// FaultClient is the client's.
	FaultClient
	// FaultOz counts against the upstream in reverse_proxy's passive health checks.
	FaultOz
)

// Error is why a call gave no usable answer.
type Error struct {
	Reason oz.Reason // empty if the client is at fault: nothing was decided
	Fault  Fault
	Err    error // quotes nothing that a peer sent
}

func (e *Error) Error() string {
	if e.Reason == "" {
		return e.Err.Error()
	}
	return string(e.Reason) + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// forProxy returns e as reverse_proxy should see it. An error that wraps
// context.Canceled neither counts against the upstream nor is tried again; a
// DialError counts and may be tried elsewhere; any other counts. It is always a
// new error, since one of net/http may wrap context.Canceled by itself.
func (e *Error) forProxy() error {
	err := errors.New(e.Error())
	switch {
	case e.Fault != FaultOz:
		return canceled(err)
	case e.Reason == oz.Unreachable:
		return reverseproxy.NewDialError(err)
	}
	return err
}

func canceled(err error) error { return fmt.Errorf("%w: %w", context.Canceled, err) }

// ErrInvalidHeader is the client's: a value of its request makes a header field
// of the request to Oz that cannot be sent.
var ErrInvalidHeader = errors.New("a placeholder in header_up has a value that cannot stand in a header field")

var (
	// errOzTimeout is the cause of a context that ends because Oz exceeded its time.
	errOzTimeout    = errors.New("no whole answer within timeout")
	errNoConnection = errors.New("no connection within timeout")
	errAllFull      = errors.New("all upstreams are at their limit of requests")
	errSwitching    = errors.New("oz answered 101 Switching Protocols")
	errEarlyFolder  = errors.New("oz answered with a folder before it had the whole capsule")
)

// attempted is all that is known of a call, or of one attempt of it, that
// failed.
type attempted struct {
	err   error        // what it failed with
	cause error        // why the call's context has ended; nil if it has not
	body  upload.State // zero without a body
	tried bool         // an upstream was chosen

	dialed    bool // a connection was asked for
	connected bool // there was a connection to write to
	sent      bool // something of the call was taken, or may have been
	answered  bool // the head of an answer came

	elapsed time.Duration // since the call began
	waited  time.Duration // of that, for the client
}

// blame is the one place that says whose fault a failed call was.
//
// The client is asked first: what it did wrong ends calls in many ways, and
// must never mark Oz as down. An own clock comes next. What a whole answer says
// counts against nobody, since part of it is the device's words. Everything else
// is the upstream's, but for a connection that was lost after the client was
// waited for during most of the time, or has been silent: web servers give a
// request so many seconds in all, and hang up on slow clients rightly.
func blame(a attempted) *Error {
	switch {
	case a.body.Fault != nil:
		return &Error{Fault: FaultClient, Err: a.body.Fault}
	case errors.Is(a.err, ErrInvalidHeader):
		return &Error{Fault: FaultClient, Err: ErrInvalidHeader}
	case a.cause != nil:
		return a.ended()
	case a.answered:
		return blameAnswer(a.err)
	case !a.sent, isRefusedCertificate(a.err):
		return a.unsent()
	case isTimeout(a.err): // by options of the operator's transport
		return &Error{oz.Timeout, FaultOz, plain(a.err)}
	case a.waited >= longWait && a.waited > a.elapsed/2 || a.body.Silence >= longWait:
		return &Error{oz.ConnectionLost, FaultNobody, plain(a.err)}
	}
	return &Error{oz.ConnectionLost, FaultOz, plain(a.err)}
}

// longWait is how long a client must be waited for before a lost connection is
// blamed on it rather than on Oz: no server hangs up because of less. Without
// it, an Oz that resets the connection after a megabyte that came and went in a
// few milliseconds was not marked as down.
const longWait = time.Second

// clientCauses end a context when the client did something wrong. Plain
// cancellation is how net/http's server tells that a client has left.
var clientCauses = []error{
	upload.ErrGone, upload.ErrStalled, upload.ErrTimeout, upload.ErrSiteTimeout, upload.ErrTooLarge, upload.ErrShort,
}

// ended says whose doing it was that the call's context ended.
func (a attempted) ended() *Error {
	for _, cause := range clientCauses {
		if errors.Is(a.cause, cause) {
			return &Error{Fault: FaultClient, Err: cause}
		}
	}
	switch {
	case errors.Is(a.cause, context.Canceled):
		return &Error{Fault: FaultClient, Err: upload.ErrGone}
	case !errors.Is(a.cause, errOzTimeout):
		return &Error{oz.Timeout, FaultNobody, errors.New("the call was ended")}
	case a.dialed && !a.connected: // a dial or a TLS handshake that hangs
		return &Error{oz.Unreachable, FaultOz, errNoConnection}
	case a.sent || a.connected:
		return &Error{oz.Timeout, FaultOz, errOzTimeout}
	}
	// Waiting for an access token, or for a connection that others use.
	return &Error{oz.Timeout, FaultNobody, errOzTimeout}
}

// refusedCertificate are the alerts by which a TLS server refuses a client for
// its certificate (RFC 8446, 6.2). With TLS 1.3 they come when the handshake has
// ended for the client, and what it has sent since was taken by nobody.
var refusedCertificate = []tls.AlertError{42, 43, 44, 45, 46, 48, 49, 116}

// isRefusedCertificate goes by the text: the type of an alert that came over TCP
// isn't exported.
func isRefusedCertificate(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error" &&
		slices.ContainsFunc(refusedCertificate, func(alert tls.AlertError) bool { return alert.Error() == op.Err.Error() })
}

// unsent is for a dial or a TLS handshake that failed, or for no upstream at all.
func (a attempted) unsent() *Error {
	switch {
	case errors.Is(a.err, errAllFull):
		return &Error{oz.Overloaded, FaultNobody, errAllFull}
	case !a.tried, errors.Is(a.err, errRequestName):
		return &Error{oz.Unreachable, FaultNobody, a.err}
	case a.connected: // net/http may quote what the peer sent
		return &Error{oz.Unreachable, FaultOz, plain(a.err)}
	}
	return &Error{oz.Unreachable, FaultOz, a.err}
}

// blameAnswer is for an answer that can't be used.
func blameAnswer(err error) *Error {
	switch {
	case errors.Is(err, errEarlyFolder): // what it says can't be about this capsule
		return &Error{oz.UnexpectedStatus, FaultNobody, err}
	case errors.Is(err, errSwitching):
		return &Error{oz.UnexpectedStatus, FaultOz, err}
	case errors.Is(err, oz.ErrTooDeep), errors.Is(err, oz.ErrTooLarge), errors.Is(err, errAnswerTooLarge):
		return &Error{oz.MalformedAnswer, FaultNobody, err}
	}
	return &Error{oz.MalformedAnswer, FaultOz, err}
}

// plain returns err without what the peer sent: net/http quotes malformed
// answers, and a piece of Oz's answer may be a piece of a face.
func plain(err error) error {
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		return op
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("connection closed")
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case isTimeout(err):
		return errors.New("timed out")
	}
	return fmt.Errorf("transport error of type %T", err)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
