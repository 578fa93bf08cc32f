package diagnose

import (
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// StatusPath is where a gateway's admin API has its Status.
const StatusPath = "/oz_instant/status"

// Status is what a gateway says of itself at /oz_instant/status.
type Status struct {
	Started time.Time `json:"started"` // of the process
	Ready   bool      `json:"ready"`
	Ways    []Way     `json:"ways"`
}

// Way is the status of one way to Oz, which several blocks may share. It has no
// secret and nothing of a client.
type Way struct {
	Since            time.Time                 `json:"since"` // it is counted
	Upstreams        []ozclient.UpstreamStatus `json:"upstreams"`
	DynamicUpstreams string                    `json:"dynamic_upstreams,omitempty"`
	BasePath         string                    `json:"base_path,omitempty"`
	upload.GateStatus
	AccessToken  *ozclient.TokenStatus `json:"access_token,omitempty"`
	Decisions    map[oz.Decision]int64 `json:"decisions"`
	LastFailures []Failure             `json:"last_failures"` // one for each reason, the newest first
}

// Failure is the last one of its kind.
type Failure struct {
	Reason oz.Reason `json:"reason"`
	Time   time.Time `json:"time"`
	Count  int64     `json:"count"` // since the way is counted
}
