package main

import (
	"time"

	"github.com/prometheus/procfs"
)

// cpuTime returns the CPU time that a process has used so far, in user mode and in the kernel, all of its threads together. The
// kernel reports it in ticks of 10 ms: only the difference over a long window means anything.
func cpuTime(pid int) (time.Duration, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	stat, err := p.Stat()
	return time.Duration(stat.CPUTime() * float64(time.Second)), err
}

// peakMemory returns the most bytes that a process has had resident at any time since it began.
func peakMemory(pid int) (int64, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	status, err := p.NewStatus()
	return int64(status.VmHWM), err
}
