package caddymodule

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// appGrace is how long the app has for a decision when its client has left.
const appGrace = 30 * time.Second

// delivery is what the app gets in place of the capsule.
type delivery struct {
	body      []byte
	mediaType string
	bestShot  string // word for X-Oz-Best-Shot
}

// Words for X-Oz-Best-Shot.
const (
	bestShotAttached = "attached"
	bestShotAbsent   = "absent"
	bestShotUnusable = "unusable"
)

// deliver makes the app's body: the folder, less the best shot and what
// `strip` names, or, where there is no folder that it may see, the problem
// document that the client would have had.
func (h *Handler) deliver(o outcome) (delivery, error) {
	if !reachesApp(o.verdict.Decision) {
		return delivery{body: verdictProblem(o).document(), mediaType: problemMediaType}, nil
	}
	body, err := h.folders(o)
	if err != nil {
		return delivery{}, err
	}
	if h.BestShot == bestShotAttach {
		return attached(body, o.shots), nil
	}
	return delivery{body: body, mediaType: "application/json"}, nil
}

// folders is what Oz said, as JSON: the folder, or with face matching both.
func (h *Handler) folders(o outcome) ([]byte, error) {
	liveness, err := oz.Strip(o.folder, h.stripPaths)
	if err != nil || h.Biometry == nil {
		return liveness, err
	}
	biometry := []byte("null")
	if o.match != nil && o.match.answer.doc != nil {
		if biometry, err = oz.Strip(o.match.answer.doc, h.stripPaths); err != nil {
			return nil, err
		}
	}
	return slices.Concat([]byte(`{"liveness":`), liveness, []byte(`,"biometry":`), biometry, []byte(`}`)), nil
}

// attached is the folder with the best shots beside it. Those that could not
// be decoded stay away.
func attached(folder []byte, shots []oz.BestShot) delivery {
	size := len(folder)
	for _, shot := range shots {
		size += len(shot.JPEG) + 256
	}
	m := oz.NewMultipart(size)
	m.Add("folder", "", "application/json", folder)
	word := bestShotAbsent
	for _, shot := range shots {
		switch {
		case shot.JPEG != nil:
			m.Add("best_shot", "best_shot.jpeg", "image/jpeg", shot.JPEG)
			word = bestShotAttached
		case word == bestShotAbsent:
			word = bestShotUnusable
		}
	}
	m.Close()
	return delivery{body: m.Bytes(), mediaType: m.ContentType, bestShot: word}
}

// handedOn is r as the app gets it: the client's own request with our body and
// our header fields. It has a header of its own, so that an error route that
// runs later sees what the client sent.
func handedOn(r *http.Request, p *passage, d delivery) *http.Request {
	h := r.Header.Clone()
	for _, name := range staleHeaders {
		delete(h, name)
	}
	h["Content-Type"] = []string{d.mediaType}
	h["Content-Length"] = []string{strconv.Itoa(len(d.body))}
	p.facts.setHeader(h)
	if d.bestShot != "" {
		h[headerBestShot] = []string{d.bestShot}
	}

	r.Header = h
	r.Body = io.NopCloser(bytes.NewReader(d.body))
	r.ContentLength = int64(len(d.body))
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
