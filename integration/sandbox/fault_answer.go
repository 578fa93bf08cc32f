package sandbox

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/http"
	"strconv"
)

// Faults that send another answer, or the right one in a wrong form.

// answerStatus sends what servers usually send with a status.
func answerStatus(a *answer, x *exchange) {
	status := x.met.Status
	title := fmt.Sprintf("%d %s", status, http.StatusText(status))
	switch {
	case status == http.StatusNoContent:
		*a = answer{status: status, header: http.Header{}}
	case status < 300:
		answerFolder(a, x)
		if status == http.StatusPartialContent {
			a.header.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(a.body)-1, len(a.body)))
		}
	case status < 400:
		*a = htmlAnswer(status, title)
		a.header.Set("Location", x.o.BasePath+ElsewherePath)
	case status == http.StatusRequestEntityTooLarge, status == http.StatusBadGateway, status == http.StatusGatewayTimeout:
		*a = htmlAnswer(status, title)
	default:
		codes := map[int]int{400: 14, 401: codeInvalid, 403: codeForbidden, 404: 10, 405: 1, 501: 2, 429: 11, 503: 11}
		messages := map[int]string{
			400: textInvalid, 401: accessTexts[codeInvalid], 403: accessTexts[codeForbidden], 404: "Not found",
			405: "Method not allowed", 429: "Too many requests", 501: "Not realized", 503: "Service is overloaded",
		}
		if x.route != OnFolders {
			codes[400] = 3 // 14 is about capsules
		}
		message, known := messages[status]
		if !known {
			message = "Unknown server side error occurred" // the vendor's own text for code 0
		}
		*a = errorAnswer(status, codes[status], message)
	}
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		switch x.met.RetryAfter {
		case "":
			a.header.Set("Retry-After", "7")
		case "none":
		default:
			a.header.Set("Retry-After", x.met.RetryAfter)
		}
	}
}

// answerFolder sends the right answer with another status. A refused capsule gets a good folder here: what is tested is
// whether the status alone is heeded.
func answerFolder(a *answer, x *exchange) {
	if a.status != http.StatusCreated && (x.route == OnFolders || x.route == OnBiometry) {
		*a = jsonAnswer(http.StatusCreated, x.goodFolder())
	}
	a.render()
	a.status = x.met.Status
}

func answerHTML(a *answer, x *exchange) {
	*a = htmlAnswer(x.met.Status, fmt.Sprintf("%d %s", x.met.Status, http.StatusText(x.met.Status)))
}

func answerJSON(a *answer, x *exchange) {
	*a = jsonAnswer(x.met.Status, fields("message", "something else entirely", "status", strconv.Itoa(x.met.Status)))
}

func answerOzError(a *answer, x *exchange) {
	text, known := accessTexts[x.met.N]
	if !known {
		text = textInvalid
	}
	*a = errorAnswer(x.met.Status, x.met.N, text)
}

func formGzip(a *answer, _ *exchange) {
	a.render()
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed) // the level is valid
	z.Write(a.body)
	z.Close()
	a.body = packed.Bytes()
	a.header.Set("Content-Encoding", "gzip")
}

func formBOM(a *answer, _ *exchange) {
	a.body = append([]byte("\xef\xbb\xbf"), a.body...)
}

func formTrailing(a *answer, x *exchange) {
	a.body = append(a.body, x.met.Word...)
}

func formSecondDocument(a *answer, x *exchange) {
	a.body = appendJSON(append(a.body, '\n'), x.goodFolder())
}

func formTruncated(a *answer, x *exchange) { a.body = x.part(*a) }

func formArray(a *answer, _ *exchange) {
	a.body = append(append([]byte("["), a.body...), ']')
}

func formEmpty(a *answer, _ *exchange) { a.body = nil }

func formContentType(a *answer, x *exchange) { a.header.Set("Content-Type", x.met.Word) }

// formDate sets the Date; nil keeps net/http from adding one.
func formDate(a *answer, x *exchange) {
	a.header["Date"] = []string{x.met.Word}
	if x.met.Word == "none" {
		a.header["Date"] = nil
	}
}

func formEvilHeaders(a *answer, _ *exchange) {
	for name, value := range map[string]string{
		"X-Oz-Decision":    Success,
		"X-Oz-Folder-Id":   "from-an-answer-header",
		"X_Oz_Decision":    Success,
		"Set-Cookie":       "sandbox=evil; Path=/",
		"Location":         ElsewherePath,
		"Server":           "evil",
		"Cache-Control":    "public, max-age=86400",
		"X-Accel-Redirect": "/etc/passwd",
	} {
		a.header[name] = []string{value}
	}
}
