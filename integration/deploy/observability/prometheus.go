package observability

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Prometheus is a Prometheus by its URL.
type Prometheus string

// Series is a series that a query returned.
type Series struct {
	Labels map[string]string
	Points []Point // one for an instant query
}

// Point is a value at a time, in seconds since 1970.
type Point struct{ Time, Value float64 }

// UnmarshalJSON reads a pair of a number and a number in a string, as in [1.5, "NaN"].
func (p *Point) UnmarshalJSON(text []byte) error {
	var value string
	if err := json.Unmarshal(text, &[]any{&p.Time, &value}); err != nil {
		return err
	}
	var err error
	p.Value, err = strconv.ParseFloat(value, 64)
	return err
}

// Finite reports whether a series has a value that can be drawn.
func (s Series) Finite() bool {
	for _, p := range s.Points {
		if !math.IsNaN(p.Value) && !math.IsInf(p.Value, 0) {
			return true
		}
	}
	return false
}

// Query evaluates an expression now.
func (p Prometheus) Query(ctx context.Context, expr string) ([]Series, error) {
	return p.series(ctx, "query", url.Values{"query": {expr}})
}

// QueryRange evaluates an expression at each step of a time.
func (p Prometheus) QueryRange(ctx context.Context, expr string, from, to time.Time, step time.Duration) ([]Series, error) {
	return p.series(ctx, "query_range", url.Values{
		"query": {expr}, "start": {stamp(from)}, "end": {stamp(to)}, "step": {strconv.FormatFloat(step.Seconds(), 'f', 3, 64)},
	})
}

func stamp(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

func (p Prometheus) series(ctx context.Context, path string, query url.Values) (list []Series, err error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  *Point
			Values []Point
		}
	}
	if err := p.get(ctx, path, query, &data); err != nil {
		return nil, fmt.Errorf("%s: %w", query.Get("query"), err)
	}
	for _, r := range data.Result {
		if r.Value != nil {
			r.Values = []Point{*r.Value}
		}
		list = append(list, Series{r.Metric, r.Values})
	}
	return list, nil
}

// Rule is an alert rule.
type Rule struct {
	Name, Query         string
	Labels, Annotations map[string]string
	State, Health       string
	LastError           string
}

// Rules returns the rules that it has loaded.
func (p Prometheus) Rules(ctx context.Context) (list []Rule, err error) {
	var data struct {
		Groups []struct{ Rules []Rule }
	}
	err = p.get(ctx, "rules", nil, &data)
	for _, group := range data.Groups {
		list = append(list, group.Rules...)
	}
	return list, err
}

func (p Prometheus) get(ctx context.Context, path string, query url.Values, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, string(p)+"/api/v1/"+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return fmt.Errorf("prometheus answered %s: %w", res.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("prometheus answered %s: %s", res.Status, answer.Error)
	}
	return nil
}

// Fill puts values for Grafana's variables into a query: all jobs and gateways, and an interval for rates.
func Fill(expr string, interval time.Duration) string {
	return strings.NewReplacer(
		"$__rate_interval", strconv.Itoa(int(interval.Seconds()))+"s", "$job", ".+", "$instance", ".+",
	).Replace(expr)
}
