package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/ports"
)

// timeLimit bounds everything that should take no time.
const timeLimit = 20 * time.Second

// gateway is a running Caddy, or what one is compared with.
type gateway struct {
	*process
	addr  string // of its site
	url   string // of its site, without a path
	admin string // address of its admin endpoint
}

// startGateway runs the binary as p in a new folder below dir, and returns when it can be connected to.
func startGateway(ctx context.Context, binary, dir string, p peer, ozAddr, appAddr string) (*gateway, error) {
	admin, err := ports.FreeAddress()
	if err != nil {
		return nil, err
	}
	addr, err := ports.FreeAddress()
	if err != nil {
		return nil, err
	}
	return startGatewayAt(ctx, binary, dir, p, addr, admin, "OZ="+ozAddr, "APP="+appAddr)
}

// startGatewayAt is startGateway at an address that is known before. env is what the directives of p use.
func startGatewayAt(ctx context.Context, binary, dir string, p peer, addr, admin string, env ...string) (*gateway, error) {
	path, arguments, err := p.command(binary)
	if err != nil {
		return nil, err
	}
	process, err := newProcess(dir, "gateway", path, arguments...)
	if err != nil {
		return nil, err
	}
	g := &gateway{process: process, addr: addr, url: "http://" + addr, admin: admin}
	if p.protocol != h1 {
		g.url = "https://" + addr
	}
	cert, key, err := writeCertificate(g.home)
	if err != nil {
		return nil, err
	}
	g.cmd.Env = slices.Concat(g.cmd.Env, p.env, env, []string{"ADMIN=" + admin, "SITE=" + g.url, "CERT=" + cert, "KEY=" + key})
	if err := p.configure(process, addr); err != nil {
		return nil, err
	}
	if err := g.start(ctx, g.addr); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	return g, nil
}

// command returns what runs p, if binary is Caddy.
func (p peer) command(binary string) (path string, arguments []string, err error) {
	if p.program == nil {
		return binary, []string{"run", "--config", "Caddyfile", "--adapter", "caddyfile"}, nil
	}
	path, err = programPath(p.program.argv[0])
	return path, p.program.argv[1:], err
}

// configure writes what a process is to run as p.
func (p peer) configure(of *process, addr string) error {
	if p.program != nil {
		return p.program.configure(of, addr, p.protocol)
	}
	return os.WriteFile(filepath.Join(of.home, "Caddyfile"), []byte(p.caddyfile()), 0o600)
}
