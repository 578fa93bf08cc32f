package oz

import (
	"bytes"
	"encoding/base64"
	"image/jpeg"

	"github.com/go-json-experiment/json/jsontext"
)

// BestShot is an image that Oz chose: step 3 of the guide.
type BestShot struct {
	Entry int    // which entry of the folder's analyses it stands in, from 0
	JPEG  []byte // nil if what stood there was no base64 of a JPEG
}

// shots decodes best shots while they flow by. Nothing that is wrong with one
// is an error of the folder: what was decided does not rest on it.
type shots struct {
	limit int64 // bytes of images that may yet come
	list  []BestShot

	entry   int
	image   []byte
	bad     bool
	escape  []byte // an escape of JSON that is not whole
	quantum []byte // up to three characters of base64 that wait for the fourth
	prefix  []byte // what may be the beginning of a data URL
	started bool   // behind what may have been a data URL
	ended   bool   // behind padding
}

// maxShots bounds how many are kept: a folder has one for each medium.
const maxShots = 64

// longestPrefix is more than any "data:image/jpeg;base64," has.
const longestPrefix = 128

func (s *shots) begin(entry int) {
	*s = shots{limit: s.limit, list: s.list, entry: entry, quantum: s.quantum[:0]}
}

// end is for the end of the string.
func (s *shots) end() {
	if len(s.escape) > 0 {
		s.bad = true
	}
	s.start()
	s.lastQuantum()
	if len(s.list) == maxShots {
		return
	}
	shot := BestShot{Entry: s.entry}
	if !s.bad && isJPEG(s.image) {
		shot.JPEG = s.image
		s.limit -= int64(len(s.image))
	}
	s.list = append(s.list, shot)
	s.image = nil
}

// write takes a piece of the string as it stands in the JSON text. Base64 needs
// no escapes, but a writer may put a backslash before each slash.
func (s *shots) write(piece []byte) {
	for len(piece) > 0 && !s.bad {
		if len(s.escape) > 0 {
			piece = s.finishEscape(piece)
			continue
		}
		i := bytes.IndexByte(piece, '\\')
		if i < 0 {
			s.text(piece)
			return
		}
		s.text(piece[:i])
		s.escape = append(s.escape, '\\')
		piece = piece[i+1:]
	}
}

// finishEscape takes the next character of an escape.
func (s *shots) finishEscape(piece []byte) []byte {
	s.escape = append(s.escape, piece[0])
	if s.escape[1] == 'u' && len(s.escape) < len(`\u0000`) {
		return piece[1:]
	}
	var space [8]byte
	quoted := append(append([]byte{'"'}, s.escape...), '"')
	text, err := jsontext.AppendUnquote(space[:0], quoted)
	if err != nil {
		s.bad = true
	}
	s.escape = s.escape[:0]
	if !isLineEnd(text) {
		s.text(text)
	}
	return piece[1:]
}

// hasLineEnd looks for a line end that came without an escape, which JSON does
// not allow. The decoder would skip it, and lose count of the quanta.
func hasLineEnd(text []byte) bool {
	return bytes.IndexByte(text, '\n') >= 0 || bytes.IndexByte(text, '\r') >= 0
}

func isLineEnd(text []byte) bool { return len(text) == 1 && (text[0] == '\n' || text[0] == '\r') }

// text takes a piece of the string's value.
func (s *shots) text(piece []byte) {
	if s.started {
		s.base64(piece)
		return
	}
	n := min(len(piece), longestPrefix-len(s.prefix))
	s.prefix = append(s.prefix, piece[:n]...)
	if len(s.prefix) < longestPrefix && !bytes.ContainsAny(s.prefix, ",") {
		return
	}
	s.start()
	s.base64(piece[n:])
}

// start goes on behind the prefix of a data URL, if there is one.
func (s *shots) start() {
	if s.started {
		return
	}
	s.started = true
	text := s.prefix
	if len(text) >= len("data:") && bytes.EqualFold(text[:len("data:")], []byte("data:")) {
		_, text, _ = bytes.Cut(text, []byte{','})
	}
	s.base64(text)
}

// base64 takes a piece of base64.
func (s *shots) base64(piece []byte) {
	if len(s.quantum) > 0 {
		n := min(4-len(s.quantum), len(piece))
		s.quantum = append(s.quantum, piece[:n]...)
		piece = piece[n:]
		if len(s.quantum) < 4 {
			return
		}
		s.decode(base64.StdEncoding, s.quantum)
		s.quantum = s.quantum[:0]
	}
	whole := len(piece) / 4 * 4
	s.decode(base64.StdEncoding, piece[:whole])
	s.quantum = append(s.quantum, piece[whole:]...)
}

// lastQuantum is for a writer that leaves the padding out.
func (s *shots) lastQuantum() {
	s.decode(base64.RawStdEncoding, s.quantum)
	s.quantum = s.quantum[:0]
}

func (s *shots) decode(coding *base64.Encoding, text []byte) {
	if len(text) == 0 || s.bad {
		return
	}
	if s.ended || int64(len(s.image)+coding.DecodedLen(len(text))) > s.limit || hasLineEnd(text) {
		s.bad, s.image = true, nil
		return
	}
	var err error
	s.image, err = coding.AppendDecode(s.image, text)
	s.ended = text[len(text)-1] == '='
	if err != nil {
		s.bad, s.image = true, nil
	}
}

// isJPEG looks at the header of an image only: a broken picture is for those
// to find who look at it.
func isJPEG(image []byte) bool {
	_, err := jpeg.DecodeConfig(bytes.NewReader(image))
	return err == nil
}
