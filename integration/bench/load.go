package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// protocol is how clients talk to the gateway.
type protocol int

// The protocols that are measured.
const (
	h1 protocol = iota // in clear text
	h1TLS
	h2TLS
)

func (p protocol) String() string {
	return [...]string{"HTTP/1.1", "HTTP/1.1 over TLS", "HTTP/2 over TLS"}[p]
}

// major is the version that an answer must have come by, for the figures to be about this protocol.
func (p protocol) major() int {
	if p == h2TLS {
		return 2
	}
	return 1
}

// client returns a client with connections of its own, as each phone has them. The environment's proxy is ignored. The time limit
// is for a gateway that hangs.
func (p protocol) client() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(p != h2TLS)
	protocols.SetHTTP2(p == h2TLS)
	return &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		MaxIdleConnsPerHost: 1, DisableCompression: true, Protocols: protocols,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the gateway's certificate signs itself
	}}
}

// load is a number of clients that post one capsule after the other, each on a connection that it keeps. Capsules differ in their
// first bytes: to a replay guard each is new.
type load struct {
	url      string
	status   int                         // that each capsule must be answered with
	after    func(context.Context) error // what a client does next; nil: nothing
	capsule  []byte
	posted   atomic.Uint64
	protocol protocol
	clients  []*http.Client
}

func newLoad(gatewayURL string, capsule []byte, clients int, p protocol) *load {
	l := &load{url: gatewayURL + verifyPath, status: http.StatusOK, capsule: capsule, protocol: p}
	for range clients {
		l.clients = append(l.clients, p.client())
	}
	return l
}

func (l *load) close() {
	for _, c := range l.clients {
		c.CloseIdleConnections()
	}
}

// run posts a number of capsules and returns when the last answer is in. The first failure ends it.
func (l *load) run(ctx context.Context, capsules int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var taken atomic.Int64
	var all sync.WaitGroup
	for _, c := range l.clients {
		all.Go(func() {
			for taken.Add(1) <= int64(capsules) && ctx.Err() == nil {
				if err := l.post(ctx, c); err != nil {
					cancel(err)
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// exchanges has the first client post a number of capsules, one after the other, and returns what each took.
func (l *load) exchanges(ctx context.Context, capsules int) (took []time.Duration, err error) {
	for range capsules {
		start := time.Now()
		if err := l.post(ctx, l.clients[0]); err != nil {
			return nil, err
		}
		if l.after != nil {
			if err := l.after(ctx); err != nil {
				return nil, err
			}
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

func (l *load) post(ctx context.Context, client *http.Client) error {
	stamp := binary.BigEndian.AppendUint64(nil, l.posted.Add(1))
	stamp = stamp[:min(len(stamp), len(l.capsule))]
	body := io.MultiReader(bytes.NewReader(stamp), bytes.NewReader(l.capsule[len(stamp):]))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, body)
	if err != nil {
		return err
	}
	req.ContentLength = int64(len(l.capsule))
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("reading the answer to a capsule: %w", err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Errorf("reading the answer to a capsule: %w", err)
	}
	if resp.StatusCode != l.status {
		return fmt.Errorf("a capsule was answered with %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	if resp.ProtoMajor != l.protocol.major() {
		return fmt.Errorf("a capsule was answered by %s, want %s", resp.Proto, l.protocol)
	}
	return nil
}
