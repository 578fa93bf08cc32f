package integration_test

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// rawRequest is a request as it came over the wire.
type rawRequest struct {
	Line     string   // POST /verify HTTP/1.1
	Fields   []string // the header's lines as they are, without line ends
	Body     []byte   // without its chunk framing
	Chunked  bool
	Trailers []string // the lines after the last chunk
	Conn     int      // number of the connection it came on, from 0
	Broken   error    // what cut it short: the fields above hold what came until then
}

// Raw returns everything but the body in the order it came, for a failed test to show.
func (r rawRequest) Raw() string {
	return strings.Join(append([]string{r.Line}, r.Fields...), "\n") + fmt.Sprintf("\n\n(body of %d bytes)\n", len(r.Body)) +
		strings.Join(r.Trailers, "\n")
}

// Values returns the values of a field, whatever the case of its name, line by line.
func (r rawRequest) Values(name string) []string {
	var values []string
	for _, line := range r.Fields {
		field, value, _ := strings.Cut(line, ":")
		if strings.EqualFold(field, name) {
			values = append(values, strings.Trim(value, " \t"))
		}
	}
	return values
}

// Value returns the value of a field that stands there once. It is empty when the field is absent, and the lines together, which
// is no value to expect, when there are several.
func (r rawRequest) Value(name string) string { return strings.Join(r.Values(name), " AND ALSO ") }

// Names returns the names of the fields and trailers that an app could take for one that begins with the prefix: compared in lower
// case, with anything but letters and digits as a hyphen.
func (r rawRequest) Names(prefix string) []string {
	var names []string
	for _, line := range append(append([]string{}, r.Fields...), r.Trailers...) {
		name, _, _ := strings.Cut(line, ":")
		if strings.HasPrefix(foldName(name), foldName(prefix)) {
			names = append(names, name)
		}
	}
	return names
}

func foldName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(name))
}

// rawError is what is no HTTP/1.1, while an io error is a connection that ended early.
type rawError string

func (e rawError) Error() string { return string(e) }

func readRawRequest(r *bufio.Reader) (request rawRequest, err error) {
	if request.Line, err = readRawLine(r); err != nil {
		return request, err
	}
	if !strings.HasSuffix(request.Line, " HTTP/1.1") {
		return request, rawError("not a request line")
	}
	if request.Fields, err = readRawFields(r); err != nil {
		return request, err
	}
	switch coding, length := request.Value("Transfer-Encoding"), request.Value("Content-Length"); {
	case coding == "chunked" && length == "":
		request.Chunked = true
		return request, request.readChunks(r)
	case coding != "":
		return request, rawError("Transfer-Encoding is not chunked alone")
	case length != "":
		n, err := strconv.ParseUint(length, 10, 40)
		if err != nil {
			return request, rawError("Content-Length is no number")
		}
		request.Body = make([]byte, n)
		_, err = io.ReadFull(r, request.Body)
		return request, err
	}
	return request, nil
}

func (r *rawRequest) readChunks(in *bufio.Reader) error {
	for {
		line, err := readRawLine(in)
		if err != nil {
			return err
		}
		size, err := strconv.ParseUint(line, 16, 40)
		if err != nil {
			return rawError("chunk size is no number")
		}
		if size == 0 {
			r.Trailers, err = readRawFields(in)
			return err
		}
		chunk := make([]byte, size+2)
		if _, err := io.ReadFull(in, chunk); err != nil {
			return err
		}
		if string(chunk[size:]) != "\r\n" {
			return rawError("chunk is longer than it says")
		}
		r.Body = append(r.Body, chunk[:size]...)
	}
}

// readRawFields reads lines up to an empty one.
func readRawFields(r *bufio.Reader) (fields []string, err error) {
	for {
		line, err := readRawLine(r)
		if err != nil || line == "" {
			return fields, err
		}
		fields = append(fields, line)
	}
}

func readRawLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return line, err
	}
	text, ok := strings.CutSuffix(line, "\r\n")
	if !ok {
		return line, rawError("line without CR")
	}
	return text, nil
}
