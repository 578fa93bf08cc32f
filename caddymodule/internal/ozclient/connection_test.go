package ozclient

import (
	"bytes"
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
	c := &graceConn{Conn: brokenConn{}, closed: make(chan struct{})}
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
	c := &graceConn{Conn: brokenConn{}, closed: make(chan struct{})}
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
	c := &graceConn{Conn: near, closed: make(chan struct{})}
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

// Calls that share a connection all hear of its end, but for those that are over.
func TestSharedConnection(t *testing.T) {
	near, far := net.Pipe()
	c := &graceConn{Conn: near, closed: make(chan struct{})}
	heard := map[string]int{}
	for _, call := range []string{"a", "b", "c"} {
		whenEnded(c, call, func(error) { heard[call]++ })
	}
	whenEnded(c, "a", nil)
	_ = far.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || heard["a"] != 0 || heard["b"] != 1 || heard["c"] != 1 {
		t.Errorf("%v, %v", err, heard)
	}
}
