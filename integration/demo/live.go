package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
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
	if !ownName(r, o.Site) {
		writeJSON(w, http.StatusOK, map[string]string{"error": errOtherName.Error()})
		return
	}
	status, err := o.askAdmin(r.Context())
	if err != nil {
		writeJSON(w, http.StatusOK, map[string]string{"error": err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, status)
}

var errOtherName = errors.New("this app was asked by a name that isn't its own (want that of --site, localhost or an IP address)")

// ownName reports whether a request is to a name of this app. A page of another site could have its own name resolved to this
// machine, and so read what Caddy's admin API tells nobody but this machine, or flood it (DNS rebinding).
func ownName(r *http.Request, site string) bool {
	to := url.URL{Host: r.Host}
	at, err := url.Parse(site)
	if _, err := netip.ParseAddr(to.Hostname()); err == nil || to.Hostname() == "localhost" {
		return true
	}
	return err == nil && at.Host != "" && strings.EqualFold(to.Hostname(), at.Hostname())
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
