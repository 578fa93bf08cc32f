package caddymodule

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// attempt is what happened to a capsule. A Result is made from it.
type attempt struct {
	upload    upload.State
	queued    time.Duration // waiting for capacity
	uploading time.Duration // receiving, before it was admitted
	buffered  bool          // that was all of it
	stored    time.Duration // waiting for the replay guard's store
	gone      bool          // the client left in the meantime

	refused  error // why the capsule did not get to Oz: *upload.Refused or the client's fault; nil if it did
	liveness ozclient.Answer
	err      error  // of liveness
	match    *match // face matching; nil if it was not tried

	guarded guarded // what the replay guard makes of it
}

// match is what came of face matching.
type match struct {
	answer    ozclient.Answer
	err       error
	asked     bool          // Oz was asked
	reference time.Duration // the app's time for the photo
}

// Result is what came of a capsule. It is final once made: nothing changes it
// on its way into headers, placeholders, metrics and the log.
type Result struct {
	attempt
	verdict  oz.Verdict // of liveness, or the worse one of face matching
	fault    error      // the client's: nothing was decided
	why      error      // for the log
	busy     upload.Cause
	bestShot string   // word for X-Oz-Best-Shot
	words    []string // the facts that are words, in the order of facts
}

// newResult makes the Result of a. The best shot's word depends on whether the
// handler attaches images.
func newResult(a attempt, attach bool) *Result {
	res := &Result{attempt: a}
	var busy *upload.Refused
	switch {
	case errors.As(a.refused, &busy):
		res.verdict, res.why, res.busy = oz.ReasonVerdict(oz.Overloaded), busy, busy.Cause
	case errors.Is(a.refused, errGuarded): // guarded says why
	case a.refused != nil:
		res.fault = a.refused
	default:
		res.verdict = a.liveness.Verdict
		res.take(a.err)
		res.takeMatch(a.match)
	}
	if res.fault != nil {
		res.verdict = oz.Verdict{}
		return res
	}
	res.takeGuarded()
	if attach && reachesApp(res.verdict.Decision) {
		res.bestShot = bestShotWord(a.liveness.BestShots)
	}
	res.words = make([]string, len(facts))
	for i, f := range facts {
		if f.value != nil {
			res.words[i] = f.value(res)
		}
	}
	return res
}

// take notes why a call failed.
func (res *Result) take(err error) {
	failed, ok := errors.AsType[*ozclient.Error](err)
	switch {
	case !ok:
		res.why = err
	case failed.Fault == ozclient.FaultClient:
		res.fault, res.why = failed.Err, failed.Err
	default:
		res.why = failed.Err
	}
}

// takeMatch makes the worse of liveness and face matching the decision.
// Liveness was a SUCCESS, or nothing would have been matched.
func (res *Result) takeMatch(m *match) {
	if m == nil {
		return
	}
	v := m.answer.Verdict
	res.verdict.Decision, res.verdict.Reason, res.verdict.Error = v.Decision, v.Reason, v.Error
	res.take(m.err)
}

// takeGuarded makes what the replay guard says the decision. A folder that was
// here before is nobody's any more.
func (res *Result) takeGuarded() {
	switch g := res.guarded; g.reason {
	case "":
	case oz.Binding: // the folder lacks what must count once
		res.verdict = oz.Verdict{Decision: oz.Invalid, Reason: oz.Binding, Folder: res.verdict.Folder}
	default:
		res.verdict, res.why, res.busy = oz.ReasonVerdict(g.reason), g.err, ""
	}
}

// reachesApp reports whether a decision is passed to the app without being
// asked for: Oz decided, and the app must act on it.
func reachesApp(d oz.Decision) bool {
	switch d {
	case oz.Success, oz.Declined, oz.OperatorRequired, oz.Failed:
		return true
	}
	return false
}

// decisive returns the folder that decided, if its words are about this request:
// "SUCCESS" of liveness must not stand beside faces that do not match.
func (res *Result) decisive() *oz.Folder {
	switch {
	case !reachesApp(res.verdict.Decision):
		return nil // a folder about somebody else
	case res.match != nil:
		return res.match.answer.Verdict.Folder
	}
	return res.verdict.Folder
}

// fact is one thing that is known of a decision: the name of its placeholder
// and log field, and the header field that tells the app.
type fact struct {
	name   string
	header string               // empty: none
	value  func(*Result) string // empty: absent; else safe in a header field
	number func(*Result) int64  // in place of value
}

// facts are all there are.
var facts = [...]fact{
	{"decision", headerDecision, func(res *Result) string { return string(res.verdict.Decision) }, nil},
	{"reason", "X-Oz-Reason", func(res *Result) string { return string(res.verdict.Reason) }, nil},
	{"folder_id", "X-Oz-Folder-Id", folderFact(func(f *oz.Folder) string { return f.ID }), nil},
	{"event_session_id", "X-Oz-Event-Session-Id", folderFact(func(f *oz.Folder) string { return f.EventSessionID }), nil},
	{"resolution_status", "X-Oz-Resolution-Status", decisiveFact(func(f *oz.Folder) string { return f.ResolutionStatus }), nil},
	{"system_resolution", "X-Oz-System-Resolution", decisiveFact(func(f *oz.Folder) string { return f.SystemResolution }), nil},
	{"quality", "X-Oz-Quality", (*Result).quality, nil},
	{"biometry", "X-Oz-Biometry", (*Result).biometry, nil},
	{"error_code", "X-Oz-Error-Code", (*Result).errorCode, nil},
	{"best_shot", "X-Oz-Best-Shot", func(res *Result) string { return res.bestShot }, nil},
	{"capsule_bytes", "", nil, func(res *Result) int64 { return res.upload.Bytes }},
	{"oz_ms", "", nil, func(res *Result) int64 { return res.liveness.Time.Milliseconds() }},
}

const headerDecision = "X-Oz-Decision"

func folderFact(of func(*oz.Folder) string) func(*Result) string {
	return func(res *Result) string {
		if res.verdict.Folder == nil {
			return ""
		}
		return headerValue(of(res.verdict.Folder))
	}
}

func decisiveFact(of func(*oz.Folder) string) func(*Result) string {
	return func(res *Result) string {
		if f := res.decisive(); f != nil {
			return headerValue(of(f))
		}
		return ""
	}
}

func (res *Result) quality() string {
	if res.verdict.Folder == nil || !reachesApp(res.verdict.Decision) {
		return ""
	}
	return headerValue(res.verdict.Folder.AnalysisStatus(oz.Quality))
}

func (res *Result) biometry() string {
	f := res.decisive()
	if f == nil { // no match, or one without an answer
		if f = res.verdict.Folder; f == nil || !reachesApp(res.verdict.Decision) {
			return ""
		}
	}
	return headerValue(f.AnalysisStatus(oz.Biometry))
}

func (res *Result) errorCode() string {
	if res.verdict.Error == nil {
		return ""
	}
	return headerValue(strconv.Itoa(res.verdict.Error.Code))
}

// headerValue returns s if it is safe in one of our headers, 1 to 128 letters,
// digits and ". _ : -"; otherwise "" and the header is omitted. What Oz sends is
// data, and some of it was written by the device.
func headerValue(s string) string {
	if len(s) > 128 {
		return ""
	}
	for i := range len(s) {
		c := s[i]
		if separates(c) && c != '.' && c != '_' && c != ':' && c != '-' {
			return ""
		}
	}
	return s
}

// setHeader writes the facts for the app. Reserved names were stripped, so
// that what isn't set here is absent.
func (res *Result) setHeader(h http.Header) {
	for i, f := range facts {
		if res.words[i] != "" {
			h[f.header] = []string{res.words[i]}
		}
	}
}

// setClaims writes the facts that the app gets as header fields into its seal.
func (res *Result) setClaims(claims map[string]any) {
	for i, f := range facts {
		if res.words[i] != "" {
			claims[f.name] = res.words[i]
		}
	}
}

// placeholder returns the value of facts[i].
func (res *Result) placeholder(i int) any {
	if number := facts[i].number; number != nil {
		return number(res)
	}
	return res.words[i]
}

func unusable(shots []oz.BestShot) (n int) {
	for _, shot := range shots {
		if shot.JPEG == nil {
			n++
		}
	}
	return n
}

// record makes res the decision of this request.
func (s *requestState) record(res *Result) {
	if res.fault == nil {
		s.result = res
	}
}
