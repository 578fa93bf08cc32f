package observability

// row is a row of panels under a heading.
type row struct {
	title  string
	panels []panel
}

// panel is one graph. Its title and description say in a sentence what it answers, and then what to do about it.
type panel struct {
	title, answers, todo string
	unit                 string
	queries              []query
	stacked              bool
	ends                 bool        // below zero: it has ended
	limits               []threshold // where the color changes
	colors               [][2]string // of series, by their names
}

// query is an expression and the legend of its series. In the expression @ stands for the labels that the dashboard's variables
// choose.
type query struct{ legend, expr string }

// threshold colors what is at or above a value.
type threshold struct {
	from  float64
	color string
}

// Units as Grafana knows them.
const (
	perSecond   = "suffix: /s"
	seconds     = "s"
	bytes       = "bytes"
	bytesPerSec = "binBps" // as bytes are: by 1024
	share       = "percentunit"
	count       = "none"
	boolean     = "bool_on_off"
)

const hour, day = 3600, 24 * 3600

// rows are the dashboard, from the question of whether people get in down to the way to Oz.
var rows = []row{
	{"What came of it", []panel{
		{
			title: "Decisions", answers: "What came of the capsules?", unit: perSecond, stacked: true,
			todo:    "SUCCESS alone lets a user in. More UNAVAILABLE: see the next two panels. More DECLINED or FAILED without a release of yours: ask the vendor.",
			queries: rates("decision", `caddy_oz_instant_decisions_total{@}`),
			colors: [][2]string{
				{"SUCCESS", "green"}, {"DECLINED", "orange"}, {"OPERATOR_REQUIRED", "blue"}, {"FAILED", "yellow"}, {"INVALID", "purple"}, {"UNAVAILABLE", "red"},
			},
		},
		{
			title: "Without a verdict", answers: "Which share of the capsules did Oz not decide?", unit: share,
			todo:    "Above 5% an alert fires. The next panel says why.",
			limits:  []threshold{{0.05, "red"}},
			queries: []query{{"{{job}}", `sum by (job) (rate(caddy_oz_instant_decisions_total{@,decision="UNAVAILABLE"}[$__rate_interval])) / sum by (job) (rate(caddy_oz_instant_decisions_total{@}[$__rate_interval]))`}},
		},
		{
			title: "No verdict, by reason", answers: "Why did Oz not decide?", unit: perSecond, stacked: true,
			todo:    "unauthorized: your account or token. unreachable, connection_lost, timeout, overloaded: Oz or the way to it. malformed_answer, unexpected_status: something in between. store_unavailable: the replay guard's store.",
			queries: rates("reason", `caddy_oz_instant_decisions_total{@,decision="UNAVAILABLE"}`),
		},
		{
			title: "Failed and invalid capsules, by reason", answers: "Why did a capsule come to nothing although Oz answered?", unit: perSecond, stacked: true,
			todo:    "container: see the next panel. binding: your app and the phone disagree on the session. reference_…: the app's photos for face matching.",
			queries: rates("decision, reason", `caddy_oz_instant_decisions_total{@,decision=~"FAILED|INVALID"}`),
		},
		{
			title: "Capsules that Oz refused, by code", answers: "What did Oz not like about a capsule?", unit: perSecond, stacked: true,
			todo:    "13 is an empty capsule, 14 one whose session token is used, ended, or another instance's: give all instances the same keys.",
			queries: rates("error_code", `caddy_oz_instant_container_errors_total{@}`),
		},
		{
			title: "Analyses", answers: "How did the single analyses end?", unit: perSecond, stacked: true,
			todo:    "An analysis that never ends FINISHED is one that the phones ask for and your Oz can't do.",
			queries: rates("type, resolution_status", `caddy_oz_instant_analyses_total{@}`),
		},
	}},
	{"Time and size", []panel{
		{
			title: "Oz's time", answers: "How long does Oz take for a capsule?", unit: seconds,
			todo:    "About three seconds are normal. When it grows with the slots in use, lower slots: Oz takes no more at once.",
			queries: quantiles(`caddy_oz_instant_duration_seconds_bucket{@,phase="oz"}`),
		},
		{
			title: "Gateway's own time", answers: "What does the gateway itself add to a capsule?", unit: seconds,
			todo:    "Milliseconds are normal. More means that this machine has too little CPU.",
			queries: quantiles(`caddy_oz_instant_own_seconds_bucket{@}`),
		},
		{
			title: "Where the time goes", answers: "Which part of a capsule's way takes how long, on average?", unit: seconds, stacked: true,
			todo:    "upload is the client's network, queue your capacity, oz is Oz. A user waits for all of it.",
			queries: []query{{"{{phase}}", `sum by (phase) (rate(caddy_oz_instant_duration_seconds_sum{@,phase!="total"}[$__rate_interval])) / sum by (phase) (rate(caddy_oz_instant_duration_seconds_count{@,phase!="total"}[$__rate_interval]))`}},
		},
		{
			title: "Whole time", answers: "How long does a user wait for a decision?", unit: seconds,
			todo:    "From the first look at a capsule to its decision, upload included.",
			queries: quantiles(`caddy_oz_instant_duration_seconds_bucket{@,phase="total"}`),
		},
		{
			title: "Sizes", answers: "How large are capsules and Oz's answers?", unit: bytes,
			todo: "Compare with max_capsule and max_answer, and with body limits of proxies in between.",
			queries: []query{
				{"capsule, median", `histogram_quantile(0.5, sum by (le) (rate(caddy_oz_instant_capsule_bytes_bucket{@}[$__rate_interval])))`},
				{"capsule, p95", `histogram_quantile(0.95, sum by (le) (rate(caddy_oz_instant_capsule_bytes_bucket{@}[$__rate_interval])))`},
				{"answer, p95", `histogram_quantile(0.95, sum by (le) (rate(caddy_oz_instant_answer_bytes_bucket{@}[$__rate_interval])))`},
			},
		},
		{
			title: "Cut from answers", answers: "How many bytes of best shots is your app spared?", unit: bytesPerSec,
			todo:    "Zero although capsules are decided: best_shot is keep or attach, or Oz sends none.",
			queries: []query{{"{{job}}", `sum by (job) (rate(caddy_oz_instant_pruned_bytes_total{@}[$__rate_interval]))`}},
		},
	}},
	{"Capacity", []panel{
		{
			title: "Slots", answers: "How many of Oz's slots are in use?", unit: count,
			todo: "At the limit for long: Oz is the bottleneck. Add an instance, then raise slots.",
			queries: []query{
				{"{{instance}}", `sum by (job, instance) (caddy_oz_instant_in_flight{@})`},
				{"{{instance}} limit", `sum by (job, instance) (caddy_oz_instant_slots{@}) > 0`},
			},
		},
		{
			title: "Slots of all gateways", answers: "Are the slots counted over all gateways?", unit: count,
			todo:    "0: Redis doesn't answer, and the gateway continues with its share. Empty without shared.",
			queries: []query{{"{{instance}}", `min by (job, instance) (caddy_oz_instant_slots_shared{@})`}},
		},
		{
			title: "Queue", answers: "How many capsules wait for a slot?", unit: count,
			todo: "Near the limit an alert fires, and at it capsules are refused with 503. More capacity at Oz helps; a longer queue only makes users wait.",
			queries: []query{
				{"{{instance}}", `sum by (job, instance) (caddy_oz_instant_queued{@})`},
				{"{{instance}} limit", `sum by (job, instance) (caddy_oz_instant_queue_limit{@}) > 0`},
			},
		},
		{
			title: "Wait for a slot", answers: "How long do capsules wait for capacity?", unit: seconds,
			todo:    "Beyond wait they are refused. See the slots and Oz's time.",
			queries: quantiles(`caddy_oz_instant_duration_seconds_bucket{@,phase="queue"}`),
		},
		{
			title: "Memory held", answers: "How much memory do waiting capsules hold?", unit: bytes,
			todo: "At the limit, new uploads are read no further. Raise memory if the machine has it.",
			queries: []query{
				{"{{instance}}", `sum by (job, instance) (caddy_oz_instant_memory_bytes{@})`},
				{"{{instance}} limit", `sum by (job, instance) (caddy_oz_instant_memory_limit_bytes{@}) > 0`},
			},
		},
		{
			title: "Refused for lack of capacity", answers: "How many capsules got 503 from the gateway, and what was short?", unit: perSecond, stacked: true,
			todo:    "queue and wait: Oz is too slow for the traffic. memory and displaced: slow uploads fill the memory.",
			queries: rates("cause", `caddy_oz_instant_capacity_refusals_total{@}`),
		},
		{
			title: "Gateways", answers: "Which gateways answer Prometheus?", unit: boolean,
			todo:    "On (1) is there. One that served oz_instant within the last day and is off has an alert.",
			limits:  []threshold{{0, "red"}, {1, "green"}},
			queries: []query{{"{{instance}}", `up{@} and on (job, instance) last_over_time(caddy_oz_instant_in_flight{@}[1d])`}},
		},
	}},
	{"Clients", []panel{
		{
			title: "Refusals", answers: "Which requests were refused without a decision?", unit: perSecond, stacked: true,
			todo:    "A kind that appears with a release of your page is a fault of the page. client-gone are users that left.",
			queries: rates("problem", `caddy_oz_instant_refusals_total{@}`),
		},
		{
			title: "Aborted uploads", answers: "Why did uploads end before they were whole?", unit: perSecond, stacked: true,
			todo:    "gone and stalled: the users' network, or a proxy in front that cuts. timeout: raise upload_timeout. memory, displaced: this gateway's capacity.",
			queries: rates("cause", `caddy_oz_instant_upload_aborted_total{@}`),
		},
		{
			title: "Session tokens", answers: "Do phones get session tokens?", unit: perSecond, stacked: true,
			todo:    "Without one no capsule is captured. Anything but issued and client-gone is a reason, as in the panel of reasons.",
			queries: rates("result", `caddy_oz_instant_session_tokens_total{@}`),
		},
	}},
	{"Replay guard", []panel{
		{
			title: "Capsules at the replay guard", answers: "How many capsules came a second time?", unit: perSecond, stacked: true,
			todo: "A burst of replayed is somebody who tries. allowed and forgotten must stay at zero: those capsules may have counted twice.",
			queries: append(rates("result", `caddy_oz_instant_replay_total{@}`),
				query{"forgotten", `sum(rate(caddy_oz_instant_replay_forgotten_total{@}[$__rate_interval]))`}),
		},
		{
			title: "Its store's time", answers: "How long does the guard's store take, by call, for 99 of 100?", unit: seconds,
			todo:    "After a second a call has failed. A Redis in the same zone takes about a millisecond.",
			queries: []query{{"{{call}}", `histogram_quantile(0.99, sum by (le, call) (rate(caddy_oz_instant_replay_store_seconds_bucket{@}[$__rate_interval])))`}},
		},
		{
			title: "Its store's errors", answers: "Does the guard's store fail?", unit: perSecond, stacked: true,
			todo:    "Failing claims end capsules as store_unavailable, or let them pass with on_error allow. Look at the store.",
			queries: rates("call", `caddy_oz_instant_replay_store_errors_total{@}`),
		},
	}},
	{"The way to Oz", []panel{
		{
			title: "Upstreams", answers: "Which upstreams does Caddy take for healthy?", unit: boolean,
			todo:    "On (1) is healthy. Upstreams of your app are here, too. Without health checks all stay on.",
			limits:  []threshold{{0, "red"}, {1, "green"}},
			queries: []query{{"{{upstream}}", `min by (upstream) (caddy_reverse_proxy_upstreams_healthy{@})`}},
		},
		{
			title: "Log-ins and refreshes", answers: "Does Oz give access tokens?", unit: perSecond, stacked: true,
			todo:    "With credentials, one refresh in four fifths of a token's life. unauthorized: the account, its password, or a clock.",
			queries: rates("result", `caddy_oz_instant_token_refreshes_total{@}`),
		},
		{
			title: "Access token's life", answers: "How long is the access token good for?", unit: seconds, ends: true,
			todo:    "It is renewed by the first call after four fifths of its life, so it falls on an idle gateway. Under a minute with traffic: see the panel before. Below zero it has ended.",
			limits:  []threshold{{0, "red"}, {60, "green"}},
			queries: []query{{"{{instance}}", `(caddy_oz_instant_access_token_expiry_timestamp_seconds{@} > 0) - time()`}},
		},
		{
			title: "Oz's certificate", answers: "How long is Oz's certificate good for?", unit: seconds, ends: true,
			todo:    "From caddy oz-instant check --textfile. Under two weeks an alert fires: renew it. Below zero it has ended.",
			limits:  []threshold{{0, "red"}, {2 * day, "orange"}, {14 * day, "green"}},
			queries: []query{{"{{upstream}}", `oz_instant_check_certificate_expiry_timestamp_seconds - time()`}},
		},
		{
			title: "Check", answers: "Does caddy oz-instant check pass?", unit: boolean,
			todo:    "On (1) is passed. Run it by hand: it says what is wrong and what to do.",
			limits:  []threshold{{0, "red"}, {1, "green"}},
			queries: []query{{"{{upstream}}", `min by (upstream) (oz_instant_check_passed)`}},
		},
		{
			title: "Since the last check", answers: "When did caddy oz-instant check last run?", unit: seconds,
			todo:    "Three hours are an alert: look at its timer.",
			limits:  []threshold{{0, "green"}, {3 * hour, "red"}},
			queries: []query{{"{{upstream}}", `time() - oz_instant_check_run_timestamp_seconds`}},
		},
	}},
}

// rates are the events a second of a counter, by some of its labels.
func rates(by, counter string) []query {
	return []query{{legend(by), "sum by (" + by + ") (rate(" + counter + "[$__rate_interval]))"}}
}

// quantiles are the usual three of a histogram.
func quantiles(buckets string) (list []query) {
	for _, q := range []struct{ name, value string }{{"median", "0.5"}, {"p95", "0.95"}, {"p99", "0.99"}} {
		list = append(list, query{q.name, "histogram_quantile(" + q.value + ", sum by (le) (rate(" + buckets + "[$__rate_interval])))"})
	}
	return list
}
