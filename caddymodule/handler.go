package caddymodule

import (
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

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
	if err := h.Validate(); err != nil {
		return err
	}
	h.compile()
	h.metrics = sharedMetrics
	if err := h.metrics.register(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if err := h.provisionRoutes(ctx); err != nil {
		return err
	}
	if err := h.ReplayGuard.provision(ctx, h); err != nil {
		return err
	}
	if err := h.provisionSeal(ctx); err != nil {
		return err
	}
	if err := h.join(ctx); err != nil {
		return err
	}
	if err := h.provisionEvents(ctx); err != nil {
		return err
	}
	return h.provisionOz(ctx)
}

// compile turns words of a valid config into what ServeHTTP works with.
func (h *Handler) compile() {
	h.policy.Analyses, _ = analysisTypes(h.Analyses)
	h.stripPaths, _ = parsePaths(h.Strip)
	h.capsulePaths = capsulePaths(h.MatcherSetsRaw)
	for _, req := range h.Require {
		path, _ := oz.ParsePath(req.Path)
		h.requirePaths = append(h.requirePaths, path)
	}
}

func (h *Handler) provisionRoutes(ctx caddy.Context) error {
	matchers, err := ctx.LoadModule(h, "MatcherSetsRaw")
	if err != nil {
		return fmt.Errorf("loading matchers: %w", err)
	}
	if err := h.matchers.FromInterface(matchers); err != nil {
		return err
	}
	h.tokenMatchers = tokenMatchers(h.matchers)
	for i, dr := range h.HandleDecision {
		if err := dr.Routes.Provision(ctx); err != nil {
			return fmt.Errorf("handle_decision %d: %w", i, err)
		}
	}
	return nil
}

// provisionOz opens the way to Oz, and its gate: also for a handler without
// limits, so that it cannot go around those of another one.
func (h *Handler) provisionOz(ctx caddy.Context) (err error) {
	identity, installation := h.Config.Identity(), h.Config.Installation() // before New, which consumes the config
	opts := h.options()
	opts.Granted = h.metrics.tokenRefreshed
	if h.client, err = ozclient.New(ctx, &h.Config, opts); err != nil {
		return err
	}
	if err := h.openGate(ctx, identity, installation); err != nil {
		return err
	}
	h.way = openWay(identity, configID(ctx), h.client, h.gate)
	return nil
}

// configID identifies a config while it is loaded: each has its own registry.
func configID(ctx caddy.Context) any { return ctx.GetMetricsRegistry() }

func (h *Handler) options() ozclient.Options {
	return ozclient.Options{
		Timeout:          time.Duration(h.Timeout),
		UploadTimeout:    time.Duration(h.UploadTimeout),
		MaxAnswer:        h.MaxAnswer,
		KeepBestShot:     h.BestShot == bestShotKeep,
		CollectBestShots: h.collectsShots(),
	}
}

// Cleanup implements caddy.CleanerUpper. It also runs after a failed Provision.
func (h *Handler) Cleanup() error {
	h.leave()
	if h.way != nil {
		h.way.close()
	}
	if h.gate != nil {
		h.gate.Close()
	}
	if h.client == nil {
		return nil
	}
	return h.client.Close()
}

// ServeHTTP implements caddyhttp.MiddlewareHandler. Every request in scope
// loses its reserved names; a capsule on the matched path is analysed and goes
// to the app as a folder with a decision, or is refused.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	state := begin(r)
	return state.end(w, r, h.serve(w, r, next, state))
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, state *requestState) error {
	if state.result != nil { // by another oz_instant of this site
		return next.ServeHTTP(w, r)
	}
	kind, refusal, err := h.classify(w, r)
	switch {
	case err != nil: // of a matcher: it may be a capsule
		spent(r)
		return err
	case refusal != nil:
		h.metrics.refused(refusal.kind)
		return h.refuse(w, r, refusal, r.ContentLength != 0)
	case kind == sessionTokenRequest:
		return h.serveSessionToken(w, r)
	case kind == jwksRequest:
		return h.Seal.serve(w)
	case kind != capsuleRequest:
		return next.ServeHTTP(w, r)
	}
	return h.serveCapsule(w, r, next, state)
}

// appGrace is how long the app has for a decision whose client has left: the
// analysis is paid for and its session token spent, so the app must hear of it.
const appGrace = 30 * time.Second

// serveCapsule gets a decision for the capsule in r and acts on it.
func (h *Handler) serveCapsule(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, state *requestState) error {
	defer spent(r)
	start := time.Now()
	limits := upload.Limits{MaxBytes: h.MaxCapsule, Timeout: time.Duration(h.UploadTimeout)}
	claim := h.ReplayGuard.guard(&limits)
	stream := upload.NewStream(w, r, limits)
	defer stream.End()
	claim.watch(stream.Received())
	defer claim.end()
	life := stream.Lifetime(h.ClientGone == clientGoneCancel)
	defer life.End()

	res := h.analyze(r, next, stream, life, claim)
	state.record(res)

	rest := r.WithContext(life.Context())
	rest.Body = stream.Rest()
	r.Body = http.NoBody // {http.request.body} would read on
	if res.fault != nil || !h.forwards(res.verdict.Decision) {
		h.observe(r, res, time.Since(start))
		life.Grace(0) // nobody would see the answer
		return h.refuse(w, rest, h.problem(res), res.upload.Unread)
	}
	doc, err := h.document(rest, res)
	h.observe(r, res, time.Since(start)) // when the app's request is ready: that is the gateway's work, too
	if err != nil {
		return caddyhttp.Error(http.StatusInternalServerError, err)
	}
	life.Grace(appGrace)
	return h.forward(w, rest, next, res, doc)
}

// analyze gets a Result for a capsule: once there is capacity for it, Oz is
// asked, and with face matching once more. The replay guard has the last word.
func (h *Handler) analyze(r *http.Request, next caddyhttp.Handler, stream *upload.Stream, life *upload.Lifetime, claim *claim) *Result {
	var a attempt
	start := time.Now()
	admission, err := h.gate.Acquire(life.Context(), stream)
	if err != nil {
		a.refused = err
		a.queued = max(0, time.Since(start)-stream.State().Waited-claim.storeTime())
	} else {
		a.queued, a.uploading, a.buffered = admission.Queued, admission.Upload, admission.Buffered
		h.ask(life, r, next, admission, claim, &a)
	}
	a.upload, a.gone = stream.State(), life.Gone()
	attach := h.BestShot == bestShotAttach
	a.guarded = claim.conclude(newResult(a, attach))
	a.stored = claim.storeTime()
	return newResult(a, attach)
}

// ask is all that Oz does for a capsule. It holds a slot meanwhile.
func (h *Handler) ask(life *upload.Lifetime, r *http.Request, next caddyhttp.Handler, admission *upload.Admission, claim *claim, a *attempt) {
	defer h.metrics.started()()
	served := false
	defer func() { admission.Release(served) }()

	ctx := life.Context()
	a.liveness, a.err = h.client.Analyze(ctx, r, admission.Body, h.policy, requirementsOf(r, h.Require, h.requirePaths))
	served = a.liveness.Status != 0
	if h.Biometry != nil && a.err == nil && a.liveness.Verdict.Decision == oz.Success && claim.allows() {
		a.match = h.matchFaces(ctx, r, next, a.liveness)
	}
}

// requirementsOf returns the `require` lines with this request's values in them.
func requirementsOf(r *http.Request, require []Requirement, paths []oz.Path) []oz.Requirement {
	reqs := make([]oz.Requirement, len(require))
	for i, req := range require {
		// An empty or unknown part leaves a value that is easily met.
		value, err := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).ReplaceOrErr(req.Value, true, true)
		if err != nil {
			value = ""
		}
		reqs[i] = oz.Requirement{Path: paths[i], Value: value}
	}
	return reqs
}

// Interface guards
var (
	_ caddy.Module                = (*Handler)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
