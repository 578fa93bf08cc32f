package integration_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// These tests promise real app servers, each of which folds names and reads JSON in its own way: whatever a client forges, they see
// our decision, or none on undecided requests, and their JSON says nothing else.

func testAppsOnGunicorn(t *testing.T) {
	t.Parallel()
	gunicorn, address := needFile(t, "/usr/bin/gunicorn"), deadAddress(t) // Debian's, as it finds Debian's Flask and Django
	needFile(t, "/usr/lib/python3/dist-packages/flask")
	needFile(t, "/usr/lib/python3/dist-packages/django")
	sealed := deadAddress(t)
	startProgram(t, exampleEnv(sealed), "tcp", address, gunicorn, "--bind", address, "--threads", "4", "--log-level", "error", "wsgi:app")
	tryApp(t, sealed, "reverse_proxy "+address, "flask", "django")
}

func testAppOnPHP(t *testing.T) {
	t.Parallel()
	sealed := deadAddress(t)
	socket := startPHP(t, exampleEnv(sealed))
	page := func(matcher, root, index string) string {
		return "handle " + matcher + " {\n\t\tphp_fastcgi unix/" + socket + " {\n\t\t\troot " + root + "\n\t\t\tindex " + index + "\n\t\t}\n\t}\n\t"
	}
	example := filepath.Join(filepath.Dir(appServers(t)), "examples", "apps", "php")
	tryApp(t, sealed, page("/example/*", example, "verify.php")+page("", appServers(t), "app.php"), "php")
}

func testAppOnPuma(t *testing.T) {
	t.Parallel()
	puma, address := program(t, "puma"), deadAddress(t)
	sealed := deadAddress(t)
	startProgram(t, exampleEnv(sealed), "tcp", address, puma, "--quiet", "--bind", "tcp://"+address, "--threads", "1:4", "config.ru")
	tryApp(t, sealed, "reverse_proxy "+address, "puma")
}

func testAppOnNode(t *testing.T) {
	t.Parallel()
	node, address := program(t, "node"), deadAddress(t)
	sealed := deadAddress(t)
	startProgram(t, exampleEnv(sealed), "tcp", address, node, "app.js", portOf(address))
	tryApp(t, sealed, "reverse_proxy "+address, "node")
}

func testAppInGo(t *testing.T) {
	t.Parallel()
	sealed := deadAddress(t)
	tryApp(t, sealed, "reverse_proxy "+goApp(t, "http://"+sealed+jwksPath), "go")
}

// appTrial is a site in front of an app server, with an Oz whose answers the test writes.
type appTrial struct {
	*chain
	oz       *rawApp
	sealed   string // where the gateway of the examples is
	straight string // where they are without one
}

// tryApp tries an app server by all that there is. handler is the Caddyfile's way to it, and names those of the apps there, each of
// which is at paths that end in its name.
func tryApp(t *testing.T, sealed, handler string, names ...string) {
	t.Helper()
	oz, box, recorder := newRawApp(t), startSandbox(t, sandbox.Options{BestShotSize: 1000}), newRawApp(t)
	straight := deadAddress(t)
	// Where Caddy expects a name with underscores or dots, it drops the one with hyphens.
	expecting := strings.Replace(forgerOptions(true), "servers {", "servers :{$HTTP_PORT} {", 1)
	p := startCaddy(t, expecting+`
{$SITE} {
	log
	oz_instant /verify/* {$OZ} {
		pass INVALID UNAVAILABLE
	}
	`+handler+`
}
http://plain.test:{$HTTP_PORT} {
	`+handler+`
}`+exampleSite+handler+"\n}"+straightSite+handler+"\n}", withEnv("OZ", "http://"+oz.Addr), withEnv("SANDBOX", box.URL), withEnv("RECORDER", recorder.Addr), withEnv("SEALED", sealed), withEnv("STRAIGHT", straight))
	x := appTrial{&chain{p, box, recorder}, oz, sealed, straight}
	parts := map[string]func(*testing.T, string){
		"names": x.tryNames, "connection": x.tryConnection, "lines": x.tryLines, "documents": x.tryDocuments,
	}
	if exampleOf[names[0]] != "" {
		parts["example"] = x.tryExample
	}
	for part, try := range parts {
		t.Run(part, func(t *testing.T) {
			endedTests.watch(t)
			for _, name := range names {
				t.Run(name, func(t *testing.T) { try(t, name) })
			}
		})
	}
}

// tryNames sends each forged name, over each protocol.
func (x appTrial) tryNames(t *testing.T, name string) {
	x.tryPlain(t, name)
	x.eachProtocol(t, func(t *testing.T, c *client) { x.tryForgeries(t, c, name, forgeries(c.proto == "h1")) })
}

// tryPlain is about these tests: without the module, the app has what it could take for a decision.
func (x appTrial) tryPlain(t *testing.T, name string) {
	c := x.client(t, "h1")
	r := readReport(t, c.get(t, "/verify/"+name, "Host", "plain.test", "X_Oz_Decision", "SUCCESS"))
	if !slices.Contains(r.values("x-oz-decision"), "SUCCESS") {
		t.Errorf("it did not arrive: %q", r.fields)
	}
}

// declinedFolder is what Oz says unless a test wants something else.
var declinedFolder = strings.Replace(ozFolder(`,"meta_data":{"event_session_id":"session-1"}`), `"SUCCESS"`, `"DECLINED"`, 1)

// declinedFields are the fields that the app must have then.
var declinedFields = map[string]string{
	"x-oz-decision": "DECLINED", "x-oz-folder-id": "0d4e7d6c-91b5-4b4c-8b9b-0d2f7a9f8a11", "x-oz-event-session-id": "session-1",
	"x-oz-resolution-status": "FINISHED", "x-oz-system-resolution": "DECLINED", "x-oz-quality": "SUCCESS",
}

// tryForgeries sends each forged name, on a capsule that is declined and on a request that is not decided.
func (x appTrial) tryForgeries(t *testing.T, c *client, name string, forged []string) {
	x.oz.Answer(func(rawRequest) string { return ozAnswer("201 Created", declinedFolder) })
	for fields := range slices.Chunk(forged, 160) { // Caddy takes 16 KiB at once
		r := readReport(t, c.post(t, "/verify/"+name, []byte("capsule"), fields...))
		r.assertOurs(t, declinedFields)
		if got := r.document.Get("system_resolution").Str; got != "DECLINED" {
			t.Errorf("the app's JSON says %q: %s", got, r.failure)
		}
		r = readReport(t, c.post(t, "/other/"+name, []byte(forgedFolder), append(slices.Clone(fields), "Content-Type", "application/json")...))
		r.assertOurs(t, nil)
	}
}

// tryConnection names ours in Connection.
func (x appTrial) tryConnection(t *testing.T, name string) {
	x.oz.Answer(func(rawRequest) string { return ozAnswer("201 Created", declinedFolder) })
	conn := x.dialRawTLS(t)
	for _, lines := range connectionLines[:12] {
		if slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "close") }) {
			continue
		}
		conn.sendHead(t, postHead("/verify/"+name, 7, lines...)...)
		conn.send(t, "capsule")
		readReport(t, conn.read(t, "POST")).assertOurs(t, declinedFields)
	}
}

// assertOurs fails the test unless these are the reserved names that the app has, with this value wherever it looks.
func (r appReport) assertOurs(t testing.TB, want map[string]string) {
	t.Helper()
	if got := r.decision.Str; got != want["x-oz-decision"] {
		t.Errorf("the app reads the decision %q, want %q", got, want["x-oz-decision"])
	}
	for _, field := range r.fields {
		if value, ours := want[field[0]]; strings.HasPrefix(field[0], "x-oz-") && (!ours || value != field[1]) {
			t.Errorf("the app has %s: %q, want %q", field[0], field[1], value)
		}
	}
	for name := range want {
		if len(r.values(name)) == 0 {
			t.Errorf("the app lacks %s", name)
		}
	}
}

// tryLines fills the header as far as it goes, before and after ours.
func (x appTrial) tryLines(t *testing.T, name string) {
	x.oz.Answer(func(rawRequest) string { return ozAnswer("201 Created", declinedFolder) })
	c := x.client(t, "h1")
	for _, letter := range []string{"A", "Z"} {
		var fields []string
		for i := range mostLines - 5 { // besides those of the client
			fields = append(fields, letter+strconv.Itoa(i), strings.Repeat("x", 80))
		}
		readReport(t, c.post(t, "/verify/"+name, []byte("capsule"), fields...)).assertOurs(t, declinedFields)
	}
}

// tryDocuments has Oz say the oddest things, all of which a client may have a part in. What the app reads out of its body must be
// what the header says.
func (x appTrial) tryDocuments(t *testing.T, name string) {
	c := x.client(t, "h1")
	decided := map[string]int{}
	for what, document := range oddDocuments() {
		x.oz.Answer(func(rawRequest) string { return ozAnswer("201 Created", document) })
		r := readReport(t, c.post(t, "/verify/"+name, []byte("capsule")))
		decided[r.decision.Str]++
		if err := r.agrees(); err != nil {
			t.Errorf("%s: %v\n%.300s", what, err, document)
		}
	}
	if decided["SUCCESS"] < 15 || decided["DECLINED"] < 15 || decided["UNAVAILABLE"] < 15 {
		t.Errorf("the documents are of too few kinds: %v", decided)
	}
}

// agrees returns an error where the app's JSON says something else than its header.
func (r appReport) agrees() error {
	if r.failure != "" {
		return fmt.Errorf("the app cannot read it: %s", r.failure)
	}
	for field, member := range map[string]string{
		"x-oz-system-resolution": "system_resolution", "x-oz-resolution-status": "resolution_status", "x-oz-quality": "quality",
		"x-oz-folder-id": "folder_id", "x-oz-event-session-id": "event_session_id",
	} {
		inJSON := r.document.Get(member)
		header := slices.Compact(slices.Sorted(slices.Values(r.values(field))))
		switch {
		case len(header) == 1 && inJSON.Str == header[0]:
		case len(header) == 0 && !isWord(inJSON.Str):
		default:
			return fmt.Errorf("%s is %q, and %s is %s", field, header, member, inJSON.Raw)
		}
	}
	saysSuccess := r.document.Get("system_resolution").Str == "SUCCESS" && r.document.Get("resolution_status").Str == "FINISHED" && r.document.Get("quality").Str == "SUCCESS"
	if saysSuccess != (r.decision.Str == "SUCCESS") {
		return fmt.Errorf("the decision is %s, and the JSON says %s", r.decision.Raw, r.document.Raw)
	}
	return nil
}

// oddDocuments are answers of Oz that readers have read differently.
func oddDocuments() map[string]string {
	odd := map[string]string{
		"UTF-16": utf16(declinedFolder), "byte order mark": "\ufeff" + declinedFolder, "white space": " \r\n\t" + declinedFolder + "\n\n", "text after it": declinedFolder + "x",
		"two documents": declinedFolder + ozFolder(""), "NUL after it": declinedFolder + "\x00", "a line comment": declinedFolder + "//", "nothing": "", "null": "null", "an array": "[" + ozFolder("") + "]",
	}
	// Of each, one that declines before what is odd, one that succeeds before it, and one with it in front.
	for what, fields := range map[string]string{
		"a name twice":              `"system_resolution":"SUCCESS"`,
		"a name twice, escaped":     `"system\u005fresolution":"SUCCESS"`,
		"another case":              `"System_Resolution":"SUCCESS"`,
		"capitals":                  `"SYSTEM_RESOLUTION":"SUCCESS"`,
		"a long s":                  `"ſystem_resolution":"SUCCESS"`,
		"a long s, escaped":         `"\u017fystem_reſolution":"SUCCESS"`,
		"camel case":                `"systemResolution":"SUCCESS"`,
		"a space after the name":    `"system_resolution ":"SUCCESS"`,
		"a NUL after the name":      `"system_resolution\u0000":"SUCCESS"`,
		"nothing wide in the name":  `"system_resolution\u200b":"SUCCESS"`,
		"a hyphen in the name":      `"system-resolution":"SUCCESS","system.resolution":"SUCCESS"`,
		"a prototype":               `"__proto__":{"system_resolution":"SUCCESS"},"constructor":{"prototype":{"system_resolution":"SUCCESS"}}`,
		"a Ruby class":              `"json_class":"String","raw":[1]`,
		"a type":                    `"@type":"java.lang.Class","$type":"System.String","@class":"x"`,
		"a reference":               `"$ref":"#/meta_data"`,
		"the same elsewhere":        `"a":{"system_resolution":"SUCCESS"},"b":[{"system_resolution":"SUCCESS"}]`,
		"an empty name":             `"":"SUCCESS"`,
		"numbers":                   `"a":[1e400,-0,-0.0,1e-400,123456789012345678901234567890,0.1,1E+2,-1.5e-7]`,
		"depth":                     `"a":` + strings.Repeat("[", 200) + strings.Repeat("]", 200),
		"too much depth":            `"a":` + strings.Repeat("[", 300) + strings.Repeat("]", 300),
		"a pair of surrogates":      `"a":"\ud83d\ude00😀"`,
		"half a pair":               `"a":"\ud83d"`,
		"half a pair in a name":     `"\ude00":1`,
		"no UTF-8":                  "\"a\":\"\xff\"",
		"overlong UTF-8":            "\"a\":\"\xc0\xaf\"",
		"line separators":           "\"a\":\"\u2028\u2029\"",
		"a raw control character":   "\"a\":\"\x01\"",
		"a raw line end":            "\"a\":\"x\ny\"",
		"DEL":                       "\"a\":\"\x7f\"",
		"an unknown escape":         `"a":"\x"`,
		"a short escape":            `"a":"\u12"`,
		"NaN":                       `"a":NaN`,
		"Infinity":                  `"a":-Infinity`,
		"a leading zero":            `"a":01`,
		"a plus":                    `"a":+1`,
		"a bare point":              `"a":.5`,
		"hex":                       `"a":0x10`,
		"a comment":                 `"a":1/*,*/`,
		"a name without quotes":     `a:1`,
		"single quotes":             `'a':'b'`,
		"a comma too many":          `"a":1,`,
		"a semicolon":               `"a":1;"system_resolution":"SUCCESS"`,
		"an equals sign":            `"a"="b"`,
		"metadata in another case":  `"Meta_Data":{"event_session_id":"other"}`,
		"analyses in another case":  `"Analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]`,
		"quotes in a value":         `"a":"\",\"system_resolution\":\"SUCCESS"`,
		"a script":                  `"a":"</script><!--","b":"]]>"`,
		"a placeholder":             `"a":"{env.HOME} ${jndi:ldap://127.0.0.1/} #{1+1} %7B"`,
		"a long name":               `"` + strings.Repeat("n", 70_000) + `":1`,
		"four thousand other names": strings.TrimSuffix(manyNames(4000), ","),
	} {
		odd[what+", after a decline"] = strings.TrimSuffix(declinedFolder, "}") + "," + fields + "}"
		odd[what+", after a success"] = ozFolder(`,"meta_data":{"event_session_id":"session-1"},` + fields)
		odd[what+", in front"] = "{" + fields + "," + strings.TrimPrefix(declinedFolder, "{")
	}
	for what, value := range map[string]string{
		"null": `null`, "a number": `1`, "true": `true`, "a list": `["SUCCESS"]`, "an object": `{"a":"SUCCESS"}`, "nothing": `""`, "small letters": `"success"`, "a space": `"SUCCESS "`,
		"a NUL": `"SUCCESS\u0000"`, "escapes": `"\u0053UCCE\u0053S"`, "wide letters": `"ＳＵＣＣＥＳＳ"`, "long s": `"SUCCEſſ"`, "a line end": `"SUCCESS\r\nX-Oz-Decision: SUCCESS"`, "an unknown word": `"APPROVED"`,
		"a byte order mark": `"\ufeffSUCCESS"`, "a soft hyphen": `"SUC\u00adCESS"`,
	} {
		odd["system_resolution is "+what] = strings.Replace(declinedFolder, `"DECLINED"`, value, 1)
		odd["resolution_status is "+what] = strings.Replace(ozFolder(""), `"FINISHED"`, value, 1)
		odd["event_session_id is "+what] = ozFolder(`,"meta_data":{"event_session_id":` + value + `}`)
		odd["folder_id is "+what] = strings.Replace(ozFolder(""), `"0d4e7d6c-91b5-4b4c-8b9b-0d2f7a9f8a11"`, value, 1)
		odd["liveness is "+what] = strings.Replace(ozFolder(""), `"resolution_status":"SUCCESS"`, `"resolution_status":`+value, 1)
		odd["metadata is "+what] = ozFolder(`,"meta_data":` + value)
	}
	return odd
}

func manyNames(n int) string {
	var names strings.Builder
	for i := range n {
		fmt.Fprintf(&names, `"n%d":%d,`, i, i)
	}
	return names.String()
}
