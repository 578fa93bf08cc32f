package oz

import (
	"bytes"
	"fmt"
)

// MaxDepth is how many arrays and objects may be open at once in an answer.
// The readers that apps use give up at 512 (PHP) or near 1,000 (Python).
const MaxDepth = 256

var (
	errUnexpected = fmt.Errorf("%w: unexpected character", ErrMalformed)
	errNumber     = fmt.Errorf("%w: bad number", ErrMalformed)
	errLiteral    = fmt.Errorf("%w: bad literal", ErrMalformed)
)

// grammar follows the structure of one JSON document (RFC 8259) that comes in
// pieces of any size. It is complete but for one thing: what is inside a
// string does not matter to it, only where the string ends.
//
// It keeps one bool for each open array or object, and nothing of the text.
type grammar struct {
	want    class // what may come next between two tokens
	inside  token // the token that the last piece ended in
	escaped bool  // the last piece of a string ended in an open escape
	number  digits
	literal string // what has yet to come of true, false or null

	depth   int
	objects [MaxDepth]bool // of the arrays and objects that are open, which are objects
}

// class is a set of kinds of tokens. A token is known by its first character.
type class uint8

const (
	aValue class = 1 << iota
	aName
	aColon
	aComma
	anObjectEnd
	anArrayEnd
)

// token says which kind of token is incomplete, if one is.
type token uint8

const (
	noToken token = iota
	inName
	inString
	inNumber
	inLiteral
)

// event is what the end of a piece meant.
type event uint8

const (
	nothing event = iota
	nameStarts
	nameEnds
	opened // an array or object
	closed // an array or object
	comma
)

// classes holds what each character can begin between two tokens.
var classes = func() (table [256]class) {
	for _, c := range `{[-0123456789tfn` {
		table[c] = aValue
	}
	table['"'] = aValue | aName
	table[':'] = aColon
	table[','] = aComma
	table['}'] = anObjectEnd
	table[']'] = anArrayEnd
	return table
}()

// next reads one token of text, or as much of one as there is, and says how
// long that was. After a number that may be 0: it ends by what follows it.
// With an error, n is how far the text was right.
func (g *grammar) next(text []byte) (n int, ev event, err error) {
	switch g.inside {
	case inName, inString:
		n, ev = g.nextString(text)
	case inNumber:
		n, err = g.nextNumber(text)
	case inLiteral:
		n, err = g.nextLiteral(text)
	default:
		return g.nextToken(text)
	}
	return n, ev, err
}

// whole reports whether exactly one document was seen. Nothing is wanted only
// behind it, and a number that is all of it ends nowhere but there.
func (g *grammar) whole() bool {
	if g.inside == inNumber && g.depth == 0 {
		return g.number.complete()
	}
	return g.want == 0
}

func (g *grammar) nextToken(text []byte) (int, event, error) {
	c := text[0]
	if isSpace(c) {
		return spaces(text), nothing, nil
	}
	if classes[c]&g.want == 0 {
		return 0, nothing, errUnexpected
	}
	switch c {
	case '"':
		return 1, g.startString(), nil
	case '{', '[':
		return g.open(c == '{')
	case '}', ']':
		g.depth--
		g.endValue()
		return 1, closed, nil
	case ':':
		g.want = aValue
		return 1, nothing, nil
	case ',':
		g.want = aValue
		if g.objects[g.depth-1] {
			g.want = aName
		}
		return 1, comma, nil
	case 't':
		g.inside, g.literal = inLiteral, "true"
	case 'f':
		g.inside, g.literal = inLiteral, "false"
	case 'n':
		g.inside, g.literal = inLiteral, "null"
	default:
		g.inside, g.number = inNumber, numberStart
	}
	return 0, nothing, nil // the token's own function reads it from its start
}

func (g *grammar) open(object bool) (int, event, error) {
	if g.depth == MaxDepth {
		return 0, nothing, ErrTooDeep
	}
	g.objects[g.depth] = object
	g.depth++
	g.want = aValue | anArrayEnd
	if object {
		g.want = aName | anObjectEnd
	}
	return 1, opened, nil
}

func (g *grammar) endValue() {
	g.inside = noToken
	switch {
	case g.depth == 0:
		g.want = 0
	case g.objects[g.depth-1]:
		g.want = aComma | anObjectEnd
	default:
		g.want = aComma | anArrayEnd
	}
}

func (g *grammar) startString() event {
	if g.want&aName != 0 {
		g.inside = inName
		return nameStarts
	}
	g.inside = inString
	return nothing
}

// nextString goes to the end of a string. A best shot is one string of
// hundreds of kilobytes without a backslash, so what has to be fast is the
// search for the next quote. Whether a quote is escaped is seen by looking
// back from it. The backslashes that a look goes over are never looked at
// again, so strings full of them cost no more than their length either.
func (g *grammar) nextString(text []byte) (int, event) {
	from := 0
	if g.escaped {
		from, g.escaped = 1, false
	}
	for {
		quote := bytes.IndexByte(text[from:], '"')
		if quote < 0 {
			g.escaped = endsInEscape(text[from:])
			return len(text), nothing
		}
		quote += from
		if !endsInEscape(text[from:quote]) {
			return quote + 1, g.endString()
		}
		from = quote + 1
	}
}

func (g *grammar) endString() event {
	if g.inside == inName {
		g.inside, g.want = noToken, aColon
		return nameEnds
	}
	g.endValue()
	return nothing
}

// endsInEscape reports whether the character after part is escaped. The first
// character of part is not.
func endsInEscape(part []byte) bool {
	n := len(part)
	for n > 0 && part[n-1] == '\\' {
		n--
	}
	return (len(part)-n)%2 == 1
}

func (g *grammar) nextLiteral(text []byte) (int, error) {
	for i := range text {
		if text[i] != g.literal[0] {
			return i, errLiteral
		}
		g.literal = g.literal[1:]
		if g.literal == "" {
			g.endValue()
			return i + 1, nil
		}
	}
	return len(text), nil
}

func (g *grammar) nextNumber(text []byte) (int, error) {
	for i, c := range text {
		next := g.number.then(c)
		if next != numberEnd {
			g.number = next
			continue
		}
		if !g.number.complete() {
			return i, errNumber
		}
		g.endValue()
		return i, nil
	}
	return len(text), nil
}

// digits is how far into a number the text is.
type digits uint8

const (
	numberEnd digits = iota // the character is not part of the number
	numberStart
	afterMinus
	afterZero // a leading zero: no digit may follow
	inInteger
	afterPoint
	inFraction
	afterE
	afterSign
	inExponent
)

func (d digits) complete() bool {
	return d == afterZero || d == inInteger || d == inFraction || d == inExponent
}

// then is the grammar of numbers: RFC 8259, section 6.
func (d digits) then(c byte) digits {
	switch {
	case c >= '0' && c <= '9':
		return d.thenDigit(c)
	case c == '-' && d == numberStart:
		return afterMinus
	case c == '.' && (d == afterZero || d == inInteger):
		return afterPoint
	case (c == 'e' || c == 'E') && (d == afterZero || d == inInteger || d == inFraction):
		return afterE
	case (c == '+' || c == '-') && d == afterE:
		return afterSign
	}
	return numberEnd
}

func (d digits) thenDigit(c byte) digits {
	switch d {
	case numberStart, afterMinus:
		if c == '0' {
			return afterZero
		}
		return inInteger
	case inInteger:
		return inInteger
	case afterPoint, inFraction:
		return inFraction
	case afterE, afterSign, inExponent:
		return inExponent
	}
	return numberEnd
}

func isSpace(c byte) bool {
	return c == ' ' || c == '\n' || c == '\r' || c == '\t'
}

func spaces(text []byte) int {
	for i, c := range text {
		if !isSpace(c) {
			return i
		}
	}
	return len(text)
}
