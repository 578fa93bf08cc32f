package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load is a number of clients that post one capsule over and over, each on a connection that it keeps.
type load struct {
	url     string
	capsule []byte
	clients int
	http    *http.Client
}

func newLoad(addr string, capsule []byte, clients int) *load {
	return &load{
		url: "http://" + addr + verifyPath, capsule: capsule, clients: clients,
		// No proxy from the environment. The time limit is for a gateway that hangs.
		http: &http.Client{
			Timeout:   2 * time.Minute,
			Transport: &http.Transport{MaxIdleConnsPerHost: clients, DisableCompression: true},
		},
	}
}

func (l *load) close() { l.http.CloseIdleConnections() }

// run posts so many capsules and returns when the last answer is in. The first failure ends it.
func (l *load) run(ctx context.Context, capsules int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var taken atomic.Int64
	var all sync.WaitGroup
	for range l.clients {
		all.Go(func() {
			for taken.Add(1) <= int64(capsules) && ctx.Err() == nil {
				if err := l.post(ctx); err != nil {
					cancel(err)
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

func (l *load) post(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url, bytes.NewReader(l.capsule))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := l.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("reading the answer to a capsule: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("a capsule was answered with %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return nil
}
