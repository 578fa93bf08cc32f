package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// A tree of JSON that keeps the order of names and can hold what encoding/json never writes: a name twice, a name
// escaped, a value that is no JSON at all. Faults need it.

type (
	object struct{ members []member }
	array  struct{ items []any }
	member struct {
		name  string // written between quotes as it stands
		value any
	}
	// verbatim is written as it stands.
	verbatim string
	// base64Text is a string that needs no escaping, however long.
	base64Text string
)

// fields makes an object of names and values in turn.
func fields(namesAndValues ...any) *object {
	o := &object{}
	for i := 0; i < len(namesAndValues); i += 2 {
		o.add(namesAndValues[i].(string), namesAndValues[i+1])
	}
	return o
}

func list(items ...any) *array { return &array{items} }

func (o *object) add(name string, value any) { o.members = append(o.members, member{name, value}) }

func (o *object) index(name string) int {
	for i, m := range o.members {
		if m.name == name {
			return i
		}
	}
	return -1
}

func (o *object) get(name string) any {
	if i := o.index(name); i >= 0 {
		return o.members[i].value
	}
	return nil
}

// set replaces a value where it stands, or adds it at the end.
func (o *object) set(name string, value any) {
	if i := o.index(name); i >= 0 {
		o.members[i].value = value
		return
	}
	o.add(name, value)
}

func (o *object) drop(name string) {
	if i := o.index(name); i >= 0 {
		o.members = append(o.members[:i:i], o.members[i+1:]...)
	}
}

// rename changes a name where it stands.
func (o *object) rename(from, to string) {
	if i := o.index(from); i >= 0 {
		o.members[i].name = to
	}
}

// replace puts other members where one stood.
func (o *object) replace(name string, with ...member) {
	if i := o.index(name); i >= 0 {
		o.members = append(o.members[:i:i], append(with, o.members[i+1:]...)...)
	}
}

// objects are the items of an array that are objects.
func (a *array) objects() []*object {
	var out []*object
	for _, item := range a.items {
		if o, ok := item.(*object); ok {
			out = append(out, o)
		}
	}
	return out
}

// clone copies a tree, so that the copy can be changed.
func clone(v any) any {
	switch v := v.(type) {
	case *object:
		c := &object{}
		for _, m := range v.members {
			c.add(m.name, clone(m.value))
		}
		return c
	case *array:
		c := &array{items: []any{}}
		for _, item := range v.items {
			c.items = append(c.items, clone(item))
		}
		return c
	}
	return v
}

// walk calls f on every object of a tree, the outermost first. What f adds is not walked.
func walk(v any, f func(*object)) {
	switch v := v.(type) {
	case *object:
		before := slices.Clone(v.members)
		f(v)
		for _, m := range before {
			walk(m.value, f)
		}
	case *array:
		for _, item := range v.items {
			walk(item, f)
		}
	}
}

func appendJSON(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, "null"...)
	case verbatim:
		return append(b, v...)
	case base64Text:
		b = append(b, '"')
		b = append(b, v...)
		return append(b, '"')
	case string:
		return appendString(b, v)
	case bool:
		return strconv.AppendBool(b, v)
	case int:
		return strconv.AppendInt(b, int64(v), 10)
	case float64:
		return strconv.AppendFloat(b, v, 'f', -1, 64)
	case *array:
		b = append(b, '[')
		for i, item := range v.items {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = appendJSON(b, item)
		}
		return append(b, ']')
	case *object:
		b = append(b, '{')
		for i, m := range v.members {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = append(b, '"')
			b = append(b, m.name...)
			b = append(b, `": `...)
			b = appendJSON(b, m.value)
		}
		return append(b, '}')
	}
	panic(fmt.Sprintf("no JSON for %T", v))
}

func appendString(b []byte, s string) []byte {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // the real one is written in Python, which leaves < and > alone
	if err := enc.Encode(s); err != nil {
		panic(err) // strings always encode
	}
	return append(b, bytes.TrimSuffix(text.Bytes(), []byte("\n"))...)
}
