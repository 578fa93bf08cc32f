package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// timeLimit bounds everything that should take no time.
const timeLimit = 20 * time.Second

// gateway is a running Caddy.
type gateway struct {
	*process
	addr  string // of its site
	url   string // of its site, without a path
	admin string // address of its admin endpoint
}

// startGateway runs the binary as p in a new folder below dir, and returns when it can be connected to.
func startGateway(ctx context.Context, binary, dir string, p peer, ozAddr, appAddr string) (*gateway, error) {
	admin, err := freeAddress()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	return startGatewayAt(ctx, binary, dir, p, addr, admin, "OZ="+ozAddr, "APP="+appAddr)
}

// startGatewayAt is startGateway at an address that is known before. env is what the directives of p use.
func startGatewayAt(ctx context.Context, binary, dir string, p peer, addr, admin string, env ...string) (*gateway, error) {
	program, err := newProcess(dir, "gateway", binary, "run", "--config", "Caddyfile", "--adapter", "caddyfile")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(program.home, "Caddyfile"), []byte(p.caddyfile()), 0o600); err != nil {
		return nil, err
	}
	g := &gateway{process: program, addr: addr, url: "http://" + addr, admin: admin}
	if p.tls {
		cert, key, err := writeCertificate(g.home)
		if err != nil {
			return nil, err
		}
		g.url = "https://" + g.addr
		env = append(env, "CERT="+cert, "KEY="+key)
	}
	g.cmd.Env = append(append(g.cmd.Env, env...), "ADMIN="+g.admin, "SITE="+g.url)
	if err := g.start(ctx, g.addr); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	return g, nil
}

// Ports are taken from below the range that the kernel assigns by itself (from 32768 on Linux): no connection can occupy one
// between its choice and its use.
const firstPort, lastPort = 12000, 31999

// freeAddress returns a free address of this machine.
func freeAddress() (string, error) {
	port, err := freePort("127.0.0.1")
	return net.JoinHostPort("127.0.0.1", port), err
}

// freePort returns a port that is free at each of the hosts.
func freePort(hosts ...string) (string, error) {
	for range 200 {
		port := strconv.Itoa(firstPort + rand.IntN(lastPort-firstPort))
		if portFree(port, hosts) {
			return port, nil
		}
	}
	return "", errors.New("no free port found")
}

func portFree(port string, hosts []string) bool {
	for _, host := range hosts {
		l, err := net.Listen("tcp", net.JoinHostPort(host, port))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}
