package cli

import (
	"flag"
	"slices"
	"strings"
	"testing"
)

func TestCommand(t *testing.T) {
	for line, want := range map[string]string{"": "run", "-v 1": "run -v 1", "capsule": "capsule", "capsule -o x": "capsule -o x"} {
		command, flags := Command(strings.Fields(line), "run")
		if got := strings.Join(append([]string{command}, flags...), " "); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for line, want := range map[string]string{"-n 2MiB": "", "-h": "help", "-n x": "usage", "-m": "usage", "-n 1 more": `test: what is "more"?`} {
		var n Size
		var stderr strings.Builder
		flags := flag.NewFlagSet("test", flag.ContinueOnError)
		flags.Var(&n, "n", "a size")
		help, err := Parse(flags, strings.Fields(line), &stderr)
		got := ""
		switch {
		case help:
			got = "help"
		case err != nil:
			got = err.Error()
		case n != 2<<20:
			t.Errorf("read %d", n)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
		if told := strings.Contains(stderr.String(), "Usage of test"); told != slices.Contains([]string{"help", "usage"}, want) {
			t.Errorf("%s: printed %q", line, stderr.String())
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[Size]string{0: "0", 7: "7", 1024: "1KiB", 1025: "1025", 2 << 20: "2MiB", 1<<20 + 1024: "1025KiB"} {
		got := n.String()
		var back Size
		if err := back.Set(got); got != want || err != nil || back != n {
			t.Errorf("%d: %q, want %q, and back %d (%v)", n, got, want, back, err)
		}
	}
}
