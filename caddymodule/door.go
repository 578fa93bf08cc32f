package caddymodule

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

const capsuleMediaType = "application/octet-stream"

// peekTimeout bounds the wait for the end of a GET of unknown length: see hasContent.
const peekTimeout = 10 * time.Second

// door says what a request on the matched path is: a capsule, something that
// goes on to the app undecided (false, nil), or something to refuse. It has to
// refuse everything else: a body that was not judged, posted straight to the
// path, would look to the app like a folder. Not one byte of a capsule is read
// here.
func (h *Handler) door(w http.ResponseWriter, r *http.Request) (capsule bool, p *problem) {
	if len(r.Header["Upgrade"]) > 0 {
		p = newProblem(kindUpgrade, http.StatusBadRequest,
			"No protocol upgrade here", "This path takes capsules by POST. Leave the Upgrade field out.")
		p.hangUp = true
		return false, p
	}
	switch r.Method {
	case http.MethodPost:
		return true, h.capsuleProblem(r)
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		if hasContent(w, r) {
			return false, unexpectedContent(r)
		}
		return false, nil
	default:
		p = newProblem(kindMethod, http.StatusMethodNotAllowed,
			"Capsules come by POST", "Use POST with Content-Type "+capsuleMediaType+".").
			with("Allow", "GET, HEAD, OPTIONS, POST")
		p.hangUp = r.Method == http.MethodConnect
		return false, p
	}
}

func unexpectedContent(r *http.Request) *problem {
	return newProblem(kindUnexpectedContent, http.StatusBadRequest,
		"A "+r.Method+" has no content here", "Send capsules by POST, and "+r.Method+" without a body.")
}

// hasContent reports whether a GET, HEAD or OPTIONS carries a body. HTTP/2
// and HTTP/3 tell an empty one of unknown length only by its end, which for
// these methods comes with, or right behind, the header.
func hasContent(w http.ResponseWriter, r *http.Request) bool {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return false
	}
	if r.ContentLength > 0 || r.ProtoMajor < 2 {
		return true
	}
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(peekTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return true
	}
	n, err := r.Body.Read(make([]byte, 1))
	_ = rc.SetReadDeadline(time.Time{})
	if n > 0 || !errors.Is(err, io.EOF) {
		return true
	}
	r.Body, r.ContentLength = http.NoBody, 0
	return false
}

// capsuleProblem judges a POST by its header alone, so that a phone learns of
// a refusal before it has sent its megabytes (RFC 9110 10.1.1).
func (h *Handler) capsuleProblem(r *http.Request) *problem {
	if !isCapsuleType(r.Header["Content-Type"]) {
		return newProblem(kindMediaType, http.StatusUnsupportedMediaType,
			"Not a capsule", "Send the capsule as it is, with one Content-Type: "+capsuleMediaType+".").
			with("Accept", capsuleMediaType)
	}
	if len(r.Header["Content-Encoding"]) > 0 {
		return newProblem(kindContentEncoding, http.StatusUnsupportedMediaType,
			"Capsules are not encoded", "Send the capsule's bytes as they are, without Content-Encoding.").
			with("Accept-Encoding", "identity")
	}
	if r.ContentLength == 0 {
		return newProblem(kindEmptyCapsule, http.StatusBadRequest,
			"There is no capsule", "The body is empty. Send the capsule that the SDK made as the body.").
			withOzError(&oz.Error{Code: oz.CodeNoContainer, Message: "Invalid request data"})
	}
	if r.ContentLength > h.MaxCapsule {
		return h.tooLarge()
	}
	return nil
}

func isCapsuleType(lines []string) bool {
	if len(lines) != 1 {
		return false
	}
	mediaType, _, err := mime.ParseMediaType(lines[0])
	return err == nil && mediaType == capsuleMediaType
}

func (h *Handler) tooLarge() *problem { return tooLarge(h.MaxCapsule, "max_capsule") }

func tooLarge(limit int64, option string) *problem {
	return newProblem(kindCapsuleTooLarge, http.StatusRequestEntityTooLarge,
		"The capsule is too large", "The most that is taken is "+sizeString(limit)+"; the operator sets it with "+option+".")
}

// uploadProblem is the refusal for a capsule that the client did not deliver.
func (h *Handler) uploadProblem(fault error) *problem {
	var ofSite *http.MaxBytesError // by Caddy's request_body directive
	switch {
	case errors.Is(fault, errTooLarge):
		return h.tooLarge()
	case errors.As(fault, &ofSite):
		return tooLarge(ofSite.Limit, "request_body")
	case errors.Is(fault, errStalled):
		return newProblem(kindUploadTimeout, http.StatusRequestTimeout,
			"The upload stalled", "Others waited for the memory that it held. Try again on a better connection.")
	case errors.Is(fault, errUploadTimeout) || errors.Is(fault, os.ErrDeadlineExceeded):
		return newProblem(kindUploadTimeout, http.StatusRequestTimeout,
			"The upload took too long", "The whole capsule has to arrive within "+time.Duration(h.UploadTimeout).String()+". Try again on a better connection.")
	case errors.Is(fault, errClientGone):
		return clientLeft()
	default:
		return newProblem(kindUnreadableCapsule, http.StatusBadRequest,
			"The capsule could not be read", "The body broke off or was framed wrongly. Send it again, whole.")
	}
}

func clientLeft() *problem {
	return newProblem(kindClientGone, statusClientGone, "The client left", "Nothing was decided.")
}
