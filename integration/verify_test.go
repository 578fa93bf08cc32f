package integration_test

import (
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// verifiers return the command that runs each program of examples/verify, without its arguments. That in Java is with what else is
// compiled for the JVM, in examples_more_test.go. That in C# is nowhere: Debian has no .NET.
var verifiers = map[string]func(t testing.TB, folder string) []string{
	"Go": func(t testing.TB, folder string) []string {
		binary := filepath.Join(t.TempDir(), "verify")
		if out, err := exec.CommandContext(t.Context(), program(t, "go"), "build", "-o", binary, filepath.Join(folder, "go")).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return []string{binary}
	},
	"Python": func(t testing.TB, folder string) []string {
		// Debian's packages are for Debian's Python, which need not be the first in PATH.
		python := program(t, "python3")
		if exec.Command(python, "-c", "import jwt, cryptography").Run() != nil {
			python = "/usr/bin/python3"
		}
		needs(t, "PyJWT", exec.Command(python, "-c", "import jwt, cryptography").Run())
		return []string{python, filepath.Join(folder, "python", "verify.py")}
	},
	"Node.js": func(t testing.TB, folder string) []string {
		node := program(t, "node")
		_, err := os.Stat(filepath.Join(folder, "node", "node_modules", "jose"))
		needs(t, "jose for Node.js", err)
		return []string{node, filepath.Join(folder, "node", "verify.js")}
	},
	"PHP": func(t testing.TB, folder string) []string {
		command := []string{program(t, "php"), "-d", "apc.enable_cli=1"}
		const probe = `require 'phpseclib3/autoload.php'; exit(function_exists('apcu_add') ? 0 : 1);`
		needs(t, "phpseclib with APCu", exec.Command(command[0], "-r", probe).Run())
		return append(command, filepath.Join(folder, "php", "verify.php"))
	},
	"Ruby": func(t testing.TB, folder string) []string {
		ruby := program(t, "ruby")
		needs(t, "jwt for Ruby", exec.Command(ruby, "-rjwt", "-e", "").Run())
		return []string{ruby, filepath.Join(folder, "ruby", "verify.rb")}
	},
}

// In these tests verifiers fetch the keys no more often than each coolDown, and keep them for keysLife.
const (
	coolDown = time.Second
	keysLife = 2 * time.Second
)

// verdicts counts what a verifier says.
type verdicts struct {
	*verifier
	accepted, refused int
}

// judge has a seal judged. decision is what must be accepted; empty: it must be refused.
func (v *verdicts) judge(t testing.TB, name, seal, decision string) {
	t.Helper()
	got := v.verdict(t, seal)
	switch {
	case decision != "" && got != "ok "+decision:
		t.Errorf("%s: got %q, want ok %s", name, got, decision)
	case decision != "":
		v.accepted++
	case !strings.HasPrefix(got, "no: "):
		t.Errorf("%s: got %q, want a refusal", name, got)
	default:
		v.refused++
	}
}

// await has seals judged until the verdict is as wanted. Only the program's own clock can bring that about.
func (v *verdicts) await(t testing.TB, what string, seal func() string, want string) {
	t.Helper()
	start := time.Now()
	for {
		got := v.verdict(t, seal())
		if strings.HasPrefix(got, want) {
			return
		}
		if time.Since(start) > patience {
			t.Fatalf("%s: %q after %v, want %s", what, got, patience, want)
		}
		time.Sleep(coolDown / 20)
	}
}

// madeSeal is a seal that a gateway made, with where its keys are and a file with the folder that came with it.
type madeSeal struct{ token, keys, folder string }

// madeBy returns the seal on the request that the app has got.
func madeBy(t testing.TB, x *chain) madeSeal {
	t.Helper()
	r := x.app.Only(t)
	file := filepath.Join(t.TempDir(), "folder")
	check(t, os.WriteFile(file, folderPart(t, r), 0o600))
	return madeSeal{r.Value("X-Oz-Seal"), "http://" + x.HTTP + jwksPath, file}
}

func realSeal(t testing.TB) madeSeal {
	t.Helper()
	x := startChain(t, sandbox.Options{}, sealSite, withEnv("ISSUER", "i"))
	x.client(t, "h1").post(t, "/long", x.oz.Capsule(sandbox.CapsuleSpec{})) // tests may wait for each other
	return madeBy(t, x)
}

// TestVerifiers starts what each language needs once for all of its parts. They mostly wait, and do so side by side from the start:
// parallel tests of parallel tests begin after all others.
func TestVerifiers(t *testing.T) {
	t.Parallel()
	vectors := readSealVectors(t)
	real := realSeal(t)
	var languages sync.WaitGroup
	for language, command := range verifiers {
		languages.Go(func() {
			t.Run(language, func(t *testing.T) {
				line := command(t, verifyFolder(t))
				var parts sync.WaitGroup
				parts.Go(func() {
					t.Run("with keys", func(t *testing.T) { testVerifier(t, language, line, vectors, real) })
				})
				for faults := range slices.Chunk(slices.Sorted(maps.Keys(keyFaults)), faultsAtATime(language)) {
					parts.Go(func() {
						t.Run("without keys", func(t *testing.T) { testVerifierWithoutKeys(t, line, vectors, faults) })
					})
				}
				parts.Wait()
			})
		})
	}
	languages.Wait()
}

// faultsAtATime returns how many faults one process goes through. PHP's cache counts whole seconds, so that each takes two.
func faultsAtATime(language string) int {
	if language == "PHP" {
		return 5
	}
	return len(keyFaults)
}

// testVerifier promises of a verifier that it accepts each good seal and refuses each bad one, that clocks may be half a minute
// apart, that a new key is good once it is published, and an old one isn't for ever, and that unknown kids cause no more requests for
// the keys than one in each cool-down.
func testVerifier(t *testing.T, language string, line []string, vectors sealVectors, real madeSeal) {
	key, shared := newSealKey(t), newSealKey(t)
	wrongKind := newRSAKey(t, shared.kid)
	nameless := newSealKey(t)
	nameless.kid = ""
	next := newSealKey(t)
	site := newKeySite(t, append(slices.Clone(vectors.keys), key.published(t), wrongKind.published(t), shared.published(t), nameless.published(t))...)

	start := time.Now()
	v := &verdicts{verifier: startVerifier(t, line, site.URL, vectors.Audience, vectors.Folder,
		strconv.Itoa(int(coolDown.Seconds())), strconv.Itoa(int(keysLife.Seconds())))}
	for _, vector := range vectors.Vectors {
		v.judge(t, vector.Name, vector.Token, vector.Decision)
	}
	seal := func(k sealKey, issued, expires time.Duration) string {
		return k.seal(t, vectors, issued, expires)
	}
	v.judge(t, "just expired", seal(key, -time.Minute, -10*time.Second), "SUCCESS")
	v.judge(t, "expired for half a minute", seal(key, -time.Minute, -31*time.Second), "")
	v.judge(t, "issued in a moment", seal(key, 20*time.Second, time.Minute), "SUCCESS")
	v.judge(t, "issued in a minute", seal(key, time.Minute, 2*time.Minute), "")
	v.judge(t, "RSA key under the kid of an EC key", seal(wrongKind, 0, time.Minute), "")
	v.judge(t, "key without a kid", seal(nameless, 0, time.Minute), "")
	for range 20 {
		v.judge(t, "made-up kid", seal(newSealKey(t), 0, time.Minute), "")
	}

	v.judge(t, "key that is not published yet", seal(next, 0, time.Minute), "")
	site.publish(next.published(t))
	v.await(t, "a published key", func() string { return seal(next, 0, time.Minute) }, "ok SUCCESS")
	v.judge(t, "made-up kid after the new key", seal(newSealKey(t), 0, time.Minute), "")
	v.judge(t, "old key after the new one", vectors.vector(t, "good").Token, "SUCCESS")
	site.withdraw(next.published(t))
	v.await(t, "a key that was taken back", func() string { return vectors.vector(t, "good").Token }, "no: ")
	v.judge(t, "new key alone", seal(next, 0, time.Minute), "SUCCESS")
	most := 1 + int(time.Since(start)/coolDown)
	if n := site.requests(); n < 2 || n > most {
		t.Errorf("%d requests for the keys, want 2 to %d", n, most)
	}
	if exit := v.end(t); exit != 1 {
		t.Errorf("exit %d after refusals, want 1", exit)
	}

	again := newKeySite(t, vectors.keys...)
	all := &verdicts{verifier: startVerifier(t, line, again.URL, vectors.Audience, "-")}
	all.judge(t, "good, without a folder", vectors.vector(t, "good").Token, "SUCCESS")
	all.judge(t, "another folder, at which nobody looks", vectors.vector(t, "folder changed").Token, "SUCCESS")
	if exit := all.end(t); exit != 0 {
		t.Errorf("exit %d with nothing refused, want 0", exit)
	}
	for name, file := range map[string]string{"no folder": "", "an empty folder": os.DevNull} {
		none := &verdicts{verifier: startVerifier(t, line, again.URL, vectors.Audience, file)}
		none.judge(t, name, vectors.vector(t, "good").Token, "")
		none.judge(t, name+", of which there is a digest", vectors.vector(t, "folder empty").Token, "")
		if exit := none.end(t); exit != 1 {
			t.Errorf("exit %d after refusals, want 1", exit)
		}
	}

	one := &verdicts{verifier: startVerifier(t, line, real.keys, "app", real.folder)}
	one.judge(t, "made by a gateway", real.token, "SUCCESS")
	if exit := one.end(t); exit != 0 {
		t.Errorf("exit %d after the gateway's own seal, want 0", exit)
	}
	if !t.Failed() {
		t.Logf("%s accepts all %d good ones, refuses each of %d bad ones, takes a new key, forgets an old one, and asked %d times for the keys",
			language, v.accepted+all.accepted+one.accepted, v.refused, site.requests())
	}
}

// keyFaults are answers that publish no keys.
var keyFaults = map[string]http.HandlerFunc{
	"an error":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
	"a redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, movedKeys, http.StatusFound) },
	"a hang-up":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	"half a body":  keysAre(`{"keys":[`, "Content-Length", "1000"),
	"no JSON":      keysAre("no JSON"),
	"null":         keysAre("null"),
	"an array":     keysAre("[1]"),
	"no keys":      keysAre("{}"),
	"numbers":      keysAre(`{"keys":[1]}`),
	"an object":    keysAre(`{"keys":{"a":1}}`),
	"no x, no y":   keysAre(`{"keys":[{"kty":"EC","crv":"P-256","kid":"k"}]}`),
	"x a number":   keysAre(`{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":1,"y":1}]}`),
	"off curve":    keysAre(`{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"AAAA","y":"AAAA"}]}`),
	"kid an array": keysAre(`{"keys":[{"kty":"EC","crv":"P-256","kid":[],"x":"AAAA","y":"AAAA"}]}`),
}

func keysAre(document string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for pair := range slices.Chunk(headers, 2) {
			w.Header().Set(pair[0], pair[1])
		}
		io.WriteString(w, document)
	}
}

// testVerifierWithoutKeys promises of a verifier that whatever a site answers instead of keys is a refusal as any other, that it
// asks for them no more often than once in each cool-down while that lasts, and that it doesn't trust the keys that it has longer than
// otherwise.
func testVerifierWithoutKeys(t *testing.T, line []string, vectors sealVectors, faults []string) {
	good := vectors.vector(t, "good").Token
	site := newKeySite(t, vectors.keys...)
	start := time.Now()
	v := &verdicts{verifier: startVerifier(t, line, site.URL, vectors.Audience, vectors.Folder,
		strconv.Itoa(int(coolDown.Seconds())), strconv.Itoa(int(keysLife.Seconds())))}
	for _, name := range faults {
		site.breaks(keyFaults[name])
		for asked := site.requests(); site.requests() == asked; time.Sleep(coolDown / 20) {
			v.judge(t, name, good, "")
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	site.breaks(nil)
	v.await(t, "after the faults", func() string { return good }, "ok SUCCESS")
	site.breaks(keyFaults["an error"])
	v.await(t, "keys that can't be fetched again", func() string {
		v.judge(t, "made-up kid", newSealKey(t).seal(t, vectors, 0, time.Minute), "")
		return good
	}, "no: ")
	site.breaks(nil)
	v.await(t, "keys that can be fetched again", func() string { return good }, "ok SUCCESS")
	// After the hang-up Go and Java may ask once again within one try (RFC 9110 9.2.2), which Java can't be told not to do.
	if n, most := site.requests(), 2+int(time.Since(start)/coolDown); n > most {
		t.Errorf("%d requests for the keys, want %d at most", n, most)
	}
	if exit := v.end(t); exit != 1 {
		t.Errorf("exit %d after refusals, want 1", exit)
	}
}

// TestVerifyCommand promises the claims of a good seal and exit code 0, and of a bad one what doesn't hold and exit code 1.
func TestVerifyCommand(t *testing.T) {
	t.Parallel()
	vectors := readSealVectors(t)
	site := newKeySite(t, vectors.keys...)
	base, _, _ := strings.Cut(site.URL, "/.well-known")
	verify := func(stdin string, args ...string) command {
		return runCaddy(t, stdin, nil, append([]string{"oz-instant", "verify"}, args...)...)
	}
	good, bad := vectors.vector(t, "good").Token, vectors.vector(t, "expired").Token

	got := verify(good+"\n", "--jwks", base, "--audience", vectors.Audience, "--folder", vectors.Folder, "-")
	if got.Exit != 0 || got.Err != "" {
		t.Errorf("good: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
	if line := missing("kid …\naud … https://app.example.com\ndecision … SUCCESS\nexp … 2100-01-01T00:00:00Z, in …days\nfolder_sha256 …\npath … /verify", got.Out); line != "" {
		t.Errorf("good: %q is not in\n%s", line, got.Out)
	}
	got = verify("", "--jwks", vectors.JWKS, "--audience", vectors.Audience, "--json", good)
	if doc := gjson.Parse(got.Out); got.Exit != 0 || !doc.Get("holds").Bool() || doc.Get("claims.decision").Str != "SUCCESS" || doc.Get("failures").Exists() {
		t.Errorf("good, as JSON: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}

	got = verify("", "--jwks", vectors.JWKS, "--audience", "other", "--folder", vectors.JWKS, bad)
	if line := missing("the seal does not hold:\nexpired: expired since 2020-01-01T00:01:00Z…\naudience: aud is …\nfolder: …, not a re-serialised body", got.Out); got.Exit != 1 || line != "" {
		t.Errorf("bad: exit %d, %q is not in\n%s%s", got.Exit, line, got.Out, got.Err)
	}
	got = verify("", "--jwks", vectors.JWKS, "--audience", vectors.Audience, "--json", bad)
	if doc := gjson.Parse(got.Out); got.Exit != 1 || doc.Get("holds").Bool() || doc.Get("failures.#").Int() != 1 || doc.Get("failures.0.fault").Str != "expired" {
		t.Errorf("bad, as JSON: exit %d\n%s%s", got.Exit, got.Out, got.Err)
	}
	for want, args := range map[string][]string{
		"required flag(s) \"audience\"":     {"--jwks", vectors.JWKS, good},
		"--audience, --issuer: must not be": {"--jwks", vectors.JWKS, "--audience", "", good},
		"required flag(s) \"jwks\"":         {"--audience", vectors.Audience, good},
		"plain http":                        {"--jwks", "http://app.internal", "--audience", vectors.Audience, good},
		"no such file":                      {"--jwks", vectors.JWKS, "--audience", vectors.Audience, "--folder", "none.json", good},
	} {
		if got := verify("", args...); got.Exit != 1 || !strings.Contains(got.Err, want) {
			t.Errorf("%v: exit %d, want %s in\n%s%s", args, got.Exit, want, got.Out, got.Err)
		}
	}
}

// TestVerifyCommandOnFolders promises that seals of the gateway hold with the folder as the app gets it, in each form that it has.
func TestVerifyCommandOnFolders(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, sealSite, withEnv("ISSUER", "gateway-7"))
	for _, test := range []struct{ path, fault, issuer, decision string }{
		{"/verify", "", "oz_instant", "SUCCESS"},
		{"/keep", "", "gateway-7", "SUCCESS"},
		{"/attach", "", "oz_instant", "SUCCESS"},
		{"/pass", "oz-error:14", "oz_instant", "INVALID"},
	} {
		x.oz.fault(t, test.fault)
		x.app.Forget()
		x.client(t, "h2").post(t, test.path, x.oz.Capsule(sandbox.CapsuleSpec{}))
		seal := madeBy(t, x)
		got := runCaddy(t, seal.token, nil, "oz-instant", "verify", "--jwks", "http://"+x.HTTP, "--audience", "app", "--issuer", test.issuer,
			"--folder", seal.folder, "--json", "-")
		if got.Exit != 0 || gjson.Get(got.Out, "claims.decision").Str != test.decision || gjson.Get(got.Out, "claims.path").Str != test.path {
			t.Errorf("%s: exit %d\n%s%s", test.path, got.Exit, got.Out, got.Err)
		}
	}
}
