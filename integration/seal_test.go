package integration_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const jwksPath = "/.well-known/oz-instant/jwks.json"

const sealSite = `
{$SITE} {
	log
	rewrite /outside* /verify
	oz_instant /verify* {$OZ} {
		seal {
			audience app
			subject user-{http.request.header.User}
		}
	}
	oz_instant /keep {$OZ} {
		best_shot keep
		seal {
			audience app
			issuer {env.ISSUER}
			lifetime 5m
		}
	}
	oz_instant /long {$OZ} {
		seal {
			audience app
			lifetime 1h
		}
	}
	oz_instant /attach {$OZ} {
		best_shot attach
		seal {
			audience app
		}
	}
	oz_instant /pass {$OZ} {
		pass INVALID UNAVAILABLE
		handle_decision DECLINED {
			request_header X-Routed yes
		}
		seal {
			audience app
		}
	}
	oz_instant /plain {$OZ}
	reverse_proxy {$APP}
}`

// sealedBy verifies a seal as an app would, with the keys that the site publishes, and returns its claims.
func sealedBy(t testing.TB, set jose.JSONWebKeySet, token string) map[string]any {
	t.Helper()
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	check(t, err)
	header := jws.Signatures[0].Protected
	if header.Algorithm != "ES256" || header.ExtraHeaders["typ"] != "oz-seal+jwt" || header.JSONWebKey != nil || len(header.ExtraHeaders) != 1 {
		t.Errorf("the header is %+v", header)
	}
	keys := set.Key(header.KeyID)
	if len(keys) != 1 {
		t.Fatalf("%d keys are published with the kid %q", len(keys), header.KeyID)
	}
	thumbprint, err := keys[0].Thumbprint(crypto.SHA256)
	check(t, err)
	if header.KeyID != base64.RawURLEncoding.EncodeToString(thumbprint) {
		t.Errorf("the kid %s isn't the thumbprint", header.KeyID)
	}
	payload, err := jws.Verify(keys[0])
	check(t, err)
	claims := map[string]any{}
	check(t, json.Unmarshal(payload, &claims))
	return claims
}

func (c *client) keySet(t testing.TB) (set jose.JSONWebKeySet) {
	t.Helper()
	a := c.get(t, jwksPath)
	if a.Status != http.StatusOK {
		t.Fatalf("the key set: %d %s", a.Status, a.Body)
	}
	check(t, json.Unmarshal(a.Body, &set))
	return set
}

// TestSeal promises the app a proof of each decision that it gets: every fact of the header, whom it is for, the request line as the
// client sent it, and the folder that came with it.
func TestSeal(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, sealSite, withEnv("ISSUER", "gateway-7"))
	seen := map[string]bool{}
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for _, test := range []struct {
			target, fault, decision string
			fields                  []string
			want                    map[string]any // nil: absent
			life                    float64
		}{
			{target: "/verify", decision: "SUCCESS", want: map[string]any{"path": "/verify", "sub": nil}},
			{target: "/verify", decision: "SUCCESS", fields: []string{"User", "7"}, want: map[string]any{"sub": "user-7"}},
			{target: "/verify", decision: "SUCCESS", fields: []string{"User", "7{env.ISSUER}"}, want: map[string]any{"sub": "user-7{env.ISSUER}"}},
			{target: "/verify", decision: "SUCCESS", fields: []string{"User", "\xff"}, want: map[string]any{"sub": nil}},
			{target: "/verify", decision: "SUCCESS", fields: []string{"User", strings.Repeat("7", 300)}, want: map[string]any{"sub": nil}},
			{target: "/verify/%41%20b/%c3%A9;f=%7E?c=d", decision: "SUCCESS", want: map[string]any{"path": "/verify/%41%20b/%c3%A9;f=%7E"}},
			{target: "/outside?x", decision: "SUCCESS", want: map[string]any{"path": "/outside"}},
			{target: "/verify", fault: "resolution:DECLINED", decision: "DECLINED"},
			{target: "/verify", fault: "resolution:OPERATOR_REQUIRED", decision: "OPERATOR_REQUIRED"},
			{target: "/keep", decision: "SUCCESS", want: map[string]any{"iss": "gateway-7", "sub": nil}, life: 300},
			{target: "/attach", decision: "SUCCESS", want: map[string]any{"best_shot": "attached"}},
			{target: "/pass", fault: "oz-error:14", decision: "INVALID", want: map[string]any{"reason": "container", "error_code": "14", "folder_id": nil}},
			{target: "/pass", fault: "status:503", decision: "UNAVAILABLE", want: map[string]any{"reason": "overloaded"}},
			{target: "/pass", fault: "resolution:DECLINED", decision: "DECLINED"},
		} {
			t.Run(test.target+test.fault, func(t *testing.T) {
				x.oz.fault(t, test.fault)
				x.app.Forget()
				fields := append([]string{"X-Oz-Seal", "forged", "X_Oz.Seal", "forged"}, test.fields...)
				before := time.Now().Unix()
				c.post(t, test.target, x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}), fields...)
				r := x.app.Only(t)
				claims := sealedBy(t, c.keySet(t), r.Value("X-Oz-Seal"))

				if test.life == 0 {
					test.life = 60
				}
				iat, _ := claims["iat"].(float64)
				if iat < float64(before) || iat > float64(time.Now().Unix()) || claims["exp"] != iat+test.life {
					t.Errorf("iat is %v, exp %v", claims["iat"], claims["exp"])
				}
				jti, _ := claims["jti"].(string)
				if len(jti) < 20 || seen[jti] {
					t.Errorf("the jti %q is short or not the first", jti)
				}
				seen[jti] = true

				want := map[string]any{"iss": "oz_instant", "aud": "app", "htm": "POST", "path": strings.SplitN(test.target, "?", 2)[0], "decision": test.decision}
				digest := sha256.Sum256(folderPart(t, r))
				want["folder_sha256"] = hex.EncodeToString(digest[:])
				maps.Copy(want, headerFacts(r))
				maps.Copy(want, test.want)
				maps.DeleteFunc(want, func(_ string, value any) bool { return value == nil })
				for _, name := range []string{"iat", "exp", "jti"} {
					delete(claims, name)
				}
				if !maps.Equal(claims, want) {
					t.Errorf("the claims are\n%v, want\n%v", claims, want)
				}
			})
		}
	})
}

// headerFacts are what the app's header says, by the names of the claims.
func headerFacts(r rawRequest) map[string]any {
	facts := map[string]any{}
	for _, name := range r.Names("x-oz-") {
		if claim := strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(name), "x-oz-"), "-", "_"); claim != "seal" {
			facts[claim] = r.Value(name)
		}
	}
	return facts
}

// folderPart is the folder in the app's body.
func folderPart(t testing.TB, r rawRequest) []byte {
	t.Helper()
	if !strings.HasPrefix(r.Value("Content-Type"), "multipart/") {
		return r.Body
	}
	return []byte(multipartBody(t, r)[0].content)
}

// TestSealOfTwoFolders promises that with face matching the digest is that of the one document with both.
func TestSealOfTwoFolders(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BestShotSize: 4000}, `
{$SITE} {
	oz_instant /verify {$OZ} {
		biometry {
			reference /photo
		}
		seal {
			audience app
		}
	}
	reverse_proxy {$APP}
}`)
	photos(x.app, map[string]string{"": rawAnswer("200 OK", string(sandbox.BestShot(3000)))})
	c := x.client(t, "h2")
	c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}))
	requests := x.app.Wait(t, 2)
	if names := requests[0].Names("x-oz-"); len(names) > 0 {
		t.Errorf("the request for the photo has %q", names)
	}
	claims := sealedBy(t, c.keySet(t), requests[1].Value("X-Oz-Seal"))
	digest := sha256.Sum256(requests[1].Body)
	if claims["folder_sha256"] != hex.EncodeToString(digest[:]) || claims["decision"] != "SUCCESS" || claims["biometry"] != "SUCCESS" {
		t.Errorf("the claims are %v", claims)
	}
}

// TestSealIsForDecisions promises that nothing else comes with a seal: no request that isn't decided, no refusal, no decision of a
// block without this option, and no line of a log but that of Caddy's reverse_proxy, at debug level, with all that it sends to the app.
func TestSealIsForDecisions(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, sealSite, withEnv("ISSUER", "i"))
	x.eachProtocol(t, func(t *testing.T, c *client) {
		x.oz.fault(t, "")
		x.app.Forget()
		c.get(t, "/verify", "X-Oz-Seal", "forged")
		c.post(t, "/elsewhere", []byte("x"), "X-Oz-Seal", "forged")
		c.post(t, "/plain", x.oz.Capsule(sandbox.CapsuleSpec{}), "X-Oz-Seal", "forged")
		for _, r := range x.app.Wait(t, 3) {
			if r.Value("X-Oz-Seal") != "" {
				t.Errorf("a seal on\n%s", r.Raw())
			}
		}
		x.oz.fault(t, "oz-error:14")
		if a := c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != http.StatusBadRequest || a.Header.Get("X-Oz-Seal") != "" {
			t.Errorf("the refusal is %d %v", a.Status, a.Header)
		}
		x.oz.fault(t, "")
		x.app.Forget()
		c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}))
		x.waitForLogs(t, 1, withMsg("upstream roundtrip"))
		token := x.app.Only(t).Value("X-Oz-Seal")
		for _, line := range x.logLines(having(token)) {
			if line.Get("logger").String() != "http.handlers.reverse_proxy" || line.Get("level").String() != "debug" {
				t.Errorf("the seal is in %s", line)
			}
		}
	})
}

// TestSealPathCountsAsHeader promises that a long path, which is in the seal as well, can't make the app's header too large.
func TestSealPathCountsAsHeader(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, sealSite, withEnv("ISSUER", "i"))
	c := x.client(t, "h1")
	for _, char := range []string{"a", "&"} {
		long := "/" + strings.Repeat(char, 7<<10)
		if a := c.post(t, "/verify"+long, x.oz.Capsule(sandbox.CapsuleSpec{})); a.Status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: got %d %s", char, a.Status, a.Body)
		}
		x.app.None(t)
	}
	c.post(t, "/verify?"+strings.Repeat("a", 7<<10), x.oz.Capsule(sandbox.CapsuleSpec{}))
	x.app.Only(t)
	for _, char := range []string{"a", "&"} {
		x.app.Forget()
		c.post(t, "/verify/"+strings.Repeat(char, 4<<10), x.oz.Capsule(sandbox.CapsuleSpec{}))
		if token := x.app.Only(t).Value("X-Oz-Seal"); len(token) < 5<<10 || len(token) > 7<<10 {
			t.Errorf("with a path of 4 KiB of %s the seal has %d bytes", char, len(token))
		}
	}
}

// TestSealKeySet promises the keys to everybody who asks for them by GET, whatever the matcher says, and nothing else there.
func TestSealKeySet(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	oz_instant /verify {$OZ} {
		seal {
			audience app
			jwks /keys
		}
	}
	reverse_proxy {$APP}
}`)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		a := c.get(t, "/keys", "Cookie", "session=1")
		if a.Status != http.StatusOK || a.Header.Get("Content-Type") != "application/jwk-set+json" || a.Header.Get("Cache-Control") != "max-age=300" {
			t.Errorf("got %d %v", a.Status, a.Header)
		}
		var set jose.JSONWebKeySet
		check(t, json.Unmarshal(a.Body, &set))
		if len(set.Keys) != 1 || !set.Keys[0].IsPublic() || !set.Keys[0].Valid() {
			t.Errorf("the key set is %s", a.Body)
		}
		head := c.do(t, c.request(t, http.MethodHead, "/keys", nil))
		if head.Status != http.StatusOK || len(head.Body) > 0 || head.Header.Get("Content-Length") != fmt.Sprint(len(a.Body)) {
			t.Errorf("HEAD: got %d %v", head.Status, head.Header)
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
			refusal := c.do(t, c.request(t, method, "/keys", bytes.NewReader(x.oz.Capsule(sandbox.CapsuleSpec{})), "Content-Type", "application/octet-stream"))
			if refusal.Status != http.StatusMethodNotAllowed || refusal.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: got %d %v", method, refusal.Status, refusal.Header)
			}
		}
		if refusal := c.do(t, c.request(t, http.MethodGet, "/keys", strings.NewReader("x"))); refusal.Status != http.StatusBadRequest {
			t.Errorf("GET with content: got %d", refusal.Status)
		}
	})
	x.app.None(t)
	if got := len(x.oz.Received()); got > 0 {
		t.Errorf("Oz got %d capsules", got)
	}
}

const storedKeySite = `{
	storage file_system {$STORE}
}
http://:{$HTTP_PORT} {
	oz_instant /verify {$OZ} {
		seal {
			audience app
		}
	}
	reverse_proxy {$APP}
}`

// TestSealKeyIsMadeOnce promises that gateways with one storage sign with one key, also when they start at the same moment, over
// reloads and restarts, and that the key is a file for nobody else and shown nowhere.
func TestSealKeyIsMadeOnce(t *testing.T) {
	t.Parallel()
	oz, app, store := startSandbox(t, sandbox.Options{}), newRawApp(t), t.TempDir()
	start := func() *caddyProc {
		return startCaddy(t, storedKeySite, withEnv("STORE", store), withEnv("OZ", oz.URL), withEnv("APP", app.Addr))
	}
	// Of Caddys that start together with one empty storage, one may fail to find the key of Caddy's own authority, which another is making:
	// it's there before them.
	startCaddy(t, "{\n\tstorage file_system {$STORE}\n}\nhttp://:{$HTTP_PORT} {\n\trespond 204\n}", withEnv("STORE", store)).stop(t)
	gateways := make([]*caddyProc, 2)
	var all sync.WaitGroup
	for i := range gateways {
		all.Go(func() { gateways[i] = start() })
	}
	all.Wait()
	if t.Failed() {
		t.FailNow() // a gateway is missing
	}
	gateways = append(gateways, start())
	first := gateways[0].client(t, "h1").keySet(t)
	assertSame := func(when string, p *caddyProc) {
		t.Helper()
		if set := p.client(t, "h1").keySet(t); len(set.Keys) != 1 || set.Keys[0].KeyID != first.Keys[0].KeyID {
			t.Errorf("%s: other keys: %+v", when, set)
		}
	}
	assertSame("together", gateways[1])
	assertSame("later", gateways[2])
	check(t, gateways[0].Reload(storedKeySite))
	assertSame("after a reload", gateways[0])

	gateways[1].client(t, "h1").post(t, "/verify", oz.Capsule(sandbox.CapsuleSpec{}))
	sealedBy(t, first, app.Only(t).Value("X-Oz-Seal"))

	file := filepath.Join(store, "oz_instant", "seal.pem")
	info, err := os.Stat(file)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v", info.Mode())
	}
	text, err := os.ReadFile(file)
	check(t, err)
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	check(t, err)
	scalar, err := key.(*ecdsa.PrivateKey).Bytes()
	check(t, err)
	for _, p := range gateways {
		p.assertNoCanary(t, scalar, bytes.Split(text, []byte("\n"))[1])
	}
}

// keyFile writes a key as PEM and returns the file.
func keyFile(t testing.TB, kind string, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if ec, ok := key.(*ecdsa.PrivateKey); ok && kind == "EC PRIVATE KEY" {
		der, err = x509.MarshalECPrivateKey(ec)
	}
	check(t, err)
	file := filepath.Join(t.TempDir(), "key.pem")
	check(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return file
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	check(t, err)
	return key
}

// TestSealKeyRotation promises that a new key is published before it signs, and an old one after it did, by their order alone.
func TestSealKeyRotation(t *testing.T) {
	t.Parallel()
	older, newer := keyFile(t, "EC PRIVATE KEY", ecKey(t, elliptic.P256())), keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P256()))
	site := func(keys string) string {
		return "{$SITE} {\n\toz_instant /verify {$OZ} {\n\t\tseal {\n\t\t\taudience app\n\t\t\tkey " + keys + "\n\t\t}\n\t}\n\treverse_proxy {$APP}\n}"
	}
	x := startChain(t, sandbox.Options{}, site("{$OLDER}"), withEnv("OLDER", older), withEnv("NEWER", newer))
	keySet := func() jose.JSONWebKeySet { return x.client(t, "h1").keySet(t) } // a reload closes connections
	sealed := func() string {
		x.app.Forget()
		x.client(t, "h1").post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{}))
		return x.app.Only(t).Value("X-Oz-Seal")
	}
	kid := func(token string) string {
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
		check(t, err)
		return jws.Signatures[0].Protected.KeyID
	}
	before := sealed()
	check(t, x.Reload(site("{$OLDER} {env.NEWER}")))
	announced := keySet()
	if len(announced.Keys) != 2 || kid(sealed()) != kid(before) {
		t.Errorf("the new key signs, or isn't published: %+v", announced)
	}
	check(t, x.Reload(site("{env.NEWER} {$OLDER}")))
	after := sealed()
	if kid(after) == kid(before) {
		t.Error("the old key still signs")
	}
	sealedBy(t, announced, after)        // by those who read the keys before
	sealedBy(t, keySet(), before)        // which is still valid
	check(t, x.Reload(site("{$NEWER}"))) // the old one is out
	if set := keySet(); len(set.Keys) != 1 || set.Keys[0].KeyID != kid(after) {
		t.Errorf("published are %+v", set)
	}
}

// TestSealDoesNotLoad promises that a seal which could not work, or that nobody could verify, does not load, and why.
func TestSealDoesNotLoad(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	p256, p384, pkcs1 := keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P256())), keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P384())), keyFile(t, "PRIVATE KEY", rsaKey)
	locked, unreadable := keyFile(t, "ENCRYPTED PRIVATE KEY", rsaKey), t.TempDir()
	block := func(lines ...string) string {
		return "oz_instant /verify http://oz {\n\t\tseal {\n\t\t\t" + strings.Join(lines, "\n\t\t\t") + "\n\t\t}\n\t}"
	}
	for name, test := range map[string]struct {
		blocks string
		say    []string
	}{
		"no audience":         {block("issuer i"), []string{"Caddyfile:", "seal: no audience"}},
		"empty block":         {block(), []string{"Caddyfile:", "seal: no audience"}},
		"empty audience":      {block(`audience ""`), []string{"Caddyfile:", "audience"}},
		"audience from Host":  {block("audience {host}"), []string{"Caddyfile:", "seal: audience: a placeholder of the request"}},
		"unknown audience":    {block("audience {env.NOTHING}"), []string{"seal: audience"}},
		"lifetime":            {block("audience a", "lifetime 500ms"), []string{"Caddyfile:", "seal: lifetime: must be whole seconds"}},
		"the capsule":         {block("audience a", "subject {http.request.body}"), []string{"Caddyfile:", "seal: subject"}},
		"another option":      {block("audience a", "algorithm none"), []string{"Caddyfile:", "unrecognized option algorithm"}},
		"relative path":       {block("audience a", "jwks keys.json"), []string{"Caddyfile:", "seal: jwks: invalid path"}},
		"pattern":             {block("audience a", "jwks /keys/*"), []string{"Caddyfile:", "seal: jwks: invalid path"}},
		"capsules' own path":  {block("audience a", "jwks /Verify"), []string{"Caddyfile:", "seal: jwks: /Verify is the path of the capsules"}},
		"own session tokens":  {"oz_instant /verify http://oz {\n\t\tsession_token /t\n\t\tseal {\n\t\t\taudience a\n\t\t\tjwks /t\n\t\t}\n\t}", []string{"Caddyfile:", "seal: jwks: /t is the path of session_token"}},
		"capsules of another": {block("audience a") + "\n\toz_instant " + jwksPath + " http://oz", []string{"another oz_instant of this site has capsules on " + jwksPath}},
		"tokens of another":   {"oz_instant /x http://oz {\n\t\tsession_token " + jwksPath + "\n\t}\n\t" + block("audience a"), []string{"another oz_instant of this site has session tokens on"}},
		"keys of another":     {block("audience a", "key {$P256}") + "\n\t" + block("audience b"), []string{"another oz_instant of this site has other keys on"}},
		"in a handle":         {block("audience a") + "\n\thandle " + jwksPath + " {\n\t\toz_instant " + jwksPath + " http://oz\n\t}", []string{"has capsules on"}},
		"around a handle":     {"handle /a {\n\t\t" + block("audience a", "key {$P256}") + "\n\t}\n\t" + block("audience b"), []string{"has other keys on"}},
		"blank audience":      {block(`audience " "`), []string{"Caddyfile:", "seal: no audience"}},
		"dots":                {block("audience a", "jwks /a/../keys"), []string{"Caddyfile:", "seal: jwks: invalid path"}},
		"a dot":               {block("audience a", "jwks /./keys"), []string{"Caddyfile:", "seal: jwks: invalid path"}},
		"the key itself":      {block("audience a", "key {file.{$P256}}"), []string{"seal: key: a key in place of a file"}},
		"its text":            {block("audience a", "key {env.NOTE}"), []string{"seal: key: {env.NOTE}: no such file"}},
		"no file":             {block("audience a", "key /nowhere/key.pem"), []string{"seal: key: /nowhere/key.pem: no such file"}},
		"a folder":            {block("audience a", "key {$FOLDER}"), []string{"seal: key:", "is a directory"}},
		"P-384":               {block("audience a", "key {$P384}"), []string{"seal: key:", "a P-384 key (want a P-256 key)"}},
		"RSA":                 {block("audience a", "key {$P256} {$RSA}"), []string{"seal: key:", "an RSA key (want a P-256 key)"}},
		"encrypted":           {block("audience a", "key {$LOCKED}"), []string{"seal: key:", "encrypted (want one without a passphrase"}},
		"twice":               {block("audience a", "key {$P256} {$P256}"), []string{"seal: key:", "key 2 was already given"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := validate(t, "{$SITE} {\n\t"+test.blocks+"\n}", withEnv("P256", p256), withEnv("P384", p384), withEnv("RSA", pkcs1),
				withEnv("LOCKED", locked), withEnv("FOLDER", unreadable), withEnv("NOTE", "canary"))
			if err == nil {
				t.Fatal("it loads")
			}
			if strings.Contains(err.Error(), "PRIVATE KEY") || strings.Contains(err.Error(), "canary") {
				t.Errorf("the error has a key, or what may be one: %v", err)
			}
			for _, text := range test.say {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("the error does not say %q:\n%v", text, err)
				}
			}
		})
	}
}

// TestSealOfBlocksSideBySide promises that blocks which no request passes together do not disturb each other, nor do sites.
func TestSealOfBlocksSideBySide(t *testing.T) {
	t.Parallel()
	one, two := keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P256())), keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P256()))
	block := func(path, keys string) string {
		return "oz_instant " + path + " http://oz {\n\t\tseal {\n\t\t\taudience a\n\t\t\tkey " + keys + "\n\t\t\tjwks /keys\n\t\t}\n\t}\n"
	}
	for name, site := range map[string]string{
		"a site without handlers": "http://a.localhost:{$HTTP_PORT} {\n\tlog\n}\nhttp://b.localhost:{$HTTP_PORT} {\n" + block("/a", "{$ONE}") + "}\nhttp://c.localhost:{$HTTP_PORT} {\n" + block("/a", "{$TWO}") + "}",
		"hosts of a wildcard":     "http://*.localhost:{$HTTP_PORT} {\n@a host a.localhost\nhandle @a {\n" + block("/a", "{$ONE}") + "}\n@b host b.localhost\nhandle @b {\n" + block("/a", "{$TWO}") + "}\n}",
		"folders":                 "{$SITE} {\nhandle_path /a/* {\noz_instant /keys http://oz\n}\nhandle_path /b/* {\n" + block("/x", "{$TWO}") + "}\n}",
		"another order":           "{$SITE} {\n" + block("/a", "{$ONE} {$TWO}") + block("/b", "{$TWO} {$ONE}") + "}",
	} {
		if err := validate(t, site, withEnv("ONE", one), withEnv("TWO", two)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSealOfSeveralSites promises that blocks may publish the same keys on one path, and sites each their own.
func TestSealOfSeveralSites(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
http://a.localhost:{$HTTP_PORT} {
	oz_instant /one {$OZ} {
		seal {
			audience a
			key {$KEY_A}
		}
	}
	oz_instant /two {$OZ} {
		seal {
			audience a-two
			key {$KEY_A}
		}
	}
}
http://b.localhost:{$HTTP_PORT} {
	oz_instant `+jwksPath+`/capsule {$OZ}
	oz_instant /one {$OZ} {
		seal {
			audience b
			key {$KEY_B}
		}
	}
}`, withEnv("KEY_A", keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P256()))), withEnv("KEY_B", keyFile(t, "PRIVATE KEY", ecKey(t, elliptic.P256()))))
	c := x.client(t, "h1")
	var kids []string
	for _, host := range []string{"a.localhost", "b.localhost"} {
		req := c.request(t, http.MethodGet, jwksPath, nil)
		req.Host = host
		var set jose.JSONWebKeySet
		check(t, json.Unmarshal(c.do(t, req).Body, &set))
		for _, key := range set.Keys {
			kids = append(kids, key.KeyID)
		}
	}
	if len(kids) != 2 || len(slices.Compact(kids)) != 2 {
		t.Errorf("the kids are %q", kids)
	}
}
