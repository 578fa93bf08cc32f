// Package progress shows how far long work has got: on a terminal by one line
// that is redrawn in place, elsewhere by a plain line now and then.
//
// It is exported only because the programs below integration/ use it, too: it
// knows nothing of Oz or of Caddy.
package progress

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"golang.org/x/term"
)

const (
	interval = 200 * time.Millisecond // between looks at the amount and the clock

	// When plain lines are due.
	firstPlain = time.Second      // after a phase has begun: a shorter one isn't worth a line
	nextPlain  = 10 * time.Second // after the last one

	eraseLine = "\r\x1b[K"
)

// Phase is a part of the work.
type Phase struct {
	Name string

	// Amount says how much is done, such as "7 of 21 pairs". It is called
	// whenever that is shown, and must not call the Line. Nil: nothing tells.
	Amount func() string

	Takes time.Duration // how long all of it takes; 0: that isn't known
}

// Of returns an Amount that counts up to a whole.
func Of(done *atomic.Int64, whole int, what string) func() string {
	return func() string { return fmt.Sprintf("%d of %d %s", done.Load(), whole, what) }
}

// Line shows one phase after the other. Its methods may be called concurrently.
type Line struct {
	out   io.Writer
	width func() int // of the terminal; nil: out isn't one

	mu      sync.Mutex
	phase   Phase // without a name: none
	begun   time.Time
	next    time.Time // when the next plain line is due
	shown   string    // what is on the terminal
	partial bool      // what was written above has no line end yet

	closing sync.Once
	closed  chan struct{}
	ticking sync.WaitGroup
}

// New returns a Line on out, which is mostly standard error. It must be closed.
func New(out io.Writer) *Line {
	if !IsTerminal(out) {
		return newLine(out, nil)
	}
	return newLine(out, func() int {
		width, _, err := term.GetSize(int(out.(*os.File).Fd()))
		if err != nil || width <= 0 {
			return 80
		}
		return width
	})
}

func newLine(out io.Writer, width func() int) *Line {
	l := &Line{out: out, width: width, closed: make(chan struct{})}
	l.ticking.Go(l.keepShowing)
	return l
}

// IsTerminal reports whether out is a terminal that may get more than plain
// text. TERM=dumb and NO_COLOR (no-color.org) say that it may not.
func IsTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	return ok && term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == ""
}

// Begin begins a phase, which ends the one before.
func (l *Line) Begin(p Phase) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase, l.begun = p, time.Now()
	l.next = l.begun.Add(firstPlain)
	l.show()
}

// Above returns a writer for results to out, which may be the same terminal:
// the line is erased before each Write, and drawn again below what was written.
func (l *Line) Above(out io.Writer) io.Writer {
	if l.width == nil {
		return out
	}
	return &above{l, out}
}

// Close erases the line. The phase that is shown has ended.
func (l *Line) Close() {
	l.closing.Do(func() { close(l.closed) })
	l.ticking.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase = Phase{}
	l.erase()
}

// keepShowing lets the line follow the time and the amount.
func (l *Line) keepShowing() {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-l.closed:
			return
		case <-ticker.C:
			l.mu.Lock()
			l.show()
			l.mu.Unlock()
		}
	}
}

func (l *Line) show() {
	switch {
	case l.phase.Name == "" || l.partial:
	case l.width != nil:
		l.draw()
	case !time.Now().Before(l.next):
		l.next = time.Now().Add(nextPlain)
		_, _ = io.WriteString(l.out, l.text()+"\n") // nothing depends on it
	}
}

// draw leaves the last column free: some terminals go on to the next line once
// it is used, and "\r" doesn't lead back from there.
func (l *Line) draw() {
	text := cut(l.text(), l.width()-1)
	if text == l.shown {
		return
	}
	l.shown = text
	_, _ = io.WriteString(l.out, eraseLine+text) // in one piece, so that it doesn't flicker
}

func (l *Line) erase() {
	if l.shown != "" {
		l.shown = ""
		_, _ = io.WriteString(l.out, eraseLine)
	}
}

// text returns the phase, the amount and the time. A name may come from a
// configuration: control characters must not steer the terminal.
func (l *Line) text() string {
	var about []string
	if l.phase.Amount != nil {
		about = append(about, l.phase.Amount())
	}
	switch elapsed := time.Since(l.begun).Truncate(time.Second); {
	case l.phase.Takes > 0:
		about = append(about, fmt.Sprintf("%v of %v", elapsed, l.phase.Takes))
	case elapsed > firstPlain:
		about = append(about, elapsed.String())
	}
	text := l.phase.Name + " …"
	if len(about) > 0 {
		text = l.phase.Name + ": " + strings.Join(about, ", ")
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// cut returns as much of the text as fits. Characters beyond those of
// alphabets may take two columns, and are taken to do so.
func cut(text string, columns int) string {
	for i, r := range text {
		columns--
		if r >= 0x1100 {
			columns--
		}
		if columns < 0 {
			return text[:i]
		}
	}
	return text
}

type above struct {
	line *Line
	out  io.Writer
}

// Write implements io.Writer.
func (a *above) Write(p []byte) (int, error) {
	a.line.mu.Lock()
	defer a.line.mu.Unlock()
	a.line.erase()
	n, err := a.out.Write(p)
	if n > 0 {
		a.line.partial = p[n-1] != '\n'
	}
	a.line.show()
	return n, err
}
