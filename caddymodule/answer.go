package caddymodule

import (
	"context"
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
	errEarlyFolder    = errors.New("oz answered with a folder before it had the whole capsule")
	errSwitching      = errors.New("oz answered 101 Switching Protocols")
)

// receive reads Oz's answer and judges it. An error is this upstream's fault.
func (x *exchange) receive(res *http.Response) error {
	x.out.status = res.StatusCode
	if res.StatusCode == http.StatusSwitchingProtocols {
		// reverse_proxy would hand the client's connection over.
		return x.settle(oz.UnexpectedStatus, errSwitching)
	}
	isFolder := res.StatusCode == http.StatusOK || res.StatusCode == http.StatusCreated
	if isFolder && !x.capsule.state().done {
		// What it says cannot be about this capsule.
		return x.settle(oz.UnexpectedStatus, errEarlyFolder)
	}
	if !isFolder {
		x.out.ozRetryAfter = cleanRetryAfter(res.Header["Retry-After"])
		x.conclude(res.StatusCode, x.readError(res))
		return nil
	}
	doc, err := x.readFolder(res)
	if err != nil {
		return x.unreadable(err)
	}
	if v := x.conclude(res.StatusCode, doc); v.Reason == oz.MalformedAnswer {
		return x.settle(oz.MalformedAnswer, errors.New("not a strict JSON folder"))
	}
	return nil
}

func (x *exchange) conclude(status int, doc []byte) oz.Verdict {
	v := x.h.policy.Judge(status, doc, x.requirements)
	x.out.verdict = v
	if v.Folder != nil {
		x.out.folder = doc
	}
	return v
}

// unreadable is for a folder that did not arrive whole and well-formed.
func (x *exchange) unreadable(err error) error {
	if fault := x.clientFault(); fault != nil { // client_gone cancel
		x.out.clientFault = fault
		return canceled(fault)
	}
	if errors.Is(context.Cause(x.ctx), errOzTimeout) {
		return x.settle(oz.Timeout, errOzTimeout)
	}
	return x.settle(oz.MalformedAnswer, err)
}

// readFolder reads a folder as it flows and cuts the best shot out of it.
// Its errors name no content.
func (x *exchange) readFolder(res *http.Response) ([]byte, error) {
	if encoded(res) {
		return nil, errEncoded
	}
	limit := int64(maxFolder)
	if x.h.BestShot == bestShotKeep {
		limit = x.h.MaxAnswer
	}
	pruner := oz.NewPruner(limit, x.h.BestShot == bestShotKeep)
	err := x.flow(pruner, res.Body)
	x.out.cutBytes = pruner.CutBytes()
	if err != nil {
		return nil, err
	}
	if err := pruner.Close(); err != nil {
		return nil, err
	}
	return pruner.Bytes(), nil
}

// flow moves the answer through the pruner, and stops at max_answer.
func (x *exchange) flow(pruner io.Writer, body io.Reader) error {
	buf := answerBuffers.Get().(*[]byte)
	defer answerBuffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		x.out.answerBytes += int64(n)
		if x.out.answerBytes > x.h.MaxAnswer {
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
func (x *exchange) readError(res *http.Response) []byte {
	if encoded(res) {
		return nil
	}
	doc, err := io.ReadAll(io.LimitReader(res.Body, maxErrorBody+1))
	x.out.answerBytes = int64(len(doc))
	if err != nil || len(doc) > maxErrorBody {
		return nil
	}
	return doc
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
