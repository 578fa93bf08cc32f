package caddymodule

import (
	"net/http"
	"strings"
)

// The names that tell the app what was decided. All of them, and every other
// name that an app server could take for one of them, belong to this module:
// see [reserved].
const (
	headerDecision         = "X-Oz-Decision"
	headerReason           = "X-Oz-Reason"
	headerFolderID         = "X-Oz-Folder-Id"
	headerEventSessionID   = "X-Oz-Event-Session-Id"
	headerResolutionStatus = "X-Oz-Resolution-Status"
	headerSystemResolution = "X-Oz-System-Resolution"
	headerQuality          = "X-Oz-Quality"
	headerBiometry         = "X-Oz-Biometry"
	headerErrorCode        = "X-Oz-Error-Code"
	headerBestShot         = "X-Oz-Best-Shot"
)

// reserved reports whether name folds to "x-oz-…": lower-cased, with any
// character but letters and digits read as "-". CGI, WSGI, Rack and PHP fold
// header names in this way (some of them only "_", some also "." and others),
// so that X_Oz.Decision would arrive there under the same name as our own.
func reserved(name string) bool {
	return len(name) >= len("x-oz-") &&
		lower(name[0]) == 'x' && separates(name[1]) &&
		lower(name[2]) == 'o' && lower(name[3]) == 'z' && separates(name[4])
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

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
	stripConnection(r.Header)
	delete(r.Header, "Trailer")
	r.Trailer = nil
}

// stripConnection drops the reserved names from the Connection field and
// leaves its other options, which an undecided request may need (Upgrade).
func stripConnection(h http.Header) {
	lines, ok := h["Connection"]
	if !ok || !namesReserved(lines) {
		return
	}
	var kept []string
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			if option = strings.TrimSpace(option); option != "" && !reserved(option) {
				kept = append(kept, option)
			}
		}
	}
	if len(kept) == 0 {
		delete(h, "Connection")
		return
	}
	h["Connection"] = []string{strings.Join(kept, ", ")}
}

func namesReserved(lines []string) bool {
	for _, line := range lines {
		for option := range strings.SplitSeq(line, ",") {
			if reserved(strings.TrimSpace(option)) {
				return true
			}
		}
	}
	return false
}

// staleHeaders describe the capsule, or the connection it came on, and would
// lie about the body that the app gets in its place.
var staleHeaders = []string{
	"Connection",
	"Content-Digest",
	"Content-Encoding",
	"Content-Md5",
	"Content-Range",
	"Digest",
	"Expect",
	"Range",
	"Repr-Digest",
	"Trailer",
	"Transfer-Encoding",
}

// headerValue returns s if it may stand in a header of ours: 1 to 128 letters,
// digits and ". _ : -". Anything else comes out empty and the header stays
// away. What Oz sends is data, and some of it was written by the device.
func headerValue(s string) string {
	if len(s) > 128 {
		return ""
	}
	for i := range len(s) {
		c := s[i]
		if separates(c) && c != '.' && c != '_' && c != ':' && c != '-' {
			return ""
		}
	}
	return s
}
