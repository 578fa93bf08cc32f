package sandbox

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// has checks that the answer's text holds all of these, in this order.
func has(parts ...string) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		rest := string(r.body)
		for _, part := range parts {
			_, after, found := strings.Cut(rest, part)
			if !found {
				t.Errorf("no %s in %.600s …", part, rest)
				return
			}
			rest = after
		}
	}
}

// lacks checks that it holds none of these.
func lacks(parts ...string) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		for _, part := range parts {
			if bytes.Contains(r.body, []byte(part)) {
				t.Errorf("%s is there", part)
			}
		}
	}
}

// view checks the folder as an app reads it.
func view(ok func(f folderView) bool) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		if f := r.folder(t); !ok(f) {
			t.Errorf("%+.1000v", f)
		}
	}
}

func both(checks ...func(*testing.T, reply)) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		for _, check := range checks {
			check(t, r)
		}
	}
}

// validJSON tells kinds that must still parse from those that must not.
func validJSON(want bool) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		if json.Valid(r.body) != want {
			t.Errorf("valid JSON: %t", !want)
		}
	}
}

const (
	topDeclined = `"system_resolution": "DECLINED"`
	topSuccess  = `"system_resolution": "SUCCESS"`
)

var contentChecks = map[string]func(*testing.T, reply){
	"outcome":                      has(`"system_resolution": "FAILED"`, `"QUALITY"`, `"error_code": 11`),
	"outcome:DECLINED":             has(topDeclined, `"confidence_spoofing": 0.9312`),
	"field":                        has(`{"time_created"`),
	"field:is_cleared={\"a\":[1]}": has(`"is_cleared": {"a":[1]}`),
	"field:folder_id,bytes=1001":   view(func(f folderView) bool { return len(f.ID) == 1001 }),
	"field:new=1":                  has(`"analyses"`, `"new": 1}`),
	"dup-field":                    has(`{"folder_id": "`, `"folder_id": null}`),

	"dup-declined-success": has(topDeclined, topSuccess),
	"dup-success-declined": has(topSuccess, topDeclined),
	"dup-escaped":          has(topDeclined, `"system\u005fresolution": "SUCCESS"`),
	"dup-nested":           has(topSuccess, `"QUALITY"`, `"resolution_status": "DECLINED", "resolution_status": "SUCCESS"`),
	"dup-analyses":         has(`"analyses": [`, `"resolution_status": "DECLINED"`, `"analyses": [`, `"resolution_status": "SUCCESS"`),
	"dup-image":            has(`"output_images": [{`, `"image_b64": "/9j/`, `", "image_b64": "/9j/`),
	"other-case":           both(has(`"Resolution_Status": "FINISHED"`, `"System_Resolution": "SUCCESS"`), lacks(`"system_resolution"`)),
	"case-both":            has(topDeclined, `"System_Resolution": "SUCCESS"`),
	"case-fold":            has(topDeclined, `"ſystem_resolution": "SUCCESS"`),
	"escaped-names":        both(lacks(`"image_b64"`, `"folder_id"`), has(`"image\u005fb64": "`), view(func(f folderView) bool { return f.Resolution == Success })),
	"escaped-slashes": both(has(`"image_b64": "\/9j\/`), view(func(f folderView) bool {
		return strings.HasPrefix(f.Analyses[0].Results[0].Images[0].Base64, "/9j/")
	})),

	"word:MAYBE":         view(func(f folderView) bool { return f.Resolution == "MAYBE" && f.Status == "FINISHED" }),
	"resolution:INITIAL": view(func(f folderView) bool { return f.Resolution == Success && f.Status == "INITIAL" }),
	"processing": view(func(f folderView) bool {
		return f.Resolution == "PROCESSING" && f.Status == "PROCESSING" && f.Analyses[0].State == "PROCESSING" && f.Analyses[0].Status == "PROCESSING"
	}),
	"contradiction":   view(func(f folderView) bool { return f.Resolution == Success && f.Status == Failed }),
	"failed-system":   view(func(f folderView) bool { return f.Resolution == Failed && f.Status == "FINISHED" }),
	"absent-decision": both(lacks(`"system_resolution"`), view(func(f folderView) bool { return f.Status == "" && len(f.Analyses) == 1 })),
	"null-decision":   has(`"resolution_status": null, "system_resolution": null`),
	"wrong-types":     has(`"system_resolution": ["SUCCESS"]`),

	"no-quality": view(func(f folderView) bool {
		return f.Resolution == Success && len(f.Analyses) == 1 && f.Analyses[0].Type == "BIOMETRY" && f.Analyses[0].Status == Success
	}),
	"no-analyses":        both(has(`"analyses": []`), view(func(f folderView) bool { return f.Resolution == Success })),
	"quality-declined":   view(func(f folderView) bool { return f.Resolution == Success && f.Analyses[0].Status == Declined }),
	"quality-failed":     view(func(f folderView) bool { return f.Resolution == Success && f.Analyses[0].State == Failed }),
	"quality-unfinished": view(func(f folderView) bool { return f.Analyses[0].Status == Success && f.Analyses[0].State == "PROCESSING" }),
	"several-quality:3": view(func(f folderView) bool {
		return len(f.Analyses) == 3 && f.Analyses[0].ID != f.Analyses[2].ID && f.Analyses[2].Status == Success
	}),
	"several-quality-mixed": view(func(f folderView) bool {
		return f.Resolution == Success && len(f.Analyses) == 2 && f.Analyses[0].Status == Success && f.Analyses[1].Status == Declined
	}),
	"no-media": view(func(f folderView) bool {
		return f.Resolution == Success && len(f.Media)+len(f.Analyses[0].Results)+len(f.Analyses[0].SourceMedia) == 0
	}),

	"nulls":       both(has(`"folder_id": null`, topSuccess, `"meta_data": null`, `"results_media": null`), view(func(f folderView) bool { return f.Analyses[0].Status == Success })),
	"absent":      both(lacks("null", "folder_id", "meta_data", "image_b64"), view(func(f folderView) bool { return f.Resolution == Success && f.Analyses[0].State == "FINISHED" })),
	"analysis-id": both(has(`"analysis_id"`), lacks("analyse_id")),
	"extra":       both(has(`"x_unknown"`, `"x_unknown"`, `"x_unknown"`), view(func(f folderView) bool { return f.Resolution == Success })),
	"original-url": both(lacks("image_b64"), view(func(f folderView) bool {
		return strings.HasSuffix(f.Analyses[0].Results[0].Images[0].URL, "/best_shot.jpg")
	})),
	"image-value":           has(`"image_b64": null`),
	`image-value:{"a":[1]}`: both(has(`"image_b64": {"a":[1]}`), validJSON(true)),
	"no-best-shot":          both(lacks("image_b64"), has(`"output_images": []`)),
	"several-best-shots":    view(func(f folderView) bool { return len(f.Analyses[0].Results[0].Images) == 3 }),
	"big:1MiB":              view(func(f folderView) bool { return len(f.Analyses[0].Results[0].Images[0].Base64) == 1<<20 }),
	"big-text:1001":         view(func(f folderView) bool { return len(f.Comment.(string)) == 1001 }),

	"bad-utf8": func(t *testing.T, r reply) {
		if utf8.Valid(r.body) {
			t.Error("valid UTF-8")
		}
	},
	"lone-surrogate": has(`"resolution_comment": "\ud800 half"`),
	"depth":          both(has(strings.Repeat("[", 300)+strings.Repeat("]", 300)), validJSON(true)),
	"depth:10000":    has(strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)),
	"inject": both(view(func(f folderView) bool {
		return strings.Contains(f.ID, "\r\nX-Oz-Decision") && strings.Contains(f.Meta["event_session_id"].(string), "\r\n") && f.Resolution == Success
	})),
	"inject:lf":       view(func(f folderView) bool { return strings.Contains(f.ID, "\n") && !strings.Contains(f.ID, "\r") }),
	"inject:control":  view(func(f folderView) bool { return strings.Contains(f.ID, "\x00") }),
	"inject:nonascii": view(func(f folderView) bool { return strings.Contains(f.ID, "é") }),
	"inject:long":     view(func(f folderView) bool { return len(f.ID) > 1_000_000 }),
	"inject-status": view(func(f folderView) bool {
		return strings.HasPrefix(f.Resolution, "SUCCESS\r\n") && strings.HasPrefix(f.Status, "FINISHED\r\n") && strings.HasPrefix(f.Analyses[0].Status, "SUCCESS\r\n")
	}),
	"placeholder": view(func(f folderView) bool {
		return f.ID == "{env.HOME}" && f.Meta["event_session_id"] == "{file./etc/hostname}" && f.Resolution == Success
	}),
}

func TestContentFaults(t *testing.T) {
	s, url := start(t, Options{})
	for text, check := range contentChecks {
		t.Run(text, func(t *testing.T) {
			s.SetFault(MustFault(text))
			r := post(t, url, s.Capsule(CapsuleSpec{}))
			if r.status != 201 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			check(t, r)
		})
	}
}

// Faults of content are about folders: a refused capsule gets its refusal, and no outcome makes one panic.
func TestContentFaultsWithOtherOutcomes(t *testing.T) {
	s, url := start(t, Options{Fault: MustFault("dup-nested")})
	post(t, url, s.Capsule(CapsuleSpec{Damage: DamageMedia})).wantError(t, 400, 4)
	for text := range contentChecks {
		if strings.Contains(text, "long") || strings.Contains(text, "big") {
			continue
		}
		s.SetFault(MustFault(text))
		for _, outcome := range []string{Failed, OperatorRequired} {
			if r := post(t, url, s.Capsule(CapsuleSpec{Outcome: outcome, PayloadSize: 1})); r.status != 201 {
				t.Errorf("%s with %s: %d", text, outcome, r.status)
			}
		}
	}
}
