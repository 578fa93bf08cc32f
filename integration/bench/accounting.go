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

// accounting records for each request with a capsule what its client sent and got. It is also the app, and records what the app got.
type accounting struct {
	mu         sync.Mutex
	records    map[string]*record
	unexpected []string // what the app got that belongs to no capsule
}

// record holds everything that is known of a request.
type record struct {
	capsule   string // its id: of several requests with the same capsule, that of the first
	outcome   string // that the capsule asks Oz for; empty: Oz cannot read it
	response  response
	delivered []string // decisions that the app got, each with the id in the folder
}

func newAccounting() *accounting { return &accounting{records: map[string]*record{}} }

func (a *accounting) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.records)
}

func (a *accounting) sending(id, outcome string) { a.sendingAgain(id, id, outcome) }

// sendingAgain is for a request with the capsule of another one.
func (a *accounting) sendingAgain(id, capsule, outcome string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[id] = &record{capsule: capsule, outcome: outcome}
}

func (a *accounting) sent(id string, r response) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[id].response = r
}

// ServeHTTP serves as the app. It answers with the decision that it got, and the capsule that this is about.
func (a *accounting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.records[id]; err == nil && e != nil && decision != "" && !strings.Contains(string(body), "image_b64") {
		e.delivered = append(e.delivered, told)
	} else {
		a.unexpected = append(a.unexpected, fmt.Sprintf("%s: decision %q, a body of %d bytes, %v", id, decision, len(body), err))
	}
	io.WriteString(w, told)
}

// receipt returns what the app answers to the client.
func receipt(id, decision string) string { return id + " " + decision }

// totals says what became of all capsules.
type totals struct {
	sent, decided, refused, gone int

	refusals      map[string]int
	goneDelivered int      // of the gone: those of which the app got the decision
	duplicates    []string // that came to Oz or to the app twice
	lost          []string // ended with neither a decision nor a refusal, nor by a client that left
	wrong         []string // decisions that belong to another capsule
}

// totals adds up. By the id of a capsule, taken counts how often the gateway took it from a client, and analyzed how often Oz got it.
func (a *accounting) totals(taken, analyzed map[string]int) (t totals) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t.refusals = map[string]int{}
	t.wrong = append(t.wrong, a.unexpected...)
	toOz, toApp := map[string]int{}, map[string]int{}
	for id, e := range a.records {
		t.sent++
		t.enter(id, e, taken[id])
		toOz[e.capsule] += analyzed[id]
		toApp[e.capsule] += len(e.delivered)
		for _, told := range e.delivered {
			if !strings.HasPrefix(told, e.capsule+" ") || strings.HasSuffix(told, " "+sandbox.Success) && e.outcome != sandbox.Success {
				t.wrong = append(t.wrong, fmt.Sprintf("%s: the app was told %q of a capsule that asks for %q", id, told, e.outcome))
			}
		}
	}
	for capsule, n := range toOz {
		if n > 1 || toApp[capsule] > 1 {
			t.duplicates = append(t.duplicates, fmt.Sprintf("%s: came to Oz %d times, to the app %d times", capsule, n, toApp[capsule]))
		}
	}
	return t
}

func (t *totals) enter(id string, e *record, taken int) {
	r := e.response
	switch {
	case taken > 1:
		t.lost = append(t.lost, fmt.Sprintf("%s: the gateway took it %d times, and cut the client off", id, taken))
	case r.left:
		t.gone++
		t.goneDelivered += len(e.delivered)
	case taken == 1 && r.status == http.StatusOK && len(e.delivered) > 0 && r.text == e.delivered[0]:
		t.decided++
	case taken == 1 && r.status >= 400 && r.problem && len(e.delivered) == 0:
		t.refused++
		t.refusals[problemType(r.text)]++
	default:
		t.lost = append(t.lost, fmt.Sprintf("%s: taken %d times, the client got %d %q (%v), the app %q", id, taken, r.status, r.text, r.err, e.delivered))
	}
}

func (t totals) print(out io.Writer) {
	fmt.Fprintf(out, "sent %d = decided %d + refused %d + gone %d; duplicates %d, lost %d, wrong decisions %d\n",
		t.sent, t.decided, t.refused, t.gone, len(t.duplicates), len(t.lost), len(t.wrong))
	fmt.Fprintf(out, "refused: %s\n", counts(t.refusals))
	fmt.Fprintf(out, "%d of the departed clients had finished uploading; the app still got their decisions\n", t.goneDelivered)
}

func (t totals) err() error {
	var errs []error
	for what, records := range map[string][]string{"duplicate": t.duplicates, "lost": t.lost, "wrong": t.wrong} {
		for _, e := range records[:min(len(records), 20)] {
			errs = append(errs, fmt.Errorf("%s: %s", what, e))
		}
	}
	if t.sent != t.decided+t.refused+t.gone && len(errs) == 0 {
		errs = append(errs, errors.New("the totals do not add up"))
	}
	if t.decided == 0 || t.refused == 0 || t.gone == 0 {
		errs = append(errs, errors.New("no capsule was decided, or none refused, or none gone (want a longer run)"))
	}
	return errors.Join(errs...)
}

// problemType returns the last word of a problem document's type.
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

// totals is called after the last answer, when no capsule is in progress any more.
func (e *soakEnv) totals() (t totals, err error) {
	taken, analyzed := map[string]int{}, map[string]int{}
	lines, err := e.gateway.logged(accessMessage)
	if err != nil {
		return t, err
	}
	for _, l := range lines {
		taken[l.Request.Header.Get("X-Request-Id")]++
	}
	for _, i := range e.instances {
		for _, r := range i.oz.Received() {
			analyzed[r.Header.Get("X-Request-Id")]++
		}
	}
	return e.accounting.totals(taken, analyzed), nil
}
