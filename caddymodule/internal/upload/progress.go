package upload

import (
	"io"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// An upload has patience for waiting: time in reads uses it up, received bytes
// give it back. The rate refuses no capsule that could arrive in time: at 4
// KiB/s a client has sent half a megabyte after two minutes. A phone at 50
// kbit/s gains patience, and one that changes its network for nine seconds
// keeps its upload.
const (
	fullPatience   = 10 * time.Second
	bytesPerSecond = 4 << 10
)

// progress bounds the time that an upload's reads may wait. It needs no timer:
// before each read it sets the idle timeout of Caddy's own reader to what is
// left. So time in which nobody reads costs the client nothing. With a
// ResponseWriter that hides read deadlines, on a site without an idle timeout,
// there is nothing to set, and no rule.
//
// Caddy's own minimum rate does something else. With it the idle timeout is
// gone, credit is never capped and the clock is the wall's: 100,000 bytes and
// then silence lasted 34 s, 2 MiB less the last byte would have lasted 522 s.
type progress struct {
	reader  *caddyhttp.IdleTimeoutReader
	restore func()

	site        time.Duration // idle timeout of the site
	siteMinRate int64
	timeout     time.Duration // 0: none

	left     time.Duration // of the patience
	waited   time.Duration // in reads
	bytes    int64
	armed    time.Duration // what the reader is set to
	why      error         // what it means when that is over
	unproven *Refused      // ends the upload as soon as it is slow; nil: it may be slow
}

// idleReader returns the body of r, and the reader that applies the idle
// timeout to it. Where the site has none that is ours and the body itself, as
// in Caddy's timeouts handler.
func idleReader(w http.ResponseWriter, r *http.Request) (body io.Reader, reader *caddyhttp.IdleTimeoutReader) {
	if reader, _ := caddyhttp.IdleTimeoutsFromContext(r.Context()); reader != nil {
		return r.Body, reader
	}
	reader = &caddyhttp.IdleTimeoutReader{
		ReadCloser:        r.Body,
		Ctrl:              http.NewResponseController(w),
		Deadline:          caddyhttp.IdleDeadline{Start: time.Now(), Timeout: fullPatience},
		Logger:            zap.NewNop(),
		DrainDeadline:     r.ProtoMajor == 1 && r.ContentLength != 0,
		ClearBetweenReads: r.ProtoMajor == 2,
	}
	return reader, reader
}

func (p *progress) start(w http.ResponseWriter, r *http.Request, timeout time.Duration) (body io.Reader) {
	body, p.reader = idleReader(w, r)
	p.site, p.siteMinRate = p.reader.Deadline.Timeout, p.reader.Deadline.MinRate
	p.timeout, p.left = timeout, fullPatience
	return body
}

// arm makes the next read end when the first of all limits is reached.
func (p *progress) arm() {
	allowed, why := p.left, ErrStalled
	if left := p.timeout - p.waited; p.timeout > 0 && left < allowed {
		allowed, why = left, ErrTimeout
	}
	if left := p.siteLeft(); left < allowed {
		allowed, why = left, ErrSiteTimeout
	}
	p.why = why
	if left := p.untilSlow(); p.unproven != nil && left < allowed {
		allowed, p.why = left, p.unproven
	}
	p.set(max(allowed, 0))
}

// siteLeft is what the site allows. Its minimum rate stays in force, counted
// over the time in reads.
func (p *progress) siteLeft() time.Duration {
	if p.siteMinRate == 0 {
		return p.site
	}
	return p.site + timeFor(p.bytes, p.siteMinRate) - p.waited
}

// untilSlow returns how long a read may wait before the upload is slow; less
// than 0 if it is already.
func (p *progress) untilSlow() time.Duration {
	return min(slowSilence, max(slowGrace, timeFor(p.bytes, soundRate))-p.waited)
}

// timeFor returns how long n bytes take at a rate.
func timeFor(n, bytesPerSecond int64) time.Duration {
	return time.Duration(float64(n) / float64(bytesPerSecond) * float64(time.Second))
}

// set sets the reader. Only the first Override's restore has the site's own
// settings.
func (p *progress) set(allowed time.Duration) {
	if p.restore != nil && allowed == p.armed {
		return
	}
	restore := p.reader.Override(allowed, 0)
	if p.restore == nil {
		p.restore = restore
	}
	p.armed = allowed
}

// took accounts for a read that waited and brought n bytes.
func (p *progress) took(n int, waited time.Duration) {
	p.waited += waited
	p.bytes += int64(n)
	p.left = min(fullPatience, max(p.left-waited, 0)+timeFor(int64(n), bytesPerSecond))
}

// blame tells which timeout ended a read that has waited so long. If it was none
// of those that were set, it was the site's read_body.
func (p *progress) blame(waited time.Duration) error {
	if waited < p.armed {
		return ErrSiteTimeout
	}
	return p.why
}

// undo gives the reader back its own settings. It must run before the handler
// returns: the server arms the drain of an unfinished body with them.
func (p *progress) undo() {
	if p.restore != nil {
		p.restore()
		p.restore = nil
	}
}
