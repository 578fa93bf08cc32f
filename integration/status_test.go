package integration_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// status returns what the gateway says of itself.
func (p *caddyProc) status(t testing.TB) gjson.Result {
	t.Helper()
	text := p.AdminGet(t, "/oz_instant/status")
	if !gjson.Valid(text) {
		t.Fatalf("not JSON: %s", text)
	}
	return gjson.Parse(text)
}

// awaitStatus returns when the only way to Oz has these values: name, value, and so on.
func (p *caddyProc) awaitStatus(t testing.TB, pairs ...string) gjson.Result {
	t.Helper()
	deadline := time.Now().Add(patience)
	for { // Caddy tells nobody when it changes
		s := p.status(t)
		missed := ""
		for i := 0; i < len(pairs); i += 2 {
			if got := s.Get("ways.0." + pairs[i]).String(); got != pairs[i+1] {
				missed += fmt.Sprintf("%s is %q, want %q; ", pairs[i], got, pairs[i+1])
			}
		}
		if missed == "" {
			return s.Get("ways.0")
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s\n%s", missed, s)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// adminAnswer is what the admin endpoint answers to a request that may be hostile.
func (p *caddyProc) adminAnswer(t testing.TB, method, path string, fields ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+p.Admin+path, nil)
	check(t, err)
	for i := 0; i < len(fields); i += 2 {
		if fields[i] == "Host" {
			req.Host = fields[i+1]
		}
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := adminDo(req)
	check(t, err)
	defer resp.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	check(t, err)
	return answer{Status: resp.StatusCode, Header: resp.Header, Body: body.Bytes()}
}

// ready fails the test unless the gateway says that it is ready, or why it is not.
func (p *caddyProc) ready(t testing.TB, want string) {
	t.Helper()
	a := p.adminAnswer(t, http.MethodGet, "/oz_instant/ready")
	status, body := 200, `{"ready":true}`
	if want != "" {
		status, body = 503, `{"ready":false,"reason":"`+want+`"}`
	}
	if a.Status != status || strings.TrimSpace(string(a.Body)) != body {
		t.Errorf("got %d %s, want %d %s", a.Status, a.Body, status, body)
	}
}

const (
	slotsMetric       = "caddy_oz_instant_slots"
	queueLimitMetric  = "caddy_oz_instant_queue_limit"
	memoryLimitMetric = "caddy_oz_instant_memory_limit_bytes"
	tokenExpiryMetric = "caddy_oz_instant_access_token_expiry_timestamp_seconds"
)

// TestStatusUnderLoad promises that the status tells what is at Oz, what waits, what is being received and what it holds, as it is;
// and that a gateway is ready while its Oz hangs.
func TestStatusUnderLoad(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, memorySite)
	before := x.awaitStatus(t, "in_flight", "0", "slots", "1", "queued", "0", "queue", "50", "uploading", "0", "held_bytes", "0",
		"memory_bytes", "8388608", "service_seconds", "0", "wait_seconds", "0", "upstreams.#", "1", "upstreams.0.address", x.oz.Addr,
		"decisions.SUCCESS", "0", "last_failures.#", "0", "access_token", "", "dynamic_upstreams", "")
	if n := len(before.Get("decisions").Map()); n != 6 {
		t.Errorf("%d decisions are counted: %s", n, before)
	}
	if since, err := time.Parse(time.RFC3339, before.Get("since").Str); err != nil || time.Since(since) > 2*patience {
		t.Errorf("since %s: %v", before.Get("since"), err)
	}
	x.oz.fault(t, "hang")
	c := x.client(t, "h2")
	var all sync.WaitGroup
	post := func() {
		all.Go(func() { c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 100_000})) })
	}
	post()
	x.awaitStatus(t, "in_flight", "1", "queued", "0", "wait_seconds", "3", "upstreams.0.requests", "1")
	post()
	x.awaitStatus(t, "in_flight", "1", "queued", "1", "wait_seconds", "6")
	slow := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 1 << 20})
	held := x.status(t).Get("ways.0.held_bytes").Int()
	conn := x.slowUpload(t, slow, 64<<10)
	s := x.awaitStatus(t, "in_flight", "1", "queued", "1", "uploading", "1")
	for deadline := time.Now().Add(patience); s.Get("held_bytes").Int() <= held; s = x.status(t).Get("ways.0") {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are held: %s", held, s)
		}
	}
	for series, name := range map[string]string{memoryMetric: "held_bytes", queuedMetric: "queued", inFlightMetric: "in_flight"} {
		x.awaitMetric(t, series, float64(x.status(t).Get("ways.0."+name).Int()))
	}
	x.ready(t, "")

	x.oz.fault(t, "") // what hangs gets no answer
	all.Wait()
	conn.send(t, string(slow[64<<10:]))
	if a := conn.read(t, "POST"); a.Status != 200 {
		t.Errorf("the slow one got %d %s", a.Status, a.Body)
	}
	s = x.awaitStatus(t, "in_flight", "0", "queued", "0", "uploading", "0", "held_bytes", "0", "wait_seconds", "0", "decisions.SUCCESS", "2",
		"upstreams.0.requests", "0", "decisions.UNAVAILABLE", "1", "last_failures.0.reason", "connection_lost")
	if s.Get("service_seconds").Num <= 0 {
		t.Errorf("nothing was measured: %s", s)
	}
}

// TestStatusWithoutCapacity promises that without limits what is at Oz is counted all the same, and not what is past it.
func TestStatusWithoutCapacity(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, bareSite)
	x.oz.fault(t, "hang")
	c := x.client(t, "h1")
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() { c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) })
	}
	x.awaitStatus(t, "in_flight", "3", "slots", "0", "queue", "0", "memory_bytes", "0", "wait_seconds", "0")
	for _, series := range []string{slotsMetric, queueLimitMetric, memoryLimitMetric} {
		if !strings.Contains(x.Metrics(t), "\n"+series+" 0\n") {
			t.Errorf("%s is not there, or not 0", series)
		}
	}
	if strings.Contains(x.Metrics(t), tokenExpiryMetric) {
		t.Error("without credentials there is " + tokenExpiryMetric)
	}
	x.oz.fault(t, "") // what hangs gets no answer
	all.Wait()
	x.awaitStatus(t, "in_flight", "0", "decisions.UNAVAILABLE", "3", "service_seconds", "0")
}

// TestStatusFailures promises that each failure is recorded by its reason, the newest first, and counted with the decisions.
func TestStatusFailures(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	oz_instant /hang {$OZ} {
		timeout 500ms
	}
	oz_instant /bound {$OZ} {
		require meta_data.transaction_id {http.request.header.X-Order}
	}
	reverse_proxy {$APP}
}`)
	c := x.client(t, "h1")
	var reasons []string
	counts := map[string]int64{}
	for _, row := range []struct{ path, fault, outcome, decision, reason string }{
		{"/verify", "status:401", "", "UNAVAILABLE", "unauthorized"},
		{"/verify", "status:503", "", "UNAVAILABLE", "overloaded"},
		{"/verify", "status:413", "", "UNAVAILABLE", "too_large_for_oz"},
		{"/verify", "status:404", "", "UNAVAILABLE", "unexpected_status"},
		{"/verify", "truncated", "", "UNAVAILABLE", "malformed_answer"},
		{"/verify", "reset", "", "UNAVAILABLE", "connection_lost"},
		{"/hang", "hang", "", "UNAVAILABLE", "timeout"},
		{"/verify", "oz-error:5", "", "INVALID", "container"},
		{"/bound", "", "SUCCESS", "INVALID", "binding"},
		{"/verify", "", "FAILED", "FAILED", "analysis_failed"},
	} {
		x.oz.fault(t, row.fault)
		for range 2 {
			c.post(t, row.path, x.oz.Capsule(sandbox.CapsuleSpec{Outcome: row.outcome}))
		}
		reasons = append([]string{row.reason}, reasons...)
		counts[row.decision] += 2
		s := x.awaitStatus(t, "last_failures.0.reason", row.reason, "last_failures.0.count", "2", "last_failures.#", fmt.Sprint(len(reasons)))
		last, err := time.Parse("2006-01-02T15:04:05Z", s.Get("last_failures.0.time").Str)
		if err != nil || time.Since(last) > patience {
			t.Errorf("%s: the time is %s: %v", row.reason, s.Get("last_failures.0.time"), err)
		}
		for decision, n := range counts {
			if got := s.Get("decisions." + decision).Int(); got != n {
				t.Errorf("after %s: %d times %s, want %d", row.reason, got, decision, n)
			}
		}
	}
	var got []string
	for _, f := range x.status(t).Get("ways.0.last_failures").Array() {
		got = append(got, f.Get("reason").Str)
	}
	if strings.Join(got, " ") != strings.Join(reasons, " ") {
		t.Errorf("the order is %v, want %v", got, reasons)
	}
	x.ready(t, "") // it doesn't depend on Oz
}

// TestStatusToken promises the state of the access token, in status and gauge, without the token.
func TestStatusToken(t *testing.T) {
	t.Parallel()
	x := startChain(t, accountOptions(), "{\n\tmetrics\n}"+accountSite, withAccount...)
	c := x.client(t, "h1")
	post := func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) }
	x.awaitStatus(t, "access_token.state", "none", "access_token.expires_in_seconds", "0")
	if !strings.Contains(x.Metrics(t), "\n"+tokenExpiryMetric+" 0\n") {
		t.Error("the gauge is not 0 without a token")
	}
	if a := post(); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	s := x.awaitStatus(t, "access_token.state", "valid")
	left, expiry := s.Get("access_token.expires_in_seconds").Float(), x.Metric(t, tokenExpiryMetric)
	if until := expiry - float64(time.Now().Unix()); left < 60 || left > 3600 || until < left-patience.Seconds() || until > left+2 {
		t.Errorf("it expires in %v s, and by the gauge in %v s", left, until)
	}
	check(t, x.Reload("{\n\tmetrics\n}"+accountSite))
	x.awaitStatus(t, "access_token.state", "valid")
	x.oz.fault(t, "hang@auth")
	x.oz.RevokeSessions()
	post()
	x.awaitStatus(t, "access_token.state", "renewing", "access_token.expires_in_seconds", "0")
	if n := x.Metric(t, tokenExpiryMetric); n != 0 {
		t.Errorf("the gauge is %v", n)
	}
	x.oz.fault(t, "") // what hangs gets no answer
	x.awaitStatus(t, "access_token.state", "failed")
	post() // not sent: the next log-in must wait a while
	x.awaitStatus(t, "access_token.state", "failed", "last_failures.0.reason", "connection_lost", "last_failures.1.reason", "unauthorized")
}

// statusSites has two blocks of one way to Oz, and one of another.
const statusSites = `
{
	metrics
}
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		timeout 10m
		capacity {
			slots {$SLOTS}
			queue {$QUEUE}
		}
	}
	oz_instant /same {$OZ} {
		timeout 1m
		capacity {
			slots {$SLOTS}
			queue {$QUEUE}
		}
	}
	oz_instant /other {$OZ} {
		base_path /base
		capacity {
			memory 64MiB
		}
	}
	reverse_proxy {$APP}
}`

// TestStatusOverReloads promises that two blocks with one way to Oz are one, that what is counted survives reloads and a config that
// fails to load, also in the middle of a capsule, and that limits are those in force: in status and gauges.
func TestStatusOverReloads(t *testing.T) {
	t.Parallel()
	site := func(slots, queue int) string {
		return strings.NewReplacer("{$SLOTS}", fmt.Sprint(slots), "{$QUEUE}", fmt.Sprint(queue)).Replace(statusSites)
	}
	x := startChain(t, sandbox.Options{}, site(2, 3))
	c := x.client(t, "h2")
	post := func(path string) int { return c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{})).Status }
	if post("/verify") != 200 || post("/same") != 200 || post("/other") == 200 {
		t.Error("the capsules were decided otherwise")
	}
	wantLimits := func(slots, queue, memory float64) {
		t.Helper()
		for series, want := range map[string]float64{slotsMetric: slots, queueLimitMetric: queue, memoryLimitMetric: memory} {
			if got := x.Metric(t, series); got != want {
				t.Errorf("%s is %v, want %v", series, got, want)
			}
		}
	}
	s := x.awaitStatus(t, "decisions.SUCCESS", "2", "slots", "2", "queue", "3")
	ways := x.status(t).Get("ways").Array()
	if len(ways) != 2 || ways[1].Get("base_path").Str != "/base" || ways[1].Get("decisions.SUCCESS").Int() != 0 || ways[1].Get("memory_bytes").Int() != 64<<20 {
		t.Errorf("%s", ways)
	}
	wantLimits(2, 3, 64<<20)

	x.oz.fault(t, "hang")
	done := make(chan int, 1)
	go func() { done <- post("/verify") }()
	x.awaitStatus(t, "in_flight", "1")
	for n := range 20 {
		check(t, x.Reload(site(2+n%5, n)))
		x.awaitStatus(t, "in_flight", "1", "decisions.SUCCESS", "2", "slots", fmt.Sprint(2+n%5), "queue", fmt.Sprint(n), "since", s.Get("since").Str)
	}
	wantLimits(6, 19, 64<<20)
	bad := site(9, 9) + "\nhttp://bad.test:{$HTTP_PORT} {\n\toz_instant http://oz {\n\t\taccess_token {env.NOT_SET}\n\t}\n}"
	if err := x.Reload(bad); err == nil {
		t.Error("a bad config was loaded")
	}
	x.ready(t, "")
	x.awaitStatus(t, "in_flight", "1", "slots", "6", "queue", "19")
	wantLimits(6, 19, 64<<20)
	x.oz.fault(t, "") // what hangs gets no answer
	<-done
	x.awaitStatus(t, "in_flight", "0", "decisions.SUCCESS", "2", "decisions.UNAVAILABLE", "1")

	// Without oz_instant there is nothing to be ready for, and later everything begins anew.
	check(t, x.Reload("{\n\tmetrics\n}\n{$SITE} {\n\trespond ok\n}"))
	x.ready(t, "the loaded config has no oz_instant")
	if s := x.status(t); s.Get("ready").Bool() || s.Get("ways").Raw != "[]" {
		t.Errorf("without oz_instant: %s", s)
	}
	check(t, x.Reload(site(1, 0)))
	x.ready(t, "")
	x.awaitStatus(t, "decisions.SUCCESS", "0", "slots", "1", "queue", "0")
	wantLimits(1, 0, 64<<20)
}

// TestStatusUpstreams promises the health of upstreams as the choice among them sees it, of dynamic ones, too.
func TestStatusUpstreams(t *testing.T) {
	t.Parallel()
	dead := deadAddress(t)
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /verify http://`+dead+` {$OZ} {
		lb_policy first
		lb_retries 1
		fail_duration 10m
		health_uri /api/version
		health_interval 50ms
	}
	reverse_proxy {$APP}
}`)
	x.awaitStatus(t, "upstreams.#", "2", "upstreams.0.address", dead, "upstreams.0.healthy", "false", "upstreams.1.healthy", "true")
	if a := x.client(t, "h1").post(t, "/verify", x.anyCapsule()); a.Status != 200 {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
	check(t, x.Reload(`
{$SITE} {
	log
	oz_instant /verify http://`+dead+` {$OZ} {
		lb_policy first
		lb_retries 1
		fail_duration 10m
	}
	reverse_proxy {$APP}
}`))
	x.awaitStatus(t, "upstreams.0.healthy", "true", "upstreams.0.fails", "0") // nobody has looked
	if a := x.client(t, "h1").post(t, "/verify", x.anyCapsule()); a.Status != 200 {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
	x.awaitStatus(t, "upstreams.0.healthy", "false", "upstreams.0.fails", "1", "upstreams.1.healthy", "true", "upstreams.1.fails", "0", "decisions.SUCCESS", "2")

	_, port, _ := strings.Cut(x.oz.Addr, ":")
	check(t, x.Reload(`
{$SITE} {
	log
	oz_instant /verify {
		dynamic a localhost `+port+` {
			versions ipv4
		}
	}
	reverse_proxy {$APP}
}`))
	x.awaitStatus(t, "dynamic_upstreams", "a", "upstreams.#", "0")
	if a := x.client(t, "h1").post(t, "/verify", x.anyCapsule()); a.Status != 200 {
		t.Errorf("got %d %s", a.Status, a.Body)
	}
	x.awaitStatus(t, "dynamic_upstreams", "a", "upstreams.#", "1", "upstreams.0.address", x.oz.Addr, "upstreams.0.healthy", "true")
}

// TestStatusIsForOperators promises that pages of other sites can't read it, that it changes nothing, and that it has no secret: no
// token, no password, no header of header_up.
func TestStatusIsForOperators(t *testing.T) {
	t.Parallel()
	const apiKey = "canary-in-header-up"
	x := startChain(t, accountOptions(), strings.Replace(accountSite, "session_token", "header_up X-Api-Key "+apiKey+"\n\t\tsession_token", 1), withAccount...)
	if a := x.client(t, "h1").post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	for _, path := range []string{"/oz_instant/status", "/oz_instant/ready"} {
		for _, test := range []struct {
			method string
			fields []string
			want   int
		}{
			{"GET", nil, 200}, {"HEAD", nil, 200}, {"GET", []string{"Origin", "http://" + x.Admin}, 200},
			{"POST", nil, 405}, {"PUT", nil, 405}, {"DELETE", nil, 405}, {"OPTIONS", nil, 405},
			{"GET", []string{"Origin", "https://evil.example"}, 403}, {"POST", []string{"Origin", "https://evil.example"}, 403},
			{"GET", []string{"Host", "evil.example"}, 403}, {"GET", []string{"Origin", "null"}, 400}, {"GET", []string{"Sec-Fetch-Mode", "no-cors"}, 400},
		} {
			a := x.adminAnswer(t, test.method, path, test.fields...)
			if a.Status != test.want || a.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s %s %v: got %d %s, want %d", test.method, path, test.fields, a.Status, a.Body, test.want)
			}
			if a.Status == 405 && a.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: Allow is %q", test.method, a.Header.Get("Allow"))
			}
		}
	}
	secrets := [][]byte{[]byte(email), []byte(password), []byte(apiKey)}
	for _, r := range x.oz.Requests() {
		if token := r.Header.Get("X-Forensic-Access-Token"); token != "" {
			secrets = append(secrets, []byte(token))
		}
	}
	if len(secrets) != 4 {
		t.Fatalf("found %d secrets to look for, want 4", len(secrets))
	}
	assertNowhere(t, map[string][]byte{"status": []byte(x.status(t).Raw)}, secrets)
	x.assertNoCanary(t, []byte(email), []byte(password), secrets[3])
}
