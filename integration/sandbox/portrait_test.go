package sandbox

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"math/rand/v2"
	"testing"
)

// people are names of the kind that tests and the demo use; the first is nobody's.
func people() []string {
	names := []string{"", "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "mallory", "niaj",
		"olivia", "peggy", "rupert", "sybil", "trent", "victor", "walter", "Alice", "alice ", "Zoë", "用户"}
	for i := range 16 {
		names = append(names, fmt.Sprint("user-", i))
	}
	return names
}

func decoded(t *testing.T, file []byte) face {
	t.Helper()
	img, _, err := image.Decode(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	return measure(img)
}

func asPNG(img image.Image) []byte {
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func TestEveryPersonIsToldFromEveryOther(t *testing.T) {
	var faces []face
	for _, name := range people() {
		faces = append(faces, decoded(t, Portrait(name, 240)))
	}
	for i, name := range people() {
		for j, other := range people()[:i] {
			if got := faces[i].likeness(faces[j]); got >= Threshold {
				t.Errorf("%q and %q are %v alike", name, other, got)
			}
		}
		if got := faces[i].likeness(faces[i]); got != 1 {
			t.Errorf("%q is %v like itself", name, got)
		}
	}
}

func TestAPersonIsKnownInEveryPhoto(t *testing.T) {
	known := map[string]face{}
	same := func(name, what string, photo []byte) {
		t.Helper()
		if _, ok := known[name]; !ok {
			known[name] = decoded(t, BestShotOf(name, 0))
		}
		if got := decoded(t, photo).likeness(known[name]); got < 0.93 { // far from the threshold, which is 0.85
			t.Errorf("%q as %s: %v", name, what, got)
		}
	}
	for _, name := range people()[:24] {
		for size, quality := range map[int]int{120: 40, 160: 95, 320: 60} {
			same(name, fmt.Sprintf("JPEG of %d, quality %d", size, quality), encodeJPEG(PortraitImage(name, size), quality))
		}
		same(name, "PNG", asPNG(PortraitImage(name, 120)))
	}
	for _, name := range people()[:3] {
		for _, quality := range []int{40, 75, 95} {
			same(name, fmt.Sprintf("large JPEG, quality %d", quality), encodeJPEG(PortraitImage(name, 960), quality))
			same(name, fmt.Sprintf("odd JPEG, quality %d", quality), encodeJPEG(PortraitImage(name, 333), quality))
		}
		same(name, "portrait of the usual size", Portrait(name, 0))
		for _, size := range []int64{8 << 10, 20_000, 400_000} {
			same(name, fmt.Sprintf("best shot of %d", size), BestShotOf(name, size))
		}
	}
}

// A photo of no face is nobody's, not even a second photo of the same.
func TestWithoutAFaceNothingIsAlike(t *testing.T) {
	filled := func(paint func(x, y int) color.Color) image.Image {
		img := image.NewRGBA(image.Rect(0, 0, 240, 320))
		for y := range 320 {
			for x := range 240 {
				img.Set(x, y, paint(x, y))
			}
		}
		return img
	}
	cat := color.RGBA{200, 120, 40, 255}
	catOnALawn := image.NewRGBA(image.Rect(0, 0, 240, 320))
	draw.Draw(catOnALawn, catOnALawn.Bounds(), image.NewUniform(color.RGBA{60, 140, 50, 255}), image.Point{}, draw.Src)
	draw.Draw(catOnALawn, image.Rect(40, 80, 200, 240), image.NewUniform(cat), image.Point{}, draw.Src)
	upsideDown := PortraitImage("alice", 240)
	for name, img := range map[string]image.Image{
		"noise": filled(func(int, int) color.Color {
			return color.RGBA{uint8(rand.Uint32()), uint8(rand.Uint32()), uint8(rand.Uint32()), 255}
		}),
		"a cat":    filled(func(int, int) color.Color { return cat }),
		"a lawn":   catOnALawn,
		"a sunset": filled(func(_, y int) color.Color { return color.RGBA{uint8(255 - y/2), uint8(y / 2), uint8(y / 2), 255} }),
		"nothing":  image.NewRGBA(image.Rect(0, 0, 240, 320)),
		"a dot":    image.NewGray(image.Rect(0, 0, 1, 1)),
		"a person upside down": filled(func(x, y int) color.Color {
			return upsideDown.At(x, 319-y)
		}),
	} {
		got := decoded(t, asPNG(img))
		for _, person := range []string{"", "alice"} {
			if likeness := got.likeness(decoded(t, Portrait(person, 240))); likeness != 0 {
				t.Errorf("%s is %v like %q", name, likeness, person)
			}
		}
		if likeness := got.likeness(got); likeness != 0 {
			t.Errorf("%s is %v like itself", name, likeness)
		}
	}
}

// Who asks for nobody gets the face that there has always been.
func TestThePersonWithoutAName(t *testing.T) {
	img := PortraitImage("", 240)
	if b := img.Bounds(); b.Dx() != 240 || b.Dy() != 320 {
		t.Errorf("%v", b)
	}
	for where, want := range map[image.Point]color.RGBA{
		{120, 90}: {70, 50, 35, 255}, {120, 300}: {60, 90, 140, 255}, {93, 140}: {40, 30, 30, 255}, {120, 165}: {205, 155, 125, 255},
	} {
		if got := img.At(where.X, where.Y); got != want {
			t.Errorf("%v is %v, want %v", where, got, want)
		}
	}
	if !bytes.Equal(BestShot(8000), BestShotOf("", 8000)) || bytes.Equal(BestShot(0), BestShotOf("alice", 0)) {
		t.Error("best shots are mixed up")
	}
}
