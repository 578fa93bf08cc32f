package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// Biometry is face matching: step 4 of the vendor's guide. It runs after a
// liveness SUCCESS and no other decision. The best shot (of QUALITY, and the
// first that can be used, should there be several) and a reference photo of the
// user go to Oz in a call of their own, and the worse of the two results
// decides. The app's body is then
//
//	{"liveness": <folder>, "biometry": <folder or null>}
//
// and `X-Oz-Biometry` is set.
type Biometry struct {
	// Where the app has the reference photo, as a path with an optional query,
	// such as `/profile/photo`. It is asked for inside of Caddy, by a GET to the
	// handlers behind this one, with the header of the request that brought the
	// capsule: the user's own cookies decide whose photo it is. Placeholders
	// are allowed; a value stays one segment of the path. JPEG and PNG are taken. The app answers 404 when it has no photo.
	// Required.
	Reference string `json:"reference"`

	// The tag that both images get. Default: `photo_selfie`.
	Tag string `json:"tag,omitempty"`

	// The largest reference photo taken, in bytes. Default: 10485760 (10 MiB).
	MaxReference int64 `json:"max_reference,omitempty"`
}

const (
	defaultTag          = "photo_selfie"
	defaultMaxReference = 10 << 20
	// referenceTimeout is how long the app has for the reference photo.
	referenceTimeout = 10 * time.Second
)

func (b *Biometry) setDefaults() {
	if b == nil {
		return
	}
	setDefault(&b.Tag, defaultTag)
	setDefault(&b.MaxReference, defaultMaxReference)
}

func (b *Biometry) validate() error {
	if b == nil {
		return nil
	}
	if err := checkReference(b.Reference); err != nil {
		return fmt.Errorf("biometry: reference: %w", err)
	}
	if err := checkTag(b.Tag); err != nil {
		return fmt.Errorf("biometry: tag: %w", err)
	}
	if b.MaxReference <= 0 {
		return errors.New("biometry: max_reference: must be greater than zero")
	}
	return nil
}

func (h *Handler) validateBiometry() error { return h.Biometry.validate() }

func checkReference(s string) error {
	if !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || strings.ContainsAny(s, "# \\") {
		return fmt.Errorf("%q is not a path of the app, such as /profile/photo", s)
	}
	return nil
}

func checkTag(s string) error {
	if s == "" || headerValue(s) == "" {
		return fmt.Errorf("%q is not a tag such as photo_selfie", s)
	}
	return nil
}

// collectsShots reports whether best shots have to be decoded.
func (h *Handler) collectsShots() bool { return h.BestShot == bestShotAttach || h.Biometry != nil }

// match is what came of face matching.
type match struct {
	verdict       oz.Verdict
	answer        answer
	err           error
	clientFault   error // nothing was decided: the client left, and that counts here
	call          *call // nil if Oz was not asked
	referenceTime time.Duration
	ozTime        time.Duration
}

// matchFaces compares the best shot with the reference photo. The capsule is
// spent, so a client that leaves now ends it only with client_gone cancel.
func (h *Handler) matchFaces(r *http.Request, next caddyhttp.Handler, o outcome) *match {
	shot := firstOfQuality(o)
	if shot == nil {
		return &match{verdict: oz.ReasonVerdict(oz.BestShotMissing)}
	}
	ctx, stop := h.lasting(r, o)
	defer stop()

	start := time.Now()
	photo, err := h.reference(ctx, r, next)
	m := &match{referenceTime: time.Since(start)}
	if err != nil {
		m.unmatched(err)
	} else {
		start = time.Now()
		h.askForMatch(ctx, r, m, oz.MatchRequest(h.Biometry.Tag, photo, shot))
		m.ozTime = time.Since(start)
	}
	if ctx.Err() != nil {
		m.clientFault = errClientGone
	}
	return m
}

// firstOfQuality is the one best shot that is matched.
func firstOfQuality(o outcome) []byte {
	for _, shot := range o.shots {
		if shot.JPEG != nil && o.verdict.Folder.TypeOf(shot.Entry) == oz.Quality {
			return shot.JPEG
		}
	}
	return nil
}

// lasting is a context for work that a client who leaves ends only with
// client_gone cancel.
func (h *Handler) lasting(r *http.Request, o outcome) (context.Context, context.CancelFunc) {
	if h.ClientGone == clientGoneCancel && !o.interrupted {
		return context.WithCancel(r.Context())
	}
	return context.WithCancel(context.WithoutCancel(r.Context()))
}

// unmatched is for a reference photo that cannot be had.
func (m *match) unmatched(err error) {
	f := new(fault)
	if !errors.As(err, &f) {
		f = &fault{oz.ReferenceUnavailable, err}
	}
	m.verdict, m.err = oz.ReasonVerdict(f.reason), f.err
}

// askForMatch sends both images to Oz. The parent context ends only with a
// client whose leaving counts.
func (h *Handler) askForMatch(parent context.Context, r *http.Request, m *match, body *oz.Multipart) {
	ctx, cancel := context.WithTimeoutCause(parent, time.Duration(h.Timeout), errOzTimeout)
	defer cancel()
	c := &call{
		method: http.MethodPost,
		path:   oz.FoldersPath,
		header: http.Header{"Content-Type": {body.ContentType}},
		body:   body.Reader(),
		length: body.Length(),
		blame: func() error {
			if parent.Err() != nil {
				return errClientGone
			}
			return nil
		},
	}
	m.call = c
	c.read = func(res *http.Response) (err error) {
		reader := answerReader{max: h.MaxAnswer, keep: h.BestShot == bestShotKeep}
		if m.answer, err = reader.read(res); err != nil {
			return err
		}
		m.verdict = oz.JudgeMatch(m.answer.status, m.answer.doc)
		c.noteAuth(m.answer.status, m.verdict.Error)
		if m.verdict.Reason == oz.MalformedAnswer {
			return errNotStrict
		}
		return nil
	}
	h.link.authorized(ctx, r, c)
	if c.fault != nil {
		m.verdict, m.err = oz.ReasonVerdict(c.fault.reason), c.fault.err
	}
	if m.verdict.Decision == "" {
		m.verdict, m.err = oz.ReasonVerdict(oz.Unreachable), errNothingCame
	}
	if m.verdict.Folder == nil {
		m.answer.doc = nil
	}
}

// combine makes the worse of liveness and face matching the decision. Liveness
// was a SUCCESS, or nothing would have been matched.
func (o outcome) combine() outcome {
	if o.match == nil {
		return o
	}
	v := o.match.verdict
	o.verdict.Decision, o.verdict.Reason, o.verdict.Error = v.Decision, v.Reason, v.Error
	o.clientFault = o.match.clientFault
	if o.err == nil {
		o.err = o.match.err
	}
	return o
}

// reference asks the app for the user's photo.
func (h *Handler) reference(ctx context.Context, r *http.Request, next caddyhttp.Handler) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, referenceTimeout)
	defer cancel()
	req, err := h.referenceRequest(ctx, r)
	if err != nil {
		return nil, &fault{oz.ReferenceMissing, err}
	}
	photo := &photoWriter{header: make(http.Header), limit: h.Biometry.MaxReference, stop: cancel}
	err = photo.fill(next, req)
	switch {
	case photo.tooLarge:
		return nil, &fault{oz.ReferenceTooLarge, fmt.Errorf("larger than %s", sizeString(h.Biometry.MaxReference))}
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, referenceFault(err)
	}
	return photo.image()
}

// referenceFault is for a photo that the handlers behind gave up on. What they
// say may quote the photo.
func referenceFault(err error) error {
	var herr caddyhttp.HandlerError
	switch {
	case !errors.As(err, &herr):
		return &fault{oz.ReferenceUnavailable, plain(err)}
	case herr.StatusCode == http.StatusNotFound:
		return &fault{oz.ReferenceMissing, errors.New("the app answered 404")}
	}
	return &fault{oz.ReferenceUnavailable, fmt.Errorf("the handlers before the app gave up with %d: %w", herr.StatusCode, plain(herr.Err))}
}

// referenceRequest is the client's request turned into a GET of its photo. It
// has variables and a replacer of its own, so that the app's reverse_proxy
// leaves no trace of it for the request that follows.
func (h *Handler) referenceRequest(ctx context.Context, r *http.Request) (*http.Request, error) {
	client := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	uri, err := expandReference(client, h.Biometry.Reference)
	if err != nil {
		return nil, err
	}
	sub := r.Clone(ctx)
	sub.Method, sub.URL.Path, sub.URL.RawPath, sub.URL.RawQuery = http.MethodGet, uri.Path, uri.RawPath, uri.RawQuery
	sub.RequestURI = uri.RequestURI()
	sub.Body, sub.ContentLength, sub.TransferEncoding = http.NoBody, 0, nil
	for _, name := range slices.Concat(staleHeaders, aboutContent) {
		delete(sub.Header, name)
	}
	sub.Header["Accept"] = []string{"image/jpeg, image/png"}
	sub.Header["Accept-Encoding"] = []string{"identity"}

	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	repl := caddy.NewReplacer()
	sub = caddyhttp.PrepareRequest(sub, repl, nil, server)
	repl.Map(client.Get) // behind its own: to a rewrite, {uri} is the photo's
	if vars, ok := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any); ok {
		for name, value := range vars {
			caddyhttp.SetVar(sub.Context(), name, value)
		}
	}
	return sub, nil
}

// aboutContent is what else a GET does not take over from the POST before it.
var aboutContent = []string{
	"Content-Length", "Content-Type", "Content-Language", "Content-Location", "Content-Disposition",
	"If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since",
}
