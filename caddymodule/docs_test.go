package caddymodule

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// The tables of the documents have exactly what the code has.

// table returns the cells of the first table after a heading of a document,
// less its head.
func table(t *testing.T, file, heading string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("../" + file)
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "# "+heading+"\n")
	if !found {
		t.Fatalf("%s has no heading %q", file, heading)
	}
	for line := range strings.Lines(after) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if len(rows) > 0 {
				break
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("%s has no table after %q", file, heading)
	}
	return rows[2:]
}

// wantTable compares the first column of a table with the names in the code.
func wantTable(t *testing.T, file, heading string, want []string) {
	t.Helper()
	var got []string
	for _, row := range table(t, file, heading) {
		got = append(got, strings.Trim(row[0], "`"))
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s, %q has\n%q\nthe code\n%q", file, heading, got, want)
	}
}

func TestDocsOptions(t *testing.T) {
	names := slices.Collect(maps.Keys(new(parser).options()))
	wantTable(t, "docs/configuration.md", "Options", names)
	wantTable(t, "docs/capacity.md", "Capacity", jsonNames[Capacity]())
	wantTable(t, "docs/face-matching.md", "Face matching", jsonNames[Biometry]())

	wantTable(t, "docs/replay-guard.md", "Options", jsonNames[ReplayGuard]())

	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, syntax, _ := strings.Cut(string(text), "## Syntax")
	syntax, _, _ = strings.Cut(syntax, "\n## ")
	for _, name := range slices.Concat(names, jsonNames[Capacity](), jsonNames[Biometry](), jsonNames[ReplayGuard]()[1:]) {
		if !strings.Contains(syntax, "    "+name+" ") {
			t.Errorf("the syntax in docs/configuration.md does not show %s", name)
		}
	}
}

// The defaults in the documents are those of a config that says nothing.
func TestDocsDefaults(t *testing.T) {
	h := newHandler(t, neverAsked(t), `{"biometry": {"reference": "/photo"}, "capacity": {"slots": 3}, "replay_guard": {}}`)
	defaults := make(map[string]string)
	for file, heading := range map[string]string{
		"docs/configuration.md": "Options", "docs/capacity.md": "Capacity", "docs/face-matching.md": "Face matching",
		"docs/replay-guard.md": "Options",
	} {
		for _, row := range table(t, file, heading) {
			defaults[strings.Trim(row[0], "`")] = strings.Trim(row[1], "`")
		}
	}
	for name, size := range map[string]int64{
		"max_capsule": h.MaxCapsule, "max_answer": h.MaxAnswer, "max_header": h.MaxHeader, "max_reference": h.Biometry.MaxReference,
	} {
		if n, err := humanize.ParseBytes(defaults[name]); err != nil || int64(n) != size {
			t.Errorf("%s: %q, the code has %d", name, defaults[name], size)
		}
	}
	for name, duration := range map[string]caddy.Duration{
		"upload_timeout": h.UploadTimeout, "timeout": h.Timeout, "wait": h.Capacity.Wait, "window": h.ReplayGuard.Window,
	} {
		if d, err := caddy.ParseDuration(defaults[name]); err != nil || caddy.Duration(d) != duration {
			t.Errorf("%s: %q, the code has %s", name, defaults[name], time.Duration(duration))
		}
	}
	for name, word := range map[string]string{
		"best_shot": h.BestShot, "client_gone": h.ClientGone, "analyses": h.Analyses[0], "tag": h.Biometry.Tag, "on_error": h.ReplayGuard.OnError,
	} {
		if defaults[name] != word {
			t.Errorf("%s: %q, the code has %q", name, defaults[name], word)
		}
	}
}

// jsonNames returns the names of a struct's fields in JSON.
func jsonNames[T any]() (names []string) {
	for field := range reflect.TypeFor[T]().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func TestDocsRefusedOptions(t *testing.T) {
	var names []string
	for _, row := range table(t, "docs/configuration.md", "What does not load") {
		for name := range strings.SplitSeq(row[0], ", ") {
			name = strings.Trim(name, "`")
			names = append(names, name)
			if ozclient.CheckOption(name) == nil {
				t.Errorf("%s is not refused", name)
			}
		}
	}
	for _, name := range ozclient.RefusedOptions() {
		if !slices.Contains(names, name) {
			t.Errorf("the table lacks %s", name)
		}
	}
}

// The decision table has the rows of the code in its order, and their statuses.
func TestDocsDecisions(t *testing.T) {
	rows, outcomes := table(t, "docs/decisions.md", "Which decision, and why"), oz.Outcomes()
	if len(rows) != len(outcomes) {
		t.Fatalf("docs/decisions.md has %d rows, the code %d", len(rows), len(outcomes))
	}
	for i, want := range outcomes {
		decision, reason, end := strings.Trim(rows[i][1], "`"), strings.Trim(rows[i][2], "`"), rows[i][3]
		if decision != string(want.Decision) || reason != string(want.Reason) {
			t.Errorf("row %d: %s %s, want %s %s", i+1, decision, reason, want.Decision, want.Reason)
		}
		wantEnd := "to the app"
		if !reachesApp(want.Decision) {
			wantEnd = strconv.Itoa(new(Handler).problem(&Result{verdict: oz.Verdict{Decision: want.Decision, Reason: want.Reason}}).Status)
		}
		if !strings.HasPrefix(end, wantEnd) {
			t.Errorf("%s %s: %s, want %s", want.Decision, want.Reason, end, wantEnd)
		}
	}
	var words []string
	for _, d := range oz.Decisions() {
		words = append(words, string(d))
	}
	wantTable(t, "README.md", "The six decisions", words)
}

func TestDocsHeaders(t *testing.T) {
	names := []string{headerSeal}
	for _, f := range facts {
		if f.header != "" {
			names = append(names, f.header)
		}
	}
	wantTable(t, "docs/decisions.md", "The headers", names)
}

func TestDocsPlaceholders(t *testing.T) {
	var names []string
	for _, f := range facts {
		names = append(names, "{"+placeholderPrefix+f.name+"}")
	}
	wantTable(t, "docs/decisions.md", "Placeholders", names)
}

func TestDocsRefusals(t *testing.T) {
	var kinds []string
	for _, row := range refusals {
		if row.kind != kindClientGone {
			kinds = append(kinds, row.kind)
		}
	}
	wantTable(t, "docs/decisions.md", "Refusals", kinds)
}

// The table of metrics has their labels and the words of the smaller label sets, too.
func TestDocsMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	if err := newMetrics().register(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{ // absent without credentials and shared
		"caddy_oz_instant_access_token_expiry_timestamp_seconds": "", "caddy_oz_instant_slots_shared": "",
	}
	for _, family := range families {
		var names []string
		for _, pair := range family.GetMetric()[0].GetLabel() {
			names = append(names, "`"+pair.GetName()+"`")
		}
		labels[family.GetName()] = strings.Join(names, ", ")
	}
	wantTable(t, "docs/operations.md", "Metrics", slices.Collect(maps.Keys(labels)))
	for _, row := range table(t, "docs/operations.md", "Metrics") {
		name := strings.Trim(row[0], "`")
		if row[1] != labels[name] {
			t.Errorf("%s has the labels %s, not %s", name, labels[name], row[1])
		}
		if name == "caddy_oz_instant_capacity_refusals_total" {
			for _, cause := range upload.Causes() {
				if !strings.Contains(row[2], "`"+string(cause)+"`") {
					t.Errorf("%s does not name the cause %s", name, cause)
				}
			}
		}
	}
}

// fieldNames returns the names of a document's fields, with the way to them.
func fieldNames(of reflect.Type, prefix string) (names []string) {
	for field := range of.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		inner := field.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		switch {
		case name == "-":
		case field.Anonymous:
			names = append(names, fieldNames(inner, prefix)...)
		case inner.Kind() == reflect.Slice:
			names = append(names, fieldNames(inner.Elem(), prefix+name+"[].")...)
		case inner.Kind() == reflect.Struct && inner != reflect.TypeFor[time.Time]():
			names = append(names, fieldNames(inner, prefix+name+".")...)
		default:
			names = append(names, prefix+name)
		}
	}
	return names
}

// The document shown of the status has every field but two, by its name and in
// its place; the table beside it is made of it, and that of fields has all.
func TestDocsStatus(t *testing.T) {
	names := append([]string{"ways"}, fieldNames(reflect.TypeFor[diagnose.Way](), "")...)
	for _, name := range fieldNames(reflect.TypeFor[diagnose.Status](), "") {
		if !strings.Contains(name, ".") {
			names = append(names, name)
		}
	}
	wantTable(t, "docs/operations.md", "The fields of the status", names)

	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## What is my gateway doing?")
	doc, table := fenced(section, "json"), fenced(section, "text")
	var status diagnose.Status
	decoder := json.NewDecoder(strings.NewReader(doc))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&status); err != nil {
		t.Fatal(err)
	}
	again, err := json.MarshalIndent(status, "", "  ")
	if err != nil || string(again)+"\n" != doc {
		t.Errorf("the document is\n%s\nthe code writes\n%s", doc, again)
	}
	for _, name := range names {
		last := name[strings.LastIndex(name, ".")+1:]
		if !strings.Contains(doc, strconv.Quote(last)+":") && name != "dynamic_upstreams" && name != "base_path" {
			t.Errorf("%s is not shown", name)
		}
	}
	var shown strings.Builder
	if err := diagnose.NewBoard(&shown).Status(status, time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)); err != nil || shown.String() != table {
		t.Errorf("the table is\n%s\nthe code writes\n%s", table, shown.String())
	}
}

// fenced returns the first block of a language.
func fenced(text, language string) string {
	_, text, _ = strings.Cut(text, "```"+language+"\n")
	text, _, _ = strings.Cut(text, "```")
	return text
}

// The tables of flags have each flag of their command, and no other.
func TestDocsFlags(t *testing.T) {
	flag := regexp.MustCompile("`--([a-z-]+)")
	for _, doc := range []struct {
		file, heading string
		command       *cobra.Command
	}{
		{"docs/operations.md", "Is my Oz ready?", checkCommand()},
		{"docs/operations.md", "What is my gateway doing?", statusCommand()},
		{"docs/seal.md", "Looking at one by hand", verifyCommand()},
		{"docs/security.md", "Attack your own deployment", attackCommand()},
		{"docs/sizing.md", "The calculator", sizeCommand()},
	} {
		shown := map[string]bool{}
		for _, row := range table(t, doc.file, doc.heading) {
			for i, cell := range row {
				for _, name := range flag.FindAllStringSubmatch(cell, -1) {
					shown[name[1]] = true
					if i == 0 && doc.command.Flags().Lookup(name[1]) == nil {
						t.Errorf("%s: %s has no --%s", doc.file, doc.command.Name(), name[1])
					}
				}
			}
		}
		doc.command.Flags().VisitAll(func(f *pflag.Flag) {
			if !shown[f.Name] {
				t.Errorf("%s: --%s of %s is missing", doc.file, f.Name, doc.command.Name())
			}
		})
	}
}

// What the page on sizing shows is what the command prints.
func TestDocsSizing(t *testing.T) {
	text, err := os.ReadFile("../docs/sizing.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := regexp.MustCompile("(?s)```sh\n\\./caddy oz-instant size ([^\n]*)\n```\n\n<!-- prints -->\n```\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(shown) == 0 {
		t.Fatal("no size command is shown with what it prints")
	}
	for _, block := range shown {
		var out strings.Builder
		cmd := sizeCommand()
		cmd.SetArgs(strings.Fields(block[1]))
		cmd.SetOut(&out)
		if err := cmd.Execute(); err != nil || out.String() != block[2] {
			t.Errorf("size %s: %v; it prints\n%s", block[1], err, out.String())
		}
	}
}

// The reasons that a gateway isn't ready are shown as they are sent.
func TestDocsReady(t *testing.T) {
	doc, err := json.Marshal(readiness(nil))
	if err != nil || !strings.Contains(table(t, "docs/operations.md", "Is my gateway ready?")[2][0], string(doc)) {
		t.Errorf("%s is not shown (%v)", doc, err)
	}
}
