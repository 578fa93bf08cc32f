package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "oz-instant",
		Short: "Checks an Oz Instant deployment, and explains answers of Oz",
		CobraFunc: func(cmd *cobra.Command) {
			cmd.AddCommand(checkCommand(), explainCommand())
		},
	})
}

// errNotWell ends a command whose output has said all.
var errNotWell = errors.New("not all is well")

// run makes cobra run a command that was called correctly: what goes wrong
// then is no reason to print how to call it.
func run(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cmd.SilenceUsage = true
		return f(cmd, args)
	}
}

// addConfigFlags adds the flags that name a configuration.
func addConfigFlags(cmd *cobra.Command) {
	cmd.Flags().StringP("config", "c", "", "a configuration file: every oz_instant block in it is looked at")
	cmd.Flags().StringP("adapter", "a", "", "the adapter for the configuration file, if it is no Caddyfile and not JSON")
}

// blocks are the oz_instant handlers of the configuration that the flags name.
// They are validated and not provisioned: a check of Oz needs nothing else of
// the config.
func blocks(cmd *cobra.Command) ([]*Handler, error) {
	file, _ := cmd.Flags().GetString("config")
	adapter, _ := cmd.Flags().GetString("adapter")
	config, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(config, &tree); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var found []*Handler
	if err := findHandlers(tree, &found); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("there is no oz_instant in %s", file)
	}
	return found, nil
}

// findHandlers looks through a configuration for our handler, wherever it is.
func findHandlers(tree any, found *[]*Handler) error {
	switch node := tree.(type) {
	case []any:
		for _, child := range node {
			if err := findHandlers(child, found); err != nil {
				return err
			}
		}
	case map[string]any:
		if node["handler"] == "oz_instant" {
			h, err := handlerOf(node)
			if err != nil {
				return err
			}
			*found = append(*found, h)
		}
		for _, name := range slices.Sorted(maps.Keys(node)) { // in the same order each time
			if err := findHandlers(node[name], found); err != nil {
				return err
			}
		}
	}
	return nil
}

func handlerOf(node map[string]any) (*Handler, error) {
	raw, err := json.Marshal(node)
	if err != nil {
		return nil, err
	}
	h := new(Handler)
	if err := json.Unmarshal(raw, h); err != nil {
		return nil, fmt.Errorf("oz_instant: %w", err)
	}
	h.setDefaults()
	if err := h.compile(); err != nil {
		return nil, fmt.Errorf("oz_instant: %w", err)
	}
	if err := h.Validate(); err != nil {
		return nil, fmt.Errorf("oz_instant: %w", err)
	}
	return h, nil
}

// ozAt describes an Oz by its URL alone.
func ozAt(to string) (*Oz, error) {
	u, err := url.Parse(to)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("--to %q is not a URL such as https://oz.internal", to)
	}
	o := &Oz{ReverseProxy: new(reverseproxy.Handler)}
	port := "80"
	if u.Scheme == "https" {
		port = "443"
		o.ReverseProxy.TransportRaw = json.RawMessage(`{"protocol":"http","tls":{}}`)
	}
	if p := u.Port(); p != "" {
		port = p
	}
	o.ReverseProxy.Upstreams = reverseproxy.UpstreamPool{{Dial: net.JoinHostPort(u.Hostname(), port)}}
	o.BasePath = strings.TrimSuffix(u.Path, "/")
	return o, nil
}

// quietContext is a context to provision single modules in, until it is
// cancelled. It logs nothing: what there is to say, the command says.
func quietContext() (caddy.Context, context.CancelFunc, error) {
	base, err := caddy.ProvisionContext(&caddy.Config{
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{
			"default": {BaseLog: caddy.BaseLog{Level: "fatal"}},
		}},
	})
	if err != nil {
		return base, nil, err
	}
	ctx, cancel := caddy.NewContext(base)
	return ctx, cancel, nil
}
