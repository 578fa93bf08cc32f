package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// checkTokenMatchers checks that what the matchers say of session tokens is
// plain, and that their path isn't the capsules'.
func checkTokenMatchers(sets caddyhttp.RawMatcherSets, path string) error {
	for _, set := range sets {
		for _, mixed := range []string{"expression", "not"} {
			if _, ok := set[mixed]; ok {
				return fmt.Errorf("the matcher %s may hold for the path of capsules only, or for session tokens too (want one handle block or site for each)", mixed)
			}
		}
	}
	if slices.ContainsFunc(capsulePaths(sets), samePath(path)) {
		return fmt.Errorf("%s is the path of the capsules (want another one)", path)
	}
	return nil
}

// capsulePaths are the paths that the matchers of capsules name, without their
// asterisks.
func capsulePaths(sets caddyhttp.RawMatcherSets) (paths []string) {
	for _, set := range sets {
		var patterns caddyhttp.MatchPath
		if raw, ok := set["path"]; !ok || caddy.StrictUnmarshalJSON(raw, &patterns) != nil {
			continue
		}
		for _, pattern := range patterns {
			paths = append(paths, strings.TrimRight(pattern, "*"))
		}
	}
	return paths
}

// samePath compares paths as Caddy's path matcher does.
func samePath(path string) func(string) bool {
	return func(other string) bool { return strings.EqualFold(path, other) }
}

// plainPath reports whether p stands for itself in a path matcher, which sees
// paths without dots, and with single slashes.
func plainPath(p string) bool {
	return strings.HasPrefix(p, "/") && !strings.ContainsAny(p, "*?[\\#{} ") && strings.TrimSuffix(p, "/") == strings.TrimSuffix(path.Clean(p), "/")
}

// tokenMatchers are the matchers of session tokens: those of the capsules less
// the ones for path and method.
func tokenMatchers(sets caddyhttp.MatcherSets) (rest caddyhttp.MatcherSets) {
	for _, set := range sets {
		rest = append(rest, slices.DeleteFunc(slices.Clone(set), func(matcher any) bool {
			switch matcher.(type) {
			case *caddyhttp.MatchPath, *caddyhttp.MatchPathRE, *caddyhttp.MatchMethod:
				return true
			}
			return false
		}))
	}
	return rest
}

// matches reports whether r is for the path of session tokens. Provisioned
// path matchers are in lower case.
func (s *SessionToken) matches(r *http.Request, matchers caddyhttp.MatcherSets) (bool, error) {
	if s == nil || !(caddyhttp.MatchPath{strings.ToLower(s.Path)}).Match(r) {
		return false, nil
	}
	return matchers.AnyMatchWithError(r)
}

// classifyTokenRequest says what a request for the path of session tokens is.
func classifyTokenRequest(w http.ResponseWriter, r *http.Request) (requestKind, *problem) {
	kind := sessionTokenRequest
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodOptions: // a browser's preflight, which the site may answer
		kind = otherRequest
	default:
		return otherRequest, refusal(kindMethod, "Session tokens come by GET", "Use GET, without a body.").
			with("Allow", "GET, HEAD, OPTIONS")
	}
	if hasContent(w, r) {
		return otherRequest, unexpectedContent(r)
	}
	return kind, nil
}

// serveSessionToken answers with a fresh session token.
func (h *Handler) serveSessionToken(w http.ResponseWriter, r *http.Request) error {
	if r.Method == http.MethodHead { // asks about the answer, not for a token
		tokenHeader(w.Header())
		return nil
	}
	start := time.Now()
	token, report, err := askForToken(r, h.gate, h.client, time.Duration(h.SessionToken.Timeout))
	result := tokenResult(err)
	h.metrics.sessionToken(result)
	logToken(h.logger, r, result, report, err, time.Since(start))
	if err != nil {
		return h.refuse(w, r, tokenProblem(report, err), false)
	}
	doc := oz.SessionTokenBody(token)
	tokenHeader(w.Header())
	w.Header().Set("Content-Length", strconv.Itoa(len(doc)))
	if _, err := w.Write(doc); err != nil {
		h.logger.Debug("session token was not delivered") // over HTTP/3 the error has words of the client's
	}
	return nil
}

func tokenHeader(h http.Header) {
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
}

func askForToken(r *http.Request, gate *upload.Gate, client *ozclient.Client, timeout time.Duration) (string, ozclient.Report, error) {
	ctx, end := untilGone(r.Context())
	defer end()
	release, err := gate.AcquireCall(ctx, timeout)
	if err != nil {
		return "", ozclient.Report{}, err
	}
	defer release()
	return client.SessionToken(ctx, r, timeout)
}

// untilGone returns a context that ends with the request's, for the reason that
// the client has left. Over HTTP/3 a client that closes its connection ends the
// request's with an error of quic-go, and words of its own in it. Taken as it
// was, that was a timeout of Oz, or the words stood in the log.
func untilGone(request context.Context) (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(request))
	forget := context.AfterFunc(request, func() { cancel(upload.ErrGone) })
	return ctx, func() { forget(); cancel(nil) }
}

// tokenResults are the words for what came of a session token: a closed set.
var tokenResults = []string{
	tokenIssued, kindClientGone, kindInvalidValue,
	string(oz.Unauthorized), string(oz.Overloaded), string(oz.TooLargeForOz), string(oz.UnexpectedStatus),
	string(oz.MalformedAnswer), string(oz.Unreachable), string(oz.ConnectionLost), string(oz.Timeout),
}

const tokenIssued = "issued"

func tokenResult(err error) string {
	if err == nil {
		return tokenIssued
	}
	return tokenProblem(ozclient.Report{}, err).kind
}

// tokenProblem is the refusal of a session token that Oz did not give.
func tokenProblem(report ozclient.Report, err error) *problem {
	const missing = "There is no session token. "
	if busy, ok := errors.AsType[*upload.Refused](err); ok {
		return busyProblem(missing, busy)
	}
	failed, ok := errors.AsType[*ozclient.Error](err)
	switch {
	case errors.Is(err, ozclient.ErrInvalidHeader):
		return (*Handler)(nil).uploadProblem(err)
	case !ok || failed.Fault == ozclient.FaultClient:
		return clientGone()
	}
	return problemFor(failed.Reason, missing, report)
}

// logToken leaves a line for a session token that was asked for, without it.
func logToken(logger *zap.Logger, r *http.Request, result string, report ozclient.Report, err error, total time.Duration) {
	level := zapcore.ErrorLevel
	_, busy := errors.AsType[*upload.Refused](err)
	if busy || result == tokenIssued || result == kindClientGone || result == kindInvalidValue {
		level = zapcore.InfoLevel
	}
	entry := logger.Check(level, "session token")
	if entry == nil {
		return
	}
	fields := []zap.Field{
		zap.String("result", result), zap.Duration("duration", total),
		zap.String("upstream", report.Upstream), zap.Int("upstream_tries", report.Tries), zap.Int("oz_status", report.Status),
	}
	if err != nil {
		fields = append(fields, zap.Error(err))
	}
	entry.Write(traced(r, fields)...)
}
