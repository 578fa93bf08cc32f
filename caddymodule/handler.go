package caddymodule

import (
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// ServeHTTP implements caddyhttp.MiddlewareHandler. Every request in scope
// loses its reserved names; a capsule on the matched path is judged and goes on
// to the app as a folder with a decision, or ends in a refusal.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	p := enter(r)
	return p.leave(h.serve(w, r, next, p))
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, p *passage) error {
	if p.judged {
		return next.ServeHTTP(w, r) // by another oz_instant of this site
	}
	if matches, err := h.matchers.AnyMatchWithError(r); err != nil {
		return err
	} else if !matches {
		return next.ServeHTTP(w, r)
	}

	isCapsule, problem := h.door(w, r)
	if problem != nil {
		h.metrics.refused(problem.kind)
		return refuse(w, r, problem, r.ContentLength != 0)
	}
	if !isCapsule {
		return next.ServeHTTP(w, r)
	}
	return h.judge(w, r, next, p)
}

// judge gets a decision for the capsule in r and acts on it.
func (h *Handler) judge(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, p *passage) error {
	start := time.Now()
	c := newCapsule(w, r, h.MaxCapsule)
	defer c.detach() // nobody else may be reading when this returns
	o := h.decide(r, next, c)
	r = withRest(r, c)

	if o.clientFault != nil {
		problem := h.uploadProblem(o.clientFault)
		h.metrics.refused(problem.kind)
		h.logRefused(o, problem)
		return refuse(w, r, problem, o.unread)
	}

	p.settle(o)
	h.metrics.decided(o, time.Since(start))
	h.logDecided(r, o, p)
	return h.handOn(w, r, next, p, o)
}

// withRest is r with what is left of its capsule as its body.
func withRest(r *http.Request, c *capsule) *http.Request {
	r = r.WithContext(r.Context())
	r.Body = rest{c}
	return r
}

// handOn brings the decision to the app, by way of the handle_decision routes
// for it if there are any; or refuses, for the decisions that no app gets
// unless it is asked for.
func (h *Handler) handOn(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, p *passage, o outcome) error {
	routes, routed := h.routesFor(o.verdict.Decision)
	if !reachesApp(o.verdict.Decision) && !routed && !slices.Contains(h.Pass, string(o.verdict.Decision)) {
		return refuse(w, r, verdictProblem(o), o.unread)
	}
	closeAfter(w, r, o.unread)

	ctx, stop := h.appContext(r, o)
	defer stop()
	d, err := h.deliver(o)
	if err != nil {
		return caddyhttp.Error(http.StatusInternalServerError, err)
	}
	if routed {
		next = routes.Compile(next)
	}
	return next.ServeHTTP(w, handedOn(r.WithContext(ctx), p, d))
}

// reachesApp reports whether a decision is handed on without being asked for:
// it was Oz that decided, and the app that has to act on it.
func reachesApp(d oz.Decision) bool {
	switch d {
	case oz.Success, oz.Declined, oz.OperatorRequired, oz.Failed:
		return true
	}
	return false
}

func (h *Handler) routesFor(d oz.Decision) (caddyhttp.RouteList, bool) {
	for _, dr := range h.HandleDecision {
		if slices.Contains(dr.Decisions, string(d)) {
			return dr.Routes, true
		}
	}
	return nil, false
}

// requirements are the `require` lines with this request's values in them.
// They are taken from the client's own request: after the hand-off its header
// has a decision in it.
func (h *Handler) requirements(r *http.Request) []oz.Requirement {
	if len(h.Require) == 0 {
		return nil
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	reqs := make([]oz.Requirement, len(h.Require))
	for i, req := range h.Require {
		// A part that is empty or unknown leaves a value that is easily met.
		value, err := repl.ReplaceOrErr(req.Value, true, true)
		if err != nil {
			value = ""
		}
		reqs[i] = oz.Requirement{Path: h.requirePaths[i], Value: value}
	}
	return reqs
}
