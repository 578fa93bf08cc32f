// Package diagnose examines a deployment of Oz Instant from where the gateway
// stands, explains saved answers of Oz, and attacks a site as a client could.
// It is the code of the commands `caddy oz-instant check`, `explain`, `verify`
// and `attack`, less their flags.
package diagnose

import (
	"cmp"
	"context"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// Target is one oz_instant block, or an Oz that is named by its URL alone.
type Target struct {
	Name    string // how a report names its Oz; empty: by the address of each upstream
	Config  ozclient.Config
	Options ozclient.Options
	Policy  oz.Policy

	// NotJudged lists what the block asks of a capsule beyond Policy and only
	// a user's request can answer, such as its require lines.
	NotJudged []string
}

// CheckOptions say how to check.
type CheckOptions struct {
	Timeout time.Duration // for each step
	Capsule []byte        // a capsule to send; it can be used once. Nil: none
}

// State is how a step ended.
type State string

const (
	OK      State = "ok"
	Failed  State = "failed"
	Unknown State = "unknown" // can't be judged from here
	Skipped State = "skipped" // not tried
)

// Step is one thing that was looked at.
type Step struct {
	Name   string `json:"check"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
	MS     int64  `json:"ms"`
}

// Report is what was found at one upstream.
type Report struct {
	To    string `json:"to"`
	Well  bool   `json:"well"` // nothing failed, and nothing is unknown
	Steps []Step `json:"checks"`

	// CertificateEnds is when the certificate ends that the upstream showed,
	// also one that isn't accepted. Zero: none was seen.
	CertificateEnds time.Time `json:"-"`
}

// Event tells of a step while Check works.
type Event struct {
	To   string
	Step Step  // without a State: it begins
	Sent *Sent // what goes out; nil: nothing to speak of. A second event tells of it, once the step is so far
}

// Check examines each upstream of each target by itself and tells observe of
// every step as it begins and as it ends. Balancing and health checks would
// hide the upstream that is sick, so they take no part. Its error says that
// nothing could be examined, or that ctx has ended: what fails for that reason
// says nothing about Oz, and isn't told.
func Check(ctx context.Context, targets []Target, opts CheckOptions, observe func(Event)) ([]Report, error) {
	caddyCtx, cancel, err := quietContext()
	if err != nil {
		return nil, err
	}
	defer cancel()
	r := &run{opts: opts, caddy: caddyCtx, observe: func(e Event) {
		if ctx.Err() == nil {
			observe(e)
		}
	}}
	var reports []Report
	for _, t := range targets {
		b := &block{run: r, target: t}
		for _, c := range b.checkers() {
			c.check(ctx)
			reports = append(reports, c.report())
		}
	}
	return reports, context.Cause(ctx)
}

// Worst is the state that a run as a whole has: Failed before Unknown before OK.
func Worst(reports []Report) State {
	worst := OK
	for _, r := range reports {
		for _, s := range r.Steps {
			switch s.State {
			case Failed:
				return Failed
			case Unknown:
				worst = Unknown
			}
		}
	}
	return worst
}

// run is one call of Check.
type run struct {
	opts      CheckOptions
	observe   func(Event)
	caddy     caddy.Context
	capsuleAt string // the upstream that got the capsule
}

// block is a target while it is checked.
type block struct {
	*run
	target   Target
	firstKey *signer // who signed the block's first session token
	firstAt  string  // the upstream that gave it
}

// checkers returns one for each upstream. Dynamic upstreams have one for all.
func (b *block) checkers() []*checker {
	cfg := b.target.Config
	if cfg.ReverseProxy == nil {
		cfg.ReverseProxy = new(reverseproxy.Handler) // which doesn't load either, and says why
	}
	upstreams := cfg.ReverseProxy.Upstreams
	if len(upstreams) == 0 {
		return []*checker{{block: b, name: cmp.Or(b.target.Name, "dynamic upstreams"), config: alone(cfg, nil)}}
	}
	var list []*checker
	for _, u := range upstreams {
		name := u.Dial
		if len(upstreams) == 1 {
			name = cmp.Or(b.target.Name, name)
		}
		list = append(list, &checker{block: b, name: name, dial: u.Dial, config: alone(cfg, u)})
	}
	return list
}

// alone is the way to one upstream, or to the dynamic ones.
func alone(cfg ozclient.Config, u *reverseproxy.Upstream) ozclient.Config {
	proxy := &reverseproxy.Handler{TransportRaw: cfg.ReverseProxy.TransportRaw, Headers: cfg.ReverseProxy.Headers}
	if u == nil {
		proxy.DynamicUpstreamsRaw = cfg.ReverseProxy.DynamicUpstreamsRaw
	} else {
		proxy.Upstreams = reverseproxy.UpstreamPool{{Dial: u.Dial}}
	}
	cfg.ReverseProxy = proxy
	return cfg
}

// quietContext returns a context to provision single modules in. It logs
// nothing: the report says everything.
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
