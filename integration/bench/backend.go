package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const (
	verifyPath  = "/verify"
	foldersPath = sandbox.FoldersPath
)

// backend is the upstreams of one gateway: Oz and the app. Both count, so that a run can be trusted.
type backend struct {
	oz              *sandbox.Sandbox
	app             *app
	ozAddr, appAddr string
	servers         []*http.Server
	expected        int  // capsules that were sent so far
	oneHop          bool // of which the app gets none
}

func newBackend(p peer, o sandbox.Options) (*backend, error) {
	// One capsule is sent many times, and a soak may take hours.
	o.ReuseTokens, o.TokenLife, o.KeepReceipts = true, 30*24*time.Hour, 1
	oz, err := sandbox.New(o)
	if err != nil {
		return nil, err
	}
	b := &backend{oz: oz, app: &app{decided: p.decides}, oneHop: p.oneHop}
	if b.ozAddr, err = b.serve(oz, oz.Listener); err != nil {
		return nil, errors.Join(err, b.close())
	}
	if b.appAddr, err = b.serve(b.app, nil); err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

func (b *backend) serve(h http.Handler, wrap func(net.Listener) net.Listener) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr = l.Addr().String()
	if wrap != nil {
		l = wrap(l)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: timeLimit}
	b.servers = append(b.servers, server)
	go server.Serve(l) // ends with close; if it ended before, requests fail and say so
	return addr, nil
}

func (b *backend) close() error {
	b.oz.Close()
	var errs []error
	for _, server := range b.servers {
		errs = append(errs, server.Close())
	}
	return errors.Join(errs...)
}

// settle waits until Oz is done with everything that was sent, and makes sure that it got just those capsules.
func (b *backend) settle(ctx context.Context, capsules int, capsuleSize int64) error {
	b.expected += capsules
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	if err := b.oz.Await(ctx, func(st sandbox.Stats) bool { return st.Finished >= b.expected && st.Open == 0 }); err != nil {
		return fmt.Errorf("waiting for Oz to be done: %w", err)
	}
	st, atApp := b.oz.Stats(), b.expected
	if b.oneHop {
		atApp = 0
	}
	switch {
	case st.Finished != b.expected:
		return fmt.Errorf("oz got %d capsules, want %d", st.Finished, b.expected)
	case st.Bytes != int64(b.expected)*capsuleSize:
		return fmt.Errorf("oz got %d bytes, want %d capsules of %d", st.Bytes, b.expected, capsuleSize)
	case b.app.served.Load() != int64(atApp):
		return fmt.Errorf("the app got %d requests, want %d", b.app.served.Load(), atApp)
	}
	return nil
}

// app stands in for the user's app. It refuses any request but the one that its gateway must make of a good capsule, so that the
// client learns of it.
type app struct {
	decided bool
	served  atomic.Int64
}

// maxBody is more than any folder without its best shot.
const maxBody = 64 << 10

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = a.check(r, string(body))
	}
	if err != nil {
		http.Error(w, "the app: "+err.Error(), http.StatusUnprocessableEntity)
		return
	}
	a.served.Add(1)
	io.WriteString(w, "welcome\n")
}

func (a *app) check(r *http.Request, body string) error {
	decision := r.Header.Get("X-Oz-Decision")
	switch {
	case r.URL.Path != verifyPath:
		return fmt.Errorf("asked for %s, want %s", r.URL.Path, verifyPath)
	case !a.decided && (decision != "" || body != ""):
		return fmt.Errorf("decision %q and a body of %d bytes from a gateway that does not decide", decision, len(body))
	case !a.decided:
		return nil
	case decision != sandbox.Success:
		return fmt.Errorf("decision %q, want %s", decision, sandbox.Success)
	case strings.Contains(body, "image_b64"):
		return errors.New("the best shot is still there")
	case !json.Valid([]byte(body)) || !strings.Contains(body, "folder_id"):
		return errors.New("the body isn't a folder")
	}
	return nil
}
