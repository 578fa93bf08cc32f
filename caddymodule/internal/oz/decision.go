package oz

import "slices"

// Decision is what came of a capsule.
type Decision string

const (
	Success          Decision = "SUCCESS"           // accept the user
	Declined         Decision = "DECLINED"          // reject the user
	OperatorRequired Decision = "OPERATOR_REQUIRED" // a person has to look
	Failed           Decision = "FAILED"            // the analyses give no answer
	Invalid          Decision = "INVALID"           // the capsule is not acceptable
	Unavailable      Decision = "UNAVAILABLE"       // Oz gave no answer
)

// Reason says why a Decision is FAILED, INVALID or UNAVAILABLE.
type Reason string

const (
	AnalysisFailed   Reason = "analysis_failed"   // Oz says FAILED
	AnalysisMissing  Reason = "analysis_missing"  // Oz says SUCCESS, but not all required analyses do
	StatusUnknown    Reason = "status_unknown"    // Oz says none of the words that are known
	Binding          Reason = "binding"           // the folder does not carry a value that it must
	Container        Reason = "container"         // Oz refused the capsule
	Replayed         Reason = "replayed"          // the capsule was here before
	Unauthorized     Reason = "unauthorized"      // Oz refused the access token, or the lack of one
	Overloaded       Reason = "overloaded"        // Oz, or the gateway in front of it, is busy
	TooLargeForOz    Reason = "too_large_for_oz"  // Oz takes only smaller capsules
	UnexpectedStatus Reason = "unexpected_status" // an HTTP status that the guide does not know
	MalformedAnswer  Reason = "malformed_answer"  // not a JSON folder, or not all of one
	Unreachable      Reason = "unreachable"       // nothing was sent
	ConnectionLost   Reason = "connection_lost"   // something was sent, no answer came
	Timeout          Reason = "timeout"           // no answer came in time
	StoreUnavailable Reason = "store_unavailable" // nobody knows whether the capsule was here before

	// Face matching, where it is asked for, comes after a SUCCESS of liveness.
	BestShotMissing      Reason = "best_shot_missing"     // Oz gave none to match
	ReferenceMissing     Reason = "reference_missing"     // the app has no photo of this user
	ReferenceTooLarge    Reason = "reference_too_large"   // the app's photo is larger than allowed
	ReferenceNotImage    Reason = "reference_not_image"   // what the app gave is no JPEG and no PNG
	ReferenceUnavailable Reason = "reference_unavailable" // the app gave no photo, and no word that it has none
	MatchRefused         Reason = "match_refused"         // Oz could not use the two images
)

// Outcome is a row of the policy table.
type Outcome struct {
	Decision Decision
	Reason   Reason // empty where the Decision says it all
}

// outcomes is the policy table. There is no outcome but these.
var outcomes = []Outcome{
	{Success, ""},
	{Declined, ""},
	{OperatorRequired, ""},
	{Failed, AnalysisFailed},
	{Failed, AnalysisMissing},
	{Failed, StatusUnknown},
	{Invalid, Binding},
	{Invalid, Container},
	{Invalid, Replayed},
	{Unavailable, Unauthorized},
	{Unavailable, Overloaded},
	{Unavailable, TooLargeForOz},
	{Unavailable, UnexpectedStatus},
	{Unavailable, MalformedAnswer},
	{Unavailable, Unreachable},
	{Unavailable, ConnectionLost},
	{Unavailable, Timeout},
	{Unavailable, StoreUnavailable},
	{Failed, BestShotMissing},
	{Failed, ReferenceMissing},
	{Failed, ReferenceTooLarge},
	{Failed, ReferenceNotImage},
	{Failed, ReferenceUnavailable},
	{Failed, MatchRefused},
}

// Outcomes lists every outcome there can be, in the order of the table.
func Outcomes() []Outcome { return slices.Clone(outcomes) }

// Decisions lists every Decision, in the order of the table.
func Decisions() []Decision {
	list := make([]Decision, 0, len(outcomes))
	for _, row := range outcomes {
		if !slices.Contains(list, row.Decision) {
			list = append(list, row.Decision)
		}
	}
	return list
}

// Reasons lists every Reason, in the order of the table.
func Reasons() []Reason {
	list := make([]Reason, 0, len(outcomes))
	for _, row := range outcomes {
		if row.Reason != "" {
			list = append(list, row.Reason)
		}
	}
	return list
}

// Requirement is a value that a folder must carry to be about this user.
type Requirement struct {
	Path  Path
	Value string // an empty one never holds
}

// Policy says what has to be true for SUCCESS beyond Oz saying so.
type Policy struct {
	// Analyses are the types, in upper case, of which at least one analysis
	// must have run and none may have ended without success. The guide decides
	// by the folder's two top-level fields alone, but which analyses run is
	// chosen by the device.
	Analyses []string
}

// Verdict is a Decision and what it rests on.
type Verdict struct {
	Decision Decision
	Reason   Reason
	Folder   *Folder // nil unless one was read
	Error    *Error  // nil unless Oz gave one, for the capsule or for a failed analysis
	Err      error   // why the Reason is MalformedAnswer; quotes nothing of the answer
}

// Judge decides by Oz's answer: its HTTP status and its body, which for 200
// and 201 is the pruned folder. Whatever is not known to be good is not.
func (p Policy) Judge(status int, doc []byte, requirements []Requirement) Verdict {
	if status != 200 && status != 201 {
		return JudgeStatus(status, doc)
	}
	folder, err := ReadFolder(doc)
	if err != nil {
		return Verdict{Decision: Unavailable, Reason: MalformedAnswer, Err: err}
	}
	for _, r := range requirements {
		if !r.Path.Holds(doc, r.Value) {
			return Verdict{Decision: Invalid, Reason: Binding, Folder: folder}
		}
	}
	return p.judgeFolder(folder)
}

func (p Policy) judgeFolder(f *Folder) Verdict {
	switch {
	case f.ResolutionStatus == wordFailed || f.SystemResolution == wordFailed:
		return f.failed(AnalysisFailed)
	case f.ResolutionStatus != wordFinished:
		return f.failed(StatusUnknown)
	case f.SystemResolution == wordDeclined:
		return Verdict{Decision: Declined, Folder: f}
	case f.SystemResolution == wordOperatorRequired:
		return Verdict{Decision: OperatorRequired, Folder: f}
	case f.SystemResolution != wordSuccess:
		return f.failed(StatusUnknown)
	}
	for _, typ := range p.Analyses {
		if !f.passed(typ) {
			return f.failed(AnalysisMissing)
		}
	}
	return Verdict{Decision: Success, Folder: f} // the only accept there is
}

func (f *Folder) failed(r Reason) Verdict {
	return Verdict{Decision: Failed, Reason: r, Folder: f, Error: f.firstError()}
}

// JudgeStatus decides by an answer that is not a folder, nor should be.
func JudgeStatus(status int, doc []byte) Verdict {
	v := Verdict{Decision: Unavailable, Reason: UnexpectedStatus}
	if e, ok := ReadError(doc); ok {
		v.Error = &e
	}
	switch status {
	case 400:
		if v.Error != nil && v.Error.Container() {
			v.Decision, v.Reason = Invalid, Container
		}
	case 401, 403:
		v.Reason = Unauthorized
	case 429, 503:
		v.Reason = Overloaded
	case 413:
		v.Reason = TooLargeForOz
	}
	return v
}

// ReasonVerdict is the verdict for what needs no answer of Oz: a replayed
// capsule, everything that keeps an answer from coming or being used, and what
// keeps faces from being matched. A Reason that rests on an answer gives
// UNAVAILABLE, as nothing was decided.
func ReasonVerdict(r Reason) Verdict {
	for _, row := range outcomes {
		if row.Reason == r && !restsOnAnswer(r) {
			return Verdict{Decision: row.Decision, Reason: r}
		}
	}
	return Verdict{Decision: Unavailable, Reason: UnexpectedStatus}
}

func restsOnAnswer(r Reason) bool {
	switch r {
	case "", AnalysisFailed, AnalysisMissing, StatusUnknown, Binding, Container:
		return true
	}
	return false
}

// JudgeMatch decides by Oz's answer to two images. It is never better than
// what the analysis of likeness says.
func JudgeMatch(status int, doc []byte) Verdict {
	v := Policy{Analyses: []string{Biometry}}.Judge(status, doc, nil)
	if v.Reason == Container || status == 400 && v.Error != nil { // it is no container that Oz complains about
		v.Decision, v.Reason = Failed, MatchRefused
	}
	return v
}
