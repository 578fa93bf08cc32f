package sandbox

import (
	"bytes"
	"encoding/json"
	"image"
	"image/gif"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBiometryOfTwoPhotos(t *testing.T) {
	s, url := start(t, Options{})
	for _, c := range []struct {
		reference, shot, outcome string
	}{
		{"alice", "alice", Success}, {"alice", "bob", Declined}, {"", "", Success}, {"", "alice", Declined},
	} {
		f := photosOf(c.reference, c.shot).post(t, url).wantMatch(t, c.outcome)
		a := f.Analyses[0]
		if f.Status != "FINISHED" || f.Comment != "[]" || !uuid.MatchString(f.ID) || a.State != "FINISHED" || a.Code != nil {
			t.Errorf("%+v", f)
		}
		score := a.Data["min_confidence"].(float64)
		if (score >= Threshold) != (c.outcome == Success) || a.Data["max_confidence"] != score {
			t.Errorf("%q and %q: %v", c.reference, c.shot, a.Data)
		}
		if len(a.Results) != 2 || len(a.SourceMedia) != 2 || len(f.Media) != 2 {
			t.Errorf("%d results, %d sources, %d media", len(a.Results), len(a.SourceMedia), len(f.Media))
		}
		for i, result := range a.Results {
			if result.Data["min_confidence"] != score || result.Data["max_confidence"] != score || len(result.Images) != 0 {
				t.Errorf("%d: %+v", i, result)
			}
		}
		if f.Media[0]["original_name"] != refName || f.Media[1]["media_type"] != "IMAGE_FOLDER" {
			t.Errorf("%v", f.Media)
		}
	}
	if len(s.Received()) != 0 || len(s.RequestsOn(OnBiometry)) != 4 {
		t.Errorf("%d capsules, %d forms", len(s.Received()), len(s.RequestsOn(OnBiometry)))
	}
}

// The whole flow: what liveness gives out is good for matching as it is.
func TestBestShotOfACapsuleIsAlikeToItsPerson(t *testing.T) {
	s, url := start(t, Options{BestShotSize: 65_000})
	for _, c := range []struct{ camera, reference, outcome string }{
		{"alice", "alice", Success}, {"mallory", "alice", Declined}, {"", "", Success},
	} {
		f := post(t, url, s.Capsule(CapsuleSpec{Person: c.camera})).folder(t)
		shot := mustBase64(t, f.Analyses[0].Results[0].Images[0].Base64)
		if !bytes.Equal(shot, BestShotOf(c.camera, 65_000)) {
			t.Errorf("%q: another best shot", c.camera)
		}
		twoPhotos(Portrait(c.reference, 300), shot).post(t, url).wantMatch(t, c.outcome)
	}
}

func TestBiometryTakesPNG(t *testing.T) {
	_, url := start(t, Options{})
	twoPhotos(asPNG(PortraitImage("alice", 150)), BestShotOf("alice", 0)).post(t, url).wantMatch(t, Success)
}

// What a part says of itself does not matter, what is in it does.
func TestBiometryHasManySpellings(t *testing.T) {
	_, url := start(t, Options{})
	good := photosOf("alice", "alice")
	untyped := good.with(1, formField{refName, refName, "", good[1].content})
	for name, f := range map[string]form{
		"type in upper case": good.with(0, payloadPart(strings.Replace(twoPayload, "biometry", "BIOMETRY", 1))),
		"typed payload":      good.with(0, formField{"payload", "", "application/json", twoPayload}),
		"untyped file":       untyped,
		"other field":        append(slices.Clone(good), formField{name: "note", content: "hello"}),
		"payload last":       {good[1], good[2], good[0]},
		"unknown names":      good.with(0, payloadPart(strings.Replace(twoPayload, "{", `{"x": 1, `, 1))),
		"front of a passport": good.with(0, payloadPart(strings.Replace(twoPayload, `["photo_selfie"]`, `["photo_id", "photo_id_front"]`,
			1))),
	} {
		t.Run(name, func(t *testing.T) { f.post(t, url).wantMatch(t, Success) })
	}
	body := good.body()
	for name, c := range map[string]struct {
		contentType string
		body        []byte
	}{
		"quoted boundary":        {`Multipart/Form-Data; charset=utf-8; boundary="sandbox-test"`, body},
		"preamble":               {formType, append([]byte("to be ignored\r\n"), body...)},
		"epilogue":               {formType, append(bytes.Clone(body), "to be ignored"...)},
		"no line break at end":   {formType, bytes.TrimSuffix(body, []byte("\r\n"))},
		"line breaks of unix":    {formType, bytes.ReplaceAll(photosWithoutCR(t).body(), []byte("\r\n"), []byte("\n"))},
		"spaces after delimiter": {formType, bytes.ReplaceAll(body, []byte("--sandbox-test\r\n"), []byte("--sandbox-test \t\r\n"))},
	} {
		t.Run(name, func(t *testing.T) {
			r := send(t, url+FoldersPath, c.contentType, c.body)
			if f := r.folder(t); r.status != 201 || len(f.Media) != 2 {
				t.Errorf("%d %.300s", r.status, r.body)
			}
		})
	}
}

// photosWithoutCR are photos in whose bytes no line ending can be changed.
func photosWithoutCR(t *testing.T) form {
	t.Helper()
	for size := 60; size < 400; size++ {
		photo := Portrait("alice", size)
		if !bytes.Contains(photo, []byte("\r\n")) {
			return twoPhotos(photo, photo)
		}
	}
	t.Fatal("there are none")
	return nil
}

func TestBiometryRefusals(t *testing.T) {
	_, url := start(t, Options{})
	good := photosOf("alice", "alice")
	payload := func(text string) form { return good.with(0, payloadPart(text)) }
	replaced := func(old, new string) form { return payload(strings.Replace(twoPayload, old, new, 1)) }
	third := append(slices.Clone(good), file("third.jpeg", []byte(good[1].content)))
	shot := func(content string) form { return good.with(2, file(shotName, []byte(content))) }
	for name, c := range map[string]struct {
		form form
		code int
		text string
	}{
		"no payload":           {good.without("payload"), 3, "key_path payload from"},
		"payload is a file":    {good.with(0, formField{"payload", "payload", "application/json", twoPayload}), 3, "key_path payload"},
		"payload twice":        {append(slices.Clone(good), payloadPart(twoPayload)), 4, "twice"},
		"payload not JSON":     {payload("media:tags"), 3, "JSON"},
		"payload cut":          {payload(twoPayload[:len(twoPayload)-1]), 3, "JSON"},
		"payload null":         {payload("null"), 3, "JSON"},
		"payload an array":     {payload("[" + twoPayload + "]"), 3, "JSON"},
		"no tags":              {payload(`{"analyses": [{"type": "biometry"}]}`), 3, "media:tags"},
		"no analyses":          {payload(`{` + tagsOfTwo + `}`), 3, "analyses"},
		"analysis of no type":  {replaced(`"type"`, `"kind"`), 3, "analyses.type"},
		"no files":             {good.without(refName, shotName), 4, "has no file"},
		"tags null":            {payload(`{"media:tags": null, "analyses": []}`), 5, "media:tags"},
		"tags an array":        {payload(`{"media:tags": [], "analyses": []}`), 5, "media:tags"},
		"tag not in an array":  {replaced(`["photo_selfie"]`, `"photo_selfie"`), 5, "media:tags"},
		"tag a number":         {replaced(`["photo_selfie"]`, `[1]`), 5, "media:tags"},
		"analyses an object":   {replaced(`[{"type": "biometry"}]`, `{"type": "biometry"}`), 5, "analyses"},
		"type a number":        {replaced(`"biometry"`, `1`), 5, "analyses"},
		"metadata a text":      {replaced(`"analyses"`, `"folder:meta_data": "x", "analyses"`), 5, "folder:meta_data"},
		"analyses empty":       {replaced(`{"type": "biometry"}`, ``), 4, "analyses"},
		"analysis of liveness": {replaced(`"biometry"`, `"quality"`), 4, "biometry only"},
		"a second type":        {replaced(`{"type": "biometry"}`, `{"type": "biometry"}, {"type": "documents"}`), 4, "biometry only"},

		"filename differs":        {good.with(1, formField{refName, "other.jpeg", "image/jpeg", good[1].content}), 4, "differ"},
		"filename with a path":    {good.with(1, formField{refName, "/tmp/" + refName, "image/jpeg", good[1].content}), 4, "differ"},
		"no filename":             {good.with(1, formField{refName, "", "image/jpeg", good[1].content}), 4, "has no file"},
		"key of other case":       {replaced(shotName, "Best_Shot.jpeg"), 4, "not in media:tags"},
		"key without a file":      {good.without(shotName), 4, "has no file"},
		"file without a key":      {third, 4, "not in media:tags"},
		"file comes twice":        {append(slices.Clone(good), good[2]), 4, "twice"},
		"metadata without file":   {replaced(`"analyses"`, `"media:meta_data": {"x.jpeg": {}}, "analyses"`), 4, "has no file"},
		"text as an image":        {shot("a face"), 5, "JPEG nor PNG"},
		"GIF":                     {shot(string(asGIF())), 5, "JPEG nor PNG"},
		"empty image":             {shot(""), 5, "JPEG nor PNG"},
		"JPEG cut":                {shot(good[2].content[:len(good[2].content)/2]), 4, "decode"},
		"base64 of a JPEG":        {shot("/9j/4AAQSkZJRgABAQ"), 5, "JPEG nor PNG"},
		"beginning of a PNG":      {shot("\x89PNG\r\n\x1a\n"), 4, "decode"},
		"PNG of a billion points": {shot(string(hugePNG())), 4, "pixels"},

		"one usable":        {replaced(`["photo_selfie"]`, `["photo_id_back"]`), 4, "Fewer than two"},
		"tags of a video":   {replaced(`["photo_selfie"]`, `["video_selfie"]`), 4, "Fewer than two"},
		"no tags at a file": {replaced(`["photo_selfie"]`, `[]`), 4, "Fewer than two"},
	} {
		t.Run(name, func(t *testing.T) { c.form.post(t, url).wantText(t, 400, c.code, c.text) })
	}
}

func asGIF() []byte {
	var out bytes.Buffer
	if err := gif.Encode(&out, image.NewGray(image.Rect(0, 0, 9, 9)), nil); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// hugePNG says that it is huge, and is not.
func hugePNG() []byte {
	return withPNGSize(asPNG(image.NewGray(image.Rect(0, 0, 1, 1))), 32_000, 32_000)
}

func TestBodiesThatAreNoForm(t *testing.T) {
	s, url := start(t, Options{})
	body := photosOf("alice", "alice").body()
	for name, c := range map[string]struct {
		contentType string
		body        []byte
		text        string
	}{
		"no boundary":      {"multipart/form-data", body, "boundary"},
		"empty boundary":   {"multipart/form-data; boundary=", body, "boundary"},
		"other boundary":   {"multipart/form-data; boundary=other", body, "not multipart"},
		"broken parameter": {"multipart/form-data; boundary", body, "boundary"},
		"empty body":       {formType, nil, "not multipart"},
		"noise":            {formType, []byte("noise"), "not multipart"},
		"a capsule":        {formType, s.Capsule(CapsuleSpec{}), "not multipart"},
		"cut in a part":    {formType, body[:len(body)/2], "not multipart"},
		"no closing":       {formType, bytes.TrimSuffix(body, []byte("\r\n--sandbox-test--\r\n")), "not multipart"},
		"no parts":         {formType, []byte("--sandbox-test--\r\n"), "payload"},
		"no names":         {formType, []byte("--sandbox-test\r\n\r\n" + twoPayload + "\r\n--sandbox-test--\r\n"), "payload"},
	} {
		t.Run(name, func(t *testing.T) {
			send(t, url+FoldersPath, c.contentType, c.body).wantText(t, 400, 3, c.text)
			recs := s.RequestsOn(OnBiometry)
			await(t, s, "its end", func(st Stats) bool { return st.MatchesFinished == len(recs) })
			if rec := s.RequestsOn(OnBiometry)[len(recs)-1]; rec.Digest != sha256hex(c.body) || !rec.Complete {
				t.Errorf("not read to its end: %+v", rec)
			}
		})
	}
	// The door looks at the kind of body alone.
	for contentType, code := range map[string]int{"multipart/mixed; boundary=sandbox-test": 13, "application/json": 13, "application/octet-stream": 14} {
		send(t, url+FoldersPath, contentType, body).wantError(t, 400, code)
	}
}

func TestTooManyAndTooLargeParts(t *testing.T) {
	s, url := start(t, Options{})
	good := photosOf("alice", "alice")
	many := slices.Clone(good)
	for range maxParts {
		many = append(many, formField{name: "more"})
	}
	many.post(t, url).wantText(t, 400, 4, "Too many")
	exactly := int64(max(len(good[1].content), len(good[2].content)))
	s.SetOptions(Options{MaxImage: exactly})
	good.post(t, url).wantMatch(t, Success)
	s.SetOptions(Options{MaxImage: exactly - 1})
	good.post(t, url).wantText(t, 400, 4, "too large")
	s.SetOptions(Options{MaxCapsule: int64(len(good.body()))})
	good.post(t, url).wantMatch(t, Success)
	s.SetOptions(Options{MaxCapsule: int64(len(good.body())) - 1})
	if r := good.post(t, url); r.status != 413 {
		t.Errorf("by length: %d", r.status)
	}
	req := newPost(t, url+FoldersPath, formType, chunked(good.body()))
	if r, err := do(req); err != nil || r.status != 413 {
		t.Errorf("chunked: %d %v", r.status, err)
	}
}

func TestFewMedia(t *testing.T) {
	s, url := start(t, Options{FewMediaFail: true})
	few := photosOf("alice", "alice").with(0, payloadPart(strings.Replace(twoPayload, "photo_selfie", "photo_id_back", 1)))
	f := few.post(t, url).wantMatch(t, Failed)
	a := f.Analyses[0]
	if f.Status != "FAILED" || f.Comment != `[{"type": "BIOMETRY", "error_code": 4}]` || a.State != "FAILED" || a.Code != 4.0 || a.Message != textFew || len(a.Results) != 0 {
		t.Errorf("%+v", f)
	}
	form{payloadPart(`{"media:tags": {}, "analyses": [{"type": "biometry"}]}`)}.post(t, url).wantMatch(t, Failed)
	s.SetOptions(Options{})
	few.post(t, url).wantError(t, 400, 4)
}

// The least similar pair counts.
func TestMoreThanTwoPhotos(t *testing.T) {
	_, url := start(t, Options{})
	payload := `{"media:tags": {"a": ["photo_selfie"], "b": ["photo_selfie"], "c": ["photo_selfie"], "d": ["photo_id_back"]}, "analyses": [{"type": "biometry"}]}`
	alice, bob := Portrait("alice", 240), Portrait("bob", 240)
	f := form{payloadPart(payload), file("a", alice), file("b", bob), file("c", alice), file("d", bob)}.post(t, url).wantMatch(t, Declined)
	a := f.Analyses[0]
	if a.Data["min_confidence"].(float64) >= Threshold || a.Data["max_confidence"] != 1.0 || len(f.Media) != 4 || len(a.Results) != 3 {
		t.Errorf("%+v", a)
	}
	if b := a.Results[1].Data; b["max_confidence"].(float64) >= Threshold || a.Results[0].Data["max_confidence"] != 1.0 {
		t.Errorf("%+v", a.Results)
	}
	form{payloadPart(payload), file("a", alice), file("b", alice), file("c", alice), file("d", bob)}.post(t, url).wantMatch(t, Success)
}

func TestOperatorRequired(t *testing.T) {
	s, url := start(t, Options{OperatorFrom: 0.001})
	f := photosOf("alice", "bob").post(t, url).wantMatch(t, OperatorRequired)
	if f.Status != "FINISHED" || f.Analyses[0].Data["min_confidence"].(float64) >= Threshold {
		t.Errorf("%+v", f)
	}
	photosOf("alice", "alice").post(t, url).wantMatch(t, Success)
	noFace := asPNG(image.NewGray(image.Rect(0, 0, 90, 120)))
	twoPhotos(noFace, noFace).post(t, url).wantMatch(t, Declined)
	s.SetOptions(Options{OperatorFrom: 0.84})
	photosOf("alice", "bob").post(t, url).wantMatch(t, Declined)
}

func TestMetadataOfAMatchIsEchoed(t *testing.T) {
	s, url := start(t, Options{})
	f := photosOf("alice", "alice").with(0, payloadPart(strings.Replace(twoPayload, `"analyses"`,
		`"folder:meta_data": {"event_session_id": "e-1", "odd \"name\"": [1, {"a": null}]}, "media:meta_data": {"`+refName+`": {"k": 1}}, "analyses"`, 1)))
	got := f.post(t, url).wantMatch(t, Success)
	if len(got.Meta) != 2 || got.Meta["event_session_id"] != "e-1" || len(got.Meta[`odd "name"`].([]any)) != 2 {
		t.Errorf("%v", got.Meta)
	}
	if m := got.Media[0]["meta_data"].(map[string]any); m["k"] != 1.0 || len(got.Media[1]["meta_data"].(map[string]any)) != 0 {
		t.Errorf("%v", got.Media)
	}
	s.SetOptions(Options{NoEcho: true})
	if got := f.post(t, url).wantMatch(t, Success); len(got.Meta) != 0 || len(got.Media[0]["meta_data"].(map[string]any)) != 0 {
		t.Errorf("not to be echoed: %v", got.Meta)
	}
}

// A folder of images has the same fields as that of a capsule.
func TestFolderOfAMatchHasEveryKnownField(t *testing.T) {
	s, url := start(t, Options{})
	one := names(t, post(t, url, s.Capsule(CapsuleSpec{Outcome: OperatorRequired})).body)
	two := names(t, photosOf("alice", "alice").post(t, url).body)
	for name := range one {
		if !two[name] && !slices.Contains([]string{"event_session_id", "confidence_spoofing", "source_video_id", "image_b64"}, name) {
			t.Errorf("%s is missing", name)
		}
	}
	for name := range two {
		if !one[name] && name != "source_image_id" {
			t.Errorf("%s is new", name)
		}
	}
}

func names(t *testing.T, doc []byte) map[string]bool {
	t.Helper()
	var whole any
	if err := json.Unmarshal(doc, &whole); err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	var collect func(v any)
	collect = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, value := range v {
				out[name] = true
				collect(value)
			}
		case []any:
			for _, item := range v {
				collect(item)
			}
		}
	}
	collect(whole)
	return out
}

// What is a switch for capsules is one for images.
func TestSwitchesThatConcernMatchesToo(t *testing.T) {
	s, url := start(t, Options{})
	f := photosOf("alice", "alice")
	noSlash := strings.TrimSuffix(FoldersPath, "/")
	for _, c := range []struct {
		name    string
		options Options
		path    string
		header  []string
		status  int
	}{
		{"both spellings", Options{}, noSlash, nil, 201},
		{"strict slash, with", Options{StrictSlash: true}, FoldersPath, nil, 201},
		{"strict slash, without", Options{StrictSlash: true}, noSlash, nil, 404},
		{"base path", Options{BasePath: "/oz"}, "/oz" + FoldersPath, nil, 201},
		{"other base path", Options{BasePath: "/oz"}, FoldersPath, nil, 404},
		{"allowed host", Options{AllowedHosts: []string{"oz.internal"}}, FoldersPath, []string{"Host", "oz.internal"}, 201},
		{"other host", Options{AllowedHosts: []string{"oz.internal"}}, FoldersPath, nil, 400},
		{"access token", Options{AccessToken: "secret"}, FoldersPath, []string{accessTokenHeader, "secret"}, 201},
		{"no access token", Options{AccessToken: "secret"}, FoldersPath, nil, 401},
		{"old texts are of capsules", Options{LegacyMessages: true}, FoldersPath, nil, 201},
		{"a place after the upload", Options{Parallel: 1, SlotAfterUpload: true}, FoldersPath, nil, 201},
	} {
		s.SetOptions(c.options)
		if r := send(t, url+c.path, formType, f.body(), c.header...); r.status != c.status {
			t.Errorf("%s: %d %.200s", c.name, r.status, r.body)
		}
	}
}

func TestMatchesTakePlacesAndTime(t *testing.T) {
	const analysis = 50 * time.Millisecond
	s, url := start(t, Options{Parallel: 1, Overflow: OverflowRefuse, AnalysisTime: analysis})
	slow := begin(t, url)
	await(t, s, "a capsule's place", func(st Stats) bool { return st.Busy == 1 })
	photosOf("alice", "alice").post(t, url).wantError(t, 503, 11)
	slow.end(t, s.Capsule(CapsuleSpec{})).wantSuccess(t)
	began := time.Now()
	photosOf("alice", "alice").post(t, url).wantMatch(t, Success)
	if took := time.Since(began); took < analysis {
		t.Errorf("answered after %v", took)
	}
}

func TestReceiptOfAMatch(t *testing.T) {
	s, url := start(t, Options{})
	reference, shot := Portrait("alice", 120), BestShotOf("alice", 0)
	f := twoPhotos(reference, shot)
	f.post(t, url).wantMatch(t, Success)
	f.with(0, payloadPart("{")).post(t, url).wantError(t, 400, 3)
	await(t, s, "both ends", func(st Stats) bool { return st.Matches == 2 && st.MatchesFinished == 2 })
	recs := s.RequestsOn(OnBiometry)
	want := []Part{
		{"payload", "", "", int64(len(twoPayload)), Digest([]byte(twoPayload)), nil},
		{refName, refName, "image/jpeg", int64(len(reference)), Digest(reference), []string{"photo_selfie"}},
		{shotName, shotName, "image/jpeg", int64(len(shot)), sha256hex(shot), []string{"photo_selfie"}},
	}
	if got := recs[0]; !slices.EqualFunc(got.Parts, want, samePart) || got.Status != 201 || got.Digest != sha256hex(f.body()) || got.Route != OnBiometry {
		t.Errorf("%+v", got)
	}
	if got := recs[1]; len(got.Parts) != 3 || got.Parts[1].Digest != want[1].Digest || got.Parts[1].Tags != nil || got.Code != 3 {
		t.Errorf("%+v", got)
	}
	if st := s.Stats(); st.Received != 0 || st.Finished != 0 || st.Bytes != 0 {
		t.Errorf("counted as capsules: %+v", st)
	}
}

func samePart(a, b Part) bool {
	return a.Name == b.Name && a.FileName == b.FileName && a.ContentType == b.ContentType && a.Size == b.Size && a.Digest == b.Digest && slices.Equal(a.Tags, b.Tags)
}

// A client that leaves in the middle of its photos gets no verdict, and gives its place back.
func TestAMatchThatBreaksOff(t *testing.T) {
	s, url := start(t, Options{Parallel: 1})
	w := &wire{t: t, s: s, url: url}
	body := photosOf("alice", "alice").body()
	w.dialAs(formType, len(body))
	w.write(body[:len(body)-100])
	await(t, s, "a place", func(st Stats) bool { return st.Busy == 1 })
	w.conn.Close()
	await(t, s, "its end", func(st Stats) bool { return st.MatchesFinished == 1 && st.Busy == 0 })
	if rec := s.RequestsOn(OnBiometry)[0]; rec.Status != 0 || rec.Complete || len(rec.Parts) != 0 {
		t.Errorf("%+v", rec)
	}
}

func FuzzReadForm(f *testing.F) {
	f.Add(photosOf("alice", "alice").body())
	f.Add(photosOf("a", "b").without("payload").body())
	f.Add([]byte("--sandbox-test--"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMeter(bytes.NewReader(b), 0)
		parts, refused, err := readForm(m, formType, 1<<20)
		if err != nil || m.size != int64(len(b)) || !m.ended {
			t.Errorf("%v, read %d of %d", err, m.size, len(b))
		}
		if refused == nil {
			_, _, _ = Options{}.unpack(parts)
		}
	})
}
