package integration_test

import (
	"net"
	"strconv"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/ports"
)

// freePort returns a port that nobody listens on and nobody else gets.
func freePort(t testing.TB) int {
	t.Helper()
	port, err := ports.Free()
	check(t, err)
	number, err := strconv.Atoi(port)
	check(t, err)
	return number
}

// deadAddress returns an address that refuses connections.
func deadAddress(t testing.TB) string {
	t.Helper()
	return loopback(freePort(t))
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
