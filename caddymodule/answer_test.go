package caddymodule

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// A folder comes without its best shot, whole otherwise, and with the counts of
// what came and what was cut.
func TestAnswerIsAFolderWithoutItsImage(t *testing.T) {
	for _, status := range []int{200, 201} {
		doc := success()
		a, err := answerReader{max: 1 << 20}.read(response(status, doc))
		if err != nil {
			t.Fatal(err)
		}
		if a.status != status || a.bytes != int64(len(doc)) || a.cut < int64(len(testShot)) || len(a.shots) != 0 {
			t.Errorf("%d: %+v", status, a)
		}
		if bytes.Contains(a.doc, []byte(testShot)) || !bytes.Contains(a.doc, []byte(`"folder_id": "folder-1"`)) {
			t.Errorf("%d: what is left is %s", status, a.doc)
		}
	}
}

func TestAnswerKeepsOrCollectsImages(t *testing.T) {
	kept, err := answerReader{max: 1 << 20, keep: true}.read(response(201, success()))
	if err != nil || string(kept.doc) != success() || kept.cut != 0 {
		t.Errorf("keep: %v, %s", err, kept.doc)
	}
	collected, err := answerReader{max: 1 << 20, collect: true}.read(response(201, success()))
	if err != nil || len(collected.shots) != 1 || !bytes.Equal(collected.shots[0].JPEG, testJPEG) {
		t.Errorf("collect: %v, %v", err, collected.shots)
	}
	if bytes.Contains(collected.doc, []byte(testShot)) {
		t.Errorf("a collected image is still in the folder: %s", collected.doc)
	}
}

// padded is a folder of so many bytes, none of which are cut out.
func padded(size int) string {
	const head, tail = `{"resolution_status": "`, `"}`
	return head + strings.Repeat("x", size-len(head)-len(tail)) + tail
}

// Limits are exact on both sides: of the answer as it comes, and of what is
// left of it.
func TestAnswerLimits(t *testing.T) {
	for _, test := range []struct {
		name   string
		reader answerReader
		size   int
		ok     bool
	}{
		{"as long as max_answer", answerReader{max: 1000}, 1000, true},
		{"a byte more", answerReader{max: 1000}, 1001, false},
		{"left over: as much as may be", answerReader{max: 1 << 30}, maxFolder, true},
		{"left over: a byte more", answerReader{max: 1 << 30}, maxFolder + 1, false},
		{"kept: as long as max_answer", answerReader{max: 2 << 20, keep: true}, 2 << 20, true},
		{"kept: a byte more", answerReader{max: 2 << 20, keep: true}, 2<<20 + 1, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, err := test.reader.read(response(201, padded(test.size)))
			if (err == nil) != test.ok || (a.doc != nil) != test.ok {
				t.Errorf("err = %v, %d bytes are left", err, len(a.doc))
			}
		})
	}
	if _, err := (answerReader{max: 1000}).read(response(201, padded(1001))); !errors.Is(err, errAnswerTooLarge) {
		t.Errorf("over max_answer: %v", err)
	}
}

// endless is a body without an end. A test that reads on does not end either.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte(" "), len(p))), nil }

// An answer without an end is left at its limit, whatever its status.
func TestAnswerWithoutAnEnd(t *testing.T) {
	for _, status := range []int{201, 400} {
		res := response(status, "")
		res.Body = io.NopCloser(endless{})
		a, err := answerReader{max: 1 << 20}.read(res)
		if a.doc != nil || (status == 201) != errors.Is(err, errAnswerTooLarge) {
			t.Errorf("%d: %v, %d bytes kept", status, err, len(a.doc))
		}
	}
}

// What breaks off or makes no sense is no folder, and the error has nothing of
// it in it.
func TestAnswerThatIsNoFolder(t *testing.T) {
	const canary = "Z2VoZWlt"
	cut := `{"folder_id": "` + canary
	for name, body := range map[string]io.Reader{
		"cut":           strings.NewReader(cut),
		"not JSON":      strings.NewReader("<html>" + canary),
		"connection":    io.MultiReader(strings.NewReader(cut), iotest.ErrReader(io.ErrUnexpectedEOF)),
		"quoting error": io.MultiReader(strings.NewReader(cut), iotest.ErrReader(errors.New("malformed chunk "+canary))),
	} {
		t.Run(name, func(t *testing.T) {
			res := response(201, "")
			res.Body = io.NopCloser(body)
			a, err := answerReader{max: 1 << 20, collect: true}.read(res)
			if err == nil || a.doc != nil || a.shots != nil {
				t.Fatalf("err = %v, %s", err, a.doc)
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error quotes the answer: %v", err)
			}
		})
	}
}

func TestEncodedAnswers(t *testing.T) {
	for _, test := range []struct {
		codings []string
		encoded bool
	}{
		{nil, false},
		{[]string{"identity"}, false},
		{[]string{" Identity "}, false},
		{[]string{"gzip"}, true},
		{[]string{"identity", "br"}, true},
		{[]string{"identity, gzip"}, true},
	} {
		res := response(201, success())
		res.Header["Content-Encoding"] = test.codings
		_, err := answerReader{max: 1 << 20}.read(res)
		if errors.Is(err, errEncoded) != test.encoded {
			t.Errorf("%q: %v", test.codings, err)
		}
		res = response(400, `{"error_code": 14}`)
		res.Header["Content-Encoding"] = test.codings
		if a, err := (answerReader{max: 1 << 20}).read(res); err != nil || (a.doc == nil) != test.encoded {
			t.Errorf("%q, an error: %v, %s", test.codings, err, a.doc)
		}
	}
}

// Of an answer that is no folder what may be an error object is kept. Too long
// or cut it is none, and that is no fault: its status says enough.
func TestAnswerThatIsAnError(t *testing.T) {
	for _, test := range []struct {
		name string
		body io.Reader
		kept int
	}{
		{"an error object", strings.NewReader(`{"error_code": 14}`), 18},
		{"nothing", strings.NewReader(""), 0},
		{"as long as may be", strings.NewReader(padded(maxErrorBody)), maxErrorBody},
		{"a byte more", strings.NewReader(padded(maxErrorBody + 1)), -1},
		{"cut", io.MultiReader(strings.NewReader("{"), iotest.ErrReader(io.ErrUnexpectedEOF)), -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			res := response(400, "")
			res.Body = io.NopCloser(test.body)
			res.Header.Set("Retry-After", "7")
			a, err := answerReader{max: 10}.read(res)
			if err != nil || a.status != 400 || a.retryAfter != "7" {
				t.Errorf("%v, %+v", err, a)
			}
			if (a.doc == nil) != (test.kept < 0) || test.kept >= 0 && len(a.doc) != test.kept {
				t.Errorf("%d bytes kept, want %d", len(a.doc), test.kept)
			}
			if test.kept >= 0 && a.bytes != int64(test.kept) {
				t.Errorf("%d bytes counted, want %d", a.bytes, test.kept)
			}
		})
	}
}

// Only what is a Retry-After goes on as one, in one form.
func TestCleanRetryAfter(t *testing.T) {
	for _, test := range []struct {
		lines []string
		want  string
	}{
		{nil, ""},
		{[]string{"5"}, "5"},
		{[]string{"0"}, "0"},
		{[]string{"007"}, "7"},
		{[]string{"2147483647"}, "2147483647"},
		{[]string{"2147483648"}, ""},
		{[]string{"-1"}, ""},
		{[]string{"1.5"}, ""},
		{[]string{"5, 6"}, ""},
		{[]string{"5", "5"}, ""},
		{[]string{"soon\r\nX-Oz-Decision: SUCCESS"}, ""},
		{[]string{"Fri, 31 Dec 1999 23:59:59 GMT"}, "Fri, 31 Dec 1999 23:59:59 GMT"},
		{[]string{"Friday, 31-Dec-99 23:59:59 GMT"}, "Fri, 31 Dec 1999 23:59:59 GMT"},
	} {
		if got := cleanRetryAfter(test.lines); got != test.want {
			t.Errorf("%q: %q, want %q", test.lines, got, test.want)
		}
	}
}

// Small answers are read whole or not at all.
func TestReadSmall(t *testing.T) {
	if doc, err := readSmall(response(200, "12345"), 5); err != nil || string(doc) != "12345" {
		t.Errorf("at the limit: %q, %v", doc, err)
	}
	if doc, err := readSmall(response(200, "123456"), 5); !errors.Is(err, errAnswerTooLong) || doc != nil {
		t.Errorf("over the limit: %q, %v", doc, err)
	}
}

func TestOnlyTwoStatusesAreFolders(t *testing.T) {
	for status := 100; status < 600; status++ {
		if want := status == http.StatusOK || status == http.StatusCreated; isFolder(status) != want {
			t.Errorf("%d: %v", status, !want)
		}
	}
}
