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

// bytesPerMbit is how much a link of one Mbit/s carries in a second.
const bytesPerMbit = 1_000_000 / 8

// newClient returns a client that makes a connection for each capsule, as phones do.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, ExpectContinueTimeout: time.Hour}}
}

// upload is a capsule to post, and how its client sends it.
type upload struct {
	url     string
	id      string // sent as X-Request-Id, which the gateway passes on to Oz and to the app; empty: none
	capsule []byte
	rate    int64 // of the client's link, in bytes a second; 0: no limit
	expect  bool  // ask before sending the capsule
	chunked bool  // do not announce its length

	leaveAt    int64         // leave after this many bytes of the capsule; 0: no
	leaveAfter time.Duration // leave this long after its last byte; 0: no
}

// response says how an upload went.
type response struct {
	begun, ended time.Time
	sent         int64 // bytes of the capsule that left the client
	left         bool  // the client left, as it was told to, before the answer was in

	status     int    // 0: there was no answer
	via        string // the gateway that the one in front had chosen, if there is one
	problem    bool
	retryAfter time.Duration // 0: the answer had none
	text       string
	err        error
}

var errLeft = errors.New("the client left")

func (u upload) post(ctx context.Context, client *http.Client) (a response) {
	a.begun = time.Now()
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	body := &link{data: u.capsule, upload: u, leave: func() { leave(errLeft) }}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.url, body)
	if err != nil {
		return response{err: err}
	}
	if !u.chunked {
		req.ContentLength = int64(len(u.capsule))
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if u.id != "" {
		req.Header.Set("X-Request-Id", u.id)
	}
	if u.expect {
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

func (a *response) receive(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	a.via = resp.Header.Get(viaHeader)
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

// link is the body of a request on a link of limited speed.
type link struct {
	upload upload
	data   []byte
	leave  func()
	start  time.Time
	sent   atomic.Int64
}

// linkPiece is how many bytes go over a limited link at a time.
const linkPiece = 4 << 10

func (l *link) Read(p []byte) (int, error) {
	sent := l.sent.Load()
	if l.upload.leaveAt > 0 && sent >= l.upload.leaveAt {
		l.leave()
		return 0, errLeft
	}
	if int(sent) == len(l.data) {
		return 0, io.EOF
	}
	if l.upload.rate > 0 {
		p = p[:min(len(p), linkPiece)]
		l.pace(sent)
	}
	n := copy(p, l.data[sent:])
	l.sent.Add(int64(n))
	if int(sent)+n == len(l.data) && l.upload.leaveAfter > 0 {
		time.AfterFunc(l.upload.leaveAfter, l.leave)
	}
	return n, nil
}

// pace waits until the link could have carried that many bytes.
func (l *link) pace(sent int64) {
	if l.start.IsZero() {
		l.start = time.Now()
	}
	time.Sleep(time.Until(l.start.Add(time.Duration(sent) * time.Second / time.Duration(l.upload.rate))))
}

// Close has nothing to close: the capsule may still be read from, by a connection that is about to end.
func (l *link) Close() error { return nil }
