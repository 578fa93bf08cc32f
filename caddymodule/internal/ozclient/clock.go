package ozclient

import (
	"context"
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

// watch ends a call by cancel when its time is up, until ctx ends. It looks at
// the body again and again, so that the body needs no callback.
func (k *call) watch(ctx context.Context, l limits, cancel context.CancelCauseFunc) {
	for left := k.timeLeft(l); left > 0; left = k.timeLeft(l) {
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return
		}
	}
	cancel(errOzTimeout)
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
