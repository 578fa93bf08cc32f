package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

func init() {
	caddy.RegisterModule(new(SessionToken))
}

// SessionToken answers a GET with a fresh session token from Oz, which the
// vendor's SDK needs before each capture (the guide's step 1):
//
//	{"session_token": "…"}
//
// The token is not cached anywhere and not logged. A call that fails is tried
// once more, on another upstream if there is one; then the answer is a problem
// document. All methods but GET are refused. Who may ask is for the handlers
// before this one to decide.
//
// In a Caddyfile it is the `session_token` option of `oz_instant`.
type SessionToken struct {
	Oz

	// How long Oz has for its answer, for each of two attempts. Default: `5s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	metrics *metrics
	logger  *zap.Logger
}

const (
	defaultSessionTimeout = caddy.Duration(5 * time.Second)
	// maxSessionAnswer bounds Oz's answer, which has some hundred bytes.
	maxSessionAnswer = 64 << 10
)

// CaddyModule returns the Caddy module information.
func (*SessionToken) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oz_instant_session_token",
		New: func() caddy.Module { return new(SessionToken) },
	}
}

// Provision implements caddy.Provisioner.
func (s *SessionToken) Provision(ctx caddy.Context) error {
	s.logger = ctx.Logger()
	setDefault(&s.Timeout, defaultSessionTimeout)
	s.metrics = sharedMetrics
	if err := s.metrics.register(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	return s.provision(ctx)
}

// Validate implements caddy.Validator.
func (s *SessionToken) Validate() error {
	if s.Timeout <= 0 {
		return errors.New("timeout: must be greater than zero")
	}
	return nil
}

// Cleanup implements caddy.CleanerUpper.
func (s *SessionToken) Cleanup() error { return s.cleanup() }

// ServeHTTP implements caddyhttp.MiddlewareHandler. It never calls next.
func (s *SessionToken) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	return enter(r).leave(s.serve(w, r))
}

func (s *SessionToken) serve(w http.ResponseWriter, r *http.Request) error {
	if problem := sessionDoor(w, r); problem != nil {
		s.metrics.refused(problem.kind)
		return refuse(w, r, problem, r.ContentLength != 0)
	}
	start := time.Now()
	token, c := s.fetch(r)
	s.record(c, time.Since(start))
	if c.clientFault != nil {
		return refuse(w, r, clientLeft(), false)
	}
	if c.fault != nil {
		return refuse(w, r, sessionProblem(c), false)
	}
	doc := oz.SessionTokenBody(token)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(doc)))
	h.Set("Cache-Control", "no-store")
	_, err := w.Write(doc)
	if err != nil {
		s.logger.Debug("session token was not delivered", zap.Error(err))
	}
	return nil
}

// sessionDoor refuses what is no plain GET.
func sessionDoor(w http.ResponseWriter, r *http.Request) *problem {
	if r.Method != http.MethodGet {
		return newProblem(kindMethod, http.StatusMethodNotAllowed,
			"Session tokens come by GET", "Use GET, without a body.").with("Allow", "GET")
	}
	if hasContent(w, r) {
		return unexpectedContent(r)
	}
	return nil
}

// fetch gets a token, and tries once more where that may help.
func (s *SessionToken) fetch(r *http.Request) (string, *call) {
	token, first := s.attempt(r, nil)
	if first.fault == nil || first.clientFault != nil || !first.mayFareBetter(s.link) {
		return token, first
	}
	token, second := s.attempt(r, first.tried)
	second.tries += first.tries
	return token, second
}

// mayFareBetter reports whether a second attempt makes sense: on another
// upstream, with another access token, or with another connection.
func (c *call) mayFareBetter(l *link) bool {
	switch c.fault.reason {
	case oz.Unauthorized:
		return l.account != nil && c.tries > 0
	case oz.Timeout, oz.Overloaded:
		return l.hasOthers(c.tried)
	}
	return true
}

func (s *SessionToken) attempt(r *http.Request, tried []string) (token string, c *call) {
	ctx, cancel := context.WithTimeoutCause(r.Context(), time.Duration(s.Timeout), errOzTimeout)
	defer cancel()
	c = &call{
		method: http.MethodGet,
		path:   oz.SessionTokenPath,
		header: http.Header{"Content-Type": {"application/json"}},
		tried:  tried,
		blame: func() error {
			if r.Context().Err() != nil {
				return errClientGone
			}
			return nil
		},
	}
	c.read = func(res *http.Response) (err error) {
		token, err = c.readSessionToken(res)
		return err
	}
	s.link.authorized(ctx, r, c)
	return token, c
}

func (c *call) readSessionToken(res *http.Response) (string, error) {
	doc, err := readSmall(res, maxSessionAnswer)
	if err != nil {
		return "", err
	}
	if !isFolder(res.StatusCode) {
		c.answeredBadly(res, doc)
		return "", nil
	}
	return oz.ReadSessionToken(doc)
}

// record leaves a trace of a token that was asked for, never of the token.
func (s *SessionToken) record(c *call, total time.Duration) {
	result := tokenIssued
	level := zap.InfoLevel
	switch {
	case c.clientFault != nil:
		result = kindClientGone
	case c.fault != nil:
		result, level = string(c.fault.reason), zap.ErrorLevel
	}
	s.metrics.sessionToken(result)
	if entry := s.logger.Check(level, "session token"); entry != nil {
		fields := []zap.Field{
			zap.String("result", result), zap.Duration("duration", total),
			zap.String("upstream", c.upstream), zap.Int("upstream_tries", c.tries), zap.Int("oz_status", c.status),
		}
		if c.fault != nil {
			fields = append(fields, zap.Error(c.fault.err))
		}
		entry.Write(fields...)
	}
}

// Interface guards
var (
	_ caddy.Module                = (*SessionToken)(nil)
	_ caddy.Provisioner           = (*SessionToken)(nil)
	_ caddy.Validator             = (*SessionToken)(nil)
	_ caddy.CleanerUpper          = (*SessionToken)(nil)
	_ caddyhttp.MiddlewareHandler = (*SessionToken)(nil)
)
