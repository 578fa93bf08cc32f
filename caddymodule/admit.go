package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// decide gets a decision for a capsule, when there is capacity for it.
func (h *Handler) decide(r *http.Request, next caddyhttp.Handler, c *capsule) outcome {
	switch {
	case h.Capacity == nil:
		return h.analyze(r, next, c, r.ContentLength)
	case h.Capacity.Memory > 0:
		return h.decideHeld(r, next, c)
	}
	return h.inSlot(r, time.Duration(h.Capacity.Wait), func() outcome {
		return h.analyze(r, next, c, r.ContentLength)
	}, notRead)
}

// notRead is the outcome for a capsule of which nothing was read.
func notRead() outcome { return outcome{unread: true} }

// decideHeld receives the capsule before it takes a slot.
func (h *Handler) decideHeld(r *http.Request, next caddyhttp.Handler, c *capsule) outcome {
	leave, err := h.gate.gate.admit(*h.Capacity)
	if err != nil {
		return notRead().ended(err)
	}
	defer leave()

	wait := time.Duration(h.Capacity.Wait)
	start := time.Now()
	held, err := h.gate.gate.receive(c, time.Duration(h.UploadTimeout), wait)
	received := func() outcome {
		s := c.state()
		return outcome{capsuleBytes: s.read, unread: !s.done || s.interrupted, interrupted: s.interrupted, uploadTime: time.Since(start)}
	}
	if err != nil {
		return received().ended(err)
	}
	defer held.detach()
	if held.interrupted { // by this module: that the request's context has ended says nothing of the client
		r = r.WithContext(context.WithoutCancel(r.Context()))
	}
	upload := time.Since(start) - held.waited
	o := h.inSlot(r, wait-held.waited, func() outcome { return h.analyze(r, next, held, held.size) }, received)
	o.uploadTime, o.queueTime = upload, o.queueTime+held.waited
	return o
}

// inSlot does work while it holds a slot. Without one the outcome is that of
// idle, and why.
func (h *Handler) inSlot(r *http.Request, wait time.Duration, work, idle func() outcome) outcome {
	h.metrics.queued.Inc()
	release, waited, err := h.gate.enterSlot(h.waiting(r), max(wait, 0))
	h.metrics.queued.Dec()
	if err != nil {
		o := idle().ended(err)
		o.queueTime = waited
		return o
	}
	defer release()
	o := work()
	o.queueTime = waited
	return o
}

// analyze is all that Oz has to do for a capsule.
func (h *Handler) analyze(r *http.Request, next caddyhttp.Handler, c source, length int64) outcome {
	defer h.metrics.started()()
	o := h.exchange(r, c, length)
	if h.Biometry != nil && o.verdict.Decision == oz.Success {
		o.match = h.matchFaces(r, next, o)
	}
	return o.combine()
}

// ended is o for a capsule that did not come to Oz.
func (o outcome) ended(err error) outcome {
	var busy *busyError
	switch {
	case errors.As(err, &busy):
		o.busy = busy.cause
	case errors.Is(err, errNoMemory):
		busy = &busyError{cause: refusalMemory}
		o.busy = refusalMemory
	default:
		o.clientFault = err
		return o
	}
	o.verdict, o.err = oz.ReasonVerdict(oz.Overloaded), busy
	if busy.retryAfter > 0 {
		o.answer.retryAfter = strconv.Itoa(seconds(busy.retryAfter))
	}
	return o
}
