package main

import (
	"strconv"
	"time"

	"github.com/prometheus/procfs"
)

// cpuTime returns the CPU time that a process and its children have used so far, in user mode and in the kernel, all of their threads
// together.
func cpuTime(pid int) (total time.Duration, err error) {
	err = overProcesses(pid, func(p procfs.Proc) error {
		used, err := processClock(p.PID)
		total += used
		return err
	})
	return total, err
}

// peakMemory returns the most bytes that a process has had resident at any time since it began, and adds what each of its children
// had. What they share counts once for each.
func peakMemory(pid int) (total int64, err error) {
	err = overProcesses(pid, func(p procfs.Proc) error {
		status, err := p.NewStatus()
		total += int64(status.VmHWM)
		return err
	})
	return total, err
}

// written returns how many bytes a process and its children have written to files of a disk, whether or not they have arrived there.
func written(pid int) (total int64, err error) {
	err = overProcesses(pid, func(p procfs.Proc) error {
		io, err := p.IO()
		total += int64(io.WriteBytes)
		return err
	})
	return total, err
}

// overProcesses calls f for a process and its children, which are those of a server with workers.
func overProcesses(pid int, f func(procfs.Proc) error) error {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return err
	}
	if err := f(p); err != nil {
		return err
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return err
	}
	for _, other := range all {
		stat, err := other.Stat()
		if err != nil || stat.PPID != pid { // one that has ended in the meantime is nobody's
			continue
		}
		if err := f(other); err != nil && exists("/proc/"+strconv.Itoa(other.PID)) {
			return err
		}
	}
	return nil
}
