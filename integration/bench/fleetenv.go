package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/ports"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const (
	fleetGateways = 3
	fleetOz       = 3

	fleetWait = 6 * time.Second

	// viaHeader names the gateway that the one in front had chosen, also in an answer of its own.
	viaHeader = "X-Via"
)

// fleetEnv is a fleet: gateways after one in front, instances of Oz that they find by DNS, and one Redis.
type fleetEnv struct {
	*fleetRun
	names     *nameServer
	redisAddr string
	redis     *process
	gateways  [fleetGateways]*gateway
	readyPort string // at which each gateway says whether it is ready
	instances [fleetOz]*ozProcess
	front     *gateway

	accounting *accounting
	app        *http.Server
	appAddr    string
	maker      *sandbox.Sandbox // of capsules
	keys       string
	client     *http.Client
	epoch      time.Time     // a moment by this program's clock,
	epochAt    time.Duration // and by the machine's

	sending sync.WaitGroup
	replays atomic.Bool // now and then a capsule is sent twice
	copies  atomic.Int64
	resets  atomic.Int64

	mu      sync.Mutex
	kills   []gatewayKill
	logs    []*gateway // all that there ever were
	history []ozNotesFile
}

// gatewayKill is a kill -9: it came after from, and all was over by to.
type gatewayKill struct {
	addr     string
	from, to time.Time
}

// ozNotesFile is what an instance wrote, and when it was killed; 0: not.
type ozNotesFile struct {
	file   string
	killed time.Duration
}

// ozProcess is an instance of Oz at an address of its own.
type ozProcess struct {
	*process
	target string // its name in DNS
	ip     netip.Addr
	notes  int // index in history
}

func newFleetEnv(ctx context.Context, run *fleetRun) (e *fleetEnv, err error) {
	e = &fleetEnv{fleetRun: run, accounting: newAccounting(), client: newClient(), epoch: time.Now(), epochAt: monotonic()}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.keys, err = os.MkdirTemp(run.dir, "keys"); err != nil {
		return e, err
	}
	if err := writeKeys(e.keys); err != nil {
		return e, err
	}
	if e.maker, err = sandbox.New(sandbox.Options{KeysDir: e.keys}); err != nil {
		return e, err
	}
	if err := e.startApp(); err != nil {
		return e, err
	}
	if e.redisAddr, err = ports.FreeAddress(); err != nil {
		return e, err
	}
	if e.redis, err = startRedis(ctx, e.redisProgram, e.dir, e.redisAddr); err != nil {
		return e, err
	}
	if err := e.startInstances(ctx); err != nil {
		return e, err
	}
	return e, e.startGateways(ctx)
}

func (e *fleetEnv) startApp() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	e.appAddr = listener.Addr().String()
	e.app = &http.Server{Handler: e.accounting, ReadHeaderTimeout: timeLimit}
	go e.app.Serve(listener) // ends with close
	return nil
}

// hosts returns so many addresses of this machine that differ in their last number alone.
func hosts(prefix string, n int) (all []string) {
	for i := range n {
		all = append(all, prefix+strconv.Itoa(i+1))
	}
	return all
}

// startInstances starts all Oz at one port, since an A record has none.
func (e *fleetEnv) startInstances(ctx context.Context) error {
	ips := hosts("127.0.2.", fleetOz)
	port, err := ports.Free()
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	if e.names, err = startNameServer(uint16(number)); err != nil {
		return err
	}
	for i, ip := range ips {
		e.instances[i] = &ozProcess{target: fmt.Sprintf("oz%d.fleet.test.", i+1), ip: netip.MustParseAddr(ip)}
		if err := e.startOz(ctx, i); err != nil {
			return err
		}
		e.addOz(i)
	}
	return nil
}

// startOz starts an instance. DNS does not know of it yet.
func (e *fleetEnv) startOz(ctx context.Context, i int) error {
	oz := e.instances[i]
	self, err := os.Executable()
	if err != nil {
		return err
	}
	addr := net.JoinHostPort(oz.ip.String(), strconv.Itoa(int(e.names.port)))
	if oz.process, err = newProcess(e.dir, "oz", self); err != nil {
		return err
	}
	file := filepath.Join(oz.home, "notes")
	oz.cmd.Args = append(oz.cmd.Args, serveOzName, "--listen", addr, "--keys", e.keys, "--notes", file, "--analysis", e.analysis.String())
	e.mu.Lock()
	oz.notes = len(e.history)
	e.history = append(e.history, ozNotesFile{file: file})
	e.mu.Unlock()
	return oz.start(ctx, addr)
}

func (e *fleetEnv) addOz(i int)    { e.names.add(e.instances[i].target, e.instances[i].ip) }
func (e *fleetEnv) removeOz(i int) { e.names.remove(e.instances[i].target) }

// killOz ends what the instance is doing at the moment before the kill: afterwards it has no slot in anybody's books.
func (e *fleetEnv) killOz(i int) {
	oz := e.instances[i]
	at := monotonic()
	oz.kill()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.history[oz.notes].killed = at
}

func (e *fleetEnv) startGateways(ctx context.Context) error {
	ips := hosts("127.0.1.", fleetGateways)
	site, err := ports.Free()
	if err != nil {
		return err
	}
	if e.readyPort, err = ports.Free(); err != nil {
		return err
	}
	var upstreams []string
	for i, ip := range ips {
		addr := net.JoinHostPort(ip, site)
		admin, err := ports.FreeAddress()
		if err != nil {
			return err
		}
		e.gateways[i] = &gateway{addr: addr, admin: admin} // its process is still to come
		if err := e.startGateway(ctx, i); err != nil {
			return err
		}
		upstreams = append(upstreams, addr)
	}
	e.front, err = startGateway(ctx, e.binary, e.dir, frontPeer(e.readyPort), "", strings.Join(upstreams, " "))
	return err
}

// startGateway starts a gateway at the address of the one before.
func (e *fleetEnv) startGateway(ctx context.Context, i int) error {
	host, _, err := net.SplitHostPort(e.gateways[i].addr)
	if err != nil {
		return err
	}
	g, err := startGatewayAt(ctx, e.binary, e.dir, e.peer(0), e.gateways[i].addr, e.gateways[i].admin,
		"APP="+e.appAddr, "REDIS="+e.redisAddr, "DNS="+e.names.addr(), "OZ_PORT="+strconv.Itoa(int(e.names.port)), "HOST="+host, "READY=http://"+net.JoinHostPort(host, e.readyPort))
	if err != nil {
		return err
	}
	e.gateways[i] = g
	e.mu.Lock()
	defer e.mu.Unlock()
	e.logs = append(e.logs, g)
	return nil
}

func (e *fleetEnv) killGateway(i int) {
	g := e.gateways[i]
	from := time.Now()
	e.mu.Lock()
	n := len(e.kills)
	e.kills = append(e.kills, gatewayKill{g.addr, from, from.Add(timeLimit)})
	e.mu.Unlock()
	g.kill()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kills[n].to = time.Now().Add(time.Second) // the news takes a while to a client
}

// restartGateway ends a gateway as an orchestrator would, and starts another one in its place.
func (e *fleetEnv) restartGateway(ctx context.Context, i int) error {
	if err := e.gateways[i].stop(); err != nil {
		return err
	}
	return e.startGateway(ctx, i)
}

func (e *fleetEnv) restartRedis(ctx context.Context) (err error) {
	e.redis, err = startRedis(ctx, e.redisProgram, e.dir, e.redisAddr)
	return err
}

// peer returns the n-th configuration of the gateways: each one is new to Caddy.
func (r *fleetRun) peer(n int) peer {
	slots, queue, shared := r.slots, r.queue, "shared redis redis://{$REDIS}/0"
	if r.local {
		slots, queue, shared = slots/fleetGateways, queue/fleetGateways, ""
	}
	return peer{name: "a gateway", decides: true, global: "\tdefault_bind {$HOST}\n\tgrace_period 20s\n\tshutdown_delay 1s", directives: fmt.Sprintf(`
	log
	vars reload %d
	oz_instant `+verifyPath+` {
		%s
		lb_policy least_conn
		lb_try_duration 3s
		lb_try_interval 50ms
		timeout %s
		replay_guard redis redis://{$REDIS}/0 {
			on_error allow
		}
		capacity {
			slots %d
			queue %d
			wait %s
			memory 64MiB
			%s
		}
	}
	reverse_proxy {$APP} {
		transport http {
			keepalive off
		}
	}`, n, r.discovery(), r.timeout(), slots, queue, fleetWait, shared), sites: `
{$READY} {
	reverse_proxy /oz_instant/ready {$ADMIN} {
		header_up Host {upstream_hostport}
	}
}
`}
}

// Kinds of DNS records.
const (
	recordsA   = "a"
	recordsSRV = "srv"
)

// discovery returns how a gateway finds Oz. The resolver of SRV records isn't that of the names in them.
func (r *fleetRun) discovery() string {
	if r.records == recordsA {
		return `dynamic a {
			name ` + ozName + `
			port {$OZ_PORT}
			refresh 500ms
			resolvers {$DNS}
			versions ipv4
		}`
	}
	return `dynamic srv {
			name ` + ozService + `
			refresh 500ms
			resolvers {$DNS}
		}
		transport http {
			resolvers {$DNS}
		}`
}

// frontPeer balances over the gateways and looks whether they are ready. It never sends a capsule to a second one after the first
// has had a byte of it. It receives capsules whole: a Caddy that passes a refusal on while the client still sends closes a connection with
// bytes unread, and that resets it before the client has read the refusal. (One in a hundred was lost so.)
func frontPeer(readyPort string) peer {
	return peer{name: "the front", directives: fmt.Sprintf(`
	reverse_proxy {$APP} {
		request_buffers 16MiB
		lb_policy round_robin
		lb_try_duration 2s
		lb_try_interval 50ms
		fail_duration 1s
		health_uri /oz_instant/ready
		health_port %s
		health_interval 250ms
		header_up Host {upstream_hostport}
		header_down %s {http.reverse_proxy.upstream.hostport}
		transport http {
			keepalive off
		}
	}
	handle_errors {
		header %s {http.reverse_proxy.upstream.hostport}
		respond "the front: {err.message}" {err.status_code}
	}`, readyPort, viaHeader, viaHeader)}
}

func (e *fleetEnv) close() error {
	var errs []error
	if e.front != nil && e.front.process != nil {
		errs = append(errs, e.front.stop())
	}
	for _, g := range e.gateways {
		if g != nil && g.process != nil {
			errs = append(errs, ignoreKilled(g.process))
		}
	}
	for _, oz := range e.instances {
		if oz != nil && oz.process != nil {
			errs = append(errs, ignoreKilled(oz.process))
		}
	}
	if e.redis != nil {
		e.redis.kill()
	}
	if e.app != nil {
		errs = append(errs, e.app.Close())
	}
	if e.names != nil {
		errs = append(errs, e.names.close())
	}
	if e.maker != nil {
		e.maker.Close()
	}
	return errors.Join(errs...)
}

// ignoreKilled stops a process, unless a fault has just killed it.
func ignoreKilled(p *process) error {
	select {
	case <-p.ended:
		if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
			return nil
		}
	default:
	}
	return p.stop()
}
