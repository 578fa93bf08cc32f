package caddymodule

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// passage is what this module knows of one request. It lives in the request's
// variables, so that reserved names are stripped once, however many oz_instant
// blocks a site has: the second one would otherwise strip the first one's
// decision, or judge a folder as if it were a capsule.
type passage struct {
	judged bool
	facts  facts

	// What the client sent, where it announced trailers: see leave.
	trailer http.Header
	body    io.Closer
}

// String keeps {http.vars.oz_instant} from printing the fields.
func (p *passage) String() string { return "" }

// passageVar is in the table of request variables, which no client can set.
const passageVar = "oz_instant"

// enter is the first thing that happens to a request in scope.
func enter(r *http.Request) *passage {
	if p, ok := caddyhttp.GetVar(r.Context(), passageVar).(*passage); ok {
		return p
	}
	p := &passage{trailer: r.Trailer, body: r.Body}
	stripReserved(r)
	caddyhttp.SetVar(r.Context(), passageVar, p)
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(p.placeholder)
	}
	return p
}

// leave is the last thing that happens to a request in scope, which ended with
// err. Error routes get the server's own request: where a handler before this
// one, such as forward_auth, made a copy of it, stripReserved changed the copy,
// and net/http files announced trailers in the server's one at the end of the
// body, whoever reads it. So a body with announced trailers is not for them.
func (p *passage) leave(err error) error {
	if err != nil && p.trailer != nil {
		p.body.Close() // reads up to its end if that is near, which fills the trailer
		clear(p.trailer)
	}
	return err
}

// settle makes o the decision of this request.
func (p *passage) settle(o outcome) {
	p.judged = true
	p.facts = newFacts(o)
}

const placeholderPrefix = "http.oz_instant."

// placeholder implements caddy.ReplacerFunc. On a request that was not judged
// all placeholders are known and empty.
func (p *passage) placeholder(key string) (any, bool) {
	name, ours := strings.CutPrefix(key, placeholderPrefix)
	if !ours {
		return nil, false
	}
	f := &p.facts
	switch name {
	case "decision":
		return f.decision, true
	case "reason":
		return f.reason, true
	case "folder_id":
		return f.folderID, true
	case "event_session_id":
		return f.eventSessionID, true
	case "error_code":
		return f.errorCode, true
	case "quality":
		return f.quality, true
	case "biometry":
		return f.biometry, true
	case "capsule_bytes":
		return p.number(f.capsuleBytes), true
	case "oz_ms":
		return p.number(f.ozMS), true
	}
	return nil, false
}

// number keeps a zero apart from nothing: without a decision there is none.
func (p *passage) number(n int64) any {
	if !p.judged {
		return ""
	}
	return n
}

// facts are the words about a decision that headers, placeholders, the log
// line and the access log share. Each word is empty or passes headerValue.
type facts struct {
	decision         string
	reason           string
	folderID         string
	eventSessionID   string
	resolutionStatus string
	systemResolution string
	quality          string
	biometry         string
	errorCode        string
	capsuleBytes     int64
	ozMS             int64
}

func newFacts(o outcome) facts {
	v := o.verdict
	f := facts{
		decision:     string(v.Decision),
		reason:       string(v.Reason),
		capsuleBytes: o.capsuleBytes,
		ozMS:         o.ozTime.Milliseconds(),
	}
	if v.Error != nil {
		f.errorCode = headerValue(strconv.Itoa(v.Error.Code))
	}
	if v.Folder == nil {
		return f
	}
	f.folderID = headerValue(v.Folder.ID)
	f.eventSessionID = headerValue(v.Folder.EventSessionID)
	if !reachesApp(v.Decision) {
		return f // a folder about somebody else: its words are not this request's
	}
	f.quality = headerValue(v.Folder.AnalysisStatus(oz.Quality))
	f.biometry = headerValue(v.Folder.AnalysisStatus(oz.Biometry))
	decisive := v.Folder
	if o.match != nil {
		// The two fields are those of the folder that decided: "SUCCESS" of
		// liveness must not stand beside faces that do not match.
		decisive = o.match.verdict.Folder
		if decisive == nil {
			return f
		}
		f.biometry = headerValue(decisive.AnalysisStatus(oz.Biometry))
	}
	f.resolutionStatus = headerValue(decisive.ResolutionStatus)
	f.systemResolution = headerValue(decisive.SystemResolution)
	return f
}

// setHeader writes the facts for the app. Reserved names were stripped, so
// that what is not set here is absent.
func (f *facts) setHeader(h http.Header) {
	for _, field := range [...]struct{ name, value string }{
		{headerDecision, f.decision},
		{headerReason, f.reason},
		{headerFolderID, f.folderID},
		{headerEventSessionID, f.eventSessionID},
		{headerResolutionStatus, f.resolutionStatus},
		{headerSystemResolution, f.systemResolution},
		{headerQuality, f.quality},
		{headerBiometry, f.biometry},
		{headerErrorCode, f.errorCode},
	} {
		if field.value != "" {
			h[field.name] = []string{field.value}
		}
	}
}
