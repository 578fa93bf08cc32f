// Package caddymodule is oz_instant: liveness checks for an existing web app
// by one directive of a Caddyfile. See [Handler].
package caddymodule

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler sends each OzCapsula that is POSTed to the matched path to Oz API
// Instant, byte for byte, reads the decision out of the answer, and hands the
// same request on to the next handler with the answer, less its best shot, as
// the body and the decision in trusted header fields:
//
// Header | Value
// -------|------
// `X-Oz-Decision` | `SUCCESS`, `DECLINED`, `OPERATOR_REQUIRED`, `FAILED`; with `pass` also `INVALID`, `UNAVAILABLE`. Absent: nothing was decided
// `X-Oz-Reason` | why, for any decision but the first three
// `X-Oz-Folder-Id`, `X-Oz-Event-Session-Id` | Oz's ids of the request and of the user's session
// `X-Oz-Resolution-Status`, `X-Oz-System-Resolution` | the two fields of the folder that the vendor's guide decides by
// `X-Oz-Quality`, `X-Oz-Biometry` | the status of that analysis, the worst if there are several
// `X-Oz-Error-Code` | Oz's error code
//
// Whatever it matches, the handler removes every header field and trailer whose
// name could pass for one of these (lower-cased, with any other character than a
// letter or a digit read as `-`, it begins with `x-oz-`) from every request that
// comes its way. Put it before any handler that reads them.
//
// It sets these placeholders, which are empty on requests that were not judged:
//
// Placeholder | Description
// ------------|------------
// `{http.oz_instant.decision}` | as `X-Oz-Decision`
// `{http.oz_instant.reason}` | as `X-Oz-Reason`
// `{http.oz_instant.folder_id}` | as `X-Oz-Folder-Id`
// `{http.oz_instant.event_session_id}` | as `X-Oz-Event-Session-Id`
// `{http.oz_instant.error_code}` | as `X-Oz-Error-Code`
// `{http.oz_instant.quality}` | as `X-Oz-Quality`
// `{http.oz_instant.biometry}` | as `X-Oz-Biometry`
// `{http.oz_instant.capsule_bytes}` | size of the capsule
// `{http.oz_instant.oz_ms}` | milliseconds from the capsule's last byte to Oz's whole answer
type Handler struct {
	// Which requests carry capsules, as in a route. A POST that matches is a
	// capsule or is refused; GET, HEAD and OPTIONS without content go on
	// undecided. Default: all requests. The header fields above are removed
	// from every request, whether it matches or not.
	MatcherSetsRaw caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

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
	// taken. Refused, since they would break the exchange or let a client mark
	// Oz as down: `handle_response`, `rewrite`, `request_buffers`,
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

	// The largest capsule taken, in bytes. Larger ones are refused with 413:
	// by their Content-Length before a byte is read, or else where the limit
	// is passed. Default: 33554432 (32 MiB).
	MaxCapsule int64 `json:"max_capsule,omitempty"`

	// The longest answer read from Oz, in bytes, best shots and all. A longer
	// one is no decision (`malformed_answer`). What is left of it after the best
	// shot was cut out may have 1 MiB, or with `best_shot` `keep` this much,
	// which is then also the memory that one answer can take. Default: 67108864 (64 MiB).
	MaxAnswer int64 `json:"max_answer,omitempty"`

	// How long the client has for its upload, to the capsule's last byte.
	// Then: 408, no decision. Default: `2m`.
	UploadTimeout caddy.Duration `json:"upload_timeout,omitempty"`

	// How long Oz has from the capsule's last byte to the last byte of its
	// answer. Then: `UNAVAILABLE`, `timeout`. Default: `60s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// What happens to the best shot, the large base64 image in the answer:
	// `strip` cuts it out while the answer flows; `keep` leaves it in the app's
	// body. Default: `strip`.
	BestShot string `json:"best_shot,omitempty"`

	// More fields to take out of the folder that the app gets, as paths of
	// names, indices and `#` (every element) with dots between them:
	// `media.#.original_name`. A field that is not there is no error. The
	// decision is made before.
	Strip []string `json:"strip,omitempty"`

	// The analyses that must have finished with SUCCESS before anything is a
	// SUCCESS: `quality` (liveness), `biometry` (face matching), or `none`
	// alone. The vendor's guide decides by the two top-level fields; this is
	// stricter, because the device chooses which analyses run.
	// Default: `quality`.
	Analyses []string `json:"analyses,omitempty"`

	// What the folder must carry, else the decision is `INVALID`, `binding`:
	// it ties a capsule to the user who is signed in.
	Require []Requirement `json:"require,omitempty"`

	// Decisions to hand to the app that are refusals otherwise: `INVALID`,
	// `UNAVAILABLE`. Its body is then the problem document. Default: none.
	Pass []string `json:"pass,omitempty"`

	// Routes for certain decisions. A request that falls through them goes on
	// to the next handler, as with `pass`.
	HandleDecision []DecisionRoutes `json:"handle_decision,omitempty"`

	// What a client that leaves ends. `finish`: only an unfinished upload; once
	// the capsule is whole it is judged and the app gets the decision, and has
	// 30 seconds for it. `cancel`: everything, at once. Default: `finish`.
	ClientGone string `json:"client_gone,omitempty"`

	matchers     caddyhttp.MatcherSets
	policy       oz.Policy
	stripPaths   []oz.Path
	requirePaths []oz.Path
	metrics      *metrics
	logger       *zap.Logger

	// cleanProxy is set when the inner proxy was provisioned by this handler.
	cleanProxy bool
}

// Requirement is a value that the folder must carry.
type Requirement struct {
	// Where in the folder: names, indices and `#` (every element, and at least
	// one) with dots between them, such as `meta_data.transaction_id`.
	Path string `json:"path"`

	// The value that has to stand there, usually a placeholder such as
	// `{http.request.cookie.transaction}`. A value that comes out empty never holds.
	Value string `json:"value"`
}

// DecisionRoutes are routes for certain decisions.
type DecisionRoutes struct {
	// The decisions: `SUCCESS`, `DECLINED`, `OPERATOR_REQUIRED`, `FAILED`,
	// `INVALID`, `UNAVAILABLE`. Each at most once in all of `handle_decision`.
	Decisions []string `json:"decisions"`

	// The routes. Falling through them is going on to the app.
	Routes caddyhttp.RouteList `json:"routes,omitempty"`
}

const (
	defaultMaxCapsule    = 32 << 20
	defaultMaxAnswer     = 64 << 20
	defaultUploadTimeout = caddy.Duration(2 * time.Minute)
	defaultTimeout       = caddy.Duration(60 * time.Second)

	bestShotStrip = "strip"
	bestShotKeep  = "keep"

	clientGoneFinish = "finish"
	clientGoneCancel = "cancel"

	analysesNone = "none"
)

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oz_instant",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision implements caddy.Provisioner.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	h.setDefaults()

	h.metrics = sharedMetrics
	if err := h.metrics.register(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	matchers, err := ctx.LoadModule(h, "MatcherSetsRaw")
	if err != nil {
		return fmt.Errorf("loading matchers: %w", err)
	}
	if err := h.matchers.FromInterface(matchers); err != nil {
		return err
	}
	for i, dr := range h.HandleDecision {
		if err := dr.Routes.Provision(ctx); err != nil {
			return fmt.Errorf("handle_decision %d: %w", i, err)
		}
	}
	if err := h.compile(); err != nil {
		return err
	}
	return h.provisionProxy(ctx)
}

func (h *Handler) setDefaults() {
	setDefault(&h.MaxCapsule, defaultMaxCapsule)
	setDefault(&h.MaxAnswer, defaultMaxAnswer)
	setDefault(&h.UploadTimeout, defaultUploadTimeout)
	setDefault(&h.Timeout, defaultTimeout)
	setDefault(&h.BestShot, bestShotStrip)
	setDefault(&h.ClientGone, clientGoneFinish)
	if len(h.Analyses) == 0 {
		h.Analyses = []string{"quality"}
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// compile turns words of the config into what ServeHTTP works with.
func (h *Handler) compile() error {
	var err error
	if h.policy.Analyses, err = analysisTypes(h.Analyses); err != nil {
		return err
	}
	for _, s := range h.Strip {
		path, err := oz.ParsePath(s)
		if err != nil {
			return fmt.Errorf("strip: %w", err)
		}
		h.stripPaths = append(h.stripPaths, path)
	}
	for _, req := range h.Require {
		path, err := oz.ParsePath(req.Path)
		if err != nil {
			return fmt.Errorf("require: %w", err)
		}
		h.requirePaths = append(h.requirePaths, path)
	}
	return nil
}

// analysisTypes are Oz's words for the analyses in the config.
func analysisTypes(names []string) ([]string, error) {
	if slices.Equal(names, []string{analysesNone}) {
		return nil, nil
	}
	var types []string
	for _, name := range names {
		switch name {
		case "quality":
			types = append(types, oz.Quality)
		case "biometry":
			types = append(types, oz.Biometry)
		case analysesNone:
			return nil, errors.New("analyses: none stands alone")
		default:
			return nil, fmt.Errorf("analyses: unknown analysis %q; there are quality and biometry, or none", name)
		}
	}
	return types, nil
}

// Validate implements caddy.Validator. The Caddyfile has refused most of this
// already, with a line number; a JSON config has not been looked at before.
func (h *Handler) Validate() error {
	for _, check := range []func() error{
		h.validateNumbers, h.validateWords, h.validateBasePath, h.validateRequire, h.validateDecisions,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) validateNumbers() error {
	for _, field := range []struct {
		name  string
		value int64
	}{
		{"max_capsule", h.MaxCapsule},
		{"max_answer", h.MaxAnswer},
		{"upload_timeout", int64(h.UploadTimeout)},
		{"timeout", int64(h.Timeout)},
	} {
		if field.value <= 0 {
			return fmt.Errorf("%s: must be greater than zero", field.name)
		}
	}
	return nil
}

func (h *Handler) validateWords() error {
	if h.BestShot != bestShotStrip && h.BestShot != bestShotKeep {
		return fmt.Errorf("best_shot: %q is not strip or keep", h.BestShot)
	}
	if h.ClientGone != clientGoneFinish && h.ClientGone != clientGoneCancel {
		return fmt.Errorf("client_gone: %q is not finish or cancel", h.ClientGone)
	}
	return nil
}

func (h *Handler) validateBasePath() error {
	if h.BasePath == "" {
		return nil
	}
	if err := checkBasePath(h.BasePath); err != nil {
		return fmt.Errorf("base_path: %w", err)
	}
	return nil
}

func (h *Handler) validateRequire() error {
	for _, req := range h.Require {
		if req.Value == "" {
			return fmt.Errorf("require %s: the value is empty and could never hold", req.Path)
		}
	}
	return nil
}

func (h *Handler) validateDecisions() error {
	for _, d := range h.Pass {
		if err := checkPass(d); err != nil {
			return fmt.Errorf("pass: %w", err)
		}
	}
	seen := make(map[string]bool)
	for _, dr := range h.HandleDecision {
		if len(dr.Decisions) == 0 {
			return errors.New("handle_decision: name at least one decision")
		}
		for _, d := range dr.Decisions {
			if err := checkDecision(d); err != nil {
				return fmt.Errorf("handle_decision: %w", err)
			}
			if seen[d] {
				return fmt.Errorf("handle_decision: %s has routes already", d)
			}
			seen[d] = true
		}
	}
	return nil
}

func checkBasePath(s string) error {
	if !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") || strings.ContainsAny(s, "?#%{}\\ ") || strings.Contains(s, "//") {
		return fmt.Errorf("%q is not a plain path such as /oz: it begins with a slash, ends without one, and has no query, escapes or placeholders", s)
	}
	for _, segment := range strings.Split(s, "/") {
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

func checkDecision(s string) error {
	if !slices.Contains(oz.Decisions(), oz.Decision(s)) {
		return fmt.Errorf("%q is not a decision; there are %s", s, joinDecisions())
	}
	return nil
}

func checkPass(s string) error {
	if err := checkDecision(s); err != nil {
		return err
	}
	if reachesApp(oz.Decision(s)) {
		return fmt.Errorf("%s reaches the app anyway; pass takes INVALID and UNAVAILABLE", s)
	}
	return nil
}

func joinDecisions() string {
	var words []string
	for _, d := range oz.Decisions() {
		words = append(words, string(d))
	}
	return strings.Join(words, ", ")
}

// sizeString is a size as the Caddyfile has it.
func sizeString(n int64) string { return humanize.IBytes(uint64(n)) }

// Cleanup implements caddy.CleanerUpper.
func (h *Handler) Cleanup() error {
	if !h.cleanProxy {
		return nil
	}
	return h.ReverseProxy.Cleanup()
}

// Interface guards
var (
	_ caddy.Module                = (*Handler)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
