package integration_test

import (
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// TestSizeCommand promises that what the command prints, table and all, can be pasted into an oz_instant block, for one gateway and
// for several, and that nonsense is refused with a reason.
func TestSizeCommand(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--per-minute", "10000"}, {"--per-minute", "20", "--spare", "0"}} {
		args = append([]string{"oz-instant", "size"}, args...)
		printed := runCaddy(t, "", nil, args...)
		config, err := adapt(t, ":80 {\noz_instant /verify https://oz.internal {\n"+printed.Out+"}\n}")
		if err != nil || printed.Exit != 0 {
			t.Fatalf("%v: exit %d, %v\n%s%s", args, printed.Exit, err, printed.Out, printed.Err)
		}
		capacity := findHandler(decoded(t, config)).(map[string]any)["capacity"].(map[string]any)
		calculated := gjson.Parse(runCaddy(t, "", nil, append(args, "--json")...).Out)
		for _, name := range []string{"slots", "queue", "memory"} {
			if want := calculated.Get(name); !want.Exists() || capacity[name] != want.Float() {
				t.Errorf("%v: %s is %v, and %v was calculated", args, name, capacity[name], want)
			}
		}
		if _, shared := capacity["shared"]; shared != (calculated.Get("gateways").Int() > 1) {
			t.Errorf("%v: shared is %v for %v gateways", args, capacity["shared"], calculated.Get("gateways"))
		}
	}
	for reason, args := range map[string][]string{
		"per-minute":                           nil,
		"--per-minute: want more than zero":    {"--per-minute", "-1"},
		"--capsule: not a size (want one such": {"--per-minute", "10", "--capsule", "large"},
		"--busy: want more than 0":             {"--per-minute", "10", "--busy", "100"},
	} {
		if got := runCaddy(t, "", nil, append([]string{"oz-instant", "size"}, args...)...); got.Exit != 1 || !strings.Contains(got.Err, reason) {
			t.Errorf("%v: exit %d, %s", args, got.Exit, got.Err)
		}
	}
}
