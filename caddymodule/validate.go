package caddymodule

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

var bestShotWords = []string{bestShotStrip, bestShotKeep, bestShotAttach}

// Validate implements caddy.Validator. The Caddyfile has refused most of this
// already, with a line number; a JSON config has not been looked at before.
func (h *Handler) Validate() error {
	for _, check := range []func() error{
		h.validateNumbers, h.validateWords, h.validateRequire, h.validateDecisions, h.validateBiometry, h.validateCapacity,
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
	if !slices.Contains(bestShotWords, h.BestShot) {
		return fmt.Errorf("best_shot: %q is not %s", h.BestShot, strings.Join(bestShotWords, " or "))
	}
	if h.ClientGone != clientGoneFinish && h.ClientGone != clientGoneCancel {
		return fmt.Errorf("client_gone: %q is not finish or cancel", h.ClientGone)
	}
	return nil
}

// bodyPlaceholder reads the whole capsule into a text.
const bodyPlaceholder = "{http.request.body"

func (h *Handler) validateRequire() error {
	for _, req := range h.Require {
		if req.Value == "" {
			return fmt.Errorf("require %s: the value is empty and could never hold", req.Path)
		}
		if strings.Contains(req.Value, bodyPlaceholder) {
			return fmt.Errorf("require %s: the capsule itself is no value", req.Path)
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
