package main

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestReadRows promises the numbers of the broken threats, and an error where the tests did not come to their end.
func TestReadRows(t *testing.T) {
	log := "=== RUN   TestThreats\n     1  holds       a (BROKEN)\n     2  BROKEN      b: C\n     9  NOT TESTED  d: E\n    24  BROKEN      f (CVE): G/h\n--- FAIL: TestThreats (0.01s)\n"
	if rows, err := readRows(log); err != nil || !slices.Equal(rows, []int{2, 24}) {
		t.Errorf("got %v, %v", rows, err)
	}
	if rows, err := readRows("building Caddy with the module: exit status 1"); err == nil {
		t.Errorf("without rows: got %v", rows)
	}
}

// TestThreatsNameWhatExists keeps the tables true: a rule that is not there, or a test that is never run, would say nothing.
func TestThreatsNameWhatExists(t *testing.T) {
	table, err := os.ReadFile("../threats_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range quickTests {
		if !strings.Contains(string(table), "test"+test+",") && !strings.Contains(string(table), "test"+test+")") {
			t.Errorf("no threat has the test %s", test)
		}
	}
	for _, b := range broken {
		if _, err := find(b.rule); err != nil || len(b.rows) == 0 {
			t.Errorf("%s: %v", b.rule, err)
		}
	}
}
