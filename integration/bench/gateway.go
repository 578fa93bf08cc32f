package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
)

// timeLimit bounds everything that should take no time.
const timeLimit = 20 * time.Second

// gateway is a running Caddy.
type gateway struct {
	addr    string // of its site
	url     string // of its site, without a path
	admin   string // address of its admin endpoint
	cmd     *exec.Cmd
	logFile string
	ended   chan struct{} // closed when the process has ended
}

// startGateway runs the binary as p in a new folder below dir, and returns when it can be connected to.
func startGateway(ctx context.Context, binary, dir string, p peer, ozAddr, appAddr string) (*gateway, error) {
	home, err := os.MkdirTemp(dir, "gateway")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(home, "Caddyfile")
	if err := os.WriteFile(file, []byte(p.caddyfile()), 0o600); err != nil {
		return nil, err
	}
	g := &gateway{logFile: filepath.Join(home, "log"), ended: make(chan struct{})}
	if g.admin, err = freeAddress(); err != nil {
		return nil, err
	}
	if g.addr, err = freeAddress(); err != nil {
		return nil, err
	}
	g.url = "http://" + g.addr
	// The environment is made from nothing: a proxy or a setting of Go's garbage collector must not decide a comparison.
	env := []string{
		"HOME=" + home, "XDG_CONFIG_HOME=" + home, "XDG_DATA_HOME=" + home, "TMPDIR=" + home,
		"ADMIN=" + g.admin, "OZ=" + ozAddr, "APP=" + appAddr,
	}
	if p.tls {
		cert, key, err := writeCertificate(home)
		if err != nil {
			return nil, err
		}
		g.url = "https://" + g.addr
		env = append(env, "CERT="+cert, "KEY="+key)
	}
	g.cmd = exec.Command(binary, "run", "--config", file, "--adapter", "caddyfile")
	g.cmd.Dir = home
	g.cmd.Env = append(env, "SITE="+g.url)
	if err := g.start(ctx); err != nil {
		return nil, fmt.Errorf("starting %s: %w", p.name, err)
	}
	return g, nil
}

func (g *gateway) start(ctx context.Context) error {
	log, err := os.Create(g.logFile)
	if err != nil {
		return err
	}
	defer log.Close()
	g.cmd.Stdout, g.cmd.Stderr = log, log
	dieWithBench(g.cmd)
	if err := g.cmd.Start(); err != nil {
		return err
	}
	go func() {
		g.cmd.Wait() // stop looks at how it ended
		close(g.ended)
	}()
	if err := cli.AwaitListening(ctx, g.addr, g.ended); err != nil {
		return errors.Join(err, g.stop())
	}
	return nil
}

func (g *gateway) pid() int { return g.cmd.Process.Pid }

// stop ends the gateway as systemd would. After any other end than a clean one the figures mean nothing: the error quotes the log.
func (g *gateway) stop() error {
	g.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.ended:
	case <-time.After(timeLimit):
		g.cmd.Process.Kill()
		<-g.ended
	}
	if g.cmd.ProcessState.Success() {
		return nil
	}
	return fmt.Errorf("the gateway ended with %v; its log ends with\n%s", g.cmd.ProcessState, g.lastLines(10))
}

func (g *gateway) lastLines(n int) string {
	text, err := os.ReadFile(g.logFile)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Ports are taken from below the range that the kernel assigns by itself (from 32768 on Linux): no connection can occupy one
// between its choice and its use.
const firstPort, lastPort = 12000, 31999

// freeAddress returns a free address of this machine.
func freeAddress() (string, error) {
	for range 200 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(firstPort+rand.IntN(lastPort-firstPort)))
		if l, err := net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", errors.New("no free port found")
}
