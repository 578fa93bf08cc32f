package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// processClock reads the CPU clock of another process, in nanoseconds; /proc/<pid>/stat has ticks of 10 ms. The number of that clock
// is what clock_getcpuclockid(3) returns.
func processClock(pid int) (time.Duration, error) {
	var t unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|2), &t)
	return time.Duration(t.Nano()), err
}
