//go:build !race

package integration_test

// raceEnabled says that these tests, and so the Caddy they build, have the race detector.
const raceEnabled = false
