package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// oddStatuses has the page's view of the gateway ask for one status after the other, without waiting, and prints what it says to each.
// It stands in for as much of a browser as that takes.
const oddStatuses = `
class Node {
  constructor() { Object.assign(this, {dataset: {}, children: [], style: {setProperty() {}}, textContent: ''}); }
  append(...nodes) { for (const node of nodes) { this.children.push(node); node.parent = this; } }
  make() { const node = new Node(); this.append(node); return node; }
  createCaption() { return this.make(); }
  createTBody() { return this.make(); }
  insertRow() { return this.make(); }
  insertCell() { return this.make(); }
  addEventListener() {}
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
const way = {upstreams: [], last_failures: [], decisions: {SUCCESS: 7}};
const good = JSON.stringify({ready: true, ways: [way]});
const answers = [good, '{"ready":true,"ways":{}}', 'null', '{"ready":true,"ways":[{}]}', '[]', '<html>', '{"ready":true,"ways":[null]}', good];
let asked = 0;
globalThis.fetch = async () => {
  if (asked > 0) console.log(byId('live').dataset.state);
  if (asked === answers.length) process.exit(0);
  const text = answers[asked++];
  return {json: async () => JSON.parse(text)};
};
(await import('./live.js')).watch();
`

// TestDemoSurvivesOddStatuses promises that the demo page's view of the gateway never shows an old status as a new one: it says that it
// has none, asks again, and shows the next one.
func TestDemoSurvivesOddStatuses(t *testing.T) {
	t.Parallel()
	node, folder := program(t, "node"), t.TempDir()
	for _, name := range []string{"live.js", "send.js"} {
		text, err := os.ReadFile(filepath.Join("demo", "page", name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(folder, name), text, 0o600))
	}
	check(t, os.WriteFile(filepath.Join(folder, "package.json"), []byte(`{"type": "module"}`), 0o600))
	check(t, os.WriteFile(filepath.Join(folder, "main.js"), []byte(oddStatuses), 0o600))
	out, err := exec.CommandContext(t.Context(), node, filepath.Join(folder, "main.js")).CombinedOutput()
	want := "on\n" + strings.Repeat("unreachable\n", 6) + "on\n"
	if err != nil || string(out) != want {
		t.Errorf("%v, the view was\n%s\nwant\n%s", err, out, want)
	}
}
