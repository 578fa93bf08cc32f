package oz

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzDecision compares Judge's accepts with a second reading of the guide,
// by another JSON reader. Neither may accept alone.
//
//	go test -fuzz FuzzDecision ./caddymodule/internal/oz
func FuzzDecision(f *testing.F) {
	f.Add(201, []byte(goodFolder(20)), true, false)
	f.Add(200, []byte(goodFolder(20)), true, true)
	f.Add(201, []byte(sampleFolder(wordFailed, wordSuccess, wordSuccess, "")), false, false)
	f.Add(201, []byte(`{"resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]}`), true, false)
	f.Add(201, []byte(`{"resolution_status":"FINISHED","system_resolution":"SUCCESS","meta_data":{"transaction_id":"order-1"}}`), false, true)
	f.Add(201, []byte(`{"system_resolution":"DECLINED","system\u005fresolution":"SUCCESS","resolution_status":"FINISHED"}`), false, false)
	f.Add(201, []byte(`{"system_reSolution":"","system\u005fresolution":"SUCCESS","resolution_status":"FINISHED"}`), false, false)
	f.Add(201, []byte(`{"resolution_status":"FINISHED","system_resolution":"SUCCESS","meta_data":{"Event_session_id":1}}`), false, false)
	f.Add(201, []byte(`{"resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[1,{"\u017ftate":1}]}`), false, false)
	f.Add(201, []byte("{\"resolution_status\":\"FINISHED\",\"system_resolution\":\"SUCCESS\",\"a\":\"\xff\\ud800\"}"), false, false)
	f.Add(400, []byte(containerError), true, false)
	path, err := ParsePath("meta_data.transaction_id")
	if err != nil {
		f.Fatal(err)
	}
	bound := []Requirement{{path, "order-1"}}

	f.Fuzz(func(t *testing.T, status int, doc []byte, quality, bind bool) {
		var policy Policy
		var requirements []Requirement
		if quality {
			policy = qualityRequired
		}
		if bind {
			requirements = bound
		}
		v := policy.Judge(status, doc, requirements)
		if !slices.Contains(Outcomes(), Outcome{v.Decision, v.Reason}) {
			t.Fatalf("an outcome of no row: %+v", v)
		}
		want := (status == 200 || status == 201) && acceptable(doc, quality, bind)
		if (v.Decision == Success) != want {
			t.Fatalf("%d %q: got %+v, the second reading says %t", status, doc, v, want)
		}
	})
}

// acceptable is the first row of the policy table, read another way: the whole
// document as maps and lists by encoding/json, with the checks added that it
// does not make.
func acceptable(doc []byte, quality, bind bool) bool {
	if !utf8.Valid(doc) || !json.Valid(doc) || hasLoneSurrogate(doc) {
		return false
	}
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	value, ok := readUnique(dec, MaxDepth)
	if !ok {
		return false
	}
	folder, _ := value.(map[string]any)
	if otherCase(folder) {
		return false
	}
	if folder["resolution_status"] != "FINISHED" || folder["system_resolution"] != "SUCCESS" {
		return false
	}
	if bind {
		metaData, _ := folder["meta_data"].(map[string]any)
		if metaData["transaction_id"] != "order-1" {
			return false
		}
	}
	return !quality || qualitySucceeded(folder["analyses"])
}

// otherCase looks for the names that the gateway reads in another case, which
// encoding/json would take for them.
func otherCase(folder map[string]any) bool {
	respelled := func(object any, ours ...string) bool {
		members, _ := object.(map[string]any)
		for name := range members {
			for _, own := range ours {
				if name != own && strings.EqualFold(name, own) {
					return true
				}
			}
		}
		return false
	}
	if respelled(folder, "folder_id", "resolution_status", "system_resolution", "meta_data", "analyses") ||
		respelled(folder["meta_data"], "event_session_id") {
		return true
	}
	list, _ := folder["analyses"].([]any)
	return slices.ContainsFunc(list, func(analysis any) bool {
		return respelled(analysis, "type", "state", "resolution_status", "error_code", "error_message")
	})
}

func qualitySucceeded(analyses any) bool {
	list, _ := analyses.([]any)
	seen := 0
	for _, entry := range list {
		analysis, ok := entry.(map[string]any)
		if !ok {
			return false
		}
		if analysis["type"] == "QUALITY" {
			if analysis["state"] != "FINISHED" || analysis["resolution_status"] != "SUCCESS" {
				return false
			}
			seen++
		}
	}
	return seen > 0
}

// readUnique reads a value in which no name occurs twice and no more than
// levels arrays and objects are open. The caller has seen that it is valid.
func readUnique(dec *json.Decoder, levels int) (any, bool) {
	t, err := dec.Token()
	if err != nil {
		return nil, false
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t, true
	}
	if levels == 0 {
		return nil, false
	}
	var list []any
	members := map[string]any{}
	for dec.More() {
		name := ""
		if delim == '{' {
			t, err := dec.Token()
			if err != nil {
				return nil, false
			}
			name = t.(string)
			if _, twice := members[name]; twice {
				return nil, false
			}
		}
		v, ok := readUnique(dec, levels-1)
		if !ok {
			return nil, false
		}
		members[name] = v
		list = append(list, v)
	}
	_, err = dec.Token()
	if delim == '{' {
		return members, err == nil
	}
	return list, err == nil
}

// hasLoneSurrogate looks for half of a UTF-16 pair among the escapes of doc:
// encoding/json replaces it without a word.
var escapes = regexp.MustCompile(`(?i)\\u(d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|[0-9a-f]{4})|\\.`)

func hasLoneSurrogate(doc []byte) bool {
	for _, e := range escapes.FindAll(doc, -1) {
		if len(e) == len(`\ud800`) && (e[2]|0x20) == 'd' && e[3] > '7' {
			return true
		}
	}
	return false
}
