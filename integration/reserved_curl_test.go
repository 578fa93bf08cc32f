package integration_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestReservedWithCurl is what anybody can try at home: curl with Connection: X-Oz-Decision, X_Oz_Decision: SUCCESS, x.oz.decision:
// SUCCESS, a trailer of that name, and a JSON body that looks like a SUCCESS folder. In no case does the app see anything
// reserved that the module did not set.
func TestReservedWithCurl(t *testing.T) {
	t.Parallel()
	const options = `{
	servers {
		expected_underscore_headers X_Oz_Decision
		expected_dot_headers x.oz.decision
	}
}
`
	x := startChain(t, sandbox.Options{ReuseTokens: true}, options+smokeSite)
	capsule := filepath.Join(t.TempDir(), "capsule")
	check(t, os.WriteFile(capsule, x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "session", Outcome: "DECLINED"}), 0o600))
	trust := []string{"--cacert", x.cert.certFile, "--resolve", "localhost:" + portOf(x.HTTPS) + ":127.0.0.1"}
	declined := verdict{decision: "DECLINED", status: "FINISHED", system: "DECLINED", quality: "DECLINED"}

	forgeries := map[string][]string{
		"Connection":      {"-H", "Connection: X-Oz-Decision"},
		"Connection with": {"-H", "Connection: X-Oz-Decision", "-H", "X-Oz-Decision: SUCCESS"},
		"underscores":     {"-H", "X_Oz_Decision: SUCCESS"},
		"dots":            {"-H", "x.oz.decision: SUCCESS"},
		"as it is":        {"-H", "X-Oz-Decision: SUCCESS", "-H", "x-oz-decision: SUCCESS"},
		"announced":       {"-H", "Trailer: X-Oz-Decision", "-H", "TE: trailers"},
		"all":             {"-H", "Connection: X-Oz-Decision", "-H", "X_Oz_Decision: SUCCESS", "-H", "x.oz.decision: SUCCESS", "-H", "Trailer: X-Oz-Decision"},
	}
	for site, args := range map[string][]string{
		"h1": {"http://" + x.HTTP}, "h2": append(trust, "--http2", "https://localhost:"+portOf(x.HTTPS)),
	} {
		run := func(path string, more ...string) string {
			last := len(args) - 1
			return mustCurl(t, slices.Concat(args[:last], more, []string{args[last] + path})...)
		}
		for name, forged := range forgeries {
			t.Run(site+" "+name, func(t *testing.T) {
				x.app.Forget()
				octets := append(slices.Clone(forged), "-H", "Content-Type: application/octet-stream", "--data-binary", "@"+capsule)
				if out := run("/verify", octets...); out != "seen by the app\n" {
					t.Errorf("curl got %s", out)
				}
				r := x.app.Only(t)
				assertReserved(t, r, declined.headers(r, "session"))

				x.app.Forget()
				run("/verify", forged...) // a GET
				run("/other", append(slices.Clone(forged), "-H", "Content-Type: application/json", "-d", forgedFolder)...)
				for _, r := range x.app.Wait(t, 2) {
					assertReserved(t, r, map[string]string{})
				}

				x.app.Forget()
				run("/verify", append(slices.Clone(forged), "-H", "Content-Type: application/json", "-d", forgedFolder)...)
				run("/verify", append(slices.Clone(forged), "-H", "Content-Type: application/octet-stream", "-d", forgedFolder)...)
				run("/verify", append(slices.Clone(forged), "-F", "folder="+forgedFolder)...)
				x.app.None(t)
			})
		}
	}
	t.Run("a trailer", func(t *testing.T) { // which curl has no option for
		x.app.Forget()
		content, err := os.ReadFile(capsule)
		check(t, err)
		conn := x.dialRaw(t)
		conn.sendHead(t, postHead("/verify", -1, "Trailer: X-Oz-Decision")...)
		conn.sendChunk(t, string(content))
		conn.sendChunk(t, "")
		conn.sendHead(t, "X-Oz-Decision: SUCCESS")
		if a := conn.read(t, "POST"); a.Status != 200 {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
		r := x.app.Only(t)
		assertReserved(t, r, declined.headers(r, "session"))
	})
}
