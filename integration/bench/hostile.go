package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// hostileKind is how a hostile upload wastes the gateway's room.
type hostileKind string

// The kinds of hostile uploads.
const (
	idleUpload     hostileKind = "idle"     // sends the head and one byte
	drippingUpload hostileKind = "dripping" // sends 5 KB a second
	stalledUpload  hostileKind = "stalled"  // sends all but the last byte
)

func hostileKinds() []string {
	return []string{string(idleUpload), string(drippingUpload), string(stalledUpload)}
}

func checkKinds(kinds []string) error {
	for _, k := range kinds {
		if !slices.Contains(hostileKinds(), k) {
			return fmt.Errorf("--kinds: unknown kind %q (want %s)", k, strings.Join(hostileKinds(), ", "))
		}
	}
	return nil
}

const (
	dripSize     = 512
	dripInterval = 100 * time.Millisecond

	// hostileInterval is the least time between two uploads of one attacker. An attacker returns at once when the gateway ends its
	// upload. Without the interval refused attackers would measure how fast this machine refuses, instead of what an upload wastes.
	hostileInterval = time.Second
)

// attackers keep a number of hostile uploads open on the gateway.
type attackers struct {
	kind    hostileKind
	addr    string // of the gateway
	capsule []byte
}

// start returns once every attacker has sent its first bytes. They continue until ctx ends; then wait returns.
func (a attackers) start(ctx context.Context, n int) (wait func()) {
	var started, all sync.WaitGroup
	started.Add(n)
	for range n {
		all.Go(func() {
			first := sync.OnceFunc(started.Done)
			defer first()
			for ctx.Err() == nil {
				next := time.After(hostileInterval)
				a.upload(ctx, first)
				select {
				case <-ctx.Done():
				case <-next:
				}
			}
		})
	}
	started.Wait()
	return all.Wait
}

// upload sends what its kind sends, and returns when the gateway answers or closes the connection. A connection that breaks is
// an upload that has ended, and not an error.
func (a attackers) upload(ctx context.Context, sent func()) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", a.addr)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	ended := make(chan struct{})
	go func() {
		conn.Read(make([]byte, 1))
		conn.Close() // also ends a write that waits for the gateway to read
		close(ended)
	}()
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n",
		verifyPath, a.addr, len(a.capsule))
	_, err = io.WriteString(conn, head+string(a.capsule[:1]))
	sent()
	if err == nil {
		err = a.sendRest(conn, ended)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		conn.Close()
	}
	<-ended
}

func (a attackers) sendRest(conn net.Conn, ended <-chan struct{}) error {
	rest := a.capsule[1 : len(a.capsule)-1]
	switch a.kind {
	case stalledUpload:
		_, err := conn.Write(rest)
		return err
	case drippingUpload:
		return drip(conn, rest, ended)
	}
	return nil
}

func drip(conn net.Conn, rest []byte, ended <-chan struct{}) error {
	ticker := time.NewTicker(dripInterval)
	defer ticker.Stop()
	for len(rest) > 0 {
		n := min(dripSize, len(rest))
		if _, err := conn.Write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
		select {
		case <-ended:
			return nil
		case <-ticker.C:
		}
	}
	return nil
}
