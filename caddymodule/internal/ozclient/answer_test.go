package ozclient

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

// taken is a call that has read an answer by these options.
func taken(opts Options, res *http.Response) (*call, error) {
	k := &call{reader: opts.folderReader(opts.CollectBestShots)}
	return k, k.read(res)
}

var megabyte = Options{MaxAnswer: 1 << 20}

// A folder comes without its best shot, whole otherwise, and with the counts of
// what came and what was cut.
func TestAnswerIsAFolderWithoutItsImage(t *testing.T) {
	for _, status := range []int{200, 201} {
		doc := success()
		a, err := ReadAnswer(response(status, doc), megabyte, oz.Policy{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.Status != status || a.Bytes != int64(len(doc)) || a.Cut < int64(len(testShot)) || len(a.BestShots) != 0 || a.Verdict.Decision != oz.Success {
			t.Errorf("%d: %+v", status, a)
		}
		if bytes.Contains(a.Folder, []byte(testShot)) || !bytes.Contains(a.Folder, []byte(`"folder_id": "folder-1"`)) {
			t.Errorf("%d: what is left is %s", status, a.Folder)
		}
	}
}

func TestAnswerKeepsOrCollectsImages(t *testing.T) {
	kept, err := ReadAnswer(response(201, success()), Options{MaxAnswer: 1 << 20, KeepBestShot: true}, oz.Policy{}, nil)
	if err != nil || string(kept.Folder) != success() || kept.Cut != 0 {
		t.Errorf("keep: %v, %s", err, kept.Folder)
	}
	collected, err := ReadAnswer(response(201, success()), Options{MaxAnswer: 1 << 20, CollectBestShots: true}, oz.Policy{}, nil)
	if err != nil || len(collected.BestShots) != 1 || !bytes.Equal(collected.BestShots[0].JPEG, testJPEG) {
		t.Errorf("collect: %v, %v", err, collected.BestShots)
	}
	if bytes.Contains(collected.Folder, []byte(testShot)) {
		t.Errorf("a collected image is still in the folder: %s", collected.Folder)
	}
}

// An image at another path than the guide's stays in the folder, up to the limit.
func TestAnswerWithAnImageElsewhere(t *testing.T) {
	for size, ok := range map[int]bool{400 << 10: true, maxFolder: false} {
		doc := `{"resolution_status": "FINISHED", "system_resolution": "DECLINED", "image_b64": "` + strings.Repeat("A", size) + `"}`
		a, err := ReadAnswer(response(201, doc), Options{MaxAnswer: 32 << 20}, oz.Policy{}, nil)
		if ok && (err != nil || string(a.Folder) != doc || a.Verdict.Decision != oz.Declined) || !ok && !errors.Is(err, oz.ErrTooLarge) {
			t.Errorf("%d bytes: %v", size, err)
		}
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
		name string
		opts Options
		size int
		want error
	}{
		{"as long as max_answer", Options{MaxAnswer: 1000}, 1000, nil},
		{"a byte more", Options{MaxAnswer: 1000}, 1001, errAnswerTooLarge},
		{"left over: as much as may be", Options{MaxAnswer: 1 << 30}, maxFolder, nil},
		{"left over: a byte more", Options{MaxAnswer: 1 << 30}, maxFolder + 1, oz.ErrTooLarge},
		{"kept: as long as max_answer", Options{MaxAnswer: 2 << 20, KeepBestShot: true}, 2 << 20, nil},
		{"kept: a byte more", Options{MaxAnswer: 2 << 20, KeepBestShot: true}, 2<<20 + 1, errAnswerTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			k, err := taken(test.opts, response(201, padded(test.size)))
			if !errors.Is(err, test.want) || (k.doc != nil) != (test.want == nil) {
				t.Errorf("err = %v, %d bytes are left", err, len(k.doc))
			}
		})
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
		k, err := taken(megabyte, res)
		if k.doc != nil || (status == 201) != errors.Is(err, errAnswerTooLarge) {
			t.Errorf("%d: %v, %d bytes kept", status, err, len(k.doc))
		}
	}
}

// What breaks off or makes no sense is not a folder, and the error has nothing of
// it in it.
func TestAnswerThatIsNoFolder(t *testing.T) {
	const canary = "Z2VoZWlt"
	cut := `{"folder_id": "` + canary
	for name, body := range map[string]io.Reader{
		"cut":           strings.NewReader(cut),
		"not JSON":      strings.NewReader("<html>" + canary),
		"not strict":    strings.NewReader(cut + `", "` + canary + `": 1, "` + canary + `": 2}`),
		"connection":    io.MultiReader(strings.NewReader(cut), iotest.ErrReader(io.ErrUnexpectedEOF)),
		"quoting error": io.MultiReader(strings.NewReader(cut), iotest.ErrReader(errors.New("malformed chunk "+canary))),
	} {
		t.Run(name, func(t *testing.T) {
			res := response(201, "")
			res.Body = io.NopCloser(body)
			a, err := ReadAnswer(res, Options{MaxAnswer: 1 << 20, CollectBestShots: true}, oz.Policy{}, nil)
			e := asError(t, err)
			if e == nil || e.Reason != oz.MalformedAnswer || a.Folder != nil || a.BestShots != nil || a.Verdict.Reason != oz.MalformedAnswer {
				t.Fatalf("err = %v, %+v", err, a)
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
		if _, err := taken(megabyte, res); errors.Is(err, errEncoded) != test.encoded {
			t.Errorf("%q: %v", test.codings, err)
		}
		res = response(400, `{"error_code": 14}`)
		res.Header["Content-Encoding"] = test.codings
		if k, err := taken(megabyte, res); err != nil || (k.doc == nil) != test.encoded {
			t.Errorf("%q, an error: %v, %s", test.codings, err, k.doc)
		}
	}
}

// An answer that is not a folder is kept if it may be an error object. One that
// is too long or cut is dropped without an error: its status says enough.
func TestAnswerThatIsAnError(t *testing.T) {
	for _, test := range []struct {
		name string
		body io.Reader
		kept int
	}{
		{"an error object", strings.NewReader(`{"error_code": 14}`), 18},
		{"nothing", strings.NewReader(""), 0},
		{"as long as may be", strings.NewReader(padded(maxSmall)), maxSmall},
		{"a byte more", strings.NewReader(padded(maxSmall + 1)), -1},
		{"cut", io.MultiReader(strings.NewReader("{"), iotest.ErrReader(io.ErrUnexpectedEOF)), -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			res := response(400, "")
			res.Body = io.NopCloser(test.body)
			res.Header.Set("Retry-After", "7")
			k, err := taken(Options{MaxAnswer: 10}, res)
			if err != nil || k.report.RetryAfter != "7" {
				t.Errorf("%v, %+v", err, k.report)
			}
			if (k.doc == nil) != (test.kept < 0) || test.kept >= 0 && len(k.doc) != test.kept {
				t.Errorf("%d bytes kept, want %d", len(k.doc), test.kept)
			}
			if test.kept >= 0 && k.report.Bytes != int64(test.kept) {
				t.Errorf("%d bytes counted, want %d", k.report.Bytes, test.kept)
			}
		})
	}
}

// A code in quotes is Oz's word about the capsule as well.
func TestAnswerWithAQuotedCode(t *testing.T) {
	a, err := ReadAnswer(response(400, `{"error_code": "14"}`), megabyte, oz.Policy{}, nil)
	if err != nil || a.Verdict.Decision != oz.Invalid || a.Verdict.Reason != oz.Container || a.Folder != nil {
		t.Errorf("%v, %+v", err, a)
	}
}

// Only what is a Retry-After is passed on as one, in seconds.
func TestCleanRetryAfter(t *testing.T) {
	now := time.Date(1999, time.December, 31, 23, 59, 0, 500, time.UTC)
	for _, test := range []struct {
		lines []string
		want  string
	}{
		{nil, ""},
		{[]string{"5"}, "5"},
		{[]string{"0"}, "1"},
		{[]string{"007"}, "7"},
		{[]string{"2147483647"}, "2147483647"},
		{[]string{"2147483648"}, ""},
		{[]string{"-1"}, ""},
		{[]string{"+1"}, ""},
		{[]string{"1.5"}, ""},
		{[]string{"5, 6"}, ""},
		{[]string{"5", "5"}, ""},
		{[]string{"soon\r\nX-Oz-Decision: SUCCESS"}, ""},
		{[]string{"Fri, 31 Dec 1999 23:59:59 GMT"}, "59"},
		{[]string{"Friday, 31-Dec-99 23:59:59 GMT"}, "59"},
		{[]string{"Fri, 31 Dec 1999 23:59:00 GMT"}, "1"},
		{[]string{"Mon, 31 Dec 1979 23:59:59 GMT"}, "1"},
	} {
		if got := cleanRetryAfter(test.lines, now); got != test.want {
			t.Errorf("%q: %q, want %q", test.lines, got, test.want)
		}
	}
}

func TestOnlyTwoStatusesAreFolders(t *testing.T) {
	for status := 100; status < 600; status++ {
		if want := status == http.StatusOK || status == http.StatusCreated; isFolder(status) != want {
			t.Errorf("%d: %v", status, !want)
		}
	}
}

// Oz refuses a token by status, or by the code of its error. A 403 that is not
// Oz's own says nothing about the token, nor does a folder, whose codes are
// those of its analyses.
func TestTokenRefused(t *testing.T) {
	for _, test := range []struct {
		status int
		doc    string
		want   bool
	}{
		{201, `{"error_code": 7}`, false},
		{201, `{"analyses": [{"error_code": 8}]}`, false},
		{401, "", true},
		{401, "<html>", true},
		{403, "<html>", false},
		{403, `{"error_code": 0}`, true},
		{403, `{"error_code": 9}`, true},
		{400, "", false},
		{503, "", false},
		{400, `{"error_code": 5}`, false},
		{400, `{"error_code": 6}`, true},
		{400, `{"error_code": 7}`, true},
		{400, `{"error_code": 8}`, true},
		{400, `{"error_code": 9}`, true},
		{400, `{"error_code": 10}`, false},
	} {
		if got := tokenRefused(test.status, []byte(test.doc)); got != test.want {
			t.Errorf("%d %s: %v", test.status, test.doc, got)
		}
	}
}

// An answer to a call for a token that is not one says what Oz says, and counts
// against nobody.
func TestUnusable(t *testing.T) {
	for _, test := range []struct {
		status int
		doc    string
		reason oz.Reason
		err    string
	}{
		{401, "", oz.Unauthorized, "oz answered 401"},
		{403, `{"error_code": 9}`, oz.Unauthorized, "oz answered 403, error_code 9"},
		{429, "", oz.Overloaded, "oz answered 429"},
		{503, "<html>", oz.Overloaded, "oz answered 503"},
		{413, "", oz.TooLargeForOz, "oz answered 413"},
		{400, `{"error_code": 14}`, oz.UnexpectedStatus, "oz answered 400, error_code 14"},
		{302, "", oz.UnexpectedStatus, "oz answered 302"},
		{500, "", oz.UnexpectedStatus, "oz answered 500"},
	} {
		k := &call{doc: []byte(test.doc), report: Report{Status: test.status}}
		if e := k.unusable(); e.Reason != test.reason || e.Fault != FaultNobody || e.Err.Error() != test.err {
			t.Errorf("%d: %#v", test.status, e)
		}
	}
}
