package integration_test

import (
	"os/exec"
	"syscall"
)

// dieWithTests has a process get a signal when the one that started it ends, also when that runs into go test's own time limit
// and no cleanup is done.
func dieWithTests(cmd *exec.Cmd, signal syscall.Signal) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: signal}
}
