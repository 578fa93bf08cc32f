package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// outcome is what came of a capsule.
type outcome struct {
	verdict oz.Verdict
	folder  []byte // the pruned answer, when it is a folder
	shots   []oz.BestShot
	match   *match // face matching, when it was tried

	// clientFault is set when the client did not deliver the capsule.
	// Nothing was decided then.
	clientFault error

	err          error // why, for the log
	answer       answer
	upstream     string
	tries        int
	noUpstream   bool // no Oz upstream is up: 503, not 502
	clientGone   bool // the client left in the meantime
	unread       bool // of the capsule there is more on the connection, or may be
	interrupted  bool // the request's context is of no use any more: see capsule.detach
	capsuleBytes int64
	uploadTime   time.Duration
	queueTime    time.Duration // waiting for capacity
	ozTime       time.Duration // last capsule byte to whole answer
	busy         refusal       // this gateway had no capacity, and why
}

// exchange is one capsule's way to Oz and back. Its fields belong to the
// request's goroutine; what the transport's and the timer's goroutines touch
// is behind mu.
type exchange struct {
	h            *Handler
	capsule      source
	requirements []oz.Requirement
	start        time.Time
	ctx          context.Context
	cancel       context.CancelCauseFunc
	call         *call
	out          outcome

	mu         sync.Mutex
	timer      *time.Timer
	stall      *time.Timer
	uploadedAt time.Time
}

// exchange sends a capsule to Oz and judges the answer.
func (h *Handler) exchange(r *http.Request, c source, length int64) outcome {
	x := &exchange{
		h:            h,
		capsule:      c,
		requirements: h.requirements(r),
		start:        time.Now(),
	}
	x.call = &call{
		method: http.MethodPost,
		path:   oz.FoldersPath,
		header: http.Header{"Content-Type": {capsuleMediaType}},
		body:   x.capsule,
		length: length,
		read:   x.receive,
		blame:  x.clientFault,
		paused: x.paused,
	}
	forget, stop := x.watch(r)
	defer stop()
	x.call.onLost = func() { // what detach does to the request's context is not the client's leaving
		forget()
		x.capsule.detach()
	}

	h.link.authorized(x.ctx, r, x.call)
	x.out.clientGone = r.Context().Err() != nil && !x.capsule.state().interrupted
	forget()
	x.takeBack(r)
	return x.outcome()
}

// takeBack takes the capsule from the transport. On HTTP/3 an answer has to be
// followed by what is left of the body: see drain.
func (x *exchange) takeBack(r *http.Request) {
	if r.ProtoMajor == 3 {
		x.capsule.disown()
	} else {
		x.capsule.detach()
	}
}

// watch starts the clocks. The exchange has a context of its own, since a
// client that leaves ends it only while the upload lasts (client_gone finish).
func (x *exchange) watch(r *http.Request) (forget func() bool, stop func()) {
	x.ctx, x.cancel = context.WithCancelCause(context.WithoutCancel(r.Context()))
	x.capsule.whenDone(x.uploaded)
	limit := x.h.UploadTimeout
	if x.capsule.state().received {
		limit = x.h.Timeout // all of the upload is Oz's
	}
	x.timer = time.AfterFunc(time.Duration(limit), x.uploadLate)
	x.mu.Lock() // the timer may fire before it is known by its name
	x.stall = time.AfterFunc(time.Duration(x.h.Timeout), x.stalled)
	x.mu.Unlock()
	forget = context.AfterFunc(r.Context(), x.clientLeft)
	return forget, func() {
		forget()
		x.cancel(nil)
		x.mu.Lock()
		defer x.mu.Unlock()
		x.timer.Stop()
		x.stall.Stop()
	}
}

// stalled looks whether Oz has stopped to take what the client sends.
func (x *exchange) stalled() {
	s, limit := x.capsule.state(), time.Duration(x.h.Timeout)
	switch {
	case s.done:
	case s.untaken >= limit:
		x.cancel(errOzTimeout)
	default:
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.ctx.Err() == nil { // not stopped in the meantime
			x.stall.Reset(limit - s.untaken)
		}
	}
}

// uploaded runs with the last byte of the capsule: from now on it is Oz's time.
func (x *exchange) uploaded() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.timer.Stop()
	x.uploadedAt = time.Now()
	if x.ctx.Err() != nil {
		return
	}
	x.timer = time.AfterFunc(time.Duration(x.h.Timeout), func() { x.cancel(errOzTimeout) })
}

// uploadLate tells a client that is slow to send from an Oz that is slow to
// take, by whom the time was spent waiting for.
func (x *exchange) uploadLate() {
	switch s := x.capsule.state(); {
	case s.done:
	case s.waited > time.Since(x.start)/2:
		x.cancel(errUploadTimeout)
	default:
		x.cancel(errOzTimeout)
	}
}

func (x *exchange) clientLeft() {
	if x.h.ClientGone == clientGoneCancel || !x.capsule.state().received {
		x.cancel(errClientGone)
	}
}

// clientFault is what the client did to end the exchange, if it did.
func (x *exchange) clientFault() error {
	if s := x.capsule.state(); s.fault != nil {
		return s.fault
	}
	if cause := context.Cause(x.ctx); errors.Is(cause, errClientGone) || errors.Is(cause, errUploadTimeout) {
		return cause
	}
	return nil
}

// longPause is how long a client may send nothing before it is held to have
// kept Oz waiting.
const longPause = time.Second

// paused reports whether the client was silent for long, before its capsule was
// whole.
func (x *exchange) paused() bool {
	s := x.capsule.state()
	return !s.done && s.silence >= longPause
}

var errEarlyFolder = errors.New("oz answered with a folder before it had the whole capsule")

// receive reads Oz's answer and judges it. An error is this upstream's fault.
func (x *exchange) receive(res *http.Response) error {
	if isFolder(res.StatusCode) && !x.capsule.state().done {
		// What it says cannot be about this capsule.
		x.out.answer = answer{status: res.StatusCode}
		return &fault{oz.UnexpectedStatus, errEarlyFolder}
	}
	reader := answerReader{max: x.h.MaxAnswer, keep: x.h.BestShot == bestShotKeep, collect: x.h.collectsShots()}
	a, err := reader.read(res)
	x.out.answer = a
	if err != nil {
		return err
	}
	v := x.h.policy.Judge(a.status, a.doc, x.requirements)
	x.call.noteAuth(a.status, v.Error)
	if v.Reason == oz.MalformedAnswer {
		return errNotStrict
	}
	x.out.verdict = v
	if v.Folder != nil {
		x.out.folder, x.out.shots = a.doc, a.shots
	}
	return nil
}

var errNotStrict = errors.New("not a strict JSON folder")

// outcome is called when the transport has lost the capsule, so that nothing
// moves any more but a read that nobody waits for.
func (x *exchange) outcome() outcome {
	o, c, s := x.out, x.call, x.capsule.state()
	x.mu.Lock()
	defer x.mu.Unlock()

	o.capsuleBytes, o.interrupted, o.unread = s.read, s.interrupted, s.interrupted || !s.received
	end := time.Now()
	if x.uploadedAt.IsZero() {
		o.uploadTime = end.Sub(x.start)
	} else {
		o.uploadTime, o.ozTime = x.uploadedAt.Sub(x.start), end.Sub(x.uploadedAt)
	}
	o.upstream, o.tries, o.noUpstream = c.upstream, c.tries, c.noUpstream
	o.clientFault = c.clientFault
	o.clientGone = o.clientGone || errors.Is(o.clientFault, errClientGone)
	if c.fault != nil {
		o.verdict, o.err, o.folder, o.shots = oz.ReasonVerdict(c.fault.reason), c.fault.err, nil, nil
	}
	if o.verdict.Decision == "" && o.clientFault == nil {
		o.verdict, o.err = oz.ReasonVerdict(oz.Unreachable), errNothingCame
	}
	return o
}

// errNothingCame stands for what cannot happen, and if it does is no decision.
var errNothingCame = errors.New("the exchange ended without a result")
