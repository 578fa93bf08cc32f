package diagnose

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
)

var someEvents = []Event{
	{To: "http://oz", Step: Step{Name: "connection"}},
	{To: "http://oz", Step: Step{Name: "connection", State: OK, Detail: "127.0.0.1:80", MS: 3}},
	{To: "http://oz", Step: Step{Name: "session token"}},
	{To: "http://oz", Step: Step{Name: "session token", State: Failed, Detail: "403\n\x1b[2J", Advice: "Ask for one.", MS: 12000}},
	{To: "http://oz", Step: Step{Name: "empty capsule", State: Skipped, Detail: "not tried"}},
	{To: "http://other", Step: Step{Name: "placeholders"}},
	{To: "http://other", Step: Step{Name: "placeholders", State: Unknown, Detail: "{host}", Advice: "Try it."}},
}

// quietLine returns a line of progress that nobody sees.
func quietLine(t *testing.T) *progress.Line {
	l := progress.New(io.Discard)
	t.Cleanup(l.Close)
	return l
}

// Each line is written as its step ends, with columns that no later line moves.
func TestPrintToFile(t *testing.T) {
	var out strings.Builder
	p := NewPrinter(&out, quietLine(t))
	var after []string
	for _, e := range someEvents {
		before := out.Len()
		p.Print(e)
		after = append(after, out.String()[before:])
	}
	for i, want := range []string{
		"http://oz\n",
		"       ok  connection           3 ms  127.0.0.1:80\n",
		"",
		"   FAILED  session token    12000 ms  403; �[2J\n                                      → Ask for one.\n",
		"        -  empty capsule              not tried\n",
		"\nhttp://other\n",
		"  UNKNOWN  placeholders         0 ms  {host}\n                                      → Try it.\n",
	} {
		if after[i] != want {
			t.Errorf("event %d: %q, want %q", i, after[i], want)
		}
	}
}

// A terminal also shows colors.
func TestPrintToTerminal(t *testing.T) {
	var out strings.Builder
	p := &Printer{out: &out, color: true, line: quietLine(t)}
	for _, e := range someEvents[:4] {
		p.Print(e)
	}
	const want = "http://oz\n\x1b[32m       ok\x1b[0m  connection           3 ms  127.0.0.1:80\n" +
		"\x1b[31m   FAILED\x1b[0m  session token    12000 ms  403; �[2J\n                                      → Ask for one.\n"
	if out.String() != want {
		t.Errorf("%q", out.String())
	}
}

// A file isn't a terminal, so it gets none.
func TestPrinterOfFile(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if p := NewPrinter(file, quietLine(t)); p.color {
		t.Error("with color")
	}
}

func TestWriteJSON(t *testing.T) {
	for state, well := range map[State]bool{OK: true, Skipped: true, Unknown: false, Failed: false} {
		var out strings.Builder
		reports := []Report{{To: "a", Steps: []Step{{Name: "connection", State: state, Detail: "<a>", MS: 5}}}}
		if err := WriteJSON(&out, reports); err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Well      bool
			Upstreams []struct {
				To     string
				Checks []struct {
					Check, State, Detail string
					MS                   int
				}
			}
		}
		if err := json.Unmarshal([]byte(out.String()), &doc); err != nil {
			t.Fatal(err)
		}
		if c := doc.Upstreams[0].Checks[0]; doc.Well != well || c.Check != "connection" || c.State != string(state) || c.MS != 5 || !strings.Contains(out.String(), `"<a>"`) {
			t.Errorf("%s", out.String())
		}
	}
}

// Whatever error a step ends with once its time is over, the time is why.
func TestStepTimeout(t *testing.T) {
	r := &run{opts: CheckOptions{Timeout: time.Millisecond}, observe: func(Event) {}}
	c := &checker{block: &block{run: r}}
	if c.step(t.Context(), "slow", func(ctx context.Context) (string, error) {
		<-ctx.Done()
		return "", failed(errors.New("connection reset"), "look elsewhere")
	}) {
		t.Error("it went well")
	}
	if got := c.steps[0]; got.State != Failed || got.Detail != "no end within 1ms" || !strings.Contains(got.Advice, "load of Oz") {
		t.Errorf("%+v", got)
	}
}
