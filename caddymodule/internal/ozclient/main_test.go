package ozclient

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain promises that nothing of the package outlives its tests, in which configs come and go.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}
