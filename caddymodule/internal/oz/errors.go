package oz

import (
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// Codes of Oz's error objects that mean something here. With a capsule, 3, 4 and
// 5 have a meaning of their own, which is the one that counts. Any other code is
// a number to be passed on.
const (
	CodeMissingPayload   = 3  // the container has no payload (elsewhere: a required field is missing)
	CodeNoMedia          = 4  // the container has no media (elsewhere: a bad value)
	CodeDamaged          = 5  // the container is damaged (elsewhere: a value of the wrong type)
	CodeAuthNotProvided  = 6  // no access token; the first of the codes about it
	CodeAuthForbidden    = 9  // not for this user; the last of them
	CodeNoContainer      = 13 // no container in the request
	CodeInvalidContainer = 14 // decryption, signature, hash or session token: the reason is only in Oz's own log
)

// Error is Oz's error object, or the error that an analysis ended with.
type Error struct {
	Code    int    // error_code
	Message string // error_message; its wording differs between versions of Oz
}

// ReadError reads an error object as strictly as ReadFolder does a folder. It
// is one only with an error_code that is an integer, or a string of exactly one:
// the vendor's type is a number, but a 400 with its code in quotes is still Oz's
// word about the capsule, and without it the client would be told that Oz is at
// fault. Nothing is accepted by it, as an error object only refuses. In folders,
// which accept, numbers stay numbers.
func ReadError(doc []byte) (Error, bool) {
	var code *int
	var message string
	err := readObject(doc, func(s strict, name string) error {
		switch name {
		case "error_code":
			return s.code(&code)
		case "error_message":
			return s.text(&message)
		}
		return s.skip()
	})
	if err != nil || code == nil {
		return Error{}, false
	}
	return Error{Code: *code, Message: message}, true
}

// code reads a value into dst if it is an integer, or a string of one in the
// spelling that JSON has for it. Any other value is as good as absent.
func (s strict) code(dst **int) error {
	if s.kind() != jsontext.KindString {
		return s.integer(dst)
	}
	var text string
	if err := s.text(&text); err != nil {
		return err
	}
	if i, err := strconv.ParseInt(text, 10, 32); err == nil && strconv.FormatInt(i, 10) == text {
		n := int(i)
		*dst = &n
	}
	return nil
}

// containerCodes are the codes by which Oz complains about a capsule.
var containerCodes = []int{CodeMissingPayload, CodeNoMedia, CodeDamaged, CodeNoContainer, CodeInvalidContainer}

// ContainerCodes lists the codes by which Oz complains about a capsule.
func ContainerCodes() []int { return slices.Clone(containerCodes) }

// Container reports whether it is the capsule that Oz complains about.
func (e Error) Container() bool { return slices.Contains(containerCodes, e.Code) }
