package sandbox

import "testing"

func TestSize(t *testing.T) {
	for n, want := range map[Size]string{0: "0", 7: "7", 1024: "1KiB", 1025: "1025", 2 << 20: "2MiB", 1<<20 + 1024: "1025KiB"} {
		got := n.String()
		var back Size
		if err := back.Set(got); got != want || err != nil || back != n {
			t.Errorf("%d: %q, want %q, and back %d (%v)", n, got, want, back, err)
		}
	}
}
