package sandbox

import (
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Scores. Liveness: chance of an attack, from 0.5 on it is one. Biometry: likeness, from 0.85 on it is the same person.
const (
	scoreLive   = 0.0579
	scoreAttack = 0.9312
	scoreUnsure = 0.8421
	scoreSame   = 0.9712
)

// Media types whose results are keyed by a name of their own.
var sourceKeys = map[string]string{
	"VIDEO_FOLDER": "source_video_id", "SHOTS_SET_FOLDER": "source_shots_set_id", "IMAGE_FOLDER": "source_image_id",
}

// folder is the answer to a good capsule, in the vendor's shape. What the vendor does not state is null, empty or likely.
func (x *exchange) folder(c capsule) *object {
	b := x.builder(c.Payload.Outcome)
	x.person = c.Payload.Person
	b.shot = x.shot(x.o.BestShotSize)
	for _, m := range c.Media {
		b.media = append(b.media, b.medium(m))
	}
	analyses := list(b.quality())
	if b.outcome == OperatorRequired {
		// A human is never asked about liveness, only about likeness: so this capsule had both analyses.
		analyses.items = append(analyses.items, b.biometry(OperatorRequired, confidence{scoreUnsure, scoreUnsure}, nil))
	}
	meta := fields("event_session_id", c.Payload.EventSession)
	if !x.o.NoEcho {
		for _, name := range slices.Sorted(maps.Keys(c.Payload.Meta)) {
			if name != "event_session_id" {
				meta.add(quoted(name), c.Payload.Meta[name])
			}
		}
	}
	return b.folder(meta, analyses)
}

// matchFolder is the answer to images that were to be matched.
func (x *exchange) matchFolder(order matchOrder, photos []photo) *object {
	likeness, each := compare(photos)
	found := x.o.resolve(likeness.min)
	if usable(photos) < 2 {
		found = Failed
	}
	b := x.builder(found)
	if b.outcome != found { // a fault would have it so: the scores have to fit
		likeness, each = scoresOf(b.outcome), nil
	}
	for _, p := range photos {
		m := b.medium(medium{Name: p.Name, Type: "IMAGE_FOLDER", Tags: p.Tags})
		if text, given := order.mediaMeta[p.Name]; given && !x.o.NoEcho {
			m.set("meta_data", verbatim(text))
		}
		b.media = append(b.media, m)
	}
	analysis := b.biometry(b.outcome, likeness, each)
	if b.outcome == Failed && usable(photos) < 2 {
		analysis.set("error_code", 4)
		analysis.set("error_message", textFew)
	}
	meta := fields()
	if !x.o.NoEcho {
		for _, name := range slices.Sorted(maps.Keys(order.meta)) {
			meta.add(quoted(name), verbatim(order.meta[name]))
		}
	}
	return b.folder(meta, list(analysis))
}

// goodFolder is a folder that says SUCCESS, for who has not earned one.
func (x *exchange) goodFolder() *object {
	if x.route != OnBiometry {
		return x.folder(anyCapsule(0))
	}
	b := x.builder(Success)
	for _, name := range []string{"reference.jpeg", "best_shot.jpeg"} {
		b.media = append(b.media, b.medium(medium{Name: name, Type: "IMAGE_FOLDER", Tags: []string{"photo_selfie"}}))
	}
	return b.folder(fields(), list(b.biometry(Success, scoresOf(Success), nil)))
}

// scoresOf is a likeness that would lead to an outcome.
func scoresOf(outcome string) confidence {
	score := map[string]float64{Success: scoreSame, OperatorRequired: scoreUnsure}[outcome]
	return confidence{score, score}
}

// folderBuilder holds what the parts of one folder share.
type folderBuilder struct {
	outcome, id string
	began, now  float64
	media       []*object
	shot        base64Text
}

// builder begins a folder. A fault can want another outcome than was found.
func (x *exchange) builder(outcome string) *folderBuilder {
	if x.met.outcome {
		outcome = x.met.Word
	}
	now := x.o.Clock()
	id := newUUID()
	x.s.book.update(func(*Stats) { x.rec.FolderID = id })
	return &folderBuilder{
		outcome: outcome, id: id, began: unixSeconds(now.Add(-x.o.AnalysisTime)), now: unixSeconds(now),
	}
}

// folder puts everything together.
func (b *folderBuilder) folder(meta *object, analyses *array) *object {
	status, comment := "FINISHED", "[]"
	if b.outcome == Failed {
		first := analyses.objects()[0]
		status = "FAILED"
		comment = fmt.Sprintf(`[{"type": "%s", "error_code": %d}]`, first.get("type"), first.get("error_code"))
	}
	media := list()
	for _, m := range b.media {
		media.items = append(media.items, m)
	}
	return fields(
		"folder_id", b.id,
		"time_created", b.began,
		"time_updated", b.now,
		"company_id", nil,
		"user_id", nil,
		"resolution_status", status,
		"system_resolution", b.outcome,
		"resolution_comment", comment,
		"operator_status", nil,
		"operator_comment", nil,
		"is_cleared", false,
		"meta_data", meta,
		"technical_meta_data", fields(),
		"media", media,
		"analyses", analyses,
	)
}

func (b *folderBuilder) medium(m medium) *object {
	id := newUUID()
	sum := md5.Sum([]byte(id)) // the media themselves are not kept; a hash of the right shape will do
	tags := list()
	for _, tag := range m.Tags {
		tags.items = append(tags.items, tag)
	}
	return fields(
		"media_id", id,
		"media_type", m.Type,
		"original_name", m.Name,
		"original_url", nil,
		"video_url", nil,
		"tags", tags,
		"meta_data", fields(),
		"technical_meta_data", fields(),
		"media_association_id", newUUID(),
		"md5", hex.EncodeToString(sum[:]),
		"time_created", b.began,
		"time_updated", b.began,
	)
}

// quality is the liveness analysis. It carries the best shot, unless it failed.
func (b *folderBuilder) quality() *object {
	a := b.analysis("QUALITY", Success)
	score := scoreLive
	switch b.outcome {
	case Declined:
		score = scoreAttack
		a.set("resolution_status", Declined)
		a.set("resolution", Declined)
	case Failed:
		return failed(a)
	}
	a.set("results_data", fields("confidence_spoofing", score))
	results := list()
	for _, m := range b.media {
		results.items = append(results.items, b.result(m, fields("confidence_spoofing", score), list(fields(
			"media_id", newUUID(),
			"original_name", "best_shot.jpg",
			"original_url", nil,
			"image_b64", b.shot,
		))))
	}
	a.set("results_media", results)
	return a
}

// biometry is the face matching analysis, with its score on both levels. Where each medium has the same, each is nil.
func (b *folderBuilder) biometry(resolution string, all confidence, each []confidence) *object {
	a := b.analysis("BIOMETRY", resolution)
	if resolution == Failed {
		return failed(a)
	}
	scores := func(c confidence) *object { return fields("max_confidence", c.max, "min_confidence", c.min) }
	a.set("results_data", scores(all))
	results := list()
	for i, m := range b.media {
		switch {
		case each == nil:
			results.items = append(results.items, b.result(m, scores(all), list()))
		case each[i].min <= each[i].max: // else it was compared with nothing
			results.items = append(results.items, b.result(m, scores(each[i]), list()))
		}
	}
	a.set("results_media", results)
	return a
}

// failed is an analysis that could not be done.
func failed(a *object) *object {
	a.set("state", "FAILED")
	a.set("resolution_status", Failed)
	a.set("resolution", Failed)
	a.set("error_code", 11)
	a.set("error_message", "External service error")
	return a
}

func (b *folderBuilder) analysis(kind, resolution string) *object {
	sources := list()
	for _, m := range b.media {
		sources.items = append(sources.items, fields(
			"media_id", m.get("media_id"), "media_type", m.get("media_type"), "tags", clone(m.get("tags"))))
	}
	return fields(
		"analyse_id", newUUID(),
		"folder_id", b.id,
		"group_id", newUUID(),
		"type", kind,
		"state", "FINISHED",
		"resolution_status", resolution,
		"resolution", resolution,
		"error_code", nil,
		"error_message", nil,
		"results_data", fields(),
		"results_media", list(),
		"source_media", sources,
		"time_created", b.began,
		"time_updated", b.now,
	)
}

func (b *folderBuilder) result(m, data *object, images *array) *object {
	key := sourceKeys[m.get("media_type").(string)]
	return fields(
		key, m.get("media_id"),
		"media_association_id", m.get("media_association_id"),
		"results_data", data,
		"output_images", images,
	)
}

// unixSeconds is Unix time with one decimal, as Oz writes it.
func unixSeconds(t time.Time) float64 { return math.Round(float64(t.UnixMilli())/100) / 10 }

// quoted escapes text for use as a name in the tree, which writes names as they stand.
func quoted(s string) string {
	q := appendString(nil, s)
	return string(q[1 : len(q)-1])
}

// newUUID makes a random UUID (version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}
