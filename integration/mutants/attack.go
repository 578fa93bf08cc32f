package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
	"github.com/oz-instant/caddy-oz-instant/integration/cli"
	"github.com/oz-instant/caddy-oz-instant/integration/credulous"
	"github.com/oz-instant/caddy-oz-instant/integration/ports"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

func attackCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "attack [rule]...",
		Short: "Attack the module whole and without each rule, and compare the rows that break with the expected ones",
		Long: `
Builds Caddy with the whole module and without each of the rules (or those that
are named), puts each between a sandbox and an app that believes everything, and
fires all that caddy oz-instant attack has at it. Ends with an error unless the whole
module holds and without each rule exactly the expected rows break.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			line := progress.New(cmd.ErrOrStderr())
			defer line.Close()
			return attackAll(cmd.Context(), line, line.Above(cmd.OutOrStdout()), args, func(built) error { return nil })
		},
	}
}

// whole is the module without a change, in which nothing breaks.
var whole = rule{name: "(none)", what: "nothing is taken out", aliases: []string{}}

// attackAll calls then with each Caddy that has been attacked, with one after the other, while the next ones are built and attacked:
// both mostly wait.
func attackAll(ctx context.Context, line *progress.Line, out io.Writer, wanted []string, then func(built) error) error {
	list := []rule{whole}
	for _, r := range rules {
		if len(wanted) == 0 || slices.Contains(wanted, r.name) {
			list = append(list, r)
		}
	}
	for _, name := range wanted {
		if _, err := find(name); err != nil {
			return err
		}
	}
	rig, err := newRig()
	if err != nil {
		return err
	}
	defer rig.close()

	attacked, ended := make(chan built, len(list)), make(chan error, 1)
	go func() {
		var errs []error
		for b := range attacked {
			errs = append(errs, then(b))
			if b.binary != rig.whole {
				os.Remove(b.binary)
			}
		}
		ended <- errors.Join(errs...)
	}()
	err = rig.attackEach(ctx, line, out, list, attacked)
	close(attacked)
	return errors.Join(err, <-ended)
}

// attackEach attacks a Caddy without each of the rules, and sends it on.
func (r *rig) attackEach(ctx context.Context, line *progress.Line, out io.Writer, list []rule, attacked chan<- built) error {
	ctx, cancel := context.WithCancel(ctx)
	builds := r.build(ctx, list)
	defer func() { // no build goes on without its folder
		cancel()
		for range builds {
		}
	}()
	wrong, tried := 0, 0
	begin := func(what string) {
		line.Begin(progress.Phase{Name: fmt.Sprintf("%d of %d rules: %s", tried, len(list), what)})
	}
	begin("building Caddy")
	for b := range builds {
		tried++
		begin("without " + b.rule.name)
		if b.err != nil {
			return fmt.Errorf("without %s: %w", b.rule.name, b.err)
		}
		ok, err := r.compare(ctx, out, b)
		if err != nil {
			return fmt.Errorf("without %s: %w", b.rule.name, err)
		}
		if !ok {
			wrong++
		}
		attacked <- b
		begin("building the next Caddy")
	}
	if wrong > 0 {
		return fmt.Errorf("without %d of %d rules other rows break than expected", wrong, len(list))
	}
	return nil
}

// built is a Caddy without a rule.
type built struct {
	rule   rule
	binary string
	err    error
}

// build builds one Caddy after the other, each while the one before is under attack.
func (r *rig) build(ctx context.Context, list []rule) <-chan built {
	builds := make(chan built)
	go func() {
		defer close(builds)
		for i, without := range list {
			b := built{rule: without, binary: filepath.Join(r.dir, fmt.Sprintf("caddy%d", i))}
			if i == 0 {
				r.whole = b.binary
			}
			b.err = without.build(ctx, b.binary)
			builds <- b
		}
	}()
	return builds
}

// compare attacks a Caddy and reports whether the expected rows break.
func (r *rig) compare(ctx context.Context, out io.Writer, b built) (bool, error) {
	ok := true
	for _, site := range []struct {
		name, options string
		breaks        []string
	}{{"", "", b.rule.breaks}, {", aliases let in", aliasOptions, b.rule.aliases}} {
		if site.options != "" && site.breaks == nil {
			continue
		}
		start := time.Now()
		broken, err := r.attack(ctx, b.binary, site.options)
		if err != nil {
			return false, err
		}
		if !report(out, b.rule.name+site.name, broken, site.breaks, time.Since(start)) {
			ok = false
		}
	}
	return ok, nil
}

// report prints the rows that broke, and reports whether they are the expected ones.
func report(out io.Writer, name string, broken, want []string, took time.Duration) bool {
	want = slices.Sorted(slices.Values(want))
	slices.Sort(broken)
	verdict := "as expected"
	if !slices.Equal(broken, want) {
		verdict = "WRONG"
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "%s\t%d rows broken, %s\t%.1f s\n", name, len(broken), verdict, took.Seconds())
	for _, row := range broken {
		if !slices.Contains(want, row) {
			row += "\tbroken, and should hold"
		}
		fmt.Fprintf(table, "  %s\n", row)
	}
	for _, row := range want {
		if !slices.Contains(broken, row) {
			fmt.Fprintf(table, "  %s\tholds, and should be broken\n", row)
		}
	}
	table.Flush()
	return slices.Equal(broken, want)
}

// rig is the part that all deployments share.
type rig struct {
	dir    string
	whole  string // the binary that attacks
	oz     *sandbox.Sandbox
	server *http.Server
	ozAddr string
	app    *credulous.App
}

func newRig() (_ *rig, err error) {
	r := new(rig)
	if r.dir, err = os.MkdirTemp("", "mutants"); err != nil {
		return nil, err
	}
	if r.oz, err = sandbox.New(sandbox.Options{}); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.ozAddr = listener.Addr().String()
	r.server = &http.Server{Handler: r.oz, ReadHeaderTimeout: 10 * time.Second}
	go r.server.Serve(listener) // ends with close
	r.app, err = credulous.Start()
	return r, err
}

func (r *rig) close() {
	r.oz.Close()
	r.server.Close()
	r.app.Close()
	os.RemoveAll(r.dir)
}

// attack runs a Caddy and returns the rows that broke.
func (r *rig) attack(ctx context.Context, binary, options string) (broken []string, err error) {
	gateway, err := r.start(ctx, binary, options)
	if err != nil {
		return nil, err
	}
	defer gateway.stop()
	return r.fire(ctx, gateway.addr)
}

// fire attacks a gateway. The kit ends with 1 for broken rows; that it could not tell is an error here.
func (r *rig) fire(ctx context.Context, addr string) (broken []string, err error) {
	cmd := exec.CommandContext(ctx, r.whole, "oz-instant", "attack", "--to", "http://"+addr, "--path", credulous.Path,
		"--sandbox", "http://"+r.ozAddr, "--json", "--rate", "2000", "--requests", "2000", "--timeout", "10s")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errs, environment(r.dir)
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		return nil, err
	}
	var report struct {
		Why  string `json:"why_not"`
		Rows []struct{ Row, State, Detail string }
	}
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		return nil, fmt.Errorf("the report: %w\n%s", err, errs.String())
	}
	if report.Why != "" || len(report.Rows) == 0 {
		return nil, fmt.Errorf("the attack could not tell: %s", report.Why)
	}
	for _, row := range report.Rows {
		switch row.State {
		case "broken":
			broken = append(broken, row.Row)
		case "holds":
		default:
			return nil, fmt.Errorf("row %s: %s: %s", row.Row, row.State, row.Detail)
		}
	}
	return broken, nil
}

const caddyfile = `{
	admin off
	%s
}
http://{$ADDR} {
	oz_instant {$VERIFY} http://{$OZ}
	reverse_proxy {$APP}
}
`

// aliasOptions let names with dots and underscores in, which Caddy by itself drops before the module sees them. Then it drops the
// spelling with hyphens instead, so this is a site of its own.
const aliasOptions = `servers {
		expected_underscore_headers X_Oz_Decision X-Oz_Decision X_Oz-Decision
		expected_dot_headers X.Oz.Decision X-Oz.Decision X.Oz-Decision
	}`

// gateway is a running Caddy.
type gateway struct {
	addr  string
	cmd   *exec.Cmd
	ended chan struct{}
}

func (r *rig) start(ctx context.Context, binary, options string) (*gateway, error) {
	addr, err := ports.FreeAddress()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(r.dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(caddyfile, options)), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(r.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	g := &gateway{addr: addr, cmd: exec.Command(binary, "run", "--config", file, "--adapter", "caddyfile"), ended: make(chan struct{})}
	g.cmd.Stdout, g.cmd.Stderr = log, log
	g.cmd.Env = append(environment(r.dir), "ADDR="+addr, "OZ="+r.ozAddr, "APP="+r.app.Addr(), "VERIFY="+credulous.Path)
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		g.cmd.Wait() // how it ended is of no interest: stop ends it
		close(g.ended)
	}()
	if err := cli.AwaitListening(ctx, g.addr, g.ended); err != nil {
		g.stop()
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("starting Caddy: %w\n%s", err, text)
	}
	return g, nil
}

// environment is made from nothing: a proxy of the machine must not take part.
func environment(dir string) []string {
	return []string{"HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_DATA_HOME=" + dir, "TMPDIR=" + dir}
}

// stop kills the gateway: nothing that it still does is of interest.
func (g *gateway) stop() {
	g.cmd.Process.Signal(syscall.SIGKILL)
	<-g.ended
}
