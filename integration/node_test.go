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

// nodeClient posts a body of so many bytes, by fetch over HTTP/1.1 or by node:http2, and prints what came of it as JSON.
const nodeClient = `
const [url, size, type, length, ca] = process.argv.slice(1);
const body = Buffer.alloc(Number(size), 'x');
const done = (status, text) => console.log(JSON.stringify({status, text}));
const failed = error => { console.log(JSON.stringify({error: String(error), cause: String(error.cause)})); process.exit(0); };

async function overHTTP1() {
  const pieces = async function* () { for (let i = 0; i < body.length; i += 65536) yield body.subarray(i, i + 65536); };
  const answer = await fetch(url, {
    method: 'POST', headers: {'Content-Type': type}, duplex: 'half',
    body: length === 'known' ? body : ReadableStream.from(pieces()),
  });
  done(answer.status, await answer.text());
}

function overHTTP2() {
  const session = require('node:http2').connect(url, {
    ca: require('node:fs').readFileSync(ca), servername: 'localhost', maxSessionMemory: 1000, // MB; it holds the whole body
  });
  session.on('error', failed);
  const headers = {':method': 'POST', ':path': new URL(url).pathname, 'content-type': type};
  if (length === 'known') headers['content-length'] = body.length;
  const stream = session.request(headers);
  let status, text = '';
  stream.setEncoding('utf8');
  stream.on('response', answer => { status = answer[':status']; });
  stream.on('data', data => { text += data; });
  stream.on('error', error => { if (!status) failed(error); });
  stream.on('end', () => { done(status, text); process.exit(0); }); // of the answer: what is unsent does not matter
  stream.end(body);
}

if (ca) overHTTP2(); else overHTTP1().catch(failed);
`

// node runs the client and returns what it printed.
func node(t testing.TB, args ...string) gjson.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, "node"), append([]string{"-e", nodeClient, "--"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("node: %v\n%s", err, stderr.String())
	}
	if !gjson.ValidBytes(stdout.Bytes()) {
		t.Fatalf("node printed %q\n%s", stdout.String(), stderr.String())
	}
	return gjson.ParseBytes(stdout.Bytes())
}

// TestNodeSeesRefusals promises that a client that sends megabytes sees the refusal and not a broken connection, also when it is
// Oz that refuses in the middle.
func TestNodeSeesRefusals(t *testing.T) {
	t.Parallel()
	x := startTrio(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		max_capsule 10MiB
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
		{"too large", "40000000", octets, 413, "capsule-too-large"},
		{"refused by Oz", "8000000", octets, 400, "container"},
		{"small and wrong", "10", "text/plain", 415, "unsupported-media-type"},
	} {
		for _, proto := range []string{"h1", "h2"} {
			for _, length := range []string{"known", "unknown"} {
				t.Run(strings.Join([]string{test.name, proto, length}, " "), func(t *testing.T) {
					x.oz.fault(t, map[bool]string{true: "early:400"}[test.problem == "container"])
					args := []string{"http://" + x.HTTP + "/verify", test.size, test.kind, length}
					if proto == "h2" {
						args = []string{"https://" + x.HTTPS + "/verify", test.size, test.kind, length, x.cert.certFile}
					}
					for range 3 {
						got := node(t, args...)
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
