package upload

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain promises that nothing outlives an upload.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}
