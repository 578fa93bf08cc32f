package caddymodule

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// requestState is what this module knows of one request. It is kept in the
// request's variables, so that reserved names are stripped once, however many
// oz_instant blocks a site has: the second one would otherwise strip the first
// one's decision, or take a folder for a capsule.
type requestState struct {
	result *Result // nil: undecided

	// What the client sent, if it announced trailers: see end.
	trailer http.Header
	body    io.Closer
}

// String keeps {http.vars.oz_instant} from printing the fields.
func (s *requestState) String() string { return "" }

// stateVar is in the table of request variables, which no client can set.
const stateVar = "oz_instant"

// begin is the first thing that happens to a request in scope: whatever a
// client could forge is removed, and the placeholders are bound.
func begin(r *http.Request) *requestState {
	if s, ok := caddyhttp.GetVar(r.Context(), stateVar).(*requestState); ok {
		return s
	}
	s := &requestState{trailer: r.Trailer, body: r.Body}
	stripReserved(r)
	stripUpgrade(r)
	caddyhttp.SetVar(r.Context(), stateVar, s)
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(s.placeholder)
	}
	return s
}

// trailerTimeout bounds the search for the end of a body in end.
const trailerTimeout = time.Second

// end is the last thing that happens to a request in scope, which ended with
// err. Error routes get the server's own request. If a handler before this
// one, such as forward_auth, copied the request, stripReserved changed the copy,
// and net/http files announced trailers in the original at the end of the body,
// whoever reads it. So a body with announced trailers ends here. Close reads up
// to its end if that is near, and would wait for it without a deadline.
func (s *requestState) end(w http.ResponseWriter, r *http.Request, err error) error {
	if err == nil || s.trailer == nil {
		return err
	}
	if upload.SetReadDeadline(w, r, time.Now().Add(trailerTimeout)) == nil {
		s.body.Close()
	}
	clear(s.trailer)
	return err
}

const placeholderPrefix = "http.oz_instant."

// placeholder implements caddy.ReplacerFunc. On an undecided request all
// placeholders are known and empty.
func (s *requestState) placeholder(key string) (any, bool) {
	name, ours := strings.CutPrefix(key, placeholderPrefix)
	if !ours {
		return nil, false
	}
	i := slices.IndexFunc(facts[:], func(f fact) bool { return f.name == name })
	if i < 0 {
		return nil, false
	}
	if s.result == nil {
		return "", true
	}
	return s.result.placeholder(i), true
}

// reserved reports whether name folds to "x-oz-…": lower-cased, with any
// character but letters and digits read as "-". CGI, WSGI, Rack and PHP fold
// header names in this way (some of them only "_", some also "." and others),
// so that X_Oz.Decision would arrive there under the same name as our own.
func reserved(name string) bool {
	return len(name) >= len("x-oz-") &&
		lower(name[0]) == 'x' && separates(name[1]) &&
		lower(name[2]) == 'o' && lower(name[3]) == 'z' && separates(name[4])
}

// folded returns name as the most eager app server reads it.
func folded(name string) string {
	return strings.Map(func(c rune) rune {
		if separates(byte(c)) {
			return '-'
		}
		return rune(lower(byte(c)))
	}, name)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// separates reports whether c is neither a letter nor a digit.
func separates(c byte) bool {
	l := lower(c)
	return !('a' <= l && l <= 'z') && !('0' <= c && c <= '9')
}

// stripReserved takes everything out of r that could pass for a decision of
// ours: header fields, names in Connection (reverse_proxy deletes whatever the
// client names there, after all handlers have run, and would so erase the real
// decision), and trailers. Trailers go altogether: they arrive only while the
// body is read, after every handler that could look at them.
func stripReserved(r *http.Request) {
	for name := range r.Header {
		if reserved(name) {
			delete(r.Header, name)
		}
	}
	stripConnection(r.Header, reserved)
	delete(r.Header, "Trailer")
	r.Trailer = nil
}

// stripUpgrade leaves of an Upgrade what is safe: "websocket", on other
// requests than POST. A server may ignore an Upgrade (RFC 9110 7.8), and some
// clients send one with each request: curl --http2 and the JDK's HttpClient
// offer h2c, Apache's offers TLS. An app that accepted h2c would make the
// connection a tunnel in which no header is looked at any more.
func stripUpgrade(r *http.Request) {
	delete(r.Header, "Http2-Settings")
	kept := r.Method != http.MethodPost && offers(r.Header["Upgrade"], "websocket")
	if kept {
		r.Header["Upgrade"] = []string{"websocket"}
	} else {
		delete(r.Header, "Upgrade")
	}
	stripConnection(r.Header, func(option string) bool {
		return strings.EqualFold(option, "http2-settings") || !kept && strings.EqualFold(option, "upgrade")
	})
}

// offers reports whether protocol is one of the list in lines.
func offers(lines []string, protocol string) bool {
	for _, line := range lines {
		for offer := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(offer), protocol) {
				return true
			}
		}
	}
	return false
}

// stripConnection drops the options that match from the Connection field and
// leaves the others, which an undecided request may need (Upgrade).
func stripConnection(h http.Header, match func(option string) bool) {
	lines, ok := h["Connection"]
	if !ok {
		return
	}
	var kept []string
	dropped := false
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			switch option = strings.TrimSpace(option); {
			case match(option):
				dropped = true
			case option != "":
				kept = append(kept, option)
			}
		}
	}
	switch {
	case !dropped:
	case len(kept) == 0:
		delete(h, "Connection")
	default:
		h["Connection"] = []string{strings.Join(kept, ", ")}
	}
}

// requestKind is what a request is to this module.
type requestKind int

const (
	otherRequest requestKind = iota // continues undecided
	capsuleRequest
	sessionTokenRequest
	jwksRequest
)

// classify says what a request is, or why it is refused. On the matched path it
// must refuse everything that isn't a capsule and has content: a body that was
// not judged, posted straight to the path, would look to the app like a folder.
// Not one byte of a capsule is read here.
func (h *Handler) classify(w http.ResponseWriter, r *http.Request) (requestKind, *problem, error) {
	if h.Seal.isJWKS(r) {
		kind, refusal := classifyJWKSRequest(w, r)
		return kind, refusal, nil
	}
	isToken, err := h.SessionToken.matches(r, h.tokenMatchers)
	if err != nil {
		return otherRequest, nil, err
	}
	matches, err := h.matchers.AnyMatchWithError(r)
	switch {
	case err != nil:
		return otherRequest, nil, err
	case isToken && !(matches && r.Method == http.MethodPost):
		kind, refusal := classifyTokenRequest(w, r)
		return kind, refusal, nil
	case !matches:
		return otherRequest, nil, nil
	}
	kind, refusal := h.classifyMatched(w, r)
	return kind, refusal, nil
}

func (h *Handler) classifyMatched(w http.ResponseWriter, r *http.Request) (requestKind, *problem) {
	switch r.Method {
	case http.MethodPost:
		return capsuleRequest, h.capsuleProblem(r)
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		if hasContent(w, r) {
			return otherRequest, unexpectedContent(r)
		}
		return otherRequest, nil
	}
	p := refusal(kindMethod, "Capsules come by POST", "Use POST with Content-Type "+capsuleMediaType+".").
		with("Allow", "GET, HEAD, OPTIONS, POST")
	p.hangUp = r.Method == http.MethodConnect
	return otherRequest, p
}

func unexpectedContent(r *http.Request) *problem {
	return refusal(kindUnexpectedContent, "A "+r.Method+" has no content here",
		"Send capsules by POST, and "+r.Method+" without a body.")
}

// peekTimeout bounds the wait for the end of a GET of unknown length: see hasContent.
const peekTimeout = 10 * time.Second

// hasContent reports whether a GET, HEAD or OPTIONS carries a body. An empty
// one of unknown length (chunked, or over HTTP/2 and HTTP/3) is told only by
// its end, which for these methods comes with the header or right after it.
func hasContent(w http.ResponseWriter, r *http.Request) bool {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return false
	}
	if r.ContentLength > 0 {
		return true
	}
	if upload.SetReadDeadline(w, r, time.Now().Add(peekTimeout)) != nil {
		return true // nothing would end the wait
	}
	n, err := r.Body.Read(make([]byte, 1))
	_ = upload.SetReadDeadline(w, r, time.Time{})
	if n > 0 || !errors.Is(err, io.EOF) {
		return true
	}
	r.Body, r.ContentLength, r.TransferEncoding = http.NoBody, 0, nil
	return false
}

const capsuleMediaType = "application/octet-stream"

// capsuleProblem judges a POST by its header alone, so that a phone learns of
// a refusal before it has sent its megabytes (RFC 9110 10.1.1).
func (h *Handler) capsuleProblem(r *http.Request) *problem {
	switch {
	case !isCapsuleType(r.Header["Content-Type"]):
		return refusal(kindMediaType, "Not a capsule",
			"Send the capsule as it is, with one Content-Type: "+capsuleMediaType+".").
			with("Accept", capsuleMediaType)
	case !isIdentity(r.Header["Content-Encoding"]):
		return refusal(kindContentEncoding, "Capsules are not encoded",
			"Send the capsule's bytes as they are, without Content-Encoding.").
			with("Accept-Encoding", "identity")
	case r.ContentLength == 0:
		return refusal(kindEmptyCapsule, "There is no capsule",
			"The body is empty. Send the capsule that the SDK made as the body.").
			withOzError(&oz.Error{Code: oz.CodeNoContainer, Message: "Invalid request data"})
	case r.ContentLength > h.MaxCapsule:
		return tooLarge(h.MaxCapsule, "max_capsule")
	}
	if p := headerProblem(r, h.Seal, h.MaxHeader); p != nil {
		return p
	}
	return shutdownProblem(r)
}

// lastCall is the end of shutdown_delay, in which new capsules are refused. Until
// then whatever sends them can see that this gateway isn't ready. Afterwards
// net/http answers nothing that comes on a connection kept from before: it closes
// it, and a client can't tell whether its capsule was used.
const lastCall = 2 * time.Second

// shutdownProblem refuses a capsule that comes too late in a shutdown. Of the
// connection, too, nothing more may be expected.
func shutdownProblem(r *http.Request) *problem {
	if left, scheduled := untilShutdown(r); !scheduled || left > lastCall || !caddy.Exiting() {
		return nil // a reload, too, may close a listener; then other ones take over
	}
	p := refusal(kindShuttingDown, "This gateway is shutting down",
		"Nothing was decided and nothing was sent to Oz. Send the same capsule again after the time in Retry-After.").
		with("Retry-After", defaultRetryAfter)
	p.hangUp = true
	return p
}

// untilShutdown returns how long Caddy still accepts connections, if the end of
// that is scheduled.
func untilShutdown(r *http.Request) (left time.Duration, scheduled bool) {
	repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return 0, false
	}
	value, _ := repl.Get("http.time_until_shutdown")
	left, scheduled = value.(time.Duration)
	return left, scheduled
}

func isCapsuleType(lines []string) bool {
	if len(lines) != 1 {
		return false
	}
	mediaType, _, err := mime.ParseMediaType(lines[0])
	return err == nil && mediaType == capsuleMediaType
}

// isIdentity reports whether content with these Content-Encoding lines is not
// encoded. "identity" is reserved for Accept-Encoding (RFC 9110 8.4.1), yet it
// says the truth, so it is accepted.
func isIdentity(lines []string) bool {
	return !slices.ContainsFunc(lines, func(line string) bool {
		return !strings.EqualFold(strings.TrimSpace(line), "identity")
	})
}

// maxHeaderLines is how many field lines a capsule's request may have. Node
// drops what is past its 1,000th line in silence, and what reverse_proxy adds
// comes last; gunicorn and Tomcat refuse a request with more than 100 lines, of
// which this module and reverse_proxy add up to 17. A client could so hide its
// DECLINED from the app.
const maxHeaderLines = 80

// headerProblem also counts what the path adds to a seal, which the app's server
// has to take on top.
func headerProblem(r *http.Request, seal *Seal, maxSize int64) *problem {
	lines, size := 0, int64(len(r.Method)+len(r.RequestURI)+len(r.Proto)+len("  \r\n")+len("Host: \r\n")+len(r.Host)+seal.pathSize(r))
	for name, values := range r.Header {
		lines += len(values)
		for _, value := range values {
			size += int64(len(name) + len(value) + len(": \r\n"))
		}
	}
	if lines <= maxHeaderLines && size <= maxSize {
		return nil
	}
	return refusal(kindHeaderTooLarge, "The request header is too large",
		"Send fewer or shorter header fields and cookies; the operator sets the limit with max_header.")
}

// tooLarge is the refusal of a body over a limit that an option sets.
func tooLarge(limit int64, option string) *problem {
	return refusal(kindCapsuleTooLarge, "The capsule is too large",
		"At most "+sizeString(limit)+" are accepted; the operator sets the limit with "+option+".")
}
