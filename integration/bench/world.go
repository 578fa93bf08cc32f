package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// world is a gateway between many clients and several instances of Oz, all of which misbehave.
type world struct {
	gateway   *gateway
	instances []*instance
	ledger    *ledger
	app       *http.Server
	trouble   troubles
}

// troubles are counted for the reader.
type troubles struct{ reloads, faults, deaths, resets atomic.Int64 }

func (t *troubles) String() string {
	return fmt.Sprintf("%d reloads, %d faults and %d deaths of instances, %d connections reset before Caddy took them",
		t.reloads.Load(), t.faults.Load(), t.deaths.Load(), t.resets.Load())
}

const (
	instances     = 3
	slotsEach     = 4
	soakAnalysis  = 100 * time.Millisecond
	soakTimeout   = 2 * time.Second
	soakSlots     = instances * slotsEach
	manyReceipts  = 10_000_000
	uploadTimeout = 10 * time.Second
	refusedPause  = 250 * time.Millisecond // at most: who is refused does not come back at once
)

func newWorld(ctx context.Context, binary, dir string) (w *world, err error) {
	keys, err := os.MkdirTemp(dir, "keys")
	if err == nil {
		err = writeKeys(keys)
	}
	if err != nil {
		return nil, err
	}
	w = &world{ledger: newLedger()}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	var addresses []string
	for range instances {
		i, err := newInstance(keys)
		if err != nil {
			return nil, err
		}
		w.instances = append(w.instances, i)
		addresses = append(addresses, "http://"+i.addr)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w.app = &http.Server{Handler: w.ledger, ReadHeaderTimeout: patience}
	go w.app.Serve(listener) // ends with close
	w.gateway, err = startGateway(ctx, binary, dir, peer{name: ozInstant.name, caddyfile: soakCaddyfile(0)}, strings.Join(addresses, " "), listener.Addr().String())
	return w, err
}

// soakCaddyfile is the n-th configuration: each one is new to Caddy.
func soakCaddyfile(n int64) string {
	return fmt.Sprintf(`{
	admin {$ADMIN}
}

{$SITE} {
	log
	vars reload %d
	oz_instant `+verifyPath+` {$OZ} {
		lb_policy least_conn
		lb_try_duration 1s
		fail_duration 1s
		upload_timeout %s
		timeout %s
		require meta_data.transaction_id {header.X-Request-Id}
		capacity {
			slots %d
			queue %d
			wait 5s
			memory 64MiB
		}
	}
	reverse_proxy {$APP} {
		transport http {
			keepalive 1s
		}
	}
}
`, n, uploadTimeout, soakTimeout, soakSlots, 2*soakSlots)
}

func writeKeys(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P384(), crand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "jwt.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
		os.WriteFile(filepath.Join(dir, "jwt.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o600))
}

func (w *world) close() error {
	var errs []error
	for _, i := range w.instances {
		errs = append(errs, i.die())
		i.oz.Close()
	}
	if w.gateway != nil {
		errs = append(errs, w.gateway.stop())
	}
	if w.app != nil {
		errs = append(errs, w.app.Close())
	}
	return errors.Join(errs...)
}

// instance is an Oz that dies and comes back at the same address. It remembers what it has judged.
type instance struct {
	oz     *sandbox.Sandbox
	addr   string
	server *http.Server // nil: it is dead
}

func newInstance(keys string) (*instance, error) {
	oz, err := sandbox.New(sandbox.Options{
		KeysDir: keys, TokenLife: time.Hour, KeepReceipts: manyReceipts, AnalysisTime: soakAnalysis, Parallel: slotsEach,
	})
	if err != nil {
		return nil, err
	}
	i := &instance{oz: oz}
	if i.addr, err = freeAddress(); err != nil {
		return nil, err
	}
	return i, i.live()
}

func (i *instance) live() error {
	l, err := net.Listen("tcp", i.addr)
	if err != nil {
		return err
	}
	i.server = &http.Server{Handler: i.oz, ReadHeaderTimeout: patience}
	go i.server.Serve(i.oz.Listener(l)) // ends with die
	return nil
}

// die cuts all connections.
func (i *instance) die() error {
	if i.server == nil {
		return nil
	}
	server := i.server
	i.server = nil
	return server.Close()
}

// soakFaults are what goes wrong with an instance: it refuses, breaks off, is slow, lies or talks nonsense.
var soakFaults = []string{
	"close", "close-accept", "reset", "reset-body:100000", "cut", "cut-chunked", "truncated", "hang", "hang-reading", "slow-reading",
	"drip:1ms,bytes=100", "status:500", "status:503", "status:429", "status:401", "html:502", "gzip", "early", "chunked", "1xx", "trailers",
	"dup-declined-success", "dup-success-declined", "case-both", "contradiction", "second-document", "no-quality", "word:APPROVED",
	"evil-headers", "big:3MiB", "depth",
}

// keepFailing has one instance after the other fail or die for a while, and now and then all of them.
func (w *world) keepFailing(ctx context.Context, r *rand.Rand) error {
	for pause(ctx, r, time.Second) {
		victims := w.instances
		if r.IntN(10) > 0 {
			n := r.IntN(len(victims))
			victims = victims[n : n+1]
		}
		var err error
		if r.IntN(3) == 0 {
			err = w.kill(ctx, r, victims)
		} else {
			err = w.spoil(ctx, r, victims)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *world) kill(ctx context.Context, r *rand.Rand, victims []*instance) error {
	var errs []error
	for _, i := range victims {
		w.trouble.deaths.Add(1)
		errs = append(errs, i.die())
	}
	pause(ctx, r, 2*time.Second)
	for _, i := range victims {
		errs = append(errs, i.live())
	}
	return errors.Join(errs...)
}

func (w *world) spoil(ctx context.Context, r *rand.Rand, victims []*instance) error {
	fault, err := sandbox.ParseFault(soakFaults[r.IntN(len(soakFaults))])
	if err != nil {
		return err
	}
	for _, i := range victims {
		w.trouble.faults.Add(1)
		i.oz.SetFault(fault)
	}
	pause(ctx, r, 2*time.Second)
	for _, i := range victims {
		i.oz.SetFault(sandbox.Fault{})
	}
	return nil
}

func (w *world) keepReloading(ctx context.Context) error {
	r := rand.New(rand.NewPCG(0, 0))
	for pause(ctx, r, 2*time.Second) {
		n := w.trouble.reloads.Add(1)
		if err := w.gateway.reload(context.WithoutCancel(ctx), soakCaddyfile(n)); err != nil {
			return fmt.Errorf("reload %d: %w", n, err)
		}
	}
	return nil
}

// pause is at most so long. It reports whether there is more to do.
func pause(ctx context.Context, r *rand.Rand, most time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(rand.N(most)):
		return true
	}
}

// sendFor has clients send one capsule after the other, until the time is over and the last answers are in.
func (w *world) sendFor(ctx context.Context, length time.Duration, clients int, r *rand.Rand) {
	end := time.Now().Add(length)
	client := newClient()
	var all sync.WaitGroup
	for range clients {
		mine := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		all.Go(func() {
			for time.Now().Before(end) && ctx.Err() == nil {
				o, outcome := w.order(mine)
				w.ledger.sending(o.id, outcome)
				a := w.post(ctx, client, o)
				w.ledger.sent(o.id, a)
				if a.problem {
					pause(ctx, mine, refusedPause)
				}
			}
		})
	}
	all.Wait()
}

// post tries again where a connection breaks before anybody has accepted it: when Caddy is reloaded it closes a socket with
// whatever connections wait there. One that was accepted is in the access log, which must not have a second one of this capsule.
func (w *world) post(ctx context.Context, client *http.Client, o order) (a attempt) {
	for range 20 {
		if a = o.post(ctx, client); a.err == nil || a.left {
			return a
		}
		w.trouble.resets.Add(1)
	}
	return a
}

var lastOrder atomic.Int64

// order is a capsule like no other, from a client like many.
func (w *world) order(r *rand.Rand) (o order, outcome string) {
	o.url = "http://" + w.gateway.addr + verifyPath
	o.id = "soak-" + strconv.FormatInt(lastOrder.Add(1), 10)
	spec := sandbox.CapsuleSpec{Meta: map[string]string{"transaction_id": o.id}, PayloadSize: 8 << (10 + r.IntN(9))} // 8 KiB to 2 MiB
	switch r.IntN(10) {
	case 0:
		spec.Outcome = sandbox.Declined
	case 1:
		spec.Outcome = sandbox.Failed
	case 2:
		spec.Outcome = sandbox.OperatorRequired
	case 3:
		spec.Damage = sandbox.DamageGarbled
	default:
		spec.Outcome = sandbox.Success
	}
	o.capsule = w.instances[0].oz.Capsule(spec)
	o.chunked = r.IntN(4) == 0
	if r.IntN(3) == 0 {
		o.rate = int64(2+r.IntN(20)) * bytesPerMbit
	}
	switch r.IntN(10) {
	case 0:
		o.leaveAt = 1 + r.Int64N(int64(len(o.capsule)))
	case 1:
		o.leaveAfter = time.Duration(1 + r.Int64N(int64(2*soakAnalysis)))
	}
	return o, spec.Outcome
}
