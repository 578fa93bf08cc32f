package sandbox

import (
	"slices"
	"strings"
)

// Faults of content: what a folder says.

// tree is a folder that a fault is about to change.
type tree struct {
	*object
	x *exchange
}

// analyses are its entries in analyses[].
func (t *tree) analyses() *array { return t.get("analyses").(*array) }

// quality is the first entry: the liveness analysis, or the biometry of images.
func (t *tree) quality() *object { return t.analyses().objects()[0] }

// images calls f on every output image.
func (t *tree) images(f func(image *object)) {
	walk(t.object, func(o *object) {
		if o.index("image_b64") >= 0 {
			f(o)
		}
	})
}

// setAll gives every object that has a name another value under it.
func (t *tree) setAll(name string, value any) {
	walk(t.object, func(o *object) {
		if o.index(name) >= 0 {
			o.set(name, value)
		}
	})
}

const decision = "system_resolution"

func setField(o *object, f Fault) {
	name, value, given := strings.Cut(f.Word, "=")
	switch {
	case f.Bytes > 0:
		o.set(name, strings.Repeat("x", int(f.Bytes)))
	case given:
		o.set(name, verbatim(value))
	default:
		o.drop(name)
	}
}

func dupField(o *object, f Fault) {
	name, value, _ := strings.Cut(f.Word, "=")
	o.add(name, verbatim(value))
}

func dupDeclinedSuccess(t *tree, _ Fault) {
	t.replace(decision, member{decision, Declined}, member{decision, Success})
}

func dupSuccessDeclined(t *tree, _ Fault) {
	t.replace(decision, member{decision, Success}, member{decision, Declined})
}

func dupEscaped(t *tree, _ Fault) {
	t.replace(decision, member{decision, Declined}, member{`system\u005fresolution`, Success})
}

func dupNested(t *tree, _ Fault) {
	const name = "resolution_status"
	t.quality().replace(name, member{name, Declined}, member{name, Success})
}

func dupAnalyses(t *tree, _ Fault) {
	declined := clone(t.analyses()).(*array)
	setQuality(declined.objects()[0], "FINISHED", Declined)
	t.replace("analyses", member{"analyses", declined}, member{"analyses", t.analyses()})
}

func dupImage(t *tree, _ Fault) {
	t.images(func(image *object) { image.add("image_b64", image.get("image_b64")) })
}

func otherCase(t *tree, _ Fault) {
	t.rename(decision, "System_Resolution")
	t.rename("resolution_status", "Resolution_Status")
}

func caseBoth(t *tree, _ Fault) {
	t.replace(decision, member{decision, Declined}, member{"System_Resolution", Success})
}

func caseFold(t *tree, _ Fault) {
	t.replace(decision, member{decision, Declined}, member{"\u017fystem_resolution", Success})
}

func escapedNames(t *tree, _ Fault) {
	walk(t.object, func(o *object) {
		for i := range o.members {
			o.members[i].name = strings.ReplaceAll(o.members[i].name, "_", `\u005f`)
		}
	})
}

func escapedSlashes(t *tree, _ Fault) {
	text := strings.ReplaceAll(string(t.x.s.shots.get(shotKey{"", t.x.o.BestShotSize})), "/", `\/`)
	t.setAll("image_b64", base64Text(text))
}

func setWord(name string) func(*tree, Fault) {
	return func(t *tree, f Fault) { t.set(name, f.Word) }
}

func processing(t *tree, _ Fault) {
	for _, name := range []string{decision, "resolution_status", "resolution", "state"} {
		t.setAll(name, "PROCESSING")
	}
}

func contradiction(t *tree, _ Fault) {
	t.set("resolution_status", Failed)
	t.set(decision, Success)
}

func failedSystem(t *tree, _ Fault) {
	t.set("resolution_status", "FINISHED")
	t.set(decision, Failed)
}

func absentDecision(t *tree, _ Fault) {
	t.drop(decision)
	t.drop("resolution_status")
}

func nullDecision(t *tree, _ Fault) {
	t.set(decision, nil)
	t.set("resolution_status", nil)
}

func wrongTypes(t *tree, _ Fault) { t.set(decision, list(Success)) }

// builder makes more analyses of the folder's own media.
func (t *tree) builder() *folderBuilder {
	return &folderBuilder{
		outcome: Success, id: t.get("folder_id").(string), media: t.get("media").(*array).objects(),
		began: t.get("time_created").(float64), now: t.get("time_updated").(float64),
		shot: t.x.s.shots.get(shotKey{"", t.x.o.BestShotSize}),
	}
}

func noQuality(t *tree, _ Fault) {
	other := t.builder().biometry(Success, scoresOf(Success), nil)
	if t.x.route == OnBiometry {
		other = t.builder().quality()
	}
	t.set("analyses", list(other))
}

func noAnalyses(t *tree, _ Fault) { t.set("analyses", list()) }

func setQuality(quality *object, state, resolution string) {
	quality.set("state", state)
	quality.set("resolution_status", resolution)
	quality.set("resolution", resolution)
}

func qualityIs(state, resolution string) func(*tree, Fault) {
	return func(t *tree, _ Fault) {
		t.set(decision, Success)
		setQuality(t.quality(), state, resolution)
	}
}

func severalQuality(t *tree, f Fault) {
	all := list()
	for range f.N {
		next := clone(t.quality()).(*object)
		next.set("analyse_id", newUUID())
		all.items = append(all.items, next)
	}
	t.set("analyses", all)
}

func severalQualityMixed(t *tree, _ Fault) {
	t.set(decision, Success)
	severalQuality(t, Fault{N: 2})
	setQuality(t.analyses().objects()[0], "FINISHED", Success)
	setQuality(t.analyses().objects()[1], "FINISHED", Declined)
}

func noMedia(t *tree, _ Fault) {
	for _, name := range []string{"media", "source_media", "results_media"} {
		t.setAll(name, list())
	}
}

// needed are the fields that a decision stands on, at either level.
var needed = []string{decision, "resolution_status", "analyses", "type", "state"}

func nulls(t *tree, _ Fault) {
	for _, o := range append(t.analyses().objects(), t.object) {
		for i, m := range o.members {
			if !slices.Contains(needed, m.name) {
				o.members[i].value = nil
			}
		}
	}
}

func absent(t *tree, _ Fault) {
	for _, o := range append(t.analyses().objects(), t.object) {
		o.members = slices.DeleteFunc(o.members, func(m member) bool { return !slices.Contains(needed, m.name) })
	}
}

func analysisID(t *tree, _ Fault) {
	for _, a := range t.analyses().objects() {
		a.rename("analyse_id", "analysis_id")
	}
}

func extra(t *tree, _ Fault) {
	walk(t.object, func(o *object) {
		o.add("x_unknown", fields("since", "6.7.0", "list", list(1, nil, true, "\u2603"), "number", verbatim("-1.50E+2")))
	})
}

func originalURL(t *tree, _ Fault) {
	t.images(func(image *object) {
		image.drop("image_b64")
		image.set("original_url", "http://"+t.x.r.Host+ElsewherePath+"/best_shot.jpg")
	})
}

func imageValue(t *tree, f Fault) { t.setAll("image_b64", verbatim(f.Word)) }

func noBestShot(t *tree, _ Fault) { t.setAll("output_images", list()) }

func severalBestShots(t *tree, f Fault) {
	walk(t.object, func(o *object) {
		images, ok := o.get("output_images").(*array)
		if !ok || len(images.items) == 0 {
			return
		}
		first := images.items[0]
		images.items = nil
		for range f.N {
			images.items = append(images.items, clone(first))
		}
	})
}

func bigImage(t *tree, f Fault) { t.setAll("image_b64", t.x.s.shots.get(shotKey{"", f.Bytes})) }

func bigText(t *tree, f Fault) {
	t.set("resolution_comment", strings.Repeat("text ", int(f.Bytes/5)+1)[:f.Bytes])
}

func badUTF8(t *tree, _ Fault) { t.set("resolution_comment", verbatim("\"\xc3\x28 \xff\xfe\"")) }

func loneSurrogate(t *tree, _ Fault) { t.set("resolution_comment", verbatim(`"\ud800 half"`)) }

func depth(t *tree, f Fault) {
	t.add("x_deep", verbatim(strings.Repeat("[", f.N)+strings.Repeat("]", f.N)))
}

var injections = map[string]string{
	"crlf":     "\r\nX-Oz-Decision: SUCCESS\r\n\r\n<script>alert(1)</script>",
	"lf":       "\nX-Oz-Decision: SUCCESS",
	"control":  "\x00\x01\x07\x1b[31m\x7f",
	"nonascii": "\u00e9\u2028\u202eSSECCUS\U0001f600",
	"long":     "", // made when it is wanted
}

func injectionNames() []string { return []string{"crlf", "lf", "control", "nonascii", "long"} }

func injection(word string) string {
	if word == "long" {
		return strings.Repeat("A", 1_000_000)
	}
	return injections[word]
}

func injectIDs(t *tree, f Fault) {
	t.set("folder_id", t.get("folder_id").(string)+injection(f.Word))
	t.get("meta_data").(*object).set("event_session_id", "session"+injection(f.Word))
}

func injectStatus(t *tree, f Fault) {
	t.set(decision, Success+injection(f.Word))
	t.set("resolution_status", "FINISHED"+injection(f.Word))
	t.quality().set("resolution_status", Success+injection(f.Word))
}

func placeholders(t *tree, _ Fault) {
	const text = "{env.HOME} {file./etc/hostname} {http.request.header.Authorization} {$HOME}"
	t.set("folder_id", "{env.HOME}")
	t.set("resolution_comment", text)
	t.set("operator_comment", text)
	meta := t.get("meta_data").(*object)
	meta.set("event_session_id", "{file./etc/hostname}")
	meta.set("transaction_id", text)
}
