package diagnose

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// AttackOptions say what to attack, and how hard.
type AttackOptions struct {
	To       *url.URL // the site; of it only scheme and host count
	Path     string   // the protected path
	Fields   []string // of every request, as "Name: value": a sign-in, say
	Capsules *Capsules
	Requests int           // at most so many
	Rate     float64       // at most so many a second
	Timeout  time.Duration // for each request
	TLS      *tls.Config   // for https
}

// States of an attack's rows, besides Unknown.
const (
	Holds    State = "holds"
	Broken   State = "broken"
	NotTried State = "not tried"
)

// AttackRow is one way in, and whether it is open.
type AttackRow struct {
	Name     string `json:"row"`
	Advisory string `json:"advisory,omitempty"`
	State    State  `json:"state"` // empty: it begins
	Detail   string `json:"detail,omitempty"`
	Requests int    `json:"requests"`
}

// AttackReport is what came of an attack.
type AttackReport struct {
	To       string      `json:"to"`
	Holds    bool        `json:"holds"`             // every row was tried, and holds
	Told     string      `json:"success_told_by"`   // what only a genuine SUCCESS is answered with
	Why      string      `json:"why_not,omitempty"` // nothing, or nothing more, could be told
	Requests int         `json:"requests"`
	Rows     []AttackRow `json:"rows"`
}

// State returns that of the whole: Broken before Unknown before Holds. A row that was not tried is nothing that holds.
func (r AttackReport) State() State {
	worst := Holds
	if r.Why != "" {
		worst = Unknown
	}
	for _, row := range r.Rows {
		switch row.State {
		case Broken:
			return Broken
		case Unknown, NotTried:
			worst = Unknown
		}
	}
	return worst
}

// AttackPlan is what an attack will do.
type AttackPlan struct {
	To        string
	Host      string
	Requests  int // at most
	Rate      float64
	Rows      int
	Successes int // genuine capsules that all rows together can use
	Declines  int
	Source    string // where capsules come from
}

// Attack tries the known attacks on software of this kind on a deployed chain of gateway and app. It needs nothing of the app: it
// first learns how an undecided request, a refused one and a genuine SUCCESS are answered. It calls announce before the first
// request, and observe as each row begins and as it ends.
//
// Its error says that the options are invalid. The report says if the site gave nothing to tell.
func Attack(ctx context.Context, opts AttackOptions, announce func(AttackPlan), observe func(AttackRow)) (AttackReport, error) {
	a := &attack{opts: opts, observe: observe, controls: map[string]reply{}}
	a.report.To = opts.To.Scheme + "://" + opts.To.Host + opts.Path
	if opts.Requests < 1 || opts.Rate <= 0 || opts.Timeout <= 0 {
		return a.report, errors.New("requests, rate and timeout must be greater than zero")
	}
	a.h2 = true // until it is known better: the plan says how much it will be at most
	announce(a.plan())
	if err := a.run(ctx); err != nil {
		a.report.Why = cmp.Or(context.Cause(ctx), err).Error()
	}
	a.report.Requests = a.used
	a.report.Holds = a.report.State() == Holds
	return a.report, nil
}

// attack is one call of Attack.
type attack struct {
	opts     AttackOptions
	observe  func(AttackRow)
	h2       bool // the site speaks HTTP/2
	learned  learned
	spent    []byte           // the capsule of a SUCCESS
	controls map[string]reply // to harmless requests, by method and target
	report   AttackReport

	mu   sync.Mutex
	used int       // requests
	next time.Time // when the next may go
}

func (a *attack) run(ctx context.Context) error {
	if err := a.learn(ctx); err != nil {
		return err
	}
	for _, r := range rowTable {
		a.observe(AttackRow{Name: r.name, Advisory: r.advisory})
		before := a.used
		state, detail := a.try(ctx, r)
		if ctx.Err() != nil {
			return ctx.Err() // the site isn't why the row ended
		}
		done := AttackRow{r.name, r.advisory, state, detail, a.used - before}
		a.report.Rows = append(a.report.Rows, done)
		a.observe(done)
	}
	return a.relearn(ctx)
}

func (a *attack) plan() AttackPlan {
	p := AttackPlan{
		To: a.report.To, Host: a.opts.To.Host, Rate: a.opts.Rate, Rows: len(rowTable), Source: a.opts.Capsules.String(),
		Requests: learningRequests, Successes: learningSuccesses, Declines: learningDeclines,
	}
	for _, r := range rowTable {
		for _, s := range r.probes(a) {
			p.Requests += s.cost(a)
			switch s.needs {
			case genuine:
				p.Successes++
			case declined:
				p.Declines++
			case nothing, used:
			}
		}
	}
	p.Requests = min(p.Requests, a.opts.Requests)
	return p
}

var errBound = errors.New("the bound of requests is reached")

// spend waits until n more requests may be sent.
func (a *attack) spend(ctx context.Context, n int) error {
	wait, ok := a.reserve(n)
	if !ok {
		return errBound
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

func (a *attack) reserve(n int) (wait time.Duration, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used+n > a.opts.Requests {
		return 0, false
	}
	a.used += n
	now := time.Now()
	if a.next.Before(now) {
		a.next = now
	}
	wait = a.next.Sub(now)
	a.next = a.next.Add(time.Duration(float64(n) / a.opts.Rate * float64(time.Second)))
	return wait, true
}

// result is what came of a probe.
type result struct {
	state  State // empty: not fired
	detail string
}

// try fires all probes of a row, or those up to the first that breaks it. Those for which the site may rightly wait go at once.
func (a *attack) try(ctx context.Context, r row) (State, string) {
	probes := r.probes(a)
	results := make([]result, len(probes))
	var waiting sync.WaitGroup
	for i, s := range probes {
		if s.hangs {
			waiting.Go(func() { results[i] = a.fire(ctx, s) })
			continue
		}
		if results[i] = a.fire(ctx, s); results[i].state == Broken || results[i].state == NotTried {
			break
		}
	}
	waiting.Wait()
	worst := result{Holds, ""}
	for i, got := range results {
		if got.state == Unknown || got.state == Broken {
			got.detail = probes[i].String() + ": " + got.detail
		}
		if badness[got.state] > badness[worst.state] {
			worst = got
		}
	}
	return worst.state, worst.detail
}

// badness orders the states that a row can have.
var badness = map[State]int{Holds: 0, NotTried: 1, Unknown: 2, Broken: 3}

// fire sends one probe and judges the answers.
func (a *attack) fire(ctx context.Context, s probe) result {
	var control *reply
	if s.wantsControl(a) {
		c, err := a.control(ctx, s)
		if err != nil {
			return notSent(err)
		}
		control = &c
	}
	if err := a.load(ctx, &s); err != nil {
		return result{NotTried, err.Error()}
	}
	if err := a.spend(ctx, s.requests()); err != nil {
		return notSent(err)
	}
	answers, err := a.send(ctx, s)
	if err != nil {
		return notSent(err)
	}
	return a.judge(s, answers, control)
}

// notSent returns the result of a probe that did not get to the site.
func notSent(err error) result {
	if errors.Is(err, errBound) {
		return result{NotTried, err.Error()}
	}
	return result{Unknown, err.Error()}
}

// load puts a genuine capsule into a probe that needs one.
func (a *attack) load(ctx context.Context, s *probe) (err error) {
	switch s.needs {
	case genuine, declined:
		s.request.body, err = a.opts.Capsules.take(ctx, s.needs)
	case used:
		s.request.body = a.spent
	}
	return err
}

// judge looks for the answer of a genuine SUCCESS among those to a probe.
func (a *attack) judge(s probe, answers []reply, control *reply) result {
	successes := 0
	for _, got := range answers {
		if busy(got.status) {
			return result{Unknown, fmt.Sprintf("answered %d: try again later, or with a lower rate", got.status)}
		}
		is, known := a.learned.isSuccess(got, s.said(), control)
		if !known {
			return result{Unknown, "the answer cannot be told from that of a SUCCESS"}
		}
		if is {
			successes++
		}
	}
	switch {
	case s.keeps && successes == 0:
		return lost(answers)
	case successes > s.allowed():
		return result{Broken, "answered as only a SUCCESS is"}
	}
	return result{Holds, ""}
}

// lost judges a genuine SUCCESS that was not answered as one. A site may refuse such a header. If it passes the request on without
// the decision, a client can hide its DECLINED in the same way.
func lost(answers []reply) result {
	if len(answers) == 0 || slices.Contains(refusals, answers[0].status) {
		return result{Holds, ""}
	}
	return result{Broken, fmt.Sprintf("a genuine SUCCESS was answered %d: its decision did not arrive", answers[0].status)}
}

var refusals = []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusRequestHeaderFieldsTooLarge}

// busy reports whether a status says nothing of the request.
func busy(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}

// control returns the answer to a harmless request of the same method to the same target: an app that answers everything with a
// page is not let through for that.
func (a *attack) control(ctx context.Context, s probe) (reply, error) {
	key := s.request.method + " " + s.request.target
	if got, ok := a.controls[key]; ok {
		return got, nil
	}
	harmless := probe{request: request{method: s.request.method, target: s.request.target, fields: []string{"Content-Type: text/plain"}, body: []byte("harmless")}}
	got, err := a.ask(ctx, harmless)
	if err == nil {
		a.controls[key] = got
	}
	return got, err
}

// ask sends a probe that has one answer. It returns the zero reply if the site closes the connection instead.
func (a *attack) ask(ctx context.Context, s probe) (reply, error) {
	if err := a.spend(ctx, 1); err != nil {
		return reply{}, err
	}
	answers, err := a.send(ctx, s)
	if err != nil || len(answers) == 0 {
		return reply{}, err
	}
	return answers[0], nil
}
