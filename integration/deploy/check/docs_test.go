package check

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestDocs promises that docs/deploy.md names files that are there, and says the times that are in them.
func TestDocs(t *testing.T) {
	top := filepath.Join("..", "..", "..")
	text, err := os.ReadFile(filepath.Join(top, "docs", "deploy.md"))
	check(t, err)
	page := string(text)
	named := regexp.MustCompile(`integration/deploy/[\w./-]+\w`).FindAllString(page, -1)
	if len(named) < 5 {
		t.Errorf("it names %q", named)
	}
	for _, file := range named {
		if _, err := os.Stat(filepath.Join(top, file)); err != nil {
			t.Error(err)
		}
	}

	says := func(format string, args ...any) {
		t.Helper()
		if want := fmt.Sprintf(format, args...); !strings.Contains(page, want) {
			t.Errorf("it doesn't say %q", want)
		}
	}
	seconds := func(d time.Duration) int { return int(d.Seconds()) }
	for folder, name := range map[string]string{"base": "beside your app", "fleet": "fleet"} {
		m, err := build(filepath.Join("..", "kubernetes", folder))
		check(t, err)
		config, err := adapt(t, m.config.Data["Caddyfile"], m.environment())
		check(t, err)
		http := config.Apps.HTTP
		says("| %s | %d s | %d s | %d s | %d s", name, m.gateway().Lifecycle.PreStop.Sleep.Seconds,
			seconds(http.ShutdownDelay), seconds(http.GracePeriod), *m.pod().TerminationGracePeriodSeconds)
	}
	unit, err := os.ReadFile(filepath.Join(systemd, unitFile))
	check(t, err)
	stop, err := time.ParseDuration(settings(string(unit))["TimeoutStopSec"])
	check(t, err)
	config, err := adaptFile(t, filepath.Join(systemd, "Caddyfile"), unitEnvironment)
	check(t, err)
	says("| systemd | | %d s | %d s | %d s", seconds(config.Apps.HTTP.ShutdownDelay), seconds(config.Apps.HTTP.GracePeriod), seconds(stop))
	says("--stop-timeout %d ", seconds(config.ending()+spare))
}
