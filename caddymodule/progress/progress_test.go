package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// screen is a terminal, in so far as a line needs one. Like most it begins a
// new row once a character doesn't fit.
type screen struct {
	width int

	mu     sync.Mutex
	rows   [][]rune
	column int
	writes int
}

func newScreen(width int) *screen { return &screen{width: width, rows: [][]rune{{}}} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	text := string(p)
	for text != "" {
		last := len(s.rows) - 1
		if rest, ok := strings.CutPrefix(text, "\x1b[K"); ok {
			s.rows[last], text = s.rows[last][:s.column], rest
			continue
		}
		r := []rune(text)[0]
		text = text[len(string(r)):]
		switch {
		case r == '\r':
			s.column = 0
		case r == '\n':
			s.rows, s.column = append(s.rows, nil), 0
		case r < ' ':
			return 0, fmt.Errorf("control character %q", r)
		case s.column == s.width:
			s.rows, s.column = append(s.rows, []rune{r}), 1
		default:
			s.rows[last] = append(s.rows[last][:s.column], r)
			s.column++
		}
	}
	return len(p), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var rows []string
	for _, row := range s.rows {
		rows = append(rows, string(row))
	}
	return strings.Join(rows, "\n")
}

// onScreen runs a test with a line on a terminal, at a time of its own.
func onScreen(t *testing.T, width int, test func(t *testing.T, s *screen, l *Line)) {
	synctest.Test(t, func(t *testing.T) {
		s := newScreen(width)
		l := newLine(s, func() int { return s.width })
		defer l.Close()
		test(t, s, l)
	})
}

// pass lets time pass, and the line be drawn.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *screen) want(t *testing.T, want string) {
	t.Helper()
	if got := s.String(); got != want {
		t.Errorf("on the terminal:\n%s\nwant\n%s", got, want)
	}
}

// A terminal shows one line, which follows the amount and the time.
func TestTerminal(t *testing.T) {
	onScreen(t, 80, func(t *testing.T, s *screen, l *Line) {
		l.Begin(Phase{Name: "building"})
		s.want(t, "building …")
		pass(3 * time.Second)
		s.want(t, "building: 3s")

		var done atomic.Int64
		l.Begin(Phase{Name: "measuring", Amount: Of(&done, 21, "pairs")})
		s.want(t, "measuring: 0 of 21 pairs")
		done.Store(7)
		pass(interval)
		s.want(t, "measuring: 7 of 21 pairs")
		pass(72*time.Second - interval)
		s.want(t, "measuring: 7 of 21 pairs, 1m12s")

		l.Begin(Phase{Name: "soaking", Takes: 90 * time.Second})
		pass(5 * time.Second)
		s.want(t, "soaking: 5s of 1m30s")

		l.Close()
		s.want(t, "")
		pass(time.Minute)
		s.want(t, "")
	})
}

// A line that hasn't changed isn't written again.
func TestTerminalIsLeftAlone(t *testing.T) {
	onScreen(t, 80, func(t *testing.T, s *screen, l *Line) {
		l.Begin(Phase{Name: "waiting"})
		pass(10*time.Second + interval/2)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.writes > 11 {
			t.Errorf("%d writes in ten seconds, of which each changes the line once", s.writes)
		}
	})
}

// A line that is too long for the terminal is cut: "\r" would not lead back
// to where it began. That holds after the terminal has become narrower, too.
func TestTerminalIsNarrow(t *testing.T) {
	for _, name := range []string{strings.Repeat("a long name ", 10), strings.Repeat("長", 60), strings.Repeat("é", 60)} {
		onScreen(t, 40, func(t *testing.T, s *screen, l *Line) {
			l.Begin(Phase{Name: name})
			pass(3 * time.Second)
			if strings.Contains(s.String(), "\n") || !strings.HasPrefix(name, s.String()) || len(s.String()) < 19 {
				t.Errorf("on the terminal:\n%s", s)
			}
			l.Begin(Phase{Name: "short"})
			s.want(t, "short …")
		})
	}
	onScreen(t, 1, func(t *testing.T, s *screen, l *Line) {
		l.Begin(Phase{Name: "no room"})
		s.want(t, "")
	})
}

// A name can't steer the terminal.
func TestTerminalIsNotSteered(t *testing.T) {
	onScreen(t, 80, func(t *testing.T, s *screen, l *Line) {
		l.Begin(Phase{Name: "a\nb\x1b[2J\rc"})
		s.want(t, "a\ufffdb\ufffd[2J\ufffdc …")
	})
}

// Results on the same terminal stand above the line and never beside it, also
// if a result is written in pieces.
func TestResultsAboveLine(t *testing.T) {
	onScreen(t, 80, func(t *testing.T, s *screen, l *Line) {
		results := l.Above(s)
		l.Begin(Phase{Name: "one"})
		fmt.Fprintln(results, "one is well")
		s.want(t, "one is well\none …")
		l.Begin(Phase{Name: "two"})
		_, _ = io.WriteString(results, "two ")
		s.want(t, "one is well\ntwo ")
		pass(3 * time.Second)
		_, _ = io.WriteString(results, "is well\n")
		s.want(t, "one is well\ntwo is well\ntwo: 3s")
		l.Close()
		s.want(t, "one is well\ntwo is well\n")
		fmt.Fprintln(results, "all is well")
		s.want(t, "one is well\ntwo is well\nall is well\n")
	})
}

// Elsewhere a phase has a line, and another one every ten seconds. One that is
// over at once has none.
func TestPlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newLine(&out, nil)
		var done atomic.Int64
		l.Begin(Phase{Name: "short\x1b[2J"})
		time.Sleep(firstPlain - interval/2)
		l.Begin(Phase{Name: "building\x1b[2J"})
		time.Sleep(2 * time.Second)
		l.Begin(Phase{Name: "measuring", Amount: Of(&done, 21, "pairs")})
		time.Sleep(interval / 4) // not at the time of a look
		for range 25 {
			time.Sleep(time.Second)
			done.Add(1)
		}
		l.Close()
		time.Sleep(time.Minute)
		const want = "building\ufffd[2J …\nmeasuring: 1 of 21 pairs\nmeasuring: 11 of 21 pairs, 11s\nmeasuring: 21 of 21 pairs, 21s\n"
		if out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
		if l.Above(&out) != io.Writer(&out) {
			t.Error("there is nothing to erase, and results go through the line nevertheless")
		}
	})
}

// A pipe and a file aren't terminals, so they get no control characters.
func TestPipeIsPlain(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l := New(out)
	l.Begin(Phase{Name: "working", Takes: time.Minute})
	text := make([]byte, 100)
	n, err := in.Read(text) // the first line, after a second
	l.Close()
	out.Close()
	rest, _ := io.ReadAll(in)
	text = slices.Concat(text[:n], rest)
	if err != nil || !strings.HasPrefix(string(text), "working: ") || bytes.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' }) {
		t.Errorf("%q, %v", text, err)
	}
}

// Results and phases may come from several goroutines, and Close more than once.
func TestConcurrentUse(t *testing.T) {
	onScreen(t, 80, func(t *testing.T, s *screen, l *Line) {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				for range 50 {
					l.Begin(Phase{Name: fmt.Sprint("phase ", i)})
					fmt.Fprintln(l.Above(s), "a result")
					time.Sleep(time.Duration(i) * time.Millisecond)
				}
			})
		}
		all.Wait()
		l.Close()
		s.want(t, strings.Repeat("a result\n", 8*50))
	})
}
