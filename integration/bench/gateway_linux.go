package main

import (
	"os/exec"
	"syscall"
)

// dieWithBench has a gateway end when bench does, also when bench is killed.
func dieWithBench(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
