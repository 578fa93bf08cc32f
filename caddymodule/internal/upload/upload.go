// Package upload receives a client's body: streamed to the upstream or
// buffered in memory, by one rule of progress, within slots, a queue and a
// memory limit that handlers share.
//
// A handler makes a [Stream] of the request's body, asks a [Gate] to let it
// pass, gives the [Body] of the [Admission] to the upstream, and calls
// [Stream.End] before it returns. The [Lifetime] says how long that work goes
// on after the client has left, and [Linger] reads what the handler did not.
package upload

import (
	"context"
	"errors"
	"hash"
	"io"
	"time"
)

// What a client can do wrong while it uploads. None of it is an upstream's
// fault. A *http.MaxBytesError of the site's request_body directive passes
// through as it is.
var (
	ErrGone        = errors.New("client left")
	ErrStalled     = errors.New("upload made no progress")
	ErrTimeout     = errors.New("capsule not uploaded within upload_timeout")
	ErrSiteTimeout = errors.New("the site's own read timeout ended the upload")
	ErrTooLarge    = errors.New("capsule larger than max_capsule")
	ErrShort       = errors.New("capsule shorter than its Content-Length")
	// ErrUnreadable stands for each error of bad framing: net/http quotes the
	// line of a malformed trailer, and quic-go the reason of a peer that closes
	// its connection. Either would be the client's text in a log.
	ErrUnreadable = errors.New("capsule cut off or framed wrongly")
)

// ErrStopped is what a body that was stopped reads as.
var ErrStopped = errors.New("upload: body stopped")

// Limits of one upload. Zero is no limit.
type Limits struct {
	MaxBytes int64
	Timeout  time.Duration // of waiting for the client, in all

	// Digest, if there is one, is given each byte that comes from the client
	// once, in order. After Received it is complete and left alone.
	Digest hash.Hash
	// Admit, if there is one, is asked when a buffered body is complete, before
	// it waits for a slot. Its error refuses the body. A streamed body is already
	// at the upstream by then, so that nobody asks.
	Admit func(context.Context) error
}

// Body is a capsule on its way to the upstream.
type Body interface {
	io.ReadCloser
	Length() int64 // -1: unknown
	State() State
	// Stop takes the body away from its reader: later reads fail with
	// ErrStopped. A read in progress is left to end by itself.
	Stop()
}

// State is what is known of an upload at this moment.
type State struct {
	Received bool          // the client has sent all of it
	SentAt   time.Time     // when the last byte was read on the upstream's behalf; zero before
	Bytes    int64         // received from the client
	Waited   time.Duration // for the client, in all, a read in progress included
	Silence  time.Duration // how long a read in progress, or the one that timed out, has waited
	Untaken  time.Duration // since the upstream took the last bytes, if it has not asked for more
	Unread   bool          // part of the body is, or may be, still unread on the connection, or the connection can't be used again
	Fault    error         // what the client did wrong
}

// Interface guard
var _ Body = (*Stream)(nil)
