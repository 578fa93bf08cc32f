package integration_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testHandoffSecrets promises that the access token reaches Oz and nothing else, and that no byte of a capsule, of its session
// token or of a best shot is in a log at debug level, a metric, the config, a stack or a file: not after any decision, and not
// after the failures whose errors quote what a peer sent.
func testHandoffSecrets(t *testing.T) {
	t.Parallel()
	const token = "canary-access-token-0123456789"
	payload := []byte("canary \x00\xff of a capsule, in plain sight")
	x := startChain(t, sandbox.Options{AccessToken: token}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		access_token {env.OZ_TOKEN}
		best_shot keep
	}
	oz_instant /hurried {$OZ} {
		access_token {env.OZ_TOKEN}
		best_shot keep
		timeout 1s
	}
	oz_instant /retried {$DEAD} {
		to {$OZ}
		lb_policy first
		lb_try_duration 1m
		fail_duration 1m
		access_token {env.OZ_TOKEN}
	}
	oz_instant /wrong {$OZ} {
		access_token {env.WRONG_TOKEN}
	}
	reverse_proxy {$APP}
}`, withEnv("OZ_TOKEN", token), withEnv("WRONG_TOKEN", "wrong-"+token), withEnv("DEAD", "http://"+deadAddress(t)))
	c := x.client(t, "h1")
	var secrets [][]byte
	post := func(path, fault string) observed {
		x.oz.fault(t, fault)
		session := x.oz.NewToken()
		secrets = append(secrets, []byte(session))
		capsule := x.oz.Capsule(sandbox.CapsuleSpec{SessionToken: session, Payload: payload, EventSession: "s"})
		return x.observe(t, func() answer { return c.post(t, path, capsule, "X-Forensic-Access-Token", "of-the-client") })
	}

	j := post("/verify", "")
	accepted.assertSight(t, j)
	image := gjson.GetBytes(j.app[0].Body, "analyses.0.results_media.0.output_images.0.image_b64").Str
	if len(image) < 1000 {
		t.Fatal("there is no best shot to look for")
	}
	if got := x.oz.Received()[0].Header[http.CanonicalHeaderKey("X-Forensic-Access-Token")]; len(got) != 1 || got[0] != token {
		t.Errorf("Oz got the tokens %q", got)
	}
	if got := j.app[0].Value("X-Forensic-Access-Token"); got == token {
		t.Error("the app got Oz's token")
	}
	accepted.assert(t, post("/retried", ""), "s")
	wrong := unavailable("unauthorized", 502)
	wrong.code = "7"
	wrong.assert(t, post("/wrong", ""), "")
	for _, fault := range []string{
		"cut", "truncated", "length:twice", "length:short", "hang", "reset", "close", "status:500", "oz-error:14", "dup-image", "bad-utf8", "upgrade",
	} {
		if j := post("/hurried", fault); len(j.decided) != 1 {
			t.Errorf("after %s %d capsules were decided", fault, len(j.decided))
		}
	}
	x.assertNoCanary(t, append(secrets, []byte(token), payload, []byte(image[40:90]), []byte(image[len(image)/2:len(image)/2+50]))...)
}

// testHandoffTokenFromFile promises that a token may come from a file, its line end left out.
func testHandoffTokenFromFile(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{AccessToken: "token-of-the-file"}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		access_token {file.{$TOKEN_FILE}}
	}
	reverse_proxy {$APP}
}`, withEnv("TOKEN_FILE", tokenFile(t, "token-of-the-file\n")))
	c := x.client(t, "h1")
	accepted.assert(t, x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"})) }), "s")
	x.assertNoCanary(t, []byte("token-of-the-file"))
}

func tokenFile(t testing.TB, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	check(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}
