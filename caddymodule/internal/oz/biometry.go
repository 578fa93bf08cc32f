package oz

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/textproto"

	"github.com/google/uuid"
)

// TypeOf is the type of the entry of analyses with this index, or "".
func (f *Folder) TypeOf(entry int) string {
	if f == nil || entry < 0 || entry >= len(f.Analyses) {
		return ""
	}
	return f.Analyses[entry].Type
}

// Multipart is a body of several parts (RFC 7578).
type Multipart struct {
	ContentType string // with the boundary

	buf bytes.Buffer
	w   *multipart.Writer
}

// NewMultipart begins a body that will have about size bytes in its parts.
func NewMultipart(size int) *Multipart {
	m := new(Multipart)
	m.buf.Grow(size + 4<<10)
	m.w = multipart.NewWriter(&m.buf)
	m.ContentType = m.w.FormDataContentType()
	return m
}

// Add adds a part. An empty filename makes it a field and not a file; an empty
// contentType makes it plain text.
func (m *Multipart) Add(name, filename, contentType string, content []byte) {
	disposition := fmt.Sprintf(`form-data; name="%s"`, name)
	if filename != "" {
		disposition += fmt.Sprintf(`; filename="%s"`, filename)
	}
	header := textproto.MIMEHeader{"Content-Disposition": {disposition}}
	if contentType != "" {
		header.Set("Content-Type", contentType)
	}
	part, err := m.w.CreatePart(header)
	if err == nil {
		_, err = part.Write(content)
	}
	if err != nil { // into memory: cannot happen
		panic(err)
	}
}

// Close ends the body.
func (m *Multipart) Close() {
	if err := m.w.Close(); err != nil { // as in Add
		panic(err)
	}
}

// Reader reads the body from its start.
func (m *Multipart) Reader() io.ReadCloser { return io.NopCloser(bytes.NewReader(m.buf.Bytes())) }

// Bytes is the body.
func (m *Multipart) Bytes() []byte { return m.buf.Bytes() }

// Length is the length of the body.
func (m *Multipart) Length() int64 { return int64(m.buf.Len()) }

// MatchRequest is the body of step 4 of the guide: two images, and what Oz is
// to do with them. An image's part, its file name and its key in the payload
// are the same string, as the guide has it.
func MatchRequest(tag string, reference, bestShot []byte) *Multipart {
	const bestShotName = "best_shot.jpeg"
	contentType, extension := imageType(reference)
	referenceName := uuid.NewString() + extension
	payload := mustJSON(map[string]any{
		"media:tags": map[string][]string{referenceName: {tag}, bestShotName: {tag}},
		"analyses":   []map[string]string{{"type": "biometry"}},
	})
	m := NewMultipart(len(reference) + len(bestShot) + len(payload))
	m.Add("payload", "", "", payload) // a plain field, as the vendor's own clients send it
	m.Add(referenceName, referenceName, contentType, reference)
	m.Add(bestShotName, bestShotName, "image/jpeg", bestShot)
	m.Close()
	return m
}

func imageType(image []byte) (contentType, extension string) {
	if bytes.HasPrefix(image, []byte("\x89PNG")) {
		return "image/png", ".png"
	}
	return "image/jpeg", ".jpeg"
}
