package sandbox

import (
	"bytes"
	"encoding/base64"
	"math/rand/v2"
)

// BestShot returns the JPEG that a folder carries when Options.BestShotSize is size and the capsule names no person: a drawn
// face, padded so that its base64 has that many characters (rounded down to a multiple of four). Zero means no padding. The
// same size gives the same bytes, so that a test can look for them. Below about 1 KB it comes out larger than asked for.
func BestShot(size int64) []byte { return BestShotOf("", size) }

// BestShotOf is BestShot of the person that CapsuleSpec.Person names.
func BestShotOf(person string, size int64) []byte {
	if size == 0 {
		return bytes.Clone(portraits.get(portraitKey{person, 240}))
	}
	want := int(size / 4 * 3)
	var shot []byte
	for _, width := range []int{480, 240, 120, 60, 30, 12} {
		if shot = portraits.get(portraitKey{person, width}); len(shot) <= want {
			break
		}
	}
	return padJPEG(shot, want)
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

// newShots keeps the base64 of best shots.
func newShots() *cache[shotKey, base64Text] {
	return newCache(64, func(k shotKey) base64Text {
		return base64Text(base64.StdEncoding.EncodeToString(BestShotOf(k.person, k.size)))
	})
}

type shotKey struct {
	person string
	size   int64
}
