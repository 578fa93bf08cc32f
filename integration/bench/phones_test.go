package main

import (
	"regexp"
	"strings"
	"testing"
)

func TestPhones(t *testing.T) {
	t.Parallel()
	var stdout, stderr strings.Builder
	args := []string{"phones", "--caddy", caddy(t), "--phones", "80", "--size", "1MiB", "--rate", "1MiB", "--memory", "32MiB"}
	if err := execute(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	const figures = ` +\d+\.\d MiB +\d+\.\d MiB +\d+\.\d s\n`
	want := `\n  streaming +\d+\.\d MiB +0\.0 MiB +\d+\.\d s\n  memory 32MiB` + figures + `\nevery phone was served; the gateway buffered at most`
	if !regexp.MustCompile(want).MatchString(stdout.String()) {
		t.Errorf("no %s in\n%s", want, stdout.String())
	}
}
