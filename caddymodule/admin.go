package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI adds two endpoints to Caddy's admin API, by GET and HEAD:
//
//   - /oz_instant/status says what the gateway does.
//   - /oz_instant/ready says whether to send it capsules.
//
// Who may ask is for the admin API to say, which checks Host and Origin.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.oz_instant",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes implements caddy.AdminRouter.
func (adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: diagnose.StatusPath, Handler: caddy.AdminHandlerFunc(serveStatus)},
		{Pattern: "/oz_instant/ready", Handler: caddy.AdminHandlerFunc(serveReady)},
	}
}

var processStarted = time.Now()

func serveStatus(w http.ResponseWriter, r *http.Request) error {
	return serveAdmin(w, r, func() (int, any) {
		users := waysOf(inForce())
		s := diagnose.Status{Started: whole(processStarted), Ready: readiness(users).Ready, Ways: make([]diagnose.Way, len(users))}
		for i := range users {
			s.Ways[i] = statusOf(users[i])
		}
		return http.StatusOK, s
	})
}

// serveReady answers 503 from the first moment of a shutdown: Caddy then serves
// on for its shutdown_delay, in which whatever sends it capsules can notice and
// stop.
func serveReady(w http.ResponseWriter, r *http.Request) error {
	return serveAdmin(w, r, func() (int, any) {
		state := readiness(waysOf(inForce()))
		if !state.Ready {
			return http.StatusServiceUnavailable, state
		}
		return http.StatusOK, state
	})
}

type readyState struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
}

// readiness says whether the gateway takes capsules, and if not, why.
//
// It depends on the gateway alone: not on Oz, nor on the store of a replay
// guard. All gateways have the same ones, and when one is slow or down each of
// them would be taken out of service at the same moment: instead of a decision,
// clients would get a refused connection, without a problem document, without
// Retry-After, and the app's other pages would go with it. An Oz that is down
// shows in the status, in metrics, and in each answer.
func readiness(ways [][]*wayUser) readyState {
	switch {
	case caddy.Exiting():
		return readyState{Reason: "Caddy is shutting down"}
	case len(ways) == 0:
		return readyState{Reason: "the loaded config has no oz_instant"}
	}
	return readyState{Ready: true}
}

func serveAdmin(w http.ResponseWriter, r *http.Request, answer func() (status int, doc any)) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: errors.New("method not allowed (want GET or HEAD)")}
	}
	status, doc := answer()
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(doc); err != nil {
		return caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // to a client that has left
	return nil
}

// Interface guards
var (
	_ caddy.Module      = adminAPI{}
	_ caddy.AdminRouter = adminAPI{}
)
