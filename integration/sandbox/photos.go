package sandbox

import (
	"bytes"
	"image"
	"image/jpeg"
	"image/png"
	"slices"
)

// photo is an image that was sent.
type photo struct {
	formPart
	face   face
	usable bool // for matching
}

// decodePhotos looks at every file.
func decodePhotos(parts []formPart, o matchOrder) ([]photo, *refusal) {
	var photos []photo
	for _, p := range parts {
		if !p.isFile() {
			continue
		}
		img, refused := decodeImage(p.content)
		if refused != nil {
			return nil, refused
		}
		p.Tags = o.tags[p.Name]
		photos = append(photos, photo{p, measure(img), forMatching(p.Tags)})
	}
	return photos, nil
}

// maxPixels keeps a small file from becoming a huge picture.
const maxPixels = 50_000_000

// decodeImage decodes a JPEG or a PNG. It does not leave the choice to image.Decode, which knows whatever formats the
// program happens to have linked in.
func decodeImage(file []byte) (image.Image, *refusal) {
	config, decode := jpeg.DecodeConfig, jpeg.Decode
	switch {
	case bytes.HasPrefix(file, []byte("\xff\xd8")):
	case bytes.HasPrefix(file, []byte("\x89PNG\r\n\x1a\n")):
		config, decode = png.DecodeConfig, png.Decode
	default:
		return nil, refuse(5, "", "File is neither JPEG nor PNG")
	}
	if size, err := config(bytes.NewReader(file)); err == nil && size.Width*size.Height > maxPixels {
		return nil, badValue("Image has too many pixels")
	}
	img, err := decode(bytes.NewReader(file))
	if err != nil {
		return nil, badValue("Image does not decode")
	}
	return img, nil
}

// forMatching reports whether biometry looks at an image with these tags: at selfies and at the front of documents.
func forMatching(tags []string) bool {
	return !slices.Contains(tags, "photo_id_back") && slices.ContainsFunc(tags, func(tag string) bool {
		return slices.Contains([]string{"photo_selfie", "photo_id", "photo_id_front"}, tag)
	})
}

func usable(photos []photo) (n int) {
	for _, p := range photos {
		if p.usable {
			n++
		}
	}
	return n
}

// confidence is a likeness: of the least and the most similar pair.
type confidence struct{ min, max float64 }

func (c *confidence) add(likeness float64) {
	c.min, c.max = min(c.min, likeness), max(c.max, likeness)
}

// compare looks at every pair of photos. It returns what comes of all of them, and of those that each photo is in.
func compare(photos []photo) (all confidence, each []confidence) {
	all, each = confidence{1, 0}, slices.Repeat([]confidence{{1, 0}}, len(photos))
	for i := range photos {
		for j := range i {
			if photos[i].usable && photos[j].usable {
				likeness := photos[i].face.likeness(photos[j].face)
				all.add(likeness)
				each[i].add(likeness)
				each[j].add(likeness)
			}
		}
	}
	return all, each
}

// resolve is the resolution that a likeness leads to.
func (o Options) resolve(likeness float64) string {
	switch {
	case likeness >= Threshold:
		return Success
	case o.OperatorFrom > 0 && likeness >= o.OperatorFrom:
		return OperatorRequired
	}
	return Declined
}
