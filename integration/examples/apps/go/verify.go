// Package app shows a handler in Go that acts on each decision, and believes nothing but the seal. It needs package verifier: copy
// that, too.
package app

import (
	"encoding/json"
	"io"
	"net/http"

	"github.com/oz-instant/caddy-oz-instant/integration/examples/verify/go/verifier"
)

type answer struct {
	status  int
	message string
}

var answers = map[string]answer{
	"SUCCESS":           {http.StatusOK, "welcome"},
	"DECLINED":          {http.StatusForbidden, "declined"},
	"OPERATOR_REQUIRED": {http.StatusAccepted, "wait until a person has looked at it"},
	"FAILED":            {http.StatusServiceUnavailable, "could not be checked: capture anew, later"},
	"INVALID":           {http.StatusBadRequest, "does not count: capture anew"},
	"UNAVAILABLE":       {http.StatusServiceUnavailable, "not decided: capture anew, later"},
}

// Verify handles POST /verify. signedIn returns the user that your own sign-in knows, or "".
func Verify(seals *verifier.Verifier, signedIn func(*http.Request) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, "the folder cannot be read", http.StatusBadRequest)
			return
		}
		says, reason := answer{http.StatusForbidden, "not verified"}, ""
		claims, err := seals.Verify(r.Header.Get("X-Oz-Seal"), body)
		if user := signedIn(r); err == nil && user != "" && claims.Subject == user {
			if found, known := answers[claims.Decision]; known {
				says, reason = found, claims.Reason
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(says.status)
		json.NewEncoder(w).Encode(map[string]string{"message": says.message, "reason": reason})
	}
}
