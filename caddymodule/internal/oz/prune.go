package oz

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

var (
	// ErrMalformed is any document that is not the JSON that was asked for.
	ErrMalformed = errors.New("malformed JSON")
	// ErrTooDeep is a document with more than MaxDepth open arrays and objects.
	ErrTooDeep = errors.New("JSON nested too deeply")
	// ErrTooLarge is a document that is larger than allowed after pruning.
	ErrTooLarge = errors.New("JSON too large after pruning")
)

// heavy is the member that is cut: the name to look for in the objects at each
// level of analyses[*].results_media[*].output_images[*].image_b64. Between
// two of these objects there is always an array.
var heavy = [...]string{"analyses", "results_media", "output_images", "image_b64"}

// heavyDepth is how many objects and arrays are open around a heavy member.
const heavyDepth = 2*len(heavy) - 1

// entryDepth is how many are open around the members of an entry of analyses.
const entryDepth = 3

// Pruner takes a folder as it comes from the network and keeps it without the
// best shots: the name, the value and one comma go, every other byte stays as
// it was. What it cuts it never holds, so the memory it needs is the same for
// a best shot of 50 KB and of 20 MB.
//
// Nobody sees what was cut, so the Pruner alone has to see to it that a
// malformed answer cannot become a well-formed one by the cut. It follows the
// whole grammar of JSON in all of the document, except for the characters in
// strings. Those matter only in strings that stay, and there [ReadFolder] is
// strict about them.
type Pruner struct {
	grammar grammar
	limit   int64
	keep    bool
	err     error

	read int64  // bytes of the document so far
	kept []byte // what is left of them
	cuts int

	shots *shots // decodes what is cut, if it is wanted

	onPath int  // how many of the open arrays and objects, from the root on, lead to heavy members
	named  bool // the last member name read in the innermost of them was the one to look for
	heavy  bool // what is read now belongs to a heavy member
	entry  int  // which of the entries of analyses that is in, from 0

	nameStart  int  // where in kept the current member name starts
	mark       int  // where in kept to go back to, should the next member be a heavy one
	memberKept bool // the object that can hold heavy members has one that was kept
}

// NewPruner makes a Pruner for one document, of which at most limit bytes may
// be left. They include what is held for the moment, until a name is complete.
// With keep nothing is cut, and all else is the same.
func NewPruner(limit int64, keep bool) *Pruner {
	const usual = 4 << 10 // what is left of nearly all folders fits
	return &Pruner{
		grammar: grammar{want: aValue},
		limit:   limit,
		keep:    keep,
		entry:   -1,
		kept:    make([]byte, 0, max(0, min(limit, usual))),
	}
}

// Collect has the best shots decoded while they flow by, up to limit bytes of
// images in all. It is called before the first Write.
func (p *Pruner) Collect(limit int64) { p.shots = &shots{limit: limit} }

// BestShots are the best shots that were collected, once Close has returned nil.
func (p *Pruner) BestShots() []BestShot {
	if p.err != nil || p.shots == nil {
		return nil
	}
	return p.shots.list
}

// Write takes the next piece of the document. How the document is split makes
// no difference. After an error, every further call returns that error.
func (p *Pruner) Write(chunk []byte) (int, error) {
	n := 0
	for p.err == nil && n < len(chunk) {
		n += p.step(chunk[n:])
	}
	return n, p.err
}

// Close says that the document is at its end. It returns nil only if that was
// one whole document with nothing but whitespace around it.
func (p *Pruner) Close() error {
	if p.err == nil && !p.grammar.whole() {
		p.err = fmt.Errorf("%w: ended early, after byte %d", ErrMalformed, p.read)
	}
	return p.err
}

// Bytes is what was kept, once Close has returned nil. Of a document with an
// error there is nothing to see.
func (p *Pruner) Bytes() []byte {
	if p.err != nil {
		return nil
	}
	return p.kept
}

// CutBytes is how many bytes were dropped, names and commas included.
func (p *Pruner) CutBytes() int64 { return p.read - int64(len(p.kept)) }

// Cuts is how many members were dropped.
func (p *Pruner) Cuts() int { return p.cuts }

// step takes one token of text, or as much of one as there is.
func (p *Pruner) step(text []byte) int {
	inShot := p.inShot()
	n, ev, err := p.grammar.next(text)
	p.read += int64(n)
	if p.shots != nil {
		p.collect(inShot, text[:n])
	}
	switch piece := text[:n]; ev {
	case nameStarts:
		p.nameStart = len(p.kept)
		p.take(piece)
	case nameEnds:
		p.take(piece)
		p.nameEnded()
	case comma:
		p.takeComma(piece)
	case opened:
		p.take(piece)
		p.opened()
	case closed:
		p.closed()
		p.take(piece)
	default:
		p.take(piece)
	}
	// The limit comes first: byte by byte it would have been hit first.
	if p.err == nil && err != nil {
		p.err = fmt.Errorf("%w, after byte %d", err, p.read)
	}
	return n
}

// inShot reports whether the text is inside of a string that is a heavy
// member's value.
func (p *Pruner) inShot() bool {
	return p.heavy && p.grammar.inside == inString && p.grammar.depth == heavyDepth
}

// collect gives the piece just read to whoever decodes best shots. was says
// whether the text before it was inside of one.
func (p *Pruner) collect(was bool, piece []byte) {
	is := p.inShot()
	switch {
	case was && is:
		p.shots.write(piece)
	case was:
		p.shots.write(piece[:len(piece)-1]) // less the quote
		p.shots.end()
	case is:
		p.shots.begin(p.entry)
	}
}

func (p *Pruner) take(piece []byte) {
	if p.heavy && !p.keep || p.err != nil {
		return
	}
	if int64(len(p.kept)+len(piece)) > p.limit {
		p.err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, p.limit)
		return
	}
	p.kept = append(p.kept, piece...)
}

// takeComma keeps as many commas as are needed between the members that stay.
// The one after a heavy member goes if no member before it was kept; else it
// was the one before it that went.
func (p *Pruner) takeComma(piece []byte) {
	if !p.amongHeavy() {
		p.take(piece)
		return
	}
	p.heavy = false
	if !p.memberKept {
		return
	}
	p.mark = len(p.kept)
	p.take(piece)
}

func (p *Pruner) opened() {
	depth := p.grammar.depth
	if p.onPath != depth-1 || depth > heavyDepth {
		return
	}
	// Objects and arrays take turns on the path, and an array is the value of
	// the member to look for.
	if object := p.grammar.objects[depth-1]; object != (depth%2 == 1) || !object && !p.named {
		return
	}
	p.onPath = depth
	p.mark, p.memberKept = len(p.kept), false
	if depth == entryDepth {
		p.entry++
	}
}

func (p *Pruner) closed() {
	if p.onPath <= p.grammar.depth {
		return
	}
	p.onPath = p.grammar.depth
	p.heavy = false // a heavy member ends with its object at the latest
}

// nameEnded looks whether the name just read leads to a heavy member, or is
// one. If it is, all of the member that was kept so far is dropped again.
func (p *Pruner) nameEnded() {
	depth := p.grammar.depth
	if p.err != nil || p.onPath != depth {
		return
	}
	p.named = isName(p.kept[p.nameStart:], heavy[depth/2])
	if depth < heavyDepth {
		return
	}
	p.heavy = p.named
	if !p.named || p.keep {
		p.memberKept = true
		return
	}
	p.kept = p.kept[:p.mark]
	p.cuts++
}

// amongHeavy reports whether the text is between two members of an object that
// can hold heavy ones.
func (p *Pruner) amongHeavy() bool {
	return p.onPath == heavyDepth && p.grammar.depth == heavyDepth
}

// isName reports whether quoted, a JSON string, is name. Readers see no
// difference between "image_b64" and "image\u005fb64", so there is none here.
func isName(quoted []byte, name string) bool {
	if len(quoted) > len(`""`)+len(`\u0000`)*len(name) {
		return false
	}
	if string(quoted[1:len(quoted)-1]) == name {
		return true
	}
	var space [64]byte
	unquoted, err := jsontext.AppendUnquote(space[:0], quoted)
	return err == nil && string(unquoted) == name
}
