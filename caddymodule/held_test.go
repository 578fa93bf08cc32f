package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// roomy is a gate with much memory.
func roomy(total int64) *gate {
	g := new(gate)
	g.memory.set(total)
	return g
}

func (g *gate) wantFree(t *testing.T) {
	t.Helper()
	if used := g.memory.inUse(); used != 0 || len(g.memory.active) != 0 || len(g.memory.queue) != 0 {
		t.Errorf("%d bytes are still in use, %d uploads under way, %d wait", used, len(g.memory.active), len(g.memory.queue))
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	_, _ = src.Read(b)
	return b
}

// What was received is what is sent, byte for byte, wherever it ends between
// two chunks, however it comes in and however it is read.
func TestHeldCapsuleIsSentAsItCame(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize, 3*chunkSize + 7} {
		for _, declared := range []bool{true, false} {
			if size == 0 && declared {
				continue // the door takes no empty capsule
			}
			for name, reading := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "in halves": iotest.HalfReader, "end with the data": iotest.DataErrReader,
			} {
				t.Run(fmt.Sprintf("%d, declared %v, %s", size, declared, name), func(t *testing.T) {
					want, length := noise(size), int64(-1)
					if declared {
						length = int64(size)
					}
					g := roomy(1 << 20)
					held, err := g.receive(testCapsule(reading(bytes.NewReader(want)), length, 1<<20), time.Minute, time.Minute)
					if err != nil {
						t.Fatal(err)
					}
					if held.size != int64(size) || held.state() != (uploadState{received: true}) {
						t.Errorf("size %d, %+v", held.size, held.state())
					}
					dones := 0
					held.whenDone(func() { dones++ })
					got, err := io.ReadAll(iotest.HalfReader(held))
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d of %d bytes, or others (%v)", len(got), size, err)
					}
					if n, err := held.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("past the end: %d, %v", n, err)
					}
					if s := held.state(); dones != 1 || !s.done || s.read != int64(size) {
						t.Errorf("told %d times that it is done, %+v", dones, s)
					}
					g.wantFree(t)
				})
			}
		}
	}
}

// It is done with its last byte and not with the read behind it, which may
// never come.
func TestHeldCapsuleIsDoneWithItsLastByte(t *testing.T) {
	for _, size := range []int{10, chunkSize, 2 * chunkSize} {
		for _, length := range []int64{int64(size), -1} {
			held, err := roomy(1<<20).receive(testCapsule(bytes.NewReader(make([]byte, size)), length, 1<<20), time.Minute, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			done := false
			held.whenDone(func() { done = true })
			if n, err := io.ReadFull(held, make([]byte, size-1)); n != size-1 || err != nil || done {
				t.Errorf("after %d of %d: %v, done %v", n, size, err, done)
			}
			if n, _ := held.Read(make([]byte, 1)); n != 1 || !done || !held.state().done {
				t.Errorf("length %d: after the last of %d: %d, done %v", length, size, n, done)
			}
		}
	}
}

// Memory is given back as the capsule is sent: it is never sent twice.
func TestHeldCapsuleIsFreedWhileItIsSent(t *testing.T) {
	g := roomy(1 << 20)
	held, err := g.receive(testCapsule(bytes.NewReader(make([]byte, 4*chunkSize)), 4*chunkSize, 1<<20), time.Minute, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for chunk := int64(4); chunk > 0; chunk-- {
		if used := g.memory.inUse(); used != chunk*chunkSize {
			t.Errorf("%d chunks are left and %d bytes in use", chunk, used)
		}
		if _, err := io.ReadFull(held, make([]byte, chunkSize)); err != nil {
			t.Fatal(err)
		}
	}
	g.wantFree(t)
}

// Detached in the middle it gives back all that is left, once, and the
// transport gets nothing more.
func TestHeldCapsuleDetached(t *testing.T) {
	for name, detach := range map[string]func(*heldCapsule){"detach": (*heldCapsule).detach, "disown": (*heldCapsule).disown} {
		g := roomy(1 << 20)
		held, err := g.receive(testCapsule(bytes.NewReader(make([]byte, 4*chunkSize)), 4*chunkSize, 1<<20), time.Minute, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(held, make([]byte, chunkSize+1)); err != nil {
			t.Fatal(err)
		}
		detach(held)
		g.wantFree(t)
		if n, err := held.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errDetached) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		if s := held.state(); s.done || s.read != chunkSize+1 || !s.received {
			t.Errorf("%s: %+v", name, s)
		}
		held.detach()
		if err := held.Close(); err != nil {
			t.Error(err)
		}
		g.wantFree(t)
	}
}

// A capsule of unknown length holds what it has and not what it could have had.
func TestHeldCapsuleGivesBackWhatItDidNotNeed(t *testing.T) {
	g := roomy(64 << 20)
	held, err := g.receive(testCapsule(io.MultiReader(bytes.NewReader(make([]byte, chunkSize+1)), strings.NewReader("")), -1, 32<<20), time.Minute, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if used := g.memory.inUse(); used != 2*chunkSize {
		t.Errorf("%d bytes are in use", used)
	}
	held.detach()
	g.wantFree(t)
}

// An upload that fails holds nothing, and is the client's doing or not.
func TestHeldCapsuleThatFails(t *testing.T) {
	left, leave := context.WithCancel(t.Context())
	leave()
	broken := errors.New("malformed chunk")
	for _, test := range []struct {
		name    string
		capsule *capsule
		want    error
	}{
		{"too large", testCapsule(bytes.NewReader(make([]byte, 2*chunkSize)), -1, chunkSize+1), errTooLarge},
		{"too short", testCapsule(bytes.NewReader(make([]byte, chunkSize)), chunkSize+1, 1<<20), errShort},
		{"broken off", testCapsule(io.MultiReader(bytes.NewReader(make([]byte, chunkSize)), iotest.ErrReader(io.ErrUnexpectedEOF)), -1, 1<<20), errClientGone},
		{"framed wrongly", testCapsule(iotest.ErrReader(broken), -1, 1<<20), broken},
		{"left already", func() *capsule {
			c := testCapsule(bytes.NewReader(make([]byte, chunkSize)), chunkSize, 1<<20)
			c.ctx = left
			c.body = iotest.ErrReader(context.Canceled)
			return c
		}(), errClientGone},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := roomy(1 << 20)
			held, err := g.receive(test.capsule, time.Minute, time.Minute)
			if held != nil || !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			g.wantFree(t)
		})
	}
}

// received is what the phone uploads, into memory.
func (p *phone) received(g *gate, length int64, wait time.Duration) (*heldCapsule, error) {
	return g.receive(newCapsule(p, p.request(length), 1<<30), uploadTime, wait)
}

// The client has its time for its own upload. What it has to wait for memory
// is not its own, and is bounded by itself.
func TestUploadTimeWithoutTheWait(t *testing.T) {
	for _, test := range []struct {
		name    string
		wait    time.Duration // that it may
		waits   time.Duration // that it does
		uploads time.Duration // for each of two chunks
		want    error
		takes   time.Duration
	}{
		{"in time", time.Minute, 0, 59 * time.Second, nil, 118 * time.Second},
		{"in time after a wait", time.Minute, 30 * time.Second, 59 * time.Second, nil, 148 * time.Second},
		{"too late", time.Minute, 0, 61 * time.Second, errUploadTimeout, 2 * time.Minute},
		{"too late after a wait", time.Minute, 30 * time.Second, 61 * time.Second, errUploadTimeout, 150 * time.Second},
		{"no memory in time", 20 * time.Second, 30 * time.Second, time.Second, errNoMemory, 20 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := roomy(2 * chunkSize)
				other, err := g.receive(testCapsule(bytes.NewReader(make([]byte, 2*chunkSize)), 2*chunkSize, 1<<20), time.Minute, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(test.waits, other.detach)
				synctest.Wait()
				p := newPhone(t)
				start := time.Now()
				p.does(func() {
					time.Sleep(test.waits)
					p.sendEvery(test.uploads, 2, chunkSize)
				})
				held, err := p.received(g, 2*chunkSize, test.wait)
				if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
					t.Errorf("%v, want %v", err, test.want)
				}
				if took := time.Since(start); took != test.takes {
					t.Errorf("after %s, want %s", took, test.takes)
				}
				if held != nil {
					if held.waited != test.waits {
						t.Errorf("waited %s", held.waited)
					}
					held.detach()
				}
				other.detach()
				g.wantFree(t)
			})
		})
	}
}

// A client that hangs up is gone, whether it is being read or waits for memory.
func TestHeldUploadOfAClientThatLeaves(t *testing.T) {
	for _, memory := range []int64{1 << 20, 0} {
		synctest.Test(t, func(t *testing.T) {
			g := roomy(memory)
			p := newPhone(t)
			start := time.Now()
			p.does(func() {
				time.Sleep(time.Second)
				p.hangUp()
			})
			held, err := p.received(g, chunkSize, time.Minute)
			if held != nil || !errors.Is(err, errClientGone) || time.Since(start) != time.Second {
				t.Errorf("%d: %v after %s", memory, err, time.Since(start))
			}
			g.wantFree(t)
		})
	}
}

// An upload that has stalled while others wait for its memory is ended, and
// told so.
func TestHeldUploadThatHasToGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := roomy(4 * chunkSize)
		slow := newPhone(t)
		slow.does(func() { slow.send(2 * chunkSize) })
		ended := make(chan error, 1)
		slow.does(func() {
			_, err := slow.received(g, 4*chunkSize, time.Hour)
			ended <- err
		})
		time.Sleep(110 * time.Second) // it is late by now
		held, err := g.receive(testCapsule(bytes.NewReader(make([]byte, 4*chunkSize)), 4*chunkSize, 1<<20), time.Minute, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, errStalled) {
			t.Errorf("the slow one: %v", err)
		}
		held.detach()
		g.wantFree(t)
	})
}
