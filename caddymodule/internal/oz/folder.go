package oz

import "github.com/go-json-experiment/json/jsontext"

// Types of analyses that decide about a person.
const (
	Quality  = "QUALITY"  // liveness
	Biometry = "BIOMETRY" // face matching
)

// Status words, as Oz writes them.
const (
	wordFinished         = "FINISHED"
	wordSuccess          = "SUCCESS"
	wordDeclined         = "DECLINED"
	wordOperatorRequired = "OPERATOR_REQUIRED"
	wordFailed           = "FAILED"
)

// Folder is what a decision needs of Oz's answer. The strings are as Oz wrote
// them, of any length and with any characters. A field that is absent, null or
// not of the type that the guide names is empty.
type Folder struct {
	ID               string // folder_id
	EventSessionID   string // meta_data.event_session_id
	ResolutionStatus string // resolution_status
	SystemResolution string // system_resolution
	Analyses         []Analysis
}

// Analysis is an entry of the folder's analyses.
type Analysis struct {
	Type             string // type
	State            string // state
	ResolutionStatus string // resolution_status
	ErrorCode        *int   // error_code; nil unless it is an integer
	ErrorMessage     string // error_message
}

// AnalysisStatuses lists the words for how an analysis can end.
func AnalysisStatuses() []string {
	return []string{wordSuccess, wordOperatorRequired, wordDeclined, wordFailed}
}

// ReadFolder reads a pruned answer by the strictest rules there are: one
// object, valid UTF-8 throughout, no name twice, nothing after it, and none of
// the names that it reads in another case. Its errors wrap ErrMalformed and quote nothing of doc.
func ReadFolder(doc []byte) (*Folder, error) {
	f := new(Folder)
	err := readObject(doc, func(s strict, name string) error {
		switch name {
		case "folder_id":
			return s.text(&f.ID)
		case "resolution_status":
			return s.text(&f.ResolutionStatus)
		case "system_resolution":
			return s.text(&f.SystemResolution)
		case "meta_data":
			return s.metaData(f)
		case "analyses":
			return s.analyses(f)
		}
		return s.other(name, "folder_id", "resolution_status", "system_resolution", "meta_data", "analyses")
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (s strict) metaData(f *Folder) error {
	if s.kind() != jsontext.KindBeginObject {
		return s.skip()
	}
	return s.object(func(name string) error {
		if name == "event_session_id" {
			return s.text(&f.EventSessionID)
		}
		return s.other(name, "event_session_id")
	})
}

// analyses reads all entries or, if one of them is no object, none: half of a
// list that is not what it should be is nothing to decide by.
func (s strict) analyses(f *Folder) error {
	if s.kind() != jsontext.KindBeginArray {
		return s.skip()
	}
	var list []Analysis
	sound := true
	err := s.array(func() error {
		if s.kind() != jsontext.KindBeginObject {
			sound = false
			return s.skip()
		}
		a, err := s.analysis()
		list = append(list, a)
		return err
	})
	if sound {
		f.Analyses = list
	}
	return err
}

func (s strict) analysis() (a Analysis, err error) {
	err = s.object(func(name string) error {
		switch name {
		case "type":
			return s.text(&a.Type)
		case "state":
			return s.text(&a.State)
		case "resolution_status":
			return s.text(&a.ResolutionStatus)
		case "error_code":
			return s.integer(&a.ErrorCode)
		case "error_message":
			return s.text(&a.ErrorMessage)
		}
		return s.other(name, "type", "state", "resolution_status", "error_code", "error_message")
	})
	return a, err
}

// AnalysisStatus is the resolution_status of the analysis of type typ, and the
// worst one if there are several. It is empty if there is none.
func (f *Folder) AnalysisStatus(typ string) string {
	worst, found := "", false
	for _, a := range f.Analyses {
		if a.Type != typ {
			continue
		}
		if !found || badness(a.ResolutionStatus) > badness(worst) {
			worst, found = a.ResolutionStatus, true
		}
	}
	return worst
}

// badness orders status words. One that nobody has heard of is the worst.
func badness(status string) int {
	switch status {
	case wordSuccess:
		return 0
	case wordOperatorRequired:
		return 1
	case wordDeclined:
		return 2
	case wordFailed:
		return 3
	}
	return 4
}

// passed reports whether at least one analysis of type typ ran, and all of
// them ended with success.
func (f *Folder) passed(typ string) bool {
	found := false
	for _, a := range f.Analyses {
		if a.Type != typ {
			continue
		}
		if a.State != wordFinished || a.ResolutionStatus != wordSuccess {
			return false
		}
		found = true
	}
	return found
}

// firstError is the error of the first analysis that carries one.
func (f *Folder) firstError() *Error {
	for _, a := range f.Analyses {
		if a.ErrorCode != nil {
			return &Error{Code: *a.ErrorCode, Message: a.ErrorMessage}
		}
	}
	return nil
}
