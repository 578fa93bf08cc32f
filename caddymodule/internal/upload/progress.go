package upload

import (
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
	own     bool // reader is ours and not the server's
	restore func()

	site        time.Duration // idle timeout of the site; 0: none
	siteMinRate int64
	timeout     time.Duration // 0: none

	patience time.Duration // most that left can be
	left     time.Duration
	spent    time.Duration // in reads
	received int64
	armed    time.Duration // what the reader is set to
}

// idleReader returns the reader that applies the idle timeout to the body of
// r. Where the site has none it wraps the body, as Caddy's timeouts handler does.
func idleReader(w http.ResponseWriter, r *http.Request) (reader *caddyhttp.IdleTimeoutReader, own bool) {
	if reader, _ := caddyhttp.IdleTimeoutsFromContext(r.Context()); reader != nil {
		return reader, false
	}
	return &caddyhttp.IdleTimeoutReader{
		ReadCloser:        r.Body,
		Ctrl:              http.NewResponseController(w),
		Deadline:          caddyhttp.IdleDeadline{Start: time.Now(), Timeout: fullPatience},
		Logger:            zap.NewNop(),
		DrainDeadline:     r.ProtoMajor == 1 && r.ContentLength != 0,
		ClearBetweenReads: r.ProtoMajor == 2,
	}, true
}

func (p *progress) start(w http.ResponseWriter, r *http.Request, timeout time.Duration) {
	p.reader, p.own = idleReader(w, r)
	if !p.own {
		p.site, p.siteMinRate = p.reader.Deadline.Timeout, p.reader.Deadline.MinRate
	}
	p.timeout = timeout
	p.patience, p.left = fullPatience, fullPatience
}

// allowed returns how long the next read may wait. The site's minimum rate
// stays in force, counted over the time in reads.
func (p *progress) allowed() time.Duration {
	allowed := p.left
	if p.timeout > 0 {
		allowed = min(allowed, p.timeout-p.spent)
	}
	switch {
	case p.siteMinRate > 0:
		credit := time.Duration(float64(p.received) / float64(p.siteMinRate) * float64(time.Second))
		allowed = min(allowed, p.site+credit-p.spent)
	case p.site > 0:
		allowed = min(allowed, p.site)
	}
	return max(allowed, 0)
}

// arm makes the next read end after that time. Only the first Override's
// restore has the site's own settings.
func (p *progress) arm(allowed time.Duration) {
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
	p.spent += waited
	p.received += int64(n)
	credit := time.Duration(n) * time.Second / bytesPerSecond
	p.left = min(p.patience, max(p.left-waited, 0)+credit)
}

// blame tells which timeout ended a read that has waited so long. It is asked
// before took.
func (p *progress) blame(waited time.Duration) error {
	timeoutLeft := p.left
	if p.timeout > 0 {
		timeoutLeft = p.timeout - p.spent
	}
	switch {
	case waited < min(p.left, timeoutLeft):
		return ErrSiteTimeout
	case timeoutLeft < p.left:
		return ErrTimeout
	}
	return ErrStalled
}

// undo gives the reader back its own settings. It must run before the handler
// returns: the server arms the drain of an unfinished body with them.
func (p *progress) undo() {
	if p.restore != nil {
		p.restore()
		p.restore = nil
	}
}
