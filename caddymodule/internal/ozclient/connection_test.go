package ozclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

var errBroken = errors.New("broken pipe")

// brokenConn fails every write, as a connection does whose peer closed it
// with our bytes unread.
type brokenConn struct{ net.Conn }

func (brokenConn) Write([]byte) (int, error) { return 0, errBroken }
func (brokenConn) Close() error              { return nil }

func TestFailedWriteWaitsForTheAnswer(t *testing.T) {
	c := newGraceConn(brokenConn{})
	start := time.Now()
	if _, err := c.Write([]byte("x")); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	if waited := time.Since(start); waited < answerGrace {
		t.Errorf("the write failed after %s; an answer in progress had no time to be read", waited)
	}
}

// Once the answer was read the connection is closed, and nobody waits longer.
func TestFailedWriteEndsWithTheConnection(t *testing.T) {
	c := newGraceConn(brokenConn{})
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	c.wait() // would hang the test if Close did not end it
	if _, err := c.ReadFrom(bytes.NewReader([]byte("x"))); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
}

func TestReadFromSendsEveryByte(t *testing.T) {
	near, far := net.Pipe()
	c := newGraceConn(near)
	want := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		_, _ = c.ReadFrom(bytes.NewReader(want))
		_ = c.Close()
	}()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d of %d bytes (%v)", len(got), len(want), err)
	}
}

// The end of a connection is told once, with the first error, also through TLS.
func TestEndOfAConnection(t *testing.T) {
	near, far := net.Pipe()
	c := newGraceConn(near)
	if got, ok := graceConnOf(tls.Client(c, nil)); !ok || got != c {
		t.Error("it is not found below TLS")
	}
	if _, ok := graceConnOf(near); ok {
		t.Error("a connection of another dialer is taken for one")
	}
	select {
	case <-c.life.Done():
		t.Error("it ended before its end")
	default:
	}
	_ = far.Close()
	_, first := c.Read(make([]byte, 1))
	_ = near.Close()
	_, second := c.Read(make([]byte, 1))
	<-c.life.Done()
	if told := context.Cause(c.life); told != first || first == second {
		t.Errorf("%v, then %v; told is %v", first, second, told)
	}
}
