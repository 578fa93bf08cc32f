package caddymodule

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// forwards reports whether a decision may reach the app, or routes in front of
// it. It is the only place of this condition.
func (h *Handler) forwards(d oz.Decision) bool {
	_, routed := h.routesFor(d)
	return routed || reachesApp(d) || slices.Contains(h.Pass, string(d))
}

func (h *Handler) routesFor(d oz.Decision) (caddyhttp.RouteList, bool) {
	for _, dr := range h.HandleDecision {
		if slices.Contains(dr.Decisions, string(d)) {
			return dr.Routes, true
		}
	}
	return nil, false
}

// forward passes the request with doc to the app, through the handle_decision
// routes for its decision if there are any.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, res *Result, doc document) error {
	if routes, routed := h.routesFor(res.verdict.Decision); routed {
		next = routes.Compile(next)
	}
	sent := withOwnHeader(r)
	// Error routes, and handlers around this one, see what the client sent: a
	// decision is for the handlers after it, and for them once.
	defer func() {
		clear(r.Header)
		maps.Copy(r.Header, sent.Header)
	}()
	delivered := deliver(r, res, doc)
	if !res.upload.Unread {
		return h.serveApp(w, delivered, next)
	}
	upload.CloseAfter(w, r)
	answer := hold(w)
	if err := h.serveApp(answer, delivered, next); err != nil {
		return err
	}
	answer.finishUnread(w, sent) // the client may still be sending its capsule
	return nil
}

// withOwnHeader returns a copy of r that keeps the header, and the body, while
// those of r are changed. A client that may still be sending is lingered for by
// them.
func withOwnHeader(r *http.Request) *http.Request {
	kept := *r
	kept.Header = maps.Clone(r.Header)
	return &kept
}

func (h *Handler) serveApp(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	answer := &appAnswer{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	err := next.ServeHTTP(answer, r)
	if err == nil && redirectsToItself(answer, r) {
		h.logger.Warn("the app redirects a decided request, and the client would post its capsule again; match the path that the app answers without a redirect",
			zap.Int("status", answer.status))
	}
	return err
}

// document is the app's body.
type document struct {
	body      []byte
	mediaType string
	folder    []byte // the body, or the part of it that is the folder
	seal      string // empty without one
}

// document makes the app's body, and seals it if seals are asked for.
func (h *Handler) document(r *http.Request, res *Result) (document, error) {
	doc, err := h.body(res)
	if err == nil {
		doc.seal, err = h.Seal.sign(r, res, doc.folder)
	}
	return doc, err
}

// body makes the app's body: the folder without the best shot and what `strip`
// names. A decision that has no folder for the app comes with the problem
// document that the client would have got.
func (h *Handler) body(res *Result) (document, error) {
	if !reachesApp(res.verdict.Decision) {
		body := h.problem(res).document()
		return document{body: body, mediaType: problemMediaType, folder: body}, nil
	}
	body, err := h.folders(res)
	if err != nil {
		return document{}, err
	}
	if h.BestShot == bestShotAttach {
		return attached(body, res.liveness.BestShots), nil
	}
	return document{body: body, mediaType: "application/json", folder: body}, nil
}

// folders returns what Oz said, as JSON: the folder, or with face matching both.
func (h *Handler) folders(res *Result) ([]byte, error) {
	liveness, err := oz.Strip(res.liveness.Folder, h.stripPaths)
	if err != nil || h.Biometry == nil {
		return liveness, err
	}
	biometry := []byte("null")
	if res.match != nil && res.match.answer.Folder != nil {
		if biometry, err = oz.Strip(res.match.answer.Folder, h.stripPaths); err != nil {
			return nil, err
		}
	}
	return slices.Concat([]byte(`{"liveness":`), liveness, []byte(`,"biometry":`), biometry, []byte(`}`)), nil
}

// Words for X-Oz-Best-Shot.
const (
	bestShotAttached = "attached"
	bestShotAbsent   = "absent"
	bestShotUnusable = "unusable"
)

func bestShotWord(shots []oz.BestShot) string {
	switch {
	case len(shots) == 0:
		return bestShotAbsent
	case unusable(shots) == len(shots):
		return bestShotUnusable
	}
	return bestShotAttached
}

// attached makes a form of the folder and the best shots that could be decoded.
// Their parts have different names, since of parts with one name PHP and Rack
// keep only the last.
func attached(folder []byte, shots []oz.BestShot) document {
	size := len(folder)
	for _, shot := range shots {
		size += len(shot.JPEG) + 256
	}
	m := oz.NewMultipart(size)
	m.Add("folder", "", "application/json", folder)
	name, n := "best_shot", 1
	for _, shot := range shots {
		if shot.JPEG == nil {
			continue
		}
		m.Add(name, name+".jpeg", "image/jpeg", shot.JPEG)
		n++
		name = "best_shot_" + strconv.Itoa(n)
	}
	m.Close()
	return document{body: m.Bytes(), mediaType: m.ContentType, folder: folder}
}

// deliver turns r into the request that the app gets: the client's own with
// our body and our header fields. The header is changed in place, as
// forward_auth does it, so that placeholders such as {header.X-Oz-Decision},
// which read the map of the server's request, are those of the delivered one.
func deliver(r *http.Request, res *Result, doc document) *http.Request {
	dropStale(r.Header)
	r.Header["Content-Type"] = []string{doc.mediaType}
	r.Header["Content-Length"] = []string{strconv.Itoa(len(doc.body))}
	res.setHeader(r.Header)
	if doc.seal != "" {
		r.Header[headerSeal] = []string{doc.seal}
	}

	d := r.WithContext(r.Context())
	d.Body = io.NopCloser(bytes.NewReader(doc.body))
	d.ContentLength = int64(len(doc.body))
	d.TransferEncoding = nil
	d.Trailer = nil
	return d
}

// stale reports whether a field describes the capsule, or the connection it
// came on, and would lie about the body that the app gets instead. Names are
// folded: some app servers read Content_Type as Content-Type.
func stale(name string) bool {
	switch name = folded(name); name {
	case "connection", "digest", "expect", "range", "repr-digest", "trailer", "transfer-encoding":
		return true
	}
	return strings.HasPrefix(name, "content-")
}

func dropStale(h http.Header) {
	for name := range h {
		if stale(name) {
			delete(h, name)
		}
	}
}

// redirectsToItself reports whether the app redirects a decided request to
// itself, such as from /verify to /verify/. The client would post the same
// capsule again, to Oz, which refuses it, or past the matcher to the app.
func redirectsToItself(a *appAnswer, r *http.Request) bool {
	switch a.status {
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		location, err := url.Parse(a.Header().Get("Location"))
		return err == nil && (location.Host == "" || strings.EqualFold(location.Host, r.Host))
	}
	return false
}
