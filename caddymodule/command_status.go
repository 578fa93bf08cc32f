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

func runStatus(cmd *cobra.Command, _ []string) error {
	cmd.SilenceUsage = true // it was called correctly
	address, err := adminAddress(cmd)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()
	doc, status, err := askStatus(ctx, address)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	board := diagnose.NewBoard(out)
	asJSON, _ := cmd.Flags().GetBool("json")
	if watch, _ := cmd.Flags().GetBool("watch"); !watch {
		if asJSON {
			return diagnose.WriteStatus(out, doc)
		}
		return board.Status(status, time.Now())
	}
	show := func() error { return board.Watch(status, err, time.Now()) }
	if asJSON {
		show = func() error { return diagnose.WriteStatusLine(out, doc, err) }
	}
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		if err := show(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if doc, status, err = askStatus(ctx, address); ctx.Err() != nil {
			return nil
		}
	}
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

// askStatus asks once. Caddy's own call can't be ended, so that one without an
// answer is left alone.
func askStatus(ctx context.Context, address string) (doc []byte, status diagnose.Status, err error) {
	type answer struct {
		doc []byte
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		doc, err := getStatus(address)
		answered <- answer{doc, err}
	}()
	select {
	case a := <-answered:
		if a.err != nil {
			return nil, status, a.err
		}
		if status, err = diagnose.ReadStatus(a.doc); err != nil {
			err = fmt.Errorf("%s: %w", address, err)
		}
		return a.doc, status, err
	case <-time.After(statusTimeout):
		return nil, status, fmt.Errorf("the admin API at %s has not answered for %s", address, statusTimeout)
	case <-ctx.Done():
		return nil, status, ctx.Err()
	}
}

// getStatus makes the call. Its connection isn't kept: Caddy's client would make
// another one for the next call all the same.
func getStatus(address string) ([]byte, error) {
	resp, err := caddycmd.AdminAPIRequest(address, http.MethodGet, diagnose.StatusPath, http.Header{"Connection": {"close"}}, nil)
	if err != nil {
		return nil, adminError(address, err)
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, maxStatus))
}

// adminError says what an error of Caddy's client means here. It has texts only.
func adminError(address string, err error) error {
	switch text := err.Error(); {
	case strings.HasPrefix(text, "performing request: "):
		return fmt.Errorf("no admin API answers at %s (want a running Caddy with its admin API on; --address or --config says where): %s",
			address, strings.TrimPrefix(text, "performing request: "))
	case strings.HasPrefix(text, "caddy responded with error: HTTP 404"):
		return errors.New("the Caddy at " + address + " has no oz_instant in it (want one that is built with this module)")
	}
	return err
}
