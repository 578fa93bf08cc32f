package sandbox

import (
	"bytes"
	"encoding/base64"
	"image"
	"image/color"
	"image/jpeg"
	"math"
	"math/rand/v2"
	"sync"
)

// BestShot returns the JPEG that a folder carries when Options.BestShotSize is size: a drawn face, padded so that its
// base64 has that many characters (rounded down to a multiple of four). Zero means no padding. The same size gives the same
// bytes, so that a test can look for them. Below about 1 KB it comes out larger than asked for.
func BestShot(size int64) []byte {
	if size == 0 {
		return bytes.Clone(faces[1]())
	}
	want := int(size / 4 * 3)
	var shot []byte
	for _, face := range faces {
		if shot = face(); len(shot) <= want {
			break
		}
	}
	return padJPEG(shot, want)
}

// faces of falling size, each drawn when it is first wanted.
var faces = []func() []byte{face(480), face(240), face(120), face(60), face(30), face(12)}

func face(width int) func() []byte {
	return sync.OnceValue(func() []byte { return drawFace(width) })
}

// drawFace draws something that a person would call a face.
func drawFace(width int) []byte {
	height := width * 4 / 3
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	for py := range height {
		for px := range width {
			// The picture in units of its own width, the middle at 0, 0.
			x := (float64(px)+0.5)/float64(width) - 0.5
			y := (float64(py) + 0.5 - float64(height)/2) / float64(width)
			img.SetRGBA(px, py, facePixel(x, y))
		}
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, img, &jpeg.Options{Quality: 85}); err != nil {
		panic(err) // into memory: cannot happen
	}
	return out.Bytes()
}

func facePixel(x, y float64) color.RGBA {
	inEllipse := func(cx, cy, rx, ry float64) bool {
		dx, dy := (x-cx)/rx, (y-cy)/ry
		return dx*dx+dy*dy < 1
	}
	shade := func(r, g, b uint8, light float64) color.RGBA {
		return color.RGBA{uint8(float64(r) * light), uint8(float64(g) * light), uint8(float64(b) * light), 255}
	}
	smile := 0.17 + 3*(0.012-x*x) // a parabola that opens upwards
	switch {
	case inEllipse(-0.11, -0.08, 0.018, 0.018), inEllipse(0.11, -0.08, 0.018, 0.018):
		return color.RGBA{40, 30, 30, 255} // pupils
	case inEllipse(-0.11, -0.08, 0.05, 0.028), inEllipse(0.11, -0.08, 0.05, 0.028):
		return color.RGBA{245, 245, 240, 255} // eyes
	case math.Abs(x) < 0.11 && math.Abs(y-smile) < 0.012:
		return color.RGBA{170, 60, 60, 255} // mouth
	case inEllipse(0, 0.03, 0.02, 0.06):
		return shade(205, 155, 125, 1) // nose
	case inEllipse(0, -0.2, 0.27, 0.2) && y < -0.17:
		return color.RGBA{70, 50, 35, 255} // hair
	case inEllipse(0, 0, 0.26, 0.36):
		return shade(228, 180, 150, 1-0.25*math.Abs(x)) // face
	case inEllipse(0, 0.66, 0.42, 0.3):
		return shade(60, 90, 140, 1) // shoulders
	}
	return shade(190, 205, 215, 0.8-0.3*y) // wall
}

// padJPEG brings a JPEG to a wanted length by comment segments, which every decoder skips. They hold noise, so that the
// file compresses as badly as a real photo does.
func padJPEG(shot []byte, want int) []byte {
	const start, overhead, longest = 2, 4, 65535 + 2 // start marker; marker and length; a full segment
	missing := want - len(shot)
	if missing <= 0 {
		return bytes.Clone(shot)
	}
	noise := rand.NewChaCha8([32]byte{})
	out := make([]byte, 0, want)
	out = append(out, shot[:start]...)
	for missing >= overhead {
		size := min(missing, longest)
		if rest := missing - size; rest > 0 && rest < overhead {
			size -= overhead // leave room for a last segment
		}
		length := size - 2
		out = append(out, 0xff, 0xfe, byte(length>>8), byte(length))
		comment := make([]byte, size-overhead)
		noise.Read(comment)
		out = append(out, comment...)
		missing -= size
	}
	for range missing { // too little for a segment: fill bytes, allowed before any marker
		out = append(out, 0xff)
	}
	return append(out, shot[start:]...)
}

// shotCache keeps the base64 of best shots by size: drawing one takes milliseconds.
type shotCache struct {
	mu   sync.Mutex
	text map[int64]base64Text
}

func (c *shotCache) get(size int64) base64Text {
	c.mu.Lock()
	defer c.mu.Unlock()
	text, ok := c.text[size]
	if !ok {
		text = base64Text(base64.StdEncoding.EncodeToString(BestShot(size)))
		if c.text == nil || len(c.text) > 16 {
			c.text = map[int64]base64Text{}
		}
		c.text[size] = text
	}
	return text
}
