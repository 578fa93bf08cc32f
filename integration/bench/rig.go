package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

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
	p = p.overTLS(w.protocol != h1)
	backend, g, err := setUp(ctx, binary, dir, p, sandbox.Options{BestShotSize: w.bestShot, AcceptAny: true})
	if err != nil {
		return nil, err
	}
	capsule := make([]byte, w.size)
	rand.Read(capsule) // it never fails
	return &rig{p, backend, g, newLoad(g.url, capsule, w.clients, w.protocol)}, nil
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
	err := r.load.run(ctx, capsules)
	if err == nil {
		err = r.backend.settle(ctx, capsules, int64(len(r.load.capsule)))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.peer.name, err)
	}
	return nil
}

func (r *rig) close() error {
	r.load.close()
	return errors.Join(r.gateway.stop(), r.backend.close())
}
