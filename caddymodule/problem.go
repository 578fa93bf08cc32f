package caddymodule

import (
	"encoding/json"
	"errors"
	"maps"
	"math"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// problem is a refusal as RFC 9457 has it. As an error it is what
// {http.error.message} shows in a handle_errors route.
type problem struct {
	Type         string `json:"type"`
	Title        string `json:"title"`
	Status       int    `json:"status"`
	Detail       string `json:"detail"`
	ErrorCode    *int   `json:"error_code,omitempty"`
	ErrorMessage string `json:"error_message,omitempty"`

	kind   string
	header http.Header // fields of the answer, such as Allow or Retry-After
	hangUp bool        // what comes next on the connection isn't for this server
}

const problemMediaType = "application/problem+json"

// Refusals for what a client did wrong, and of a gateway that ends. What Oz, or
// the way to it, did has a Reason.
const (
	kindMethod            = "method-not-allowed"
	kindUnexpectedContent = "unexpected-content"
	kindMediaType         = "unsupported-media-type"
	kindContentEncoding   = "content-encoding"
	kindEmptyCapsule      = "empty-capsule"
	kindHeaderTooLarge    = "header-too-large"
	kindCapsuleTooLarge   = "capsule-too-large"
	kindUploadTimeout     = "upload-timeout"
	kindUnreadableCapsule = "unreadable-capsule"
	kindInvalidValue      = "invalid-value"
	kindShuttingDown      = "shutting-down"
	kindClientGone        = "client-gone"
)

// statusClientGone is nginx's and Caddy's status for a client that left before
// it got an answer. It appears in logs only: nobody is there to read it.
const statusClientGone = 499

// refusals are the kinds of refusal and their statuses, for requests that
// nothing was decided about.
var refusals = []struct {
	kind   string
	status int
}{
	{kindMethod, http.StatusMethodNotAllowed},
	{kindUnexpectedContent, http.StatusBadRequest},
	{kindMediaType, http.StatusUnsupportedMediaType},
	{kindContentEncoding, http.StatusUnsupportedMediaType},
	{kindEmptyCapsule, http.StatusBadRequest},
	{kindHeaderTooLarge, http.StatusRequestHeaderFieldsTooLarge},
	{kindCapsuleTooLarge, http.StatusRequestEntityTooLarge},
	{kindUploadTimeout, http.StatusRequestTimeout},
	{kindUnreadableCapsule, http.StatusBadRequest},
	{kindInvalidValue, http.StatusBadRequest},
	{kindShuttingDown, http.StatusServiceUnavailable},
	{kindClientGone, statusClientGone},
}

// refusal makes the problem of a kind in the table.
func refusal(kind, title, detail string) *problem {
	for _, row := range refusals {
		if row.kind == kind {
			return newProblem(kind, row.status, title, detail)
		}
	}
	panic("no such refusal: " + kind)
}

func newProblem(kind string, status int, title, detail string) *problem {
	return &problem{
		Type:   "urn:oz-instant:problem:" + kind,
		Title:  title,
		Status: status,
		Detail: detail,
		kind:   kind,
	}
}

func (p *problem) Error() string { return p.Title + ": " + p.Detail }

func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = make(http.Header)
	}
	p.header.Set(name, value)
	return p
}

// withOzError adds Oz's own words: its code, and about a capsule its message.
// A message about anything else is for the operator, and may name tokens and
// machines. It may be of any length, so it is cut to what a person would read.
func (p *problem) withOzError(e *oz.Error) *problem {
	if e == nil {
		return p
	}
	code := e.Code
	p.ErrorCode = &code
	if p.kind == string(oz.Container) {
		p.ErrorMessage = shorten(e.Message, 256)
	}
	return p
}

func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}

// document returns the problem as it is sent.
func (p *problem) document() []byte {
	doc, err := json.Marshal(p)
	if err != nil { // strings and ints always encode
		panic(err)
	}
	return doc
}

// reasonProblem says what a client is told for a Reason.
type reasonProblem struct {
	status int
	title  string
	detail string // after the sentence that says what there is not
}

// reasonProblems are the Reasons that do not reach the app by themselves.
var reasonProblems = map[oz.Reason]reasonProblem{
	oz.Binding: {http.StatusForbidden, "The capsule belongs to another session",
		"What the capsule carries does not match this request. Ask for a new session token and capture again, signed in as the same user."},
	oz.Container: {http.StatusBadRequest, "Oz could not accept the capsule",
		"The capsule is empty, damaged, expired or was used before. Ask for a new session token and capture again; for code 14 send the capsule to Oz support."},
	oz.Replayed: {http.StatusConflict, "The capsule was used before",
		"Each capsule is good for one check. Ask for a new session token and capture again."},
	oz.Unauthorized: {http.StatusBadGateway, "Oz refused this gateway",
		"The operator must check access_token or credentials: Oz did not accept them."},
	oz.Overloaded: {http.StatusServiceUnavailable, "Liveness checks are busy",
		"Try again after the time in Retry-After."},
	oz.TooLargeForOz: {http.StatusBadGateway, "The capsule is too large for Oz",
		"The operator must raise Oz's body limit or lower max_capsule: Oz answered 413."},
	oz.UnexpectedStatus: {http.StatusBadGateway, "Oz gave an unexpected answer",
		"Try again later; the operator finds the status in the log."},
	oz.MalformedAnswer: {http.StatusBadGateway, "Oz's answer could not be read",
		"Try again later; the operator finds what was wrong in the log."},
	oz.Unreachable: {http.StatusBadGateway, "Oz cannot be reached",
		"Nothing was sent. Try again later; the operator must check the Oz upstreams."},
	oz.ConnectionLost: {http.StatusBadGateway, "The connection to Oz was lost",
		"What was sent may have been used: ask for a new session token and capture again."},
	oz.Timeout: {http.StatusGatewayTimeout, "Oz took too long",
		"What was sent may have been used: ask for a new session token and capture again."},
	oz.StoreUnavailable: {http.StatusServiceUnavailable, "Used capsules cannot be told from new ones",
		"What was sent may have been used: ask for a new session token and capture again, later."},
}

// defaultRetryAfter is what a client is told when Oz is busy and did not say
// for how long: about two analyses at the three seconds that the vendor plans with.
const defaultRetryAfter = "6"

// problemFor makes the problem for a Reason. Missing says what there is not, or
// is empty where the Reason is a decision of its own.
func problemFor(r oz.Reason, missing string, report ozclient.Report) *problem {
	row, ok := reasonProblems[r]
	if !ok {
		row = reasonProblems[oz.UnexpectedStatus]
	}
	if report.NoUpstream && r == oz.Unreachable {
		row.status = http.StatusServiceUnavailable
	}
	p := newProblem(string(r), row.status, row.title, missing+row.detail)
	if r != oz.Overloaded {
		return p
	}
	if report.RetryAfter == "" {
		return p.with("Retry-After", defaultRetryAfter)
	}
	return p.with("Retry-After", report.RetryAfter)
}

// busyProblem is the refusal for want of capacity in this gateway.
func busyProblem(missing string, busy *upload.Refused) *problem {
	return problemFor(oz.Overloaded, missing, ozclient.Report{RetryAfter: retryAfter(busy.RetryAfter)})
}

// retryAfter formats a duration for Retry-After: whole seconds, rounded up, at
// least one. It returns "" for 0, which is an unknown one.
func retryAfter(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

// problem returns the refusal for a Result that does not reach the app.
func (h *Handler) problem(res *Result) *problem {
	if res.fault != nil {
		return h.uploadProblem(res.fault)
	}
	missing := ""
	if res.verdict.Decision == oz.Unavailable {
		missing = "Nothing was decided. "
	}
	if busy, ok := errors.AsType[*upload.Refused](res.refused); ok && res.verdict.Reason == oz.Overloaded {
		p := busyProblem(missing, busy)
		p.Detail = "Nothing was decided and nothing was sent to Oz. Send the same capsule again after the time in Retry-After."
		return p
	}
	if res.verdict.Reason == oz.StoreUnavailable && errors.Is(res.refused, errGuarded) {
		p := problemFor(oz.StoreUnavailable, missing, ozclient.Report{})
		p.Detail = "Nothing was decided and nothing was sent to Oz. Send the same capsule again, later."
		return p
	}
	if res.match == nil {
		return problemFor(res.verdict.Reason, missing, res.liveness.Report).withOzError(res.verdict.Error)
	}
	p := problemFor(res.verdict.Reason, missing, res.match.answer.Report)
	if res.verdict.Decision == oz.Unavailable { // the reason is that of the second call, which had no capsule
		p.Detail = missing + "The capsule was used, but the faces were not compared: ask for a new session token and capture again, later."
	}
	return p.withOzError(res.verdict.Error)
}

// uploadProblem is the refusal for a capsule that the client did not deliver.
func (h *Handler) uploadProblem(fault error) *problem {
	if ofSite, ok := errors.AsType[*http.MaxBytesError](fault); ok { // by Caddy's request_body directive
		return tooLarge(ofSite.Limit, "request_body")
	}
	const again = " Try again on a better connection."
	switch {
	case errors.Is(fault, upload.ErrTooLarge):
		return tooLarge(h.MaxCapsule, "max_capsule")
	case errors.Is(fault, upload.ErrStalled):
		return refusal(kindUploadTimeout, "The upload stalled", "It made no progress for some seconds, or hardly any."+again)
	case errors.Is(fault, upload.ErrTimeout):
		return refusal(kindUploadTimeout, "The upload took too long",
			"The whole capsule must arrive within "+time.Duration(h.UploadTimeout).String()+"."+again)
	case errors.Is(fault, upload.ErrSiteTimeout):
		return refusal(kindUploadTimeout, "The upload took too long",
			"It was slower than the timeouts of this site allow."+again)
	case errors.Is(fault, ozclient.ErrInvalidHeader):
		return refusal(kindInvalidValue, "A value of this request cannot be sent to Oz",
			"A header field, cookie or query parameter that goes to Oz has control characters in it. Leave them out.")
	case errors.Is(fault, upload.ErrGone):
		return clientGone()
	}
	return refusal(kindUnreadableCapsule, "The capsule could not be read",
		"The body was cut off or wrongly framed. Send it again, whole.")
}

func clientGone() *problem {
	return refusal(kindClientGone, "The client left", "Nothing was decided.")
}

// refuse answers with p. The site's handle_errors routes come first; the
// problem document is the answer where they do not write a body of their own.
// The routes run here and not in the server, which would send nothing at all if
// they wrote nothing, and could not wait for the rest of the body afterwards.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, p *problem, unread bool) error {
	sent := withOwnHeader(r)
	spent(r)
	header := w.Header()
	maps.Copy(header, p.header)
	header.Set("Cache-Control", "no-store")
	if unread || p.hangUp {
		upload.CloseAfter(w, r)
	}
	if p.Status == statusClientGone {
		w.WriteHeader(p.Status) // for the access log
		return nil
	}
	answer := hold(w)
	if err := serveErrorRoutes(answer, r, caddyhttp.Error(p.Status, p)); err != nil && r.Context().Err() == nil {
		h.logger.Error("handle_errors failed", zap.String("problem", p.kind), zap.Error(err))
	}
	if !answer.hasBody() && (answer.status == 0 || answer.status == p.Status) {
		answer.write(p.Status, problemMediaType, p.document())
	}
	if unread {
		answer.finishUnread(w, sent)
	} else {
		answer.finish()
	}
	return nil
}

// serveErrorRoutes runs the site's handle_errors routes for err. They get the
// method and URL that the client sent, as from the server.
func serveErrorRoutes(w http.ResponseWriter, r *http.Request, err error) error {
	if r.Context().Value(caddyhttp.ErrorCtxKey) != nil {
		return nil // the handler stands in such a route itself: it would run for ever
	}
	server, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if !ok || server == nil || server.Errors == nil || len(server.Errors.Routes) == 0 {
		return nil
	}
	routes := server.Errors.Routes.Compile(bareStatus)
	return routes.ServeHTTP(w, server.Errors.WithError(asReceived(r), err))
}

// bareStatus ends error routes as Caddy does. It writes the status to the writer
// that it is given: deferred header operations of the routes happen there.
var bareStatus = caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
	err, _ := r.Context().Value(caddyhttp.ErrorCtxKey).(error)
	if herr, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
		w.WriteHeader(herr.StatusCode)
	}
	return nil
})

// asReceived returns r with the method and URL that the client sent: the
// server puts them back before it runs error routes. The URL is changed in
// place, as the server does it, since placeholders read that of its own request.
func asReceived(r *http.Request) *http.Request {
	received := *r
	if orig, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		received.Method, received.RequestURI = orig.Method, orig.RequestURI
		*received.URL = *orig.URL
	}
	return &received
}

// spent takes the body out of r, and what described it out of its header. A
// refused or used body is nobody's any more: not the error routes', and not that
// of handlers around this one that send the request elsewhere, such as
// intercept's, to which it would look like a folder.
func spent(r *http.Request) *http.Request {
	r.Body, r.ContentLength, r.TransferEncoding, r.Trailer = http.NoBody, 0, nil, nil
	dropStale(r.Header)
	return r
}
