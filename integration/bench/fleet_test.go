package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const sec = time.Second

// goodBooks are those of a run of ten seconds with two slots in which nothing is wrong: 20 capsules are decided, the first two begin at
// the same instant, and each begins as another ends. One more is refused, and one gone with its gateway, which Oz was analyzing.
func goodBooks(t *testing.T) (*fleetRun, *evidence) {
	t.Helper()
	epoch := time.Now()
	v := &evidence{accounting: newAccounting(), taken: map[string]int{}, at: func(t time.Time) time.Duration { return t.Sub(epoch) }}
	for i := range 20 {
		id := string(rune('a' + i))
		from := time.Duration(i/2) * sec
		v.accounting.sending(id, sandbox.Success)
		v.taken[id] = 1
		end := epoch.Add(from + sec)
		a := analysis{id: id, begin: from, read: from + time.Millisecond, end: from + sec}
		switch id {
		case "e":
			v.accounting.sent(id, response{left: true, ended: end})
		case "f":
			a.cut = true
			v.accounting.sent(id, response{status: 502, problem: true, text: `{"type":"urn:oz-instant:problem:connection_lost"}`, ended: end})
		default:
			v.accounting.sent(id, response{status: 200, text: v.accounting.hand(t, id, id, sandbox.Success), ended: end})
		}
		v.analyses = append(v.analyses, a)
	}
	v.accounting.sending("refused", sandbox.Success)
	v.accounting.sent("refused", response{status: 503, problem: true, text: `{"type":"urn:oz-instant:problem:overloaded"}`, ended: epoch.Add(sec)})
	v.taken["refused"] = 1
	return &fleetRun{slots: 2, analysis: sec, phases: []phase{{"first", window{0, 5 * sec}}, {"second", window{5 * sec, 10 * sec}}}}, v
}

// Books in which nothing is wrong, and what each single mistake makes of them.
func TestFleetBooks(t *testing.T) {
	for name, c := range map[string]struct {
		mistake func(t *testing.T, r *fleetRun, v *evidence)
		want    string // of the error; empty: none
	}{
		"none":                     {func(*testing.T, *fleetRun, *evidence) {}, ""},
		"analyzed twice":           {func(_ *testing.T, _ *fleetRun, v *evidence) { v.analyses[1].id = "a" }, "duplicate: a: came to Oz 2 times"},
		"analyzed twice as a copy": {func(_ *testing.T, _ *fleetRun, v *evidence) { v.accounting.records["b"].capsule = "a" }, "duplicate: a: came to Oz 2 times, to the app 2 times"},
		"told to the app twice":    {func(t *testing.T, _ *fleetRun, v *evidence) { v.accounting.hand(t, "a", "a", sandbox.Success) }, "duplicate: a: came to Oz 1 times, to the app 2 times"},
		"missing at Oz":            {func(_ *testing.T, _ *fleetRun, v *evidence) { v.analyses = v.analyses[1:] }, "oz: a: decided, and Oz never got it"},
		"missing at the app":       {func(_ *testing.T, _ *fleetRun, v *evidence) { v.accounting.records["a"].delivered = nil }, "lost: a"},
		"missing at its client":    {func(_ *testing.T, _ *fleetRun, v *evidence) { v.accounting.sent("a", response{err: errors.New("EOF")}) }, "lost: a"},
		"missing at the gateways":  {func(_ *testing.T, _ *fleetRun, v *evidence) { delete(v.taken, "a") }, "lost: a"},
		"taken twice":              {func(_ *testing.T, _ *fleetRun, v *evidence) { v.taken["a"] = 2 }, "lost: a: the gateway took it 2 times"},
		"from nowhere":             {func(_ *testing.T, _ *fleetRun, v *evidence) { v.analyses[0].id = "x" }, "oz: x: came to Oz, and nobody had sent it"},
		"in vain": {func(_ *testing.T, _ *fleetRun, v *evidence) { v.analyses[5].cut = false },
			"oz: f: Oz analyzed it, and its client got 502 connection_lost"},
		"cut without a kill": {func(_ *testing.T, _ *fleetRun, v *evidence) {
			v.accounting.sent("e", response{err: errors.New("EOF")})
		}, "lost: e"},
		"one over the slots": {func(_ *testing.T, r *fleetRun, v *evidence) {
			v.analyses[4].begin -= time.Nanosecond
			r.events = []event{{"a kill", sec, sec, 0}, {"a new one", 5 * sec, 0, 0}}
		}, "3 analyses at once, 1.0 s after: a kill (want at most 2)"},
		"over the slots after the load": {func(_ *testing.T, r *fleetRun, v *evidence) {
			for i := range 3 {
				a := &v.analyses[17+i]
				a.begin, a.read, a.end = 11*sec, 11*sec, 12*sec
			}
		}, "3 analyses at once"},
		"a slot idle": {func(_ *testing.T, _ *fleetRun, v *evidence) { v.analyses[18].read = v.analyses[18].end },
			"second: the slots are 89.9 % busy"},
		"a slot idle just after a fault": {func(_ *testing.T, r *fleetRun, v *evidence) {
			v.analyses[18].read = v.analyses[18].end
			r.events = []event{{"a kill", 9 * sec, sec, 0}}
		}, ""},
		"overtaken": {func(_ *testing.T, _ *fleetRun, v *evidence) {
			v.turns = []turn{{"x", 1 * sec, 4 * sec}, {"y", 2 * sec, 3 * sec}}
		},
			"first: a capsule waited for 1s after a later one"},
		"overtaken just after a fault": {func(_ *testing.T, r *fleetRun, v *evidence) {
			v.turns = []turn{{"x", 1 * sec, 4 * sec}, {"y", 2 * sec, 3 * sec}}
			r.events = []event{{"a kill", 3 * sec, 0, 2 * sec}}
		}, ""},
		"nobody gone": {func(t *testing.T, _ *fleetRun, v *evidence) {
			v.accounting.sent("e", response{status: 200, text: v.accounting.hand(t, "e", "e", sandbox.Success)})
		}, "none gone"},
	} {
		t.Run(name, func(t *testing.T) {
			r, v := goodBooks(t)
			c.mistake(t, r, v)
			b := r.books(*v)
			err := b.err()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			var out strings.Builder
			b.print(&out)
			if strings.HasSuffix(out.String(), ": yes\n") != (c.want == "") {
				t.Errorf("printed %s", out.String())
			}
		})
	}
}

// The table's counts add up to the totals.
func TestFleetTable(t *testing.T) {
	r, v := goodBooks(t)
	var out strings.Builder
	r.books(*v).print(&out)
	for _, want := range []string{
		"  first                      5.0      9       6       2     1     99.9 %   99.9 %        2 ",
		"  second                     5.0     12      12       0     0     99.9 %   99.9 %        2 ",
		"sent 21 = decided 18 + refused 2 + gone 1; duplicates 0, lost 0, wrong decisions 0\n",
		"began 20 = decided 18 + cut with an Oz 1 + cut with a gateway 1; unexplained 0\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("printed\n%swant %s", out.String(), want)
		}
	}
}

func TestMostAtOnce(t *testing.T) {
	all := []analysis{{begin: 0, end: 10}, {begin: 2, end: 5}, {begin: 5, end: 8}, {begin: 4, end: 6}, {begin: 20, end: 20}}
	for _, c := range []struct {
		w    window
		want int
		at   time.Duration
	}{{window{0, 30}, 3, 4}, {window{0, 4}, 2, 2}, {window{4, 5}, 3, 4}, {window{7, 8}, 2, 7}, {window{9, 30}, 1, 9}, {window{10, 30}, 0, 0}} {
		if got, at := mostAtOnce(all, c.w); got != c.want || at != c.at {
			t.Errorf("%v: %d at once at %d, want %d at %d", c.w, got, at, c.want, c.at)
		}
	}
}

func TestWindowWithout(t *testing.T) {
	got := window{0, 10}.without([]window{{2, 4}, {3, 5}, {8, 20}, {-3, 1}})
	if want := []window{{1, 2}, {5, 8}}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	if got := (window{0, 10}).without([]window{{0, 10}}); got != nil {
		t.Errorf("left %v of nothing", got)
	}
}

// A turn is overtaken by those that came clearly later to other gateways and were first, for as long as it still had to wait.
func TestOvertaken(t *testing.T) {
	at := func(gateway string, since, turned int) turn {
		return turn{gateway, time.Duration(since) * sec, time.Duration(turned) * sec}
	}
	all := []turn{at("x", 0, 10), at("y", 7, 11), at("x", 3, 12), at("x", 2, 13), at("y", 1, 16), at("z", 8, 20)}
	all = append(all, turn{"z", 7*sec + sameTime, 10 * sec}, turn{"x", 30 * sec, 40 * sec}, turn{"x", 31 * sec, 39 * sec})
	if got, want := overtaken(all, []window{{0, 100 * sec}}), []time.Duration{0, 0, 0, 0, 0, 0, 2 * sec, 3 * sec, 6 * sec}; !slices.Equal(got, want) {
		t.Errorf("overtaken by %v, want %v", got, want)
	}
	if got, want := overtaken(all, []window{{12 * sec, 13 * sec}, {13 * sec, 14 * sec}}), []time.Duration{2 * sec, 3 * sec}; !slices.Equal(got, want) {
		t.Errorf("overtaken by %v in the window, want %v", got, want)
	}
	if got := percentile([]time.Duration{1, 2, 3, 4}, 50); got != 2 {
		t.Errorf("median %d", got)
	}
	if got := percentile([]time.Duration{1, 2, 3, 4}, 99); got != 4 {
		t.Errorf("99 %%: %d", got)
	}
}

// Only a capsule that was at a gateway when that was killed may be gone.
func TestKilled(t *testing.T) {
	now := time.Now()
	e := &fleetEnv{kills: []gatewayKill{{"x", now, now.Add(sec)}}}
	for name, c := range map[string]struct {
		a    response
		want bool
	}{
		"in progress":     {response{via: "x", begun: now.Add(-sec), ended: now.Add(time.Millisecond)}, true},
		"another gateway": {response{via: "y", begun: now.Add(-sec), ended: now.Add(time.Millisecond)}, false},
		"no gateway":      {response{begun: now.Add(-sec), ended: now.Add(time.Millisecond)}, false},
		"before":          {response{via: "x", begun: now.Add(-sec), ended: now.Add(-time.Millisecond)}, false},
		"long after":      {response{via: "x", begun: now.Add(-sec), ended: now.Add(2 * sec)}, false},
		"begun after":     {response{via: "x", begun: now.Add(2 * sec), ended: now.Add(3 * sec)}, false},
	} {
		if got := e.killed(c.a); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestParseNotes(t *testing.T) {
	const notes = "begin 1000000000 a\nread 1100000000 a\nbegin 1200000000 b\nend 2000000000 a\nbegin 2100000000 c\nread 2200000000 c\n"
	got, err := parseNotes(strings.NewReader(notes), 3*sec)
	want := []analysis{
		{"a", sec, 1100 * time.Millisecond, 2 * sec, false},
		{"b", 1200 * time.Millisecond, 0, 3 * sec, true},
		{"c", 2100 * time.Millisecond, 2200 * time.Millisecond, 3 * sec, true},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err := parseNotes(strings.NewReader(notes), 2*sec+answerTime/2); err != nil || !got[0].cut {
		t.Errorf("an answer just before the kill: got %v, %v", got, err)
	}
	for name, notes := range map[string]string{
		"never ended": "begin 1 a\n", "never began": "end 1 a\n", "twice at once": "begin 1 a\nbegin 2 a\n", "unreadable": "begin a\n", "half a note": "begin 1",
	} {
		if _, err := parseNotes(strings.NewReader(notes), 0); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// An instance's notes are there before the gateway can know: begin before Oz reads, end before its answer.
func TestOzNotes(t *testing.T) {
	oz, err := sandbox.New(sandbox.Options{AcceptAny: true, AnalysisTime: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer oz.Close()
	var notes strings.Builder
	before := monotonic()
	r := httptest.NewRequest(http.MethodPost, foldersPath, strings.NewReader("a capsule"))
	r.Header.Set("X-Request-Id", "x")
	r.Header.Set("Content-Type", "application/octet-stream")
	answer := &noteReader{ResponseRecorder: httptest.NewRecorder(), notes: &notes}
	(&ozNotes{oz: oz, out: &notes}).ServeHTTP(answer, r)
	all, err := parseNotes(strings.NewReader(answer.before), 0)
	if err != nil || len(all) != 1 || answer.Code != http.StatusCreated {
		t.Fatalf("answer %d; before it notes were %q: %v", answer.Code, answer.before, err)
	}
	a := all[0]
	if a.id != "x" || a.begin < before || a.read < a.begin || a.end < a.read+20*time.Millisecond || a.end > monotonic() {
		t.Errorf("got %+v", a)
	}
	if notes.String() != answer.before {
		t.Errorf("after the answer came more notes: %q", notes.String())
	}
}

// noteReader remembers what the notes were when the answer began.
type noteReader struct {
	*httptest.ResponseRecorder
	notes  *strings.Builder
	before string
}

func (n *noteReader) WriteHeader(status int) {
	n.before = n.notes.String()
	n.ResponseRecorder.WriteHeader(status)
}

// The name server answers as Caddy's resolver asks, and knows at once of an instance that comes or goes.
func TestNameServer(t *testing.T) {
	s, err := startNameServer(8080)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", s.addr())
	}}
	expect := func(want ...string) {
		t.Helper()
		ips, err := resolver.LookupIP(t.Context(), "ip4", ozName)
		_, services, errSRV := resolver.LookupSRV(t.Context(), "", "", ozService)
		if len(want) > 0 && (err != nil || errSRV != nil) {
			t.Fatalf("%v, %v", err, errSRV)
		}
		var gotA, gotSRV []string
		for _, ip := range ips {
			gotA = append(gotA, ip.String())
		}
		for _, service := range services {
			target, err := resolver.LookupIP(t.Context(), "ip4", service.Target)
			if err != nil || len(target) != 1 || service.Port != 8080 {
				t.Fatalf("%s:%d: %v, %v", service.Target, service.Port, target, err)
			}
			gotSRV = append(gotSRV, target[0].String())
		}
		slices.Sort(gotA)
		slices.Sort(gotSRV)
		if !slices.Equal(gotA, want) || !slices.Equal(gotSRV, want) {
			t.Errorf("got A %v, SRV %v, want %v", gotA, gotSRV, want)
		}
	}
	expect()
	s.add("oz1.fleet.test.", netip.MustParseAddr("127.0.2.1"))
	s.add("oz2.fleet.test.", netip.MustParseAddr("127.0.2.2"))
	expect("127.0.2.1", "127.0.2.2")
	s.remove("oz1.fleet.test.")
	expect("127.0.2.2")
	if _, err := resolver.LookupIP(t.Context(), "ip4", "oz1.fleet.test."); err == nil {
		t.Error("a name of an instance that is out is still known")
	}
}
