package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// peerComparison is one run of peers.
type peerComparison struct {
	workspace
	quick bool

	names     []string
	sizes     []string
	protocols []string
	bestShot  sandbox.Size

	rounds   int
	capsules int

	memoryRounds  int
	memoryClients int

	checkRounds int
}

var (
	peerSizes     = []string{"200000", "2MiB", "10MiB"}
	peerProtocols = map[string]protocol{"h1": h1, "h1-tls": h1TLS, "h2-tls": h2TLS}
	protocolNames = []string{"h1", "h1-tls", "h2-tls"}
)

func peersCommand() *cobra.Command {
	c := &peerComparison{bestShot: 400_000}
	cmd := c.command("peers", "Compare oz_instant with what an operator would use instead", c)
	cmd.Long = cmd.Short + `.

Each peer gets the same capsules in the same run: it sends a capsule to Oz, reads the answer, drops the best shot, decides, and asks the
app. Their configurations are in integration/bench/peers. On Debian, what they need comes by

	apt-get install nginx libnginx-mod-http-js libnginx-mod-http-lua lua-cjson haproxy nodejs npm nghttp2-client
	npm ci --prefix integration/bench/peers/express`
	flags := cmd.Flags()
	flags.BoolVar(&c.quick, "quick", false, "one short round of all, to see that it works; its figures mean nothing")
	flags.StringSliceVar(&c.names, "peers", contenderNames(), "`names` of what to compare, this module among them")
	flags.StringSliceVar(&c.sizes, "sizes", peerSizes, "`sizes` of capsules")
	flags.StringSliceVar(&c.protocols, "protocols", protocolNames, "`names` of protocols that clients use")
	flags.Var(&c.bestShot, "best-shot", "length of the best shot in Oz's answer, in base64")
	flags.IntVar(&c.rounds, "rounds", 8, "CPU and latency: measurements of each peer")
	flags.IntVar(&c.capsules, "capsules", 60, "CPU and latency: capsules in one measurement, one after the other; a third as many of more than 4 MiB")
	flags.IntVar(&c.memoryRounds, "memory-rounds", 6, "memory: measurements of each peer, each with a fresh process")
	flags.IntVar(&c.memoryClients, "memory-clients", 64, "memory: capsules at once")
	flags.IntVar(&c.checkRounds, "check-rounds", 6, "h2load: measurements of each peer; 0 for none")
	return cmd
}

func contenderNames() (names []string) {
	for _, c := range contenders() {
		names = append(names, strings.ReplaceAll(c.name, ",", ""))
	}
	return names
}

func (c *peerComparison) check() error {
	if c.quick {
		c.rounds, c.capsules, c.memoryRounds, c.memoryClients, c.checkRounds = 1, 5, 1, 8, min(c.checkRounds, 1)
	}
	if min(c.rounds, c.capsules, c.memoryRounds, c.memoryClients) < 1 {
		return errors.New("rounds, capsules and clients must be at least 1")
	}
	for _, name := range c.names {
		if !slices.Contains(contenderNames(), name) {
			return fmt.Errorf("--peers: unknown peer %q (want %s)", name, strings.Join(contenderNames(), ", "))
		}
	}
	if !slices.Contains(c.names, ozInstant.name) {
		return fmt.Errorf("--peers: %s is missing, with which the others are compared", ozInstant.name)
	}
	return errors.Join(checkProtocols(c.protocols), checkSizes(c.sizes))
}

// checkProtocols fails unless each is a name of peerProtocols.
func checkProtocols(names []string) error {
	for _, name := range names {
		if _, ok := peerProtocols[name]; !ok {
			return fmt.Errorf("--protocols: unknown protocol %q (want %s)", name, strings.Join(protocolNames, ", "))
		}
	}
	return nil
}

// checkSizes fails unless each is a size.
func checkSizes(sizes []string) error {
	for _, text := range sizes {
		if _, err := sandbox.ParseSize(text); err != nil {
			return fmt.Errorf("--sizes: %w", err)
		}
	}
	return nil
}

// chosen returns the contenders to compare, and fails if one cannot run here: a table without it would mislead.
func (c *peerComparison) chosen() (chosen []contender, err error) {
	for i, name := range contenderNames() {
		if !slices.Contains(c.names, name) {
			continue
		}
		contender := contenders()[i]
		chosen = append(chosen, contender)
		err = errors.Join(err, contender.missing())
	}
	if err != nil {
		return nil, fmt.Errorf("%w (want it installed, see --help, or --peers without it)", err)
	}
	return chosen, nil
}

func (c *peerComparison) measure(ctx context.Context, stdout io.Writer) error {
	all, err := c.chosen()
	if err != nil {
		return err
	}
	var cells []cell
	for _, name := range c.protocols {
		for _, text := range c.sizes {
			size, err := sandbox.ParseSize(text)
			if err != nil {
				return err
			}
			cell := cell{size: sandbox.Size(size), protocol: peerProtocols[name]}
			for _, contender := range all {
				if !contender.noHTTP2 || cell.protocol != h2TLS {
					cell.rows = append(cell.rows, row{contender: contender})
				}
			}
			if err := c.measureCell(ctx, &cell); err != nil {
				return fmt.Errorf("%s: %w", cell.title(), err)
			}
			cells = append(cells, cell)
		}
	}
	checks, err := c.checkWithH2load(ctx, all)
	if err != nil {
		return fmt.Errorf("h2load: %w", err)
	}
	c.print(stdout, all, cells, checks)
	return nil
}

// cell is all figures for capsules of one size over one protocol.
type cell struct {
	size     sandbox.Size
	protocol protocol
	rows     []row
	direct   [][]time.Duration // exchanges without a gateway, of each round
}

func (c cell) title() string { return fmt.Sprintf("capsules of %s, %s", c.size.String(), c.protocol) }

// row is what one contender needs for a capsule, a figure a round.
type row struct {
	contender
	cpu    []float64         // ms
	took   [][]time.Duration // exchanges
	memory []float64         // MiB
}

func (c *peerComparison) measureCell(ctx context.Context, cell *cell) error {
	var done atomic.Int64
	c.line.Begin(progress.Phase{Name: cell.title(), Amount: progress.Of(&done, c.rounds+c.memoryRounds, "rounds")})
	if err := c.measureExchanges(ctx, cell, &done); err != nil {
		return err
	}
	for round := range c.memoryRounds {
		for i := range cell.rows {
			row := &cell.rows[(round+i)%len(cell.rows)]
			peak, err := c.peak(ctx, row.contender, c.workload(*cell, c.memoryClients))
			if err != nil {
				return err
			}
			row.memory = append(row.memory, peak)
		}
		done.Add(1)
	}
	return nil
}

func (c *peerComparison) workload(cell cell, clients int) workload {
	return workload{int64(cell.size), int64(c.bestShot), clients, cell.protocol}
}

// measureExchanges has all peers up at once, and each take its turn in each round. One client posts one capsule after the other, as
// an Oz with few slots lets them come. What a peer adds is what its exchanges take longer than those of a client that asks Oz and then
// the app itself, in the same round.
func (c *peerComparison) measureExchanges(ctx context.Context, cell *cell, done *atomic.Int64) (err error) {
	w := c.workload(*cell, 1)
	way, err := newDirectWay(w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, way.close()) }()
	var rigs []*rig
	defer func() {
		for _, r := range rigs {
			err = errors.Join(err, r.close())
		}
	}()
	capsules := c.capsulesOf(*cell)
	warmUp := 2 * capsules // two of them compile what they run often
	for _, row := range cell.rows {
		r, err := newRig(ctx, c.binary, c.dir, row.peer, w)
		if err != nil {
			return err
		}
		rigs = append(rigs, r)
		if err := r.run(ctx, warmUp); err != nil {
			return err
		}
	}
	if _, err := way.exchanges(ctx, warmUp); err != nil {
		return err
	}
	for round := range c.rounds {
		direct, err := way.exchanges(ctx, capsules)
		if err != nil {
			return err
		}
		cell.direct = append(cell.direct, direct)
		for i := range rigs {
			turn := (round + i) % len(rigs)
			if err := cell.rows[turn].exchanges(ctx, rigs[turn], capsules); err != nil {
				return err
			}
		}
		done.Add(1)
	}
	return nil
}

func (row *row) exchanges(ctx context.Context, r *rig, capsules int) error {
	before, err := cpuTime(r.gateway.pid())
	if err != nil {
		return err
	}
	took, err := r.load.exchanges(ctx, capsules)
	if err != nil {
		return fmt.Errorf("%s: %w", row.name, err)
	}
	if err := r.settle(ctx, capsules); err != nil {
		return err
	}
	after, err := cpuTime(r.gateway.pid())
	if err != nil {
		return err
	}
	row.cpu = append(row.cpu, milliseconds(after-before)/float64(capsules))
	row.took = append(row.took, took)
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// capsulesOf returns how many capsules a measurement takes: fewer if they are large.
func (c *peerComparison) capsulesOf(cell cell) int {
	if cell.size > 4<<20 {
		return (c.capsules + 2) / 3
	}
	return c.capsules
}

// peak returns the most memory that a fresh peer needs for as many capsules at once as there are clients.
func (c *peerComparison) peak(ctx context.Context, of contender, w workload) (mib float64, err error) {
	p := of.peer
	if of.light != nil {
		p = *of.light
	}
	r, err := newRig(ctx, c.binary, c.dir, p, w)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.run(ctx, w.clients); err != nil {
		return 0, err
	}
	bytes, err := written(r.gateway.pid())
	if err == nil && bytes > 1<<20 && !of.disk {
		err = fmt.Errorf("%s wrote %d bytes to files, which the table denies", p.name, bytes)
	}
	if err != nil {
		return 0, err
	}
	peak, err := peakMemory(r.gateway.pid())
	return float64(peak) / (1 << 20), err
}

// directWay is a client without a gateway: it posts a capsule to Oz, reads the answer, and then asks the app.
type directWay struct {
	backend *backend
	load    *load
	client  *http.Client
}

func newDirectWay(w workload) (*directWay, error) {
	b, err := newBackend(peer{name: "direct"}, sandbox.Options{BestShotSize: w.bestShot, AcceptAny: true})
	if err != nil {
		return nil, err
	}
	capsule := make([]byte, w.size)
	rand.Read(capsule) // it never fails
	l := newLoad("", capsule, 1, h1)
	l.url, l.status = "http://"+b.ozAddr+foldersPath, http.StatusCreated
	d := &directWay{b, l, h1.client()}
	l.after = d.askApp
	return d, nil
}

func (d *directWay) askApp(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.backend.appAddr+verifyPath, nil)
	if err != nil {
		return err
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the app answered with %s", resp.Status)
	}
	return nil
}

func (d *directWay) exchanges(ctx context.Context, capsules int) ([]time.Duration, error) {
	took, err := d.load.exchanges(ctx, capsules)
	if err != nil {
		return nil, fmt.Errorf("without a gateway: %w", err)
	}
	return took, d.backend.settle(ctx, capsules, int64(len(d.load.capsule)))
}

func (d *directWay) close() error {
	d.load.close()
	d.client.CloseIdleConnections()
	return d.backend.close()
}
