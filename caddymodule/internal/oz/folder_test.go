package oz

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestReadFolder(t *testing.T) {
	got, err := ReadFolder([]byte(sampleFolder(wordFinished, wordDeclined, wordDeclined, "AAAA")))
	if err != nil {
		t.Fatal(err)
	}
	want := &Folder{
		ID:               "7b1f2c52-0c0d-4f5e-9a51-5a3f0e8d1c01",
		EventSessionID:   "0d7f6f0e-3f0a-4c1b-8d57-0f1a5f1c9e02",
		ResolutionStatus: "FINISHED",
		SystemResolution: "DECLINED",
		Analyses:         []Analysis{{Type: "QUALITY", State: "FINISHED", ResolutionStatus: "DECLINED"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// A field that is not what the guide says it is reads as absent. Whatever the
// decision makes of that, it is not an accept.
func TestReadFolderOddFields(t *testing.T) {
	eleven, minus := 11, -2147483648
	for _, tc := range []struct {
		name, doc string
		want      Folder
	}{
		{"empty", `{}`, Folder{}},
		{"nulls", `{"folder_id":null,"resolution_status":null,"meta_data":null,"analyses":null}`, Folder{}},
		{"other types", `{"folder_id":1,"resolution_status":["FINISHED"],"system_resolution":{"a":"SUCCESS"},"meta_data":[1],"analyses":{"type":"QUALITY"}}`, Folder{}},
		{"true for a word", `{"system_resolution":true}`, Folder{}},
		{"metadata of other types", `{"meta_data":{"event_session_id":{"a":[]}}}`, Folder{}},
		{"other levels", `{"meta_data":{"folder_id":"x","system_resolution":"SUCCESS"},"event_session_id":"y","a":{"system_resolution":"SUCCESS"}}`, Folder{}},
		{"other cases at other levels", `{"Type":"QUALITY","Event_session_id":"y","meta_data":{"SYSTEM_RESOLUTION":"SUCCESS","State":"x"},"a":{"Folder_id":"x"}}`, Folder{}},
		{"escapes", `{"system\u005fresolution":"\u0053UCCESS","folder_id":"a\"\n\ud834\udd1e"}`, Folder{SystemResolution: "SUCCESS", ID: "a\"\n\U0001d11e"}},
		{"words with space", `{"system_resolution":"SUCCESS "}`, Folder{SystemResolution: "SUCCESS "}},

		{"no analyses", `{"analyses":[]}`, Folder{}},
		{"an analysis without fields", `{"analyses":[{}]}`, Folder{Analyses: []Analysis{{}}}},
		{"one entry is no object", `{"analyses":[{"type":"QUALITY"},5]}`, Folder{}},
		{"one entry is a list", `{"analyses":[[{"type":"QUALITY"}],{"type":"QUALITY"}]}`, Folder{}},
		{"analysis of other types", `{"analyses":[{"type":[1],"state":{},"resolution_status":1,"error_code":"11","error_message":11}]}`, Folder{Analyses: []Analysis{{}}}},
		{"analysis with an error", `{"analyses":[{"error_code":11,"error_message":"x"}]}`, Folder{Analyses: []Analysis{{ErrorCode: &eleven, ErrorMessage: "x"}}}},
		{"smallest code", `{"analyses":[{"error_code":-2147483648}]}`, Folder{Analyses: []Analysis{{ErrorCode: &minus}}}},
		{"codes that are no integers", `{"analyses":[{"error_code":11.0},{"error_code":1e1},{"error_code":2147483648},{"error_code":true},{"error_code":null},{"error_code":[11]}]}`,
			Folder{Analyses: make([]Analysis, 6)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ReadFolder([]byte(tc.doc))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", *got, tc.want)
			}
		})
	}
}

// Whatever two readers could read in two ways is no folder.
func TestReadFolderRefuses(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, tc := range []struct{ name, doc string }{
		{"nothing", ``},
		{"null", `null`},
		{"array", `[{"canary":1}]`},
		{"string", `"canary"`},
		{"a name twice", `{"system_resolution":"DECLINED","system_resolution":"canary"}`},
		{"a name twice, once escaped", `{"system_resolution":"DECLINED","system\u005fresolution":"canary"}`},
		{"a name twice, unused", `{"canary":1,"canary":1}`},
		{"a name twice, deep down", `{"a":[{"b":{"canary":1,"canary":2}}]}`},
		{"a name twice in metadata", `{"meta_data":{"canary":1,"canary":2}}`},
		{"a name twice in an analysis", `{"analyses":[{"type":"canary","type":"QUALITY"}]}`},
		{"a name in another case", `{"SYSTEM_RESOLUTION":"canary"}`},
		{"a name in two cases", `{"system_resolution":"DECLINED","System_Resolution":"canary"}`},
		{"a name with a long s", `{"\u017fystem_resolution":"canary"}`},
		{"a name in another case in metadata", `{"meta_data":{"Event_session_id":"canary"}}`},
		{"a name in another case in an analysis", `{"analyses":[{"type":"QUALITY","Resolution_Status":"canary"}]}`},
		{"two objects", `{"canary":1}{}`},
		{"trailing text", `{"canary":1} canary`},
		{"trailing NUL", "{\"canary\":1}\x00"},
		{"trailing comma", `{"canary":1},`},
		{"byte order mark", "\ufeff{\"canary\":1}"},
		{"no UTF-8 in a value", "{\"canary\":\"\xff\"}"},
		{"no UTF-8 in a name", "{\"canary\xff\":1}"},
		{"overlong UTF-8", "{\"canary\":\"\xc0\xaf\"}"},
		{"surrogate in UTF-8", "{\"canary\":\"\xed\xa0\x80\"}"},
		{"lone high surrogate", `{"canary":"\ud800"}`},
		{"lone low surrogate", `{"canary":"\udc00"}`},
		{"surrogates in the wrong order", `{"canary":"\udc00\ud800"}`},
		{"lone surrogate in a name", `{"canary\ud800":1}`},
		{"control character", "{\"canary\":\"\n\"}"},
		{"unknown escape", `{"canary":"\q"}`},
		{"leading zero", `{"canary":01}`},
		{"NaN", `{"canary":NaN}`},
		{"cut off", `{"canary":"`},
		{"cut off in analyses", `{"analyses":[{"type":"canary"`},
		{"too deep", `{"a":` + nested(MaxDepth) + `}`},
		{"too deep in metadata", `{"meta_data":{"a":` + nested(MaxDepth-1) + `}}`},
		{"too deep in an analysis", `{"analyses":[{"a":` + nested(MaxDepth-2) + `}]}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := ReadFolder([]byte(tc.doc))
			if !errors.Is(err, ErrMalformed) || f != nil {
				t.Fatalf("got %+v, %v", f, err)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error quotes the document: %v", err)
			}
		})
	}
	if _, err := ReadFolder([]byte(`{"a":` + nested(MaxDepth-1) + `}`)); err != nil {
		t.Errorf("at the depth limit: %v", err)
	}
}

// The document goes on to the app: reading must not write to it, nor to what
// lies behind it in memory.
func TestReadFolderLeavesTheDocumentAlone(t *testing.T) {
	text := goodFolder(100) + "rest of the buffer"
	buf := []byte(text)
	if _, err := ReadFolder(buf[:len(text)-len("rest of the buffer")]); err != nil {
		t.Fatal(err)
	}
	if string(buf) != text {
		t.Error("the document changed")
	}
}

// Of several analyses of a type the worst counts, and a word that nobody knows
// is the worst of all.
func TestAnalysisStatus(t *testing.T) {
	order := []string{wordSuccess, wordOperatorRequired, wordDeclined, wordFailed, "SUCCESSFUL"}
	analyses := func(statuses ...string) *Folder {
		f := &Folder{Analyses: []Analysis{{Type: Biometry, ResolutionStatus: wordFailed}, {Type: "quality", ResolutionStatus: wordFailed}}}
		for _, s := range statuses {
			f.Analyses = append(f.Analyses, Analysis{Type: Quality, ResolutionStatus: s})
		}
		return f
	}
	for i, worse := range order {
		for _, better := range order[:i+1] {
			if got := analyses(better, worse, better).AnalysisStatus(Quality); got != worse {
				t.Errorf("%s beside %s: got %s", worse, better, got)
			}
			if got := analyses(worse, better).AnalysisStatus(Quality); got != worse {
				t.Errorf("%s before %s: got %s", worse, better, got)
			}
		}
	}
	if got := analyses().AnalysisStatus(Quality); got != "" {
		t.Errorf("none at all: got %q", got)
	}
	if got := analyses(wordSuccess, "").AnalysisStatus(Quality); got != "" {
		t.Errorf("one without a status: got %q", got)
	}
}
