package integration_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// webInNode runs the client for the web in Node.js, which has no XMLHttpRequest. A line on standard input is the path of the capsule.
const webInNode = `
const [script, site] = process.argv.slice(1);
const {verify} = await import('data:text/javascript,' + encodeURIComponent(script));

const capture = async token => (await fetch(site + '/sdk?token=' + token)).blob();

async function post(url, capsule) {
  const answer = await fetch(url, {method: 'POST', headers: {'Content-Type': 'application/octet-stream'}, body: capsule}).catch(() => null);
  const said = await answer?.json().catch(() => null);
  return {status: answer?.status ?? 0, said, retryAfter: Number(answer?.headers.get('Retry-After') ?? 0)};
}

for await (const path of (await import('node:readline')).createInterface({input: process.stdin})) {
  const waits = [];
  const outcome = await verify(capture, {url: site + path, tokenURL: site + '/session_token', post, sleep: seconds => waits.push(seconds)});
  console.log(JSON.stringify({...outcome, waits}));
}
`

// TestWebClient promises that the client for the web does after each fault what docs/clients.md says.
func TestWebClient(t *testing.T) {
	t.Parallel()
	node := program(t, "node")
	x := startClientTrial(t)
	script, err := os.ReadFile(filepath.Join(x.web, "capsule.js"))
	check(t, err)
	p := startClientProgram(t, node, "--input-type=module", "--eval", webInNode, string(script), "http://"+x.net.Addr)
	x.try(t, clientCases, p.run)
}

// judgeAll prints what the client does after each problem.
const judgeAll = `
const {judge} = await import('data:text/javascript,' + encodeURIComponent(process.argv[1]));
console.log(JSON.stringify(JSON.parse(process.argv[2]).map(([, type, status]) =>
  judge({status: Number(status), said: {type: 'urn:oz-instant:problem:' + type}, retryAfter: type === 'overloaded' ? 6 : 0}))));
`

// TestWebClientKnowsAllProblems promises that it knows each refusal of docs/decisions.md, and that nothing comes again which may
// have been used.
func TestWebClientKnowsAllProblems(t *testing.T) {
	t.Parallel()
	node := program(t, "node")
	_, docs := documents(t)
	var problems [][]string
	for _, d := range docs {
		if d.Name == "docs/decisions.md" {
			problems = documentedProblem.FindAllStringSubmatch(d.Text, -1)
		}
	}
	list, err := json.Marshal(problems)
	check(t, err)
	script, err := os.ReadFile(filepath.Join("examples", "clients", "web", "capsule.js"))
	check(t, err)
	out, err := exec.CommandContext(t.Context(), node, "--input-type=module", "--eval", judgeAll, string(script), string(list)).Output()
	check(t, err)
	var next []string
	check(t, json.Unmarshal(out, &next))
	for i, p := range problems {
		if want := nextAfter(p[1], p[2]); next[i] != want {
			t.Errorf("%s, %s: the client does %q, want %q", p[1], p[2], next[i], want)
		}
	}
}

// nextAfter is the rule of docs/clients.md.
func nextAfter(problem, status string) string {
	switch problem {
	case "overloaded", "upload-timeout", "unreadable-capsule":
		return "again"
	}
	switch status {
	case "400", "403", "409":
		return "anew"
	case "405", "413", "415", "431":
		return "never"
	}
	return "later"
}
