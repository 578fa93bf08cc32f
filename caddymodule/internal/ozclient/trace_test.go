package ozclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// traced is a context with the span of a server, and what its spans are recorded by.
func traced(t testing.TB) (context.Context, *tracetest.SpanRecorder) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	ctx, server := provider.Tracer("server").Start(t.Context(), "server", trace.WithSpanKind(trace.SpanKindServer))
	t.Cleanup(func() { server.End() })
	return ctx, recorder
}

// A call that its client broke off is not Oz's error: the span says "client",
// and has no text of a peer.
func TestSpanOfAClientsFault(t *testing.T) {
	ctx, recorder := traced(t)
	gone, cancel := context.WithCancelCause(ctx)
	cancel(upload.ErrGone)
	c := newClient(t, neverAsked(t), "", "")
	_, err := c.Analyze(gone, nil, capsule(), oz.Policy{}, nil)
	wantError(t, asError(t, err), Error{"", FaultClient, upload.ErrGone})
	spans := recorder.Ended()
	if len(spans) != 1 || spans[0].Name() != spanAnalyze || spans[0].Status() != (sdktrace.Status{Code: codes.Error}) || len(spans[0].Events()) != 0 {
		t.Fatalf("%+v", spans)
	}
	for _, a := range spans[0].Attributes() {
		if a.Key == "error.type" && a.Value.AsString() == clientFault {
			return
		}
	}
	t.Errorf("attributes: %v", spans[0].Attributes())
}

// A session token that needs two attempts is one span, and Oz gets it in both.
func TestSpanOverAttempts(t *testing.T) {
	ctx, recorder := traced(t)
	var parents []string
	c := newClient(t, func(req *http.Request) (*http.Response, error) {
		parents = append(parents, req.Header.Get("Traceparent"))
		if len(parents) == 1 {
			return nil, errors.New("reset")
		}
		return response(200, `{"session_token": "token"}`), nil
	}, "", "")
	if _, report, err := c.SessionToken(ctx, nil, testOptions.Timeout); err != nil || report.Tries != 2 {
		t.Fatalf("%v, %+v", err, report)
	}
	spans := recorder.Ended()
	if len(spans) != 1 || spans[0].Name() != spanSessionToken || spans[0].Status().Code != codes.Unset {
		t.Fatalf("%+v", spans)
	}
	want := "00-" + spans[0].SpanContext().TraceID().String() + "-" + spans[0].SpanContext().SpanID().String() + "-01"
	for _, got := range parents {
		if got != want {
			t.Errorf("Oz got %q, want %q", got, want)
		}
	}
}

// A trace that isn't sampled makes no span, and Oz learns that it isn't.
// Baggage stays here, also then.
func TestSpanNotSampled(t *testing.T) {
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
	member, err := baggage.NewMember("user", "canary")
	if err != nil {
		t.Fatal(err)
	}
	bag, err := baggage.New(member)
	if err != nil {
		t.Fatal(err)
	}
	ctx, server := provider.Tracer("server").Start(baggage.ContextWithBaggage(t.Context(), bag), "server")
	defer server.End()
	var header http.Header
	c := newClient(t, func(req *http.Request) (*http.Response, error) {
		header = req.Header
		return answers(201, "{}")(req)
	}, "", "")
	_, _ = c.Analyze(ctx, nil, capsule(), oz.Policy{}, nil)
	if got := header.Get("Traceparent"); len(got) != 55 || got[53:] != "00" || got[3:35] != server.SpanContext().TraceID().String() {
		t.Errorf("Oz got %q", got)
	}
	if header.Get("Baggage") != "" {
		t.Errorf("Oz got %v", header)
	}
}

// A client's tracestate has the same bound with tracing as without.
func TestTracestateIsBounded(t *testing.T) {
	for members, passed := range map[int]bool{1: true, 3: false, 32: false} { // of 250 bytes and more each
		var state trace.TraceState
		for i := range members {
			var err error
			if state, err = state.Insert(fmt.Sprintf("vendor%d", i), strings.Repeat("x", 250)); err != nil {
				t.Fatal(err)
			}
		}
		remote := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceState: state, Remote: true})
		ctx, server := sdktrace.NewTracerProvider().Tracer("server").Start(trace.ContextWithRemoteSpanContext(t.Context(), remote), "server")
		defer server.End()
		header := make(http.Header)
		c := &Client{propagator: newPropagator()}
		if !c.inject(ctx, header) || !strings.HasPrefix(header.Get("Traceparent"), "00-01000000") {
			t.Errorf("%d members: Oz gets %v", members, header)
		}
		want := ""
		if passed {
			want = state.String()
		}
		if got := header.Get("Tracestate"); got != want {
			t.Errorf("of %d bytes of tracestate Oz gets %d", len(state.String()), len(got))
		}
	}
}

// What a span costs: nothing to speak of without tracing.
func BenchmarkSpan(b *testing.B) {
	answer := Answer{
		Verdict: oz.Verdict{Decision: oz.Success},
		Report:  Report{Upstream: "oz.internal:443", Tries: 1, Status: 201, Bytes: 400_000, Cut: 390_000},
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(tracetest.NewNoopExporter()))
	defer func() { _ = provider.Shutdown(context.Background()) }()
	server, span := provider.Tracer("server").Start(b.Context(), "server")
	defer span.End()
	c := &Client{propagator: newPropagator()}
	for name, ctx := range map[string]context.Context{"without tracing": b.Context(), "with tracing": server} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ctx, span := startSpan(ctx, spanAnalyze)
				c.inject(ctx, make(http.Header))
				endSpan(span, answer.Verdict, answer.Report, 2<<20, nil)
			}
		})
	}
}
