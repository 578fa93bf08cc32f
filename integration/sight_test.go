package integration_test

import (
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// tracedSite has all calls that there are to Oz, below a server span.
const tracedSite = `{
	metrics
}
{$SITE} {
	log
	tracing {
		span verify
	}
	oz_instant /verify {$OZ} {
		session_token /token
	}
	oz_instant /match {$OZ} {
		biometry {
			reference /profile/photo
		}
	}
	oz_instant /down {$NOWHERE}
	reverse_proxy {$APP}
}`

// withConsoleSpans has a Caddy print its spans.
func withConsoleSpans(p *caddyProc) {
	p.cmd.Env = append(p.cmd.Env, "OTEL_TRACES_EXPORTER=console", "OTEL_BSP_SCHEDULE_DELAY=100")
}

// spans returns the first n spans of a trace that are ours, and the server's.
func (p *caddyProc) spans(t testing.TB, trace string, n int) (server logLine, ours []logLine) {
	t.Helper()
	for _, span := range p.waitForLogs(t, n+1, withField("SpanContext.TraceID", trace)) {
		if span.Get("SpanKind").Int() == spanServer {
			server = span
		} else {
			ours = append(ours, span)
		}
	}
	return server, ours
}

const (
	spanServer = 2
	spanClient = 3
)

// attributes returns those of a span.
func attributes(span logLine) map[string]string {
	all := map[string]string{}
	for _, a := range span.Get("Attributes").Array() {
		all[a.Get("Key").Str] = a.Get("Value.Value").String()
	}
	return all
}

// TestSpans promises a client span for each call to Oz, below the server's span and with what came of it, whose context Oz gets:
// what Oz does is the span's child, and nobody else's. The log's line and the access log name the same trace.
func TestSpans(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BestShotSize: 60_000}, tracedSite, withConsoleSpans, withEnv("NOWHERE", loopback(freePort(t))))
	photos(x.app, map[string]string{"user=alice": photoAnswer(sandbox.Portrait("alice", 300))})
	host, port, err := net.SplitHostPort(x.oz.Addr)
	check(t, err)
	answered := map[string]string{"server.address": host, "server.port": port, "http.response.status_code": "201", "oz_instant.upstream_tries": "1"}
	with := func(base map[string]string, pairs ...string) map[string]string {
		all := maps.Clone(base)
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i]] = pairs[i+1]
		}
		return all
	}
	type wanted struct {
		name, status string
		attributes   map[string]string // sizes are looked at apart
	}
	var number int
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, test := range []struct {
			name, path, fault string
			spans             []wanted
		}{
			{"success", "/verify", "", []wanted{{"oz_instant.analyze", "Unset", with(answered, "oz_instant.decision", "SUCCESS")}}},
			{"declined", "/verify", "outcome:DECLINED", []wanted{{"oz_instant.analyze", "Unset", with(answered, "oz_instant.decision", "DECLINED")}}},
			{"error", "/verify", "status:500", []wanted{{"oz_instant.analyze", "Error", with(answered, "http.response.status_code", "500",
				"oz_instant.decision", "UNAVAILABLE", "oz_instant.reason", "unexpected_status", "error.type", "unexpected_status")}}},
			{"down", "/down", "", []wanted{{"oz_instant.analyze", "Error", map[string]string{"oz_instant.upstream_tries": "1",
				"oz_instant.decision": "UNAVAILABLE", "oz_instant.reason": "unreachable", "error.type": "unreachable"}}}},
			{"match", "/match", "", []wanted{
				{"oz_instant.analyze", "Unset", with(answered, "oz_instant.decision", "SUCCESS")},
				{"oz_instant.match", "Unset", with(answered, "oz_instant.decision", "SUCCESS")},
			}},
			{"session token", "/token", "", []wanted{{"oz_instant.session_token", "Unset", with(answered, "http.response.status_code", "200")}}},
		} {
			t.Run(test.name, func(t *testing.T) {
				x.oz.quiet(t)
				x.oz.Forget()
				x.oz.fault(t, test.fault)
				number++
				trace := fmt.Sprintf("4bf92f3577b34da6a3ce929d0e0e%04x", number)
				fields := []string{"Traceparent", "00-" + trace + "-00f067aa0ba902b7-01", "Tracestate", "vendor=1", "Baggage", "user=canary", "Cookie", "user=alice"}
				if test.path == "/token" {
					c.get(t, test.path, fields...)
				} else {
					c.post(t, test.path, x.oz.Capsule(sandbox.CapsuleSpec{Person: "alice"}), fields...)
				}
				server, ours := x.spans(t, trace, len(test.spans))
				parents := map[string]bool{}
				for i, want := range test.spans {
					got := ours[i]
					if got.Get("Name").Str != want.name || got.Get("SpanKind").Int() != spanClient || got.Get("Status.Code").Str != want.status {
						t.Errorf("the span is %s", got)
					}
					if got.Get("Parent.SpanID").Str != server.Get("SpanContext.SpanID").Str {
						t.Errorf("%s is not a child of the server's span %s", got, server)
					}
					parents["00-"+trace+"-"+got.Get("SpanContext.SpanID").Str+"-01"] = true
					assertAttributes(t, attributes(got), want.attributes)
				}
				for _, r := range x.oz.Received() {
					if !parents[r.Header.Get("Traceparent")] || r.Header.Get("Tracestate") != "vendor=1" || r.Header.Get("Baggage") != "" {
						t.Errorf("Oz got %v, the spans are %v", r.Header, parents)
					}
				}
				for _, logger := range []string{"http.handlers.oz_instant", "http.log.access"} {
					x.waitForLog(t, withLogger(logger), withField("traceID", trace))
				}
			})
		}
	})
}

// assertAttributes compares a span's attributes. Sizes are not known before.
func assertAttributes(t testing.TB, got, want map[string]string) {
	t.Helper()
	if status := want["http.response.status_code"]; status == "" {
		delete(got, "server.address") // nobody is there
		delete(got, "server.port")
	}
	for _, size := range []string{"oz_instant.capsule_bytes", "oz_instant.answer_bytes", "oz_instant.pruned_bytes"} {
		delete(got, size)
	}
	if !maps.Equal(got, want) {
		t.Errorf("attributes are %v, want %v", got, want)
	}
}

// TestSpanSizes promises that a span tells the sizes of the capsule, of Oz's answer and of what was cut out of it.
func TestSpanSizes(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BestShotSize: 60_000}, tracedSite, withConsoleSpans, withEnv("NOWHERE", "127.0.0.1:1"))
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 300_000})
	j := x.observe(t, func() answer { return x.client(t, "h1").post(t, "/verify", capsule) })
	line := j.decided[0]
	_, ours := x.spans(t, line.Get("traceID").Str, 1)
	got := attributes(ours[0])
	for attribute, field := range map[string]string{
		"oz_instant.capsule_bytes": "capsule_bytes", "oz_instant.answer_bytes": "answer_bytes", "oz_instant.pruned_bytes": "cut_bytes",
	} {
		if want := line.Get(field).String(); got[attribute] != want || len(want) < 5 {
			t.Errorf("%s is %s, the log's %s is %s", attribute, got[attribute], field, want)
		}
	}
	if got["oz_instant.capsule_bytes"] != fmt.Sprint(len(capsule)) {
		t.Errorf("%v for a capsule of %d bytes", got, len(capsule))
	}
}

// TestSpanFormats promises that Oz gets the span's context in the formats of OTEL_PROPAGATORS, as Caddy's own proxies send it, and
// then not in that of the client.
func TestSpanFormats(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, tracedSite, withConsoleSpans, withEnv("OTEL_PROPAGATORS", "b3"), withEnv("NOWHERE", "127.0.0.1:1"))
	x.client(t, "h1").post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), "Traceparent", traceparent, "Tracestate", "vendor=1")
	line := x.waitForLog(t, isDecided)
	_, ours := x.spans(t, line.Get("traceID").Str, 1)
	got := x.oz.Received()[0].Header
	want := line.Get("traceID").Str + "-" + ours[0].Get("SpanContext.SpanID").Str + "-1"
	if got.Get("B3") != want || got.Get("Traceparent")+got.Get("Tracestate") != "" {
		t.Errorf("Oz got %v, want b3: %s", got, want)
	}
}

// TestSpansOnlyWithTracing promises that a site without Caddy's tracing makes no span, and that the client's own trace goes to Oz.
func TestSpansOnlyWithTracing(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite, withConsoleSpans)
	j := x.observe(t, func() answer {
		return x.client(t, "h2").post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}), "Traceparent", traceparent)
	})
	if got := x.oz.Received()[0].Header.Get("Traceparent"); got != traceparent {
		t.Errorf("Oz got the trace %q", got)
	}
	if spans := x.logLines(having(`"SpanContext"`)); len(spans) != 0 || j.decided[0].Get("traceID").Exists() {
		t.Errorf("spans without tracing: %v", spans)
	}
}

// TestDecisionEvent promises one event for each capsule that was decided, with the words and ids of the decision and nothing else.
// Caddy's log at debug level has all events.
func TestDecisionEvent(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, smokeSite)
	c := x.client(t, "h1")
	for _, outcome := range []string{"SUCCESS", "DECLINED"} {
		x.oz.fault(t, "outcome:"+outcome)
		c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}))
	}
	x.oz.fault(t, "")
	c.post(t, "/verify", []byte("no capsule"))
	c.post(t, "/verify", nil)     // nothing is decided
	x.waitForLogs(t, 4, isAccess) // which come last
	lines := x.logLines(isDecided)
	events := x.logLines(withLogger("events"), withField("name", "oz_instant.decision"))
	if len(events) != len(lines) {
		t.Fatalf("%d events for %d decisions", len(events), len(lines))
	}
	for i, event := range events {
		data := event.Get("data")
		for key, value := range data.Map() {
			if !slices.Contains(eventKeys, key) || value.String() != lines[i].Get(key).String() {
				t.Errorf("event %d has %s %s, the log's line is %s", i, key, value, lines[i])
			}
		}
		if len(data.Map()) != len(eventKeys) {
			t.Errorf("the event is %s", data)
		}
	}
}

var eventKeys = []string{
	"decision", "reason", "folder_id", "event_session_id", "resolution_status", "system_resolution", "quality", "biometry", "error_code", "best_shot",
}

// TestSightSurvivesReloads promises that a hundred reloads, with capsules in progress, leave counters that count on, gauges that
// come back to nothing, and neither goroutines nor collectors of the configs before.
func TestSightSurvivesReloads(t *testing.T) {
	t.Parallel()
	const reloads = 100
	site := func(number int) string {
		return fmt.Sprintf(`{
	metrics
}
{$SITE} {
	log
	tracing
	oz_instant /verify {$OZ} {
		capacity {
			slots 2
			queue 4
			wait 15s
			memory 64MiB
		}
		upload_timeout %ds
		session_token /token
	}
	reverse_proxy {$APP}
}`, 20+number)
	}
	x := startChain(t, sandbox.Options{}, site(0), withConsoleSpans)
	x.uploadOverReload(t, "h1", "warm")
	before := goroutines(t, x.caddyProc, "")
	capsules := 1
	for number := range reloads {
		if number%10 != 0 {
			check(t, x.Reload(site(number+1)))
			continue
		}
		began := x.oz.Stats().Received
		done := make(chan struct{})
		go func() {
			defer close(done)
			x.uploadOverReload(t, "h1", fmt.Sprint("reload-", number))
		}()
		x.oz.await(t, func(s sandbox.Stats) bool { return s.Received > began || s.Open > 0 })
		check(t, x.Reload(site(number+1)))
		<-done
		capsules++
	}
	x.oz.quiet(t)
	text := x.Metrics(t)
	for _, series := range []string{
		`caddy_oz_instant_decisions_total{decision="SUCCESS",reason=""} `, `caddy_oz_instant_own_seconds_count `, `caddy_oz_instant_answer_bytes_count `,
		`caddy_oz_instant_analyses_total{resolution_status="SUCCESS",type="QUALITY"} `, `caddy_oz_instant_duration_seconds_count{phase="total"} `,
	} {
		if !strings.Contains(text, "\n"+series+fmt.Sprint(capsules)+"\n") {
			t.Errorf("%sis not %d", series, capsules)
		}
	}
	for _, gauge := range []string{"in_flight", "queued", "memory_bytes"} {
		if !strings.Contains(text, "\ncaddy_oz_instant_"+gauge+" 0\n") {
			t.Errorf("%s is not 0 with nothing in progress", gauge)
		}
	}
	// Caddy's own end later, such as the checks of upstreams and the connections to the app.
	x.settles(t, "goroutines", before+reloads/2-1, func(t testing.TB) int { return goroutines(t, x.caddyProc, "") })
	x.settles(t, "goroutines of the module", 0, func(t testing.TB) int { return goroutines(t, x.caddyProc, "/caddymodule") })
}

// goroutines counts those whose stacks have a text.
func goroutines(t testing.TB, p *caddyProc, text string) (n int) {
	t.Helper()
	for stack := range strings.SplitSeq(p.Goroutines(t), "\n\n") {
		if strings.HasPrefix(stack, "goroutine ") && strings.Contains(stack, text) {
			n++
		}
	}
	return n
}

// TestAbortedUploads promises that an upload that breaks off is counted once, by its cause.
func TestAbortedUploads(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `{
	metrics
}
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_capsule 200KiB
	}
	oz_instant /slow {$OZ} {
		upload_timeout 1s
	}
	reverse_proxy {$APP}
}`)
	for name, test := range map[string]struct {
		cause string
		send  func(t *testing.T)
	}{
		"left": {"gone", func(t *testing.T) {
			conn := x.dialRaw(t)
			conn.sendHead(t, postHead("/verify", 100_000)...)
			conn.send(t, strings.Repeat("x", 50_000))
			x.oz.await(t, func(s sandbox.Stats) bool { return s.Open > 0 })
			conn.Close()
		}},
		"too slow": {"timeout", func(t *testing.T) {
			conn := x.dialRaw(t)
			conn.send(t, strings.Join(postHead("/slow", 100_000), "\r\n")+"\r\n\r\nhalf") // at once: else it may be too late for the half
			conn.readLast(t, "POST")
		}},
		"too large": {"too_large", func(t *testing.T) {
			x.client(t, "h2").postStream(t, "/verify", strings.NewReader(strings.Repeat("x", 300<<10)))
		}},
		"wrong framing": {"unreadable", func(t *testing.T) {
			conn := x.dialRaw(t)
			conn.sendHead(t, postHead("/verify", -1)...)
			conn.sendChunk(t, "half")
			conn.send(t, "nonsense\r\n")
			conn.readLast(t, "POST")
		}},
		"too short": {"short", func(t *testing.T) {
			stream := x.openH3(t, "/verify", 100_000)
			stream.send(t, "half")
			check(t, stream.Close())
		}},
		"nothing sent": {"", func(t *testing.T) {
			conn := x.dialRaw(t)
			conn.sendHead(t, postHead("/slow", 100_000)...)
			conn.readLast(t, "POST")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			x.oz.quiet(t)
			before := aborted(x.Metrics(t))
			refused := len(x.logLines(withMsg("capsule refused")))
			test.send(t)
			x.waitForLogs(t, refused+1, withMsg("capsule refused"))
			after := aborted(x.Metrics(t))
			if test.cause != "" {
				before["{cause=\""+test.cause+"\"}"]++
			}
			if !maps.Equal(before, after) {
				t.Errorf("counted %v, want %v", after, before)
			}
		})
	}
}

var abortedSeries = regexp.MustCompile(`(?m)^caddy_oz_instant_upload_aborted_total(\{.*\}) (\d+)$`)

func aborted(metrics string) map[string]int {
	all := map[string]int{}
	for _, match := range abortedSeries.FindAllStringSubmatch(metrics, -1) {
		all[match[1]] = int(gjson.Parse(match[2]).Int())
	}
	return all
}
