package integration_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// dieWithTests has a process get a signal when the one that started it ends, also when that runs into go test's own time limit
// and no cleanup is done.
func dieWithTests(cmd *exec.Cmd, signal syscall.Signal) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: signal}
}

// openFiles returns the content of all files that the Caddy has open at this moment, also of those that have no name any more.
func (p *caddyProc) openFiles(t testing.TB) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	folder := fmt.Sprintf("/proc/%d/fd/", p.cmd.Process.Pid)
	entries, err := os.ReadDir(folder)
	check(t, err)
	for _, entry := range entries {
		info, err := os.Stat(folder + entry.Name())
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() { // closed by now, or a socket or pipe
			continue
		}
		check(t, err)
		name, err := os.Readlink(folder + entry.Name())
		content, readErr := os.ReadFile(folder + entry.Name())
		if err = errors.Join(err, readErr); errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENXIO) { // closed, and maybe a socket by now
			continue
		}
		check(t, err)
		files["the open file "+name] = content
	}
	return files
}
