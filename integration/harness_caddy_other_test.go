//go:build !linux

package integration_test

import (
	"os/exec"
	"syscall"
	"testing"
)

// dieWithTests is for Linux only: elsewhere a Caddy outlives a test process that is killed.
func dieWithTests(*exec.Cmd, syscall.Signal) {}

// openFiles is for Linux only.
func (*caddyProc) openFiles(testing.TB) map[string][]byte { return nil }

// listensTwice knows nothing of listeners on other systems.
func (p *caddyProc) listensTwice() bool { return false }
