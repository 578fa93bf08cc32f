package ozclient

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"

	"go.opentelemetry.io/contrib/propagators/autoprop"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// Names of spans. Each is a client span below the server's, where Caddy's
// tracing directive made one, and nothing otherwise.
const (
	spanAnalyze      = "oz_instant.analyze"
	spanMatch        = "oz_instant.match"
	spanSessionToken = "oz_instant.session_token"
)

// tracerName is the instrumentation scope.
const tracerName = "github.com/oz-instant/caddy-oz-instant"

// startSpan begins a span below that of ctx. Calls made with the context that it
// returns are the span's.
func startSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	return trace.SpanFromContext(ctx).TracerProvider().Tracer(tracerName).
		Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient))
}

// endSpan says what came of a call, in words, sizes and addresses of the
// operator's own. What the client or Oz wrote is not in it.
func endSpan(span trace.Span, v oz.Verdict, r Report, sent int64, failure error) {
	defer span.End()
	if !span.IsRecording() {
		return
	}
	attributes := []attribute.KeyValue{attribute.Int("oz_instant.upstream_tries", r.Tries)}
	if host, port, err := net.SplitHostPort(r.Upstream); err == nil {
		attributes = append(attributes, attribute.String("server.address", host))
		if n, err := strconv.Atoi(port); err == nil {
			attributes = append(attributes, attribute.Int("server.port", n))
		}
	}
	if r.Status != 0 {
		attributes = append(attributes,
			attribute.Int("http.response.status_code", r.Status),
			attribute.Int64("oz_instant.answer_bytes", r.Bytes),
			attribute.Int64("oz_instant.pruned_bytes", r.Cut))
	}
	if sent > 0 {
		attributes = append(attributes, attribute.Int64("oz_instant.capsule_bytes", sent))
	}
	if v.Decision != "" {
		attributes = append(attributes, attribute.String("oz_instant.decision", string(v.Decision)))
	}
	if v.Reason != "" {
		attributes = append(attributes, attribute.String("oz_instant.reason", string(v.Reason)))
	}
	if failure != nil || v.Decision == oz.Unavailable {
		kind := string(v.Reason)
		if kind == "" {
			kind = clientFault
		}
		attributes = append(attributes, attribute.String("error.type", kind))
		span.SetStatus(codes.Error, "")
	}
	span.SetAttributes(attributes...)
}

func reasonOf(err error) oz.Reason {
	if failed, ok := errors.AsType[*Error](err); ok {
		return failed.Reason
	}
	return ""
}

// clientFault is the error.type of a call that ended for what its client did.
const clientFault = "client"

// newPropagator returns the one of OTEL_PROPAGATORS, as Caddy's tracing has it.
func newPropagator() propagation.TextMapPropagator { return autoprop.NewTextMapPropagator() }

// inject writes the context of the call's span into its header. Baggage is the
// client's, and not for Oz. So is a tracestate, of which up to 16 KiB are valid:
// one that is too long to be passed on without tracing isn't with it either.
func (c *Client) inject(ctx context.Context, to http.Header) (traced bool) {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return false
	}
	if state := span.TraceState().String(); state != "" && !traceable(state) {
		ctx = trace.ContextWithSpanContext(ctx, span.WithTraceState(trace.TraceState{}))
	}
	c.propagator.Inject(baggage.ContextWithoutBaggage(ctx), propagation.HeaderCarrier(to))
	return true
}
