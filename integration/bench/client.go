package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// bytesPerMbit is what a link of one Mbit/s carries in a second.
const bytesPerMbit = 1_000_000 / 8

// newClient makes a connection for each capsule, as phones do.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, ExpectContinueTimeout: time.Hour}}
}

// order is a capsule to post, and how its client goes about it.
type order struct {
	url     string
	id      string // sent as X-Request-Id, which the gateway passes on to Oz and to the app; empty: none
	capsule []byte
	rate    int64 // of the client's link, in bytes a second; 0: no limit
	expect  bool  // ask before sending the capsule
	chunked bool  // do not tell its length

	leaveAt    int64         // leave after so many bytes of the capsule; 0: no
	leaveAfter time.Duration // leave so long after its last byte; 0: no
}

// attempt is how an order went.
type attempt struct {
	begun, ended time.Time
	sent         int64 // bytes of the capsule that left the client
	left         bool  // the client left, as ordered, before the answer was in

	status     int // 0: there was no answer
	problem    bool
	retryAfter time.Duration // 0: none was told
	text       string
	err        error
}

var errLeft = errors.New("the client left")

func (o order) post(ctx context.Context, client *http.Client) (a attempt) {
	a.begun = time.Now()
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	body := &link{data: o.capsule, order: o, leave: func() { leave(errLeft) }}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url, body)
	if err != nil {
		return attempt{err: err}
	}
	if !o.chunked {
		req.ContentLength = int64(len(o.capsule))
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if o.id != "" {
		req.Header.Set("X-Request-Id", o.id)
	}
	if o.expect {
		req.Header.Set("Expect", "100-continue")
	}
	err = a.receive(client.Do(req))
	a.ended, a.sent = time.Now(), body.sent.Load()
	if err != nil {
		a.status, a.err = 0, err
		a.left = errors.Is(context.Cause(ctx), errLeft)
	}
	return a
}

func (a *attempt) receive(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return err
	}
	a.status, a.text = resp.StatusCode, strings.TrimSpace(string(text))
	a.problem = resp.Header.Get("Content-Type") == "application/problem+json"
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err == nil {
		a.retryAfter = time.Duration(seconds) * time.Second
	}
	return nil
}

// link is a capsule on its way over a link of limited speed.
type link struct {
	order order
	data  []byte
	leave func()
	start time.Time
	sent  atomic.Int64
}

// linkPiece is how much goes over a limited link at a time.
const linkPiece = 4 << 10

func (l *link) Read(p []byte) (int, error) {
	sent := l.sent.Load()
	if l.order.leaveAt > 0 && sent >= l.order.leaveAt {
		l.leave()
		return 0, errLeft
	}
	if int(sent) == len(l.data) {
		return 0, io.EOF
	}
	if l.order.rate > 0 {
		p = p[:min(len(p), linkPiece)]
		l.pace(sent)
	}
	n := copy(p, l.data[sent:])
	l.sent.Add(int64(n))
	if int(sent)+n == len(l.data) && l.order.leaveAfter > 0 {
		time.AfterFunc(l.order.leaveAfter, l.leave)
	}
	return n, nil
}

// pace waits until so much could have gone over the link.
func (l *link) pace(sent int64) {
	if l.start.IsZero() {
		l.start = time.Now()
	}
	time.Sleep(time.Until(l.start.Add(time.Duration(sent) * time.Second / time.Duration(l.order.rate))))
}

// Close has nothing to close: the capsule may still be read from, by a connection that is about to end.
func (l *link) Close() error { return nil }
