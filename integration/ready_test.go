package integration_test

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestReadyOnShutdown promises that a gateway that is told to end says so first: it isn't ready from then on, takes capsules until
// shutdown_delay is all but over, and finishes those in progress. TestDrain has what comes later.
func TestReadyOnShutdown(t *testing.T) {
	t.Parallel()
	// On a busy machine the delay may be over before all has been looked at that belongs into it: then once more, with a longer one.
	if endsWithDelay(t, "4s") != nil {
		check(t, endsWithDelay(t, "20s"))
	}
}

// endsWithDelay has a gateway end. It returns what wasn't as it must be before the delay is over, and only then.
func endsWithDelay(t *testing.T, delay string) error {
	t.Helper()
	const exiting = "Caddy is shutting down"
	probe := loopback(freePort(t))
	x := startChain(t, sandbox.Options{}, "{\n\tshutdown_delay "+delay+"\n}"+bareSite+documentedProbe(t, "http://"+probe, "{$CADDY_ADMIN}"))
	x.ready(t, "")
	probed := func(path string, status int) error {
		resp, err := adminClient.Get("http://" + probe + path)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			return fmt.Errorf("the probe got %d for %s, want %d", resp.StatusCode, path, status)
		}
		return nil
	}
	check(t, probed("/oz_instant/ready", 200))
	check(t, probed("/oz_instant/status", 404))
	check(t, probed("/config/", 404))
	capsule := x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 300_000})
	conn := x.slowUpload(t, capsule, len(capsule)/2)
	x.awaitStatus(t, "in_flight", "1")
	check(t, x.cmd.Process.Signal(syscall.SIGTERM))
	x.waitForLog(t, withMsg("shutdown scheduled"))
	x.ready(t, exiting)
	if err := probed("/oz_instant/ready", 503); err != nil {
		return err
	}
	// A client that has not noticed yet is served.
	c := x.client(t, "h1")
	if a, err := c.try(c.postRequest(t, "/verify", bytes.NewReader(x.oz.Capsule(sandbox.CapsuleSpec{})))); err != nil || a.Status != 200 {
		return fmt.Errorf("a capsule in the delay got %d %s, %v", a.Status, a.Body, err)
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
	return nil
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
