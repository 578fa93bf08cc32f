package integration_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// patience is how long the tests wait for what must happen. It is generous because the machine may be busy and Caddy may
// carry the race detector; nobody waits that long unless something is wrong.
const patience = 20 * time.Second

// startPatience is for programs that start, some dozens of them at once in places, others after a compiler of theirs.
const startPatience = 3 * patience

// logBook collects what a program writes, line by line, and lets others wait for a line.
type logBook struct {
	mu      sync.Mutex
	lines   []logLine
	rest    []byte        // a line without its end
	changed chan struct{} // closed with the next line
}

// logLine is a line of a log, as it was written.
type logLine string

// Get returns a field of a line in JSON, by a gjson path such as request.uri.
func (l logLine) Get(path string) gjson.Result { return gjson.Get(string(l), path) }

func newLogBook() *logBook { return &logBook{changed: make(chan struct{})} }

// Write implements io.Writer for exec.Cmd.
func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rest = append(b.rest, p...)
	for {
		line, rest, whole := bytes.Cut(b.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		b.lines, b.rest = append(b.lines, logLine(line)), rest
		close(b.changed)
		b.changed = make(chan struct{})
	}
}

// String returns all that was written.
func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var s strings.Builder
	for _, line := range b.lines {
		s.WriteString(string(line) + "\n")
	}
	s.Write(b.rest)
	return s.String()
}

// logFilter picks lines.
type logFilter func(logLine) bool

// withMsg picks lines by their message.
func withMsg(msg string) logFilter { return withField("msg", msg) }

// withLogger picks lines by the name of their logger.
func withLogger(name string) logFilter { return withField("logger", name) }

// withField picks lines by a field, by a gjson path.
func withField(path, value string) logFilter {
	return func(l logLine) bool { return l.Get(path).String() == value }
}

// having picks lines with a piece of text.
func having(text string) logFilter {
	return func(l logLine) bool { return strings.Contains(string(l), text) }
}

// find returns the lines so far that all filters pick, and a channel that is closed when there are more lines.
func (b *logBook) find(filters []logFilter) ([]logLine, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found []logLine
next:
	for _, line := range b.lines {
		for _, picks := range filters {
			if !picks(line) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found, b.changed
}

// wait returns the first n lines that all filters pick, as soon as they are written. When the time is up or the program has
// ended, it returns what there is.
func (b *logBook) wait(limit time.Duration, n int, ended <-chan struct{}, filters ...logFilter) []logLine {
	timeout := time.After(limit)
	for {
		found, more := b.find(filters)
		if len(found) >= n {
			return found[:n]
		}
		select {
		case <-more:
		case <-ended:
			found, _ = b.find(filters)
			return found[:min(n, len(found))]
		case <-timeout:
			return found
		}
	}
}

// logLines returns the lines of Caddy's log so far that all filters pick.
func (p *caddyProc) logLines(filters ...logFilter) []logLine {
	found, _ := p.logs.find(filters)
	return found
}

// catchUp returns when all that Caddy has written to its log is there: the call that it makes has a line, too, and the last one.
func (p *caddyProc) catchUp(t testing.TB) {
	t.Helper()
	mark := fmt.Sprintf("/reverse_proxy/upstreams?%d", p.marks.Add(1))
	p.AdminGet(t, mark)
	p.waitForLog(t, having(`"`+mark+`"`))
}

// waitForLog returns the first line of Caddy's log that all filters pick, as soon as it is written.
func (p *caddyProc) waitForLog(t testing.TB, filters ...logFilter) logLine {
	t.Helper()
	return p.waitForLogs(t, 1, filters...)[0]
}

// waitForLogs returns the first n lines of Caddy's log that all filters pick, as soon as they are written.
func (p *caddyProc) waitForLogs(t testing.TB, n int, filters ...logFilter) []logLine {
	t.Helper()
	found := p.logs.wait(patience, n, p.ended, filters...)
	if len(found) < n {
		t.Fatalf("%d lines of %d came; the log:\n%s", len(found), n, p.logs)
	}
	return found
}
