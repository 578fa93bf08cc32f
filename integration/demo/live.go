package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	statusPath     = "/oz_instant/status"
	statusPatience = 2 * time.Second
	maxStatus      = 1 << 20
)

// status hands on what Caddy's admin API says about the gateway. The page cannot ask it: it is another origin. Its failure is an
// answer like any other, {"error": …}, since a browser writes each 502 to its console, once a second.
func (o Options) status(w http.ResponseWriter, r *http.Request) {
	status, err := o.askAdmin(r.Context())
	if err != nil {
		writeJSON(w, http.StatusOK, map[string]string{"error": err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, status)
}

func (o Options) askAdmin(ctx context.Context) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(o.Admin, "/")+statusPath, nil)
	if err != nil {
		return nil, err
	}
	answer, err := adminClient.Do(r)
	if err != nil {
		return nil, errors.New("the admin API of Caddy cannot be reached")
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxStatus))
	switch {
	case err != nil:
		return nil, errors.New("the answer of the admin API was cut")
	case answer.StatusCode == http.StatusNotFound:
		return nil, errors.New("this Caddy has no " + statusPath)
	case answer.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the admin API of Caddy answered %d", answer.StatusCode)
	case !json.Valid(body):
		return nil, errors.New("what the admin API of Caddy answered isn't JSON")
	}
	return body, nil
}

// adminClient uses no proxy from the environment, and follows no redirect: a status is where it is asked for.
var adminClient = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 1},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}
