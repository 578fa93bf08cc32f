package integration_test

import (
	"strings"
	"syscall"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestReadyOnShutdown promises that a gateway that is told to end says so first: it isn't ready from then on, takes capsules until
// shutdown_delay is all but over, and finishes those in progress. TestDrain has what comes later.
func TestReadyOnShutdown(t *testing.T) {
	t.Parallel()
	const exiting = "Caddy is shutting down"
	probe := loopback(freePort(t))
	x := startChain(t, sandbox.Options{}, "{\n\tshutdown_delay 4s\n}"+bareSite+documentedProbe(t, "http://"+probe, "{$CADDY_ADMIN}"))
	x.ready(t, "")
	wantProbe := func(path string, status int) {
		t.Helper()
		resp, err := adminClient.Get("http://" + probe + path)
		check(t, err)
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("the probe got %d for %s, want %d", resp.StatusCode, path, status)
		}
	}
	wantProbe("/oz_instant/ready", 200)
	wantProbe("/oz_instant/status", 404)
	wantProbe("/config/", 404)
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 300_000})
	conn := x.slowUpload(t, capsule, len(capsule)/2)
	x.awaitStatus(t, "in_flight", "1")
	check(t, x.cmd.Process.Signal(syscall.SIGTERM))
	x.waitForLog(t, withMsg("shutdown scheduled"))
	x.ready(t, exiting)
	wantProbe("/oz_instant/ready", 503)
	// A client that has not noticed yet is served.
	if a := x.client(t, "h1").post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != 200 {
		t.Errorf("a capsule in the delay got %d %s", a.Status, a.Body)
	}
	x.awaitStatus(t, "in_flight", "1", "decisions.SUCCESS", "1")
	x.waitForLog(t, withMsg("servers shutting down with eternal grace period"))
	x.ready(t, exiting)
	if s := x.status(t); s.Get("ready").Bool() || s.Get("ways.0.in_flight").Int() != 1 {
		t.Errorf("in the grace period: %s", s)
	}
	conn.send(t, string(capsule[len(capsule)/2:]))
	if a := conn.read(t, "POST"); a.Status != 200 {
		t.Errorf("the capsule in progress got %d %s", a.Status, a.Body)
	}
	<-x.ended
}

// documentedProbe is the site of docs/operations.md by which others reach one path of the admin endpoint.
func documentedProbe(t testing.TB, address, admin string) string {
	t.Helper()
	_, docs := documents(t)
	for _, d := range docs {
		for _, b := range d.Blocks {
			if _, rest, found := strings.Cut(b.Text, "\n:8081 {"); found && b.Lang == "caddyfile" {
				site, _, _ := strings.Cut(rest, "\n}\n")
				return "\n" + address + " {" + strings.Replace(site, "localhost:2019", admin, 1) + "\n}\n"
			}
		}
	}
	t.Fatal("no document has a site on :8081")
	return ""
}

const bareSite = `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
}`
