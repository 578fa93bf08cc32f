// Package ozclient reaches Oz: it holds the configuration of the way there,
// calls through Caddy's reverse_proxy, access tokens, the choice of an
// upstream, and the one rule that says whose fault a failed call was.
package ozclient

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/tidwall/gjson"
)

// Config says how Oz is reached.
type Config struct {
	// How Oz is reached: the configuration of a `reverse_proxy` handler, with
	// its upstreams, load balancing, health checks and transport. Required;
	// without upstreams the config does not load.
	//
	// It differs from a plain `reverse_proxy` in this. Keep-alive is off unless
	// `transport.keep_alive` is set: a capsule posted on a kept connection that
	// Oz closes at that moment would be lost, and beside seconds of analysis a
	// handshake costs nothing. The proxy of the environment (`HTTP_PROXY`) is
	// not used unless `transport.network_proxy` says so. A capsule is never sent
	// twice, whatever `load_balancing` says, unless not one byte of it was
	// taken; another attempt goes to an upstream that was not tried, if there
	// is one. If active health checks mark every upstream as down, they are
	// ignored: a probe that waits behind real work looks just like that.
	//
	// Options that cannot work here, or that would let a client mark Oz as down,
	// are refused: `handle_response`, `rewrite`, `request_buffers`,
	// `response_buffers`, `stream_buffer_size`, `circuit_breaker`,
	// `unhealthy_latency`, an `unhealthy_status` that covers 400 or 413,
	// `flush_interval`, `stream_timeout`, `stream_close_delay`,
	// `trusted_proxies`, a `load_balancing.retry_match`, a
	// `load_balancing.try_interval` of more than a second, operations on the
	// response's header and those on the request's framing and content type, and
	// `read_timeout`, `write_timeout` and `max_conns_per_host` of the `http`
	// transport.
	ReverseProxy *reverseproxy.Handler `json:"reverse_proxy,omitempty"`

	// A path to put before `/api/…` when the vendor's {{host}} has one, such
	// as `/oz`. Begins with `/` and does not end with one. Default: none.
	BasePath string `json:"base_path,omitempty"`

	// The value of `X-Forensic-Access-Token`, for an Oz installation that asks
	// for one (the guide's "Authorization"). Use `{env.NAME}` or `{file./path}`:
	// they are read when the config is loaded, and the config shows only the
	// placeholder. Empty or unknown placeholders do not load. Default: none is sent.
	AccessToken string `json:"access_token,omitempty"`

	// An account to get access tokens with, instead of `access_token`.
	// Default: none.
	Credentials *Credentials `json:"credentials,omitempty"`
}

// Credentials are an account at Oz. The gateway logs in when the first capsule
// needs a token, renews the token with the first call after four fifths of its
// life, and logs in again when Oz refuses it. All sites with the same account
// and the same way to Oz share one token, and it outlives reloads of the config.
type Credentials struct {
	// The account's e-mail address. Placeholders as in `access_token`.
	Email string `json:"email"`

	// Its password. Use `{env.NAME}` or `{file./path}`.
	Password string `json:"password"`
}

// maxTryInterval bounds the pause between two attempts. reverse_proxy does not
// look at a call's context while it waits, so that a longer pause would
// outlast the call's timeout.
const maxTryInterval = time.Second

// Validate checks the configuration. It must be called before New, which
// consumes the configuration; New calls it itself.
func (c *Config) Validate() error {
	if err := checkProxy(c.ReverseProxy); err != nil {
		return err
	}
	if err := c.checkHeaders(); err != nil {
		return err
	}
	if c.BasePath != "" {
		if err := checkBasePath(c.BasePath); err != nil {
			return &OptionError{Option: "base_path", Err: fmt.Errorf("base_path: %w", err)}
		}
	}
	if c.AccessToken != "" && c.Credentials != nil {
		return &OptionError{Option: "credentials", Err: errors.New("access_token and credentials exclude each other")}
	}
	return nil
}

// OptionError says which option of a Caddyfile an error of Validate is about,
// and which of its arguments if it can be given several times, so that the
// Caddyfile can add the line.
type OptionError struct {
	Option, Argument string
	Err              error
}

func (e *OptionError) Error() string { return e.Err.Error() }
func (e *OptionError) Unwrap() error { return e.Err }

// A refusal is an option of reverse_proxy, or of its http transport, that is
// refused.
type refusal struct {
	path string // in the JSON of reverse_proxy; empty: only a Caddyfile has it
	why  string // and what to use instead
}

const (
	answerIsRead  = "the answer is read by oz_instant; use handle_decision"
	answerIsWhole = "the answer is read by oz_instant and not streamed"
	slowPhone     = "it times the client's upload, so that a slow phone could mark Oz as down"
)

// refusals are by the names of a Caddyfile.
var refusals = map[string]refusal{
	"handle_response":       {"handle_response", answerIsRead},
	"replace_status":        {"", answerIsRead},
	"copy_response":         {"", answerIsRead},
	"copy_response_headers": {"", answerIsRead},
	"header_down":           {"headers.response", "the answer is read by oz_instant; use the header directive for what clients get"},
	"flush_interval":        {"flush_interval", answerIsWhole},
	"stream_timeout":        {"stream_timeout", answerIsWhole + "; use timeout"},
	"stream_close_delay":    {"stream_close_delay", answerIsWhole},
	"stream_buffer_size":    {"stream_buffer_size", answerIsWhole},
	"rewrite":               {"rewrite", "the path is Oz's; use base_path for a prefix"},
	"method":                {"", "a capsule is POSTed"},
	"request_buffers":       {"request_buffers", "a capsule is streamed and never sent twice; use capacity { memory } to buffer it"},
	"response_buffers":      {"response_buffers", "a cut answer would look whole; use max_answer"},
	"circuit_breaker":       {"circuit_breaker", "it would count what clients do against Oz; use fail_duration"},
	"lb_retry_match":        {"load_balancing.retry_match", "a capsule is never sent twice; use lb_retries for attempts that sent nothing"},
	"trusted_proxies":       {"trusted_proxies", "no address of a client is forwarded to Oz; use the global option trusted_proxies"},
	"unhealthy_latency":     {"health_checks.passive.unhealthy_latency", "it would count the client's upload time, so that a slow phone could mark Oz as down; use timeout"},
	"read_timeout":          {"transport.read_timeout", slowPhone + "; use timeout"},
	"write_timeout":         {"transport.write_timeout", slowPhone + "; use upload_timeout"},
	"max_conns_per_host":    {"transport.max_conns_per_host", "capsules would wait for a connection in Oz's time; use capacity { slots }"},
}

func refused(option, why string) error {
	return &OptionError{Option: option, Err: fmt.Errorf("%s cannot be used in oz_instant: %s", option, why)}
}

// CheckOption says why an option of a reverse_proxy block in a Caddyfile, or of
// its http transport, can't be used here, or nil. Options that depend on their
// values (unhealthy_status, header_up) are left to Validate.
func CheckOption(name string) error {
	if r, known := refusals[name]; known {
		return refused(name, r.why)
	}
	return nil
}

// RefusedOptions lists the options that CheckOption refuses.
func RefusedOptions() []string { return slices.Sorted(maps.Keys(refusals)) }

// CheckUpstream says why an upstream in a Caddyfile can't have a path, where
// Caddy itself would only say what it supports.
func CheckUpstream(address string) error {
	if !strings.Contains(address, "://") || strings.Contains(address, "{") {
		return nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Path == "" {
		return nil // Caddy's parser says the rest
	}
	u.User = nil
	host, path := u.Scheme+"://"+u.Host, strings.TrimRight(u.Path, "/")
	if path == "" {
		return fmt.Errorf("upstream %s/: an upstream has no path (want %s)", host, host)
	}
	return fmt.Errorf("upstream %s%s: an upstream has no path (want %s and base_path %s)", host, u.Path, host, path)
}

// checkProxy refuses a config that has no way to Oz, or one that would break
// the exchange.
func checkProxy(rp *reverseproxy.Handler) error {
	if rp == nil || (len(rp.Upstreams) == 0 && rp.DynamicUpstreamsRaw == nil) {
		return errors.New("no Oz upstream configured (for example https://oz.internal)")
	}
	if err := checkRefusals(rp); err != nil {
		return err
	}
	if lb := rp.LoadBalancing; lb != nil && time.Duration(lb.TryInterval) > maxTryInterval {
		return &OptionError{Option: "lb_try_interval", Err: fmt.Errorf("lb_try_interval: %s is too long (want at most %s): a pause between attempts would outlast the call's timeout",
			time.Duration(lb.TryInterval), maxTryInterval)}
	}
	if checks := rp.HealthChecks; checks != nil && checks.Passive != nil && slices.ContainsFunc(checks.Passive.UnhealthyStatus, clientCaused) {
		return refused("unhealthy_status", "a device can make Oz answer 400 and 413, and so mark it as down; name other statuses")
	}
	return nil
}

func checkRefusals(rp *reverseproxy.Handler) error {
	doc, err := json.Marshal(rp)
	if err != nil {
		return err
	}
	otherTransport := gjson.GetBytes(doc, "transport.protocol").Str != "http"
	for _, option := range RefusedOptions() {
		path := refusals[option].path
		if path == "" || otherTransport && strings.HasPrefix(path, "transport.") {
			continue
		}
		if gjson.GetBytes(doc, path).Exists() {
			return CheckOption(option)
		}
	}
	return nil
}

// clientCaused reports whether a device can make Oz answer with this status.
func clientCaused(status int) bool {
	return caddyhttp.StatusCodeMatches(http.StatusBadRequest, status) ||
		caddyhttp.StatusCodeMatches(http.StatusRequestEntityTooLarge, status)
}

const accessTokenHeader = "X-Forensic-Access-Token"

// ownFields are set by the call and by net/http. An operation on them would
// break the framing of the request, or make Oz answer what can't be read.
var ownFields = []string{
	"Accept-Encoding", "Connection", "Content-Length", "Content-Type", "Expect", "Trailer", "Transfer-Encoding", "Upgrade",
}

// checkHeaders refuses operations on header fields that are not the operator's
// to change.
func (c *Config) checkHeaders() error {
	h := c.ReverseProxy.Headers
	if h == nil || h.Request == nil {
		return nil
	}
	reserved := ownFields
	if c.AccessToken != "" || c.Credentials != nil {
		reserved = append(slices.Clone(ownFields), accessTokenHeader)
	}
	for _, name := range operated(h.Request) {
		if strings.Contains(name, "{") {
			return &OptionError{"header_up", name, fmt.Errorf("header_up: %q has a placeholder in the name of a field (want it in the value only)", name)}
		}
		for _, field := range reserved {
			if match, _ := path.Match(strings.ToLower(name), strings.ToLower(field)); match {
				return &OptionError{"header_up", name, fmt.Errorf("header_up: %s cannot be changed in oz_instant: it is set for each call", field)}
			}
		}
	}
	return nil
}

// operated lists the names, or patterns of names, that ops apply to.
func operated(ops *headers.HeaderOps) []string {
	names := slices.Clone(ops.Delete)
	names = slices.AppendSeq(names, maps.Keys(ops.Add))
	names = slices.AppendSeq(names, maps.Keys(ops.Set))
	names = slices.AppendSeq(names, maps.Keys(ops.Replace))
	slices.Sort(names)
	return names
}

func checkBasePath(s string) error {
	if !strings.HasPrefix(s, "/") || s == "/" || path.Clean(s) != s || strings.ContainsAny(s, "?#%{}\\ ") || !printable(s) {
		return fmt.Errorf("invalid path %q (want a plain path such as /oz, without a slash at its end, query, escapes or placeholders)", s)
	}
	return nil
}

// printable reports whether s is printable ASCII.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// Identity names the whole way to one Oz, as canonical JSON: base path,
// upstreams, transport and all that is done to the header of a request, Host
// included. How an upstream is chosen, checked and retried is not part of it.
// Access tokens and capacity hang on it: two names behind one address, told
// apart by Host alone, are two installations with accounts of their own.
//
// It must be taken before New, which consumes the configuration.
func (c *Config) Identity() string {
	transport, err := transportDefaults(c.ReverseProxy.TransportRaw)
	if err != nil { // New fails as well
		transport = nil
	}
	way := append(c.addresses(), transport)
	if h := c.ReverseProxy.Headers; h != nil {
		way = append(way, h.Request)
	}
	return canonical(way)
}

// Installation names the Oz at the end of the way, as other gateways with the
// same upstreams, base path, Host and TLS name do, too. Other headers are no part
// of it: there may be a password that changes in one gateway after the other.
// Placeholders such as {env.OZ_HOST} count as what they come to.
//
// It must be taken before New.
func (c *Config) Installation() string {
	way := c.addresses()
	if h := c.ReverseProxy.Headers; h != nil && h.Request != nil {
		for name, values := range h.Request.Set {
			if strings.EqualFold(name, "Host") {
				way = append(way, values)
			}
		}
	}
	if name := gjson.GetBytes(c.ReverseProxy.TransportRaw, "tls.server_name"); name.Exists() {
		way = append(way, name.Str)
	}
	return caddy.NewReplacer().ReplaceKnown(canonical(way), "")
}

func (c *Config) addresses() []any {
	var upstreams []string
	for _, u := range c.ReverseProxy.Upstreams {
		upstreams = append(upstreams, u.Dial)
	}
	slices.Sort(upstreams)
	var dynamic any
	_ = json.Unmarshal(c.ReverseProxy.DynamicUpstreamsRaw, &dynamic) // New fails as well
	return []any{c.BasePath, upstreams, dynamic}
}

// canonical returns strings and decoded JSON as JSON.
func canonical(value any) string {
	doc, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(doc)
}

// transportDefaults fills in what the http transport does here unless the
// operator says otherwise: no kept-alive connections, no proxy from the
// environment. What it returns is canonical.
func transportDefaults(raw json.RawMessage) (json.RawMessage, error) {
	transport := map[string]any{"protocol": "http"}
	if raw != nil {
		transport = nil
		if err := json.Unmarshal(raw, &transport); err != nil {
			return nil, err
		}
	}
	if transport["protocol"] == "http" {
		if transport["network_proxy"] == nil && transport["forward_proxy_url"] == nil {
			transport["network_proxy"] = map[string]string{"from": "none"}
		}
		disableKeepAlive(transport)
	}
	return json.Marshal(transport)
}

func disableKeepAlive(transport map[string]any) {
	if transport["keep_alive"] == nil {
		transport["keep_alive"] = make(map[string]any)
	}
	options, ok := transport["keep_alive"].(map[string]any)
	if !ok || options["idle_timeout"] != nil { // which is what the Caddyfile's keepalive sets
		return
	}
	if _, set := options["enabled"]; !set {
		options["enabled"] = false
	}
}

// secret resolves the placeholders of a secret from the config, and drops the
// end of its line if it comes from a file. Its errors name no value.
func secret(s string) (string, error) {
	value, err := caddy.NewReplacer().ReplaceOrErr(s, true, true)
	if err != nil {
		return "", err
	}
	if value = strings.TrimRight(value, "\r\n"); value == "" {
		return "", errors.New("it is empty")
	}
	return value, nil
}

// headerSecret resolves a secret that is sent as a header field.
func headerSecret(s string) (string, error) {
	value, err := secret(s)
	if err != nil {
		return "", err
	}
	if strings.Contains(value, " ") || !printable(value) {
		return "", errors.New("it has characters that cannot stand in a header field")
	}
	return value, nil
}
