package integration_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// The apps of integration/examples/apps run in the app servers of threats_appservers_test.go, so that each of those starts once.
// That
// for Spring has a server of its own in examples_more_test.go, and that for ASP.NET is only parsed.

// exampleAudience is for whom the examples' gateway seals.
const exampleAudience = "https://app.example.com"

// exampleSite is a gateway in front of an example, at {$SEALED}. Two more routes seal for a recorder, one of them for another audience.
const exampleSite = `
http://{$SEALED} {
	oz_instant /example/* {$SANDBOX} {
		pass INVALID UNAVAILABLE
		seal {
			audience ` + exampleAudience + `
			subject {cookie.user}
		}
	}
	oz_instant /recorded {$SANDBOX} {
		seal {
			audience ` + exampleAudience + `
			subject {cookie.user}
		}
	}
	oz_instant /recorded/other {$SANDBOX} {
		seal {
			audience https://other.example.com
			subject {cookie.user}
		}
	}
	handle /recorded* {
		reverse_proxy {$RECORDER}
	}
	`

// straightSite is a way around the gateway, at {$STRAIGHT}.
const straightSite = `
http://{$STRAIGHT} {
	`

// exampleEnv is the environment of an example that fetches its keys from the site at that address.
func exampleEnv(sealed string) []string {
	return []string{"OZ_JWKS=http://" + sealed + jwksPath, "OZ_AUDIENCE=" + exampleAudience}
}

// exampleNeeds are the libraries of each example, as Debian and npm install them.
var exampleNeeds = map[string][]string{
	"express": {"examples/apps/express/node_modules/express", "examples/verify/node/node_modules/jose"},
	"flask":   {"/usr/lib/python3/dist-packages/jwt"},
	"django":  {"/usr/lib/python3/dist-packages/jwt"},
	"php":     {"/usr/share/php/phpseclib3/autoload.php", "/etc/php/*/mods-available/apcu.ini"},
	"rack":    {"/usr/share/rubygems-integration/all/gems/jwt-*/lib/jwt.rb"},
	"go":      nil,
}

func needExample(t testing.TB, name string) {
	t.Helper()
	for _, pattern := range exampleNeeds[name] {
		found, err := filepath.Glob(pattern)
		check(t, err)
		if len(found) == 0 {
			needFile(t, pattern)
		}
	}
}

// exampleTrial is an example after a gateway, and a way around it.
type exampleTrial struct {
	oz       *ozServer
	recorder *rawApp
	gateway  *client
	straight *client // to the example, past the gateway
	name     string
}

// says fails the test unless the example answered that.
func says(t testing.TB, what string, a answer, status int, message, reason string) {
	t.Helper()
	if got := gjson.ParseBytes(a.Body); a.Status != status || got.Get("message").Str != message || got.Get("reason").Str != reason {
		t.Errorf("%s: got %d %.300s, want %d %q %q", what, a.Status, a.Body, status, message, reason)
	}
}

// noCookie is a user who brings no cookie, and emptyName one with a cookie without a name. Neither is signed in.
const noCookie, emptyName = "", " "

// cookie is the field of a user's sign-in.
func cookie(user string) []string {
	if user == noCookie {
		return nil
	}
	return []string{"Cookie", "user=" + strings.TrimSpace(user)}
}

// capsule posts a capsule that ends so, as that user.
func (x exampleTrial) capsule(t testing.TB, path, user, fault string) answer {
	t.Helper()
	x.oz.fault(t, fault)
	return x.gateway.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{PayloadSize: 1000}), cookie(user)...)
}

// record returns a seal and its folder as the app gets them.
func (x exampleTrial) record(t testing.TB, path, user, fault string) (seal string, folder []byte) {
	t.Helper()
	x.recorder.Forget()
	x.capsule(t, path, user, fault)
	r := x.recorder.Only(t)
	return r.Value("X-Oz-Seal"), r.Body
}

const notVerified = "not verified"

// exampleAnswers are what each example answers to a decision, which comes about by a fault of Oz's.
var exampleAnswers = []struct {
	decision, fault string
	status          int
	message, reason string
}{
	{"SUCCESS", "", 200, "welcome", ""},
	{"DECLINED", "outcome:DECLINED", 403, "declined", ""},
	{"OPERATOR_REQUIRED", "word:OPERATOR_REQUIRED", 202, "wait until a person has looked at it", ""},
	{"FAILED", "outcome:FAILED", 503, "could not be checked: capture anew, later", "analysis_failed"},
	{"INVALID", "oz-error:14", 400, "does not count: capture anew", "container"},
	{"UNAVAILABLE", "status:503", 503, "not decided: capture anew, later", "overloaded"},
}

// decide promises that the client sees another answer after each of the six decisions, and lets nobody in but after SUCCESS.
func (x exampleTrial) decide(t *testing.T) {
	for _, test := range exampleAnswers {
		says(t, test.decision, x.capsule(t, "/example/"+x.name, "alice", test.fault), test.status, test.message, test.reason)
	}
	for _, user := range []string{noCookie, emptyName} {
		says(t, "not signed in", x.capsule(t, "/example/"+x.name, user, ""), 403, notVerified, "")
	}
}

// forge promises that a request which goes around the gateway lets nobody in, whatever seal and folder it has of others. A seal of
// the user's own is good for a minute: the first one shows that nothing but what is forged keeps the others out.
func (x exampleTrial) forge(t *testing.T) {
	seal, folder := x.record(t, "/recorded", "alice", "")
	_, declined := x.record(t, "/recorded", "mallory", "outcome:DECLINED")
	declinedSeal, _ := x.record(t, "/recorded", "alice", "outcome:DECLINED")
	otherSeal, otherFolder := x.record(t, "/recorded/other", "alice", "")
	nobodysSeal, nobodysFolder := x.record(t, "/recorded", noCookie, "")
	post := func(user, seal string, folder []byte, fields ...string) answer {
		fields = append(slices.Concat(fields, cookie(user)), "Content-Type", "application/json", "X-Oz-Decision", "SUCCESS")
		if seal != "" {
			fields = append(fields, "X-Oz-Seal", seal)
		}
		return x.straight.post(t, "/example/"+x.name, folder, fields...)
	}
	says(t, "a seal of the user's own", post("alice", seal, folder), 200, "welcome", "")
	signature := strings.LastIndexByte(seal, '.') + 1
	for what, a := range map[string]answer{
		"no seal":                         post("alice", "", folder),
		"no seal at all":                  post("alice", "x", folder),
		"another signature":               post("alice", seal[:signature]+strings.Map(rot, seal[signature:]), folder),
		"other claims":                    post("alice", withClaims(declinedSeal, seal), folder),
		"a seal of another folder":        post("alice", seal, declined),
		"a seal without its folder":       post("alice", seal, nil),
		"a folder with one byte more":     post("alice", seal, append(slices.Clone(folder), ' ')),
		"seal and folder of another":      post("mallory", seal, folder),
		"seal and folder, not signed in":  post(noCookie, seal, folder),
		"seal and folder, without a name": post(emptyName, seal, folder),
		"nobody's, not signed in":         post(noCookie, nobodysSeal, nobodysFolder),
		"nobody's, without a name":        post(emptyName, nobodysSeal, nobodysFolder),
		"another audience":                post("alice", otherSeal, otherFolder),
	} {
		says(t, what, a, 403, notVerified, "")
	}
}

// rot makes another letter of a letter.
func rot(r rune) rune {
	switch {
	case r >= 'A' && r <= 'M', r >= 'a' && r <= 'm':
		return r + 13
	case r >= 'N' && r <= 'Z', r >= 'n' && r <= 'z':
		return r - 13
	}
	return r
}

// withClaims returns the seal with the claims of another.
func withClaims(seal, other string) string {
	parts := strings.Split(seal, ".")
	parts[1] = strings.Split(other, ".")[1]
	return strings.Join(parts, ".")
}

// exampleOf are the examples by the app servers that they run in. Tomcat has none.
var exampleOf = map[string]string{"flask": "flask", "django": "django", "php": "php", "puma": "rack", "node": "express", "go": "go"}

// tryExample has the example in an app server decide, and tries to get around it.
func (x appTrial) tryExample(t *testing.T, server string) {
	name := exampleOf[server]
	needExample(t, name)
	e := exampleTrial{oz: x.chain.oz, recorder: x.chain.app, gateway: x.client(t, "h1"), straight: x.client(t, "h1"), name: name}
	e.gateway.URL, e.straight.URL = "http://"+x.sealed, "http://"+x.straight
	e.decide(t)
	e.forge(t)
}

// answerLine is a row of an example's table.
var answerLine = regexp.MustCompile(`"([A-Z_]+)"\W+(\d{3}), "([^"]+)"`)

// TestExampleForASPNET promises of the example that no test runs the answers of the others.
func TestExampleForASPNET(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("examples", "apps", "aspnet", "Program.cs"))
	check(t, err)
	got := map[string]string{}
	for _, row := range answerLine.FindAllStringSubmatch(string(text), -1) {
		got[row[1]] = row[2] + " " + row[3]
	}
	want := map[string]string{}
	for _, a := range exampleAnswers {
		want[a.decision] = strconv.Itoa(a.status) + " " + a.message
	}
	if !maps.Equal(got, want) {
		t.Errorf("it answers %v, want %v", got, want)
	}
}
