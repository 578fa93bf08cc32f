package ozclient

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

const (
	// maxFolder bounds a pruned answer. The largest seen is a few KB.
	maxFolder = 1 << 20
	// maxSmall bounds answers that hold a token, and what is read of one that
	// is not a folder.
	maxSmall = 64 << 10
)

var (
	errEncoded        = errors.New("oz encoded its answer although identity was asked for")
	errAnswerTooLarge = errors.New("answer larger than max_answer")
)

// Answer is what Oz said.
type Answer struct {
	Verdict   oz.Verdict // with an error: the one of its reason; zero if the client is at fault
	Folder    []byte     // pruned; nil without one
	BestShots []oz.BestShot
	Report
}

// Report is what there is to tell of a call.
type Report struct {
	Upstream   string // the last one that was tried
	Tries      int
	Status     int    // of Oz's answer; 0 without one
	Bytes      int64  // of the answer, as received
	Cut        int64  // of those, how many were pruned
	RetryAfter string // that came with an answer that isn't a folder
	Time       time.Duration
	Upload     time.Duration
	NoUpstream bool // no upstream is up
}

// ReadAnswer reads and judges an answer to a capsule.
//
// Only the image at the guide's path (analyses, results_media, output_images,
// image_b64) is pruned. One at another path stays in the folder: up to 1 MiB in
// all it reaches the app, a larger folder is refused as malformed.
func ReadAnswer(res *http.Response, opts Options, policy oz.Policy, requirements []oz.Requirement) (Answer, error) {
	k := &call{reader: opts.folderReader(opts.CollectBestShots), report: Report{Status: res.StatusCode}}
	if err := k.read(res); err != nil {
		return k.failed(blameAnswer(err))
	}
	return k.judged(policy.Judge(k.report.Status, k.doc, requirements))
}

// judged returns the answer of a call that took one in.
func (k *call) judged(v oz.Verdict) (Answer, error) {
	if v.Reason == oz.MalformedAnswer {
		return k.failed(malformed(v.Err))
	}
	a := Answer{Verdict: v, Report: k.report}
	if v.Folder != nil {
		a.Folder, a.BestShots = k.doc, k.shots
	}
	return a, nil
}

// malformed is for what the strict reader finds in a whole, well-framed answer.
// Metadata and the like come from the device, so that it counts against nobody.
func malformed(err error) *Error { return &Error{oz.MalformedAnswer, FaultNobody, err} }

// failed returns the answer of a call that failed.
func (k *call) failed(e *Error) (Answer, error) {
	a := Answer{Report: k.report}
	if e.Reason != "" {
		a.Verdict = oz.ReasonVerdict(e.Reason)
	}
	return a, e
}

// isFolder reports whether an answer with this status must be a folder, or a token.
func isFolder(status int) bool { return status == http.StatusOK || status == http.StatusCreated }

// answerReader reads answers.
type answerReader struct {
	max     int64 // bytes as received
	limit   int64 // bytes after pruning
	keep    bool  // best shots stay in the folder
	collect bool  // best shots are decoded
}

// smallReader reads answers that hold a token.
var smallReader = answerReader{max: maxSmall, limit: maxSmall}

func (o Options) folderReader(collect bool) answerReader {
	r := answerReader{max: o.MaxAnswer, limit: maxFolder, keep: o.KeepBestShot, collect: collect}
	if r.keep {
		r.limit = r.max
	}
	return r
}

// read takes in the answer whole. Its errors name no content.
func (k *call) read(res *http.Response) error {
	if isFolder(res.StatusCode) {
		return k.readFolder(res)
	}
	k.report.RetryAfter = cleanRetryAfter(res.Header["Retry-After"], time.Now())
	k.readError(res)
	return nil
}

// readFolder reads a folder as it flows and cuts the best shot out of it.
func (k *call) readFolder(res *http.Response) error {
	if encoded(res) {
		return errEncoded
	}
	pruner := oz.NewPruner(k.reader.limit, k.reader.keep)
	if k.reader.collect {
		pruner.Collect(k.reader.max)
	}
	err := k.flow(pruner, res.Body)
	if err == nil {
		err = pruner.Close()
	}
	k.report.Cut = pruner.CutBytes()
	if err != nil {
		return err
	}
	k.doc, k.shots = pruner.Bytes(), pruner.BestShots()
	return nil
}

// flow moves the answer through the pruner, and stops at max.
func (k *call) flow(pruner io.Writer, body io.Reader) error {
	buf := answerBuffers.Get().(*[]byte)
	defer answerBuffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		k.report.Bytes += int64(n)
		if k.report.Bytes > k.reader.max {
			return errAnswerTooLarge
		}
		if _, werr := pruner.Write((*buf)[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answer cut off: %w", plain(err))
		}
	}
}

var answerBuffers = sync.Pool{New: func() any {
	b := make([]byte, 64<<10)
	return &b
}}

// readError reads an answer that is not a folder, as far as it may be Oz's
// error object. One that is too long, encoded or cut is none: its status says
// enough.
func (k *call) readError(res *http.Response) {
	if encoded(res) {
		return
	}
	doc, err := io.ReadAll(io.LimitReader(res.Body, maxSmall+1))
	k.report.Bytes = int64(len(doc))
	if err == nil && len(doc) <= maxSmall {
		k.doc = doc
	}
}

func encoded(res *http.Response) bool {
	for _, coding := range res.Header["Content-Encoding"] {
		if !strings.EqualFold(strings.TrimSpace(coding), "identity") {
			return true
		}
	}
	return false
}

// cleanRetryAfter passes on a Retry-After only if it is one (RFC 9110 10.2.3),
// in seconds: few clients read a date, and clocks of phones are wrong. It says
// one at least, since OkHttp sends a capsule again by itself, at once, after 0.
func cleanRetryAfter(lines []string, now time.Time) string {
	if len(lines) != 1 {
		return ""
	}
	seconds, err := strconv.ParseUint(lines[0], 10, 31)
	if err != nil {
		date, err := http.ParseTime(lines[0])
		if err != nil {
			return ""
		}
		seconds = uint64(max(0, math.Ceil(date.Sub(now).Seconds())))
	}
	return strconv.FormatUint(max(1, seconds), 10)
}

// tokenRefused reports whether an answer says that Oz refused the access token.
// A folder never does: codes in its analyses are about the analyses. A 403
// without Oz's error object is somebody else's: a firewall in between may not
// like a capsule.
func tokenRefused(status int, doc []byte) bool {
	if isFolder(status) {
		return false
	}
	e, ok := oz.ReadError(doc)
	return status == http.StatusUnauthorized || ok && (status == http.StatusForbidden || e.AboutToken())
}

// unusable is for an answer to a call for a token that isn't one. Its status is
// what Oz says, and counts against nobody.
func (k *call) unusable() *Error {
	v := oz.JudgeStatus(k.report.Status, k.doc)
	if v.Decision != oz.Unavailable { // a code about capsules, where there is none
		v.Reason = oz.UnexpectedStatus
	}
	err := fmt.Errorf("oz answered %d", k.report.Status)
	if v.Error != nil {
		err = fmt.Errorf("oz answered %d, error_code %d", k.report.Status, v.Error.Code)
	}
	return &Error{v.Reason, FaultNobody, err}
}
