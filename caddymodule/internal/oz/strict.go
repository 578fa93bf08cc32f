package oz

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// strict reads one document by the rules of RFC 7493: no name twice in one
// object, valid UTF-8 and no lone surrogates, nothing before or behind.
// Readers differ in what they make of a document that breaks these rules,
// which is how a decision is made on one folder and acted on by another.
//
// Its errors wrap ErrMalformed. They have none of jsontext's own text, which
// quotes the document.
type strict struct {
	dec *jsontext.Decoder
}

// readObject reads doc, which has to be one object, and calls member with the
// name of each of its members. A member function must read exactly one value.
func readObject(doc []byte, member func(s strict, name string) error) error {
	s := strict{decoders.Get().(*jsontext.Decoder)}
	s.dec.Reset(bytes.NewBuffer(doc))
	defer s.end()
	if s.kind() != jsontext.KindBeginObject {
		return fmt.Errorf("%w: not an object, after byte 0", ErrMalformed)
	}
	if err := s.object(func(name string) error { return member(s, name) }); err != nil {
		return err
	}
	if _, err := s.dec.ReadToken(); err != io.EOF {
		return s.malformed(errors.New("more than one value"))
	}
	return nil
}

// decoders keep the space that they need for the names of objects.
var decoders = sync.Pool{New: func() any { return new(jsontext.Decoder) }}

// end gives the decoder back, without the document.
func (s strict) end() {
	s.dec.Reset(new(bytes.Buffer))
	decoders.Put(s.dec)
}

func (s strict) kind() jsontext.Kind { return s.dec.PeekKind() }

// token reads one token. All reading goes through here, for the depth.
func (s strict) token() (jsontext.Token, error) {
	t, err := s.dec.ReadToken()
	if err != nil {
		return t, s.malformed(err)
	}
	if s.dec.StackDepth() > MaxDepth {
		return t, fmt.Errorf("%w: %w", ErrMalformed, ErrTooDeep)
	}
	return t, nil
}

func (s strict) malformed(err error) error {
	what := "bad syntax or UTF-8"
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		what = "duplicate name"
	case errors.Is(err, errOtherCase):
		what = err.Error()
	}
	return fmt.Errorf("%w: %s, after byte %d", ErrMalformed, what, s.dec.InputOffset())
}

// object reads an object; the caller has seen that it is one.
func (s strict) object(member func(name string) error) error {
	if _, err := s.token(); err != nil {
		return err
	}
	for s.kind() != jsontext.KindEndObject {
		name, err := s.token()
		if err != nil {
			return err
		}
		if err := member(name.String()); err != nil {
			return err
		}
	}
	_, err := s.token()
	return err
}

// array reads an array; the caller has seen that it is one.
func (s strict) array(element func() error) error {
	if _, err := s.token(); err != nil {
		return err
	}
	for s.kind() != jsontext.KindEndArray {
		if err := element(); err != nil {
			return err
		}
	}
	_, err := s.token()
	return err
}

// skip reads one value of any kind for nothing but its validity.
func (s strict) skip() error {
	depth := s.dec.StackDepth()
	for {
		if _, err := s.token(); err != nil {
			return err
		}
		if s.dec.StackDepth() == depth {
			return nil
		}
	}
}

// other skips the value of a member that is none of ours. A name that differs
// from one of ours by case alone is refused: encoding/json, for one, takes it
// for ours, and the last of both counts, so that an app in Go would see another
// decision than we do.
func (s strict) other(name string, ours ...string) error {
	for _, own := range ours {
		if strings.EqualFold(name, own) {
			return s.malformed(errOtherCase)
		}
	}
	return s.skip()
}

var errOtherCase = errors.New("name in another case")

// text reads a value into dst if it is a string. Any other value is as good
// as absent: it is read and dst stays empty.
func (s strict) text(dst *string) error {
	if s.kind() != jsontext.KindString {
		return s.skip()
	}
	t, err := s.token()
	if err == nil {
		*dst = t.String()
	}
	return err
}

// integer reads a value into dst if it is a number without fraction and
// exponent that fits 32 bits. Any other value is as good as absent.
func (s strict) integer(dst **int) error {
	if s.kind() != jsontext.KindNumber {
		return s.skip()
	}
	t, err := s.token()
	if err != nil {
		return err
	}
	if i, err := strconv.ParseInt(t.String(), 10, 32); err == nil {
		n := int(i)
		*dst = &n
	}
	return nil
}
