package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/spf13/cobra"
)

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check --to <url> [--capsule <file>] [--json]",
		Short: "Checks whether an Oz Instant deployment can be used",
		Long: `
Checks an Oz Instant deployment from where this machine stands: name, connection
and certificate, access token, session token, what Oz says to an empty and to a
garbage capsule, and, with --capsule, what it decides about a real one (which
spends its session token). What is wrong comes with what to do about it.

With --config every oz_instant block of a configuration is checked, each of its
upstreams by itself, with the block's own transport and access token.

The exit code is 0 only if all is well.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().String("to", "", "where Oz is, such as https://oz.internal or http://10.0.0.7:8080/base")
	cmd.Flags().String("access-token", "", "the access token, if Oz wants one; {env.NAME} and {file./path} work")
	cmd.Flags().String("email", "", "the account to log in with, in place of an access token")
	cmd.Flags().String("password", "", "its password; {env.NAME} and {file./path} work")
	cmd.Flags().String("capsule", "", "a file with a capsule to send")
	cmd.Flags().Duration("timeout", 30*time.Second, "for each step")
	cmd.Flags().Bool("json", false, "print JSON")
	addConfigFlags(cmd)
	cmd.MarkFlagsOneRequired("to", "config")
	cmd.MarkFlagsMutuallyExclusive("to", "config")
	cmd.MarkFlagsRequiredTogether("email", "password")
	cmd.MarkFlagsMutuallyExclusive("access-token", "email")
	cmd.RunE = run(runCheck)
	return cmd
}

// Check is one thing that was looked at.
type check struct {
	Name   string `json:"check"`
	State  state  `json:"state"`
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
	MS     int64  `json:"ms"`
}

type state string

const (
	stateOK      state = "ok"
	stateFailed  state = "failed"
	stateSkipped state = "skipped" // what it needs has failed
)

// report is what was found at one upstream.
type report struct {
	To     string  `json:"to"`
	Well   bool    `json:"well"`
	Checks []check `json:"checks"`
}

func runCheck(cmd *cobra.Command, _ []string) error {
	targets, err := checkTargets(cmd)
	if err != nil {
		return err
	}
	capsule, err := capsuleFlag(cmd)
	if err != nil {
		return err
	}
	timeout, _ := cmd.Flags().GetDuration("timeout")
	ctx, cancel, err := quietContext()
	if err != nil {
		return err
	}
	defer cancel()
	var reports []report
	well := true
	for _, t := range targets {
		c := checker{caddy: ctx, target: t, timeout: timeout, capsule: capsule}
		r := c.run(cmd.Context())
		reports = append(reports, r)
		well = well && r.Well
	}
	if err := printReports(cmd, reports, well); err != nil {
		return err
	}
	if !well {
		return errNotWell
	}
	return nil
}

func capsuleFlag(cmd *cobra.Command) ([]byte, error) {
	file, _ := cmd.Flags().GetString("capsule")
	if file == "" {
		return nil, nil
	}
	capsule, err := os.ReadFile(file)
	if err == nil && len(capsule) == 0 {
		err = fmt.Errorf("%s is empty", file)
	}
	return capsule, err
}

// checkTarget is one upstream, and the block that it stands in.
type checkTarget struct {
	name    string
	handler *Handler
	oz      *Oz
}

func checkTargets(cmd *cobra.Command) ([]checkTarget, error) {
	if to, _ := cmd.Flags().GetString("to"); to != "" {
		return targetOf(cmd, to)
	}
	handlers, err := blocks(cmd)
	if err != nil {
		return nil, err
	}
	var targets []checkTarget
	for _, h := range handlers {
		more, err := targetsOf(h)
		if err != nil {
			return nil, err
		}
		targets = append(targets, more...)
	}
	return targets, nil
}

func targetOf(cmd *cobra.Command, to string) ([]checkTarget, error) {
	o, err := ozAt(to)
	if err != nil {
		return nil, err
	}
	o.AccessToken, _ = cmd.Flags().GetString("access-token")
	if email, _ := cmd.Flags().GetString("email"); email != "" {
		password, _ := cmd.Flags().GetString("password")
		o.Credentials = &Credentials{Email: email, Password: password}
	}
	h := new(Handler)
	h.setDefaults()
	return []checkTarget{{to, h, o}}, nil
}

// targetsOf are the upstreams of a block, each for itself: balancing and
// health checks would hide the one that is sick.
func targetsOf(h *Handler) ([]checkTarget, error) {
	if err := checkProxy(h.ReverseProxy); err != nil {
		return nil, err
	}
	pool := h.ReverseProxy.Upstreams
	if len(pool) == 0 {
		return []checkTarget{{"dynamic upstreams", h, &h.Oz}}, nil
	}
	var targets []checkTarget
	for _, u := range pool {
		o := h.Oz
		o.ReverseProxy = &reverseproxy.Handler{
			TransportRaw: h.ReverseProxy.TransportRaw,
			Headers:      h.ReverseProxy.Headers,
			Upstreams:    reverseproxy.UpstreamPool{{Dial: u.Dial}},
		}
		targets = append(targets, checkTarget{u.Dial, h, &o})
	}
	return targets, nil
}

// checker looks at one upstream.
type checker struct {
	caddy   caddy.Context
	target  checkTarget
	timeout time.Duration
	capsule []byte
	link    *link
	checks  []check
}

func (c *checker) run(ctx context.Context) report {
	c.look(ctx)
	r := report{To: c.target.name, Well: true, Checks: c.checks}
	for _, ch := range c.checks {
		r.Well = r.Well && ch.State == stateOK
	}
	return r
}

// step does one check.
func (c *checker) step(ctx context.Context, name string, f func(context.Context) (string, error)) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errOzTimeout)
	defer cancel()
	start := time.Now()
	detail, err := f(ctx)
	ch := check{Name: name, State: stateOK, Detail: detail, MS: time.Since(start).Milliseconds()}
	if err != nil {
		ch.State, ch.Detail, ch.Advice = stateFailed, err.Error(), adviceFor(err)
	}
	c.checks = append(c.checks, ch)
	return err == nil
}

func (c *checker) skip(names ...string) {
	for _, name := range names {
		c.checks = append(c.checks, check{Name: name, State: stateSkipped, Detail: "not tried: an earlier check failed"})
	}
}

// advised is an error that says what to do about it.
type advised struct {
	error
	advice string
}

func advise(err error, format string, args ...any) error {
	return &advised{err, fmt.Sprintf(format, args...)}
}

func (a *advised) Unwrap() error { return a.error }

func adviceFor(err error) string {
	if a, ok := errors.AsType[*advised](err); ok {
		return a.advice
	}
	return ""
}

func printReports(cmd *cobra.Command, reports []report, well bool) error {
	out := cmd.OutOrStdout()
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"well": well, "upstreams": reports})
	}
	for i, r := range reports {
		if i > 0 {
			fmt.Fprintln(out)
		}
		if err := r.print(out); err != nil {
			return err
		}
	}
	return nil
}

// print writes a table for people.
func (r report) print(out io.Writer) error {
	fmt.Fprintln(out, r.To)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, ch := range r.Checks {
		mark := map[state]string{stateOK: "ok", stateFailed: "FAILED", stateSkipped: "-"}[ch.State]
		fmt.Fprintf(table, "  %s\t%s\t%d ms\t%s\n", mark, ch.Name, ch.MS, ch.Detail)
		if ch.Advice != "" {
			fmt.Fprintf(table, "  \t\t\t→ %s\n", ch.Advice)
		}
	}
	return table.Flush()
}
