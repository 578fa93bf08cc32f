package sandbox

import (
	"io"
	"time"
)

// kind is one kind of fault: a row of the table below. It takes hold at one or more points of an exchange.
type kind struct {
	name     string
	param    string // the field that the value after the colon sets; "" for none
	defaults Fault
	words    []string // the varieties, when Word may not be anything
	shot     bool     // it spoils the best shot, which only liveness has
	outcome  bool     // Word is the outcome, whatever is sent
	help     string
	group    string

	slow   func(x *exchange, body io.Reader) io.Reader // how the body is read
	before func(x *exchange)                           // instead of everything, the body unread
	tree   func(t *tree, f Fault)                      // what a folder says
	field  func(o *object, f Fault)                    // what any JSON document says at its top level
	answer func(a *answer, x *exchange)                // what is sent, as status, headers and bytes
	send   func(x *exchange, a answer)                 // how it is sent
}

// ofFolders reports whether the kind makes sense for nothing but folders.
func (k *kind) ofFolders() bool { return k.tree != nil || k.outcome }

// kinds is filled in by init because its functions, in a roundabout way, look kinds up.
var kinds []kind

func init() {
	groups := []struct {
		name  string
		kinds []kind
	}{{"wire", wireKinds()}, {"answer", answerKinds()}, {"form", formKinds()}, {"content", contentKinds()}}
	for _, g := range groups {
		for _, k := range g.kinds {
			k.group = g.name
			kinds = append(kinds, k)
		}
	}
}

func kindByName(name string) *kind {
	for i := range kinds {
		if kinds[i].name == name {
			return &kinds[i]
		}
	}
	return nil
}

const defaultEarly = 64 << 10

func wireKinds() []kind {
	return []kind{
		{name: "close-accept", help: "close every connection right after accepting it (needs Sandbox.Listener, else like close)", before: closeUnread},
		{name: "close", help: "close the connection after the request's header, body unread", before: closeUnread},
		{name: "reset-body", param: "bytes", defaults: Fault{Bytes: defaultEarly}, help: "reset the connection (RST) after so many bytes of the body", before: resetInBody},
		{name: "reset", help: "reset the connection (RST) when the whole body was read, instead of an answer", send: resetAfterBody},
		{name: "hang", help: "read the whole body and never answer", send: hang},
		{name: "hang-reading", help: "never read the body, never answer", before: hangUnread},
		{name: "slow-reading", param: "pause", defaults: Fault{Pause: 10 * time.Millisecond, Bytes: 4096}, help: "read the body slowly: a pause before every 4096 (bytes=) bytes", slow: slowReading},
		{name: "early", param: "status", defaults: Fault{Status: 400, Bytes: defaultEarly}, help: "answer 400 code 14 (or 201 SUCCESS, or another status) after 64 KiB (bytes=) of the body, then close without reading the rest", before: answerEarly},
		{name: "cut", param: "bytes", help: "promise a Content-Length, close after so many bytes of the answer (default: half)", send: sendCut},
		{name: "cut-chunked", param: "bytes", help: "the same in a chunked answer: the last chunk never comes", send: sendCutChunked},
		{name: "drip", param: "pause", defaults: Fault{Pause: 10 * time.Millisecond, Bytes: 1}, help: "send the answer byte by byte (bytes=), with a pause after each", send: sendDrip},
		{name: "chunked", help: "send the answer in chunks, without a Content-Length", send: sendChunked},
		{name: "trailers", help: "the same, with X-Oz-Decision: SUCCESS as a trailer", send: sendTrailers},
		{name: "1xx", help: "send 103 and 102 before the answer", send: sendInformational},
		{name: "upgrade", help: "answer 101 Switching Protocols", send: sendUpgrade},
		{name: "length", param: "word", defaults: Fault{Word: "short"}, words: []string{"short", "long", "twice", "chunked"}, help: "dishonest Content-Length: short (more bytes follow), long (then silence), twice (two different ones), chunked (beside Transfer-Encoding)", send: sendDishonest},
	}
}

func answerKinds() []kind {
	return []kind{
		{name: "status", param: "status", defaults: Fault{Status: 500}, help: "answer another status with what usually comes with it: 500 code 0, 401 and 403 an error object, 413 and 502 HTML, 429 and 503 with Retry-After, 3xx with Location, 2xx the folder", answer: answerStatus},
		{name: "html", param: "status", defaults: Fault{Status: 200}, help: "answer a HTML page with this status", answer: answerHTML},
		{name: "json", param: "status", defaults: Fault{Status: 400}, help: "answer JSON that is neither a folder nor Oz's error object, with this status", answer: answerJSON},
		{name: "folder", param: "status", defaults: Fault{Status: 200}, help: "answer the right folder with this status", answer: answerFolder},
		{name: "oz-error", param: "n", defaults: Fault{N: 14, Status: 400}, help: "answer Oz's error object with this code (default 14) and 400 (status=)", answer: answerOzError},
	}
}

func formKinds() []kind {
	return []kind{
		{name: "gzip", help: "compress the answer whatever Accept-Encoding says", answer: formGzip},
		{name: "bom", help: "begin the answer with a byte order mark", answer: formBOM},
		{name: "trailing", param: "word", defaults: Fault{Word: "trailing"}, help: "put a word after the document", answer: formTrailing},
		{name: "second-document", help: "put a second folder, SUCCESS, after the first", answer: formSecondDocument},
		{name: "truncated", param: "bytes", help: "stop in the middle of the document, with a Content-Length that fits", answer: formTruncated},
		{name: "array", help: "put the document into an array", answer: formArray},
		{name: "empty-body", help: "an answer of no bytes", answer: formEmpty},
		{name: "content-type", param: "word", defaults: Fault{Word: "text/html"}, help: "another Content-Type on the right answer", answer: formContentType},
		{name: "date", param: "word", defaults: Fault{Word: "none"}, help: "another Date on the right answer, or none at all", answer: formDate},
		{name: "evil-headers", help: "headers that must not travel on: X-Oz-Decision: SUCCESS, Set-Cookie, Location and others", answer: formEvilHeaders},
	}
}

func contentKinds() []kind {
	return []kind{
		{name: "outcome", outcome: true, param: "word", defaults: Fault{Word: Failed}, words: Outcomes(), help: "the folder of this outcome, whatever the capsule asks for or the images show"},
		{name: "field", param: "word", defaults: Fault{Word: "folder_id"}, help: "a field at the top of any JSON answer: NAME=JSON sets it, NAME leaves it out, NAME,bytes=N makes it a text of that length", field: setField},
		{name: "dup-field", param: "word", defaults: Fault{Word: "folder_id=null"}, help: "the same field a second time: NAME=JSON", field: dupField},

		{name: "dup-declined-success", help: "system_resolution twice: DECLINED, then SUCCESS", tree: dupDeclinedSuccess},
		{name: "dup-success-declined", help: "system_resolution twice: SUCCESS, then DECLINED", tree: dupSuccessDeclined},
		{name: "dup-escaped", help: `DECLINED under its name, SUCCESS under system\u005fresolution`, tree: dupEscaped},
		{name: "dup-nested", help: "resolution_status of QUALITY twice: DECLINED, then SUCCESS", tree: dupNested},
		{name: "dup-analyses", help: "analyses twice: QUALITY DECLINED in the first, SUCCESS in the second", tree: dupAnalyses},
		{name: "dup-image", shot: true, help: "image_b64 twice in each output image", tree: dupImage},
		{name: "other-case", help: "System_Resolution and Resolution_Status instead of the right names", tree: otherCase},
		{name: "case-both", help: "DECLINED under the right name, SUCCESS under System_Resolution", tree: caseBoth},
		{name: "case-fold", help: "DECLINED under the right name, SUCCESS under one spelt with a long s (U+017F)", tree: caseFold},
		{name: "escaped-names", help: `every underscore in a name written \u005f, as in image\u005fb64`, tree: escapedNames},
		{name: "escaped-slashes", shot: true, help: `every slash in the image written \/`, tree: escapedSlashes},

		{name: "word", param: "word", defaults: Fault{Word: "APPROVED"}, help: "another word as system_resolution", tree: setWord("system_resolution")},
		{name: "resolution", param: "word", defaults: Fault{Word: "DONE"}, help: "another word as resolution_status", tree: setWord("resolution_status")},
		{name: "processing", help: "PROCESSING in every status", tree: processing},
		{name: "contradiction", help: "resolution_status FAILED beside system_resolution SUCCESS", tree: contradiction},
		{name: "failed-system", help: "resolution_status FINISHED beside system_resolution FAILED", tree: failedSystem},
		{name: "absent-decision", help: "neither of the two decision fields", tree: absentDecision},
		{name: "null-decision", help: "both decision fields null", tree: nullDecision},
		{name: "wrong-types", help: `system_resolution is ["SUCCESS"]`, tree: wrongTypes},

		{name: "no-quality", help: "only a BIOMETRY analysis, SUCCESS (of images: only a QUALITY analysis)", tree: noQuality},
		{name: "no-analyses", help: "analyses is empty", tree: noAnalyses},
		{name: "quality-declined", help: "QUALITY is DECLINED while the top level says SUCCESS", tree: qualityIs("FINISHED", Declined)},
		{name: "quality-failed", help: "QUALITY is FAILED while the top level says SUCCESS", tree: qualityIs("FAILED", Failed)},
		{name: "quality-unfinished", help: "QUALITY is still PROCESSING, SUCCESS already", tree: qualityIs("PROCESSING", Success)},
		{name: "several-quality", param: "n", defaults: Fault{N: 2}, help: "so many QUALITY entries, all alike", tree: severalQuality},
		{name: "several-quality-mixed", help: "two QUALITY entries: SUCCESS, then DECLINED", tree: severalQualityMixed},
		{name: "no-media", help: "SUCCESS with no media at all: media, source_media and results_media are empty", tree: noMedia},

		{name: "nulls", help: "everything that a decision does not need is null", tree: nulls},
		{name: "absent", help: "everything that a decision does not need is absent", tree: absent},
		{name: "analysis-id", help: "analysis_id instead of analyse_id", tree: analysisID},
		{name: "extra", help: "unknown fields on every level", tree: extra},
		{name: "original-url", shot: true, help: "original_url instead of image_b64", tree: originalURL},
		{name: "image-value", shot: true, param: "word", defaults: Fault{Word: "null"}, help: "this JSON as image_b64", tree: imageValue},
		{name: "no-best-shot", shot: true, help: "output_images is empty", tree: noBestShot},
		{name: "several-best-shots", shot: true, param: "n", defaults: Fault{N: 3}, help: "so many output images in each result", tree: severalBestShots},
		{name: "big", shot: true, param: "bytes", defaults: Fault{Bytes: 20 << 20}, help: "an image_b64 of this size (default 20 MiB)", tree: bigImage},
		{name: "big-text", param: "bytes", defaults: Fault{Bytes: 2 << 20}, help: "a resolution_comment of this size (default 2 MiB)", tree: bigText},

		{name: "bad-utf8", help: "invalid UTF-8 in resolution_comment", tree: badUTF8},
		{name: "lone-surrogate", help: `half a surrogate pair (\ud800) in resolution_comment`, tree: loneSurrogate},
		{name: "depth", param: "n", defaults: Fault{N: 300}, help: "arrays nested so deep in an unknown field", tree: depth},
		{name: "inject", param: "word", defaults: Fault{Word: "crlf"}, words: injectionNames(), help: "text that must not become a header, in folder_id and event_session_id: crlf, lf, control, nonascii, long (1 MB)", tree: injectIDs},
		{name: "inject-status", param: "word", defaults: Fault{Word: "crlf"}, words: injectionNames(), help: "the same behind SUCCESS in the statuses, top level and QUALITY", tree: injectStatus},
		{name: "placeholder", help: "{env.HOME}, {file./etc/hostname} and others in every text an app sees", tree: placeholders},
	}
}
