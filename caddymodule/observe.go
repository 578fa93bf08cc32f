package caddymodule

import (
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// eventDecision is emitted on Caddy's events app for each capsule that was
// decided. Its data are the facts that the app gets as header fields, by the
// names of their placeholders. Handlers of it run before the app gets the
// request, and can't change the decision: one that aborts the event is ignored.
const eventDecision = "oz_instant.decision"

// events are where a handler emits events. They need the context that it was
// provisioned with.
type events struct {
	app *caddyevents.App
	ctx caddy.Context
}

func (h *Handler) provisionEvents(ctx caddy.Context) error {
	app, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting the events app: %w", err)
	}
	h.events = events{app.(*caddyevents.App), ctx}
	return nil
}

// decided emits the event, unless the config has been replaced in the
// meantime: its handlers are gone, and Caddy would log each as an error.
func (e events) decided(res *Result) {
	if e.app == nil || e.ctx.Err() != nil || !e.app.ShouldEmit(eventDecision) {
		return
	}
	data := make(map[string]any, len(facts))
	for i, f := range facts {
		if f.value != nil {
			data[f.name] = res.words[i]
		}
	}
	e.app.Emit(e.ctx, eventDecision, data)
}

// observe leaves a Result in metrics and log, and for those that wait for it.
func (h *Handler) observe(r *http.Request, res *Result, total time.Duration) {
	h.metrics.guarded(res.guarded)
	h.metrics.received(res)
	if res.fault != nil {
		p := h.problem(res)
		h.metrics.refused(p.kind)
		h.log(r, res, zapcore.InfoLevel, "capsule refused", zap.String("problem", p.kind), zap.Int64("capsule_bytes", res.upload.Bytes))
		return
	}
	own := res.ownTime(total)
	h.metrics.decided(res, total, own)
	h.way.decided(res.verdict)
	fields := res.factFields()
	if res.refused == nil { // else analyze has taken it for waiting
		fields = append(fields, zap.Duration("own", own))
	}
	h.log(r, res, res.level(), "capsule decided", fields...)
	h.events.decided(res)
}

// level is an error for what an operator must mend, and a warning for a
// decision that stands all the same. A refusal for lack of capacity is neither.
func (res *Result) level() zapcore.Level {
	switch {
	case res.verdict.Decision == oz.Unavailable && res.busy == "":
		return zapcore.ErrorLevel
	case res.guarded.result == replayAllowed:
		return zapcore.WarnLevel
	}
	return zapcore.InfoLevel
}

// log writes the one line that a capsule leaves, and the same fields into the
// access log. Nothing in it is personal: ids and words of Oz that passed
// headerValue, counts and times.
func (h *Handler) log(r *http.Request, res *Result, level zapcore.Level, message string, fields ...zap.Field) {
	fields = append(fields, res.callFields()...)
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Dict("oz_instant", fields...))
	}
	if entry := h.logger.Check(level, message); entry != nil {
		entry.Write(traced(r, fields)...)
	}
}

// traced adds the id of the request's trace, under the name that it has in the
// access log, which gets it from Caddy.
func traced(r *http.Request, fields []zap.Field) []zap.Field {
	if span := trace.SpanContextFromContext(r.Context()); span.HasTraceID() {
		return append(fields, zap.String("traceID", span.TraceID().String()))
	}
	return fields
}

// factFields are the facts.
func (res *Result) factFields() []zap.Field {
	fields := make([]zap.Field, 0, len(facts)+20)
	for i, f := range facts {
		switch {
		case f.number != nil:
			fields = append(fields, zap.Int64(f.name, f.number(res)))
		case res.words[i] != "":
			fields = append(fields, zap.String(f.name, res.words[i]))
		}
	}
	return fields
}

// callFields are about the way to Oz and back.
func (res *Result) callFields() []zap.Field {
	fields := []zap.Field{
		zap.Duration("upload", res.uploadTime()),
		zap.Duration("queue", res.queued),
		zap.Duration("oz", res.liveness.Time),
		zap.String("upstream", res.liveness.Upstream),
		zap.Int("upstream_tries", res.liveness.Tries),
		zap.Int("oz_status", res.liveness.Status),
		zap.Int64("answer_bytes", res.liveness.Bytes),
		zap.Int64("cut_bytes", res.liveness.Cut),
		zap.Bool("client_gone", res.gone),
	}
	if shots := res.liveness.BestShots; len(shots) > 0 {
		fields = append(fields, zap.Int("best_shots", len(shots)), zap.Int("best_shots_unusable", unusable(shots)))
	}
	if m := res.match; m != nil {
		fields = append(fields, zap.Duration("reference", m.reference))
		if m.asked {
			fields = append(fields,
				zap.Duration("match", m.answer.Time),
				zap.String("match_upstream", m.answer.Upstream),
				zap.Int("match_status", m.answer.Status))
		}
	}
	fields = append(fields, res.guardFields()...)
	if res.why != nil {
		fields = append(fields, zap.Error(res.why))
	}
	return fields
}

// guardFields are the replay guard's. The ids of a folder that counts for
// nothing are for the operator alone.
func (res *Result) guardFields() (fields []zap.Field) {
	g := res.guarded
	if g.result == "" {
		return nil
	}
	fields = append(fields, zap.String("replay_guard", g.result))
	if g.result == replayAllowed {
		fields = append(fields, zap.NamedError("replay_guard_error", g.err))
	}
	if f := res.liveness.Verdict.Folder; f != nil && res.verdict.Folder == nil {
		fields = append(fields, zap.String("folder_id", headerValue(f.ID)), zap.String("event_session_id", headerValue(f.EventSessionID)))
	}
	return fields
}

// uploadTime returns the client's part: receiving a buffered capsule, or
// streaming one to Oz.
func (res *Result) uploadTime() time.Duration {
	if res.buffered {
		return res.uploading
	}
	return res.uploading + res.liveness.Upload
}

// ownTime returns what of total was neither the client's, Oz's, the app's nor
// waiting.
func (res *Result) ownTime(total time.Duration) time.Duration {
	own := total - res.queued - res.uploading - res.liveness.Upload - res.liveness.Time - res.stored
	if m := res.match; m != nil {
		own -= m.reference + m.answer.Upload + m.answer.Time
	}
	return max(0, own)
}
