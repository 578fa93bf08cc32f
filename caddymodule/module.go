// Package caddymodule is oz_instant: liveness checks for an existing web app
// by one directive of a Caddyfile. See [Handler].
package caddymodule

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

func init() {
	caddy.RegisterModule(new(Handler))
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
// `X-Oz-Best-Shot` | with `best_shot` `attach`: `attached`, `absent` or `unusable`
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

	Oz

	// The largest capsule taken, in bytes. Larger ones are refused with 413:
	// by their Content-Length before a byte is read, or else where the limit
	// is passed. Default: 33554432 (32 MiB).
	MaxCapsule int64 `json:"max_capsule,omitempty"`

	// The longest answer read from Oz, in bytes, best shots and all. A longer
	// one is no decision (`malformed_answer`). What is left of it after the best
	// shot was cut out may have 1 MiB, or with `best_shot` `keep` this much: it
	// is then held whole, and copied as it is put together, which takes up to
	// six times as much memory. Default: 67108864 (64 MiB).
	MaxAnswer int64 `json:"max_answer,omitempty"`

	// How long the client has for its upload, to the capsule's last byte.
	// Then: 408, no decision. Default: `2m`.
	UploadTimeout caddy.Duration `json:"upload_timeout,omitempty"`

	// How long Oz has from the capsule's last byte to the last byte of its
	// answer. Then: `UNAVAILABLE`, `timeout`. Default: `60s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// What happens to the best shot, the large base64 image in the answer:
	// `strip` cuts it out while the answer flows; `keep` leaves it in the app's
	// body; `attach` cuts it out, decodes it, and makes the app's body a
	// `multipart/form-data` with the part `folder` (application/json) and a part
	// `best_shot` (image/jpeg, `best_shot.jpeg`) for each image. The header
	// `X-Oz-Best-Shot` then says `attached`; `absent` if Oz sent no image; or
	// `unusable` if what it sent is no base64 of a JPEG, which does not touch
	// the decision. `keep` and `attach` hold the images in memory.
	// Default: `strip`.
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

	// Face matching: after a liveness SUCCESS, the best shot is compared with a
	// photo of the user that the app has (the guide's step 4). Default: none.
	Biometry *Biometry `json:"biometry,omitempty"`

	// How much work Oz gets at once, and who may wait for how long. Default: no
	// limit.
	Capacity *Capacity `json:"capacity,omitempty"`

	// What a client that leaves ends. `finish`: only an unfinished upload; once
	// the capsule is whole it is judged and the app gets the decision, and has
	// 30 seconds for it. `cancel`: everything, at once. Default: `finish`.
	ClientGone string `json:"client_gone,omitempty"`

	gate         *gateUser // nil: no limit
	matchers     caddyhttp.MatcherSets
	policy       oz.Policy
	stripPaths   []oz.Path
	requirePaths []oz.Path
	metrics      *metrics
	logger       *zap.Logger
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

	bestShotStrip  = "strip"
	bestShotKeep   = "keep"
	bestShotAttach = "attach"

	clientGoneFinish = "finish"
	clientGoneCancel = "cancel"

	analysesNone = "none"
)

// CaddyModule returns the Caddy module information. Its receiver is a pointer:
// health checks ask for the module's name, in events, while it is being
// provisioned, and a value would be copied for that.
func (*Handler) CaddyModule() caddy.ModuleInfo {
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
	if err := h.provision(ctx); err != nil {
		return err
	}
	return h.provisionCapacity(ctx)
}

func (h *Handler) setDefaults() {
	setDefault(&h.MaxCapsule, defaultMaxCapsule)
	setDefault(&h.MaxAnswer, defaultMaxAnswer)
	setDefault(&h.UploadTimeout, defaultUploadTimeout)
	setDefault(&h.Timeout, defaultTimeout)
	setDefault(&h.BestShot, bestShotStrip)
	setDefault(&h.ClientGone, clientGoneFinish)
	h.Biometry.setDefaults()
	h.Capacity.setDefaults()
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

// Cleanup implements caddy.CleanerUpper.
func (h *Handler) Cleanup() error {
	if h.gate != nil {
		h.gate.close()
	}
	return h.cleanup()
}

// Interface guards
var (
	_ caddy.Module                = (*Handler)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
