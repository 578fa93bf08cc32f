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

	"github.com/oz-instant/caddy-oz-instant/integration/ports"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// soakEnv is a gateway between many clients and several instances of Oz. Both sides misbehave.
type soakEnv struct {
	gateway    *gateway
	instances  []*instance
	accounting *accounting
	app        *http.Server
	faults     faultCounts
}

// faultCounts counts for the reader what went wrong.
type faultCounts struct{ reloads, faults, deaths, resets atomic.Int64 }

func (t *faultCounts) String() string {
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
	refusedPause  = 250 * time.Millisecond // at most, before a refused client sends its next capsule
)

func newSoakEnv(ctx context.Context, binary, dir string) (e *soakEnv, err error) {
	keys, err := os.MkdirTemp(dir, "keys")
	if err == nil {
		err = writeKeys(keys)
	}
	if err != nil {
		return nil, err
	}
	e = &soakEnv{accounting: newAccounting()}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	var addresses []string
	for range instances {
		i, err := newInstance(keys)
		if err != nil {
			return nil, err
		}
		e.instances = append(e.instances, i)
		addresses = append(addresses, "http://"+i.addr)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	e.app = &http.Server{Handler: e.accounting, ReadHeaderTimeout: timeLimit}
	go e.app.Serve(listener) // ends with close
	e.gateway, err = startGateway(ctx, binary, dir, soakPeer(0), strings.Join(addresses, " "), listener.Addr().String())
	return e, err
}

// soakPeer returns the n-th configuration: each one is new to Caddy.
func soakPeer(n int64) peer {
	return peer{name: ozInstant.name, decides: true, directives: fmt.Sprintf(`
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
	}`, n, uploadTimeout, soakTimeout, soakSlots, 2*soakSlots)}
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

func (e *soakEnv) close() error {
	var errs []error
	for _, i := range e.instances {
		errs = append(errs, i.die())
		i.oz.Close()
	}
	if e.gateway != nil {
		errs = append(errs, e.gateway.stop())
	}
	if e.app != nil {
		errs = append(errs, e.app.Close())
	}
	return errors.Join(errs...)
}

// instance is an Oz that dies and comes back at the same address. It remembers what it received.
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
	if i.addr, err = ports.FreeAddress(); err != nil {
		return nil, err
	}
	return i, i.live()
}

func (i *instance) live() error {
	l, err := net.Listen("tcp", i.addr)
	if err != nil {
		return err
	}
	i.server = &http.Server{Handler: i.oz, ReadHeaderTimeout: timeLimit}
	go i.server.Serve(i.oz.Listener(l)) // ends with die
	return nil
}

// die ends the server and cuts all connections.
func (i *instance) die() error {
	if i.server == nil {
		return nil
	}
	server := i.server
	i.server = nil
	return server.Close()
}

// soakFaults are what goes wrong with an instance: it refuses, breaks off, is slow, lies or sends nonsense.
var soakFaults = []string{
	"close", "close-accept", "reset", "reset-body:100000", "cut", "cut-chunked", "truncated", "hang", "hang-reading", "slow-reading",
	"drip:1ms,bytes=100", "status:500", "status:503", "status:429", "status:401", "html:502", "gzip", "early", "chunked", "1xx", "trailers",
	"dup-declined-success", "dup-success-declined", "case-both", "contradiction", "second-document", "no-quality", "word:APPROVED",
	"evil-headers", "big:3MiB", "depth",
}

// keepFailing makes one instance after the other fail or die for a while, and now and then all of them.
func (e *soakEnv) keepFailing(ctx context.Context, r *rand.Rand) error {
	for pause(ctx, r, time.Second) {
		victims := e.instances
		if r.IntN(10) > 0 {
			n := r.IntN(len(victims))
			victims = victims[n : n+1]
		}
		var err error
		if r.IntN(3) == 0 {
			err = e.kill(ctx, r, victims)
		} else {
			err = e.spoil(ctx, r, victims)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *soakEnv) kill(ctx context.Context, r *rand.Rand, victims []*instance) error {
	var errs []error
	for _, i := range victims {
		e.faults.deaths.Add(1)
		errs = append(errs, i.die())
	}
	pause(ctx, r, 2*time.Second)
	for _, i := range victims {
		errs = append(errs, i.live())
	}
	return errors.Join(errs...)
}

func (e *soakEnv) spoil(ctx context.Context, r *rand.Rand, victims []*instance) error {
	fault, err := sandbox.ParseFault(soakFaults[r.IntN(len(soakFaults))])
	if err != nil {
		return err
	}
	for _, i := range victims {
		e.faults.faults.Add(1)
		i.oz.SetFault(fault)
	}
	pause(ctx, r, 2*time.Second)
	for _, i := range victims {
		i.oz.SetFault(sandbox.Fault{})
	}
	return nil
}

func (e *soakEnv) keepReloading(ctx context.Context) error {
	r := rand.New(rand.NewPCG(0, 0))
	for pause(ctx, r, 2*time.Second) {
		n := e.faults.reloads.Add(1)
		if err := e.gateway.reload(context.WithoutCancel(ctx), soakPeer(n).caddyfile()); err != nil {
			return fmt.Errorf("reload %d: %w", n, err)
		}
	}
	return nil
}

// pause waits for a random time of at most that long. It reports whether ctx still has work to do.
func pause(ctx context.Context, r *rand.Rand, most time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(rand.N(most)):
		return true
	}
}

// sendFor makes clients send one capsule after the other. It returns when the time is over and the last answers are in.
func (e *soakEnv) sendFor(ctx context.Context, length time.Duration, clients int, r *rand.Rand) {
	end := time.Now().Add(length)
	client := newClient()
	var all sync.WaitGroup
	for range clients {
		mine := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		all.Go(func() {
			for time.Now().Before(end) && ctx.Err() == nil {
				u, outcome := e.upload(mine)
				e.accounting.sending(u.id, outcome)
				a := e.post(ctx, client, u)
				e.accounting.sent(u.id, a)
				if a.problem {
					pause(ctx, mine, refusedPause)
				}
			}
		})
	}
	all.Wait()
}

// post tries again after a connection that broke before Caddy accepted it: a reload closes a listening socket together with the
// connections that wait there. An accepted one is in the access log, which must not hold a second request with this capsule.
func (e *soakEnv) post(ctx context.Context, client *http.Client, u upload) (a response) {
	for range 20 {
		if a = u.post(ctx, client); a.err == nil || a.left {
			return a
		}
		e.faults.resets.Add(1)
	}
	return a
}

var lastUpload atomic.Int64

// upload returns a unique capsule, and how a client of random temper sends it.
func (e *soakEnv) upload(r *rand.Rand) (u upload, outcome string) {
	u.url = e.gateway.url + verifyPath
	u.id = "soak-" + strconv.FormatInt(lastUpload.Add(1), 10)
	spec := sandbox.CapsuleSpec{Meta: map[string]string{"transaction_id": u.id}, PayloadSize: 8 << (10 + r.IntN(9))} // 8 KiB to 2 MiB
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
	u.capsule = e.instances[0].oz.Capsule(spec)
	u.chunked = r.IntN(4) == 0
	if r.IntN(3) == 0 {
		u.rate = int64(2+r.IntN(20)) * bytesPerMbit
	}
	switch r.IntN(10) {
	case 0:
		u.leaveAt = 1 + r.Int64N(int64(len(u.capsule)))
	case 1:
		u.leaveAfter = time.Duration(1 + r.Int64N(int64(2*soakAnalysis)))
	}
	return u, spec.Outcome
}
