package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
)

const (
	statusInterval = time.Second     // of --watch
	statusTimeout  = 5 * time.Second // for one answer
	maxStatus      = 4 << 20         // bytes of an answer
)

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [--watch] [--json] [--address <interface> | --config <path> [--adapter <name>]]",
		Short: "Shows what a running gateway does",
		Long: `
Asks the admin API of a running Caddy what its oz_instant blocks do: upstreams
and their health, slots, queue and memory, how long an analysis takes, the state
of the access token, decisions and the last failures. Blocks with one way to Oz
are one.

The admin API is found as caddy reload finds it: at --address, at the address in
the configuration that --config names, or at ` + caddy.DefaultAdminListen + `.

With --watch it is asked each second, until Ctrl-C. The exit code is 0 if there
was an answer.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().Bool("watch", false, "show it again each second")
	cmd.Flags().Bool("json", false, "print the JSON document, with --watch one on each line")
	cmd.Flags().String("address", "", "the address of the admin API, if it is not in the configuration")
	cmd.Flags().StringP("config", "c", "", "the configuration file to find the address in")
	cmd.Flags().StringP("adapter", "a", "", "the adapter for the configuration file, if it is neither a Caddyfile nor JSON")
	cmd.RunE = runStatus
	return cmd
}

// statusAnswer is what came of asking a gateway.
type statusAnswer struct {
	doc    []byte
	status diagnose.Status
	err    error
}

func runStatus(cmd *cobra.Command, _ []string) error {
	cmd.SilenceUsage = true // it was called correctly
	address, err := adminAddress(cmd)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()
	watch, _ := cmd.Flags().GetBool("watch")
	asJSON, _ := cmd.Flags().GetBool("json")
	out := cmd.OutOrStdout()
	board := diagnose.NewBoard(out)
	q := &query{address: address, get: func() statusAnswer { return getStatus(address) }}
	a := q.ask(ctx)
	switch {
	case watch && ctx.Err() != nil:
		return nil
	case a.err != nil: // a typo, rather than a gateway that will come
		return a.err
	case watch && asJSON:
		return q.watch(ctx, a, func(a statusAnswer) error { return diagnose.WriteStatusLine(out, a.doc, a.err) })
	case watch:
		return q.watch(ctx, a, func(a statusAnswer) error { return board.Watch(a.status, a.err, time.Now()) })
	case asJSON:
		return diagnose.WriteStatus(out, a.doc)
	}
	return board.Status(a.status, time.Now())
}

// query asks one gateway, again and again.
type query struct {
	address  string
	get      func() statusAnswer
	answered chan statusAnswer // of the call in progress; nil: there is none
}

// watch shows an answer and those that follow, until ctx ends.
func (q *query) watch(ctx context.Context, a statusAnswer, show func(statusAnswer) error) error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := show(a); err != nil {
			return err
		}
		select {
		case <-tick.C:
			a = q.ask(ctx)
		case <-ctx.Done():
		}
	}
	return nil
}

// adminAddress finds the admin API in the way of Caddy's own commands.
func adminAddress(cmd *cobra.Command) (string, error) {
	address, _ := cmd.Flags().GetString("address")
	file, _ := cmd.Flags().GetString("config")
	adapter, _ := cmd.Flags().GetString("adapter")
	if address != "" || file == "" {
		return caddycmd.DetermineAdminAPIAddress(address, nil, "", "")
	}
	config, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return "", err
	}
	var parts struct {
		Admin caddy.AdminConfig `json:"admin"`
	}
	if err := json.Unmarshal(config, &parts); err == nil && parts.Admin.Disabled {
		return "", fmt.Errorf("%s: the admin API is off, and only it knows the status (want no admin off)", file)
	}
	return caddycmd.DetermineAdminAPIAddress("", config, file, adapter)
}

// ask asks once. Caddy's own call can't be ended: while one has no answer the
// next ask waits for the same. A gateway that hangs would otherwise get one more
// connection every few seconds, until either side has no file descriptor left.
func (q *query) ask(ctx context.Context) statusAnswer {
	if q.answered == nil {
		answered := make(chan statusAnswer, 1)
		go func() { answered <- q.get() }()
		q.answered = answered
	}
	select {
	case a := <-q.answered:
		q.answered = nil
		return a
	case <-time.After(statusTimeout):
		return statusAnswer{err: fmt.Errorf("the admin API at %s has not answered for %s", q.address, statusTimeout)}
	case <-ctx.Done():
		return statusAnswer{err: ctx.Err()}
	}
}

// getStatus makes the call. Its connection isn't kept: Caddy's client would make
// another one for the next call all the same.
func getStatus(address string) (a statusAnswer) {
	resp, err := caddycmd.AdminAPIRequest(address, http.MethodGet, diagnose.StatusPath, http.Header{"Connection": {"close"}}, nil)
	if err != nil {
		return statusAnswer{err: adminError(address, err)}
	}
	defer resp.Body.Close()
	if a.doc, a.err = io.ReadAll(io.LimitReader(resp.Body, maxStatus)); a.err != nil {
		return a
	}
	if a.status, a.err = diagnose.ReadStatus(a.doc); a.err != nil {
		a.err = fmt.Errorf("%s: %w", address, a.err)
	}
	return a
}

// maxError is how many characters of Caddy's error are shown.
const maxError = 300

// adminError says what an error of Caddy's client means here. It has texts only,
// some of them from whatever answered, which must not steer or fill a terminal.
func adminError(address string, err error) error {
	text := strings.Map(graphicOnly, err.Error())
	if long := []rune(text); len(long) > maxError {
		text = string(long[:maxError]) + "…"
	}
	switch {
	case strings.HasPrefix(text, "performing request: "):
		return fmt.Errorf("no admin API answers at %s (want a running Caddy with its admin API on; --address or --config says where): %s",
			address, strings.TrimPrefix(text, "performing request: "))
	case strings.HasPrefix(text, "caddy responded with error: HTTP 404"):
		return errors.New("the Caddy at " + address + " has no oz_instant in it (want one that is built with this module)")
	default:
		return errors.New(text)
	}
}

func graphicOnly(r rune) rune {
	if !unicode.IsGraphic(r) {
		return -1
	}
	return r
}
