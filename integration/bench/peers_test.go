package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// Each peer does what the table says of it: those that read the JSON tell the app Oz's decision and leave the best shot out, and what
// Oz doesn't answer with a folder isn't an answer to anybody. The app refuses all but a SUCCESS, and says what it got.
func TestPeersDoTheirWork(t *testing.T) {
	t.Parallel()
	for _, c := range contenders() {
		if c.program == nil {
			continue // TestCompare has these
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if err := c.missing(); err != nil && os.Getenv("OZ_ALL_TESTS") != "" {
				t.Fatal(err)
			} else if err != nil {
				t.Skip(err)
			}
			p := h2TLS
			if c.noHTTP2 {
				p = h1TLS
			}
			dir := t.TempDir()
			if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // nginx's worker has a user of its own
				t.Fatal(err)
			}
			r, err := newRig(t.Context(), "", dir, c.peer, workload{size: 100_000, bestShot: 200_000, clients: 1, protocol: p})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := r.close(); err != nil {
					t.Error(err)
				}
			})
			if err := r.run(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			if !c.readsJSON {
				return
			}
			declined := r.backend.oz.Capsule(sandbox.CapsuleSpec{Outcome: sandbox.Declined})
			if said := postTo(t, r, declined); !strings.Contains(said, `decision "DECLINED", want SUCCESS`) {
				t.Errorf("a capsule that Oz declines was answered with %s", said)
			}
			fault, err := sandbox.ParseFault("status:500")
			if err != nil {
				t.Fatal(err)
			}
			r.backend.oz.SetFault(fault)
			if err := r.run(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "answered with 502") {
				t.Errorf("a capsule at which Oz fails: %v", err)
			}
		})
	}
}

func postTo(t *testing.T, r *rig, capsule []byte) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.load.url, bytes.NewReader(capsule))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("X-Oz-Decision", "SUCCESS") // which no client may tell the app
	resp, err := r.load.clients[0].Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status + " " + string(text)
}

func TestPeersTable(t *testing.T) {
	of := func(name string, cpu, memory float64) row {
		r := row{contender: contender{peer: peer{name: name}, readsJSON: true}}
		for range 6 {
			r.cpu, r.memory = append(r.cpu, cpu), append(r.memory, memory)
			r.took = append(r.took, []time.Duration{2500 * time.Microsecond, 5 * time.Millisecond})
		}
		return r
	}
	quicker, unread, onDisk, unsure := of("quicker", 1, 40), of("unread", 0.5, 10), of("on disk", 4, 5), of("unsure", 1.5, 19)
	unread.readsJSON, unread.oneHop, onDisk.disk = false, true, true
	unsure.cpu[0], unsure.memory[0] = 2.5, 21 // the interval reaches over 1
	c := cell{size: 2 << 20, protocol: h2TLS, rows: []row{of("oz_instant", 2, 20), quicker, unread, onDisk, unsure}}
	for range 6 {
		c.direct = append(c.direct, []time.Duration{time.Millisecond, 5250 * time.Microsecond})
	}
	var out strings.Builder
	c.print(&out)
	//nolint:dupword // it is a table
	const want = `
capsules of 2MiB, HTTP/2 over TLS
                     JSON disk hops  CPU ms ratio                 MiB ratio              added p50, ms        added p99, ms
  oz_instant          yes   no    2    2.00 1.00 [1.00, 1.00]    20.0 1.00 [1.00, 1.00]  -0.25 [-0.25, -0.25] -0.25 [-0.25, -0.25]
  quicker             yes   no    2    1.00 0.50 [0.50, 0.50]    40.0 2.00 [2.00, 2.00]  -0.25 [-0.25, -0.25] -0.25 [-0.25, -0.25]
  unread               no   no    1    0.50 0.25 [0.25, 0.25]    10.0 0.50 [0.50, 0.50]  -0.25 [-0.25, -0.25] -0.25 [-0.25, -0.25]
  on disk             yes  yes    2    4.00 2.00 [2.00, 2.00]     5.0 0.25 [0.25, 0.25]  -0.25 [-0.25, -0.25] -0.25 [-0.25, -0.25]
  unsure              yes   no    2    1.50 0.75 [0.75, 1.25]    19.0 0.95 [0.95, 1.05]  -0.25 [-0.25, -0.25] -0.25 [-0.25, -0.25]
  less CPU, of those that read the JSON: quicker
  less memory, of those that touch no disk: unread
`
	if out.String() != want {
		t.Errorf("got%s", out.String())
	}
}

func TestQuantile(t *testing.T) {
	var hundred []time.Duration
	for i := range time.Duration(100) {
		hundred = append(hundred, 100-i)
	}
	for q, want := range map[float64]time.Duration{0.5: 51, 0.99: 100, 0: 1} {
		if got := quantile(hundred, q); got != want {
			t.Errorf("%v of 1 to 100 is %d, want %d", q, got, want)
		}
	}
	if got := quantile(hundred[:1], 0.99); got != 1 {
		t.Errorf("of one: %d", got)
	}
}

// Answers without success, and fewer than were asked for, are no figures.
func TestReadH2load(t *testing.T) {
	const said = `starting benchmark...
finished in 106.49ms, 939.06 req/s, 17.55MB/s
requests: 100 total, 100 started, 100 done, 98 succeeded, 2 failed, 0 errored, 0 timeout
status codes: 98 2xx, 0 3xx, 0 4xx, 2 5xx
`
	if got, err := readH2load(said, 98); err != nil || got != 939.06 {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{said, "", strings.Replace(said, "98 succeeded", "", 1)} {
		if got, err := readH2load(text, 100); err == nil {
			t.Errorf("%v from %s", got, text)
		}
	}
}
