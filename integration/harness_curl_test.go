package integration_test

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// curlResult is how a run of curl ended.
type curlResult struct {
	Out  string // what it wrote: with -i the answer's header, too
	Err  string
	Exit int
}

// curl runs curl as a user would type it, less its progress meter and the machine's settings.
func curl(t testing.TB, args ...string) curlResult {
	t.Helper()
	// -q must come first: no ~/.curlrc.
	args = append([]string{"-q", "-sS", "--noproxy", "*", "--max-time", "30"}, args...)
	cmd := exec.CommandContext(t.Context(), program(t, "curl"), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	result := curlResult{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("curl: %v", err)
	}
	return result
}

// mustCurl is curl for calls that must work; it returns what curl wrote.
func mustCurl(t testing.TB, args ...string) string {
	t.Helper()
	result := curl(t, args...)
	if result.Exit != 0 {
		t.Fatalf("curl %s ended with %d: %s", strings.Join(args, " "), result.Exit, result.Err)
	}
	return result.Out
}
