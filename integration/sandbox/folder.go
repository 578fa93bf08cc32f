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
)

// Media types whose results are keyed by a name of their own.
var sourceKeys = map[string]string{
	"VIDEO_FOLDER": "source_video_id", "SHOTS_SET_FOLDER": "source_shots_set_id", "IMAGE_FOLDER": "source_image_id",
}

// folder is the answer to a good capsule, in the vendor's shape. What the vendor does not state is null, empty or likely.
func (x *exchange) folder(c capsule) *object {
	now := x.o.Clock()
	b := folderBuilder{
		outcome: c.Payload.Outcome, id: newUUID(), shot: x.s.shots.get(x.o.BestShotSize),
		began: unixSeconds(now.Add(-x.o.AnalysisTime)), now: unixSeconds(now),
	}
	for _, m := range c.Media {
		b.media = append(b.media, b.medium(m))
	}

	status, resolution, comment := "FINISHED", c.Payload.Outcome, "[]"
	analyses := list(b.quality())
	switch c.Payload.Outcome {
	case Failed:
		status = "FAILED"
		comment = `[{"type": "QUALITY", "error_code": 11}]`
	case OperatorRequired:
		// A human is never asked about liveness, only about likeness: so this capsule had both analyses.
		analyses.items = append(analyses.items, b.biometry(OperatorRequired, scoreUnsure))
	}

	meta := fields("event_session_id", c.Payload.EventSession)
	if !x.o.NoEcho {
		for _, name := range slices.Sorted(maps.Keys(c.Payload.Meta)) {
			if name != "event_session_id" {
				meta.add(quoted(name), c.Payload.Meta[name])
			}
		}
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
		"system_resolution", resolution,
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

// folderBuilder holds what the parts of one folder share.
type folderBuilder struct {
	outcome, id string
	began, now  float64
	media       []*object
	shot        base64Text
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
		a.set("state", "FAILED")
		a.set("resolution_status", Failed)
		a.set("resolution", Failed)
		a.set("error_code", 11)
		a.set("error_message", "External service error")
		return a
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

// biometry is the face matching analysis, with its score on both levels.
func (b *folderBuilder) biometry(resolution string, score float64) *object {
	a := b.analysis("BIOMETRY", resolution)
	scores := func() *object { return fields("max_confidence", score, "min_confidence", score) }
	a.set("results_data", scores())
	results := list()
	for _, m := range b.media {
		results.items = append(results.items, b.result(m, scores(), list()))
	}
	a.set("results_media", results)
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
