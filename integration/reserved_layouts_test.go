package integration_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// layouts are sites that use the directive in other ways than the plain one. {$AUTH} signs a user in, and says SUCCESS about
// everything, and {$DEAD} is an app that is down.
const layouts = `
(errors) {
	log
	oz_instant /verify {$OZ}
	oz_instant /dead {$DEAD}
	reverse_proxy /down {$DEAD}
	reverse_proxy {$APP}
	handle_errors {
		reverse_proxy {$APP} {
			{args[:]}
		}
	}
}
(auth) {
	forward_auth {$AUTH} {
		uri /auth
		{args[:]}
	}
}
http://two-blocks.test:{$HTTP_PORT} {
	log
	oz_instant /verify {$OZ}
	oz_instant /verify {$DEAD} {
		pass UNAVAILABLE
	}
	oz_instant {$DEAD} {
		pass UNAVAILABLE INVALID
	}
	reverse_proxy {$APP}
}
http://no-matcher.test:{$HTTP_PORT} {
	log
	oz_instant {$OZ}
	reverse_proxy {$APP}
}
http://matchers.test:{$HTTP_PORT} {
	log
	@capsule {
		method POST
		path_regexp ^/v(erify)?$
		header Content-Type application/octet-stream
		not header X-Oz-Decision *
		expression !{http.request.header.X-Oz-Folder-Id}.startsWith("S")
	}
	oz_instant @capsule {$OZ}
	reverse_proxy {$APP}
}
http://never.test:{$HTTP_PORT} {
	log
	@forged header X-Oz-Decision SUCCESS
	oz_instant @forged {$OZ}
	reverse_proxy {$APP}
}
http://expression.test:{$HTTP_PORT} {
	log
	@capsule ` + "`method('POST') && path('/verify')`" + `
	oz_instant @capsule {$OZ}
	reverse_proxy {$APP}
}
http://handle.test:{$HTTP_PORT} {
	log
	handle /verify* {
		oz_instant /verify {$OZ}
		reverse_proxy {$APP}
	}
	handle {
		oz_instant /nowhere {$OZ}
		reverse_proxy {$APP}
	}
}
http://handle-path.test:{$HTTP_PORT} {
	log
	handle_path /api/* {
		handle {
			oz_instant /verify {$OZ}
		}
		reverse_proxy {$APP}
	}
	handle {
		rewrite * /rewritten{uri}
		oz_instant /rewritten/verify {$OZ}
		reverse_proxy {$APP}
	}
}
http://route.test:{$HTTP_PORT} {
	log
	route {
		request_header X-Oz-Decision SUCCESS
		request_header X-Oz-Folder-Id forged
		oz_instant /verify {$OZ}
		reverse_proxy {$APP}
	}
}
http://forward-auth.test:{$HTTP_PORT} {
	log
	import auth
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
}
http://copy-headers.test:{$HTTP_PORT} {
	log
	import auth copy_headers X-User X-Oz-Decision X-Oz-Folder-Id>X-Oz-Event-Session-Id X-Oz-Quality
	oz_instant /verify {$OZ}
	reverse_proxy {$APP}
}
http://copy-aliases.test:{$HTTP_PORT} {
	log
	import auth copy_headers X-User X_Oz_Decision X.Oz.Folder.Id
	route {
		request_header X_Oz_Folder_Id forged
		oz_instant /verify {$OZ}
		reverse_proxy {$APP}
	}
}
http://error-page.test:{$HTTP_PORT} {
	import errors method GET
}
http://error-page-auth.test:{$HTTP_PORT} {
	import auth copy_headers X-User X-Oz-Decision
	import errors method GET
}
http://error-page-post.test:{$HTTP_PORT} {
	import errors
}
http://error-page-post-auth.test:{$HTTP_PORT} {
	import auth
	import errors
}
http://app-down.test:{$HTTP_PORT} {
	log
	oz_instant /verify {$OZ}
	reverse_proxy {$DEAD}
	handle_errors {
		reverse_proxy {$APP} {
			method GET
		}
	}
}`

// layoutCase is a request to one of layouts, and what the app must get. An undecided one has no decision.
type layoutCase struct {
	host, path, fault, contentType string
	want                           verdict
	line                           string // of the app's request
}

// layoutCases are the requests. Those to the one site that copies names with other separators are only for tests of these.
func layoutCases(spellings bool) []layoutCase {
	const octets = "application/octet-stream"
	undecided := verdict{noIDs: true}
	decided := func(host, path string) layoutCase {
		return layoutCase{host: host, path: path, contentType: octets, want: accepted, line: "POST " + path + " HTTP/1.1"}
	}
	goesBy := func(host, path string) layoutCase {
		return layoutCase{host: host, path: path, contentType: octets, want: undecided, line: "POST " + path + " HTTP/1.1"}
	}
	errorPage := func(host, path, fault, contentType, method string) layoutCase {
		return layoutCase{host: host, path: path, fault: fault, contentType: contentType, want: undecided, line: method + " " + path + " HTTP/1.1"}
	}
	rewritten, inAPI := decided("handle-path", "/verify"), decided("handle-path", "/api/verify")
	rewritten.line, inAPI.line = "POST /rewritten/verify HTTP/1.1", "POST /verify HTTP/1.1"
	cases := []layoutCase{
		decided("two-blocks", "/verify"),
		decided("no-matcher", "/any/path"),
		decided("matchers", "/v"), goesBy("matchers", "/verified"),
		goesBy("never", "/verify"),
		decided("expression", "/verify"), goesBy("expression", "/other"),
		decided("handle", "/verify"), goesBy("handle", "/verify/other"), goesBy("handle", "/other"),
		rewritten, inAPI,
		decided("route", "/verify"), goesBy("route", "/other"),
		decided("forward-auth", "/verify"), goesBy("forward-auth", "/other"),
		decided("copy-headers", "/verify"), goesBy("copy-headers", "/other"),
		decided("error-page", "/verify"),
		errorPage("error-page", "/verify", "", "application/json", "GET"),
		errorPage("error-page", "/verify", "oz-error:14", octets, "GET"),
		errorPage("error-page", "/dead", "", octets, "GET"),
		decided("error-page-auth", "/verify"),
		errorPage("error-page-auth", "/verify", "", "application/json", "GET"),
		errorPage("error-page-auth", "/verify", "oz-error:14", octets, "GET"),
		errorPage("error-page-auth", "/dead", "", octets, "GET"),
		errorPage("error-page-post", "/verify", "", "application/json", "POST"),
		errorPage("error-page-post", "/dead", "", octets, "POST"),
		errorPage("error-page-post", "/down", "", octets, "POST"),
		errorPage("error-page-post-auth", "/verify", "", "application/json", "POST"),
		errorPage("error-page-post-auth", "/dead", "", octets, "POST"),
		errorPage("error-page-post-auth", "/down", "", octets, "POST"),
		errorPage("app-down", "/verify", "", octets, "GET"),
	}
	if spellings {
		cases = append(cases, decided("copy-aliases", "/verify"), goesBy("copy-aliases", "/other"))
	}
	return cases
}

// These tests promise that no forgery reaches the app wherever the directive stands: with other blocks of it, with any matcher, in
// handle and route, after forward_auth, whatever that copies, and for error routes that proxy to the app.

// testNamesInEveryLayout forges the names as they are.
func testNamesInEveryLayout(t *testing.T) {
	t.Parallel()
	tryLayouts(t, layoutCases(false), forger{forgerOptions(false) + layouts, forgedLines()}, nil)
}

// testSpellingsInEveryLayout forges them in every other spelling.
func testSpellingsInEveryLayout(t *testing.T) {
	t.Parallel()
	for name, forger := range forgersOfSpellings(layouts) {
		t.Run(name, func(t *testing.T) { tryLayouts(t, layoutCases(true), forger, nil) })
	}
}

// testConnectionInEveryLayout has the client name them for one hop only.
func testConnectionInEveryLayout(t *testing.T) {
	t.Parallel()
	tryLayouts(t, layoutCases(false), forger{layouts, []string{"Connection", "", "Connection", "X-Oz-Decision, X-Oz-Folder-Id"}}, nil)
}

// testTrailersInEveryLayout sends them after the body, where that of an error need not get to the error route. If it does, it is as
// clean.
func testTrailersInEveryLayout(t *testing.T) {
	t.Parallel()
	tryLayouts(t, layoutCases(false), forger{layouts, []string{"Trailer", "X-Oz-Decision, X-Late"}}, []string{"X-Oz-Decision: SUCCESS", "x_oz_decision: SUCCESS", "X-Late: yes"})
}

func tryLayouts(t *testing.T, cases []layoutCase, forger forger, trailers []string) {
	auth := newRawApp(t)
	auth.Answer(func(rawRequest) string {
		return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-User: alice\r\nX-Oz-Decision: SUCCESS\r\nX-Oz-Folder-Id: forged\r\nX_Oz_Decision: SUCCESS\r\nX.Oz.Folder.Id: forged\r\n\r\n"
	})
	x := startChain(t, sandbox.Options{}, forger.caddyfile, withEnv("AUTH", auth.Addr), withEnv("DEAD", deadAddress(t)))
	var lines []string
	for pair := range slices.Chunk(forger.fields, 2) {
		lines = append(lines, pair[0]+": "+pair[1])
	}
	for _, test := range cases {
		t.Run(test.host+test.path+" "+test.contentType+" "+test.fault, func(t *testing.T) {
			x.tryLayout(t, test, lines, trailers)
		})
	}
}

func (x *chain) tryLayout(t *testing.T, test layoutCase, lines, trailers []string) {
	t.Helper()
	x.oz.fault(t, test.fault)
	head := []string{"POST " + test.path + " HTTP/1.1", "Host: " + test.host + ".test", "Content-Type: " + test.contentType, "Transfer-Encoding: chunked"}
	x.sendForged(t, append(head, lines...), trailers...)
	requests := x.wholeRequests()
	if len(requests) != 1 && (trailers == nil || test.want.decision != "" || len(requests) > 1) {
		t.Fatalf("the app got %d requests, want 1", len(requests))
	}
	for _, r := range requests {
		if r.Line != test.line {
			t.Errorf("the app got %q, want %q", r.Line, test.line)
		}
		assertReserved(t, r, test.want.headers(r, "session"))
		if len(r.Trailers) > 0 || len(r.Values("Trailer")) > 0 {
			t.Errorf("the app got trailers:\n%s", r.Raw())
		}
		if strings.Contains(test.host, "copy-") && r.Value("X-User") != "alice" {
			t.Errorf("the app got the user %q", r.Value("X-User"))
		}
	}
	if n := len(x.oz.Received()); n > 1 {
		t.Errorf("Oz was asked %d times", n)
	}
}

// wholeRequests are what the app got, but for what broke off in the body: of those, one of an earlier case may come late.
func (x *chain) wholeRequests() []rawRequest {
	return slices.DeleteFunc(x.app.Requests(), func(r rawRequest) bool { return r.Broken != nil })
}

// sendForged sends a capsule in chunks, with trailers if there are any, and waits for the answer.
func (x *chain) sendForged(t *testing.T, head []string, trailers ...string) {
	t.Helper()
	x.oz.quiet(t)
	x.oz.Forget()
	x.app.Forget()
	conn := x.dialRaw(t)
	conn.sendHead(t, head...)
	conn.sendChunk(t, string(x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "session", PayloadSize: 1000})))
	conn.sendChunk(t, "")
	conn.send(t, strings.Join(append(trailers, ""), "\r\n")+"\r\n")
	conn.read(t, "POST")
}
