package sandbox

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Face matching: the same call as a capsule's, with images and what to do with them as multipart/form-data.

// Threshold is the likeness from which on two photos show one person.
const Threshold = 0.85

// matchOrder is the part "payload": what is to be done with the images.
type matchOrder struct {
	tags      map[string][]string        // media:tags
	mediaMeta map[string]json.RawMessage // media:meta_data
	meta      map[string]json.RawMessage // folder:meta_data
}

// biometry is POST /api/instant/folders/ without a capsule.
func (x *exchange) biometry() answer {
	return x.analyse(func() (func() answer, error) {
		parts, refused, err := readForm(x.meter, x.r.Header.Get("Content-Type"), x.o.MaxImage)
		return func() answer { return x.matchAnswer(parts, refused) }, err
	})
}

func (x *exchange) matchAnswer(parts []formPart, refused *refusal) answer {
	var order matchOrder
	var photos []photo
	if refused == nil {
		order, photos, refused = x.o.unpack(parts)
	}
	x.noteParts(parts, order)
	if refused != nil {
		return generalAnswer(refused)
	}
	x.s.wait(x.o.AnalysisTime)
	return jsonAnswer(http.StatusCreated, x.matchFolder(order, photos))
}

// unpack makes an order and photos of what was sent.
func (o Options) unpack(parts []formPart) (order matchOrder, photos []photo, refused *refusal) {
	if order, refused = orderIn(parts); refused != nil {
		return order, nil, refused
	}
	if refused = checkNames(parts, order); refused != nil {
		return order, nil, refused
	}
	if photos, refused = decodePhotos(parts, order); refused != nil {
		return order, nil, refused
	}
	if usable(photos) < 2 && !o.FewMediaFail {
		return order, nil, badValue(textFew)
	}
	return order, photos, nil
}

const textFew = "Fewer than two media that biometry can use"

// noteParts puts into the receipt what was sent.
func (x *exchange) noteParts(parts []formPart, order matchOrder) {
	all := make([]Part, len(parts))
	for i, p := range parts {
		all[i] = p.Part
		if p.isFile() {
			all[i].Tags = order.tags[p.Name]
		}
	}
	x.s.book.update(func(*Stats) { x.rec.Parts = all })
}

// orderIn reads the payload. A file of that name is none: web frameworks keep files and fields apart.
func orderIn(parts []formPart) (o matchOrder, refused *refusal) {
	payloads := slices.DeleteFunc(slices.Clone(parts), func(p formPart) bool { return p.Name != "payload" || p.isFile() })
	switch len(payloads) {
	case 0:
		return o, missing("payload")
	case 1:
	default:
		return o, badValue("payload comes twice")
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(payloads[0].content, &fields) != nil || fields == nil {
		return o, malformed("payload is not a JSON object")
	}
	var analyses []struct {
		Type *string `json:"type"`
	}
	for _, f := range []struct {
		name     string
		into     any
		required bool
	}{
		{"media:tags", &o.tags, true}, {"analyses", &analyses, true},
		{"media:meta_data", &o.mediaMeta, false}, {"folder:meta_data", &o.meta, false},
	} {
		text, given := fields[f.name]
		switch {
		case !given && f.required:
			return o, missing(f.name)
		case given && (json.Unmarshal(text, f.into) != nil || string(text) == "null"):
			return o, wrongType(f.name)
		}
	}
	if len(analyses) == 0 {
		return o, badValue("No analyses")
	}
	for _, a := range analyses {
		switch {
		case a.Type == nil:
			return o, missing("analyses.type")
		case !strings.EqualFold(*a.Type, "biometry"):
			return o, badValue("Images without a capsule are for biometry only")
		}
	}
	return o, nil
}

// checkNames is the guide's rule: the keys of the payload and the names of the files are the same.
func checkNames(parts []formPart, o matchOrder) *refusal {
	seen := map[string]bool{}
	for _, p := range parts {
		if !p.isFile() {
			continue
		}
		_, tagged := o.tags[p.Name]
		switch {
		case p.Name != p.FileName:
			return badValue("Key and filename of a file differ")
		case seen[p.Name]:
			return badValue("Key of a file comes twice")
		case !tagged:
			return badValue("Key of a file is not in media:tags")
		}
		seen[p.Name] = true
	}
	keys := slices.AppendSeq(slices.Collect(maps.Keys(o.tags)), maps.Keys(o.mediaMeta))
	if slices.ContainsFunc(keys, func(key string) bool { return !seen[key] }) {
		return badValue("Key in the payload has no file")
	}
	return nil
}
