package oz

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

// everyElement is the part of a path that selects all elements of an array.
const everyElement = "#"

// Path names values in a folder, such as meta_data.transaction_id or
// analyses.#.source_media. The zero Path selects nothing.
type Path struct {
	parts []string
}

// ParsePath reads names, indices and # (every element of an array), separated
// by dots. They mean what they mean to gjson, but its modifiers, queries,
// wildcards and escapes are refused: each is a way to select less than meant,
// and sjson cannot remove through them. A number is an index in an array and a
// name in an object.
func ParsePath(s string) (Path, error) {
	parts := strings.Split(s, ".")
	for _, part := range parts {
		if !isPart(part) {
			return Path{}, fmt.Errorf("path %q: a path is names (of letters, digits, _ - :), indices and # for every element, "+
				"separated by dots, such as analyses.#.source_media", s)
		}
	}
	return Path{parts}, nil
}

func isPart(part string) bool {
	if part == everyElement {
		return true
	}
	for _, c := range part {
		// Marks are the parts of letters that some scripts write apart.
		if !unicode.In(c, unicode.Letter, unicode.Mark, unicode.Number) && c != '_' && c != '-' && c != ':' {
			return false
		}
	}
	return part != ""
}

func (p Path) String() string { return strings.Join(p.parts, ".") }

// Holds reports whether the path selects at least one value in doc and all
// that it selects equal value: as a string, or as the JSON text of a number, a
// true or a false. Nothing else is ever equal, and value is never empty: it
// comes from placeholders, and one without a value must not bind a folder to
// nobody. Where # meets an element without the rest of the path, or no
// element at all, the path does not hold. ReadFolder must have accepted doc.
func (p Path) Holds(doc []byte, value string) bool {
	if len(p.parts) == 0 || value == "" {
		return false
	}
	return holds(gjson.ParseBytes(doc), p.parts, value)
}

func holds(v gjson.Result, parts []string, value string) bool {
	if len(parts) == 0 {
		return equals(v, value)
	}
	found, all := false, true
	children(v, parts[0], func(child gjson.Result) {
		found = true
		all = all && holds(child, parts[1:], value)
	})
	return found && all
}

func equals(v gjson.Result, value string) bool {
	switch v.Type {
	case gjson.String:
		return v.Str == value
	case gjson.Number, gjson.True, gjson.False:
		return v.Raw == value
	}
	return false
}

// Text returns the one value that the path selects in doc: a string that isn't
// empty, or the JSON text of a number. Anything else counts as absent, and so do
// several. ReadFolder must have accepted doc.
func (p Path) Text(doc []byte) (text string, ok bool) {
	if len(p.parts) == 0 {
		return "", false
	}
	var values []gjson.Result
	selected(gjson.ParseBytes(doc), p.parts, &values)
	if len(values) != 1 {
		return "", false
	}
	switch v := values[0]; v.Type {
	case gjson.String:
		return v.Str, v.Str != ""
	case gjson.Number:
		return v.Raw, true
	}
	return "", false
}

func selected(v gjson.Result, parts []string, values *[]gjson.Result) {
	if len(parts) == 0 {
		*values = append(*values, v)
		return
	}
	children(v, parts[0], func(child gjson.Result) { selected(child, parts[1:], values) })
}

// Single reports whether the path names one value at most: it has no #.
func (p Path) Single() bool { return !slices.Contains(p.parts, everyElement) }

// Strip removes all that the paths select from doc. Where they select nothing,
// doc is the result. All other bytes stay as they are.
func Strip(doc []byte, paths []Path) ([]byte, error) {
	if len(paths) == 0 {
		return doc, nil
	}
	if !gjson.ValidBytes(doc) {
		// sjson promises nothing here; what it leaves may be what was to go.
		return nil, fmt.Errorf("%w: cannot strip", ErrMalformed)
	}
	text := string(doc)
	for _, p := range paths {
		var err error
		if text, err = strip(text, p.parts); err != nil {
			return nil, fmt.Errorf("strip %s: %w", p, err)
		}
	}
	return []byte(text), nil
}

// strip goes down the path itself, since sjson cannot delete through #. It
// also keeps the cost in line: sjson copies all that it gets with each value
// that it deletes, so it gets no more than the object or array around it.
func strip(doc string, parts []string) (string, error) {
	if len(parts) == 0 {
		return doc, nil
	}
	if len(parts) == 1 {
		return stripChild(doc, parts[0])
	}
	var out strings.Builder
	var firstErr error
	end := 0
	children(gjson.Parse(doc), parts[0], func(child gjson.Result) {
		stripped, err := strip(child.Raw, parts[1:])
		if err != nil && firstErr == nil {
			firstErr = err
		}
		out.WriteString(doc[end:child.Index])
		out.WriteString(stripped)
		end = child.Index + len(child.Raw)
	})
	out.WriteString(doc[end:])
	return out.String(), firstErr
}

// stripChild removes what part selects in doc, the text of one value.
func stripChild(doc, part string) (string, error) {
	v := gjson.Parse(doc)
	if v.IsArray() && part == everyElement {
		return "[]", nil
	}
	name := part
	if v.IsObject() {
		name = ":" + part // to sjson: a name, even if it is -1 or a number
	}
	for selects(gjson.Parse(doc), part) {
		shorter, err := sjson.Delete(doc, name)
		if err != nil {
			return "", err
		}
		if len(shorter) >= len(doc) {
			return "", errors.New("sjson does not find what gjson does")
		}
		doc = shorter
		if v.IsArray() {
			break // the next element has moved up to this index
		}
	}
	return doc, nil
}

func selects(v gjson.Result, part string) bool {
	found := false
	children(v, part, func(gjson.Result) { found = true })
	return found
}

// children calls each with what part selects in v. It walks over all members
// by itself rather than ask gjson for one: names are compared as any reader
// compares them, after unescaping, a name that occurs twice is found twice,
// and an index is not taken modulo 2 to the 64.
func children(v gjson.Result, part string, each func(child gjson.Result)) {
	switch {
	case v.IsObject():
		v.ForEach(func(name, child gjson.Result) bool {
			if name.Str == part {
				each(child)
			}
			return true
		})
	case v.IsArray():
		i, want := 0, index(part)
		v.ForEach(func(_, child gjson.Result) bool {
			if part == everyElement || i == want {
				each(child)
			}
			i++
			return true
		})
	}
}

// index is the array index that part is, or -1.
func index(part string) int {
	i, err := strconv.Atoi(part)
	if err != nil || strconv.Itoa(i) != part { // 007, +1, -0
		return -1
	}
	return i
}
