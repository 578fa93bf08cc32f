package integration_test

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// nodeClient posts a body of so many bytes a number of times, by fetch over HTTP/1.1 or by node:http2, and prints what came of each
// as a line of JSON.
const nodeClient = `
const [times, url, size, type, length, ca] = process.argv.slice(1);
const body = Buffer.alloc(Number(size), 'x');
const print = result => console.log(JSON.stringify(result));
const failed = error => print({error: String(error), cause: String(error.cause)});

async function overHTTP1() {
  const pieces = async function* () { for (let i = 0; i < body.length; i += 65536) yield body.subarray(i, i + 65536); };
  const answer = await fetch(url, {
    method: 'POST', headers: {'Content-Type': type}, duplex: 'half',
    body: length === 'known' ? body : ReadableStream.from(pieces()),
  });
  print({status: answer.status, text: await answer.text()});
}

const overHTTP2 = () => new Promise((resolve, reject) => {
  const session = require('node:http2').connect(url, {
    ca: require('node:fs').readFileSync(ca), servername: 'localhost', maxSessionMemory: 1000, // MB; it holds the whole body
  });
  session.on('error', reject);
  const headers = {':method': 'POST', ':path': new URL(url).pathname, 'content-type': type};
  if (length === 'known') headers['content-length'] = body.length;
  const stream = session.request(headers);
  let status, text = '';
  stream.setEncoding('utf8');
  stream.on('response', answer => { status = answer[':status']; });
  stream.on('data', data => { text += data; });
  stream.on('error', error => { if (!status) reject(error); });
  stream.on('end', () => { print({status, text}); session.destroy(); resolve(); }); // of the answer: what is unsent does not matter
  stream.end(body);
});

(async () => {
  for (let i = 0; i < Number(times); i++) await (ca ? overHTTP2() : overHTTP1()).catch(failed);
  process.exit(0);
})();
`

// node runs the client and returns the lines that it printed.
func node(t testing.TB, args ...string) []gjson.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, "node"), append([]string{"-e", nodeClient, "--"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("node: %v\n%s", err, stderr.String())
	}
	var results []gjson.Result
	for line := range strings.Lines(stdout.String()) {
		if !gjson.Valid(line) {
			t.Fatalf("node printed %q\n%s", line, stderr.String())
		}
		results = append(results, gjson.Parse(line))
	}
	return results
}

// TestNodeSeesRefusals promises that a client that sends megabytes sees the refusal and not a broken connection, also when it is
// Oz that refuses in the middle.
func TestNodeSeesRefusals(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_capsule 5MiB
	}
	reverse_proxy {$APP}
}`)
	const octets = "application/octet-stream"
	for _, test := range []struct {
		name, size, kind string
		status           int64
		problem          string
	}{
		{"wrong type", "8000000", "text/plain", 415, "unsupported-media-type"},
		{"too large", "8000000", octets, 413, "capsule-too-large"},
		{"refused by Oz", "5000000", octets, 400, "container"},
		{"small and wrong", "10", "text/plain", 415, "unsupported-media-type"},
	} {
		for _, proto := range []string{"h1", "h2"} {
			for _, length := range []string{"known", "unknown"} {
				t.Run(strings.Join([]string{test.name, proto, length}, " "), func(t *testing.T) {
					x.oz.fault(t, map[bool]string{true: "early:400"}[test.problem == "container"])
					args := []string{"2", "http://" + x.HTTP + "/verify", test.size, test.kind, length}
					if proto == "h2" {
						args = []string{"2", "https://" + x.HTTPS + "/verify", test.size, test.kind, length, x.cert.certFile}
					}
					results := node(t, args...)
					if len(results) != 2 {
						t.Errorf("node saw %d answers, want 2", len(results))
					}
					for _, got := range results {
						if got.Get("status").Int() != test.status || !strings.HasSuffix(gjson.Get(got.Get("text").Str, "type").Str, ":"+test.problem) {
							t.Errorf("node saw %s", got)
						}
					}
				})
			}
		}
	}
	x.app.None(t)
}
