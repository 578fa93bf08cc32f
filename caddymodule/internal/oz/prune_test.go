package oz

import (
	"errors"
	"strings"
	"testing"
)

// pruned is what became of a document.
type pruned struct {
	text string
	cuts int
	cut  int64
	err  string
}

// prune writes the pieces of a document to a Pruner, and Close.
func prune(limit int64, keep bool, pieces ...string) (pruned, error) {
	p := NewPruner(limit, keep)
	var err error
	for _, piece := range pieces {
		if _, err = p.Write([]byte(piece)); err != nil {
			break
		}
	}
	// A caller that overlooks an error of Write gets it again.
	if closeErr := p.Close(); err == nil || closeErr != err {
		err = closeErr
	}
	result := pruned{string(p.Bytes()), p.Cuts(), p.CutBytes(), ""}
	if err != nil {
		// What was dropped before an error depends on the split; nobody asks.
		result = pruned{result.text, 0, 0, err.Error()}
	}
	return result, err
}

const noLimit = 1 << 40

func bytewise(doc string) []string { return strings.Split(doc, "") }

// Wherever the member stands among others, it goes with its name, its value
// and one comma, and what stays has every byte that it had.
func TestPruneCutsTheMemberAndOneComma(t *testing.T) {
	for _, tc := range []struct {
		name, members, want string
		cuts                int
	}{
		{"only", `"image_b64":"AAAA"`, ``, 1},
		{"first", `"image_b64":"AAAA","a":1`, `"a":1`, 1},
		{"last", `"a":1,"image_b64":"AAAA"`, `"a":1`, 1},
		{"in the middle", `"a":1,"image_b64":"AAAA","b":2`, `"a":1,"b":2`, 1},
		{"twice in a row, first", `"image_b64":"A","image_b64":"B","a":1`, `"a":1`, 2},
		{"twice in a row, last", `"a":1,"image_b64":"A","image_b64":"B"`, `"a":1`, 2},
		{"twice in a row, middle", `"a":1,"image_b64":"A","image_b64":"B","b":2`, `"a":1,"b":2`, 2},
		{"twice, apart", `"image_b64":"A","a":1,"image_b64":"B"`, `"a":1`, 2},
		{"twice and nothing else", `"image_b64":"A","image_b64":"B"`, ``, 2},
		{"three times around two", `"image_b64":1,"a":1,"image_b64":2,"b":2,"image_b64":3`, `"a":1,"b":2`, 3},
		{"none", `"a":1,"b":2`, `"a":1,"b":2`, 0},
		{"no members", ``, ``, 0},

		{"empty string", `"image_b64":"","a":1`, `"a":1`, 1},
		{"null", `"image_b64":null,"a":1`, `"a":1`, 1},
		{"true", `"a":1,"image_b64":true`, `"a":1`, 1},
		{"false", `"image_b64":false`, ``, 1},
		{"number", `"image_b64":-12.5e+3,"a":1`, `"a":1`, 1},
		{"number before the end", `"a":1,"image_b64":0`, `"a":1`, 1},
		{"object", `"image_b64":{"image_b64":"x","b":[1,2,{}]},"a":1`, `"a":1`, 1},
		{"array", `"a":1,"image_b64":["x",["y"],{}],"b":2`, `"a":1,"b":2`, 1},
		{"the whole path once more", `"image_b64":` + image(`"image_b64":1`) + `,"a":1`, `"a":1`, 1},

		{"escaped quotes in it", `"image_b64":"\"}]\\\"\\","a":1`, `"a":1`, 1},
		{"structure in it", `"image_b64":"},{\"image_b64\":[","a":1`, `"a":1`, 1},
		{"bytes that are no UTF-8 in it", "\"image_b64\":\"\xff\xc0\x00\n\",\"a\":1", `"a":1`, 1},
		{"bad escapes in it", `"image_b64":"\q\u12\ud800","a":1`, `"a":1`, 1},

		{"escaped name", `"image\u005fb64":"A","a":1`, `"a":1`, 1},
		{"name escaped throughout", `"a":1,"\u0069\u006d\u0061\u0067\u0065\u005F\u0062\u0036\u0034":"A"`, `"a":1`, 1},
		{"other case", `"Image_b64":"A"`, `"Image_b64":"A"`, 0},
		{"longer name", `"image_b64x":"A"`, `"image_b64x":"A"`, 0},
		{"longer name by an escape", `"image_b64\u0000":"A"`, `"image_b64\u0000":"A"`, 0},
		{"shorter name", `"image_b6":"A"`, `"image_b6":"A"`, 0},
		{"quote in the name", `"image_b64\"":"A"`, `"image_b64\"":"A"`, 0},
		{"bad escape in the name", `"image\_b64":"A"`, `"image\_b64":"A"`, 0},
		{"bad escape behind the name", `"image_b64\q":"A"`, `"image_b64\q":"A"`, 0},
		{"half an escape behind the name", `"image_b64\u00":"A"`, `"image_b64\u00":"A"`, 0},
		{"no UTF-8 behind the name", "\"image\\u005fb64\xff\":1", "\"image\\u005fb64\xff\":1", 0},
		{"empty name", `"":"A"`, `"":"A"`, 0},

		{"deeper", `"a":{"image_b64":"A"}`, `"a":{"image_b64":"A"}`, 0},
		{"as a value", `"a":"image_b64","image_b64":"image_b64"`, `"a":"image_b64"`, 1},

		{"whitespace, first", " \n\"image_b64\" :\t\"A\" , \"a\" : 1 ", ` "a" : 1 `, 1},
		{"whitespace, last", " \"a\" : 1 , \"image_b64\" : \"A\" \r\n", ` "a" : 1 `, 1},
		{"whitespace, middle", " \"a\" : 1 , \"image_b64\" : 5 , \"b\" : 2 ", ` "a" : 1 , "b" : 2 `, 1},
		{"whitespace, only", " \"image_b64\" : { } ", ``, 1},
		{"whitespace, two first", " \"image_b64\":1 , \"image_b64\":2 ,\n\"a\":1", "\n\"a\":1", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			doc, want := image(tc.members), image(tc.want)
			got, err := prune(noLimit, false, doc)
			if err != nil {
				t.Fatal(err)
			}
			if got.text != want || got.cuts != tc.cuts {
				t.Errorf("got  %s (%d cuts)\nwant %s (%d cuts)", got.text, got.cuts, want, tc.cuts)
			}
			if got.cut != int64(len(doc)-len(want)) {
				t.Errorf("CutBytes is %d, want %d", got.cut, len(doc)-len(want))
			}
		})
	}
}

// One object does not know of another, whatever was cut there.
func TestPruneSeveralObjects(t *testing.T) {
	for doc, want := range map[string]string{
		image(`"a":1,"image_b64":1},{"image_b64":1,"b":2},{"image_b64":1},{"c":3`): image(`"a":1},{"b":2},{},{"c":3`),
		image(`"image_b64":1}]},{"output_images":[{"image_b64":1,"b":2}, {"c":3`):  image(`}]},{"output_images":[{"b":2}, {"c":3`),
		image(`"image_b64":1},[1,2,[3,4]],5,{"a":[{"image_b64":1,"b":2},3]`):       image(`},[1,2,[3,4]],5,{"a":[{"image_b64":1,"b":2},3]`),
	} {
		if got, err := prune(noLimit, false, doc); err != nil || got.text != want {
			t.Errorf("got %v, %q\nwant %q", err, got.text, want)
		}
	}
}

// Only one path leads to the member. Everything that looks like it stays.
func TestPruneFollowsThePath(t *testing.T) {
	const cut, kept = true, false
	for _, tc := range []struct {
		name, before, after string
		want                bool
	}{
		{"the path", `{"analyses":[{"results_media":[{"output_images":[{`, `}]}]}]}`, cut},
		{"behind other members", `{"a":[{}],"analyses":[{"b":{},"results_media":[{"c":1,"output_images":[{`, `}]}]}]}`, cut},
		{"in later elements", `{"analyses":[{},1,[],{"results_media":["x",{},{"output_images":[null,{"a":[]},{`, `}]}]}]}`, cut},
		{"in whitespace", " { \"analyses\" : [ { \"results_media\"\n:\t[ { \"output_images\" : [ {", "} ] } ] } ] } ", cut},
		{"escaped names", `{"\u0061nalyses":[{"results\u005Fmedia":[{"output_image\u0073":[{`, `}]}]}]}`, cut},
		{"a second list of analyses", `{"analyses":[],"analyses":[{"results_media":[{"output_images":[{`, `}]}]}]}`, cut},
		{"after a branch that ended", `{"analyses":[{"results_media":[{"output_images":[]}]},{"results_media":[{"output_images":[{`, `}]}]}]}`, cut},

		{"at the root", `{`, `}`, kept},
		{"in an analysis", `{"analyses":[{`, `}]}`, kept},
		{"in results_media", `{"analyses":[{"results_media":[{`, `}]}]}`, kept},
		{"in another list", `{"analyses":[{"source_media":[{"output_images":[{`, `}]}]}]}`, kept},
		{"in a list behind the right one", `{"analyses":[{"results_media":[],"source_media":[{"output_images":[{`, `}]}]}]}`, kept},
		{"under another root member", `{"media":[{"results_media":[{"output_images":[{`, `}]}]}]}`, kept},
		{"objects for arrays", `{"analyses":{"results_media":{"output_images":{`, `}}}}`, kept},
		{"an object for one array", `{"analyses":[{"results_media":[{"output_images":{`, `}}]}]}`, kept},
		{"an array too many", `{"analyses":[[{"results_media":[{"output_images":[{`, `}]}]}]]}`, kept},
		{"an array in place of the image", `{"analyses":[{"results_media":[{"output_images":[[{`, `}]]}]}]}`, kept},
		{"an object between", `{"analyses":{"x":{"results_media":[{"output_images":[{`, `}]}]}}}`, kept},
		{"an object between images", `{"analyses":[{"results_media":[{"output_images":{"x":{`, `}}}]}]}`, kept},
		{"a list for an analysis", `{"analyses":[[[{"output_images":[{`, `}]}]]]}`, kept},
		{"a list for a medium", `{"analyses":[{"results_media":[[[{`, `}]]]}]}`, kept},
		{"an array at the root", `[{"analyses":[{"results_media":[{"output_images":[{`, `}]}]}]}]`, kept},
		{"under an object at the root", `{"a":{"analyses":[{"results_media":[{"output_images":[{`, `}]}]}]}}`, kept},
		{"other case", `{"Analyses":[{"results_media":[{"output_images":[{`, `}]}]}]}`, kept},
		{"the names as values", `{"a":"analyses","b":[{"results_media":[{"output_images":[{`, `}]}]}]}`, kept},
	} {
		t.Run(tc.name, func(t *testing.T) {
			doc := tc.before + `"a":1,"image_b64":"AAAA"` + tc.after
			want := doc
			if tc.want == cut {
				want = tc.before + `"a":1` + tc.after
			}
			got, err := prune(noLimit, false, doc)
			if err != nil || got.text != want {
				t.Errorf("got %v, %q\nwant %q", err, got.text, want)
			}
		})
	}
}

// With keep, nothing is cut, and the rest is judged as before.
func TestPruneKeep(t *testing.T) {
	doc := goodFolder(1000)
	got, err := prune(int64(len(doc)), true, doc)
	if err != nil || got.text != doc || got.cuts != 0 || got.cut != 0 {
		t.Errorf("the document changed: %v, %d cuts, %d bytes", err, got.cuts, got.cut)
	}
	if _, err := prune(int64(len(doc)-1), true, doc); !errors.Is(err, ErrTooLarge) {
		t.Errorf("over the limit: %v", err)
	}
	if _, err := prune(noLimit, true, image(`"image_b64":01`)); !errors.Is(err, ErrMalformed) {
		t.Errorf("malformed: %v", err)
	}
}

// TCP may cut an answer anywhere. Every way to split it in two, and into
// single bytes, has the same result or the same error.
func TestPruneSplitsMakeNoDifference(t *testing.T) {
	docs := []string{
		goodFolder(100),
		image(`"image\u005fb64":"A\\\"B\\","a":"\\\\","image_b64":[-0.5e-7,true,null],"b":1`),
		" \n [1, -0, 1.5e+10, true, false, null, \"\\u0041\\\\\", {}, []] \t",
		"12", "0", "1e5 ", `"text"`, "true",
	}
	for _, tc := range malformed {
		docs = append(docs, tc.doc)
	}
	for _, doc := range docs {
		for _, limit := range []int64{noLimit, 40} {
			want, _ := prune(limit, false, doc)
			if got, _ := prune(limit, false, bytewise(doc)...); got != want {
				t.Errorf("%q byte by byte:\n got %+v\nwant %+v", doc, got, want)
			}
			for i := range len(doc) + 1 {
				if got, _ := prune(limit, false, doc[:i], "", doc[i:]); got != want {
					t.Errorf("%q split at %d:\n got %+v\nwant %+v", doc, i, got, want)
				}
			}
		}
	}
}

// An error stays: no later piece can turn it into a document.
func TestPruneErrorsAreSticky(t *testing.T) {
	p := NewPruner(noLimit, false)
	n, first := p.Write([]byte(`{"a":]`))
	if n != 5 || !errors.Is(first, ErrMalformed) {
		t.Fatalf("got %d, %v", n, first)
	}
	if n, err := p.Write([]byte(`1}`)); n != 0 || err != first {
		t.Errorf("Write after an error: %d, %v", n, err)
	}
	if err := p.Close(); err != first {
		t.Errorf("Close after an error: %v", err)
	}
	if p.Bytes() != nil {
		t.Errorf("half a document was handed out: %q", p.Bytes())
	}
}

// Depth is counted where it is cut, too: what an app would choke on has no
// hiding place.
func TestPruneDepth(t *testing.T) {
	nested := func(open, end string, n int) string {
		return strings.Repeat(open, n) + "1" + strings.Repeat(end, n)
	}
	for _, tc := range []struct {
		name, doc string
		want      error
	}{
		{"256 arrays", nested("[", "]", MaxDepth), nil},
		{"257 arrays", nested("[", "]", MaxDepth+1), ErrTooDeep},
		{"256 objects", nested(`{"a":`, "}", MaxDepth), nil},
		{"257 objects", nested(`{"a":`, "}", MaxDepth+1), ErrTooDeep},
		{"256 with a cut value", image(`"image_b64":` + nested("[", "]", MaxDepth-heavyDepth)), nil},
		{"257 with a cut value", image(`"image_b64":` + nested("[", "]", MaxDepth-heavyDepth+1)), ErrTooDeep},
		{"a million, unclosed", strings.Repeat("[", 1e6), ErrTooDeep},
		{"wide is not deep", "[" + strings.Repeat("[],", 10_000) + "[]]", nil},
	} {
		if _, err := prune(noLimit, false, tc.doc); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
}

// The limit is on what is kept, and exact. What is held only until a name is
// complete counts too, so nothing can be made to grow without bound.
func TestPruneLimit(t *testing.T) {
	shot := bestShot(100_000)
	for _, tc := range []struct {
		name, doc string
		limit     int
	}{
		{"nothing cut", `{"a":"` + shot + `"}`, len(shot) + len(`{"a":""}`)},
		{"whitespace", `{` + strings.Repeat(" ", 5000) + `}`, 5002},
		{"a cut member first", image(`"image_b64":"` + shot + `","some_longer_name":1`), len(image(`"some_longer_name":1`))},
		{"a name held for a moment", image(`"image\u005fb64":1`), len(`{"analyses":[{"results_media":[{"output_images":[{"image\u005fb64"`)},
		{"whitespace held for a moment", image(strings.Repeat(" ", 5000) + `"image_b64":1`), len(`{"analyses":[{"results_media":[{"output_images":[{"image_b64"`) + 5000},
	} {
		if _, err := prune(int64(tc.limit), false, tc.doc); err != nil {
			t.Errorf("%s, at the limit: %v", tc.name, err)
		}
		if _, err := prune(int64(tc.limit)-1, false, tc.doc); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s, one over: %v", tc.name, err)
		}
	}
	for _, limit := range []int64{0, -1} {
		if _, err := prune(limit, false, `1`); !errors.Is(err, ErrTooLarge) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

// Memory does not depend on what is cut.
func TestPruneAllocationsDoNotGrow(t *testing.T) {
	allocs := func(doc string) float64 {
		data := []byte(doc)
		return testing.AllocsPerRun(10, func() {
			p := NewPruner(1<<20, false)
			if _, err := p.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
	small := allocs(goodFolder(50 << 10))
	for name, doc := range map[string]string{
		"400 KB":             goodFolder(400 << 10),
		"4 MB":               goodFolder(4 << 20),
		"4 MB of quotes":     image(`"image_b64":"` + strings.Repeat(`\"`, 2<<20) + `"`),
		"4 MB of whitespace": image(`"image_b64":` + strings.Repeat(` `, 4<<20) + `1`),
		"4 MB of objects":    image(`"image_b64":[` + strings.Repeat(`{"image_b64":1},`, 256<<10) + `1]`),
		"a 4 MB number":      image(`"image_b64":` + strings.Repeat(`1`, 4<<20)),
		"a 4 MB name in it":  image(`"image_b64":{"` + strings.Repeat(`a`, 4<<20) + `":1}`),
	} {
		if got := allocs(doc); got > small {
			t.Errorf("%s: %v allocations, %v for 50 KB", name, got, small)
		}
	}
}
