package upload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/iotest"
	"time"
)

// isReceived reports whether s says that all of it has come.
func (s *Stream) isReceived() bool {
	select {
	case <-s.Received():
		return true
	default:
		return false
	}
}

// The digest gets each byte once, buffered or streamed, however they come in
// and are read, and it is complete when the body is received, before anybody
// reads its end.
func TestDigest(t *testing.T) {
	for mode, capacity := range map[string]Capacity{"streamed": {}, "buffered": {Memory: 1 << 20, Wait: time.Minute}} {
		for _, size := range []int{0, 1, firstRead, chunkSize, chunkSize + 1, 3*chunkSize + 7} {
			for _, length := range []int64{int64(size), -1} {
				for name, reading := range map[string]func(io.Reader) io.Reader{
					"whole": func(r io.Reader) io.Reader { return r }, "in halves": iotest.HalfReader, "end with the data": iotest.DataErrReader,
				} {
					t.Run(fmt.Sprintf("%s, %d of %d, %s", mode, size, length, name), func(t *testing.T) {
						testDigest(t, open(t, capacity), reading, size, length)
					})
				}
			}
		}
	}
}

func testDigest(t *testing.T, g *Gate, reading func(io.Reader) io.Reader, size int, length int64) {
	body, digest := noise(size), sha256.New()
	r := httptest.NewRequest(http.MethodPost, "/verify", reading(bytes.NewReader(body)))
	r.ContentLength = length
	s := NewStream(httptest.NewRecorder(), r, Limits{MaxBytes: 1 << 20, Digest: digest})
	a, err := g.Acquire(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if g.capacity.Memory > 0 && !s.isReceived() {
		t.Error("buffered, and not received")
	}
	if _, err := io.ReadAll(iotest.HalfReader(a.Body)); err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(body)
	if !bytes.Equal(digest.Sum(nil), want[:]) || !s.isReceived() {
		t.Error("another digest, or not received")
	}
	a.Release(true)
}

// A body that does not come whole is never received: it is too short, too long,
// or cut.
func TestNeverReceived(t *testing.T) {
	for name, s := range map[string]*Stream{
		"short":                   testStream(bytes.NewReader(noise(9)), 10, 1<<20),
		"cut":                     testStream(io.MultiReader(bytes.NewReader(noise(9)), iotest.ErrReader(io.ErrUnexpectedEOF)), -1, 1<<20),
		"too long":                testStream(bytes.NewReader(noise(11)), -1, 10),
		"too long by its length":  testStream(bytes.NewReader(noise(11)), 11, 10),
		"stopped before its last": testStream(bytes.NewReader(noise(2*chunkSize)), 2*chunkSize, 1<<20),
	} {
		if name == "stopped before its last" {
			_, _ = io.CopyN(io.Discard, s, chunkSize)
			s.Stop()
		}
		_, _ = io.ReadAll(s)
		if s.isReceived() {
			t.Errorf("%s: received", name)
		}
		_, _ = io.ReadAll(s.Rest()) // what is left is for nobody
	}
}

// A buffered body is asked about when it is whole, before it waits for a slot,
// and takes none if it is refused. A streamed one isn't.
func TestAdmit(t *testing.T) {
	refusal := errors.New("no")
	for _, test := range []struct {
		name     string
		capacity Capacity
		err      error
		asked    int
	}{
		{"buffered", Capacity{Slots: 1, Memory: 1 << 20, Wait: time.Minute}, nil, 1},
		{"refused", Capacity{Slots: 1, Memory: 1 << 20, Wait: time.Minute}, refusal, 1},
		{"streamed", Capacity{Slots: 1, Wait: time.Minute}, refusal, 0},
		{"without limits", Capacity{}, refusal, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			g, asked := open(t, test.capacity), 0
			r := httptest.NewRequest(http.MethodPost, "/verify", bytes.NewReader(noise(3*chunkSize)))
			var s *Stream
			s = NewStream(httptest.NewRecorder(), r, Limits{Admit: func(context.Context) error {
				asked++
				if busy, _ := g.slots.load(); busy != 0 || !s.isReceived() {
					t.Error("asked with a slot, or before it is whole")
				}
				return test.err
			}})
			a, err := g.Acquire(t.Context(), s)
			if asked != test.asked || (a == nil) != (test.asked > 0 && test.err != nil) || a == nil && !errors.Is(err, refusal) {
				t.Errorf("asked %d times, %v, %v", asked, a, err)
			}
			if a != nil {
				_, _ = io.ReadAll(a.Body)
				a.Release(true)
			}
			g.wantEmpty(t)
		})
	}
}
