package sandbox

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"image/jpeg"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// The three answers that the guide documents, and the fourth that the statuses page adds.
func TestFolderOfEachOutcome(t *testing.T) {
	s, url := start(t, Options{})
	for _, want := range []struct {
		outcome, status, comment string
		types, states, statuses  []string
	}{
		{Success, "FINISHED", "[]", []string{"QUALITY"}, []string{"FINISHED"}, []string{Success}},
		{Declined, "FINISHED", "[]", []string{"QUALITY"}, []string{"FINISHED"}, []string{Declined}},
		{Failed, "FAILED", `[{"type": "QUALITY", "error_code": 11}]`, []string{"QUALITY"}, []string{"FAILED"}, []string{Failed}},
		{OperatorRequired, "FINISHED", "[]", []string{"QUALITY", "BIOMETRY"}, []string{"FINISHED", "FINISHED"}, []string{Success, OperatorRequired}},
	} {
		t.Run(want.outcome, func(t *testing.T) {
			r := post(t, url, s.Capsule(CapsuleSpec{Outcome: want.outcome}))
			f := r.folder(t)
			if r.status != 201 || r.header.Get("Content-Type") != "application/json" {
				t.Errorf("%d %v", r.status, r.header)
			}
			if f.Status != want.status || f.Resolution != want.outcome || f.Comment != want.comment || !uuid.MatchString(f.ID) {
				t.Errorf("top level: %s %s %q %s", f.Status, f.Resolution, f.Comment, f.ID)
			}
			var types, states, statuses []string
			for _, a := range f.Analyses {
				types, states, statuses = append(types, a.Type), append(states, a.State), append(statuses, a.Status)
			}
			if !slices.Equal(types, want.types) || !slices.Equal(states, want.states) || !slices.Equal(statuses, want.statuses) {
				t.Errorf("analyses: %v %v %v", types, states, statuses)
			}
			quality := f.Analyses[0]
			if want.outcome == Failed {
				if quality.Code != 11.0 || quality.Message != "External service error" || len(quality.Results) != 0 {
					t.Errorf("failed analysis: %+v", quality)
				}
				return
			}
			score := quality.Results[0].Data["confidence_spoofing"].(float64)
			if (score >= 0.5) != (want.outcome == Declined) || quality.Data["confidence_spoofing"] != score {
				t.Errorf("score %v", score)
			}
			shot, err := base64.StdEncoding.DecodeString(quality.Results[0].Images[0].Base64)
			if err != nil || !bytes.HasPrefix(shot, []byte("\xff\xd8\xff")) {
				t.Errorf("best shot: %v", err)
			}
			if quality.Code != nil || quality.Message != nil {
				t.Errorf("error fields: %v %v", quality.Code, quality.Message)
			}
		})
	}
}

// Every field that is known, in one place: what is added to or lost from the folder shows here.
func TestFolderHasEveryKnownField(t *testing.T) {
	s, url := start(t, Options{})
	r := post(t, url, s.Capsule(CapsuleSpec{Media: 2, Meta: map[string]string{"transaction_id": "order-1"}}))
	var whole any
	if err := json.Unmarshal(r.body, &whole); err != nil {
		t.Fatal(err)
	}
	var paths []string
	var collect func(prefix string, v any)
	collect = func(prefix string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, value := range v {
				paths = append(paths, prefix+name)
				collect(prefix+name+".", value)
			}
		case []any:
			for _, item := range v {
				collect(prefix, item)
			}
		}
	}
	collect("", whole)
	slices.Sort(paths)
	got := strings.Join(slices.Compact(paths), "\n")
	const want = `analyses
analyses.analyse_id
analyses.error_code
analyses.error_message
analyses.folder_id
analyses.group_id
analyses.resolution
analyses.resolution_status
analyses.results_data
analyses.results_data.confidence_spoofing
analyses.results_media
analyses.results_media.media_association_id
analyses.results_media.output_images
analyses.results_media.output_images.image_b64
analyses.results_media.output_images.media_id
analyses.results_media.output_images.original_name
analyses.results_media.output_images.original_url
analyses.results_media.results_data
analyses.results_media.results_data.confidence_spoofing
analyses.results_media.source_shots_set_id
analyses.results_media.source_video_id
analyses.source_media
analyses.source_media.media_id
analyses.source_media.media_type
analyses.source_media.tags
analyses.state
analyses.time_created
analyses.time_updated
analyses.type
company_id
folder_id
is_cleared
media
media.md5
media.media_association_id
media.media_id
media.media_type
media.meta_data
media.original_name
media.original_url
media.tags
media.technical_meta_data
media.time_created
media.time_updated
media.video_url
meta_data
meta_data.event_session_id
meta_data.transaction_id
operator_comment
operator_status
resolution_comment
resolution_status
system_resolution
technical_meta_data
time_created
time_updated
user_id`
	if got != want {
		t.Errorf("fields:\n%s", got)
	}
}

func TestFolderIsFreshEachTime(t *testing.T) {
	s, url := start(t, Options{ReuseTokens: true})
	c := s.Capsule(CapsuleSpec{})
	first, second := post(t, url, c).folder(t), post(t, url, c).folder(t)
	if first.ID == second.ID || first.Analyses[0].ID == second.Analyses[0].ID {
		t.Error("ids come twice")
	}
	if first.Meta["event_session_id"] != second.Meta["event_session_id"] {
		t.Error("the event session is the capsule's, not the answer's")
	}
}

func TestMetadataIsEchoed(t *testing.T) {
	s, url := start(t, Options{})
	meta := map[string]string{"transaction_id": "order-1", `odd "name"`: "<b>\u2028", "event_session_id": "forged"}
	spec := CapsuleSpec{Meta: meta, EventSession: "session-1"}
	got := post(t, url, s.Capsule(spec)).folder(t).Meta
	if len(got) != 3 || got["transaction_id"] != "order-1" || got[`odd "name"`] != "<b>\u2028" || got["event_session_id"] != "session-1" {
		t.Errorf("echoed: %v", got)
	}
	s.SetOptions(Options{NoEcho: true})
	if got := post(t, url, s.Capsule(spec)).folder(t).Meta; len(got) != 1 || got["event_session_id"] != "session-1" {
		t.Errorf("not echoed: %v", got)
	}
}

func TestBestShotIsAJPEGOfTheSizeWanted(t *testing.T) {
	for _, size := range []int64{0, 1600, 4000, 8000, 24_000, 65_532, 87_388, 400_001, 5 << 20} {
		shot := BestShot(size)
		img, err := jpeg.Decode(bytes.NewReader(shot))
		if err != nil {
			t.Errorf("%d: %v", size, err)
			continue
		}
		if b := img.Bounds(); b.Dy() < b.Dx() {
			t.Errorf("%d: %v is no portrait", size, b)
		}
		if length := int64(base64.StdEncoding.EncodedLen(len(shot))); size > 0 && length != size/4*4 {
			t.Errorf("%d: %d characters", size, length)
		}
		if !bytes.Equal(shot, BestShot(size)) {
			t.Errorf("%d: differs from one time to the next", size)
		}
	}
	// Around a full comment segment the last one has to be at least four bytes long.
	face := Portrait("", 12)
	for want := len(face); want < len(face)+20; want++ {
		for _, segments := range []int{0, 65537, 2 * 65537} {
			shot := padJPEG(face, want+segments)
			if _, err := jpeg.Decode(bytes.NewReader(shot)); err != nil || len(shot) != want+segments {
				t.Errorf("padded by %d: %d bytes, %v", want+segments-len(face), len(shot), err)
			}
		}
	}
}

func TestBestShotSizeOption(t *testing.T) {
	s, url := start(t, Options{BestShotSize: 400_000})
	f := post(t, url, s.Capsule(CapsuleSpec{Media: 3})).folder(t)
	for _, result := range f.Analyses[0].Results {
		if n := len(result.Images[0].Base64); n != 400_000 {
			t.Errorf("%d characters", n)
		}
	}
	if len(f.Analyses[0].Results) != 3 || len(f.Media) != 3 || len(f.Analyses[0].SourceMedia) != 3 {
		t.Errorf("%d results, %d media", len(f.Analyses[0].Results), len(f.Media))
	}
}
