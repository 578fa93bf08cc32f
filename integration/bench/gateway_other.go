//go:build !linux

package main

import (
	"os/exec"
	"time"
)

// dieWithBench is for Linux only, as are the figures: elsewhere bench compiles and then finds no /proc.
func dieWithBench(*exec.Cmd) {}

// monotonic is for Linux only, too.
func monotonic() time.Duration { return time.Duration(time.Now().UnixNano()) }
