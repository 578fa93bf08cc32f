package integration_test

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// chain is Oz, Caddy and the app, as every site with oz_instant has them.
type chain struct {
	*caddyProc
	oz  *ozServer
	app *rawApp
}

// startChain starts all three. The Caddyfile finds Oz at {$OZ} and the app at {$APP}. For observe it needs the directive log.
func startChain(t testing.TB, options sandbox.Options, caddyfile string, opts ...caddyOption) *chain {
	t.Helper()
	oz, app := startSandbox(t, options), newRawApp(t)
	opts = append([]caddyOption{withEnv("OZ", oz.URL), withEnv("APP", app.Addr)}, opts...)
	return &chain{startCaddy(t, caddyfile, opts...), oz, app}
}

// await returns when Oz has seen what ok asks for.
func (o *ozServer) await(t testing.TB, ok func(sandbox.Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := o.Await(ctx, ok); err != nil {
		t.Fatalf("Oz did not see what it should: %v; it saw %+v", err, o.Stats())
	}
}

// quiet returns when Oz has nothing to do.
func (o *ozServer) quiet(t testing.TB) {
	t.Helper()
	o.await(t, func(s sandbox.Stats) bool { return s.Open == 0 })
}

// observed is what came of one capsule, looked at from every side.
type observed struct {
	answer  answer             // what the client got
	app     []rawRequest       // what the app got
	decided []logLine          // the lines "capsule decided"
	access  logLine            // the line of the access log
	counted map[string]float64 // series of decisions_total and refusals_total that moved, and by how much
}

// observe has send bring one request to the site, and collects what came of it. It must be the only request at this time.
func (x *chain) observe(t testing.TB, send func() answer) (j observed) {
	t.Helper()
	before := x.counts(t)
	x.catchUp(t) // a request before may have been answered while its lines were on their way
	accessed, decided := len(x.logLines(isAccess)), len(x.logLines(isDecided))
	x.app.Forget()
	j.answer = send()
	// The access log comes last: then everything else is written.
	j.access = x.waitForLogs(t, accessed+1, isAccess)[accessed]
	j.decided = x.logLines(isDecided)[decided:]
	j.app = x.app.Requests()
	j.counted = x.counts(t)
	maps.DeleteFunc(j.counted, func(series string, value float64) bool { return value == before[series] })
	for series := range j.counted {
		j.counted[series] -= before[series]
	}
	return j
}

var (
	isAccess  = withMsg("handled request")
	isDecided = withMsg("capsule decided")
)

// The metrics that count what came of requests: one more of one of them for each capsule.
const (
	decisionsTotal = "caddy_oz_instant_decisions_total"
	refusalsTotal  = "caddy_oz_instant_refusals_total"
)

// counts returns all series of the two.
func (p *caddyProc) counts(t testing.TB) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for line := range strings.Lines(p.Metrics(t)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || !strings.HasPrefix(series, decisionsTotal+"{") && !strings.HasPrefix(series, refusalsTotal+"{") {
			continue
		}
		number, err := strconv.ParseFloat(value, 64)
		check(t, err)
		all[series] = number
	}
	return all
}

// verdict is what must come of a capsule: a row of the decision table.
type verdict struct {
	decision, reason string

	// For decisions that reach the app: Oz's own words, as in the headers.
	status, system, quality, biometry string
	noIDs                             bool // the folder has no folder_id and no event_session_id
	sealed                            bool // there is a seal

	// For refusals: what the client gets.
	http       int
	retryAfter string // "any" for whatever the gateway thinks right

	code string // Oz's error code
}

// accepted is row 1, the only one that lets a user in.
var accepted = verdict{decision: "SUCCESS", status: "FINISHED", system: "SUCCESS", quality: "SUCCESS"}

// unavailable is a row of the decision table that ends in UNAVAILABLE.
func unavailable(reason string, http int) verdict {
	return verdict{decision: "UNAVAILABLE", reason: reason, http: http}
}

// failed is a row that ends in FAILED, with Oz's words.
func failed(reason, status, system, quality string) verdict {
	return verdict{decision: "FAILED", reason: reason, status: status, system: system, quality: quality}
}

// assert compares everything that came of a capsule with a row of the decision table.
func (want verdict) assert(t testing.TB, j observed, session string) {
	t.Helper()
	if want.http == 0 {
		want.assertApp(t, j, session)
	} else {
		want.assertProblem(t, j.answer)
		if len(j.app) != 0 {
			t.Errorf("the app was called:\n%s", j.app[0].Raw())
		}
	}
	want.assertSight(t, j)
}

// assertSight looks at the log line, the access log and the metric.
func (want verdict) assertSight(t testing.TB, j observed) {
	t.Helper()
	if len(j.decided) != 1 {
		t.Fatalf("%d lines in the log say what was decided, want 1: %v", len(j.decided), j.decided)
	}
	for place, line := range map[string]gjson.Result{"log": gjson.Parse(string(j.decided[0])), "access log": j.access.Get("oz_instant")} {
		if d, r := line.Get("decision").String(), line.Get("reason").String(); d != want.decision || r != want.reason {
			t.Errorf("the %s has %q %q, want %q %q", place, d, r, want.decision, want.reason)
		}
	}
	access := j.access.Get("oz_instant").Map()
	for name, value := range gjson.Parse(string(j.decided[0])).Map() {
		if !slices.Contains(lineOnly, name) && access[name].Raw != value.Raw {
			t.Errorf("the access log has %s %s, the log %s", name, access[name].Raw, value.Raw)
		}
	}
	series := decisionsTotal + `{decision="` + want.decision + `",reason="` + want.reason + `"}`
	if len(j.counted) != 1 || j.counted[series] != 1 {
		t.Errorf("counted: %v, want one more of %s", j.counted, series)
	}
}

// lineOnly are the fields that a line of a log has by itself, or that the access log has outside of our object.
var lineOnly = []string{"level", "ts", "logger", "msg", "traceID"}

// assertProblem compares the problem document that the client got.
func (want verdict) assertProblem(t testing.TB, a answer) {
	t.Helper()
	if a.Status != want.http || a.Header.Get("Content-Type") != "application/problem+json" || !gjson.ValidBytes(a.Body) {
		t.Fatalf("the client got %d %v %s, want %d and a problem document", a.Status, a.Header, a.Body, want.http)
	}
	doc := gjson.ParseBytes(a.Body)
	if urn := doc.Get("type").Str; !strings.HasPrefix(urn, "urn:") || !strings.HasSuffix(urn, ":"+want.reason) {
		t.Errorf("type is %q, want a URN that ends in %s", urn, want.reason)
	}
	if doc.Get("status").Int() != int64(want.http) || doc.Get("title").Str == "" || doc.Get("detail").Str == "" {
		t.Errorf("the problem document lacks something: %s", a.Body)
	}
	if code := doc.Get("error_code").Raw; code != want.code {
		t.Errorf("error_code is %q, want %q", code, want.code)
	}
	switch got := a.Header.Get("Retry-After"); {
	case want.retryAfter == "any" && !regexp.MustCompile(`^[1-9][0-9]*$`).MatchString(got):
		t.Errorf("Retry-After is %q, want some seconds", got)
	case want.retryAfter != "any" && got != want.retryAfter:
		t.Errorf("Retry-After is %q, want %q", got, want.retryAfter)
	}
}

var isUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString

// assertApp compares what the app got: exactly these reserved names, and the folder as its body.
func (want verdict) assertApp(t testing.TB, j observed, session string) {
	t.Helper()
	if len(j.app) != 1 {
		t.Fatalf("the app got %d requests, want 1; the client got %d %s", len(j.app), j.answer.Status, j.answer.Body)
	}
	r := j.app[0]
	if j.answer.Status != 200 || string(j.answer.Body) != "seen by the app\n" {
		t.Errorf("the client got %d %s, want the app's answer", j.answer.Status, j.answer.Body)
	}
	for _, name := range []string{"X-Oz-Decision", "X-Oz-Folder-Id", "Set-Cookie", "Location", "Link", "X-Accel-Redirect"} {
		if value := j.answer.Header.Get(name); value != "" {
			t.Errorf("the client got %s: %s, which is Oz's", name, value)
		}
	}
	headers := want.headers(r, session)
	if !want.noIDs && !isUUID(headers["X-Oz-Folder-Id"]) {
		t.Errorf("X-Oz-Folder-Id is %q", headers["X-Oz-Folder-Id"])
	}
	assertReserved(t, r, headers)
	assertFolder(t, r)
}

// headers are all the reserved names that the app must get, with r for what nobody knows before.
func (want verdict) headers(r rawRequest, session string) map[string]string {
	headers := map[string]string{
		"X-Oz-Decision": want.decision, "X-Oz-Reason": want.reason,
		"X-Oz-Resolution-Status": want.status, "X-Oz-System-Resolution": want.system,
		"X-Oz-Quality": want.quality, "X-Oz-Biometry": want.biometry, "X-Oz-Error-Code": want.code,
	}
	if !want.noIDs {
		headers["X-Oz-Folder-Id"], headers["X-Oz-Event-Session-Id"] = r.Value("X-Oz-Folder-Id"), session
	}
	if want.sealed {
		headers["X-Oz-Seal"] = "a JWS"
		if seal := r.Value("X-Oz-Seal"); isJWS(seal) {
			headers["X-Oz-Seal"] = seal
		}
	}
	return headers
}

// isJWS reports whether a text has the form of a seal. No forged one has.
var isJWS = regexp.MustCompile(`^[\w-]{20,}\.[\w-]{20,}\.[\w-]{20,}$`).MatchString

// assertReserved fails the test unless these are the reserved names that the app got, each on one line; an empty one is absent.
func assertReserved(t testing.TB, r rawRequest, headers map[string]string) {
	t.Helper()
	maps.DeleteFunc(headers, func(_, value string) bool { return value == "" })
	got, want := slices.Sorted(slices.Values(r.Names("x-oz-"))), slices.Sorted(maps.Keys(headers))
	if !slices.Equal(got, want) {
		t.Errorf("the app got the names %q, want %q", got, want)
	}
	for name, value := range headers {
		if r.Value(name) != value {
			t.Errorf("%s is %q, want %q", name, r.Value(name), value)
		}
	}
}

// assertFolder fails the test unless the app's body is a folder without a best shot, described by its header.
func assertFolder(t testing.TB, r rawRequest) {
	t.Helper()
	if r.Value("Content-Type") != "application/json" || r.Chunked || r.Value("Content-Length") != strconv.Itoa(len(r.Body)) {
		t.Errorf("the app's body of %d bytes is described wrongly:\n%s", len(r.Body), r.Raw())
	}
	if !gjson.ValidBytes(r.Body) || !gjson.ParseBytes(r.Body).IsObject() {
		t.Errorf("the app's body is not an object: %.2000s", r.Body)
	}
	if strings.Contains(unescapeNames(string(r.Body)), "image_b64") {
		t.Errorf("the app's body has a best shot: %.2000s", r.Body)
	}
}

// unescapeNames undoes the one escape that the sandbox writes into names.
func unescapeNames(json string) string { return strings.ReplaceAll(json, `\u005f`, "_") }
