package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

// provisionProxy provisions the inner reverse_proxy around ozTransport. The
// order matters: the active health checker that Provision starts reads the
// transport, so it has to be in place before; and Provision keeps a transport
// that is set.
func provisionProxy(ctx caddy.Context, rp *reverseproxy.Handler) error {
	transport, err := loadTransport(ctx, rp)
	if err != nil {
		return err
	}
	rp.TransportRaw = nil
	rp.Transport = &ozTransport{next: transport}
	if err := rp.Provision(ctx); err != nil {
		return fmt.Errorf("provisioning reverse_proxy: %w", err)
	}
	rp.LoadBalancing.SelectionPolicy = &selector{policy: rp.LoadBalancing.SelectionPolicy, passive: passiveChecks(rp)}
	return nil
}

func passiveChecks(rp *reverseproxy.Handler) *reverseproxy.PassiveHealthChecks {
	if rp.HealthChecks == nil {
		return nil
	}
	return rp.HealthChecks.Passive
}

func loadTransport(ctx caddy.Context, rp *reverseproxy.Handler) (http.RoundTripper, error) {
	raw, err := transportDefaults(rp.TransportRaw)
	if err != nil {
		return nil, fmt.Errorf("transport: %w", err)
	}
	rp.TransportRaw = raw
	mod, err := ctx.LoadModule(rp, "TransportRaw")
	if err != nil {
		return nil, fmt.Errorf("loading transport: %w", err)
	}
	transport, ok := mod.(http.RoundTripper)
	if !ok {
		return nil, fmt.Errorf("transport is not an http.RoundTripper: %T", mod)
	}
	if bt, ok := transport.(reverseproxy.BufferedTransport); ok {
		if requests, answers := bt.DefaultBufferSizes(); requests != 0 || answers != 0 {
			return nil, fmt.Errorf("transport %T holds whole requests in memory; use the http transport", mod)
		}
	}
	if ht, ok := transport.(*reverseproxy.HTTPTransport); ok {
		graceDials(ht)
	}
	return transport, nil
}

// transportDefaults fills in what the http transport does here unless the
// operator says otherwise: no kept-alive connections, no proxy from the
// environment.
func transportDefaults(raw json.RawMessage) (json.RawMessage, error) {
	if raw == nil {
		raw = json.RawMessage(`{"protocol":"http"}`)
	}
	if gjson.GetBytes(raw, "protocol").Str != "http" {
		return raw, nil
	}
	var defaults []struct{ path, value string }
	if !gjson.GetBytes(raw, "keep_alive.idle_timeout").Exists() { // which is what the Caddyfile's keepalive sets
		defaults = append(defaults, struct{ path, value string }{"keep_alive.enabled", "false"})
	}
	if !gjson.GetBytes(raw, "network_proxy").Exists() && !gjson.GetBytes(raw, "forward_proxy_url").Exists() {
		defaults = append(defaults, struct{ path, value string }{"network_proxy", `{"from":"none"}`})
	}
	for _, d := range defaults {
		if gjson.GetBytes(raw, d.path).Exists() {
			continue
		}
		var err error
		if raw, err = sjson.SetRawBytes(raw, d.path, []byte(d.value)); err != nil {
			return nil, err
		}
	}
	return raw, nil
}

// checkProxy refuses a config that has no way to Oz, or one that would break
// the exchange.
func checkProxy(rp *reverseproxy.Handler) error {
	if rp == nil || (len(rp.Upstreams) == 0 && rp.DynamicUpstreamsRaw == nil) {
		return errors.New("no Oz upstream: name one, such as https://oz.internal")
	}
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"handle_response", len(rp.HandleResponse) > 0},
		{"rewrite", rp.Rewrite != nil},
		{"request_buffers", rp.RequestBuffers != 0},
		{"response_buffers", rp.ResponseBuffers != 0},
		{"circuit_breaker", rp.CBRaw != nil},
	} {
		if field.set {
			return refused(field.name)
		}
	}
	if rp.HealthChecks == nil || rp.HealthChecks.Passive == nil {
		return nil
	}
	if rp.HealthChecks.Passive.UnhealthyLatency != 0 {
		return refused("unhealthy_latency")
	}
	if slices.ContainsFunc(rp.HealthChecks.Passive.UnhealthyStatus, clientCaused) {
		return refused("unhealthy_status")
	}
	return nil
}

// clientCaused reports whether a device can make Oz answer with this status.
func clientCaused(status int) bool {
	return caddyhttp.StatusCodeMatches(http.StatusBadRequest, status) ||
		caddyhttp.StatusCodeMatches(http.StatusRequestEntityTooLarge, status)
}

// refusedOptions are reverse_proxy's options that have no place here, and why.
var refusedOptions = map[string]string{
	"handle_response":       "the answer is read by oz_instant; use handle_decision",
	"replace_status":        "the answer is read by oz_instant; use handle_decision",
	"copy_response":         "the answer is read by oz_instant; use handle_decision",
	"copy_response_headers": "the answer is read by oz_instant; use handle_decision",
	"rewrite":               "the path is Oz's; use base_path for a prefix",
	"method":                "a capsule is POSTed",
	"request_buffers":       "a capsule is streamed and never sent twice",
	"response_buffers":      "a cut answer would look whole; use max_answer",
	"circuit_breaker":       "it would count what clients do against Oz",
	"unhealthy_latency":     "it would count the client's upload time, so that a slow phone could mark Oz as down; use timeout",
	"unhealthy_status":      "a device can make Oz answer 400 and 413, and so mark it as down; name other statuses",
}

func refused(option string) error {
	return fmt.Errorf("%s cannot be used in oz_instant: %s", option, refusedOptions[option])
}
