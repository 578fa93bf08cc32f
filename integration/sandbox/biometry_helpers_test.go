package sandbox

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"
)

// form is a multipart body that tests take apart before they send it.
type form []formField

type formField struct{ name, filename, contentType, content string }

func file(name string, content []byte) formField {
	return formField{name, name, "image/jpeg", string(content)}
}

func payloadPart(json string) formField { return formField{name: "payload", content: json} }

const (
	refName, shotName = "0d7f6f0e-3f0a-4c1b-8d57-0f1a5f1c9e02.jpeg", "best_shot.jpeg"
	tagsOfTwo         = `"media:tags": {"` + refName + `": ["photo_selfie"], "` + shotName + `": ["photo_selfie"]}`
	twoPayload        = `{` + tagsOfTwo + `, "analyses": [{"type": "biometry"}]}`
)

// twoPhotos is the guide's step 4.
func twoPhotos(reference, shot []byte) form {
	return form{payloadPart(twoPayload), file(refName, reference), file(shotName, shot)}
}

// photosOf is the same with drawn photos.
func photosOf(reference, shot string) form {
	return twoPhotos(Portrait(reference, 240), BestShotOf(shot, 20_000))
}

func (f form) body() []byte {
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	w.SetBoundary("sandbox-test") // the boundary is valid
	for _, p := range f {
		disposition := `form-data; name="` + p.name + `"`
		if p.filename != "" {
			disposition += `; filename="` + p.filename + `"`
		}
		h := textproto.MIMEHeader{"Content-Disposition": {disposition}}
		if p.contentType != "" {
			h.Set("Content-Type", p.contentType)
		}
		part, err := w.CreatePart(h)
		if err != nil {
			panic(err)
		}
		part.Write([]byte(p.content))
	}
	w.Close()
	return out.Bytes()
}

const formType = "multipart/form-data; boundary=sandbox-test"

func (f form) post(t *testing.T, url string, header ...string) reply {
	t.Helper()
	return send(t, url+FoldersPath, formType, f.body(), header...)
}

// send posts a body.
func send(t *testing.T, url, contentType string, body []byte, header ...string) reply {
	t.Helper()
	r, err := trySend(t, url, contentType, body, header...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func trySend(t *testing.T, url, contentType string, body []byte, header ...string) (reply, error) {
	t.Helper()
	req := newPost(t, url, contentType, bytes.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host
	}
	return do(req)
}

func newPost(t *testing.T, url, contentType string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	return req
}

func mustBase64(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withPNGSize changes the size that a PNG says it has, and the checksum that stands behind it.
func withPNGSize(file []byte, width, height uint32) []byte {
	const header, end = 12, 29 // from the name of the first chunk to the end of its content
	file = bytes.Clone(file)
	binary.BigEndian.PutUint32(file[16:], width)
	binary.BigEndian.PutUint32(file[20:], height)
	binary.BigEndian.PutUint32(file[end:], crc32.ChecksumIEEE(file[header:end]))
	return file
}

// wantMatch checks a folder that came of comparing photos.
func (r reply) wantMatch(t *testing.T, outcome string) folderView {
	t.Helper()
	f := r.folder(t)
	if r.status != http.StatusCreated || f.Resolution != outcome || len(f.Analyses) != 1 || f.Analyses[0].Type != "BIOMETRY" || f.Analyses[0].Status != outcome {
		t.Fatalf("got %d %.400s, want BIOMETRY %s", r.status, r.body, outcome)
	}
	return f
}

// wantText checks the text of an error, too.
func (r reply) wantText(t *testing.T, status, code int, text string) {
	t.Helper()
	r.wantError(t, status, code)
	var e struct {
		Message string `json:"error_message"`
	}
	if err := json.Unmarshal(r.body, &e); err != nil || !strings.Contains(e.Message, text) {
		t.Errorf("%q, want %q", e.Message, text)
	}
}

// with puts another part in the place of one.
func (f form) with(i int, p formField) form {
	f = slices.Clone(f)
	f[i] = p
	return f
}

// without leaves parts out.
func (f form) without(names ...string) form {
	return slices.DeleteFunc(slices.Clone(f), func(p formField) bool { return slices.Contains(names, p.name) })
}
