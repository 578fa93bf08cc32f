package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc: USER_HZ is 100 on every architecture that Go runs on, whatever the kernel's own HZ.
const tick = 10 * time.Millisecond

// cpuTime is what a process has used of the CPUs so far, in user mode and in the kernel, all of its threads together. The kernel
// counts in nanoseconds and tells in ticks: the window between two calls has to be long for the difference to mean something.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStat(string(text))
}

// parseStat reads utime and stime, fields 14 and 15. Field 2 is the name of the program in parentheses, which may hold spaces and
// parentheses of its own: counting starts behind the last one.
func parseStat(text string) (time.Duration, error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const state, utime, stime = 3, 14, 15
	if len(fields) <= stime-state {
		return 0, fmt.Errorf("/proc/…/stat has only %d fields behind the name", len(fields))
	}
	var sum time.Duration
	for _, field := range []int{utime, stime} {
		n, err := strconv.ParseInt(fields[field-state], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/…/stat, field %d: %w", field, err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// peakMemory is the most that a process has had resident at any time since it began, in bytes.
func peakMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parsePeak(string(text))
}

// parsePeak reads the line "VmHWM:	   41308 kB".
func parsePeak(text string) (int64, error) {
	for line := range strings.Lines(text) {
		value, found := strings.CutPrefix(line, "VmHWM:")
		if !found {
			continue
		}
		number, found := strings.CutSuffix(strings.TrimSpace(value), " kB")
		n, err := strconv.ParseInt(number, 10, 64)
		if !found || err != nil {
			return 0, fmt.Errorf("/proc/…/status: VmHWM is %q", strings.TrimSpace(value))
		}
		return n << 10, nil
	}
	return 0, fmt.Errorf("/proc/…/status has no VmHWM")
}
