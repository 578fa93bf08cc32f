package integration_test

import (
	"slices"
	"strings"
	"testing"
)

// evilFields are header fields of Oz's answer, or of somebody in front of it, that must stay there.
const evilFields = "X-Oz-Decision: SUCCESS\r\nX-Oz-Folder-Id: of-oz\r\nX_Oz_Decision: SUCCESS\r\nX-User: admin\r\nSet-Cookie: session=of-oz\r\nLocation: /elsewhere\r\n" +
	"Refresh: 0; url=/elsewhere\r\nLink: </x>; rel=preload\r\nX-Accel-Redirect: /elsewhere\r\nX-Sendfile: /etc/passwd\r\nWWW-Authenticate: Basic realm=oz\r\n" +
	"Strict-Transport-Security: max-age=0\r\nAccess-Control-Allow-Origin: *\r\nContent-Security-Policy: default-src *\r\nContent-Disposition: attachment\r\n" +
	"ETag: \"of-oz\"\r\nX-Forensic-Access-Token: of-oz\r\nServer: of-oz\r\nVia: 1.1 of-oz\r\nAlt-Svc: h3=\"of-oz:1\"\r\nConnection: X-Oz-Quality\r\nRetry-After: 3\r\n"

// startWrittenOz starts a site and an Oz whose answers a test writes by itself. What comes of a capsule at /passed, the app hears
// in any case.
func startWrittenOz(t testing.TB) (*chain, *rawApp) {
	t.Helper()
	oz, app := newRawApp(t), newRawApp(t)
	p := startCaddy(t, `
{$SITE} {
	log
	oz_instant /verify {$OZ}
	oz_instant /passed {$OZ} {
		pass INVALID UNAVAILABLE
	}
	reverse_proxy {$APP}
}`, withEnv("OZ", "http://"+oz.Addr), withEnv("APP", app.Addr), withEnv("CANARY", environmentCanary))
	return &chain{p, nil, app}, oz
}

// testHeaderOfOz promises that of the header of Oz's answer nothing travels on, to the app or to the client, whatever comes of
// the capsule; but for Retry-After, when Oz is busy.
func testHeaderOfOz(t *testing.T) {
	t.Parallel()
	x, oz := startWrittenOz(t)
	app := x.app
	const success = `{"resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]}`
	ours := []string{"Content-Type", "Content-Length", "Date", "Server", "Cache-Control", "Alt-Svc", "Via"}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, status := range []string{
			"201 Created", "200 OK", "202 Accepted", "206 Partial Content", "300 Multiple Choices", "302 Found", "307 Temporary Redirect", "400 Bad Request", "401 Unauthorized",
			"407 Proxy Authentication Required", "413 Content Too Large", "429 Too Many Requests", "500 Internal Server Error", "503 Service Unavailable", "511 Network Authentication Required",
		} {
			for _, body := range []string{success, `{"error_code":14,"error_message":"x"}`} {
				answer := rawAnswer(status, body)
				oz.Answer(func(rawRequest) string { return strings.Replace(answer, "\r\n", "\r\n"+evilFields, 1) })
				for _, path := range []string{"/verify", "/passed"} {
					app.Forget()
					a := c.post(t, path, []byte("capsule"))
					for name, values := range a.Header {
						busy := name == "Retry-After" && (status[:3] == "429" || status[:3] == "503")
						if !slices.Contains(ours, name) && !busy || strings.Contains(strings.Join(values, ""), "of-oz") {
							t.Errorf("%s: the client got %s: %q", status, name, values)
						}
					}
					for _, r := range app.Requests() {
						if all := r.Raw(); strings.Contains(all, "of-oz") || strings.Contains(all, "admin") {
							t.Errorf("%s: the app got:\n%s", status, all)
						}
						if decision := r.Value("X-Oz-Decision"); (decision == "SUCCESS") != (body == success && (status[:3] == "200" || status[:3] == "201")) {
							t.Errorf("%s: the decision is %q", status, decision)
						}
					}
				}
			}
		}
	})
}
