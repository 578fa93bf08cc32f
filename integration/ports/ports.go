// Package ports finds ports for the servers of tests, drills and measurements.
package ports

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Ports are taken from below the range that the kernel assigns by itself (from 32768 on Linux): no connection can occupy one between
// its choice and its use.
const first, last = 12000, 32767

// taken are the ports that Free returned or found to be in use.
var taken sync.Map

// Free returns a port at which nobody listens, TCP or UDP, on any address, and which no other call returns while this program runs, here
// or in another program on this machine: two Caddys would share a port without an error (SO_REUSEPORT).
func Free() (string, error) {
	for range 200 {
		number := first + rand.IntN(last-first+1)
		port := strconv.Itoa(number)
		if _, before := taken.LoadOrStore(number, true); !before && claim(number) && Unused(port) {
			return port, nil
		}
	}
	return "", errors.New("no free port found")
}

// FreeAddress returns the loopback address with a free port.
func FreeAddress() (string, error) {
	port, err := Free()
	return net.JoinHostPort("127.0.0.1", port), err
}

// claims is a file in which each byte stands for a port. The program that has a lock on it has the port until it ends.
var claims = sync.OnceValue(func() *os.File {
	file, err := os.OpenFile(filepath.Join(os.TempDir(), "oz-instant-test-ports"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil // another user's
	}
	return file
})

// claim reports whether no other program has the port. Where the file cannot be locked, none is known of.
func claim(port int) bool {
	file := claims()
	if file == nil {
		return true
	}
	lock := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart, Start: int64(port), Len: 1}
	err := syscall.FcntlFlock(file.Fd(), syscall.F_SETLK, &lock)
	return err != syscall.EAGAIN && err != syscall.EACCES
}

// Unused reports whether nobody listens at a port, TCP or UDP, on any address.
func Unused(port string) bool {
	address := ":" + port
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
