package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// upload is a capsule on its way, at a pace the test sets.
type upload struct {
	pipe  *io.PipeWriter
	reply chan reply
	fail  chan error
}

func begin(t *testing.T, url string) *upload {
	t.Helper()
	r, w := io.Pipe()
	u := &upload{w, make(chan reply, 1), make(chan error, 1)}
	var running sync.WaitGroup
	running.Go(func() {
		reply, err := try(t, url, r)
		u.reply <- reply
		u.fail <- err
	})
	t.Cleanup(func() {
		w.CloseWithError(errors.New("the test is over"))
		running.Wait()
	})
	return u
}

func (u *upload) end(t *testing.T, rest []byte) reply {
	t.Helper()
	u.pipe.Write(rest)
	u.pipe.Close()
	r := <-u.reply
	if err := <-u.fail; err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParallelLimitQueuesInOrder(t *testing.T) {
	s, url := start(t, Options{Parallel: 2})
	a, b := begin(t, url), begin(t, url)
	await(t, s, "two places taken", func(st Stats) bool { return st.Busy == 2 })
	c := begin(t, url)
	await(t, s, "the third to wait", func(st Stats) bool { return st.Waiting == 1 })
	d := begin(t, url)
	await(t, s, "the fourth to wait", func(st Stats) bool { return st.Waiting == 2 })

	a.end(t, s.Capsule(CapsuleSpec{})).wantSuccess(t)
	await(t, s, "the third's turn", func(st Stats) bool { return st.Waiting == 1 && st.Busy == 2 })
	c.end(t, s.Capsule(CapsuleSpec{})).wantSuccess(t) // would hang if the fourth had been let in first
	b.end(t, s.Capsule(CapsuleSpec{})).wantSuccess(t)
	d.end(t, s.Capsule(CapsuleSpec{})).wantSuccess(t)
	await(t, s, "an empty house", func(st Stats) bool { return st.Busy == 0 && st.Open == 0 && st.Finished == 4 })
	if st := s.Stats(); st.PeakBusy != 2 || st.PeakOpen != 4 {
		t.Errorf("%+v", st)
	}
}

func TestParallelLimitRefuses(t *testing.T) {
	s, url := start(t, Options{Parallel: 1, Overflow: OverflowRefuse})
	a := begin(t, url)
	await(t, s, "a place taken", func(st Stats) bool { return st.Busy == 1 })
	r := post(t, url, s.Capsule(CapsuleSpec{PayloadSize: 1000})) // a large one might be cut off in the middle
	r.wantError(t, http.StatusServiceUnavailable, 11)
	if r.header.Get("Retry-After") != "1" || s.Stats().Refused != 1 {
		t.Errorf("Retry-After %q, %+v", r.header.Get("Retry-After"), s.Stats())
	}
	if r := get(t, "GET", url+TokenPath); r.status != 200 {
		t.Errorf("tokens need no place: %d", r.status)
	}
	a.end(t, s.Capsule(CapsuleSpec{})).wantSuccess(t)
	post(t, url, s.Capsule(CapsuleSpec{})).wantSuccess(t)
}

func TestSlotAfterUpload(t *testing.T) {
	s, url := start(t, Options{Parallel: 1, SlotAfterUpload: true})
	slow := begin(t, url)
	await(t, s, "the slow one", func(st Stats) bool { return st.Open == 1 })
	post(t, url, s.Capsule(CapsuleSpec{})).wantSuccess(t) // overtakes
	slow.end(t, s.Capsule(CapsuleSpec{})).wantSuccess(t)
}

func TestAClientThatLeavesGivesItsPlaceBack(t *testing.T) {
	s, url := start(t, Options{Parallel: 1})
	gone := begin(t, url)
	gone.pipe.Write(s.Capsule(CapsuleSpec{})[:100])
	await(t, s, "a part of it", func(st Stats) bool { return st.Bytes == 100 })
	gone.pipe.CloseWithError(errors.New("gone"))
	await(t, s, "the end of it", func(st Stats) bool { return st.Finished == 1 && st.Busy == 0 })
	rec := s.Received()[0]
	if rec.Complete || rec.Status != 0 || rec.Size != 100 || !rec.Finished {
		t.Errorf("%+v", rec)
	}
	post(t, url, s.Capsule(CapsuleSpec{})).wantSuccess(t)
}

func TestSlotsWhenTheWaitIsGivenUp(t *testing.T) {
	q := &slots{changed: func(int, int) {}}
	if !q.acquire(t.Context(), 1, true, nil) {
		t.Fatal("the first place is free")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if q.acquire(ctx, 1, true, nil) || len(q.queue) != 0 {
		t.Error("who has left still waits")
	}
	q.release()
	if q.busy != 0 {
		t.Errorf("%d places taken", q.busy)
	}
}

func TestReceipts(t *testing.T) {
	s, url := start(t, Options{})
	c := s.Capsule(CapsuleSpec{})
	post(t, url, c)
	if _, err := try(t, url, chunked([]byte("noise"))); err != nil {
		t.Fatal(err)
	}
	get(t, "GET", url+FoldersPath)
	get(t, "GET", url+TokenPath, "X-Mark", "mine")
	awaitEnd(t, s)

	got := s.Received()
	if len(got) != 2 {
		t.Fatalf("%d receipts", len(got))
	}
	first, second := got[0], got[1]
	if first.Digest != sha256hex(c) || first.Size != int64(len(c)) || first.ContentLength != first.Size || !first.Complete || first.Status != 201 || first.Code != 0 {
		t.Errorf("%+v", first)
	}
	if first.Path != FoldersPath || first.Proto != "HTTP/1.1" || first.Host != strings.TrimPrefix(url, "http://") || first.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("%+v", first)
	}
	if second.Digest != sha256hex([]byte("noise")) || second.ContentLength != -1 || second.Status != 400 || second.Code != 14 {
		t.Errorf("%+v", second)
	}
	all := s.Requests()
	if len(all) != 4 || all[3].Header.Get("X-Mark") != "mine" || all[3].Method != "GET" {
		t.Errorf("%+v", all)
	}
	s.Forget()
	if len(s.Requests()) != 0 || s.Stats() != (Stats{}) {
		t.Errorf("still remembered: %+v", s.Stats())
	}
}

// An answer is read before its request has ended: whoever has it finds all that is to be known about the request, or can forget it.
func TestReceiptOfAnAnswer(t *testing.T) {
	s, url := start(t, Options{Fault: MustFault("drip:1h,bytes=1")})
	c := s.Capsule(CapsuleSpec{})
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", url+FoldersPath, bytes.NewReader(c))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if rec := s.Received()[0]; rec.Status != 201 || rec.Digest != sha256hex(c) || !rec.Complete || rec.Finished {
		t.Errorf("%+v", rec)
	}
	s.Forget()
	if st := s.Stats(); len(s.Requests()) != 0 || st.Received != 0 || st.Open != 1 {
		t.Errorf("still remembered: %+v", st)
	}
	leave()
	await(t, s, "the end", func(st Stats) bool { return st.Open == 0 })
	if st := s.Stats(); st.Received != 0 || st.Finished != 0 {
		t.Errorf("counted: %+v", st)
	}
}

func TestReceiptOfATrailer(t *testing.T) {
	s, url := start(t, Options{})
	req, err := http.NewRequestWithContext(t.Context(), "POST", url+FoldersPath, chunked(s.Capsule(CapsuleSpec{})))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-Late": {"yes"}}
	if _, err := do(req); err != nil {
		t.Fatal(err)
	}
	await(t, s, "it", func(st Stats) bool { return st.Finished == 1 })
	if got := s.Received()[0].Trailer.Get("X-Late"); got != "yes" {
		t.Errorf("trailer %q", got)
	}
}

func TestOldReceiptsAreForgotten(t *testing.T) {
	s, url := start(t, Options{KeepReceipts: 3})
	for _, path := range []string{"/1", "/2", "/3", "/4", "/5"} {
		get(t, "GET", url+path)
	}
	var paths []string
	for _, rec := range s.Requests() {
		paths = append(paths, rec.Path)
	}
	if got := strings.Join(paths, " "); got != "/3 /4 /5" {
		t.Errorf("kept %s", got)
	}
}

func TestAwaitGivesUp(t *testing.T) {
	s, _ := start(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Await(ctx, func(Stats) bool { return false }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// Everything at once, for the race detector.
func TestConcurrentUse(t *testing.T) {
	s, url := start(t, Options{Parallel: 3})
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				try(t, url, bytes.NewReader(s.Capsule(CapsuleSpec{PayloadSize: 1000}))) // fails where it meets a fault
				s.Received()
			}
		})
	}
	all.Go(func() {
		for _, kind := range []string{"cut", "reset", "", "gzip"} {
			f, err := ParseFault(kind)
			if err != nil {
				t.Error(err)
			}
			s.SetFault(f)
			o := s.Options()
			o.Parallel++
			s.SetOptions(o)
		}
	})
	all.Wait()
	await(t, s, "the end", func(st Stats) bool { return st.Finished == 40 && st.Busy == 0 })
}
