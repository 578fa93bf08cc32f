package caddymodule

import (
	"bytes"
	"io"
	"net/http"
	"strconv"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// heldAnswer holds back an answer until it is complete, or too large, or
// flushed. So it has a Content-Length when a client's unread body is read after
// it, which ends it only if the client knows how long it is; and an answer
// without a body can get one.
type heldAnswer struct {
	*caddyhttp.ResponseWriterWrapper
	status int // 0: none yet
	body   bytes.Buffer
	begun  bool // the header has gone to the client
}

// maxHeld is how much of an answer is held back.
const maxHeld = 64 << 10

func hold(w http.ResponseWriter) *heldAnswer {
	return &heldAnswer{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
}

// WriteHeader implements http.ResponseWriter.
func (a *heldAnswer) WriteHeader(status int) {
	switch {
	case status < http.StatusOK:
		a.ResponseWriterWrapper.WriteHeader(status)
	case a.status == 0:
		a.status = status
	}
}

// Write implements http.ResponseWriter.
func (a *heldAnswer) Write(piece []byte) (int, error) {
	if !a.begun && a.body.Len()+len(piece) <= maxHeld {
		return a.body.Write(piece)
	}
	if err := a.begin(); err != nil {
		return 0, err
	}
	return a.ResponseWriterWrapper.Write(piece)
}

// ReadFrom implements io.ReaderFrom by Write; the wrapper's own would bypass it.
func (a *heldAnswer) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{a}, r)
}

// FlushError implements what http.ResponseController looks for.
func (a *heldAnswer) FlushError() error {
	if err := a.begin(); err != nil {
		return err
	}
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// begin sends what was held back.
func (a *heldAnswer) begin() error {
	if a.begun {
		return nil
	}
	a.begun = true
	if a.status == 0 {
		a.status = http.StatusOK
	}
	a.ResponseWriterWrapper.WriteHeader(a.status)
	if a.body.Len() == 0 {
		return nil
	}
	_, err := a.ResponseWriterWrapper.Write(a.body.Bytes())
	return err
}

func (a *heldAnswer) hasBody() bool { return a.begun || a.body.Len() > 0 }

// write makes the whole answer.
func (a *heldAnswer) write(status int, mediaType string, body []byte) {
	a.status = status
	for _, name := range [...]string{"Content-Encoding", "Content-Length", "Etag"} { // of a body that didn't come
		a.Header().Del(name)
	}
	a.Header().Set("Content-Type", mediaType)
	a.body.Write(body)
}

// finish sends an answer that is complete, with its length.
func (a *heldAnswer) finish() {
	if a.begun || a.status == 0 && a.body.Len() == 0 {
		return // it went, or nothing was answered
	}
	if h := a.Header(); h.Get("Content-Length") == "" && a.status != http.StatusNoContent && a.status != http.StatusNotModified {
		h.Set("Content-Length", strconv.Itoa(a.body.Len()))
	}
	_ = a.begin() // the client may be gone
}

// finishUnread completes an answer to a client that may still be sending.
func (a *heldAnswer) finishUnread(w http.ResponseWriter, r *http.Request) {
	if !a.begun && a.status < http.StatusMultipleChoices {
		upload.DrainFirst(w, r)
	}
	a.finish()
	upload.Linger(w, r)
}

// appAnswer notes the status of the app's answer.
type appAnswer struct {
	*caddyhttp.ResponseWriterWrapper
	status int
}

// WriteHeader implements http.ResponseWriter.
func (a *appAnswer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
	a.ResponseWriterWrapper.WriteHeader(status)
}
