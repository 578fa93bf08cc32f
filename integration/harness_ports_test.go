package integration_test

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// Ports are taken from below the range that the kernel deals out by itself (from 32768 on Linux): no connection of some other
// test can sit on one between its choice and its use. Those of integration/bench are below these: its tests run at the same time, and
// two Caddys would share a port without an error (SO_REUSEPORT).
const firstPort, lastPort = 22000, 31999

var takenPorts sync.Map

// freePort returns a port that nobody listens on, TCP and UDP, on any address, and that no other call returns, here or in another
// run of these tests on this machine while this one lasts.
func freePort(t testing.TB) int {
	t.Helper()
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if _, taken := takenPorts.LoadOrStore(port, true); !taken && claimPort(port) && portIsFree(port) {
			return port
		}
	}
	t.Fatal("no free port found")
	return 0
}

// portClaims is a file in which each byte stands for a port. The program that has a lock on it has the port until it ends.
var portClaims = sync.OnceValue(func() *os.File {
	file, err := os.OpenFile(filepath.Join(os.TempDir(), "oz-instant-test-ports"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil // another user's: then only this program's own are known
	}
	return file
})

func claimPort(port int) bool {
	file := portClaims()
	if file == nil {
		return true
	}
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart, Start: int64(port), Len: 1}
	err := syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &lock)
	return err != syscall.EAGAIN && err != syscall.EACCES // what knows no locks is no reason to take none
}

func portIsFree(port int) bool {
	address := ":" + strconv.Itoa(port)
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", address)
	if err != nil {
		return false
	}
	udp.Close()
	return true
}

// deadAddress returns an address that refuses connections.
func deadAddress(t testing.TB) string {
	t.Helper()
	return loopback(freePort(t))
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
