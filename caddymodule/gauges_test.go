package caddymodule

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// gaugeNamed is one of the gauges.
type gaugeNamed struct {
	gauges
	name string
}

func (g gaugeNamed) Collect(to chan<- prometheus.Metric) {
	all := make(chan prometheus.Metric, 4)
	g.gauges.Collect(all)
	close(all)
	for m := range all {
		if strings.Contains(m.Desc().String(), `"caddy_oz_instant_`+g.name+`"`) {
			to <- m
		}
	}
}

func jsonNumber(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

// The gauge of access tokens is absent without credentials, 0 while an account
// has no token, and otherwise the earliest end.
func TestExpiryGauge(t *testing.T) {
	ctx := newContext(t)
	g := gauges{func() func(any) bool { return configOf(ctx) }}
	for _, test := range []struct {
		fields string
		want   int
	}{
		{"", 0},
		{`{"access_token": "fixed"}`, 0},
		{`{"credentials": {"email": "a@example.com", "password": "one"}}`, 1},
	} {
		mustLoad(t, ctx, ozConfig(t, answers(403, ""), test.fields))
		if n := testutil.CollectAndCount(g, "caddy_oz_instant_access_token_expiry_timestamp_seconds"); n != test.want {
			t.Errorf("%s: %d series, want %d", test.fields, n, test.want)
		}
	}
	if n := testutil.ToFloat64(gaugeNamed{g, "access_token_expiry_timestamp_seconds"}); n != 0 {
		t.Errorf("without a token: %v", n)
	}
	early, late := &ozclient.TokenStatus{Expires: time.Unix(1000, 5e8)}, &ozclient.TokenStatus{Expires: time.Unix(2000, 0)}
	none := new(ozclient.TokenStatus)
	for _, test := range []struct {
		tokens []*ozclient.TokenStatus
		want   float64
	}{
		{[]*ozclient.TokenStatus{late, early}, 1000.5},
		{[]*ozclient.TokenStatus{early, late}, 1000.5},
		{[]*ozclient.TokenStatus{early, none}, 0},
		{[]*ozclient.TokenStatus{none, early}, 0},
	} {
		if got := firstExpiry(test.tokens); got != test.want {
			t.Errorf("%v, want %v", got, test.want)
		}
	}
}
