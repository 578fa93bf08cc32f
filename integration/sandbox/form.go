package sandbox

import (
	"errors"
	"io"
	"mime"
	"mime/multipart"
)

// Part is what a receipt tells of one part of a multipart body.
type Part struct {
	Name        string // as in its Content-Disposition
	FileName    string // the same; empty: a plain field
	ContentType string
	Size        int64
	Digest      string   // SHA-256 of its bytes, in hex
	Tags        []string // what media:tags says of it
}

// formPart is a part while the request lasts.
type formPart struct {
	Part
	content []byte
}

// isFile tells files from plain fields as web frameworks do.
func (p formPart) isFile() bool { return p.FileName != "" }

// maxParts is how many parts are read: more than ten media, the vendor's limit, make no sense.
const maxParts = 16

// readForm reads a multipart body to its end, whatever is in it. An error means that the body did not arrive.
func readForm(m *meter, contentType string, maxImage int64) ([]formPart, *refusal, error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil || params["boundary"] == "" {
		m.drain()
		return nil, malformed("Content-Type has no boundary"), m.err
	}
	parts, refused := readParts(multipart.NewReader(m, params["boundary"]), maxImage)
	m.drain()
	return parts, refused, m.err
}

func readParts(form *multipart.Reader, maxImage int64) ([]formPart, *refusal) {
	var parts []formPart
	for {
		raw, err := form.NextRawPart()
		switch {
		case err == io.EOF: // a wrapped one is a body that was cut
			return parts, nil
		case err != nil:
			return parts, malformed("Request body is not multipart/form-data")
		case len(parts) == maxParts:
			return parts, badValue("Too many files")
		}
		p, err := readPart(raw, maxImage)
		switch {
		case errors.Is(err, errTooLarge):
			return parts, badValue("File is too large")
		case err != nil:
			return parts, malformed("Request body is not multipart/form-data")
		}
		parts = append(parts, p)
	}
}

func readPart(raw *multipart.Part, maxImage int64) (p formPart, err error) {
	// Not raw.FileName, which forgives a path before the name.
	if kind, params, err := mime.ParseMediaType(raw.Header.Get("Content-Disposition")); err == nil && kind == "form-data" {
		p.Name, p.FileName = params["name"], params["filename"]
	}
	p.ContentType = raw.Header.Get("Content-Type")
	p.content, err = io.ReadAll(io.LimitReader(raw, maxImage+1))
	if int64(len(p.content)) > maxImage {
		err = errTooLarge
	}
	p.Size, p.Digest = int64(len(p.content)), Digest(p.content)
	return p, err
}
