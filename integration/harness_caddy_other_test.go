//go:build !linux

package integration_test

import (
	"os/exec"
	"syscall"
)

// dieWithTests is for Linux only: elsewhere a Caddy outlives a test process that is killed.
func dieWithTests(*exec.Cmd, syscall.Signal) {}
