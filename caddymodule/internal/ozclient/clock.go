package ozclient

import (
	"context"
	"math"
	"time"
)

// shortestLook bounds how often an upload is looked at that is waiting for its
// client with hardly any of Oz's time left.
const shortestLook = 20 * time.Millisecond

// limits are how long Oz may take. Only its time counts: how long a client may
// take is for the body to say.
type limits struct {
	timeout time.Duration // to take what it was offered, and then to answer
	taking  time.Duration // to take all of the body
}

func (c *Client) limits(k *call) limits {
	if k.state().Received { // no client is waited for: all the time is Oz's
		return limits{c.opts.Timeout, c.opts.Timeout}
	}
	return limits{c.opts.Timeout, c.opts.UploadTimeout}
}

// watch ends a call by cancel when its time is up, until ctx ends or stop is
// called. It looks at the body again and again, so that the body needs no callback.
func (k *call) watch(ctx context.Context, l limits, cancel context.CancelCauseFunc) (stop func() bool) {
	var clock *time.Timer
	clock = time.AfterFunc(math.MaxInt64, func() {
		switch left := k.timeLeft(l); {
		case ctx.Err() != nil:
		case left > 0:
			clock.Reset(left)
		default:
			cancel(errOzTimeout)
		}
	})
	clock.Reset(k.timeLeft(l))
	return clock.Stop
}

// timeLeft returns how long Oz's time lasts if the client is not waited for any
// more. From the body's last byte on that is exact: no earlier look can have
// been for a later time than timeout from then.
func (k *call) timeLeft(l limits) time.Duration {
	s, now := k.state(), time.Now()
	if !s.SentAt.IsZero() {
		return l.timeout - now.Sub(s.SentAt)
	}
	elapsed := now.Sub(k.start)
	left := min(l.taking-(elapsed-(s.Waited-k.waited)), l.timeout-min(s.Untaken, elapsed))
	if left <= 0 {
		return 0
	}
	return max(left, min(shortestLook, l.timeout))
}
