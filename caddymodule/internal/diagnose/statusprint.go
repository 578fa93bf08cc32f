package diagnose

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

const (
	tableWidth = 80 // of a terminal that nobody has made wider
	labelWidth = 16
	healthSize = 32 // of an upstream's health, right of its address
)

// Board shows the same thing again and again: in its place on a terminal, one
// block below the other elsewhere.
type Board struct {
	out      io.Writer
	terminal bool
	color    bool
	height   func() int // of the terminal, in lines; 0: unknown
	drawn    int        // lines that are on the terminal
}

// NewBoard returns a Board that uses color if out is a terminal and neither
// NO_COLOR (no-color.org) nor TERM=dumb is set.
func NewBoard(out io.Writer) *Board {
	b := &Board{out: out, height: func() int { return 0 }}
	file, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) || os.Getenv("TERM") == "dumb" {
		return b
	}
	b.terminal, b.color = true, os.Getenv("NO_COLOR") == ""
	b.height = func() int {
		_, height, err := term.GetSize(int(file.Fd()))
		if err != nil {
			return 0
		}
		return height
	}
	return b
}

// Status shows what a gateway says, once.
func (b *Board) Status(s Status, now time.Time) error {
	_, err := io.WriteString(b.out, strings.Join(b.table(s, now), "\n")+"\n")
	return err
}

// Watch shows what a gateway says, or err in place of it, where the last Watch did.
func (b *Board) Watch(s Status, failure error, now time.Time) error {
	lines := []string{now.UTC().Format(time.RFC3339)}
	if failure != nil {
		lines = append(lines, b.paint("31", "NO STATUS")+", it is asked for again until you press Ctrl-C:")
		lines = append(lines, wrap(strings.Fields(printable(failure.Error())), " ")...)
	} else {
		lines = append(lines, b.table(s, now)...)
	}
	if b.terminal {
		return b.redraw(lines)
	}
	_, err := io.WriteString(b.out, strings.Join(lines, "\n")+"\n\n")
	return err
}

// redraw overwrites what was drawn before, line by line and in one piece: a
// terminal that is cleared first flickers. One that is narrower than the table
// must cut lines off instead of making two of one, or they are counted wrongly.
func (b *Board) redraw(lines []string) error {
	lines = fit(lines, b.height())
	var text strings.Builder
	text.WriteString("\x1b[?7l")
	if b.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", b.drawn)
	}
	for _, line := range lines {
		text.WriteString("\r" + line + "\x1b[K\n")
	}
	text.WriteString("\x1b[J\x1b[?7h")
	b.drawn = len(lines)
	_, err := io.WriteString(b.out, text.String())
	return err
}

// fit returns the lines that a terminal of this height has room for above the
// cursor, which can't be moved up to one that has left the screen.
func fit(lines []string, height int) []string {
	if height < 3 || len(lines) < height {
		return lines
	}
	shown := height - 2
	return append(lines[:shown:shown], fmt.Sprintf("… %d more lines: make the window higher", len(lines)-shown))
}

func (b *Board) paint(color, text string) string {
	if !b.color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// table returns the lines of a status, of at most 80 columns.
func (b *Board) table(s Status, now time.Time) []string {
	ready := b.paint("32", "ready")
	if !s.Ready {
		ready = b.paint("31", "NOT READY")
	}
	lines := []string{fmt.Sprintf("%s, running since %s", ready, stamp(s.Started, now))}
	if len(s.Ways) == 0 {
		lines = append(lines, "", "The loaded config has no oz_instant.")
	}
	for i, w := range s.Ways {
		lines = append(lines, "", fmt.Sprintf("way to Oz %d of %d, known since %s", i+1, len(s.Ways), stamp(w.Since, now)))
		lines = append(lines, b.way(w, now)...)
	}
	return lines
}

func (b *Board) way(w Way, now time.Time) (lines []string) {
	add := func(label string, values ...string) {
		for _, value := range values {
			lines = append(lines, strings.TrimRight(fmt.Sprintf("  %-*s%s", labelWidth-2, label, value), " "))
			label = ""
		}
	}
	if w.DynamicUpstreams != "" {
		add("dynamic", shorten(printable(w.DynamicUpstreams), tableWidth-labelWidth))
	}
	if w.BasePath != "" {
		add("base path", shorten(printable(w.BasePath), tableWidth-labelWidth))
	}
	add("upstreams", b.upstreams(w.Upstreams)...)
	add("in flight", limited(strconv.Itoa(w.InFlight), strconv.Itoa(w.Slots), w.Slots > 0))
	if w.Slots > 0 {
		add("queued", fmt.Sprintf("%s of %s, a newcomer waits about %s", count(w.Queued), count(w.Queue), secondsOf(w.WaitSeconds)))
	}
	if w.Shared != nil {
		add("shared", b.shared(*w.Shared))
	}
	if w.MemoryBytes > 0 || w.HeldBytes > 0 {
		add("memory", fmt.Sprintf("%s, %d uploads in progress", limited(size(w.HeldBytes), size(w.MemoryBytes), w.MemoryBytes > 0), w.Uploading))
	}
	add("service time", serviceTime(w.ServiceSeconds))
	if w.AccessToken != nil {
		add("access token", b.token(*w.AccessToken))
	}
	add("decisions", wrap(decisionWords(w.Decisions), "   ")...)
	add("failures", b.failures(w.LastFailures, now)...)
	return lines
}

// shared says what all gateways do together.
func (b *Board) shared(s upload.SharedStatus) string {
	if s.Alone {
		return b.paint("31", "ALONE") + ", the store doesn't answer; a share of slots and queue is used"
	}
	return fmt.Sprintf("over %s gateways, %s in flight and %s queued in all", count(s.Gateways), count(s.InFlight), count(s.Queued))
}

func limited(n, limit string, has bool) string {
	if !has {
		return n + ", no limit"
	}
	return n + " of " + limit
}

func (b *Board) upstreams(list []ozclient.UpstreamStatus) (lines []string) {
	if len(list) == 0 {
		return []string{"none known yet"}
	}
	const width = tableWidth - labelWidth - healthSize
	for _, u := range list {
		health := b.paint("32", "up  ")
		if !u.Healthy {
			health = b.paint("31", "DOWN")
		}
		lines = append(lines, fmt.Sprintf("%s  %s %6s open %6s fails", cell(u.Address, width), health, short(u.Requests), short(u.Fails)))
	}
	return lines
}

// columns returns the most columns that s can take. Characters beyond those of
// alphabets may take two, and are taken to do so.
func columns(s string) (n int) {
	for _, r := range s {
		n++
		if r >= 0x1100 && r != '…' && r != unicode.ReplacementChar {
			n++
		}
	}
	return n
}

// shorten cuts the middle out of a text that is too long: hosts of one cluster
// differ at the front, ports at the end.
func shorten(s string, width int) string {
	if columns(s) <= width {
		return s
	}
	runes := []rune(s)
	head, tail := runes[:min(len(runes), width)], runes[max(0, len(runes)-width):] // each takes a column at least
	for columns(string(tail)) > (width-1)/2 {
		tail = tail[1:]
	}
	for columns(string(head)) > width-1-columns(string(tail)) {
		head = head[:len(head)-1]
	}
	return string(head) + "…" + string(tail)
}

// cell returns what a peer wrote, as wide as a column of the table.
func cell(s string, width int) string {
	s = shorten(printable(s), width)
	return s + strings.Repeat(" ", width-columns(s))
}

// count writes a count of which anything may be wrong.
func count(n int) string { return shorten(strconv.Itoa(n), 10) }

// short writes a count in at most six columns.
func short(n int) string {
	switch {
	case n < 0:
		return "?"
	case n < 100_000:
		return strconv.Itoa(n)
	case n < 10_000_000:
		return strconv.Itoa(n/1000) + "k"
	}
	return ">9999k"
}

func serviceTime(seconds float64) string {
	if seconds == 0 {
		return "not measured yet"
	}
	return secondsOf(seconds)
}

func secondsOf(n float64) string { return shorten(strconv.FormatFloat(n, 'f', -1, 64), 12) + " s" }

func (b *Board) token(t ozclient.TokenStatus) string {
	color := "32"
	switch t.State {
	case ozclient.TokenFailed:
		color = "31"
	case ozclient.TokenNone, ozclient.TokenRenewing:
		color = "33"
	}
	text := b.paint(color, shorten(printable(string(t.State)), 20))
	if t.ExpiresIn > 0 {
		text += ", good for " + span(time.Duration(t.ExpiresIn)*time.Second)
	}
	return text
}

func decisionWords(counts map[oz.Decision]int64) (words []string) {
	for _, d := range oz.Decisions() {
		words = append(words, fmt.Sprintf("%s %d", d, counts[d]))
	}
	return words
}

func (b *Board) failures(list []Failure, now time.Time) (lines []string) {
	if len(list) == 0 {
		return []string{"none"}
	}
	for _, f := range list {
		lines = append(lines, fmt.Sprintf("%s %9d   last %s", cell(string(f.Reason), 21), max(0, f.Count), ago(f.Time, now)))
	}
	return lines
}

func stamp(t, now time.Time) string {
	return t.UTC().Format("2006-01-02 15:04:05 UTC") + ", " + ago(t, now)
}

// ago says when something was. A clock that another one is compared with may
// be a little late.
func ago(t, now time.Time) string { return span(max(0, now.Sub(t))) + " ago" }

// wrap puts words into lines that fit right of a label.
func wrap(words []string, separator string) (lines []string) {
	line := ""
	for _, word := range words {
		word = shorten(word, tableWidth-labelWidth)
		switch {
		case line == "":
			line = word
		case columns(line+separator+word) > tableWidth-labelWidth:
			lines, line = append(lines, line), word
		default:
			line += separator + word
		}
	}
	return append(lines, line)
}
