package ozclient

import (
	"context"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// shortestLook bounds how often a clock looks at an upload that is waiting for
// its client with hardly any of Oz's time left.
const shortestLook = 20 * time.Millisecond

// clock ends a call whose time is up. Only Oz's time counts: how long a client
// may take is for the body to say. One timer looks at the body and sets itself
// again, so that the body needs no callback.
type clock struct {
	body    upload.Body
	timeout time.Duration // for Oz to take what it was offered, and then to answer
	taking  time.Duration // for Oz to take all of the body
	start   time.Time
	waited  time.Duration // for the client, before the call
	cancel  context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

// startClock starts the clock of a call with body. It must be stopped.
func startClock(body upload.Body, opts Options, cancel context.CancelCauseFunc) *clock {
	s := body.State()
	c := &clock{body: body, timeout: opts.Timeout, taking: opts.UploadTimeout, start: time.Now(), waited: s.Waited, cancel: cancel}
	if s.Received { // no client is waited for: all the time is Oz's
		c.taking = opts.Timeout
	}
	c.mu.Lock() // the timer may fire before it is assigned
	defer c.mu.Unlock()
	c.timer = time.AfterFunc(c.next(), c.look)
	return c
}

func (c *clock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	c.timer.Stop()
}

func (c *clock) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	if wait := c.next(); wait > 0 {
		c.timer.Reset(wait)
		return
	}
	c.cancel(errOzTimeout)
}

// next returns how long Oz's time lasts if the client is not waited for any
// more, or nothing if it is over. From the body's last byte on that is exact:
// no earlier look can have set the timer to a later time than timeout from then.
func (c *clock) next() time.Duration {
	s, now := c.body.State(), time.Now()
	if !s.SentAt.IsZero() {
		return c.timeout - now.Sub(s.SentAt)
	}
	elapsed := now.Sub(c.start)
	left := min(c.taking-(elapsed-(s.Waited-c.waited)), c.timeout-min(s.Untaken, elapsed))
	if left <= 0 {
		return 0
	}
	return max(left, min(shortestLook, c.timeout))
}
