package diagnose

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// site is a gateway and an app in one. It lets in whoever brings one of its capsules for the first time; hole lets in others.
type site struct {
	pages pages
	hole  func(*http.Request) bool // nil: none

	mu       sync.Mutex
	requests int
	shutsOut int // after so many requests; 0: never
	spent    map[string]bool
}

// pages are how a site answers.
type pages struct {
	in, out, undecided func() http.HandlerFunc
}

const (
	successCapsule  = "a capsule that ends in SUCCESS, number "
	declinedCapsule = "a capsule that ends in DECLINED, number "
)

func page(status int, header, body string) func() http.HandlerFunc {
	return func() http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			name, value, _ := strings.Cut(header, ": ")
			w.Header().Set(name, value)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, strings.ReplaceAll(body, "NOISE", noise()))
		}
	}
}

// noise returns letters only: with digits it would not be taken for words in the first place.
func noise() string {
	return strings.Map(func(c rune) rune { return 'a' + c%26 }, rand.Text()) + " " + strings.Map(func(c rune) rune { return 'a' + c%26 }, rand.Text())
}

func turns(handlers ...func() http.HandlerFunc) func() http.HandlerFunc {
	n := 0
	return func() http.HandlerFunc {
		n++
		return handlers[n%len(handlers)]()
	}
}

var honest = pages{
	in:        page(200, "Content-Type: application/json", `{"verdict":"welcome","id":"NOISE"}`),
	out:       page(403, "Content-Type: application/json", `{"verdict":"no entry","id":"NOISE"}`),
	undecided: page(401, "Content-Type: application/json", `{"verdict":"not decided","id":"NOISE"}`),
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	first := !s.spent[string(body)]
	answer := s.pages.undecided
	switch {
	case s.shutsOut > 0 && s.requests > s.shutsOut:
		answer = page(444, "Content-Type: text/html", "go away")
	case s.hole != nil && s.hole(r), strings.HasPrefix(string(body), successCapsule) && first:
		answer = s.pages.in
	case r.Header.Get("Content-Type") == "application/octet-stream":
		answer = s.pages.out
	}
	s.spent[string(body)] = len(body) > 0
	answer()(w, r)
}

// capsules returns as many as are wanted for a site.
func capsules(success, declined int) *Capsules {
	c := new(Capsules)
	for i := range success {
		c.Success = append(c.Success, fmt.Appendf(nil, "%s%d", successCapsule, i))
	}
	for i := range declined {
		c.Declined = append(c.Declined, fmt.Appendf(nil, "%s%d", declinedCapsule, i))
	}
	return c
}

// attackOn prepares an attack on a site of HTTP/1.1.
func attackOn(t *testing.T, s *site, c *Capsules) *attack {
	t.Helper()
	s.spent = map[string]bool{}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	to, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return &attack{
		opts:    AttackOptions{To: to, Path: "/verify", Capsules: c, Requests: 1000, Rate: 1e6, Timeout: 10 * time.Second},
		observe: func(AttackRow) {}, controls: map[string]reply{},
	}
}

// The kit must not take a site that it can't tell anything from for one that holds, however the site's answers look.
func TestAttackLearnsWhatASuccessIs(t *testing.T) {
	t.Parallel()
	const html = "Content-Type: text/html; charset=utf-8"
	with := func(in, out, undecided func() http.HandlerFunc) pages { return pages{in, out, undecided} }
	same := page(200, html, "thank you NOISE")
	for name, test := range map[string]struct {
		pages         pages
		success, decl int
		told, why     string
	}{
		"by status":             {honest, 3, 2, "200 application/json", ""},
		"by status, once":       {honest, 1, 0, "200 application/json", ""},
		"by media type":         {with(page(200, html, "x"), page(200, "Content-Type: text/plain", "x"), page(200, "Content-Type: text/plain", "x")), 1, 0, "200 text/html", ""},
		"by location":           {with(page(303, "Location: /in/123?t=456", ""), page(303, "Location: /out", ""), page(303, "Location: /out", "")), 2, 0, "303 to /in/#", ""},
		"by words":              {with(page(200, html, "come in NOISE"), page(200, html, "stay out NOISE"), page(200, html, "who are you NOISE")), 3, 1, "the words come", ""},
		"by words, once":        {with(page(200, html, "come in NOISE"), page(200, html, "stay out NOISE"), same), 1, 1, "", "second capsule"},
		"all the same":          {with(same, same, same), 3, 2, "", "can't be told apart"},
		"all random":            {with(page(200, html, "NOISE"), page(200, html, "NOISE"), page(200, html, "NOISE")), 3, 2, "", "can't be told apart"},
		"words of an undecided": {with(page(200, html, "come in NOISE"), page(403, html, "no"), turns(page(200, html, "come in"), page(401, html, "no"))), 3, 0, "", "can't be told apart"},
		"a success by turns":    {with(turns(page(200, html, "come in"), page(201, html, "come in")), page(403, html, "no"), page(401, html, "no")), 3, 2, "", "one time and"},
		"a refused success":     {with(page(403, "Content-Type: application/json", `{"verdict":"no entry"}`), honest.out, honest.undecided), 1, 0, "", "like what isn't one"},
		"busy":                  {with(honest.in, page(503, html, "later"), honest.undecided), 3, 2, "", "answered 503"},
		"a failing success":     {with(page(502, html, "no Oz"), honest.out, honest.undecided), 3, 2, "", "answered 502"},
		"no capsule":            {honest, 0, 0, "", "needs one more genuine capsule"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := attackOn(t, &site{pages: test.pages}, capsules(test.success, test.decl))
			err := a.learn(t.Context())
			if (err == nil) != (test.why == "") || err != nil && !strings.Contains(err.Error(), test.why) {
				t.Errorf("error %v, want %q", err, test.why)
			}
			if err == nil && !strings.HasPrefix(a.report.Told, test.told) {
				t.Errorf("told by %q, want %q", a.report.Told, test.told)
			}
		})
	}
}

// An answer is that of a success by what only successes have: neither by a word that the request itself said, nor by a kind that a
// harmless request gets, too.
func TestAttackComparesAnswers(t *testing.T) {
	t.Parallel()
	of := func(status int, mediaType, text string) reply { return reply{status, mediaType, "", words(text)} }
	byKind := learned{success: []reply{of(200, "application/json", "welcome abc"), of(200, "application/json", "welcome def")},
		others: []reply{of(403, "application/json", "no entry"), of(401, "application/json", "not decided")}}
	byWord := learned{success: byKind.success, others: []reply{of(200, "application/json", "no entry for you")}}
	once := learned{success: byKind.success[:1], others: byKind.others}
	for _, l := range []*learned{&byKind, &byWord, &once} {
		if _, err := l.conclude(); err != nil {
			t.Fatal(err)
		}
	}
	page := of(200, "application/json", "start page")
	for name, test := range map[string]struct {
		l         learned
		got       reply
		said      string
		control   *reply
		is, known bool
	}{
		"like a success":                     {byKind, of(200, "application/json", "anything"), "", nil, true, true},
		"another status":                     {byKind, of(403, "application/json", "welcome"), "", nil, false, true},
		"another type":                       {byKind, of(200, "text/html", "welcome"), "", nil, false, true},
		"like a page for all, its words":     {byKind, of(200, "application/json", "welcome"), "", &page, true, true},
		"like a page for all, other words":   {byKind, of(200, "application/json", "start page"), "", &page, false, true},
		"like a page for all, once":          {once, of(200, "application/json", "welcome"), "", &page, false, false},
		"the page is for others":             {byKind, of(200, "application/json", "start"), "", &byKind.others[0], true, true},
		"by its words":                       {byWord, of(200, "application/json", "you are welcome"), "", nil, true, true},
		"by other words":                     {byWord, of(200, "application/json", "no entry"), "", nil, false, true},
		"by a word that the request said":    {byWord, of(200, "application/json", "you said welcome"), "X: welcome", nil, false, false},
		"words differ from one to the other": {byWord, of(200, "application/json", "abc def"), "", nil, false, true},
	} {
		is, known := test.l.isSuccess(test.got, test.said, test.control)
		if is != test.is || known != test.known {
			t.Errorf("%s: %v, %v, want %v, %v", name, is, known, test.is, test.known)
		}
	}
	if got := slices.Sorted(maps.Keys(words(`<p class="a-b">Über 3f2a x7 9:00 ok no-entry</p>`))); !slices.Equal(got, []string{"class", "entry", "über"}) {
		t.Errorf("words: %q", got)
	}
}

// broken tries some rows and returns those that break.
func broken(t *testing.T, a *attack, rows []string) (list []string) {
	t.Helper()
	if err := a.learn(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range rows {
		if got, detail := a.try(t.Context(), rowNamed(t, name)); got == Broken {
			list = append(list, name)
		} else if got != Holds {
			t.Errorf("%s: %s, %s", name, got, detail)
		}
	}
	return list
}

// A hole is found by the rows that are about it, and an app without one is not accused.
func TestAttackFindsHoles(t *testing.T) {
	t.Parallel()
	has := func(name, value string) func(*http.Request) bool {
		return func(r *http.Request) bool { return slices.Contains(r.Header[name], value) }
	}
	rows := []string{
		"underscore in a name", "dot in a name", "steering headers", "health checks", "other methods", "encoded content", "content of a GET",
		"trailers", "forged seal", "forged decision, DECLINED", "Connection, DECLINED", "trailers, DECLINED", "header flood, DECLINED",
	}
	for name, test := range map[string]struct {
		hole func(*http.Request) bool
		want []string
	}{
		"none":           {nil, nil},
		"a health check": {has("User-Agent", "GoogleHC/1.0"), []string{"health checks"}},
		"an underscore":  {has("X_oz_decision", "SUCCESS"), []string{"underscore in a name", "forged decision, DECLINED"}},
		"a dot":          {has("X.oz.decision", "SUCCESS"), []string{"dot in a name", "forged decision, DECLINED"}},
		"the original URL": {func(r *http.Request) bool { return r.Header.Get("X-Original-Url") == "/" && r.Method == "POST" },
			[]string{"steering headers"}},
		"a PUT":       {func(r *http.Request) bool { return r.Method == "PUT" }, []string{"other methods"}},
		"an encoding": {func(r *http.Request) bool { return r.Header.Get("Content-Encoding") == "GZIP" }, []string{"encoded content"}},
		"a GET with JSON": {func(r *http.Request) bool {
			return r.Method == "GET" && r.ContentLength != 0 && r.Header.Get("Content-Type") == "application/json"
		}, []string{"content of a GET"}},
		"a trailer": {func(r *http.Request) bool { return r.Trailer.Get("X-Oz-Decision") != "" }, []string{"trailers", "trailers, DECLINED"}},
		"a seal": {func(r *http.Request) bool {
			return r.Header.Get("X-Oz-Seal") != "" && r.Header.Get("X-Oz-Decision") == ""
		}, []string{"forged seal"}},
		"Connection": {func(r *http.Request) bool {
			return strings.Contains(strings.Join(r.Header["Connection"], ","), "x-oz-decision")
		},
			[]string{"Connection, DECLINED"}},
		"a flood": {func(r *http.Request) bool { return len(r.Header) > 1000 && r.Header.Get("X-Oz-Decision") == "" }, []string{"header flood, DECLINED"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := attackOn(t, &site{pages: honest, hole: test.hole}, capsules(3, 20))
			if got := broken(t, a, rows); !slices.Equal(got, test.want) {
				t.Errorf("broken: %q, want %q", got, test.want)
			}
		})
	}
}

// largeCapsule is over what Go's server takes before the first word of it.
const largeCapsule = 1_500_000

// Probes over HTTP/2 arrive: they find a hole that HTTP/1.1 doesn't have, also by trailers, by headers of many frames and by capsules
// that are larger than a window.
func TestAttackOverH2(t *testing.T) {
	t.Parallel()
	for row, hole := range map[string]func(*http.Request) bool{
		"other separators": func(r *http.Request) bool { return r.Header.Get("X!Oz!Decision") == "SUCCESS" },
		"several lines":    func(r *http.Request) bool { return len(r.Header["X-Oz-Decision"]) == 2 },
		"trailers":         func(r *http.Request) bool { return r.Trailer.Get("X-Oz-Decision") == "SUCCESS" },
		"other methods": func(r *http.Request) bool {
			return r.Method == "PROPFIND" && r.ContentLength == int64(len(forgedFolder))
		},
		"content of a GET":   func(r *http.Request) bool { return r.Method == "GET" && r.ContentLength == -1 },
		"CONNECT":            func(r *http.Request) bool { return r.Method == "CONNECT" && r.Header.Get("X-Oz-Quality") != "" },
		"replay":             func(r *http.Request) bool { return r.ContentLength == largeCapsule },
		"header flood":       func(r *http.Request) bool { return len(r.Header) > 4000 },
		"trailers, DECLINED": func(r *http.Request) bool { return r.Trailer.Get("X_Oz_Decision") == "SUCCESS" },
	} {
		t.Run(row, func(t *testing.T) {
			t.Parallel()
			found, h2 := attackedOverH2(t, row, hole)
			for tries := 1; !h2 && tries < 5; tries++ { // the handshake took longer than the second that it has here
				found, h2 = attackedOverH2(t, row, hole)
			}
			if !found || !h2 {
				t.Errorf("it is not found, HTTP/2: %v", h2)
			}
		})
	}
}

// attackedOverH2 attacks a site with a hole, and returns whether the row finds it, and whether the site took HTTP/2.
func attackedOverH2(t *testing.T, row string, hole func(*http.Request) bool) (found, h2 bool) {
	t.Helper()
	s := &site{pages: honest, spent: map[string]bool{}, hole: func(r *http.Request) bool { return r.ProtoMajor == 2 && hole(r) }}
	server := httptest.NewUnstartedServer(s)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	c := capsules(3, 20)
	for i, capsule := range c.Success {
		if row != "replay" {
			break
		}
		c.Success[i] = append(capsule, bytes.Repeat([]byte{'x'}, largeCapsule-len(capsule))...)
	}
	a := attackOn(t, &site{}, c)
	a.opts.To, _ = url.Parse(server.URL)
	a.opts.TLS = server.Client().Transport.(*http.Transport).TLSClientConfig
	return len(broken(t, a, []string{row})) == 1, a.h2
}

// rowNamed returns a row of the table.
func rowNamed(t *testing.T, name string) row {
	t.Helper()
	i := slices.IndexFunc(rowTable, func(r row) bool { return r.name == name })
	if i < 0 {
		t.Fatalf("there is no row %q", name)
	}
	return rowTable[i]
}

// A genuine SUCCESS from which the client has taken the decision shows that it can take a DECLINED away as well, however the app
// treats a request without one. A site may refuse such a request.
func TestAttackSeesALostDecision(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]State{200: Holds, 400: Holds, 431: Holds, 401: Broken, 403: Broken, 503: Unknown} {
		s := &site{pages: honest}
		lost := page(status, "Content-Type: application/json", "{}")
		s.pages.in = func() http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.Header.Get("Connection"), "X-Oz-Decision") {
					lost()(w, r)
					return
				}
				honest.in()(w, r)
			}
		}
		a := attackOn(t, s, capsules(5, 0))
		if err := a.learn(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, detail := a.try(t.Context(), rowNamed(t, "Connection, SUCCESS")); got != want {
			t.Errorf("%d: %s, %s, want %s", status, got, detail, want)
		}
	}
}

// A capsule that counts twice is found, one after the other and at once.
func TestAttackReplays(t *testing.T) {
	t.Parallel()
	again := func(r *http.Request) bool {
		return r.Method == "POST" && r.Header.Get("Content-Type") == "application/octet-stream" && r.ContentLength == int64(len(successCapsule)+1)
	}
	for name, hole := range map[string]func(*http.Request) bool{"once": nil, "twice": again} {
		a := attackOn(t, &site{pages: honest, hole: hole}, capsules(5, 0))
		if err := a.learn(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, row := range []string{"replay", "replay at once"} {
			want := Holds
			if hole != nil {
				want = Broken
			}
			if got, detail := a.try(t.Context(), rowNamed(t, row)); got != want {
				t.Errorf("%s, %s: %s, %s", name, row, got, detail)
			}
		}
	}
}

// A site that shuts the kit out answers nothing as a SUCCESS. That must not count as holding.
func TestAttackIsShutOut(t *testing.T) {
	t.Parallel()
	s := &site{pages: honest, shutsOut: 40}
	a := attackOn(t, s, capsules(3, 0))
	report, err := Attack(t.Context(), a.opts, func(AttackPlan) {}, func(AttackRow) {})
	if err != nil || report.Holds || report.State() != Unknown || !strings.Contains(report.Why, "shuts this client out") {
		t.Errorf("%v, %+v", err, report)
	}
}

// The bound on requests is kept, and rows that it leaves out do not pass. The plan is never less than the requests that are made.
func TestAttackIsBounded(t *testing.T) {
	t.Parallel()
	for bound, want := range map[int]State{50: Unknown, 5000: Holds} {
		s := &site{pages: honest}
		a := attackOn(t, s, capsules(20, 40))
		a.opts.Requests, a.opts.Timeout = bound, 5*time.Second // a tenth of it for what may rightly hang
		planned := 0
		report, err := Attack(t.Context(), a.opts, func(p AttackPlan) {
			planned = p.Requests
			if s.requests > 0 {
				t.Error("a request came before the plan")
			}
		}, func(AttackRow) {})
		if err != nil || report.State() != want || report.Requests > planned || planned > bound || s.requests > planned {
			t.Errorf("bound %d: planned %d, did %d, the site saw %d, %s: %v, %s", bound, planned, report.Requests, s.requests, report.State(), err, report.Why)
		}
		if bound == 50 && !slices.ContainsFunc(report.Rows, func(r AttackRow) bool { return r.State == NotTried && strings.Contains(r.Detail, "bound") }) {
			t.Errorf("no row says that the bound was reached: %+v", report.Rows)
		}
	}
}

// The rate is kept from the first request on.
func TestAttackRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &attack{opts: AttackOptions{Requests: 100, Rate: 10}}
		start := time.Now()
		for range 21 {
			if err := a.spend(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("21 requests took %s", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.spend(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
		if err := a.spend(t.Context(), 100); !errors.Is(err, errBound) {
			t.Errorf("over the bound: %v", err)
		}
	})
}

// A row that was not tried is none that holds, and one that is broken is worse than all.
func TestAttackState(t *testing.T) {
	t.Parallel()
	for want, reports := range map[State][]AttackReport{
		Holds:   {{Rows: []AttackRow{{State: Holds}}}},
		Unknown: {{Rows: []AttackRow{{State: Holds}, {State: NotTried}}}, {Rows: []AttackRow{{State: Unknown}, {State: Holds}}}, {Why: "no answer"}},
		Broken:  {{Rows: []AttackRow{{State: Unknown}, {State: Broken}, {State: NotTried}}}, {Why: "no answer", Rows: []AttackRow{{State: Broken}}}},
	} {
		for _, r := range reports {
			if got := r.State(); got != want {
				t.Errorf("%+v: %s, want %s", r, got, want)
			}
		}
	}
}

// Every request names its sender and signs in, and each row has a name of its own.
func TestAttackRows(t *testing.T) {
	t.Parallel()
	a := attackOn(t, &site{pages: honest}, capsules(0, 0))
	a.h2, a.opts.Fields = true, []string{"Cookie: session=mine"}
	seen := map[string]bool{}
	for _, r := range rowTable {
		if r.name == "" || r.advisory == "-" || seen[r.name] || len(r.name) > 26 {
			t.Errorf("row %q, %q", r.name, r.advisory)
		}
		seen[r.name] = true
		first := r.probes(a)
		if len(first) == 0 {
			t.Errorf("%s: nothing is fired", r.name)
		}
		for i, again := range r.probes(a) {
			if again.String() != first[i].String() {
				t.Errorf("%s: %s and then %s: the order differs from one run to another", r.name, first[i], again)
			}
			text := again.raw
			if text == "" {
				text = string(a.h1(again.request))
			}
			if (!strings.Contains(text, attackAgent) || !strings.Contains(text, "\r\nCookie: session=mine\r\n")) && !strings.HasPrefix(text, "GET /verify\r\n") { // HTTP/0.9 has no fields
				t.Errorf("%s, %s neither names its sender nor signs in", r.name, again)
			}
		}
	}
}

// Columns are straight, and text of a site can't steer a terminal.
func TestAttackPrints(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := NewPrinter(&out, quietLine(t))
	for _, r := range []AttackRow{
		{Name: "trailers"}, {"trailers", "CVE-2025-12642", Holds, "", 4}, {"replay", "", NotTried, "needs one more", 0},
		{"dot in a name", "CVE-2026-88011", Broken, "a\x1b[2J\nb", 1},
	} {
		p.PrintRow(r)
	}
	const want = "    HOLDS  trailers                   CVE-2025-12642\n" +
		"NOT TRIED  replay                     -                    needs one more\n" +
		"   BROKEN  dot in a name              CVE-2026-88011       a�[2J; b\n"
	if out.String() != want {
		t.Errorf("%s", out.String())
	}
}
