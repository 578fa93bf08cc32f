package diagnose

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"unicode"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
)

// Printer writes a line for each step as it ends, so that a slow or dead Oz
// can be watched. The step in progress is on the line of progress.
type Printer struct {
	out   io.Writer
	color bool
	line  *progress.Line
	to    string // the upstream whose lines are being written

	rows  int                    // of the attack
	ended int                    // of them
	row   atomic.Pointer[string] // the one in progress; nil: none has begun
}

// NewPrinter returns a Printer that writes to out, with color if that is a
// terminal, and shows on line what it waits for.
func NewPrinter(out io.Writer, line *progress.Line) *Printer {
	return &Printer{out: line.Above(out), color: progress.IsTerminal(out), line: line}
}

// marks are the words and colors for states. They stand right-aligned, so
// that columns are straight before the next line is known.
var marks = map[State]struct{ word, color string }{
	OK:      {"ok", "32"},
	Failed:  {"FAILED", "31"},
	Unknown: {"UNKNOWN", "33"},
	Skipped: {"-", "2"},

	Holds:    {"HOLDS", "32"},
	Broken:   {"BROKEN", "31"},
	NotTried: {"NOT TRIED", "33"},
}

// Print shows an event. It is an observer for Check.
func (p *Printer) Print(e Event) {
	var text strings.Builder
	if e.To != p.to {
		if p.to != "" {
			text.WriteString("\n")
		}
		p.to = e.To
		fmt.Fprintln(&text, printable(e.To))
	}
	if e.Step.State == "" {
		p.line.Begin(progress.Phase{Name: e.To + ": " + e.Step.Name, Amount: e.Sent.amount()})
	} else {
		p.step(&text, e.Step)
	}
	_, _ = io.WriteString(p.out, text.String()) // in one piece, so that nothing of a line waits
}

func (p *Printer) step(out io.Writer, s Step) {
	took := fmt.Sprintf("%d ms", s.MS)
	if s.State == Skipped {
		took = ""
	}
	fmt.Fprintf(out, "%s  %-15s  %8s  %s\n", p.mark(s.State), s.Name, took, printable(s.Detail))
	if s.Advice != "" {
		fmt.Fprintf(out, "%38s→ %s\n", "", printable(s.Advice))
	}
}

// mark returns the word for a state.
func (p *Printer) mark(s State) string {
	word := fmt.Sprintf("%9s", marks[s].word)
	if p.color {
		return fmt.Sprintf("\x1b[%sm%s\x1b[0m", marks[s].color, word)
	}
	return word
}

// printable makes one line of s without control characters. Names in
// certificates and tokens are the peer's choice, and must neither steer the
// operator's terminal nor pass for a line of the report.
func printable(s string) string {
	return strings.Map(graphic, strings.ReplaceAll(s, "\n", "; "))
}

func graphic(r rune) rune {
	if !unicode.IsGraphic(r) {
		return unicode.ReplacementChar
	}
	return r
}

// WriteJSON writes the reports as one document.
func WriteJSON(out io.Writer, reports []Report) error {
	return writeJSON(out, struct {
		Well      bool     `json:"well"`
		Upstreams []Report `json:"upstreams"`
	}{Worst(reports) == OK, reports})
}

func writeJSON(out io.Writer, doc any) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}
