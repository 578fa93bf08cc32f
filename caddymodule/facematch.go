package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg" // the formats of a reference photo
	_ "image/png"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// referenceTimeout is how long the app has for the reference photo.
const referenceTimeout = 10 * time.Second

// collectsShots reports whether best shots must be decoded.
func (h *Handler) collectsShots() bool { return h.BestShot == bestShotAttach || h.Biometry != nil }

// matchFaces compares the best shot with the reference photo.
func (h *Handler) matchFaces(ctx context.Context, r *http.Request, next caddyhttp.Handler, liveness ozclient.Answer) *match {
	m := new(match)
	shot := firstOfQuality(liveness)
	if shot == nil {
		m.answer.Verdict = oz.ReasonVerdict(oz.BestShotMissing)
		return m
	}
	start := time.Now()
	photo, err := h.Biometry.photo(ctx, r, next)
	m.reference = time.Since(start)
	switch {
	case ctx.Err() != nil:
		m.err = &ozclient.Error{Fault: ozclient.FaultClient, Err: context.Cause(ctx)}
	case err != nil:
		m.answer.Verdict, m.err = oz.ReasonVerdict(referenceReason(err)), err
	default:
		m.asked = true
		m.answer, m.err = h.client.Match(ctx, r, oz.MatchRequest(h.Biometry.Tag, photo, shot))
	}
	return m
}

// firstOfQuality returns the one best shot that is matched.
func firstOfQuality(liveness ozclient.Answer) []byte {
	for _, shot := range liveness.BestShots {
		if shot.JPEG != nil && liveness.Verdict.Folder.TypeOf(shot.Entry) == oz.Quality {
			return shot.JPEG
		}
	}
	return nil
}

// referenceError is why the app's reference photo cannot be used.
type referenceError struct {
	reason oz.Reason
	err    error
}

func (e *referenceError) Error() string { return e.err.Error() }
func (e *referenceError) Unwrap() error { return e.err }

func referenceReason(err error) oz.Reason {
	if e, ok := errors.AsType[*referenceError](err); ok {
		return e.reason
	}
	return oz.ReferenceUnavailable
}

// photo asks the app for the user's photo.
func (b *Biometry) photo(ctx context.Context, r *http.Request, next caddyhttp.Handler) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, referenceTimeout)
	defer cancel()
	req, err := b.photoRequest(ctx, r)
	if err != nil {
		return nil, &referenceError{oz.ReferenceMissing, err}
	}
	photo := &photoWriter{header: make(http.Header), limit: b.MaxReference, stop: cancel}
	err = photo.fill(next, req)
	switch {
	case photo.tooLarge:
		return nil, &referenceError{oz.ReferenceTooLarge, fmt.Errorf("larger than %s", sizeString(b.MaxReference))}
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, appFault(err)
	}
	return photo.image()
}

// appFault classifies an error from the next handlers. Their text is dropped
// because it may quote the photo.
func appFault(err error) error {
	herr, ok := errors.AsType[caddyhttp.HandlerError](err)
	switch {
	case !ok:
		return plain(err)
	case herr.StatusCode == http.StatusNotFound:
		return &referenceError{oz.ReferenceMissing, errors.New("the app answered 404")}
	}
	return fmt.Errorf("the handlers before the app gave up with %d: %w", herr.StatusCode, plain(herr.Err))
}

// plain returns err without any text of a peer.
func plain(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	return fmt.Errorf("error of type %T", err)
}

// photoRequest turns the client's request into a GET of its photo. It has
// variables and a replacer of its own, so that the app's reverse_proxy leaves
// no trace of it for the request that follows.
func (b *Biometry) photoRequest(ctx context.Context, r *http.Request) (*http.Request, error) {
	client := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	uri, err := expandReference(client, b.Reference)
	if err != nil {
		return nil, err
	}
	sub := r.Clone(ctx)
	sub.Method, sub.URL.Path, sub.URL.RawPath, sub.URL.RawQuery = http.MethodGet, uri.Path, uri.RawPath, uri.RawQuery
	sub.RequestURI = uri.RequestURI()
	sub.Body, sub.ContentLength, sub.TransferEncoding = http.NoBody, 0, nil
	dropStale(sub.Header)
	for _, name := range preconditions {
		delete(sub.Header, name)
	}
	sub.Header["Accept"] = []string{"image/jpeg, image/png"}
	sub.Header["Accept-Encoding"] = []string{"identity"}

	server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	repl := caddy.NewReplacer()
	sub = caddyhttp.PrepareRequest(sub, repl, nil, server)
	repl.Map(client.Get) // after its own: to a rewrite, {uri} is the photo's
	if vars, ok := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any); ok {
		for name, value := range vars {
			caddyhttp.SetVar(sub.Context(), name, value)
		}
	}
	return sub, nil
}

// preconditions (RFC 9110 13.1) of a POST say nothing about the photo.
var preconditions = []string{"If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since"}

// photoWriter captures the app's answer to a GET of the reference photo.
type photoWriter struct {
	header   http.Header
	status   int
	body     bytes.Buffer
	limit    int64
	tooLarge bool
	stop     context.CancelFunc
}

// fill runs next and captures its response. It recovers http.ErrAbortHandler,
// with which reverse_proxy reports a truncated response.
func (p *photoWriter) fill(next caddyhttp.Handler, r *http.Request) (err error) {
	defer func() {
		if v := recover(); v != nil {
			if e, ok := v.(error); !ok || !errors.Is(e, http.ErrAbortHandler) {
				panic(v)
			}
			err = errors.New("the app's answer was cut off")
		}
	}()
	return next.ServeHTTP(p, r)
}

// Header implements http.ResponseWriter.
func (p *photoWriter) Header() http.Header { return p.header }

// WriteHeader implements http.ResponseWriter.
func (p *photoWriter) WriteHeader(status int) {
	if p.status == 0 && status >= 200 {
		p.status = status
	}
}

// Write implements http.ResponseWriter. It never fails: a handler would take
// that for a client that left.
func (p *photoWriter) Write(piece []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	if int64(p.body.Len()+len(piece)) > p.limit {
		p.tooLarge = true
		p.stop()
	}
	if !p.tooLarge {
		p.body.Write(piece)
	}
	return len(piece), nil
}

// image returns the photo, if the answer is one.
func (p *photoWriter) image() ([]byte, error) {
	switch p.status {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusGone, http.StatusNoContent:
		return nil, &referenceError{oz.ReferenceMissing, fmt.Errorf("the app answered %d", p.status)}
	default:
		return nil, fmt.Errorf("the app answered %d", p.status)
	}
	// Other modules in the same Caddy may have registered more formats.
	if _, format, err := image.DecodeConfig(bytes.NewReader(p.body.Bytes())); err != nil || format != "jpeg" && format != "png" {
		return nil, &referenceError{oz.ReferenceNotImage, errors.New("the app's answer is neither JPEG nor PNG")}
	}
	return p.body.Bytes(), nil
}

// expandReference puts the request's values into the reference. They are
// escaped, so that each stays one segment of the path, or one value of the query.
func expandReference(repl *caddy.Replacer, reference string) (*url.URL, error) {
	path, query, hasQuery := strings.Cut(reference, "?")
	path, err := repl.ReplaceFunc(path, escaped(segment))
	if err != nil {
		return nil, err
	}
	if query, err = repl.ReplaceFunc(query, escaped(queryValue)); err != nil {
		return nil, err
	}
	if hasQuery {
		path += "?" + query
	}
	uri, err := url.ParseRequestURI(path)
	if err != nil {
		return nil, errors.New("reference: the values of its placeholders do not make a path")
	}
	for part := range strings.SplitSeq(uri.Path, "/") {
		if part == "." || part == ".." {
			return nil, errors.New("reference: the path has a dot segment")
		}
	}
	return uri, nil
}

// segment escapes a value that must be one segment of a path. Handlers that
// read the path unescaped, as matchers and file servers do, must see one, too.
func segment(value string) (string, error) {
	if strings.ContainsFunc(value, func(r rune) bool { return r == '/' || r == '\\' || unicode.IsControl(r) }) {
		return "", errors.New("reference: placeholder value contains a slash, backslash or control character")
	}
	return url.PathEscape(value), nil
}

func queryValue(value string) (string, error) { return url.QueryEscape(value), nil }

func escaped(escape func(string) (string, error)) caddy.ReplacementFunc {
	return func(name string, value any) (any, error) {
		text := caddy.ToString(value)
		if text == "" {
			return nil, fmt.Errorf("reference: the placeholder {%s} is empty", name)
		}
		return escape(text)
	}
}
