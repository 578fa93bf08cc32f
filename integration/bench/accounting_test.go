package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// hand gives the app what a gateway would.
func (a *accounting) hand(t *testing.T, id, transaction, decision string) string {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, verifyPath, strings.NewReader(`{"meta_data":{"transaction_id":"`+transaction+`"}}`))
	r.Header.Set("X-Request-Id", id)
	r.Header.Set("X-Oz-Decision", decision)
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w.Body.String()
}

// An accounting in which nothing is wrong, and what each single mistake makes of it.
func TestAccounting(t *testing.T) {
	const success, declined = sandbox.Success, sandbox.Declined
	problem := response{status: 503, problem: true, text: `{"type":"urn:oz-instant:problem:overloaded"}`}
	for _, c := range []struct {
		name    string
		mistake func(t *testing.T, l *accounting, taken, analyzed map[string]int)
		want    string // of the error; empty: none
	}{
		{"none", func(*testing.T, *accounting, map[string]int, map[string]int) {}, ""},
		{"analyzed twice", func(_ *testing.T, _ *accounting, _, analyzed map[string]int) { analyzed["a"] = 2 }, "duplicate: a: came to Oz 2 times, to the app 1 times"},
		{"delivered on twice", func(t *testing.T, l *accounting, _, _ map[string]int) { l.hand(t, "a", "a", success) }, "duplicate: a: came to Oz 1 times, to the app 2 times"},
		{"delivered on twice, gone", func(t *testing.T, l *accounting, _, _ map[string]int) { l.hand(t, "gone", "gone", success) }, "duplicate: gone"},
		{"cut off", func(_ *testing.T, l *accounting, _, _ map[string]int) {
			l.sent("a", response{err: errors.New("EOF")})
		}, `lost: a: taken 1 times, the client got 0 "" (EOF), the app ["a SUCCESS"]`},
		{"cut off and served later", func(_ *testing.T, _ *accounting, taken, _ map[string]int) { taken["a"] = 2 }, "lost: a: the gateway took it 2 times"},
		{"never taken", func(_ *testing.T, _ *accounting, taken, _ map[string]int) { delete(taken, "a") }, "lost: a: taken 0 times"},
		{"decided and not delivered on", func(_ *testing.T, l *accounting, _, _ map[string]int) {
			l.sending("b", success)
			l.sent("b", response{status: 200, text: "b SUCCESS"})
		}, "lost: b"},
		{"refused and delivered on", func(t *testing.T, l *accounting, _, _ map[string]int) { l.hand(t, "refused", "refused", success) }, "lost: refused"},
		{"refused without a document", func(_ *testing.T, l *accounting, _, _ map[string]int) {
			l.sent("refused", response{status: 502, text: "bad gateway"})
		}, "lost: refused"},
		{"told another", func(_ *testing.T, l *accounting, _, _ map[string]int) {
			l.sent("a", response{status: 200, text: "gone SUCCESS"})
		}, "lost: a"},
		{"wrong SUCCESS", func(_ *testing.T, l *accounting, _, _ map[string]int) { l.records["a"].outcome = declined }, `wrong: a: the app was told "a SUCCESS"`},
		{"SUCCESS of a garbled capsule", func(_ *testing.T, l *accounting, _, _ map[string]int) { l.records["a"].outcome = "" }, `wrong: a: the app was told "a SUCCESS"`},
		{"another's folder", func(t *testing.T, l *accounting, _, analyzed map[string]int) {
			l.sending("b", success)
			l.sent("b", response{status: 200, text: l.hand(t, "b", "a", success)})
			analyzed["b"] = 1
		}, `wrong: b: the app was told "a SUCCESS"`},
		{"undecided", func(t *testing.T, l *accounting, _, _ map[string]int) { l.hand(t, "a", "a", "") }, `wrong: a: decision ""`},
		{"from nowhere", func(t *testing.T, l *accounting, _, _ map[string]int) { l.hand(t, "c", "c", success) }, `wrong: c: decision "SUCCESS"`},
		{"nothing refused", func(_ *testing.T, l *accounting, _, _ map[string]int) { delete(l.records, "refused") }, "longer run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newAccounting()
			l.sending("a", success)
			l.sent("a", response{status: 200, text: l.hand(t, "a", "a", success)})
			l.sending("refused", success)
			l.sent("refused", problem)
			l.sending("gone", success)
			l.hand(t, "gone", "gone", success)
			l.sent("gone", response{left: true, err: errLeft})
			taken, analyzed := map[string]int{"a": 1, "refused": 1, "gone": 1}, map[string]int{"a": 1, "gone": 1}
			c.mistake(t, l, taken, analyzed)
			b := l.totals(taken, analyzed)
			err := b.err()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if c.want == "" {
				var out strings.Builder
				b.print(&out)
				const want = "sent 3 = decided 1 + refused 1 + gone 1; duplicates 0, lost 0, wrong decisions 0\nrefused: overloaded 1\n1 of the departed clients"
				if !strings.HasPrefix(out.String(), want) {
					t.Errorf("printed %s", out.String())
				}
			}
		})
	}
}

func TestSoak(t *testing.T) {
	t.Parallel()
	var stdout, stderr strings.Builder
	if err := execute(t.Context(), []string{"soak", "--caddy", caddy(t), "--for", "1s", "--clients", "8"}, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s\n%s", err, stdout.String(), stderr.String())
	}
	if !strings.Contains(stdout.String(), "; duplicates 0, lost 0, wrong decisions 0\n") {
		t.Errorf("printed %s", stdout.String())
	}
}
