package integration_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/deploy/observability"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// With -picture the traffic lasts longer, and the dashboard is drawn from it:
//
//	go test ./integration -run TestObservability -picture ../docs/images/dashboard.svg -traffic 150s
var (
	pictureFile = flag.String("picture", "", "draw the dashboard into this file")
	trafficTime = flag.Duration("traffic", 4*time.Second, "how long the dashboard and the rules are shown traffic")
)

const observedSite = `
{
	metrics
}
{$SITE} {
	oz_instant /verify {$OZ} {
		session_token /session_token
		credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}
		timeout 3s
		capacity {
			slots 3
			queue 8
			memory 64MiB
			wait 4s
			shared redis {$STORE}
		}
		replay_guard memory
	}
	reverse_proxy {$APP}
}`

// TestObservability promises that the dashboard and the rules fit what a gateway shows: a real Prometheus, which scrapes a gateway
// under traffic of every kind, has series for each of their queries.
func TestObservability(t *testing.T) {
	t.Parallel()
	program(t, "prometheus")
	redis := startRedis(t)
	x := startChain(t, sandbox.Options{
		Accounts: map[string]string{email: password}, SessionLife: max(20*time.Second, *trafficTime/4), FixedExpiry: true, AnalysisTime: 150 * time.Millisecond, ReuseTokens: true,
	}, observedSite, slices.Concat(withAccount, []caddyOption{withEnv("STORE", "redis://"+redis.Addr)})...)
	p := startPrometheus(t, map[string]string{"oz": x.Admin, "node": serveTextfile(t, textfileOfCheck(t))})
	begin := time.Now()
	x.traffic(t, *trafficTime)

	rules, err := p.Rules(t.Context())
	check(t, err)
	queries := slices.Concat(dashboardQueries(t), ruleQueries(t, rules))
	assertAnswered(t, p, queries)
	assertNames(t, p, queries)
	assertShown(t, p, queries)
	picture, err := observability.Draw(t.Context(), readDashboard(t), p, begin, time.Now())
	check(t, err)
	assertPicture(t, picture)
	if *pictureFile != "" {
		check(t, os.WriteFile(*pictureFile, picture, 0o644))
	}
}

// assertPicture fails the test unless a picture is XML and shows every panel, with curves.
func assertPicture(t testing.TB, picture []byte) {
	t.Helper()
	texts, curves := map[string]bool{}, 0
	for decoder := xml.NewDecoder(bytes.NewReader(picture)); ; {
		token, err := decoder.Token()
		if err == io.EOF {
			break
		}
		check(t, err)
		switch token := token.(type) {
		case xml.CharData:
			texts[string(token)] = true
		case xml.StartElement:
			if slices.ContainsFunc(token.Attr, func(a xml.Attr) bool { return a.Name.Local == "class" && a.Value == "line" }) {
				curves++
			}
		}
	}
	for _, panel := range readDashboard(t).Panels {
		if !texts[panel.Title] {
			t.Errorf("the picture lacks the panel %s", panel.Title)
		}
	}
	if curves < 40 {
		t.Errorf("the picture has %d curves", curves)
	}
}

// textfileOfCheck has the command check an Oz that has a certificate, and returns its file of metrics.
func textfileOfCheck(t testing.TB) string {
	t.Helper()
	oz, cert := startSandbox(t, sandbox.Options{}), testCert(t)
	address := serveTLS(t, cert, oz.Sandbox)
	folder := t.TempDir()
	config, file := filepath.Join(folder, "Caddyfile"), filepath.Join(folder, "oz.prom")
	check(t, os.WriteFile(config, []byte("http://:80 {\n oz_instant /verify https://"+address+" {\n transport http {\n tls_trust_pool file "+cert.certFile+"\n }\n }\n}\n"), 0o600))
	got := runCaddy(t, "", nil, "oz-instant", "check", "--config", config, "--textfile", file)
	if got.Exit != 0 {
		t.Fatalf("check: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
	return file
}

// traffic sends for so long what a gateway meets: capsules of every outcome, requests to refuse, uploads that break off, capsules
// that were used, a crowd, and in the middle an outage of Oz.
func (x *chain) traffic(t testing.TB, long time.Duration) {
	t.Helper()
	c := x.client(t, "h1")
	var all sync.WaitGroup
	defer all.Wait()
	kinds := x.kindsOfTraffic(t, c)
	phases := []struct {
		until float64 // of the time
		pause time.Duration
		crowd int // that comes at once
		fault string
	}{
		{0.15, 400 * time.Millisecond, 0, ""}, {0.3, 100 * time.Millisecond, 0, ""}, {0.4, 250 * time.Millisecond, 0, ""},
		{0.5, 150 * time.Millisecond, 0, "close"}, {0.55, 150 * time.Millisecond, 0, "status:503"},
		{0.7, 120 * time.Millisecond, 0, ""}, {0.85, 28 * time.Millisecond, 20, ""}, {1, 300 * time.Millisecond, 0, ""},
	}
	next, begins := 0, 0.0
	for _, phase := range phases {
		x.oz.fault(t, phase.fault)
		for range phase.crowd { // more than slots and queue have room for
			all.Go(func() { x.sendCapsule(t, c, sandbox.CapsuleSpec{}) })
		}
		// By number, not by the clock: a busy machine must not leave out what a phase is there for.
		for left := time.Duration((phase.until - begins) * float64(long)); left > 0; left -= phase.pause {
			all.Go(kinds[next%len(kinds)])
			time.Sleep(min(phase.pause, left))
			next++
		}
		begins = phase.until
	}
}

// kindsOfTraffic are what a client does, more often what clients do more often.
func (x *chain) kindsOfTraffic(t testing.TB, c *client) []func() {
	capsule := func(spec sandbox.CapsuleSpec) func() { return func() { x.sendCapsule(t, c, spec) } }
	send := func(method, path, contentType, body string) func() {
		return func() { x.send(c, c.request(t, method, path, strings.NewReader(body), "Content-Type", contentType)) }
	}
	success := capsule(sandbox.CapsuleSpec{PayloadSize: 300_000})
	token := send(http.MethodGet, "/session_token", "", "")
	return []func(){
		token, success, capsule(sandbox.CapsuleSpec{Outcome: sandbox.Declined}), success,
		send(http.MethodPut, "/verify", "", ""), success, func() { x.sendTwice(t, c) }, token,
		capsule(sandbox.CapsuleSpec{Outcome: sandbox.OperatorRequired}), success, func() { x.breakOff(t) }, success,
		capsule(sandbox.CapsuleSpec{Damage: sandbox.DamageToken}), capsule(sandbox.CapsuleSpec{Outcome: sandbox.Failed}),
		send(http.MethodPost, "/verify", "text/plain", "no capsule"), success,
	}
}

func (x *chain) sendCapsule(t testing.TB, c *client, spec sandbox.CapsuleSpec) {
	x.send(c, c.postRequest(t, "/verify", strings.NewReader(string(x.oz.Capsule(spec)))))
}

// sendTwice posts a capsule, and then again.
func (x *chain) sendTwice(t testing.TB, c *client) {
	capsule := string(x.oz.Capsule(sandbox.CapsuleSpec{}))
	for range 2 {
		x.send(c, c.postRequest(t, "/verify", strings.NewReader(capsule)))
	}
}

// send makes a request. What comes of it is for the metrics to tell.
func (x *chain) send(c *client, req *http.Request) { _, _ = c.try(req) }

// breakOff uploads half of a capsule.
func (x *chain) breakOff(t testing.TB) {
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 100_000})
	conn := x.dialRaw(t)
	defer conn.Close()
	conn.sendHead(t, postHead("/verify", len(capsule))...)
	_, _ = conn.Write(capsule[:len(capsule)/2]) // which a gateway without room may not read
}

// asked is a query of the dashboard or of a rule.
type asked struct {
	by     string // the panel or the alert
	expr   string
	legend string // of a panel's series
}

func readDashboard(t testing.TB) *observability.Dashboard {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(observabilityFolder(t), "dashboard.json"))
	check(t, err)
	d := new(observability.Dashboard)
	check(t, json.Unmarshal(text, d))
	return d
}

// dashboardQueries are the dashboard's, as Grafana would ask them.
func dashboardQueries(t testing.TB) (list []asked) {
	t.Helper()
	for _, panel := range readDashboard(t).Panels {
		for _, target := range panel.Targets {
			list = append(list, asked{panel.Title, observability.Fill(target.Expr, 30*time.Second), target.LegendFormat})
		}
	}
	return list
}

// comparison is an operator between two values, and not the matcher of a label, which is in braces.
var comparison = regexp.MustCompile(`\{[^}]*\}| (==|!=|>=|<=|>|<) `)

// ruleQueries are the rules' expressions. A comparison filters, so that a rule has no series while all is well: with bool it gives
// 0 or 1 for each, and what it compares, and how the parts are joined, is asked as it stands.
func ruleQueries(t testing.TB, rules []observability.Rule) (list []asked) {
	t.Helper()
	for _, rule := range rules {
		if rule.Health == "err" || rule.LastError != "" {
			t.Errorf("%s: %s", rule.Name, rule.LastError)
		}
		expr := comparison.ReplaceAllStringFunc(rule.Query, func(found string) string {
			if strings.HasPrefix(found, "{") {
				return found
			}
			return found + "bool "
		})
		if expr == rule.Query {
			t.Errorf("%s compares nothing: %s", rule.Name, rule.Query)
		}
		list = append(list, asked{by: "alert " + rule.Name, expr: expr})
	}
	if len(list) == 0 {
		t.Error("Prometheus has no rules")
	}
	return list
}

// assertAnswered asks each query until it has a value, and prints how many series each has.
func assertAnswered(t testing.TB, p observability.Prometheus, queries []asked) {
	t.Helper()
	counts := make([]int, len(queries))
	missing := func() (list []asked) {
		for i, q := range queries {
			if counts[i] > 0 {
				continue
			}
			series, err := p.Query(t.Context(), q.expr)
			check(t, err)
			if slices.ContainsFunc(series, observability.Series.Finite) {
				counts[i] = len(series)
				assertLegend(t, q, series[0])
			} else {
				list = append(list, q)
			}
		}
		return list
	}
	left := missing()
	for start := time.Now(); len(left) > 0 && time.Since(start) < patience; left = missing() {
		time.Sleep(200 * time.Millisecond) // until the next scrape
	}
	for _, q := range left {
		t.Errorf("%s: no series has a value: %s", q.by, q.expr)
	}
	var table strings.Builder
	for i, q := range queries {
		fmt.Fprintf(&table, "%6d  %-40s %s\n", counts[i], q.by, strings.Join(strings.Fields(q.expr), " "))
	}
	t.Logf("each query and its series:\nseries  %-40s query\n%s", "asked by", &table)
}

// assertLegend fails the test unless a series has the labels that the panel's legend shows.
func assertLegend(t testing.TB, q asked, series observability.Series) {
	t.Helper()
	for _, label := range legendLabel.FindAllStringSubmatch(q.legend, -1) {
		if _, has := series.Labels[label[1]]; !has {
			t.Errorf("%s: the legend shows %s, and its series have %v", q.by, q.legend, series.Labels)
		}
	}
}

var (
	legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)
	grouping    = regexp.MustCompile(`\b(?:by|on) \(([^)]*)\)`)
	selector    = regexp.MustCompile(`\b((?:caddy|oz_instant)_\w+)(?:\{([^}]*)\})?`)
	matching    = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
)

// assertNames fails the test unless every metric that a query names is there, with every label and every word that it asks for. A
// query that excludes a word that doesn't exist would have series all the same.
func assertNames(t testing.TB, p observability.Prometheus, queries []asked) {
	t.Helper()
	for _, q := range queries {
		labels := map[string]bool{}
		for _, s := range selector.FindAllStringSubmatch(q.expr, -1) {
			for _, m := range matching.FindAllStringSubmatch(s[2], -1) {
				label, words := m[1], m[3]
				if label == "job" || label == "instance" {
					continue
				}
				for word := range strings.SplitSeq(words, "|") {
					if found, err := p.Query(t.Context(), fmt.Sprintf("%s{%s=%q}", s[1], label, word)); err != nil || len(found) == 0 {
						t.Errorf("%s: there is no %s{%s=%q} (%v)", q.by, s[1], label, word, err)
					}
				}
			}
			found, err := p.Query(t.Context(), s[1])
			if err != nil || len(found) == 0 {
				t.Errorf("%s: there is no %s (%v)", q.by, s[1], err)
				continue
			}
			for _, series := range found {
				for label := range series.Labels {
					labels[label] = true
				}
			}
		}
		for _, group := range grouping.FindAllStringSubmatch(q.expr, -1) {
			for label := range strings.SplitSeq(group[1], ", ") {
				if !labels[label] {
					t.Errorf("%s: no metric in it has the label %s: %s", q.by, label, q.expr)
				}
			}
		}
	}
}

// assertShown fails the test unless all that the gateway and the command check measure is on the dashboard.
func assertShown(t testing.TB, p observability.Prometheus, queries []asked) {
	t.Helper()
	shown := map[string]bool{}
	for _, q := range queries {
		if strings.HasPrefix(q.by, "alert ") {
			continue
		}
		for _, s := range selector.FindAllStringSubmatch(q.expr, -1) {
			shown[family(s[1])] = true
		}
	}
	found, err := p.Query(t.Context(), `count by (__name__) ({__name__=~"(caddy_)?oz_instant_.+"})`)
	check(t, err)
	for _, s := range found {
		if name := family(s.Labels["__name__"]); !shown[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

// family is the name of a metric without what a histogram adds.
func family(name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if rest, is := strings.CutSuffix(name, suffix); is {
			return rest
		}
	}
	return name
}

// TestAlertRules promises that each alert fires when it should and not otherwise, by promtool's unit tests, and that each says how
// bad it is and where the operator finds what to do.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	promtool, folder := program(t, "promtool"), observabilityFolder(t)
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"test", "rules", "rules_test.yml", "rules_slow_test.yml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = folder
		out, err := cmd.CombinedOutput()
		t.Logf("promtool %s\n%s", strings.Join(args, " "), out)
		if err != nil {
			t.Errorf("promtool %s: %v", strings.Join(args, " "), err)
		}
	}
}

// TestAlertRulesAreComplete promises an operator, for each alert, a severity, a summary, a section of docs/operations.md, a row in
// the table of alerts that has the rule's own numbers, and a test in which it fires and one in which it does not.
func TestAlertRulesAreComplete(t *testing.T) {
	t.Parallel()
	folder := observabilityFolder(t)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(folder, filepath.FromSlash(name)))
		check(t, err)
		return string(text)
	}
	tests, runbook, table := read("rules_test.yml")+read("rules_slow_test.yml"), read("../../../docs/operations.md"), read("../../../docs/observability.md")
	alerts := strings.Split(read("rules.yml"), "- alert: ")[1:]
	for _, text := range alerts {
		name, _, _ := strings.Cut(text, "\n")
		link := "docs/operations.md#" + strings.ToLower(name)
		for _, part := range []string{"severity: ", "summary: ", "description: ", "runbook_url: https://github.com/oz-instant/caddy-oz-instant/blob/main/" + link} {
			if !strings.Contains(text, part) {
				t.Errorf("%s has no %s", name, part)
			}
		}
		if !strings.Contains(runbook, "\n### "+name+"\n") {
			t.Errorf("docs/operations.md has no section %s", name)
		}
		_, row, found := strings.Cut(table, "| [`"+name+"`]("+strings.TrimPrefix(link, "docs/")+") |")
		if !found {
			t.Errorf("docs/observability.md has no row for %s", name)
		}
		row, _, _ = strings.Cut(row, "\n")
		for _, part := range partsInWords(row) {
			if rules := rulesOf(alerts, name); !regexp.MustCompile(part + `\b`).MatchString(rules) {
				t.Errorf("docs/observability.md says %s of %s, and the rule is\n%s", part, name, rules)
			}
		}
		_, own, _ := strings.Cut(tests, "- name: "+name+" ")
		own, _, _ = strings.Cut(own, "- name: OzInstant") // up to the next alert's
		if fires := regexp.MustCompile(`alertname: ` + name + `\n +exp_alerts:\n +- exp_labels:`); !fires.MatchString(own) || !strings.Contains(own, "- name: it does not ") {
			t.Errorf("%s is not tested firing and not firing", name)
		}
	}
	if len(alerts) == 0 {
		t.Error("there are no alerts")
	}
}

// TestRunbookNamesPanels promises an operator that each panel that the sections of alerts send them to is on the dashboard.
func TestRunbookNamesPanels(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(observabilityFolder(t), "../../../docs/operations.md"))
	check(t, err)
	_, runbook, _ := strings.Cut(string(text), "\n## Alerts\n")
	runbook, _, _ = strings.Cut(runbook, "\n## ")
	titles := map[string]bool{}
	for _, panel := range readDashboard(t).Panels {
		titles[panel.Title] = true
	}
	named := regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(runbook, -1)
	for _, name := range named {
		if title := strings.Join(strings.Fields(name[1]), " "); !titles[title] {
			t.Errorf("there is no panel %q", title)
		}
	}
	if len(named) < 10 {
		t.Errorf("the sections name %d panels", len(named))
	}
}

// rulesOf returns the text of the rules of an alert, which may have one for each severity.
func rulesOf(alerts []string, name string) (text string) {
	for _, alert := range alerts {
		if strings.HasPrefix(alert, name+"\n") {
			text += alert
		}
	}
	return text
}

var numberInWords = regexp.MustCompile(`(\d+)(%| minutes| hours| days|)`)

// partsInWords returns what a rule must have for its row in the table of alerts to be true: severities, and numbers with their units.
func partsInWords(row string) (parts []string) {
	severities, when, _ := strings.Cut(row, " | ")
	when, _, _ = strings.Cut(when, " | ")
	for severity := range strings.SplitSeq(severities, ",") {
		parts = append(parts, "severity: "+strings.TrimSpace(severity))
	}
	for _, n := range numberInWords.FindAllStringSubmatch(when, -1) {
		parts = append(parts, map[string]string{
			"%": strings.TrimRight(fmt.Sprintf(`> 0\.%02s`, n[1]), "0"), " minutes": `\b` + n[1] + "m", " hours": n[1] + ` \* 3600`, " days": n[1] + ` \* 86400`, "": ">= " + n[1],
		}[n[2]])
	}
	return parts
}
