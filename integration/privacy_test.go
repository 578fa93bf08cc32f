package integration_test

import (
	"bytes"
	"crypto/elliptic"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const privacySite = `{
	metrics
	servers {
		trace
	}
}
(guarded) {
	oz_instant {args[0]} {$OZ} {
		access_token {env.OZ_TOKEN}
		session_token /session_token
		best_shot attach
		require meta_data.transaction_id {cookie.transaction}
		max_capsule 1MiB
		timeout {args[1]}
		capacity {
			slots 2
			memory 8MiB
		}
		replay_guard {$STORE} {
			also meta_data.event_session_id
		}
		seal {
			audience app
			subject {http.request.header.User}
			key {env.SEAL_KEY}
		}
	}
}
{$SITE} {
	log
	tracing {
		span gateway
	}
	import guarded /verify 1m
	import guarded /hang 1s
	handle_errors {
		header X-Message "{err.message} {err.trace} {http.oz_instant.reason}"
		@page header Accept text/html
		respond @page "<p>{err.status_code} {err.message} {http.oz_instant.decision}"
	}
	reverse_proxy {$APP}
}`

// testPrivacy plants secrets wherever a person or an operator has some, and has everything happen that can: they are in no log at
// debug level, no span, no metric, nothing that the admin endpoint shows, no answer to a client, and no file that Caddy keeps or has
// open, neither in the middle of an upload or an analysis nor afterwards.
func testPrivacy(t *testing.T) {
	t.Parallel()
	assertPrivacy(t, "memory")
}

// TestPrivacyInRedis promises the same of all that a Redis is told to keep: it writes every command down.
func TestPrivacyInRedis(t *testing.T) {
	t.Parallel()
	redis := startRedis(t, "--appendonly", "yes")
	secrets := assertPrivacy(t, "redis redis://"+redis.Addr)
	written := filesIn(t, redis.dir)
	if keys := redis.keys(t); len(keys) == 0 || !strings.Contains(fmt.Sprintf("%s", written), keys[0]) {
		t.Errorf("of %q nothing was written down", keys)
	}
	assertNowhere(t, written, secrets)
}

func assertPrivacy(t *testing.T, store string) (secrets [][]byte) {
	t.Helper()
	const (
		accessToken = "canary-access-token-0123456789"
		transaction = "canary-transaction-0123456789"
		password    = "canary-authorization-0123456789"
		person      = "canary-metadata-0123456789"
	)
	payload := bytes.Repeat([]byte("canary \x00\xff of a capsule, in plain sight; "), 2000)
	seal := keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P256()))
	x := startChain(t, sandbox.Options{AccessToken: accessToken, BestShotSize: 100_000}, privacySite,
		withEnv("OZ_TOKEN", accessToken), withEnv("SEAL_KEY", seal), withEnv("STORE", store),
		withEnv("OTEL_TRACES_EXPORTER", "console"), withEnv("OTEL_METRICS_EXPORTER", "none"), withEnv("OTEL_LOGS_EXPORTER", "none"),
		withEnv("OTEL_BSP_SCHEDULE_DELAY", "50"))
	text, err := os.ReadFile(seal)
	check(t, err)
	secrets = [][]byte{payload[:40], []byte(accessToken), []byte(transaction), []byte(password), []byte(person), bytes.Split(text, []byte("\n"))[1]}

	c := x.client(t, "h2")
	answers := map[string][]byte{}
	fields := []string{"Cookie", "transaction=" + transaction, "Authorization", "Basic " + password, "X-Oz-Decision", "SUCCESS", "User", "7"}
	token := func() string {
		x.oz.fault(t, "")
		token := gjson.GetBytes(c.get(t, "/session_token", fields...).Body, "session_token").Str
		secrets = append(secrets, []byte(token))
		return token
	}
	capsule := func(session string) []byte {
		return x.oz.Capsule(sandbox.CapsuleSpec{
			SessionToken: session, Payload: payload, Meta: map[string]string{"transaction_id": transaction, "person": person},
		})
	}
	send := func(name, fault string, body io.Reader, more ...string) answer {
		x.oz.fault(t, fault)
		path := "/verify"
		if fault == "hang" {
			path = "/hang"
		}
		a := c.do(t, c.postRequest(t, path, body, append(more, fields...)...))
		answers["the answer after "+name] = fmt.Appendf(nil, "%v\n%s", a.Header, a.Body)
		return a
	}

	first := capsule(token())
	a := send("SUCCESS", "", bytes.NewReader(first))
	for tries := 1; a.Status == http.StatusServiceUnavailable && tries < 5; tries++ { // a store has a second
		first = capsule(token())
		a = send("SUCCESS", "", bytes.NewReader(first))
	}
	if a.Status != http.StatusOK {
		t.Fatalf("got %d %s", a.Status, a.Body)
	}
	image := multipartBody(t, x.app.Last(t))[1].content
	secrets = append(secrets, []byte(image[40:90]), []byte(image[len(image)/2:len(image)/2+50]))
	send("a second time", "", bytes.NewReader(first))
	send("another user's", "", bytes.NewReader(capsule(token())), "Cookie", "transaction=other")
	for _, fault := range []string{"resolution:DECLINED", "oz-error:14", "status:401", "status:500", "cut", "dup-image", "bad-utf8", "reset", "hang"} {
		send(fault, fault, bytes.NewReader(capsule(token())))
		send(fault+" on a page", fault, bytes.NewReader(capsule(token())), "Accept", "text/html")
	}
	send("too large", "", bytes.NewReader(append(capsule(token()), make([]byte, 1<<20)...)))
	send("another type", "", bytes.NewReader(capsule(token())), "Content-Encoding", "gzip")

	// In the middle: half uploaded, and being analysed.
	x.oz.fault(t, "hang")
	x.oz.Forget()
	last := capsule(token())
	x.oz.fault(t, "hang")
	body, hold := io.Pipe()
	done := make(chan answer)
	go func() { done <- c.do(t, c.postRequest(t, "/verify", body, fields...)) }()
	hold.Write(last[:len(last)/2])
	halfway := x.shown(t) // to be searched when nothing waits for it
	hold.Write(last[len(last)/2:])
	hold.Close()
	x.oz.await(t, func(s sandbox.Stats) bool { return s.Bytes >= int64(len(last)) })
	analysed := x.shown(t)
	x.oz.fault(t, "") // what hangs gets no answer
	<-done

	delete(halfway, "log") // the last one begins with it
	delete(analysed, "log")
	for _, places := range []map[string][]byte{answers, halfway, analysed} {
		assertNowhere(t, places, secrets)
	}
	x.waitForLogs(t, len(answers), having(`"Name":"gateway"`))
	x.assertNoCanary(t, secrets...)
	return secrets
}
