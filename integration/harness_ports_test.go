package integration_test

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports are taken from below the range that the kernel deals out by itself (from 32768 on Linux): no connection of some other
// test can sit on one between its choice and its use. Those of integration/bench are below these: its tests run at the same time, and
// two Caddys would share a port without an error (SO_REUSEPORT).
const firstPort, lastPort = 22000, 31999

var takenPorts sync.Map

// freePort returns a port that nobody listens on, TCP and UDP, on any address, and that no other call here returns.
func freePort(t testing.TB) int {
	t.Helper()
	for range 200 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		if _, taken := takenPorts.LoadOrStore(port, true); !taken && portIsFree(port) {
			return port
		}
	}
	t.Fatal("no free port found")
	return 0
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
