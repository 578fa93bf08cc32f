package caddymodule

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// appGrace is how long the app has for a decision when its client has left.
const appGrace = 30 * time.Second

// delivery is the body that the app gets in place of the capsule: the folder,
// less the best shot and what `strip` names, or, where there is no folder that
// it may see, the problem document that the client would have had.
func (h *Handler) delivery(o outcome) (body []byte, mediaType string, err error) {
	if !reachesApp(o.verdict.Decision) {
		return verdictProblem(o).document(), problemMediaType, nil
	}
	body, err = oz.Strip(o.folder, h.stripPaths)
	return body, "application/json", err
}

// handedOn is r as the app gets it: the client's own request with our body and
// our header fields. It has a header of its own, so that an error route that
// runs later sees what the client sent.
func handedOn(r *http.Request, p *passage, body []byte, mediaType string) *http.Request {
	h := r.Header.Clone()
	for _, name := range staleHeaders {
		delete(h, name)
	}
	h["Content-Type"] = []string{mediaType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	p.facts.setHeader(h)

	r.Header = h
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	r.TransferEncoding = nil
	r.Trailer = nil
	return r
}

// appContext is the context for what comes after the decision. With
// client_gone finish it outlives a client that leaves, by appGrace: the
// analysis is paid for and its token spent, so the app has to hear of it.
func (h *Handler) appContext(r *http.Request, o outcome) (ctx context.Context, stop func()) {
	if h.ClientGone == clientGoneCancel && !o.interrupted {
		return r.Context(), func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	forget := context.AfterFunc(r.Context(), func() {
		timer := time.NewTimer(appGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		forget()
		cancel()
	}
}
