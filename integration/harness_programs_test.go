package integration_test

import (
	"os"
	"os/exec"
	"testing"
)

// allTests says that nothing may be left out, as in CI.
var allTests = os.Getenv("OZ_ALL_TESTS") != ""

// program returns the path of a program that a test needs beside Go. On a machine without it the test is skipped, so that go test
// ./... needs only Go; with OZ_ALL_TESTS set, as in CI, it fails.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	needs(t, name, err)
	return path
}

// needFile does the same for a file, such as a library.
func needFile(t testing.TB, name string) string {
	t.Helper()
	_, err := os.Stat(name)
	needs(t, name, err)
	return name
}

// needs does the same for what is no program, such as a library: err says whether it is there.
func needs(t testing.TB, name string, err error) {
	t.Helper()
	switch {
	case err == nil:
	case allTests:
		t.Fatalf("%s is needed for this test: %v", name, err)
	default:
		t.Skipf("%s is needed for this test and not there; with OZ_ALL_TESTS set that is a failure", name)
	}
}
