package oz

import (
	"bytes"
	"errors"
	"io"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// A second way to do what Pruner and Strip do: decode all of the document,
// delete, compare what is left. It is slow, and it is simple.

type (
	object []member
	member struct {
		name  string
		value any // object, array, text, or the raw JSON of another value
	}
	array []any
	text  string
)

// decode reads a document in which names may occur twice, and nothing else is
// out of order.
func decode(doc []byte) (any, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(doc), jsontext.AllowDuplicateNames(true))
	v, err := decodeValue(dec)
	if err != nil {
		return nil, err
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return nil, errors.New("more than one document")
	}
	return v, nil
}

func decodeValue(dec *jsontext.Decoder) (any, error) {
	t, err := dec.ReadToken()
	if err != nil {
		return nil, err
	}
	if dec.StackDepth() > MaxDepth {
		return nil, ErrTooDeep
	}
	switch t.Kind() {
	case jsontext.KindBeginObject:
		o := object{}
		for dec.PeekKind() != jsontext.KindEndObject {
			name, err := dec.ReadToken()
			if err != nil {
				return nil, err
			}
			m := member{name: name.String()}
			if m.value, err = decodeValue(dec); err != nil {
				return nil, err
			}
			o = append(o, m)
		}
		_, err := dec.ReadToken()
		return o, err
	case jsontext.KindBeginArray:
		a := array{}
		for dec.PeekKind() != jsontext.KindEndArray {
			v, err := decodeValue(dec)
			if err != nil {
				return nil, err
			}
			a = append(a, v)
		}
		_, err := dec.ReadToken()
		return a, err
	case jsontext.KindString:
		return text(t.String()), nil
	}
	return t.String(), nil
}

// without is v less what the parts of a path select in it.
func without(v any, parts []string) any {
	last := len(parts) == 1
	switch v := v.(type) {
	case object:
		o := object{}
		for _, m := range v {
			if m.name != parts[0] {
				o = append(o, m)
			} else if !last {
				o = append(o, member{m.name, without(m.value, parts[1:])})
			}
		}
		return o
	case array:
		a := array{}
		for i, e := range v {
			if parts[0] != "#" && parts[0] != strconv.Itoa(i) {
				a = append(a, e)
			} else if !last {
				a = append(a, without(e, parts[1:]))
			}
		}
		return a
	}
	return v
}

// withoutHeavy is v less the best shots. "#" alone does not say it: between
// two objects on the path there has to be an array.
func withoutHeavy(v any, names []string) any {
	o, ok := v.(object)
	if !ok {
		return v
	}
	left := object{}
	for _, m := range o {
		switch list, isList := m.value.(array); {
		case m.name != names[0]:
			left = append(left, m)
		case len(names) == 1: // gone
		case isList:
			a := array{}
			for _, e := range list {
				a = append(a, withoutHeavy(e, names[1:]))
			}
			left = append(left, member{m.name, a})
		default:
			left = append(left, m)
		}
	}
	return left
}

// soundStrings is doc with a ? for each string that is not one by the rules
// for what may stand in a string. What is left to complain about is structure.
func soundStrings(doc []byte) []byte {
	var out []byte
	start := -1
	for i := 0; i < len(doc); i++ {
		switch {
		case start < 0 && doc[i] == '"':
			start = i
		case start < 0:
			out = append(out, doc[i])
		case doc[i] == '\\':
			i++
		case doc[i] == '"':
			if s := jsontext.Value(doc[start : i+1]); s.IsValid() {
				out = append(out, s...)
			} else {
				out = append(out, `"?"`...)
			}
			start = -1
		}
	}
	if start >= 0 {
		out = append(out, '"') // the string that never ended
	}
	return out
}
