package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// roomy opens a gate with this much memory and no other limit.
func roomy(t *testing.T, memory int64) *Gate {
	return open(t, Capacity{Memory: memory, Wait: time.Minute})
}

// buffered receives what s brings.
func (g *Gate) buffered(t *testing.T, s *Stream) *Admission {
	t.Helper()
	a, err := g.Acquire(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What was received is what is sent, byte for byte, wherever it ends between
// two chunks, however it comes in and however it is read.
func TestBufferIsSentAsItCame(t *testing.T) {
	for _, size := range []int{0, 1, firstRead, firstRead + 1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize, 3*chunkSize + 7} {
		for _, declared := range []bool{true, false} {
			for name, reading := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "in halves": iotest.HalfReader, "end with the data": iotest.DataErrReader,
			} {
				t.Run(fmt.Sprintf("%d, declared %v, %s", size, declared, name), func(t *testing.T) {
					want, length := noise(size), int64(-1)
					if declared {
						length = int64(size)
					}
					g := roomy(t, 1<<20)
					s := testStream(reading(bytes.NewReader(want)), length, 1<<20)
					a := g.buffered(t, s)
					b := a.Body
					if st := b.State(); b.Length() != int64(size) || !st.Received || st.Unread || st.Bytes != int64(size) || !st.SentAt.IsZero() || st.Fault != nil {
						t.Errorf("size %d, %+v", b.Length(), st)
					}
					got, err := io.ReadAll(iotest.HalfReader(b))
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d of %d bytes, or others (%v)", len(got), size, err)
					}
					if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("past the end: %d, %v", n, err)
					}
					if b.State().SentAt.IsZero() {
						t.Error("it is not sent")
					}
					if used, _ := g.memory.load(); used != 0 {
						t.Errorf("%d bytes are held when all is sent", used)
					}
					a.Release(true)
					s.End()
					g.wantEmpty(t)
				})
			}
		}
	}
}

// It is sent with its last byte, not with the read after it, which might never
// come.
func TestBufferIsSentWithItsLastByte(t *testing.T) {
	for _, size := range []int{10, chunkSize, 2 * chunkSize} {
		b := roomy(t, 1<<20).buffered(t, sized(size)).Body
		if n, err := io.ReadFull(b, make([]byte, size-1)); n != size-1 || err != nil || !b.State().SentAt.IsZero() {
			t.Errorf("after %d of %d: %v", n, size, err)
		}
		if n, _ := b.Read(make([]byte, 1)); n != 1 || b.State().SentAt.IsZero() {
			t.Errorf("after the last of %d: %d", size, n)
		}
	}
}

// Memory is given back as the capsule is sent: it is never sent twice. How
// long the upstream takes nothing is told.
func TestBufferIsFreedWhileItIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := roomy(t, 1<<20)
		b := g.buffered(t, sized(4*chunkSize)).Body
		time.Sleep(time.Hour)
		if b.State().Untaken != 0 {
			t.Error("it is untaken before anything was taken")
		}
		for chunk := int64(4); chunk > 0; chunk-- {
			if used, _ := g.memory.load(); used != chunk*chunkSize {
				t.Errorf("%d chunks are left and %d bytes in use", chunk, used)
			}
			if _, err := io.ReadFull(b, make([]byte, chunkSize)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if untaken := b.State().Untaken; (untaken == time.Second) != (chunk > 1) {
				t.Errorf("untaken for %s", untaken)
			}
		}
		g.wantEmptyMemory(t)
	})
}

func (g *Gate) wantEmptyMemory(t *testing.T) {
	t.Helper()
	if used, uploads := g.memory.load(); used != 0 || uploads != 0 || g.gauges.Memory.(*gauge).get() != 0 {
		t.Errorf("%d bytes and %d uploads are left; the gauge says %v", used, uploads, g.gauges.Memory.(*gauge).get())
	}
}

// Stopped in the middle it gives back all that is left, once, and the transport
// gets nothing more.
func TestBufferStop(t *testing.T) {
	g := roomy(t, 1<<20)
	a := g.buffered(t, sized(4*chunkSize))
	b := a.Body
	if _, err := io.ReadFull(b, make([]byte, chunkSize+1)); err != nil {
		t.Fatal(err)
	}
	b.Stop()
	g.wantEmptyMemory(t)
	if n, err := b.Read(make([]byte, 1)); n != 0 || err != ErrStopped {
		t.Errorf("%d, %v", n, err)
	}
	if st := b.State(); !st.SentAt.IsZero() || st.Bytes != 4*chunkSize || !st.Received {
		t.Errorf("%+v", st)
	}
	b.Stop()
	a.Release(true)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	g.wantEmpty(t)
}

// A capsule of unknown length holds what it has and not what it could have had.
func TestBufferGivesBackWhatItDidNotNeed(t *testing.T) {
	g := roomy(t, 64<<20)
	a := g.buffered(t, testStream(struct{ io.Reader }{bytes.NewReader(make([]byte, chunkSize+1))}, -1, 32<<20))
	if used, uploads := g.memory.load(); used != 2*chunkSize || uploads != 0 {
		t.Errorf("%d bytes are in use, %d uploads", used, uploads)
	}
	a.Release(true)
	g.wantEmpty(t)
}

// An upload that fails holds nothing.
func TestBufferedUploadThatFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		stream *Stream
		want   error
	}{
		{"too large", testStream(bytes.NewReader(make([]byte, 2*chunkSize)), -1, chunkSize+1), ErrTooLarge},
		{"too short", testStream(bytes.NewReader(make([]byte, chunkSize)), chunkSize+1, 1<<20), ErrShort},
		{"broken off", testStream(io.MultiReader(bytes.NewReader(make([]byte, chunkSize)), iotest.ErrReader(io.ErrUnexpectedEOF)), -1, 1<<20), ErrGone},
		{"framed wrongly", testStream(iotest.ErrReader(errors.New("malformed chunk")), -1, 1<<20), ErrUnreadable},
		{"cancelled", testStream(iotest.ErrReader(context.Canceled), chunkSize, 1<<20), ErrGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := roomy(t, 1<<20)
			if a, err := g.Acquire(t.Context(), test.stream); a != nil || !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			test.stream.End()
			g.wantEmpty(t)
		})
	}
}

// A client that hangs up is gone, whether it is being read or waits for memory.
func TestBufferedUploadOfAClientThatLeaves(t *testing.T) {
	for name, memory := range map[string]int64{"being read": 1 << 20, "waiting for memory": chunkSize - 1} {
		synctest.Test(t, func(t *testing.T) {
			g := roomy(t, memory)
			p := newPhone(t)
			start := time.Now()
			p.does(func() {
				p.send(1)
				time.Sleep(time.Second)
				p.hangUp()
			})
			s := p.stream(chunkSize)
			l := s.Lifetime(false)
			a, err := g.Acquire(l.Context(), s)
			if a != nil || !errors.Is(err, ErrGone) || time.Since(start) != time.Second {
				t.Errorf("%s: %v after %s", name, err, time.Since(start))
			}
			l.End()
			s.End()
			g.wantEmpty(t)
		})
	}
}

// A capsule whose last byte came just as its upload was displaced is complete,
// but its connection can't be used again.
func TestInterruptedAtItsLastByte(t *testing.T) {
	s := sized(10)
	if err := s.peek(); err != nil {
		t.Fatal(err)
	}
	if s.displace(&Refused{Cause: CauseDisplaced}) {
		t.Error("a complete upload was displaced")
	}
	s = testStream(readerFunc(func(p []byte) (int, error) {
		if !s.displace(&Refused{Cause: CauseDisplaced}) {
			t.Error("it is not displaced")
		}
		return 10, nil
	}), 10, 10)
	if _, err := s.Read(make([]byte, 10)); err != nil {
		t.Error(err)
	}
	if st := s.State(); !st.Received || !st.Unread || st.Fault != nil {
		t.Errorf("%+v", st)
	}
}
