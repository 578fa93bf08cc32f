package main

import (
	"bufio"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestOwnProcess(t *testing.T) {
	pid := os.Getpid()
	before, err := cpuTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; {
		now, err := cpuTime(pid) // this is work, too
		if err != nil {
			t.Fatal(err)
		}
		if now >= before+20*time.Millisecond {
			break
		}
		if time.Since(start) > timeLimit {
			t.Fatalf("%v of CPU after %v of work", now-before, timeLimit)
		}
	}

	const held = 64 << 20
	block := make([]byte, held)
	for i := range block {
		block[i] = 1
	}
	if peak, err := peakMemory(pid); err != nil || peak < held || block[0] != 1 {
		t.Errorf("peak %d after holding %d, %v", peak, held, err)
	}
	if _, err := cpuTime(1 << 30); err == nil {
		t.Error("a process that does not exist has used CPU")
	}
}

// What a server's workers use is the server's.
func TestChildrenCount(t *testing.T) {
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo done; read end")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		cmd.Wait() // its read fails
	}()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	pid := os.Getpid()
	own, err := processClock(pid)
	if err != nil {
		t.Fatal(err)
	}
	child, err := processClock(cmd.Process.Pid)
	if err != nil || child == 0 {
		t.Fatalf("%v of CPU in the child, %v", child, err)
	}
	if both, err := cpuTime(pid); err != nil || both < own+child {
		t.Errorf("%v of CPU, want at least %v and the child's %v (%v)", both, own, child, err)
	}
}
