package sandbox

import (
	"image"
	"math"
)

// How alike two photos are. It is decided by the pictures alone: the drawn faces differ in the colours of skin, hair and
// shirt, so these are measured where they are sure to be, and compared. A picture that is not drawn like this has no face.

// The measuring grid: cells that lie within one zone with something to spare, so that blurred edges do not matter.
const (
	gridWide, gridHigh = 24, 32
	spare              = 0.02 // in units of the picture's width
	samples            = 6    // points a cell, each way
)

// measuredZones are those that a face is recognized by. The others are too small.
const measuredZones = hair + 1

// rgb is a colour that can be reckoned with.
type rgb [3]float64

func (c rgb) distance(d rgb) float64 {
	return math.Sqrt((c[0]-d[0])*(c[0]-d[0]) + (c[1]-d[1])*(c[1]-d[1]) + (c[2]-d[2])*(c[2]-d[2]))
}

// face is what is measured of a picture: each zone's colour, and how far its cells are from it.
type face struct {
	colour [measuredZones]rgb
	spread [measuredZones]float64
}

// isFace reports whether the picture has the parts of a face: each even in itself, and at least so far apart.
func (f face) isFace(apart float64) bool {
	const even = 14
	for _, spread := range f.spread {
		if spread > even {
			return false
		}
	}
	return f.colour[skin].distance(f.colour[hair]) >= apart &&
		f.colour[skin].distance(f.colour[wall]) >= apart/2 && f.colour[hair].distance(f.colour[wall]) >= apart/2
}

// How far apart the parts of a face are: when it is made up, and after it has gone through a poor JPEG.
const (
	apartWhenMade     = 60
	apartWhenMeasured = 40
)

// likeness of two faces, from 0 to 1, with four decimals. The part in which they differ most decides: who has the same hair
// and the same shirt is still somebody else.
func (f face) likeness(g face) float64 {
	if !f.isFace(apartWhenMeasured) || !g.isFace(apartWhenMeasured) {
		return 0
	}
	var apart float64
	for _, z := range []zone{skin, hair, shirt} {
		apart = max(apart, f.colour[z].distance(g.colour[z]))
	}
	return math.Round(1e4/(1+apart*apart/(scale*scale))) / 1e4
}

// scale of distances. Photos of one person are at most 5 apart each from what was drawn, down to 120 pixels and a JPEG
// quality of 40; 10 apart comes to 0.89. Of several million pairs of made-up persons none is nearer than 12, which is 0.85.
const scale = 29

// measured is what measuring a flawless picture of the look would give.
func (l *look) measured() face {
	var f face
	for z := range f.colour {
		f.colour[z] = rgb{float64(l[z].R), float64(l[z].G), float64(l[z].B)}
	}
	return f
}

// measure looks at a picture.
func measure(img image.Image) face {
	var cells [measuredZones][]rgb
	for _, c := range grid {
		cells[c.zone] = append(cells[c.zone], c.mean(img))
	}
	var f face
	for z, all := range cells {
		f.colour[z], f.spread[z] = meanOf(all)
	}
	return f
}

func meanOf(all []rgb) (mean rgb, spread float64) {
	for _, c := range all {
		for i := range mean {
			mean[i] += c[i] / float64(len(all))
		}
	}
	for _, c := range all {
		d := c.distance(mean)
		spread += d * d / float64(len(all))
	}
	return mean, math.Sqrt(spread)
}

// cell is one place to measure at: its upper left corner, in cells.
type cell struct {
	zone zone
	x, y int
}

var grid = makeGrid()

func makeGrid() []cell {
	var out []cell
	for y := range gridHigh {
		for x := range gridWide {
			if z := zoneAt(gridPoint(x, y, 0.5, 0.5)); z < measuredZones && inside(z, x, y) {
				out = append(out, cell{z, x, y})
			}
		}
	}
	return out
}

// gridPoint is a point within a cell, in the coordinates of zoneAt.
func gridPoint(x, y int, dx, dy float64) (float64, float64) {
	return (float64(x)+dx)/gridWide - 0.5, ((float64(y)+dy)/gridHigh - 0.5) * 4 / 3
}

// inside reports whether a cell and what is around it is all of one zone.
func inside(z zone, x, y int) bool {
	const steps = 12
	for i := range steps + 1 {
		for j := range steps + 1 {
			px, py := gridPoint(x, y, float64(i)/steps, float64(j)/steps)
			px += spare * (2*float64(i)/steps - 1)
			py += spare * (2*float64(j)/steps - 1)
			if zoneAt(px, py) != z {
				return false
			}
		}
	}
	return true
}

// mean is the cell's colour in a picture, as it would be in full light.
func (c cell) mean(img image.Image) rgb {
	var sum rgb
	b := img.Bounds()
	for i := range samples {
		for j := range samples {
			dx, dy := (float64(i)+0.5)/samples, (float64(j)+0.5)/samples
			px := b.Min.X + int((float64(c.x)+dx)/gridWide*float64(b.Dx()))
			py := b.Min.Y + int((float64(c.y)+dy)/gridHigh*float64(b.Dy()))
			r, g, bl, _ := img.At(px, py).RGBA()
			x, y := gridPoint(c.x, c.y, dx, dy)
			light := 257 * samples * samples * lightAt(c.zone, x, y)
			sum[0] += float64(r) / light
			sum[1] += float64(g) / light
			sum[2] += float64(bl) / light
		}
	}
	return sum
}
