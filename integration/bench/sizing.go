package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	random "math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/ports"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// sizingRun is one run of sizing.
type sizingRun struct {
	workspace
	load  time.Duration
	only  []string
	redis string

	answered atomic.Int64 // capsules of the case in progress
}

// sizingCase is a load, and what there is to serve it.
type sizingCase struct {
	name      string
	perMinute int
	size      sandbox.Size
	analysis  time.Duration
	upload    time.Duration // 0: as fast as it goes
	slots     int           // 0: as many as are calculated
	redis     bool          // counts slots and claims there
}

// Most have what a large site needs, at its true pace: analyses that take their time cost the bench nothing. Two have few slots, whose
// queue can be seen, and shorter analyses, so that thousands of capsules wait in it.
var sizingCases = []sizingCase{
	{"peak", 10_000, 200_000, 3 * time.Second, 2 * time.Second, 0, false},
	{"fast-small", 10_000, 200_000, 3 * time.Second, 0, 0, false},
	{"large", 1_000, 2 << 20, 3 * time.Second, 4 * time.Second, 0, false},
	{"fast-large", 1_000, 2 << 20, 3 * time.Second, 0, 0, false},
	{"redis", 10_000, 50_000, 3 * time.Second, 0, 0, true},
	{"three-slots", 1_440, 50_000, 100 * time.Millisecond, 0, 3, false},
	{"twelve-slots", 5_760, 50_000, 100 * time.Millisecond, 0, 12, false},
}

const sizingAnswer = 400_000 // characters of a best shot

func sizingNames() (names []string) {
	for _, c := range sizingCases {
		names = append(names, c.name)
	}
	return names
}

func sizingCommand() *cobra.Command {
	s := new(sizingRun)
	cmd := s.command("sizing", "Compare what caddy oz-instant size predicts with what is measured", s)
	cmd.Long = cmd.Short + `.

Capsules come at random, each by HTTP/2 over TLS on a connection of its own, to the block that the command prints, with seal and
replay_guard; the case redis has shared, too, and both in Redis. Figures are of the time in which as many capsules come as go. The queue is
calculated once more with how many did come and how long a slot was really held for, which is the analysis and its way.`
	flags := cmd.Flags()
	flags.DurationVar(&s.load, "for", 30*time.Second, "how long each load lasts")
	flags.StringSliceVar(&s.only, "cases", sizingNames(), "`names` of the loads to send")
	flags.StringVar(&s.redis, "redis", "redis-server", "the `program`; empty to do without")
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("cases", cobra.FixedCompletions(sizingNames(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (s *sizingRun) check() error {
	if s.load < time.Second {
		return fmt.Errorf("--for: %v is too short (want 1s or more)", s.load)
	}
	for _, name := range s.only {
		if !slices.Contains(sizingNames(), name) {
			return fmt.Errorf("--cases: invalid value %q (want %s)", name, strings.Join(sizingNames(), ", "))
		}
	}
	if s.redis == "" {
		return nil
	}
	_, err := exec.LookPath(s.redis)
	return err
}

func (s *sizingRun) measure(ctx context.Context, stdout io.Writer) error {
	fmt.Fprintln(stdout, conditions(s.binary))
	for _, c := range sizingCases {
		if !slices.Contains(s.only, c.name) {
			continue
		}
		if err := s.try(ctx, stdout, c); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// sized is what the calculator says.
type sized struct {
	Rate    float64 `json:"capsules_per_second"`
	Slots   int     `json:"slots"`
	Busy    float64 `json:"slots_busy"`
	Waits   waits   `json:"waits"`
	CPU     float64 `json:"cpu_per_capsule"`
	CPUMore float64 `json:"cpu_per_capsule_redis"`
	Held    float64 `json:"memory_held"`
	RAM     float64 `json:"ram_usual"`
	Files   float64 `json:"files_usual"`
	Client  float64 `json:"bytes_from_clients"`
	ToOz    float64 `json:"bytes_to_oz"`
	FromOz  float64 `json:"bytes_from_oz"`
	ToApp   float64 `json:"bytes_to_app"`
	Shared  float64 `json:"redis_calls_shared"`
	Replay  float64 `json:"redis_calls_replay_guard"`
	Claims  float64 `json:"redis_bytes"`
	Redis   float64 `json:"redis_cpus"`
}

// waits are in seconds.
type waits struct {
	Share float64 `json:"share"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P95   float64 `json:"p95"`
}

func (s *sizingRun) calculate(ctx context.Context, c sizingCase, analysis time.Duration, more ...string) ([]byte, error) {
	args := []string{
		"oz-instant", "size", "--per-minute", strconv.Itoa(c.perMinute), "--capsule", strconv.FormatInt(int64(c.size), 10),
		"--analysis", analysis.String(), "--variation", "0", "--upload", c.upload.String(), "--idle", "0s", "--gateways", "1", "--spare", "0",
	}
	if c.slots > 0 {
		args = append(args, "--per-instance", strconv.Itoa(c.slots), "--instances", "1")
	}
	return exec.CommandContext(ctx, s.binary, append(args, more...)...).Output()
}

// predict asks the calculator of the Caddy that is measured.
func (s *sizingRun) predict(ctx context.Context, c sizingCase, analysis time.Duration) (p sized, err error) {
	text, err := s.calculate(ctx, c, analysis, "--json")
	if err != nil {
		return p, fmt.Errorf("caddy oz-instant size: %w", err)
	}
	return p, json.Unmarshal(text, &p)
}

// peer returns the configuration with the block that the calculator prints.
func (s *sizingRun) peer(ctx context.Context, c sizingCase, redis string) (peer, error) {
	text, err := s.calculate(ctx, c, c.analysis)
	if err != nil {
		return peer{}, fmt.Errorf("caddy oz-instant size: %w", err)
	}
	block, guard := string(text), "memory"
	if redis != "" {
		guard = "redis redis://" + redis
		block = strings.TrimSuffix(strings.TrimSpace(block), "}") + "\tshared " + guard + "\n}"
	}
	return peer{name: ozInstant.name, decides: true, protocol: h2TLS, directives: `
	oz_instant ` + verifyPath + ` http://{$OZ} {
		seal {
			audience app
		}
		replay_guard ` + guard + "\n" + block + `
	}
	reverse_proxy {$APP}`}, nil
}

func (s *sizingRun) try(ctx context.Context, stdout io.Writer, c sizingCase) (err error) {
	predicted, err := s.predict(ctx, c, c.analysis)
	if err != nil {
		return err
	}
	m := new(meter)
	address := ""
	if c.redis && s.redis != "" {
		if address, err = ports.FreeAddress(); err != nil {
			return err
		}
		if m.server, err = startRedis(ctx, s.redis, s.dir, address); err != nil {
			return err
		}
		defer m.server.kill()
		m.store = redis.NewClient(&redis.Options{Addr: address})
		defer m.store.Close()
	}
	p, err := s.peer(ctx, c, address)
	if err != nil {
		return err
	}
	backend, g, err := setUp(ctx, s.binary, s.dir, p, sandbox.Options{AnalysisTime: c.analysis, BestShotSize: sizingAnswer, AcceptAny: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), backend.close()) }()

	m.gateway = g
	warm := c.upload + c.analysis + time.Second
	s.answered.Store(0)
	s.line.Begin(progress.Phase{
		Name: c.name, Amount: progress.Of(&s.answered, int(predicted.Rate*(s.load+warm).Seconds()), "capsules answered"),
	})
	answers, err := s.send(ctx, c, upload{url: g.url + verifyPath}, warm, m)
	if err != nil {
		return err
	}
	return s.report(ctx, stdout, c, predicted, m, answers)
}

// send posts capsules at random instants (Poisson), however many are in progress, and returns when all are answered. The meter runs
// from the end of warm until no more come.
func (s *sizingRun) send(ctx context.Context, c sizingCase, u upload, warm time.Duration, m *meter) (answers []response, err error) {
	capsule := make([]byte, c.size)
	rand.Read(capsule) // it never fails
	if c.upload > 0 {
		u.rate = int64(float64(c.size) / c.upload.Seconds())
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	defer all.Wait()
	r := random.New(random.NewPCG(1, uint64(c.perMinute)))
	begun := time.Now()
	next, metered := begun, false
	for n := uint64(0); ; n++ {
		next = next.Add(time.Duration(r.ExpFloat64() * float64(time.Minute) / float64(c.perMinute)))
		if err := sleepUntil(ctx, next); err != nil {
			return nil, err
		}
		if !metered && time.Since(begun) > warm {
			if metered = true; m.start(ctx) != nil {
				return nil, m.err
			}
		}
		if time.Since(begun) > warm+s.load {
			break
		}
		mine := u
		mine.capsule = bytes.Clone(capsule)
		binary.BigEndian.PutUint64(mine.capsule, n) // to a replay guard each is new
		all.Go(func() {
			client := h2TLS.client()
			a := mine.post(ctx, client)
			client.CloseIdleConnections()
			s.answered.Add(1)
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, a)
		})
	}
	err = m.stop(ctx)
	all.Wait()
	return answers, err
}

func sleepUntil(ctx context.Context, t time.Time) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(time.Until(t)):
		return nil
	}
}

// measured is what the gateway did while the meter ran.
type measured struct {
	sized
	perMinute int // that came
	refused   int
	why       string        // the last of them was
	hold      time.Duration // of a slot
}

// reckon makes figures of the answers and of the gateway's log. Any answer but a decision or a refusal means that there are none.
func reckon(m *meter, slots int, answers []response, lines []logLine) (r measured, err error) {
	from, to := m.from, m.to
	window := to.Sub(from).Seconds()
	served, came := 0, 0
	for _, a := range answers {
		if a.begun.After(from) && a.begun.Before(to) {
			came++
		}
		switch {
		case a.err != nil:
			return r, fmt.Errorf("a client got no answer: %w", a.err)
		case a.status == http.StatusServiceUnavailable && a.problem:
			r.refused++
			r.why = a.text
		case a.status != http.StatusOK:
			return r, fmt.Errorf("a capsule was answered with %d: %s", a.status, a.text)
		case a.ended.After(from) && a.ended.Before(to):
			served++
		}
	}
	var queued []float64
	var held, hold float64
	first, last := seconds(from), seconds(to)
	for _, l := range lines {
		if l.AtOz == 0 {
			continue
		}
		held += max(0, min(last, l.Time)-max(first, l.Time-l.AtOz))
		if l.Time > first && l.Time < last {
			queued, hold = append(queued, l.Queue), hold+l.AtOz
		}
	}
	if served == 0 || len(queued) == 0 {
		return r, errors.New("no capsule was served: too few to measure")
	}
	r.hold = time.Duration(hold / float64(len(queued)) * float64(time.Second))
	r.perMinute = int(float64(came) / window * 60)
	r.Rate, r.Slots, r.Busy = float64(served)/window, slots, held/window/float64(slots)
	r.Waits = waitsOf(queued)
	r.CPU = m.gatewayCPU.Seconds() / float64(served)
	r.Held, r.RAM, r.Files = m.held, m.resident, m.files
	r.Client, r.ToOz = m.read/window, m.written/window
	r.Shared = m.redisCalls / window
	return r, nil
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// noWait is what a slot takes that is free.
const noWait = 0.001

func waitsOf(queued []float64) (w waits) {
	slices.Sort(queued)
	n := len(queued)
	for _, q := range queued {
		w.Mean += q / float64(n)
		if q > noWait {
			w.Share += 1 / float64(n)
		}
	}
	w.P50, w.P95 = queued[n/2], queued[n*95/100]
	return w
}

func (s *sizingRun) report(ctx context.Context, stdout io.Writer, c sizingCase, p sized, m *meter, answers []response) error {
	lines, err := m.gateway.logged(decidedMessage)
	if err != nil {
		return err
	}
	r, err := reckon(m, p.Slots, answers, lines)
	if err != nil {
		return err
	}
	// The calculator is asked again with what was measured, as an operator does with the service time of the status.
	came := c
	came.perMinute = r.perMinute
	again, err := s.predict(ctx, came, r.hold)
	if err != nil {
		return err
	}
	if c.slots == 0 { // another time of holding must not change the number of slots
		again.Busy = again.Rate * r.hold.Seconds() / float64(p.Slots)
	}
	if m.store != nil {
		p.CPU += p.CPUMore
	}
	t := sizingTable{out: stdout}
	t.title(c, p.Slots, s.load)
	t.row("capsules", p.Rate, r.Rate, "a second")
	t.row("slot held for", c.analysis.Seconds()*1e3, r.hold.Seconds()*1e3, "ms: the analysis, and the way to Oz and back")
	t.row("slots busy", 100*again.Busy, 100*r.Busy, "%, by the time it is held")
	t.row("waited", 100*again.Waits.Share, 100*r.Waits.Share, "% of the capsules, more than 1 ms")
	t.row("wait, mean", 1e3*again.Waits.Mean, 1e3*r.Waits.Mean, "ms")
	t.row("wait of half, up to", 1e3*again.Waits.P50, 1e3*r.Waits.P50, "ms")
	t.row("wait of 95 %, up to", 1e3*again.Waits.P95, 1e3*r.Waits.P95, "ms")
	t.row("refused", 0, float64(r.refused), "capsules")
	t.row("memory held, mean", again.Held/(1<<20), r.Held/(1<<20), "MiB")
	t.row("resident memory", p.RAM/(1<<20), r.RAM/(1<<20), "MiB at its most, predicted for the mean")
	t.row("open files", p.Files, r.Files, "at their most, predicted for the mean")
	t.row("CPU per capsule", 1e3*p.CPU, 1e3*r.CPU, "ms of the gateway")
	t.row("received", (p.Client+p.FromOz)/1e6, r.Client/1e6, "MB a second, less TCP and IP")
	t.row("sent", (p.ToOz+p.ToApp)/1e6, r.ToOz/1e6, "MB a second, less TCP and IP")
	if m.store != nil {
		t.row("calls of Redis", p.Shared+p.Replay, r.Shared, "a second, shared and replay_guard")
		t.row("CPU of such a call", 1e6*p.Redis/(p.Shared+p.Replay), 1e6*m.redisCPU.Seconds()/m.redisCalls, "µs of Redis, in the mean of both")
		t.row("memory of a claim", p.Claims/(p.Rate*15*60), m.redisBytes/(r.Rate*m.to.Sub(m.from).Seconds()), "bytes of Redis")
	}
	if r.refused > 0 {
		fmt.Fprintf(stdout, "  refused: %s\n", r.why)
	}
	fmt.Fprintf(stdout, "  cores in use, of %d: gateway %.2f; clients, Oz and app %.2f; Redis %.2f; the rest of the machine %.2f\n",
		m.cores, m.used(m.gatewayCPU), m.used(m.benchCPU), m.used(m.redisCPU), max(0, m.used(m.machineCPU-m.gatewayCPU-m.benchCPU-m.redisCPU)))
	return nil
}

type sizingTable struct{ out io.Writer }

func (t sizingTable) title(c sizingCase, slots int, load time.Duration) {
	fmt.Fprintf(t.out, "\n%s: %d capsules a minute of %s, analyses of %v, uploads of %v, %d slots, for %v\n",
		c.name, c.perMinute, c.size.String(), c.analysis, c.upload, slots, load)
	fmt.Fprintf(t.out, "  %-22s %10s %10s %11s\n", "", "predicted", "measured", "difference")
}

func (t sizingTable) row(name string, predicted, measured float64, unit string) {
	difference := ""
	if predicted >= 0.05 {
		difference = fmt.Sprintf("%+.1f %%", 100*(measured/predicted-1))
	}
	fmt.Fprintf(t.out, "  %-22s %10s %10s %11s  %s\n", name, figure(predicted), figure(measured), difference, unit)
}

// figure has three digits that say something.
func figure(x float64) string {
	digits := 2 - int(math.Floor(math.Log10(max(x, 0.1))))
	return strconv.FormatFloat(x, 'f', min(2, max(0, digits)), 64)
}
