package sandbox

import (
	"bytes"
	"crypto/sha256"
	"image"
	"image/color"
	"image/jpeg"
	"math"
)

// DefaultPortraitSize is the width of a portrait that does not say.
const DefaultPortraitSize = 480

// Portrait returns a photo of a person, for use as a reference: a JPEG, size pixels wide and a third as much higher. The
// best shot of a capsule with the same CapsuleSpec.Person shows the same face, at whatever size, quality or format the two
// are. The person without a name is the one in the best shot of every capsule that names nobody.
func Portrait(person string, size int) []byte {
	return encodeJPEG(PortraitImage(person, size), 85)
}

// PortraitImage is Portrait before it is encoded, for tests that want a PNG or another quality.
func PortraitImage(person string, size int) image.Image {
	if size <= 0 {
		size = DefaultPortraitSize
	}
	look, height := lookOf(person), size*4/3
	img := image.NewRGBA(image.Rect(0, 0, size, height))
	for py := range height {
		for px := range size {
			// The picture in units of its own width, the middle at 0, 0.
			x := (float64(px)+0.5)/float64(size) - 0.5
			y := (float64(py) + 0.5 - float64(height)/2) / float64(size)
			img.SetRGBA(px, py, look.at(x, y))
		}
	}
	return img
}

func encodeJPEG(img image.Image, quality int) []byte {
	var out bytes.Buffer
	if err := jpeg.Encode(&out, img, &jpeg.Options{Quality: quality}); err != nil {
		panic(err) // into memory: cannot happen
	}
	return out.Bytes()
}

// zone is a part of the picture.
type zone int

const (
	wall zone = iota
	shirt
	skin
	hair
	nose // from here on too small to recognize somebody by
	mouth
	eye
	pupil
	zones = iota
)

// look is the colour of each zone: all by which persons differ.
type look [zones]color.RGBA

var defaultLook = look{
	wall: {190, 205, 215, 255}, shirt: {60, 90, 140, 255}, skin: {228, 180, 150, 255}, hair: {70, 50, 35, 255},
	nose: {205, 155, 125, 255}, mouth: {170, 60, 60, 255}, eye: {245, 245, 240, 255}, pupil: {40, 30, 30, 255},
}

// lookOf makes up what somebody looks like, always the same for a name. What could not be measured, such as hair of the
// colour of skin, is thought over.
func lookOf(person string) look {
	l := defaultLook
	if person == "" {
		return l
	}
	for dice := sha256.Sum256([]byte(person)); ; dice = sha256.Sum256(dice[:]) {
		part := func(i int, from, to float64) float64 { return from + (to-from)*float64(dice[i])/255 }
		pale := part(0, 0, 1)
		l[skin] = color.RGBA{
			uint8(part(1, 100, 125) + 115*pale), uint8(part(2, 65, 90) + 110*pale), uint8(part(3, 45, 80) + 100*pale), 255,
		}
		l[nose] = darker(l[skin], 24)
		l[hair] = fromHSV(part(4, 0, 6), part(5, 0.1, 0.9), part(6, 0.1, 0.85))
		l[shirt] = fromHSV(part(7, 0, 6), part(8, 0.2, 0.9), part(9, 0.2, 0.9))
		if l.measured().isFace(apartWhenMade) {
			return l
		}
	}
}

func darker(c color.RGBA, by uint8) color.RGBA {
	return color.RGBA{c.R - min(c.R, by), c.G - min(c.G, by), c.B - min(c.B, by), 255}
}

// fromHSV takes the hue from 0 to 6, the rest from 0 to 1.
func fromHSV(hue, saturation, value float64) color.RGBA {
	channel := func(n float64) uint8 {
		k := math.Mod(n+hue, 6)
		return uint8(255 * value * (1 - saturation*max(0, min(k, 4-k, 1))))
	}
	return color.RGBA{channel(5), channel(3), channel(1), 255}
}

// at is the colour of a point.
func (l *look) at(x, y float64) color.RGBA {
	z := zoneAt(x, y)
	c, light := l[z], lightAt(z, x, y)
	return color.RGBA{uint8(float64(c.R) * light), uint8(float64(c.G) * light), uint8(float64(c.B) * light), 255}
}

// lightAt is how bright a zone is at a point.
func lightAt(z zone, x, y float64) float64 {
	switch z {
	case skin:
		return 1 - 0.25*math.Abs(x)
	case wall:
		return 0.8 - 0.3*y
	}
	return 1
}

// zoneAt draws something that a person would call a face.
func zoneAt(x, y float64) zone {
	inEllipse := func(cx, cy, rx, ry float64) bool {
		dx, dy := (x-cx)/rx, (y-cy)/ry
		return dx*dx+dy*dy < 1
	}
	smile := 0.17 + 3*(0.012-x*x) // a parabola that opens upwards
	switch {
	case inEllipse(-0.11, -0.08, 0.018, 0.018), inEllipse(0.11, -0.08, 0.018, 0.018):
		return pupil
	case inEllipse(-0.11, -0.08, 0.05, 0.028), inEllipse(0.11, -0.08, 0.05, 0.028):
		return eye
	case math.Abs(x) < 0.11 && math.Abs(y-smile) < 0.012:
		return mouth
	case inEllipse(0, 0.03, 0.02, 0.06):
		return nose
	case inEllipse(0, -0.2, 0.27, 0.2) && y < -0.17:
		return hair
	case inEllipse(0, 0, 0.26, 0.36):
		return skin
	case inEllipse(0, 0.66, 0.42, 0.3):
		return shirt
	}
	return wall
}

// portraits keeps the ones drawn last, as JPEGs: drawing takes milliseconds, and best shots want them again and again.
var portraits = newCache(64, func(k portraitKey) []byte { return Portrait(k.person, k.width) })

type portraitKey struct {
	person string
	width  int
}
