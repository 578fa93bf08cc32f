package caddymodule

import (
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// logDecided writes the one line that a judged capsule leaves, and the same
// facts into the access log. Nothing in it is personal: ids and words of Oz
// that passed headerValue, counts and times.
func (h *Handler) logDecided(r *http.Request, o outcome, p *passage) {
	fields := p.facts.logFields()
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Dict("oz_instant", fields...))
	}
	level := zapcore.InfoLevel
	switch {
	case o.busy != "": // as configured
	case o.verdict.Decision == oz.Unavailable:
		level = zapcore.ErrorLevel // the operator's to mend
	}
	if c := h.logger.Check(level, "capsule decided"); c != nil {
		c.Write(append(fields, exchangeFields(o)...)...)
	}
}

// logRefused is the line for a capsule that was not delivered.
func (h *Handler) logRefused(o outcome, p *problem) {
	if c := h.logger.Check(zapcore.InfoLevel, "capsule refused"); c != nil {
		fields := []zap.Field{zap.String("problem", p.kind), zap.Int64("capsule_bytes", o.capsuleBytes)}
		c.Write(append(fields, exchangeFields(o)...)...)
	}
}

func exchangeFields(o outcome) []zap.Field {
	fields := []zap.Field{
		zap.Duration("upload", o.uploadTime),
		zap.Duration("queue", o.queueTime),
		zap.Duration("oz", o.ozTime),
		zap.String("upstream", o.upstream),
		zap.Int("upstream_tries", o.tries),
		zap.Int("oz_status", o.answer.status),
		zap.Int64("answer_bytes", o.answer.bytes),
		zap.Int64("cut_bytes", o.answer.cut),
		zap.Bool("client_gone", o.clientGone),
	}
	if len(o.shots) > 0 {
		fields = append(fields, zap.Int("best_shots", len(o.shots)), zap.Int("best_shots_unusable", unusable(o.shots)))
	}
	if o.match != nil {
		fields = append(fields, o.match.logFields()...)
	}
	if o.err != nil {
		fields = append(fields, zap.Error(o.err))
	}
	return fields
}

func unusable(shots []oz.BestShot) (n int) {
	for _, shot := range shots {
		if shot.JPEG == nil {
			n++
		}
	}
	return n
}

func (m *match) logFields() []zap.Field {
	fields := []zap.Field{zap.Duration("reference", m.referenceTime)}
	if m.call != nil {
		fields = append(fields,
			zap.Duration("match", m.ozTime),
			zap.String("match_upstream", m.call.upstream),
			zap.Int("match_status", m.answer.status),
		)
	}
	return fields
}

// logFields are named like the placeholders; the ones without a value stay away.
func (f *facts) logFields() []zap.Field {
	var fields []zap.Field
	for _, field := range [...]struct{ name, value string }{
		{"decision", f.decision},
		{"reason", f.reason},
		{"folder_id", f.folderID},
		{"event_session_id", f.eventSessionID},
		{"error_code", f.errorCode},
		{"quality", f.quality},
		{"biometry", f.biometry},
	} {
		if field.value != "" {
			fields = append(fields, zap.String(field.name, field.value))
		}
	}
	return append(fields, zap.Int64("capsule_bytes", f.capsuleBytes), zap.Int64("oz_ms", f.ozMS))
}
