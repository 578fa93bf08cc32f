package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Oz is how Oz API Instant is reached. Handlers of one config that describe the
// same way to the same Oz share it: connections, health of the upstreams and
// access token.
type Oz struct {
	// How Oz is reached: the configuration of a `reverse_proxy` handler, with
	// its upstreams, load balancing, health checks and transport. Required;
	// without upstreams the config does not load.
	//
	// Unlike in a plain `reverse_proxy`, keep-alive is off unless
	// `transport.keep_alive` is set: a capsule posted on a kept connection that
	// Oz closes at that moment would be lost, and against seconds of analysis a
	// handshake is nothing. The proxy of the environment (`HTTP_PROXY`) is not
	// used unless `transport.network_proxy` says so. A capsule is never sent
	// twice, whatever `load_balancing` says, unless not one byte of it was
	// taken; another attempt goes to an upstream that was not tried, if there
	// is one. When active health checks say that no upstream is up, they are
	// not believed: a probe that waits behind real work looks just like that.
	// Refused, since they would break the exchange or let a client mark Oz as
	// down: `handle_response`, `rewrite`, `request_buffers`,
	// `response_buffers`, `circuit_breaker`, `unhealthy_latency`, and an
	// `unhealthy_status` that covers 400 or 413.
	ReverseProxy *reverseproxy.Handler `json:"reverse_proxy,omitempty"`

	// A path to put before `/api/…` when the vendor's {{host}} has one, such
	// as `/oz`. Begins with `/` and does not end with one. Default: none.
	BasePath string `json:"base_path,omitempty"`

	// The value of `X-Forensic-Access-Token`, for an Oz installation that asks
	// for one (the guide's "Authorization"). Use `{env.NAME}` or `{file./path}`:
	// they are read when the config is loaded, and the config shows only the
	// placeholder. Empty or unknown placeholders do not load. Default: none is sent.
	AccessToken string `json:"access_token,omitempty"`

	// An account to get access tokens with, in place of `access_token`.
	// Default: none.
	Credentials *Credentials `json:"credentials,omitempty"`

	link  *link
	key   linkKey
	names []string // see upstreamNames
}

// Credentials are an account at Oz. The gateway logs in when the first capsule
// needs a token, refreshes the token at four fifths of its life, and logs in
// again when Oz refuses it. All sites with the same account at the same Oz
// share one token, and it outlives reloads of the config.
type Credentials struct {
	// The account's e-mail address. Placeholders as in `access_token`.
	Email string `json:"email"`

	// Its password. Use `{env.NAME}` or `{file./path}`.
	Password string `json:"password"`
}

// link is the way to Oz at run time.
type link struct {
	proxy    *reverseproxy.Handler
	basePath string
	token    string   // a fixed access token, or none
	account  *account // where access tokens come from otherwise
	logger   *zap.Logger
}

// linkKey is what handlers of one config have in common if they share a link.
// The registry stands for the config: each has one of its own.
type linkKey struct {
	registry *prometheus.Registry
	oz       string
}

var links = caddy.NewUsagePool()

func (o *Oz) provision(ctx caddy.Context) error {
	if err := checkProxy(o.ReverseProxy); err != nil {
		return err
	}
	if err := o.validate(); err != nil {
		return err
	}
	config, err := json.Marshal(o) //nolint:gosec // a key in memory that is never printed
	if err != nil {
		return err
	}
	o.names = o.upstreamNames()
	key := linkKey{ctx.GetMetricsRegistry(), string(config)}
	value, _, err := links.LoadOrNew(key, func() (caddy.Destructor, error) { return newLink(ctx, o) })
	if err != nil {
		return err
	}
	o.link, o.key = value.(*link), key
	return nil
}

// cleanup also runs when provision has failed.
func (o *Oz) cleanup() error {
	if o.link == nil {
		return nil
	}
	_, err := links.Delete(o.key)
	return err
}

func (o *Oz) validate() error {
	if o.BasePath != "" {
		if err := checkBasePath(o.BasePath); err != nil {
			return fmt.Errorf("base_path: %w", err)
		}
	}
	if o.AccessToken != "" && o.Credentials != nil {
		return errors.New("access_token and credentials exclude each other")
	}
	return nil
}

func newLink(ctx caddy.Context, o *Oz) (*link, error) {
	l := &link{proxy: o.ReverseProxy, basePath: o.BasePath, logger: ctx.Logger()}
	var err error
	if o.AccessToken != "" {
		if l.token, err = secret(o.AccessToken); err != nil {
			return nil, fmt.Errorf("access_token: %w", err)
		}
		if err := fitsHeader(l.token); err != nil {
			return nil, fmt.Errorf("access_token: %w", err)
		}
	}
	if err := provisionProxy(ctx, l.proxy); err != nil {
		return nil, err
	}
	if o.Credentials != nil {
		if l.account, err = openAccount(l, o); err != nil {
			return nil, errors.Join(fmt.Errorf("credentials: %w", err), l.proxy.Cleanup())
		}
	}
	return l, nil
}

// Destruct implements caddy.Destructor.
func (l *link) Destruct() error {
	if l.account != nil {
		l.account.close(l)
	}
	return l.proxy.Cleanup()
}

func checkBasePath(s string) error {
	if !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.ContainsAny(s, "?#%{}\\ ") || strings.Contains(s, "//") {
		return fmt.Errorf("%q is not a plain path such as /oz: it begins with a slash, ends without one, and has no query, escapes or placeholders", s)
	}
	for segment := range strings.SplitSeq(s, "/") {
		if segment == "." || segment == ".." {
			return fmt.Errorf("%q has a %q in it", s, segment)
		}
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return fmt.Errorf("%q has characters that cannot stand in a URL", s)
		}
	}
	return nil
}

// secret resolves the placeholders of a secret from the config, less the end
// of its line if it comes from a file. Its errors name no value.
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

func fitsHeader(value string) error {
	for i := range len(value) {
		if value[i] <= ' ' || value[i] > '~' {
			return errors.New("it has characters that cannot stand in a header field")
		}
	}
	return nil
}
