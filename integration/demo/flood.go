package demo

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	mostCapsules  = 100
	floodPatience = 90 * time.Second
	floodPayload  = 64 << 10
)

// flood posts many capsules at once to the gateway, since a browser opens only six connections over HTTP/1.1. Its clients behave:
// one that is refused waits for Retry-After, and a bit longer so that not all come at once, and sends the same capsule again.
type flood struct {
	target  string // where capsules are posted
	client  *http.Client
	capsule func(ctx context.Context) ([]byte, error)

	mu  sync.Mutex
	now floodNumbers
}

// floodNumbers say how a flood fares, or how the last one fared.
type floodNumbers struct {
	Running bool    `json:"running"`
	Count   int     `json:"count"`
	Sending int     `json:"sending"` // being uploaded, queued or analyzed
	Waiting int     `json:"waiting"` // refused, and waiting to come again
	Served  int     `json:"served"`  // decided, one way or another
	Failed  int     `json:"failed"`  // ended in any other way
	Refused int     `json:"refused"` // answers 503, all in all
	Seconds float64 `json:"seconds"`
}

// newFlood makes a flood of the site at an address. Connections go to this machine, whatever the name in the address means
// elsewhere: a demo must not be able to flood anybody else.
func newFlood(site string, capsule func(context.Context) ([]byte, error)) (*flood, error) {
	at, err := url.Parse(site)
	if err != nil {
		return nil, err
	}
	port := at.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[at.Scheme]
	}
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("localhost", port))
	}
	return &flood{
		target:  strings.TrimSuffix(site, "/") + "/verify",
		capsule: capsule,
		client: &http.Client{Transport: &http.Transport{
			DialContext: dial, MaxIdleConnsPerHost: mostCapsules,
			// On this machine the certificate is one that Caddy made for itself.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}},
	}, nil
}

// start is POST /demo/flood, with {"count": N}. It is for the page alone, and for browsers on this machine.
func (f *flood) start(w http.ResponseWriter, r *http.Request) {
	if err := http.NewCrossOriginProtection().Check(r); err != nil || !fromHere(r) || !ownName(r, f.target) {
		http.Error(w, "only this page may flood, on this machine", http.StatusForbidden)
		return
	}
	var ask struct {
		Count int `json:"count"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&ask); err != nil || ask.Count < 1 || ask.Count > mostCapsules {
		http.Error(w, "count: want 1 to "+strconv.Itoa(mostCapsules), http.StatusBadRequest)
		return
	}
	if !f.begin(ask.Count) {
		http.Error(w, "a flood is in progress", http.StatusConflict)
		return
	}
	// It outlives the request, which only begins it.
	go f.run(context.WithoutCancel(r.Context()), ask.Count)
	writeJSON(w, http.StatusAccepted, f.numbers())
}

// fromHere reports whether a request began on this machine. The gateway is on this machine, too, so its X-Forwarded-For says.
func fromHere(r *http.Request) bool {
	addresses := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !peer.Addr().Unmap().IsLoopback() {
		return false
	}
	for _, text := range addresses {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		if at, err := netip.ParseAddr(text); err != nil || !at.Unmap().IsLoopback() {
			return false
		}
	}
	return true
}

// show is GET /demo/flood.
func (f *flood) show(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, f.numbers())
}

func (f *flood) numbers() floodNumbers {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *flood) update(change func(now *floodNumbers)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.now)
}

// begin reports false while another flood runs.
func (f *flood) begin(count int) (ok bool) {
	f.update(func(now *floodNumbers) {
		if ok = !now.Running; ok {
			*now = floodNumbers{Running: true, Count: count, Sending: count}
		}
	})
	return ok
}

func (f *flood) run(ctx context.Context, count int) {
	ctx, cancel := context.WithTimeout(ctx, floodPatience)
	defer cancel()
	began := time.Now()
	var clients sync.WaitGroup
	for range count {
		clients.Go(func() { f.sendOne(ctx) })
	}
	clients.Wait()
	f.client.CloseIdleConnections()
	f.update(func(now *floodNumbers) { now.Running, now.Seconds = false, time.Since(began).Seconds() })
}

// sendOne is one client of the flood.
func (f *flood) sendOne(ctx context.Context) {
	capsule, err := f.capsule(ctx)
	for err == nil {
		var served bool
		var again time.Duration
		if served, again, err = f.post(ctx, capsule); err != nil {
			break
		}
		if served {
			f.update(func(now *floodNumbers) { now.Sending--; now.Served++ })
			return
		}
		f.update(func(now *floodNumbers) { now.Sending--; now.Waiting++; now.Refused++ })
		err = sleep(ctx, again+rand.N(again/2+time.Millisecond))
		f.update(func(now *floodNumbers) { now.Waiting--; now.Sending++ })
	}
	f.update(func(now *floodNumbers) { now.Sending--; now.Failed++ })
}

// post reports whether a capsule was served or, if it was refused for want of capacity, when it may come again.
func (f *flood) post(ctx context.Context, capsule []byte) (served bool, again time.Duration, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.target, bytes.NewReader(capsule))
	if err != nil {
		return false, 0, err
	}
	r.Header.Set("Content-Type", "application/octet-stream")
	answer, err := f.client.Do(r)
	if err != nil {
		return false, 0, err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(answer.Body, maxBody)); err != nil {
		return false, 0, err
	}
	if answer.Header.Get("Content-Type") == "application/json" { // this app's own answer, and no problem document
		return true, 0, nil
	}
	seconds, err := strconv.ParseUint(answer.Header.Get("Retry-After"), 10, 16) // more is past floodPatience anyway
	if answer.StatusCode != http.StatusServiceUnavailable || err != nil {
		return false, 0, errUnexpected
	}
	return false, time.Duration(seconds) * time.Second, nil
}

var errUnexpected = errors.New("neither served nor refused")

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
