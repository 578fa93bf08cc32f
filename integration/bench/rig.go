package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// workload says what the clients of a rig send and what they get back.
type workload struct {
	size     int64 // of the media in a capsule
	bestShot int64 // length of the base64 in Oz's answer
	clients  int
	protocol protocol
}

// rig is a gateway with its upstreams and the clients that load it.
type rig struct {
	peer    peer
	backend *backend
	gateway *gateway
	load    *load
}

// newRig starts binary as p. Its files are below dir.
func newRig(ctx context.Context, binary, dir string, p peer, w workload) (*rig, error) {
	p = p.over(w.protocol)
	backend, g, err := setUp(ctx, binary, dir, p, sandbox.Options{BestShotSize: w.bestShot, AcceptAny: true})
	if err != nil {
		return nil, err
	}
	capsule := make([]byte, w.size)
	rand.Read(capsule) // it never fails
	l := newLoad(g.url, capsule, w.clients, w.protocol)
	if p.oneHop {
		l.status = http.StatusCreated // Oz's
	}
	return &rig{p, backend, g, l}, nil
}

// setUp starts a gateway and its upstreams.
func setUp(ctx context.Context, binary, dir string, p peer, o sandbox.Options) (*backend, *gateway, error) {
	backend, err := newBackend(p, o)
	if err != nil {
		return nil, nil, err
	}
	g, err := startGateway(ctx, binary, dir, p, backend.ozAddr, backend.appAddr)
	if err != nil {
		return nil, nil, errors.Join(err, backend.close())
	}
	return backend, g, nil
}

// run sends a number of capsules through the gateway and makes sure that all the work was done.
func (r *rig) run(ctx context.Context, capsules int) error {
	if err := r.load.run(ctx, capsules); err != nil {
		return fmt.Errorf("%s: %w", r.peer.name, err)
	}
	return r.settle(ctx, capsules)
}

// settle makes sure that a number of capsules that was sent has been worked on.
func (r *rig) settle(ctx context.Context, capsules int) error {
	if err := r.backend.settle(ctx, capsules, int64(len(r.load.capsule))); err != nil {
		return fmt.Errorf("%s: %w", r.peer.name, err)
	}
	return nil
}

func (r *rig) close() error {
	r.load.close()
	return errors.Join(r.gateway.stop(), r.backend.close())
}
