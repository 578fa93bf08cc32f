package integration_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
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

// listensTwice reports whether two servers listen at one of the Caddy's addresses for sites: one of the config before still does.
func (p *caddyProc) listensTwice() bool {
	ports := []string{hexPort(p.HTTP), hexPort(p.HTTPS)}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		if listedTwice(name, ports) {
			return true
		}
	}
	return false
}

// listedTwice reports whether such a list of the kernel's has a listener at one of these ports twice.
func listedTwice(name string, ports []string) bool {
	file, err := os.Open(name)
	if err != nil {
		return false // no IPv6
	}
	defer file.Close()
	found := map[string]bool{}
	lines := bufio.NewScanner(file)
	for lines.Scan(); lines.Scan(); { // after the head
		const listening = "0A"
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != listening { // listeners come first
			return false
		}
		address := fields[1]
		if !slices.Contains(ports, address[strings.LastIndexByte(address, ':')+1:]) {
			continue
		}
		if found[address] {
			return true
		}
		found[address] = true
	}
	return false
}

// hexPort returns the port of an address as the kernel lists it.
func hexPort(address string) string {
	port, _ := strconv.Atoi(portOf(address)) // which is one of ours
	return fmt.Sprintf("%04X", port)
}
