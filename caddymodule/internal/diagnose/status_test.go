package diagnose

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

var statusTime = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func someWay() Way {
	return Way{
		Since: statusTime.Add(-3 * time.Hour),
		Upstreams: []ozclient.UpstreamStatus{
			{Address: "oz-1.internal:443", Healthy: true, Requests: 2},
			{Address: "oz-2.internal:443", Fails: 3},
		},
		GateStatus: upload.GateStatus{
			InFlight: 2, Slots: 3, Queued: 1, Queue: 12, Uploading: 4, HeldBytes: 5 << 20, MemoryBytes: 256 << 20,
			ServiceSeconds: 1.52, WaitSeconds: 0.5,
		},
		AccessToken:  &ozclient.TokenStatus{State: ozclient.TokenValid, ExpiresIn: 812},
		Decisions:    map[oz.Decision]int64{oz.Success: 12, oz.Unavailable: 3},
		LastFailures: []Failure{{oz.Timeout, statusTime.Add(-12 * time.Second), 3}},
	}
}

func someStatus(ways ...Way) Status {
	return Status{Started: statusTime.Add(-50 * time.Hour), Ready: true, Ways: ways}
}

// The table is what docs/operations.md shows.
func TestStatusTable(t *testing.T) {
	var out strings.Builder
	if err := NewBoard(&out).Status(someStatus(someWay()), statusTime); err != nil {
		t.Fatal(err)
	}
	const want = `ready, running since 2026-11-24 10:00:00 UTC, 2 days ago

way to Oz 1 of 1, known since 2026-11-26 09:00:00 UTC, 3h0m ago
  upstreams     oz-1.internal:443                 up        2 open      0 fails
                oz-2.internal:443                 DOWN      0 open      3 fails
  in flight     2 of 3
  queued        1 of 12, a newcomer waits about 0.5 s
  memory        5.0 MiB of 256 MiB, 4 uploads in progress
  service time  1.52 s
  access token  valid, good for 14m
  decisions     SUCCESS 12   DECLINED 0   OPERATOR_REQUIRED 0   FAILED 0
                INVALID 0   UNAVAILABLE 3
  failures      timeout                       3   last 12s ago
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// What a way doesn't have isn't shown as if it were 0.
func TestStatusTableOfABareWay(t *testing.T) {
	var out strings.Builder
	w := Way{Since: statusTime, Upstreams: nil, DynamicUpstreams: "srv", BasePath: "/oz", GateStatus: upload.GateStatus{InFlight: 7}}
	s := someStatus(w)
	s.Ready = false
	if err := NewBoard(&out).Status(s, statusTime); err != nil {
		t.Fatal(err)
	}
	const want = `NOT READY, running since 2026-11-24 10:00:00 UTC, 2 days ago

way to Oz 1 of 1, known since 2026-11-26 12:00:00 UTC, 0s ago
  dynamic       srv
  base path     /oz
  upstreams     none known yet
  in flight     7, no limit
  service time  not measured yet
  decisions     SUCCESS 0   DECLINED 0   OPERATOR_REQUIRED 0   FAILED 0
                INVALID 0   UNAVAILABLE 0
  failures      none
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := NewBoard(&out).Status(someStatus(), statusTime); err != nil || !strings.Contains(out.String(), "no oz_instant") {
		t.Errorf("without ways: %s, %v", out.String(), err)
	}
}

// hugeStatus has whatever could make a line too long, and steer a terminal.
func hugeStatus() Status {
	w := someWay()
	w.DynamicUpstreams, w.BasePath = strings.Repeat("source", 30), "/"+strings.Repeat("path", 40)
	w.Upstreams = nil
	for i := range 10 {
		w.Upstreams = append(w.Upstreams, ozclient.UpstreamStatus{
			Address:  fmt.Sprintf("%d-%s.svc.cluster.local:8080\x1b[2J\n", i, strings.Repeat("long-name.", 20)),
			Requests: 1 << (6 * i), Fails: 1 << (6 * i),
		}, ozclient.UpstreamStatus{Address: fmt.Sprintf("[2001:db8:1234:5678:9abc:def0:1234:%x]:65535", 0xfff0+i), Healthy: true})
	}
	w.InFlight, w.Slots, w.Queued, w.Queue, w.Uploading = 1<<62, 1<<62, 1<<30, 1<<30, 1<<30
	w.HeldBytes, w.MemoryBytes = 1<<62, 1<<62
	w.ServiceSeconds, w.WaitSeconds = 123456.789, 9999999.999
	w.AccessToken = &ozclient.TokenStatus{State: ozclient.TokenState(strings.Repeat("state\x1b", 30)), ExpiresIn: 1 << 30}
	for _, d := range oz.Decisions() {
		w.Decisions[d] = 1 << 62
	}
	for _, r := range oz.Reasons() {
		w.LastFailures = append(w.LastFailures, Failure{r, statusTime.Add(-1000 * 24 * time.Hour), 1 << 62})
	}
	hostile := w
	hostile.BasePath, hostile.DynamicUpstreams = "/"+strings.Repeat("漢字", 40), strings.Repeat("漢", 40)
	hostile.Upstreams = []ozclient.UpstreamStatus{{Address: strings.Repeat("漢字", 15), Requests: -1 << 63, Fails: -1 << 63}}
	hostile.ServiceSeconds, hostile.WaitSeconds = 1e308, -1e308
	hostile.Queued, hostile.Queue = -1<<63, 1<<63-1
	hostile.AccessToken = &ozclient.TokenStatus{State: ozclient.TokenState(strings.Repeat("漢", 20)), ExpiresIn: 1 << 62}
	hostile.LastFailures = []Failure{{oz.Reason(strings.Repeat("漢", 21)), time.Time{}, -1 << 63}}
	return someStatus(w, someWay(), w, hostile)
}

var sgr = regexp.MustCompile(`\x1b\[\d+m`)

// No line has more than 80 columns, whatever is in it, and nothing of it steers
// the terminal.
func TestStatusTableFits(t *testing.T) {
	for _, color := range []bool{false, true} {
		b := &Board{out: io.Discard, color: color}
		lines := b.table(hugeStatus(), statusTime)
		if len(lines) < 100 {
			t.Errorf("only %d lines", len(lines))
		}
		for _, line := range lines {
			plain := sgr.ReplaceAllString(line, "")
			n := utf8.RuneCountInString(plain) + strings.Count(plain, "漢") + strings.Count(plain, "字")
			if n > 80 || strings.ContainsAny(plain, "\x1b\n") {
				t.Errorf("%d columns: %q", n, line)
			}
			if !color && plain != line {
				t.Errorf("colored: %q", line)
			}
		}
	}
}

// Two that differ at one end are told apart when they are cut.
func TestShorten(t *testing.T) {
	for s, want := range map[string]string{
		"short": "short", "0123456789": "0123456789", "0123456789a": "01234…789a", "ööööööööööö": "ööööö…öööö",
		"漢字漢字漢": "漢字漢字漢", "漢字漢字漢字": "漢字…漢字",
	} {
		if got := shorten(s, 10); got != want || columns(got) > 10 {
			t.Errorf("%s: %s, want %s", s, got, want)
		}
	}
}

// screen is a terminal as high as it must be.
type screen struct {
	lines  []string
	cursor int
}

var control = regexp.MustCompile(`^\x1b\[(\??\d*)([A-Za-z])`)

func (s *screen) Write(p []byte) (int, error) {
	for text := string(p); text != ""; {
		if m := control.FindStringSubmatch(text); m != nil {
			n, _ := strconv.Atoi(m[1])
			switch m[2] {
			case "A":
				s.cursor -= n
			case "J":
				s.lines = s.lines[:s.cursor]
			case "K": // right of the cursor, which is at the end of what was written
				s.lines[s.cursor] = strings.TrimSuffix(s.lines[s.cursor], "\x00")
			}
			text = text[len(m[0]):]
			continue
		}
		r, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		for len(s.lines) <= s.cursor {
			s.lines = append(s.lines, "")
		}
		switch r {
		case '\n':
			s.cursor++
		case '\r':
			s.lines[s.cursor] = ""
		default:
			s.lines[s.cursor] += string(r)
		}
	}
	return len(p), nil
}

// On a terminal each status takes the place of the one before, also where it
// has fewer lines; the screen is never cleared.
func TestWatchOnATerminal(t *testing.T) {
	s := &screen{}
	b := &Board{out: s, terminal: true, height: func() int { return 1000 }}
	down := errors.New("no admin API answers at localhost:2019")
	for i, step := range []struct {
		status  Status
		failure error
	}{{status: someStatus(someWay())}, {status: hugeStatus()}, {failure: down}, {status: someStatus(someWay(), someWay())}} {
		if err := b.Watch(step.status, step.failure, statusTime); err != nil {
			t.Fatal(err)
		}
		want := []string{"2026-11-26T12:00:00Z"}
		if step.failure != nil {
			want = append(want, "NO STATUS, it is asked for again until you press Ctrl-C:", down.Error())
		} else {
			want = append(want, b.table(step.status, statusTime)...)
		}
		if got := strings.Join(s.lines, "\n"); got != strings.Join(want, "\n") {
			t.Errorf("step %d: the screen shows\n%s\nwant\n%s", i, got, strings.Join(want, "\n"))
		}
	}
}

// A block that is higher than the terminal is cut, and says so: what scrolls
// away can't be overwritten.
func TestWatchOnALowTerminal(t *testing.T) {
	s := &screen{}
	b := &Board{out: s, terminal: true, height: func() int { return 10 }}
	for range 3 {
		if err := b.Watch(hugeStatus(), nil, statusTime); err != nil {
			t.Fatal(err)
		}
		if len(s.lines) != 9 || !strings.HasPrefix(s.lines[8], "… ") || !strings.HasSuffix(s.lines[8], " more lines: make the window higher") {
			t.Errorf("the screen shows\n%s", strings.Join(s.lines, "\n"))
		}
	}
	lines := []string{"1", "2", "3", "4"}
	for height, want := range map[int]string{0: "1 2 3 4", 5: "1 2 3 4", 4: "1 2 … 2 more lines: make the window higher", 3: "1 … 3 more lines: make the window higher"} {
		if got := strings.Join(fit(lines, height), " "); got != want {
			t.Errorf("height %d: %s, want %s", height, got, want)
		}
	}
}

// Elsewhere each status follows the one before, with its time, and no control
// characters.
func TestWatchInAFile(t *testing.T) {
	var out strings.Builder
	b := NewBoard(&out)
	for i, failure := range []error{nil, errors.New("gone"), nil} {
		if err := b.Watch(someStatus(someWay()), failure, statusTime.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	text := out.String()
	if strings.Contains(text, "\x1b") || strings.Count(text, "way to Oz 1 of 1") != 2 || strings.Count(text, "NO STATUS") != 1 {
		t.Errorf("%q", text)
	}
	for i := range 3 {
		if !strings.Contains("\n"+text, fmt.Sprintf("\n2026-11-26T12:00:0%dZ\n", i)) {
			t.Errorf("no line for second %d in\n%s", i, text)
		}
	}
}

// What isn't a status is an error, and fields of a newer gateway are no fault.
func TestReadStatus(t *testing.T) {
	for doc, good := range map[string]bool{
		`{"ways": []}`: true, `{"ways": [{"new": 1, "slots": 2}], "newer": {}}`: true,
		`{}`: false, `null`: false, `[]`: false, `<html>`: false, ``: false, `{"ways": null}`: false,
	} {
		if _, err := ReadStatus([]byte(doc)); (err == nil) != good {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

// The document is the gateway's own, with what the program doesn't know.
func TestWriteStatus(t *testing.T) {
	var whole, line, failed strings.Builder
	doc := []byte("{\"ways\":[],\"newer\":\"\u009b<a>\"}\n")
	if err := errors.Join(WriteStatus(&whole, doc), WriteStatusLine(&line, doc, nil), WriteStatusLine(&failed, nil, errors.New("gone"))); err != nil {
		t.Fatal(err)
	}
	if whole.String() != "{\n  \"ways\": [],\n  \"newer\": \"�<a>\"\n}\n" || line.String() != "{\"ways\":[],\"newer\":\"�<a>\"}\n" || failed.String() != "{\"error\":\"gone\"}\n" {
		t.Errorf("%q, %q, %q", whole.String(), line.String(), failed.String())
	}
}
