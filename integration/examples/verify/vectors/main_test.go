package main

import (
	"os"
	"testing"
)

// TestFilesAreUpToDate promises that the vectors in the repository are those that the program makes.
func TestFilesAreUpToDate(t *testing.T) {
	for name, want := range files() {
		if got, err := os.ReadFile(name); err != nil || string(got) != string(want) {
			t.Errorf("%s is not what go generate ./integration/examples/verify/vectors makes: %v", name, err)
		}
	}
}
