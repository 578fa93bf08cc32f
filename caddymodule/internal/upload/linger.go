package upload

import (
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// How long Linger reads. Over HTTP/1 as nginx does; over HTTP/2 and HTTP/3 the
// end of the answer waits until the handler returns, and a client may wait for
// it. Over HTTP/3 a client that still sends is read for longer: once it is told
// to stop, Chromium may never show the answer to the page.
const (
	lingerTotal   = 30 * time.Second
	lingerSilence = 5 * time.Second
	lingerStream  = 500 * time.Millisecond
	lingerHTTP3   = 5 * time.Second
)

// Linger flushes the answer and then reads and discards what is left of the
// body of r, so that a client that writes before it reads sees the answer: to
// close a connection with bytes unread resets it, and the reset overtakes the
// answer. The body may be the Rest of a Stream.
//
// Over HTTP/1 it does so only if the answer has a Content-Length: without one
// the flush makes it chunked, and its end would come after the lingering. Call
// CloseAfter before the answer's header is written, or net/http reads the body
// first.
//
// It reads nothing if the client waits for a 100 Continue and has sent nothing.
func Linger(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 && w.Header().Get("Content-Length") == "" || !unread(r) {
		return
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return // without a flush nobody has an answer to wait for
	}
	drain(w, r)
}

// DrainFirst reads what is left of the body before the answer, with Linger's
// bounds. It is for an HTTP/2 or HTTP/3 answer of success: curl keeps sending
// then, but stops reading when the answer has come, window updates included,
// and waits for ever.
func DrainFirst(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor > 1 && unread(r) {
		drain(w, r)
	}
}

func drain(w http.ResponseWriter, r *http.Request) {
	total, silence := lingerTotal, lingerSilence
	switch r.ProtoMajor {
	case 2:
		total, silence = lingerStream, lingerStream
	case 3:
		total, silence = lingerHTTP3, lingerStream
	}
	body, reader := lingerBody(w, r)
	reader.Override(silence, 0)
	if reader.SetReadDeadline(time.Now().Add(total)) != nil {
		return // nothing would end a read
	}
	if discard(body) != io.EOF {
		_ = reader.SetReadDeadline(longAgo) // net/http must not wait for more
	}
}

// unread reports whether there is more of the body to read, and reading it
// would not ask the client for it.
func unread(r *http.Request) bool {
	if rest, ok := r.Body.(*rest); ok {
		st := rest.s.State()
		return !st.Received && (st.Bytes > 0 || !expectsContinue(r))
	}
	return r.Body != nil && r.ContentLength != 0 && !expectsContinue(r)
}

func expectsContinue(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Expect"), "100-continue")
}

// lingerBody returns what is to be read, and the reader that bounds it.
func lingerBody(w http.ResponseWriter, r *http.Request) (io.Reader, *caddyhttp.IdleTimeoutReader) {
	if rest, ok := r.Body.(*rest); ok {
		return rest, rest.s.progress.reader
	}
	return idleReader(w, r)
}

// discard reads to the end of the body, or until the process is about to exit.
func discard(body io.Reader) error {
	buffer := chunks.Get().(*chunk)
	defer chunks.Put(buffer)
	for !caddy.Exiting() {
		if _, err := body.Read(buffer[:]); err != nil {
			return err
		}
	}
	return nil
}

// SetReadDeadline bounds the reads of the body of r. It works below a
// ResponseWriter without Unwrap, where the server applies an idle timeout.
func SetReadDeadline(w http.ResponseWriter, r *http.Request, deadline time.Time) error {
	_, reader := idleReader(w, r)
	return reader.SetReadDeadline(deadline)
}

// closeDelay is how long the server waits, after an answer, for what is left
// of a small body.
const closeDelay = time.Second

// CloseAfter ends an HTTP/1 connection after the answer, since there is more of
// the body on it. It must be called before the answer's header is written.
//
// The connection must end gently: net/http must half-close it first and wait
// a little, as it does by itself where it knows of the unread body; here
// Caddy's wrapper hides that from it. Before that net/http reads on if little
// is left, which may never come: with Expect: 100-continue the client keeps it.
func CloseAfter(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 1 {
		return
	}
	w.Header().Set("Connection", "close")
	// A MaxBytesReader that meets its limit is the one way to ask for it.
	over := http.MaxBytesReader(innermost(w), io.NopCloser(strings.NewReader("x")), 0)
	_, _ = over.Read(make([]byte, 1))
	_ = SetReadDeadline(w, r, time.Now().Add(closeDelay))
}

// innermost returns the server's own ResponseWriter.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = wrapper.Unwrap()
	}
}
