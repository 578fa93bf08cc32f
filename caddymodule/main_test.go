package caddymodule

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain promises that nothing of the module outlives its tests, in which configs come and go.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}
