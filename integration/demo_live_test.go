package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// oddStatuses has the page's view of the gateway ask for one status after the other, without waiting, and prints what it says to each,
// the last of which comes when the view has been paused; and then what it shows. It stands in for as much of a browser as that takes.
const oddStatuses = `
class Node {
  constructor() { Object.assign(this, {dataset: {}, children: [], style: {setProperty() {}}, textContent: ''}); }
  append(...nodes) { for (const node of nodes) { this.children.push(node); node.parent = this; } }
  make() { const node = new Node(); this.append(node); return node; }
  createCaption() { return this.make(); }
  createTBody() { return this.make(); }
  insertRow() { return this.make(); }
  insertCell() { return this.make(); }
  addEventListener(name, work) { this[name] = work; }
  setAttribute() {}
  get nextSibling() { return this.parent.children[this.parent.children.indexOf(this) + 1]; }
  querySelector(wanted) {
    for (const node of this.children) {
      const found = wanted === '[data-fact="' + node.dataset.fact + '"]' ? node : node.querySelector(wanted);
      if (found) return found;
    }
    return null;
  }
}
const nodes = {};
const byId = id => nodes[id] ??= new Node();
const body = new Node();
body.dataset.live = '';
Object.defineProperty(globalThis, 'navigator', {value: {onLine: true}, configurable: true});
globalThis.document = {body, getElementById: byId, createElement: () => new Node(), querySelectorAll: () => [], visibilityState: 'visible'};
globalThis.setTimeout = work => setImmediate(work);
const good = process.argv[2];
const answers = [good, '{"ready":true,"ways":{}}', 'null', '{"ready":true,"ways":[{}]}', '[]', '<html>', '{"ready":true,"ways":[null]}', good, good];
let asked = 0;
globalThis.fetch = async () => {
  if (asked > 0) console.log(byId('live').dataset.state);
  const text = answers[asked++];
  if (asked === answers.length) {
    byId('pause').click();
    setImmediate(() => {
      console.log(byId('live').dataset.state);
      show(byId('ways'));
      process.exit(0);
    });
  }
  return {json: async () => JSON.parse(text)};
};
function show(node) {
  if (node.dataset.fact) console.log(node.dataset.fact + ': ' + node.textContent.replaceAll(/, last at [^;]+/g, ''));
  node.children.forEach(show);
}
(await import('./live.js')).watch();
`

// shownStatus is what the view shows of the status in docs/operations.md.
const shownStatus = `slots: 2 of 3
queue: 1 of 12
wait: 1.0 s
service: 1.52 s
memory: 4.0 MiB of 256.0 MiB, 2 being uploaded
token: valid for 812 s
upstreams: oz-1.internal:443 healthy, 2 in progress, 0 failures; oz-2.internal:443 down, 0 in progress, 3 failures
failures: connection_lost ×2; container ×12; analysis_failed ×4; timeout ×1
decision-SUCCESS: 1204
decision-DECLINED: 31
decision-OPERATOR_REQUIRED: 0
decision-FAILED: 4
decision-INVALID: 12
decision-UNAVAILABLE: 3
`

// TestDemoShowsStatus promises that the demo page's view of the gateway shows what the documented status says, and never an old one as
// a new one: after an odd one it says that it has none, asks again, and shows the next one. Paused is paused.
func TestDemoShowsStatus(t *testing.T) {
	t.Parallel()
	node, folder := program(t, "node"), t.TempDir()
	for _, name := range []string{"live.js", "send.js"} {
		text, err := os.ReadFile(filepath.Join("demo", "page", name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(folder, name), text, 0o600))
	}
	check(t, os.WriteFile(filepath.Join(folder, "package.json"), []byte(`{"type": "module"}`), 0o600))
	check(t, os.WriteFile(filepath.Join(folder, "main.js"), []byte(oddStatuses), 0o600))
	out, err := exec.CommandContext(t.Context(), node, filepath.Join(folder, "main.js"), documentedStatus(t)).CombinedOutput()
	want := "on\n" + strings.Repeat("unreachable\n", 6) + "on\npaused\n" + shownStatus
	if err != nil || string(out) != want {
		t.Errorf("%v, the view was\n%s\nwant\n%s", err, out, want)
	}
}

// documentedStatus returns the status in docs/operations.md.
func documentedStatus(t testing.TB) string {
	t.Helper()
	_, docs := documents(t)
	for _, d := range docs {
		for _, b := range d.Blocks {
			if b.Lang == "json" && strings.Contains(b.Text, `"last_failures"`) {
				return b.Text
			}
		}
	}
	t.Fatal("no document shows a status")
	return ""
}
