package main

import (
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 7806 7806 0 -1 4194304 101 0 0 0 123 45 0 0 20 0 1 0 485684 3133440 384"
	for _, name := range []string{"(caddy)", "(a b)", "(a) 1 2 3 (b)", "()"} {
		if got, err := parseStat("7814 " + name + rest); got != 1680*time.Millisecond || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "7814 (caddy)", "7814 (caddy) S 1 2 3", "7814 (caddy) S 1 7806 7806 0 -1 4194304 101 0 0 0 x 45 0"} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestParsePeak(t *testing.T) {
	if got, err := parsePeak("Name:\tcaddy\nVmPeak:\t 1269376 kB\nVmHWM:\t   41308 kB\nVmRSS:\t   41000 kB\n"); got != 41308<<10 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
	for _, bad := range []string{"", "Name:\tcaddy\n", "VmHWM:\t41308\n", "VmHWM:\tmuch kB\n"} {
		if got, err := parsePeak(bad); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
}
