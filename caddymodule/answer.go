package caddymodule

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

const (
	// maxFolder bounds a pruned answer. The largest seen is a few KB.
	maxFolder = 1 << 20
	// maxErrorBody bounds what is read of an answer that is no folder.
	maxErrorBody = 64 << 10
)

var (
	errEncoded        = errors.New("oz encoded its answer although identity was asked for")
	errAnswerTooLarge = errors.New("answer larger than max_answer")
)

// answer is what Oz sent back.
type answer struct {
	status     int    // HTTP status, 0 without an answer
	doc        []byte // the pruned folder, or what may be an error object
	shots      []oz.BestShot
	bytes      int64 // as received
	cut        int64
	retryAfter string
}

// isFolder reports whether an answer with this status has to be a folder.
func isFolder(status int) bool { return status == http.StatusOK || status == http.StatusCreated }

// answerReader reads answers to capsules, and to images to match.
type answerReader struct {
	max     int64 // bytes as received
	keep    bool  // best shots stay in the folder
	collect bool  // best shots are decoded
}

// read reads an answer whole. Its errors name no content.
func (ar answerReader) read(res *http.Response) (answer, error) {
	a := answer{status: res.StatusCode}
	if !isFolder(res.StatusCode) {
		a.retryAfter = cleanRetryAfter(res.Header["Retry-After"])
		a.readError(res)
		return a, nil
	}
	return a, ar.readFolder(res, &a)
}

// readFolder reads a folder as it flows and cuts the best shot out of it.
func (ar answerReader) readFolder(res *http.Response, a *answer) error {
	if encoded(res) {
		return errEncoded
	}
	limit := int64(maxFolder)
	if ar.keep {
		limit = ar.max
	}
	pruner := oz.NewPruner(limit, ar.keep)
	if ar.collect {
		pruner.Collect(ar.max)
	}
	err := a.flow(pruner, res.Body, ar.max)
	if err == nil {
		err = pruner.Close()
	}
	a.cut = pruner.CutBytes()
	if err != nil {
		return err
	}
	a.doc, a.shots = pruner.Bytes(), pruner.BestShots()
	return nil
}

// flow moves the answer through the pruner, and stops at max.
func (a *answer) flow(pruner io.Writer, body io.Reader, limit int64) error {
	buf := answerBuffers.Get().(*[]byte)
	defer answerBuffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		a.bytes += int64(n)
		if a.bytes > limit {
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
// error object. One that is too long or breaks off is none.
func (a *answer) readError(res *http.Response) {
	doc, err := readSmall(res, maxErrorBody)
	a.bytes = int64(len(doc))
	if err == nil {
		a.doc = doc
	}
}

var errAnswerTooLong = errors.New("the answer is too long")

// readSmall reads an answer of at most limit bytes, whole.
func readSmall(res *http.Response, limit int64) ([]byte, error) {
	if encoded(res) {
		return nil, errEncoded
	}
	doc, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("answer cut off: %w", plain(err))
	}
	if int64(len(doc)) > limit {
		return nil, errAnswerTooLong
	}
	return doc, nil
}

func encoded(res *http.Response) bool {
	for _, coding := range res.Header["Content-Encoding"] {
		if !strings.EqualFold(strings.TrimSpace(coding), "identity") {
			return true
		}
	}
	return false
}

// cleanRetryAfter passes on a Retry-After only if it is one (RFC 9110 10.2.3).
func cleanRetryAfter(lines []string) string {
	if len(lines) != 1 {
		return ""
	}
	if seconds, err := strconv.ParseUint(lines[0], 10, 31); err == nil {
		return strconv.FormatUint(seconds, 10)
	}
	if date, err := http.ParseTime(lines[0]); err == nil {
		return date.UTC().Format(http.TimeFormat)
	}
	return ""
}
