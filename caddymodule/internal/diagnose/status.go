package diagnose

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
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

// ReadStatus reads what a gateway has answered. Fields that it doesn't know are
// of a newer gateway.
func ReadStatus(doc []byte) (s Status, err error) {
	if err := json.Unmarshal(doc, &s); err != nil || s.Ways == nil {
		return s, errors.New("the answer isn't the status of a gateway (want a JSON object with ways)")
	}
	return s, nil
}

// WriteStatus writes a gateway's own document for people and programs.
func WriteStatus(out io.Writer, doc []byte) error {
	var text bytes.Buffer
	if err := json.Indent(&text, bytes.TrimSpace(doc), "", "  "); err != nil {
		return err
	}
	return writeText(out, text.String())
}

// WriteStatusLine writes a gateway's own document as one line, or what failed.
func WriteStatusLine(out io.Writer, doc []byte, failure error) error {
	if failure != nil {
		var err error
		if doc, err = json.Marshal(map[string]string{"error": failure.Error()}); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	if err := json.Compact(&text, doc); err != nil {
		return err
	}
	return writeText(out, text.String())
}

// writeText writes JSON that steers no terminal, whatever answered.
func writeText(out io.Writer, doc string) error {
	_, err := io.WriteString(out, strings.Map(graphicOrSpace, strings.TrimSpace(doc))+"\n")
	return err
}
