package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// workload says what the clients of a bed send and what they get back.
type workload struct {
	size     int64 // of the media in a capsule
	bestShot int64 // length of the base64 in Oz's answer
	clients  int
}

// bed is a gateway with everything around it that it takes to load it.
type bed struct {
	peer    peer
	stage   *stage
	gateway *gateway
	load    *load
}

// newBed starts binary as p. Its files are below dir.
func newBed(ctx context.Context, binary, dir string, p peer, w workload) (*bed, error) {
	stage, g, err := setUp(ctx, binary, dir, p, sandbox.Options{BestShotSize: w.bestShot})
	if err != nil {
		return nil, err
	}
	capsule := stage.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: w.size})
	return &bed{p, stage, g, newLoad(g.addr, capsule, w.clients)}, nil
}

// setUp starts a gateway with what stands behind it.
func setUp(ctx context.Context, binary, dir string, p peer, o sandbox.Options) (*stage, *gateway, error) {
	stage, err := newStage(p, o)
	if err != nil {
		return nil, nil, err
	}
	g, err := startGateway(ctx, binary, dir, p, stage.ozAddr, stage.appAddr)
	if err != nil {
		return nil, nil, errors.Join(err, stage.close())
	}
	return stage, g, nil
}

// run sends so many capsules through the gateway and makes sure that the work was done, all of it.
func (b *bed) run(ctx context.Context, capsules int) error {
	err := b.load.run(ctx, capsules)
	if err == nil {
		err = b.stage.settle(ctx, capsules, int64(len(b.load.capsule)))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", b.peer.name, err)
	}
	return nil
}

func (b *bed) close() error {
	b.load.close()
	return errors.Join(b.gateway.stop(), b.stage.close())
}
