package oz

import (
	"bytes"
	"encoding/base64"
	stdimage "image"
	"image/color"
	"image/jpeg"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// picture is a JPEG of about size bytes.
func picture(t testing.TB, size int) []byte {
	t.Helper()
	img := stdimage.NewGray(stdimage.Rect(0, 0, 16, 16))
	img.Set(1, 1, color.White)
	var out bytes.Buffer
	if err := jpeg.Encode(&out, img, nil); err != nil {
		t.Fatal(err)
	}
	for out.Len() < size {
		out.WriteByte(byte(out.Len() * 7)) // behind the end of the image, where nobody looks
	}
	return out.Bytes()
}

// collect prunes the pieces of a document and returns its best shots.
func collect(t testing.TB, limit int64, keep bool, pieces ...string) []BestShot {
	t.Helper()
	p := NewPruner(noLimit, keep)
	p.Collect(limit)
	for _, piece := range pieces {
		if _, err := p.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return p.BestShots()
}

// However Oz writes a best shot, and however it is split on the way, the image
// is the same; what is no image is noted as such and harms nothing.
func TestBestShotIsDecodedWhileItFlows(t *testing.T) {
	jpg := picture(t, 5000)
	b64 := base64.StdEncoding.EncodeToString(jpg)
	unpadded := picture(t, 5001)
	for _, test := range []struct {
		name, value string
		want        []byte // nil: noted as unusable
	}{
		{"plain", b64, jpg},
		{"data URL", "data:image/jpeg;base64," + b64, jpg},
		{"data URL in capitals", "DATA:image/jpeg;BASE64," + b64, jpg},
		{"escaped slashes", strings.ReplaceAll(b64, "/", `\/`), jpg},
		{"other escapes", strings.ReplaceAll(strings.ReplaceAll(b64, "A", `\u0041`), "+", `\u002b`), jpg},
		{"line ends", strings.ReplaceAll(b64, b64[76:80], b64[76:80]+`\r\n`), jpg},
		{"without padding", base64.RawStdEncoding.EncodeToString(unpadded), unpadded},
		{"with padding", base64.StdEncoding.EncodeToString(unpadded), unpadded},
		{"empty", "", nil},
		{"not base64", b64[:100] + "*" + b64[101:], nil},
		{"text", "there is no image", nil},
		{"padding inside", b64[:100] + "====" + b64[100:], nil},
		{"no data behind the comma", "data:image/jpeg;base64,", nil},
		{"a comma and no data URL", "image/jpeg," + b64, nil},
		{"a PNG", base64.StdEncoding.EncodeToString([]byte("\x89PNG\r\n\x1a\n" + string(jpg))), nil},
		{"a cut JPEG", base64.StdEncoding.EncodeToString(jpg[:20]), nil},
		{"bad escape", b64[:100] + `\u00zz` + b64[100:], nil},
		{"line ends without escapes", strings.ReplaceAll(b64, b64[76:80], b64[76:80]+"\r\n\r\n"), nil},
		{"a line end within a quantum", b64[:101] + "\n" + b64[101:], nil},
		{"data URL with a long prefix", "data:" + strings.Repeat("x", 100) + "," + b64, jpg},
		{"data URL with a prefix that is too long", "data:" + strings.Repeat("x", longestPrefix) + "," + b64, nil},
		{"NUL", b64[:100] + `\u0000` + b64[100:], nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			doc := image64(test.value)
			for _, pieces := range [][]string{{doc}, bytewise(doc), {doc[:70], doc[70:75], doc[75:]}, {doc[:min(len(doc), 170)], doc[min(len(doc), 170):]}} {
				for _, keep := range []bool{false, true} {
					shots := collect(t, noLimit, keep, pieces...)
					if len(shots) != 1 || shots[0].Entry != 0 || !bytes.Equal(shots[0].JPEG, test.want) {
						t.Fatalf("keep %v, %d pieces: got %d shots, %+.20v", keep, len(pieces), len(shots), shots)
					}
				}
			}
		})
	}
}

func image64(value string) string { return image(`"a":1,"image_b64" : "` + value + `","b":2`) }

// An image knows which analysis it came from, whatever else is in the list, and
// what is no text is no image.
func TestBestShotsOfSeveralAnalyses(t *testing.T) {
	jpg := picture(t, 800)
	b64 := `"` + base64.StdEncoding.EncodeToString(jpg) + `"`
	doc := `{"analyses":[{"a":[{}]},{"results_media":[{"output_images":[{"image_b64":` + b64 + `},{"image_b64":null},{}]},` +
		`{"output_images":[{"image_b64":"bad"}]}]},{},{"results_media":[{"output_images":[{"image_b64":{"image_b64":` + b64 + `}},` +
		`{"x":{"image_b64":` + b64 + `},"image_b64":` + b64 + `}]}]}]}`
	shots := collect(t, noLimit, false, doc)
	var entries []int
	var usable []bool
	for _, shot := range shots {
		entries, usable = append(entries, shot.Entry), append(usable, shot.JPEG != nil)
	}
	if !slices.Equal(entries, []int{1, 1, 3}) || !slices.Equal(usable, []bool{true, false, true}) {
		t.Errorf("entries %v, usable %v", entries, usable)
	}
	folder := &Folder{Analyses: []Analysis{{}, {Type: Quality}, {}, {Type: Biometry}}}
	if folder.TypeOf(1) != Quality || folder.TypeOf(3) != Biometry || folder.TypeOf(4) != "" || folder.TypeOf(-1) != "" || (*Folder)(nil).TypeOf(0) != "" {
		t.Error("an entry's type is wrong")
	}
}

// Images take no more memory than they may, and no more of them are kept.
func TestBestShotsAreBounded(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString(picture(t, 3000))
	doc := `{"analyses":[{"results_media":[{"output_images":[{"image_b64":"` + b64 + `"},{"image_b64":"` + b64 + `"},{"image_b64":"` + b64 + `"}]}]}]}`
	shots := collect(t, 6100, false, doc)
	if len(shots) != 3 || shots[0].JPEG == nil || shots[1].JPEG == nil || shots[2].JPEG != nil {
		t.Errorf("%d shots", len(shots))
	}
	many := `{"analyses":[{"results_media":[{"output_images":[{"image_b64":"x"}` + strings.Repeat(`,{"image_b64":"x"}`, 500) + `]}]}]}`
	if shots := collect(t, noLimit, false, many); len(shots) != maxShots {
		t.Errorf("%d of 501 were kept", len(shots))
	}
}

// Nothing is to be had of a document with an error, or if nobody asked.
func TestBestShotsOnlyOfWholeDocuments(t *testing.T) {
	doc := image64(base64.StdEncoding.EncodeToString(picture(t, 800)))
	p := NewPruner(noLimit, false)
	p.Collect(noLimit)
	_, _ = p.Write([]byte(doc[:len(doc)-1]))
	if p.Close() == nil || p.BestShots() != nil {
		t.Error("a cut document gave its image")
	}
	p = NewPruner(noLimit, false)
	_, _ = p.Write([]byte(doc))
	if p.Close() != nil || p.BestShots() != nil {
		t.Error("an image that nobody asked for")
	}
}

// FuzzBestShot compares decoding while it flows with decoding at the end.
//
//	go test -fuzz FuzzBestShot ./caddymodule/internal/oz
func FuzzBestShot(f *testing.F) {
	b64 := base64.StdEncoding.EncodeToString(picture(f, 900))
	for _, value := range []string{b64, "data:x," + b64, strings.ReplaceAll(b64, "/", `\/`), b64 + "=", `\n` + b64, "====", `\`, ",", b64[:130] + "\r\r\r\r" + b64[130:]} {
		f.Add(value, uint16(33))
	}
	f.Fuzz(func(t *testing.T, value string, split uint16) {
		doc := image64(value)
		p := NewPruner(noLimit, false)
		p.Collect(noLimit)
		if _, err := p.Write([]byte(doc)); err != nil || p.Close() != nil {
			return
		}
		whole := p.BestShots()
		at := int(split) % len(doc)
		for _, pieces := range [][]string{{doc[:at], doc[at:]}, bytewise(doc)} {
			if shots := collect(t, noLimit, false, pieces...); len(shots) != len(whole) {
				t.Fatalf("%q: %d shots, in pieces %d", doc, len(whole), len(shots))
			} else if len(whole) > 0 && !bytes.Equal(shots[0].JPEG, whole[0].JPEG) {
				t.Fatalf("%q: the image depends on the split", doc)
			}
		}
		if got, err := prune(noLimit, false, doc); err != nil || got.text != string(p.Bytes()) {
			t.Fatalf("%q: collecting changes the document: %v", doc, err)
		}
		for _, shot := range whole {
			if shot.JPEG != nil && !isJPEG(shot.JPEG) {
				t.Fatalf("%q: no JPEG", doc)
			}
		}
	})
}

// BenchmarkCollect is pruning with the best shot decoded on the way.
//
//	go test -run '^$' -bench Collect -benchmem ./caddymodule/internal/oz
func BenchmarkCollect(b *testing.B) {
	raw := picture(b, 300<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(raw[10<<10:])
	doc := []byte(sampleFolder(wordFinished, wordSuccess, wordSuccess, base64.StdEncoding.EncodeToString(raw)))
	b.ReportAllocs()
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		p := NewPruner(1<<20, false)
		p.Collect(64 << 20)
		for piece := range pieces(doc) {
			if _, err := p.Write(piece); err != nil {
				b.Fatal(err)
			}
		}
		if p.Close() != nil || p.BestShots()[0].JPEG == nil {
			b.Fatal("no image")
		}
	}
}
