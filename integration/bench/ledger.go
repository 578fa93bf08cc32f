package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// ledger has an entry for each capsule, of what its client sent and got. It is the app, too, and enters what that got.
type ledger struct {
	mu      sync.Mutex
	entries map[string]*entry
	strange []string // what the app got that belongs to no capsule
}

// entry is all that is known of a capsule.
type entry struct {
	outcome string // that it asks Oz for; empty: Oz cannot read it
	attempt attempt
	handed  []string // decisions that the app got, each with the id in the folder
}

func newLedger() *ledger { return &ledger{entries: map[string]*entry{}} }

func (l *ledger) sending(id, outcome string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries[id] = &entry{outcome: outcome}
}

func (l *ledger) sent(id string, a attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries[id].attempt = a
}

// ServeHTTP is the app. It answers with the decision that it got, and for which capsule.
func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var folder struct {
		Meta struct {
			Transaction string `json:"transaction_id"`
		} `json:"meta_data"`
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err == nil {
		err = json.Unmarshal(body, &folder)
	}
	id, decision := r.Header.Get("X-Request-Id"), r.Header.Get("X-Oz-Decision")
	told := receipt(folder.Meta.Transaction, decision)
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.entries[id]; err == nil && e != nil && decision != "" && !strings.Contains(string(body), "image_b64") {
		e.handed = append(e.handed, told)
	} else {
		l.strange = append(l.strange, fmt.Sprintf("%s: decision %q, a body of %d bytes, %v", id, decision, len(body), err))
	}
	io.WriteString(w, told)
}

// receipt is what the app says to the client.
func receipt(id, decision string) string { return id + " " + decision }

// balance is the account of all capsules.
type balance struct {
	sent, decided, refused, gone int

	refusals   map[string]int
	goneHanded int      // of the gone: the app got the decision
	duplicates []string // judged or handed on twice
	lost       []string // neither a decision, nor a refusal, nor did the client leave
	wrong      []string // a decision that is not this capsule's
}

// balance adds up. By id of the capsule, taken is how often the gateway took it from a client, and judged how often Oz got it.
func (l *ledger) balance(taken, judged map[string]int) (b balance) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b.refusals = map[string]int{}
	b.wrong = append(b.wrong, l.strange...)
	for id, e := range l.entries {
		b.sent++
		b.enter(id, e, taken[id])
		if n := judged[id]; n > 1 || len(e.handed) > 1 {
			b.duplicates = append(b.duplicates, fmt.Sprintf("%s: came to Oz %d times, to the app %d times", id, n, len(e.handed)))
		}
		for _, told := range e.handed {
			if !strings.HasPrefix(told, id+" ") || strings.HasSuffix(told, " "+sandbox.Success) && e.outcome != sandbox.Success {
				b.wrong = append(b.wrong, fmt.Sprintf("%s: the app was told %q of a capsule that asks for %q", id, told, e.outcome))
			}
		}
	}
	return b
}

func (b *balance) enter(id string, e *entry, taken int) {
	a := e.attempt
	switch {
	case taken > 1:
		b.lost = append(b.lost, fmt.Sprintf("%s: the gateway took it %d times, and cut the client off", id, taken))
	case a.left:
		b.gone++
		b.goneHanded += len(e.handed)
	case taken == 1 && a.status == http.StatusOK && len(e.handed) > 0 && a.text == e.handed[0]:
		b.decided++
	case taken == 1 && a.status >= 400 && a.problem && len(e.handed) == 0:
		b.refused++
		b.refusals[problemType(a.text)]++
	default:
		b.lost = append(b.lost, fmt.Sprintf("%s: taken %d times, the client got %d %q (%v), the app %q", id, taken, a.status, a.text, a.err, e.handed))
	}
}

func (b balance) print(out io.Writer) {
	fmt.Fprintf(out, "sent %d = decided %d + refused %d + gone %d; duplicates %d, lost %d, wrong decisions %d\n",
		b.sent, b.decided, b.refused, b.gone, len(b.duplicates), len(b.lost), len(b.wrong))
	fmt.Fprintf(out, "refused: %s\n", counts(b.refusals))
	fmt.Fprintf(out, "of those gone, the app got the decision of %d, whose capsules were whole\n", b.goneHanded)
}

func (b balance) err() error {
	var errs []error
	for what, entries := range map[string][]string{"duplicate": b.duplicates, "lost": b.lost, "wrong": b.wrong} {
		for _, e := range entries[:min(len(entries), 20)] {
			errs = append(errs, fmt.Errorf("%s: %s", what, e))
		}
	}
	if b.sent != b.decided+b.refused+b.gone && len(errs) == 0 {
		errs = append(errs, errors.New("the account does not add up"))
	}
	if b.decided == 0 || b.refused == 0 || b.gone == 0 {
		errs = append(errs, errors.New("not everything happened that has to be accounted for: soak for longer"))
	}
	return errors.Join(errs...)
}

// problemType is the last word of a problem document's type.
func problemType(document string) string {
	var problem struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal([]byte(document), &problem); err != nil {
		return "unreadable"
	}
	return problem.Type[strings.LastIndexByte(problem.Type, ':')+1:]
}

func counts(m map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, m[name]))
	}
	return strings.Join(parts, ", ")
}

// balance is taken when all is over: then no capsule is under way any more.
func (w *world) balance() (b balance, err error) {
	taken, judged := map[string]int{}, map[string]int{}
	lines, err := w.gateway.logged(accessMessage)
	if err != nil {
		return b, err
	}
	for _, l := range lines {
		taken[l.Request.Header.Get("X-Request-Id")]++
	}
	for _, i := range w.instances {
		for _, r := range i.oz.Received() {
			judged[r.Header.Get("X-Request-Id")]++
		}
	}
	return w.ledger.balance(taken, judged), nil
}
