package integration_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// adviseAll has the demo page judge problems, and prints what it offers to do after each.
const adviseAll = `
const {judge} = await import('data:text/javascript,' + encodeURIComponent(process.argv[1]));
const offered = JSON.parse(process.argv[2]).map(([, type, status]) =>
  judge({status: Number(status), said: {type: 'urn:oz-instant:problem:' + type}, retryAfter: 7}, 1));
console.log(JSON.stringify(offered));
`

// documentedProblem is a row of docs/decisions.md: the type of a refusal, or the reason of a decision that is one, and its status.
var documentedProblem = regexp.MustCompile("(?m)^(?:\\| .* \\| `(?:INVALID|UNAVAILABLE)` )?\\| `([a-z_-]+)` \\| ([45]\\d\\d)\\b")

// TestDemoAdvises promises that the demo page does after each refusal what the documents tell clients to do.
func TestDemoAdvises(t *testing.T) {
	t.Parallel()
	node := program(t, "node")
	script, err := os.ReadFile(filepath.Join("demo", "page", "advice.js"))
	check(t, err)
	_, docs := documents(t)
	var problems [][]string
	for _, d := range docs {
		if d.Name == "docs/decisions.md" {
			problems = documentedProblem.FindAllStringSubmatch(d.Text, -1)
		}
	}
	if len(problems) < 20 {
		t.Fatalf("docs/decisions.md has %d problems", len(problems))
	}
	list, err := json.Marshal(problems)
	check(t, err)
	out, err := exec.CommandContext(t.Context(), node, "--input-type=module", "--eval", adviseAll, string(script), string(list)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var offered []struct {
		Next, Decision, Tone string
		Waits                int
	}
	check(t, json.Unmarshal(out, &offered))
	for i, p := range problems {
		got, want := offered[i], adviceFor(p[1], p[2])
		if got.Next != want || (got.Waits == 7) != (p[2] == "503" && want == "again") || got.Decision != "" || got.Tone != "wait" {
			t.Errorf("%s, %s: the page offers %+v, want %q", p[1], p[2], got, want)
		}
	}
}

// adviceFor is what the page offers by the rules of docs/clients.md: send the same capsule again, capture anew, or nothing.
func adviceFor(problem, status string) string {
	switch problem {
	case "unreadable-capsule", "unreachable": // Oz got nothing of it
		return "again"
	case "store_unavailable": // it may have been used
		return "anew"
	}
	switch status {
	case "408", "503":
		return "again"
	case "405", "413", "415", "431":
		return ""
	}
	return "anew"
}
