package sandbox

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
)

// What requests without a capsule have in common: JSON, and the general meanings of codes 3, 4 and 5.

// missing is for a required field that is not there. The text is the vendor's.
func missing(path string) *refusal {
	return refuse(3, "", "Could not locate field for key_path "+path+" from provided dict data")
}

// malformed is for what cannot be read at all.
func malformed(text string) *refusal { return refuse(3, "", text) }

// badValue is for what can be read and makes no sense.
func badValue(text string) *refusal { return refuse(4, "", text) }

// wrongType is for a value of another type than it has to be.
func wrongType(path string) *refusal {
	return refuse(5, "", "Wrong type of field "+path)
}

// generalAnswer is a refusal that says why.
func generalAnswer(why *refusal) answer {
	return errorAnswer(http.StatusBadRequest, why.code, why.reason)
}

// isOf reports whether the request has this Content-Type, whatever its parameters.
func isOf(r *http.Request, want string) bool {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")) // with bad parameters it is known all the same
	return kind == want
}

// maxJSON is far more than anybody's credentials are.
const maxJSON = 64 << 10

// readJSON reads a small JSON body.
func (x *exchange) readJSON() (any, *answer) {
	text, err := io.ReadAll(io.LimitReader(x.meter, maxJSON+1))
	x.meter.drain()
	var a answer
	var body any
	switch {
	case errors.Is(x.meter.err, errTooLarge), x.meter.err == nil && len(text) > maxJSON:
		a = tooLargeAnswer()
	case err != nil, x.meter.err != nil:
		x.abort() // the client has left
	case !isOf(x.r, "application/json"), json.Unmarshal(text, &body) != nil:
		a = generalAnswer(malformed("Request body is not JSON"))
	default:
		return body, nil
	}
	return nil, &a
}

// textAt is the string at a path of names.
func textAt(v any, names ...string) (string, *answer) {
	fail := func(why *refusal) (string, *answer) {
		a := generalAnswer(why)
		return "", &a
	}
	path := "body"
	for i, name := range names {
		o, ok := v.(map[string]any)
		if !ok {
			return fail(wrongType(path))
		}
		path = strings.Join(names[:i+1], ".")
		if v, ok = o[name]; !ok {
			return fail(missing(path))
		}
	}
	text, ok := v.(string)
	if !ok {
		return fail(wrongType(path))
	}
	return text, nil
}
