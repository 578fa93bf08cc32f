package caddymodule

import (
	"encoding/json"
	"net/http"
	"unicode/utf8"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
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
}

const problemMediaType = "application/problem+json"

// statusClientGone is nginx's and Caddy's word for a client that left before
// it got an answer. It appears in logs only: nobody is there to read it.
const statusClientGone = 499

func (p *problem) Error() string { return p.Title + ": " + p.Detail }

func newProblem(kind string, status int, title, detail string) *problem {
	return &problem{
		Type:   "urn:oz-instant:problem:" + kind,
		Title:  title,
		Status: status,
		Detail: detail,
		kind:   kind,
	}
}

func (p *problem) with(name, value string) *problem {
	if p.header == nil {
		p.header = make(http.Header)
	}
	p.header.Set(name, value)
	return p
}

// withOzError adds Oz's own words. Its message may be of any length and
// origin, so it is cut to what a person would read.
func (p *problem) withOzError(e *oz.Error) *problem {
	if e == nil {
		return p
	}
	code := e.Code
	p.ErrorCode = &code
	p.ErrorMessage = shorten(e.Message, 256)
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

// document is the problem as it is sent.
func (p *problem) document() []byte {
	doc, err := json.Marshal(p)
	if err != nil { // strings and ints always encode
		panic(err)
	}
	return doc
}

// The refusals of the door and of the upload: what a client did wrong. What
// Oz, or the way to it, did is in verdictProblems.
const (
	kindMethod            = "method-not-allowed"
	kindUnexpectedContent = "unexpected-content"
	kindUpgrade           = "upgrade-refused"
	kindMediaType         = "unsupported-media-type"
	kindContentEncoding   = "content-encoding"
	kindEmptyCapsule      = "empty-capsule"
	kindCapsuleTooLarge   = "capsule-too-large"
	kindUploadTimeout     = "upload-timeout"
	kindUnreadableCapsule = "unreadable-capsule"
	kindClientGone        = "client-gone"
)

// refusalKinds is the closed set of words for the metrics.
var refusalKinds = []string{
	kindMethod, kindUnexpectedContent, kindUpgrade, kindMediaType, kindContentEncoding, kindEmptyCapsule,
	kindCapsuleTooLarge, kindUploadTimeout, kindUnreadableCapsule, kindClientGone,
}

// verdictProblems says, for each Reason that does not reach the app by itself,
// what the client is told: rows 7 to 17 of the decision table.
var verdictProblems = map[oz.Reason]problem{
	oz.Binding: {Status: http.StatusForbidden, Title: "The capsule belongs to another session",
		Detail: "What the capsule carries does not match this request. Ask for a new session token and capture again, signed in as the same user."},
	oz.Container: {Status: http.StatusBadRequest, Title: "Oz could not accept the capsule",
		Detail: "The capsule is empty, damaged, expired or was used before. Ask for a new session token and capture again; for code 14 send the capsule to Oz support."},
	oz.Replayed: {Status: http.StatusConflict, Title: "The capsule was used before",
		Detail: "Each capsule is good for one check. Ask for a new session token and capture again."},
	oz.Unauthorized: {Status: http.StatusBadGateway, Title: "Oz refused this gateway",
		Detail: "Nothing was decided. The operator has to check access_token: Oz answered 401 or 403."},
	oz.Overloaded: {Status: http.StatusServiceUnavailable, Title: "Liveness checks are busy",
		Detail: "Nothing was decided. Capture again after the time in Retry-After."},
	oz.TooLargeForOz: {Status: http.StatusBadGateway, Title: "The capsule is too large for Oz",
		Detail: "Nothing was decided. The operator has to raise Oz's body limit or lower max_capsule: Oz answered 413."},
	oz.UnexpectedStatus: {Status: http.StatusBadGateway, Title: "Oz gave an unexpected answer",
		Detail: "Nothing was decided. Capture again later; the operator finds the status in the log."},
	oz.MalformedAnswer: {Status: http.StatusBadGateway, Title: "Oz's answer could not be read",
		Detail: "Nothing was decided. Capture again later; the operator finds what was wrong in the log."},
	oz.Unreachable: {Status: http.StatusBadGateway, Title: "Oz cannot be reached",
		Detail: "Nothing was decided and nothing was sent. Try again later; the operator has to check the Oz upstreams."},
	oz.ConnectionLost: {Status: http.StatusBadGateway, Title: "The connection to Oz was lost",
		Detail: "Nothing was decided. The session token may be spent: ask for a new one and capture again."},
	oz.Timeout: {Status: http.StatusGatewayTimeout, Title: "Oz took too long",
		Detail: "Nothing was decided. The session token may be spent: ask for a new one and capture again."},
}

// retryAfter is what a client is told when Oz is busy and did not say for how
// long: about two analyses at the three seconds that the vendor plans with.
const retryAfter = "6"

// verdictProblem is the refusal for a verdict that may not reach the app.
func verdictProblem(o outcome) *problem {
	row, ok := verdictProblems[o.verdict.Reason]
	if !ok {
		row = verdictProblems[oz.UnexpectedStatus]
	}
	status := row.Status
	if o.noUpstream {
		status = http.StatusServiceUnavailable
	}
	p := newProblem(string(o.verdict.Reason), status, row.Title, row.Detail).withOzError(o.verdict.Error)
	if o.verdict.Reason == oz.Overloaded {
		p.with("Retry-After", o.retryAfter())
	}
	return p
}
