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
	hangUp bool        // what comes next on the connection is not for this server
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

// withOzError adds Oz's own words: its code, and about a capsule its message.
// A message about anything else is the operator's, and may be about tokens and
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

// reasonProblem says what a client is told for a Reason.
type reasonProblem struct {
	status int
	title  string
	detail string // behind the sentence that says what there is not
}

// reasonProblems are rows 7 to 17 of the decision table: the Reasons that do
// not reach the app by themselves.
var reasonProblems = map[oz.Reason]reasonProblem{
	oz.Binding: {http.StatusForbidden, "The capsule belongs to another session",
		"What the capsule carries does not match this request. Ask for a new session token and capture again, signed in as the same user."},
	oz.Container: {http.StatusBadRequest, "Oz could not accept the capsule",
		"The capsule is empty, damaged, expired or was used before. Ask for a new session token and capture again; for code 14 send the capsule to Oz support."},
	oz.Replayed: {http.StatusConflict, "The capsule was used before",
		"Each capsule is good for one check. Ask for a new session token and capture again."},
	oz.Unauthorized: {http.StatusBadGateway, "Oz refused this gateway",
		"The operator has to check access_token or credentials: Oz did not accept them."},
	oz.Overloaded: {http.StatusServiceUnavailable, "Liveness checks are busy",
		"Try again after the time in Retry-After."},
	oz.TooLargeForOz: {http.StatusBadGateway, "The capsule is too large for Oz",
		"The operator has to raise Oz's body limit or lower max_capsule: Oz answered 413."},
	oz.UnexpectedStatus: {http.StatusBadGateway, "Oz gave an unexpected answer",
		"Try again later; the operator finds the status in the log."},
	oz.MalformedAnswer: {http.StatusBadGateway, "Oz's answer could not be read",
		"Try again later; the operator finds what was wrong in the log."},
	oz.Unreachable: {http.StatusBadGateway, "Oz cannot be reached",
		"Nothing was sent. Try again later; the operator has to check the Oz upstreams."},
	oz.ConnectionLost: {http.StatusBadGateway, "The connection to Oz was lost",
		"What was sent may have been used: ask for a new session token and capture again."},
	oz.Timeout: {http.StatusGatewayTimeout, "Oz took too long",
		"What was sent may have been used: ask for a new session token and capture again."},
}

// retryAfter is what a client is told when Oz is busy and did not say for how
// long: about two analyses at the three seconds that the vendor plans with.
const retryAfter = "6"

// problemFor makes the problem for a Reason. What says what there is not, or
// is empty where the Reason is a decision of its own.
func problemFor(r oz.Reason, what string, noUpstream bool, ozRetryAfter string) *problem {
	row, ok := reasonProblems[r]
	if !ok {
		row = reasonProblems[oz.UnexpectedStatus]
	}
	if noUpstream {
		row.status = http.StatusServiceUnavailable
	}
	p := newProblem(string(r), row.status, row.title, what+row.detail)
	if r == oz.Overloaded {
		if ozRetryAfter == "" {
			ozRetryAfter = retryAfter
		}
		return p.with("Retry-After", ozRetryAfter)
	}
	return p
}

// verdictProblem is the refusal for a verdict that may not reach the app.
func verdictProblem(o outcome) *problem {
	what := ""
	if o.verdict.Decision == oz.Unavailable {
		what = "Nothing was decided. "
	}
	last := o.answer
	if o.match != nil {
		last = o.match.answer
	}
	p := problemFor(o.verdict.Reason, what, o.noUpstream, last.retryAfter).withOzError(o.verdict.Error)
	if o.busy != "" {
		p.Detail = "Nothing was decided and nothing was sent to Oz. Send the same capsule again after the time in Retry-After."
	}
	return p
}

// sessionProblem is the refusal of a session token that Oz did not give.
func sessionProblem(c *call) *problem {
	return problemFor(c.fault.reason, "There is no session token. ", c.noUpstream, c.retryAfter)
}
