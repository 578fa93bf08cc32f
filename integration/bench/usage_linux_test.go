package main

import (
	"os"
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
