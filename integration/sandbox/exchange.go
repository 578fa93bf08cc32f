package sandbox

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"time"
)

// exchange is one request on its way through the sandbox.
type exchange struct {
	s     *Sandbox
	o     Options
	w     http.ResponseWriter
	r     *http.Request
	route string
	rec   *Receipt
	meter *meter
	met   metFault
	slot  bool
	// person is who is to be seen in the best shot.
	person string
	// reason is why a capsule was refused: for the log only, as at Oz.
	reason string
}

// shot is the best shot of whom the capsule shows, so many characters long.
func (x *exchange) shot(size int64) base64Text { return x.s.shots.get(shotKey{x.person, size}) }

// only serves one method, with whatever fault is due, and answers 405 to all others.
func (x *exchange) only(method string, work func() answer) {
	if x.r.Method != method {
		a := errorAnswer(http.StatusMethodNotAllowed, 1, "Method not allowed")
		a.header.Set("Allow", method)
		x.send(a)
		return
	}
	x.met = x.s.takeFault(x.route)
	body := io.Reader(x.r.Body)
	if x.met.slow != nil {
		body = x.met.slow(x, body)
	}
	x.meter = newMeter(body, x.o.MaxCapsule)
	x.meter.count = func(n int) {
		x.s.book.update(func(st *Stats) {
			x.rec.Size += int64(n)
			if x.rec.isCapsule() {
				st.Bytes += int64(n)
			}
		})
	}
	if x.met.before != nil {
		x.met.before(x)
		return
	}
	a := work()
	if a.tree != nil && a.status == http.StatusCreated && x.met.tree != nil {
		x.met.tree(&tree{a.tree, x}, x.met.Fault)
	}
	if a.tree != nil && a.status < 300 && x.met.field != nil {
		x.met.field(a.tree, x.met.Fault)
	}
	a.render()
	if x.met.answer != nil {
		x.met.answer(&a, x)
	}
	if x.met.send != nil {
		x.met.send(x, a)
		return
	}
	x.send(a)
}

// folders is POST /api/instant/folders/ with a capsule.
func (x *exchange) folders() answer {
	return x.analyse(func() (func() answer, error) {
		c, refused, err := readCapsule(x.meter, x.o.AcceptAny)
		return func() answer { return x.capsuleAnswer(c, refused) }, err
	})
}

func (x *exchange) capsuleAnswer(c capsule, refused *refusal) answer {
	if kind, _, err := mime.ParseMediaType(x.r.Header.Get("Content-Type")); err != nil || kind != "application/octet-stream" {
		refused = refuse(13, "No data container provided", "Content-Type is not application/octet-stream")
	}
	if refused == nil {
		refused = x.s.judge(c, x.o)
	}
	if refused != nil {
		return refusalAnswer(refused, x.o)
	}
	x.met = x.s.brought(x.met, c)
	x.s.wait(x.o.AnalysisTime)
	return jsonAnswer(http.StatusCreated, x.folder(c))
}

// analyse is what capsules and images have in common: an access token, a place, a body. Receive reads the body to its end
// and returns what is to be done then; its error means that the body did not arrive.
func (x *exchange) analyse(receive func() (func() answer, error)) answer {
	if refused := x.authorize(); refused != nil {
		return *refused
	}
	if x.o.MaxCapsule > 0 && x.r.ContentLength > x.o.MaxCapsule {
		return tooLargeAnswer()
	}
	if !x.o.SlotAfterUpload && !x.takeSlot() {
		return x.overloaded()
	}
	judge, err := receive()
	switch {
	case errors.Is(err, errTooLarge):
		return tooLargeAnswer()
	case err != nil:
		x.abort() // the client has left in the middle of its body
	}
	if x.o.SlotAfterUpload && !x.takeSlot() {
		return x.overloaded()
	}
	return judge()
}

// token is GET /api/authorize/session_token.
func (x *exchange) token() answer {
	if refused := x.authorize(); refused != nil {
		return *refused
	}
	x.s.book.update(func(st *Stats) { st.Tokens++ })
	return jsonAnswer(http.StatusOK, fields("session_token", x.s.NewToken()))
}

// version is GET /api/version. The body's shape is not published.
func (x *exchange) version() answer {
	return jsonAnswer(http.StatusOK, fields("version", "sandbox"))
}

// elsewhere is the place that no client should ever be led to: a folder that says SUCCESS to liveness and to likeness, for
// nothing at all.
func (x *exchange) elsewhere() answer {
	t := tree{x.goodFolder(), x}
	t.analyses().items = append(t.analyses().items, t.builder().biometry(Success, scoresOf(Success), nil))
	return jsonAnswer(http.StatusCreated, t.object)
}

// takeSlot waits for a place, and reports false when there is none to be had.
func (x *exchange) takeSlot() bool {
	x.slot = x.s.slots.acquire(x.r.Context(), x.o.Parallel, x.o.Overflow == OverflowQueue, x.s.done)
	if !x.slot && x.o.Overflow == OverflowQueue {
		x.abort() // the client has left, or the sandbox is closing
	}
	return x.slot
}

// giveSlot gives the place back, once. An ordinary answer does so before it is sent: who has read it and comes again at
// once must not find the place still taken.
func (x *exchange) giveSlot() {
	if x.slot {
		x.slot = false
		x.s.slots.release()
	}
}

func (x *exchange) overloaded() answer {
	x.s.book.update(func(st *Stats) { st.Refused++ })
	a := errorAnswer(http.StatusServiceUnavailable, 11, "Service is overloaded")
	a.header.Set("Retry-After", strconv.Itoa(1))
	return a
}

// abort ends the request without an answer: HTTP/1 closes the connection, HTTP/2 resets the stream.
func (x *exchange) abort() { panic(http.ErrAbortHandler) }

// close is the last thing that happens to every request, aborted ones included.
func (x *exchange) close() {
	x.giveSlot()
	x.s.book.update(func(*Stats) {
		x.rec.End = time.Now()
		x.noteBody()
	})
	x.log()
	x.s.book.update(func(st *Stats) { // last: who waits for the end finds everything in place
		x.rec.Finished = true
		st.end(x.rec)
	})
}

// noteBody writes down what has come of the body. It is called with the book locked.
func (x *exchange) noteBody() {
	x.rec.Trailer = tidyTrailer(x.r.Trailer)
	x.rec.Complete = x.r.Body == http.NoBody
	if x.meter != nil {
		x.rec.Digest, x.rec.Complete = x.meter.digest(), x.rec.Complete || x.meter.ended
	}
}

func (x *exchange) log() {
	attrs := []slog.Attr{
		slog.String("route", x.route), slog.String("method", x.r.Method), slog.Int("status", x.rec.Status),
		slog.Duration("took", x.rec.End.Sub(x.rec.Start)),
	}
	if x.route == OnFolders || x.route == OnBiometry {
		attrs = append(attrs, slog.Int64("bytes", x.rec.Size), slog.String("digest", x.rec.Digest), slog.Bool("complete", x.rec.Complete))
	}
	if x.rec.Code != 0 {
		attrs = append(attrs, slog.Int("error_code", x.rec.Code))
	}
	if x.reason != "" {
		attrs = append(attrs, slog.String("reason", x.reason))
	}
	if x.met.Kind != "" {
		attrs = append(attrs, slog.String("fault", x.met.Kind))
	}
	x.o.Logger.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
}
