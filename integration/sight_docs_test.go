package integration_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

var updateDocs = flag.Bool("update", false, "write what one capsule leaves into the documents")

// oneCapsuleMarker is before each of the three blocks: the scrape, the span and the line of one capsule.
const oneCapsuleMarker = "one capsule: "

// TestDocsOneCapsule promises that the scrape, the span and the line that stand side by side in the documents are what one capsule
// leaves. Ids, sizes, times and addresses are those of one run, which -update writes down.
func TestDocsOneCapsule(t *testing.T) {
	t.Parallel()
	root, docs := documents(t)
	seen := oneCapsule(t)
	for _, d := range docs {
		text := d.Text
		for _, b := range d.Blocks {
			name, marked := strings.CutPrefix(b.Marker, oneCapsuleMarker)
			if !marked {
				continue
			}
			got, known := seen[name]
			delete(seen, name)
			switch {
			case !known:
				t.Errorf("%s, line %d: there is no %q", d.Name, b.Line, name)
			case *updateDocs:
				text = strings.Replace(text, b.Text, got, 1)
			case shapeOf(b.Text) != shapeOf(got):
				t.Errorf("%s, line %d: the %s of a capsule is\n%s", d.Name, b.Line, name, got)
			}
		}
		if text != d.Text {
			check(t, os.WriteFile(filepath.Join(root, filepath.FromSlash(d.Name)), []byte(text), 0o644))
		}
	}
	for name := range seen {
		t.Errorf("no document has the %s of a capsule", name)
	}
}

// oneCapsule takes a capsule through a gateway and returns what it leaves there.
func oneCapsule(t *testing.T) map[string]string {
	t.Helper()
	x := startChain(t, sandbox.Options{BestShotSize: 400_000, AnalysisTime: 800 * time.Millisecond}, `{
	metrics
}
{$SITE} {
	log
	tracing
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
}`, withConsoleSpans)
	before := slices.Sorted(strings.Lines(x.Metrics(t)))
	c := x.client(t, "h1")
	j := x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 2 << 20})) })
	accepted.assertSight(t, j)
	var scrape strings.Builder
	for line := range strings.Lines(x.Metrics(t)) {
		if _, old := slices.BinarySearch(before, line); !old && strings.HasPrefix(line, "caddy_oz_instant_") && !strings.Contains(line, "_bucket{") {
			scrape.WriteString(line)
		}
	}
	line := j.decided[0]
	_, spans := x.spans(t, line.Get("traceID").Str, 1)
	return map[string]string{"scrape": scrape.String(), "span": shownSpan(t, spans[0]), "line": string(line) + "\n"}
}

// shownSpan is what a span says, without what every span of a process says.
func shownSpan(t testing.TB, span logLine) string {
	t.Helper()
	var all map[string]any
	check(t, json.Unmarshal([]byte(span), &all))
	context, parent := all["SpanContext"].(map[string]any), all["Parent"].(map[string]any)
	values := make(map[string]any)
	for _, a := range all["Attributes"].([]any) {
		attribute := a.(map[string]any)
		values[attribute["Key"].(string)] = attribute["Value"].(map[string]any)["Value"]
	}
	text, err := json.MarshalIndent(map[string]any{
		"Name": all["Name"], "TraceID": context["TraceID"], "SpanID": context["SpanID"], "Parent": parent["SpanID"], "SpanKind": all["SpanKind"],
		"StartTime": all["StartTime"], "EndTime": all["EndTime"], "Attributes": values, "Status": all["Status"].(map[string]any)["Code"],
	}, "", "  ")
	check(t, err)
	return string(text) + "\n"
}

// ofOneRun is what differs from run to run: ids, times, sizes, ports.
var ofOneRun = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{16,32}\b|[0-9]+(\.[0-9]+)?(e-?[0-9]+)?(T[0-9:.]+Z)?`)

func shapeOf(text string) string { return ofOneRun.ReplaceAllString(text, "#") }
