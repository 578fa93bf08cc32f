package upload

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// When the context ends if the client leaves, by how far its upload is, and
// whether a leaving client is to end all.
func TestLifetime(t *testing.T) {
	const never = time.Duration(-1)
	for _, test := range []struct {
		name     string
		cancel   bool
		received bool
		before   bool // Grace(5s) is called 2 s before it leaves
		after    bool // Grace(5s) is called 2 s after it has left
		ends     time.Duration
	}{
		{"while it uploads", false, false, false, false, 0},
		{"after its upload", false, true, false, false, never},
		{"after its upload, with cancel", true, true, false, false, 0},
		{"in grace", false, true, true, false, 5 * time.Second},
		{"in grace, not complete", false, false, true, false, 5 * time.Second},
		{"before the grace", false, true, false, true, 7 * time.Second},
		{"in grace, with cancel", true, true, true, false, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPhone(t)
				s := p.stream(10)
				l := s.Lifetime(test.cancel)
				if test.received {
					p.does(func() { p.send(10) })
					if _, err := io.ReadFull(s, make([]byte, 10)); err != nil {
						t.Fatal(err)
					}
				}
				if test.before {
					l.Grace(5 * time.Second)
					time.Sleep(2 * time.Second)
				}
				if l.Gone() || l.Context().Err() != nil {
					t.Fatal("it has left before it did")
				}
				start := time.Now()
				p.hangUp()
				if synctest.Wait(); !l.Gone() {
					t.Error("it has left, and is not gone")
				}
				if test.after {
					time.Sleep(2 * time.Second)
					l.Grace(5 * time.Second)
				}
				select {
				case <-l.Context().Done():
					if got := time.Since(start); got != test.ends || context.Cause(l.Context()) != ErrGone {
						t.Errorf("ended after %s, want %s: %v", got, test.ends, context.Cause(l.Context()))
					}
				case <-time.After(time.Hour):
					if test.ends != never {
						t.Error("it goes on")
					}
				}
				l.End()
				if l.Context().Err() == nil || !l.Gone() {
					t.Error("End has not ended it, or has brought the client back")
				}
				s.End()
			})
		})
	}
}

// A read that we end, or that times out, ends the request's context over
// HTTP/1. That is no client that left.
func TestLifetimeOfInterruptedReads(t *testing.T) {
	for name, end := range map[string]func(*Stream){
		"ended":     (*Stream).End,
		"displaced": func(s *Stream) { s.displace(&Refused{Cause: CauseDisplaced}) },
		"stalled":   func(*Stream) { time.Sleep(10 * time.Second) },
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPhone(t)
			s := p.stream(10)
			l := s.Lifetime(true)
			p.does(func() { _, _ = io.ReadAll(s) })
			synctest.Wait()
			end(s)
			synctest.Wait()
			if p.ctx.Err() == nil || l.Context().Err() != nil || l.Gone() {
				t.Errorf("%s: the request's context: %v; ours: %v, gone %v", name, p.ctx.Err(), context.Cause(l.Context()), l.Gone())
			}
			l.End()
			s.End()
		})
	}
}

// A client that leaves while it is read is gone as soon as the read tells.
func TestLifetimeOfAClientThatLeavesWhileRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPhone(t)
		s := p.stream(10)
		l := s.Lifetime(false)
		result := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(s)
			result <- err
		}()
		time.Sleep(time.Second)
		p.hangUp()
		<-l.Context().Done()
		if err := <-result; !errors.Is(err, ErrGone) || context.Cause(l.Context()) != ErrGone || !l.Gone() {
			t.Errorf("%v, %v", err, context.Cause(l.Context()))
		}
		l.End()
		s.End()
	})
}
