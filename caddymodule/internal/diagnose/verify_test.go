package diagnose

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/seal"
)

const vectorsFolder = "../../../integration/examples/verify/vectors"

// sealVectors are the seals in the repository, each with what must come of it.
type sealVectors struct {
	Audience, Issuer string
	Vectors          []struct {
		Name, Fault, Decision, Token string
		Accept                       bool
	}
	keys   SealKeys
	folder []byte
}

func readVectors(t testing.TB) (v sealVectors) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(vectorsFolder, "vectors.json"))
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err == nil {
		v.keys, err = LoadSealKeys(t.Context(), filepath.Join(vectorsFolder, "jwks.json"), false)
	}
	if err == nil {
		v.folder, err = os.ReadFile(filepath.Join(vectorsFolder, "folder.json"))
	}
	if err != nil || len(v.Vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(v.Vectors), err)
	}
	return v
}

// TestVerifySealVectors promises the right verdict on each seal of the repository.
func TestVerifySealVectors(t *testing.T) {
	v := readVectors(t)
	for _, vector := range v.Vectors {
		t.Run(vector.Name, func(t *testing.T) {
			s := VerifySeal(vector.Token, v.keys, SealRules{Audience: v.Audience, Issuer: v.Issuer, Folder: v.folder})
			switch {
			case vector.Accept && (!s.Holds || s.Claim("decision") != vector.Decision):
				t.Errorf("does not hold: %v, decision %q", s.Err(), s.Claim("decision"))
			case !vector.Accept && (s.Holds || s.Err() == nil || len(s.Failures) != 1 || string(s.Failures[0].Fault) != vector.Fault):
				t.Errorf("got %v, want one failure %s", s.Err(), vector.Fault)
			}
		})
	}
}

// sealer makes seals by go-jose.
type sealer struct {
	key  *ecdsa.PrivateKey
	kid  string
	keys SealKeys
}

func newSealer(t testing.TB, more ...any) *sealer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: "ES256", Use: "sig"}
	sum, err := public.Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	public.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	s := &sealer{key: key, kid: public.KeyID}
	s.keys = keySet(t, append([]any{public}, more...)...)
	return s
}

func keySet(t testing.TB, keys ...any) SealKeys {
	t.Helper()
	document, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	set, err := ParseSealKeys(document)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// seal signs a payload, whatever it is.
func (s *sealer) seal(t testing.TB, payload string) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType(seal.Type).WithHeader("kid", s.kid)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: s.key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestVerifySealClaims promises a verdict and a message on whatever a claim can be, with both clocks half a minute apart.
func TestVerifySealClaims(t *testing.T) {
	s := newSealer(t)
	now := time.Unix(1_800_000_000, 0)
	rules := SealRules{Audience: "app", Issuer: "oz_instant", Now: now}
	const good = `{"iss":"oz_instant","aud":"app","iat":1800000000,"exp":1800000060,"decision":"SUCCESS"}`
	for _, test := range []struct{ name, old, new, want string }{
		{"good", "", "", ""},
		{"expired within the leeway", "1800000060", "1799999971", ""},
		{"expired", "1800000060", "1799999970", "expired: expired since 2027-01-15T07:59:30Z, for 30s"},
		{"expired long ago", "1800000060", "1700000000", "expired: expired since 2023-11-14T22:13:20Z, for 1157 days"},
		{"issued within the leeway", `"iat":1800000000`, `"iat":1800000030`, ""},
		{"issued in the future", `"iat":1800000000`, `"iat":1800000031`, "not_yet_issued: issued in the future, at 2027-01-15T08:00:31Z, 31s from now"},
		{"exp as text", "1800000060", `"1800000060"`, "malformed: the claim exp is not a time"},
		{"exp with a fraction", "1800000060", "1800000060.5", "malformed: the claim exp is not a time"},
		{"exp null", "1800000060", "null", "malformed: the claim exp is not a time"},
		{"exp negative", "1800000060", "-1", "malformed: the claim exp is not a time"},
		{"exp beyond all times", "1800000060", "9223372036854775807", "malformed: the claim exp is not a time"},
		{"no exp", `"exp":1800000060,`, "", "malformed: no claim exp"},
		{"no iat", `"iat":1800000000,`, "", "malformed: no claim iat"},
		{"audience", `"app"`, `"App"`, `audience: aud is "App" (want "app")`},
		{"audience, one of several", `"app"`, `["app","other"]`, `malformed: the claim "aud" is not a string`},
		{"no audience", `"aud":"app",`, "", `audience: no claim aud (want "app")`},
		{"issuer", `"oz_instant"`, `"other"`, `issuer: iss is "other" (want "oz_instant")`},
		{"no decision", `"decision":"SUCCESS"`, `"reason":"x"`, "no_decision: no claim decision"},
		{"decision empty", `"SUCCESS"`, `""`, "no_decision"},
		{"decision as a list", `"SUCCESS"`, `["SUCCESS"]`, `malformed: the claim "decision" is not a string`},
		{"decision in another case", `"decision"`, `"Decision"`, "no_decision"},
		{"decision twice", `"decision":`, `"decision":"DECLINED","decision":`, "malformed: the payload has a name twice"},
		{"decision twice, once escaped", `"decision":`, `"\u0064ecision":"DECLINED","decision":`, "malformed: the payload has a name twice"},
		{"two documents", "}", "}{}", "malformed: the payload is not a JSON object"},
		{"bad UTF-8", "SUCCESS", "SUCCESS\xff", "malformed: the payload is not a JSON object"},
		{"lone surrogate", "SUCCESS", `SUCCESS\ud800`, "malformed: the payload is not a JSON object"},
		{"null", good, "null", "malformed: the payload is not a JSON object"},
		{"list", good, "[" + good + "]", "malformed: the payload is not a JSON object"},
		{"nothing", good, "", "malformed: the payload is not a JSON object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := VerifySeal(s.seal(t, strings.Replace(good, test.old, test.new, 1)), s.keys, rules)
			if test.want == "" {
				if !got.Holds {
					t.Error(got.Err())
				}
				return
			}
			if got.Holds || len(got.Failures) != 1 || !strings.HasPrefix(got.Failures[0].String(), test.want) {
				t.Errorf("got %v, want %s", got.Err(), test.want)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		got := VerifySeal(s.seal(t, `{"iss":"a","aud":"b","iat":1900000000,"exp":1}`), s.keys, SealRules{Audience: "app", Issuer: "oz_instant", Folder: []byte{}, Now: now})
		if len(got.Failures) != 6 {
			t.Errorf("%d failures: %v", len(got.Failures), got.Err())
		}
	})
	t.Run("rules without an audience", func(t *testing.T) {
		got := VerifySeal(s.seal(t, strings.Replace(good, `"app"`, `""`, 1)), s.keys, SealRules{Issuer: "oz_instant", Now: now})
		if got.Holds {
			t.Error("holds")
		}
	})
}

// TestVerifySealForms promises that a seal has one form, and says of another what is wrong with it.
func TestVerifySealForms(t *testing.T) {
	s := newSealer(t)
	good := s.seal(t, `{"iss":"i","aud":"a","iat":0,"exp":253402300799,"decision":"SUCCESS"}`)
	parts := strings.Split(good, ".")
	header := func(text string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(text)) + "." + parts[1] + "." + parts[2]
	}
	for _, test := range []struct{ name, token, want string }{
		{"good", good, ""},
		{"empty", "", "malformed: not a compact JWS: 1 parts"},
		{"JWE", good + ".a.b", "malformed: not a compact JWS: 5 parts"},
		{"JSON serialization", `{"payload":"` + parts[1] + `","signatures":[]}`, "malformed: not a compact JWS"},
		{"padding", parts[0] + "." + parts[1] + "." + parts[2] + "==", "malformed: not a compact JWS: the signature is not base64url"},
		{"padding in the header", parts[0] + "=." + parts[1] + "." + parts[2], "malformed: not a compact JWS: the header is not base64url"},
		{"line end within", parts[0] + "\n." + parts[1] + "." + parts[2], "malformed: not a compact JWS: the header is not base64url"},
		{"space in front", " " + good, "malformed: not a compact JWS: the header is not base64url"},
		{"other bits after the end", good[:len(good)-1] + other(good[len(good)-1]), "malformed: not a compact JWS: the signature is not base64url"},
		{"too long", good + strings.Repeat("A", MaxSeal), "malformed: more than 16384 bytes"},
		{"header without JSON", header("alg"), "malformed: the header is not a JSON object"},
		{"alg twice", header(`{"alg":"none","kid":"` + s.kid + `","typ":"oz-seal+jwt","alg":"ES256"}`), "malformed: the header has a name twice"},
		{"alg in another case", header(`{"ALG":"ES256","kid":"` + s.kid + `","typ":"oz-seal+jwt"}`), `algorithm: alg is ""`},
		{"typ in another case", header(`{"alg":"ES256","kid":"` + s.kid + `","typ":"OZ-SEAL+JWT"}`), `type: typ is "OZ-SEAL+JWT" (want oz-seal+jwt)`},
		{"crit", header(`{"alg":"ES256","kid":"` + s.kid + `","typ":"oz-seal+jwt","crit":["exp"],"exp":1}`), "malformed: the header has crit"},
		{"no kid", header(`{"alg":"ES256","typ":"oz-seal+jwt"}`), `unknown_key: unknown kid "" (the set has "` + s.kid + `")`},
		{"unknown kid", header(`{"alg":"ES256","kid":"other","typ":"oz-seal+jwt"}`), `unknown_key: unknown kid "other" (the set has "` + s.kid + `")`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := VerifySeal(test.token, s.keys, SealRules{Audience: "a", Issuer: "i"})
			if test.want == "" && got.Holds {
				return
			}
			if got.Holds || got.Err() == nil || test.want == "" || !strings.HasPrefix(got.Err().Error(), test.want) {
				t.Errorf("got %v, want %s", got.Err(), test.want)
			}
			if got.Payload != nil {
				t.Errorf("shows claims that nobody signed: %s", got.Payload)
			}
		})
	}
}

// other returns a letter of base64url that differs in its last bit only, which a signature of 64 bytes doesn't use.
func other(c byte) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	i := strings.IndexByte(letters, c)
	return letters[i^1 : i^1+1]
}

// TestSealKeys promises that only keys for ES256 verify a seal, whatever else stands in the set, and that a set with a private key
// is refused.
func TestSealKeys(t *testing.T) {
	strong, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	plain := newSealer(t)
	public := func(key any, kid, alg, use string) jose.JSONWebKey {
		return jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: alg, Use: use}
	}
	payload := `{"iss":"i","aud":"a","iat":0,"exp":253402300799,"decision":"SUCCESS"}`
	for _, test := range []struct {
		name string
		keys []any
		want string
	}{
		{"RSA", []any{public(rsaKey.Public(), plain.kid, "RS256", "sig")}, "isn't an EC key on P-256"},
		{"P-384", []any{public(strong.Public(), plain.kid, "ES384", "sig")}, "isn't an EC key on P-256"},
		{"symmetric", []any{public([]byte("secret"), plain.kid, "HS256", "sig")}, "isn't an EC key on P-256"},
		{"unknown kind", []any{map[string]string{"kty": "new", "kid": plain.kid}}, "can't be read as a key"},
		{"point off the curve", []any{map[string]string{"kty": "EC", "crv": "P-256", "kid": plain.kid, "x": strings.Repeat("A", 43), "y": strings.Repeat("A", 43)}}, "can't be read as a key"},
		{"for encryption", []any{public(plain.key.Public(), plain.kid, "", "enc")}, "isn't meant for signatures"},
		{"for another algorithm", []any{public(plain.key.Public(), plain.kid, "ECDH-ES", "")}, "isn't meant for ES256"},
		{"empty", []any{}, "the set has no key for ES256"},
		{"without kid", []any{public(plain.key.Public(), "", "ES256", "sig"), "text"}, "the set has no key for ES256 and 1 without kid"},
		{"bare", []any{public(plain.key.Public(), plain.kid, "", "")}, ""},
		{"RSA under the same kid", []any{public(rsaKey.Public(), plain.kid, "RS256", "sig"), public(plain.key.Public(), plain.kid, "ES256", "sig")}, ""},
		{"two keys under the same kid", []any{public(newSealer(t).key.Public(), plain.kid, "ES256", "sig"), public(plain.key.Public(), plain.kid, "ES256", "sig")}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := VerifySeal(plain.seal(t, payload), keySet(t, test.keys...), SealRules{Audience: "a", Issuer: "i"})
			if got.Holds != (test.want == "") || !got.Holds && !strings.Contains(got.Err().Error(), test.want) {
				t.Errorf("got %v, want %q", got.Err(), test.want)
			}
		})
	}
	for _, document := range []string{"", "null", "[]", "{}", `{"keys":null}`, `{"keys":[],"keys":[]}`, `{"keys":[{"kid":"a","kid":"b"}]}`} {
		if _, err := ParseSealKeys([]byte(document)); err == nil {
			t.Errorf("%s is a JWK Set", document)
		}
	}
	private, err := json.Marshal(map[string]any{"keys": []any{jose.JSONWebKey{Key: plain.key, KeyID: plain.kid}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseSealKeys(private); err == nil || !strings.Contains(err.Error(), "private key") {
		t.Errorf("a private key is published: %v", err)
	}
}

// TestLoadSealKeys promises that keys come whole, within a bound, from nobody but the site.
func TestLoadSealKeys(t *testing.T) {
	document, err := os.ReadFile(filepath.Join(vectorsFolder, "jwks.json"))
	if err != nil {
		t.Fatal(err)
	}
	site := http.NewServeMux()
	give := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(document) }
	site.HandleFunc(SealKeysPath, give)
	site.HandleFunc("/elsewhere", give)
	site.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(append(document, bytes.Repeat([]byte(" "), maxKeySet)...))
	})
	site.Handle("/moved", http.RedirectHandler(SealKeysPath, http.StatusFound))
	server := httptest.NewServer(site)
	defer server.Close()
	for from, want := range map[string]string{
		server.URL:                 "",
		server.URL + "/":           "",
		server.URL + "/elsewhere":  "",
		server.URL + "/large":      "more than 262144 bytes",
		server.URL + "/moved":      "answered 302 (want 200)",
		server.URL + "/none":       "answered 404 (want 200)",
		"http://example.com/jwks":  "plain http",
		"http://127.0.0.1.example": "plain http",
		"ftp://example.com/jwks":   "not a URL of a JWK Set",
		"https://a:b@example.com":  "not a URL of a JWK Set",
		"no-such-file.json":        "no such file",
	} {
		keys, err := LoadSealKeys(t.Context(), from, false)
		if want == "" && err == nil && len(keys.keys) == 2 {
			continue
		}
		if want == "" || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d keys, %v, want %q", from, len(keys.keys), err, want)
		}
	}
	if u, err := keySetURL("http://app.internal", true); err != nil || u.String() != "http://app.internal"+SealKeysPath {
		t.Errorf("told to use plain http: %v, %v", u, err)
	}
}

// hang is a site that never answers.
type hang struct{}

func (hang) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, context.Cause(r.Context())
}

// TestLoadSealKeysEnds promises that a site that hangs doesn't keep the command.
func TestLoadSealKeysEnds(t *testing.T) {
	before := http.DefaultTransport
	http.DefaultTransport = hang{}
	defer func() { http.DefaultTransport = before }()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := LoadSealKeys(t.Context(), "https://app.example.com", false)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != keySetTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestSealPrint promises a table in the seal's own order, and that nothing in a seal steers the terminal.
func TestSealPrint(t *testing.T) {
	s := newSealer(t)
	payload := func(path, decision string) string {
		text, err := json.Marshal(path)
		if err != nil {
			t.Fatal(err)
		}
		return `{"iss":"i","aud":"a","iat":1799999990,"exp":1800000050,"path":` + string(text) + `,"decision":"` + decision + `"}`
	}
	const nasty = "/a\x1b[2J\nb\u009b31m\u202ec\U000e0041\tz"
	rules := SealRules{Audience: "a", Issuer: "i", Now: time.Unix(1_800_000_000, 0)}
	for name, rules := range map[string]SealRules{"holds": rules, "does not hold": {Audience: nasty, Issuer: "i", Now: rules.Now}} {
		for _, nastyAudience := range []bool{false, true} {
			text := payload(nasty, "SUCCESS")
			if nastyAudience {
				text = strings.Replace(text, `"a"`, `"\u001b[2J\u009b"`, 1)
			}
			seal := VerifySeal(s.seal(t, text), s.keys, rules)
			for kind, write := range map[string]func(*bytes.Buffer) error{
				"table": func(b *bytes.Buffer) error { return seal.Print(b) },
				"JSON":  func(b *bytes.Buffer) error { return seal.WriteJSON(b) },
			} {
				var out bytes.Buffer
				if err := write(&out); err != nil {
					t.Error(err)
				}
				if strings.ContainsAny(out.String(), "\x1b\u009b\u202e\U000e0041\t\r") {
					t.Errorf("%s, %s: control characters in %q", name, kind, out.String())
				}
				if kind == "JSON" {
					var back struct{ Claims map[string]any }
					if err := json.Unmarshal(out.Bytes(), &back); err != nil || back.Claims["path"] != nasty {
						t.Errorf("%s: the path is %q, %v", name, back.Claims["path"], err)
					}
				}
			}
		}
	}
	var out bytes.Buffer
	if err := VerifySeal(s.seal(t, payload("/verify", "DECLINED")), s.keys, rules).Print(&out); err != nil {
		t.Error(err)
	}
	want := "kid        " + s.kid + `
iss        i
aud        a
iat        1799999990   2027-01-15T07:59:50Z, 10s ago
exp        1800000050   2027-01-15T08:00:50Z, in 50s
path       /verify
decision   DECLINED
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// FuzzVerifySeal looks for a seal that holds though nobody signed it, and for a signed one that another reader of JSON takes for
// something else.
func FuzzVerifySeal(f *testing.F) {
	v := readVectors(f)
	signed := make(map[string]bool)
	for _, vector := range v.Vectors {
		payload := ""
		if parts := strings.Split(vector.Token, "."); len(parts) == 3 {
			signed[parts[0]+"."+parts[1]] = signed[parts[0]+"."+parts[1]] || vector.Accept
			text, _ := base64.RawURLEncoding.DecodeString(parts[1])
			payload = string(text)
		}
		f.Add(vector.Token, payload)
	}
	for _, payload := range []string{
		`{"iss":"oz_instant","aud":"https://app.example.com","iat":0,"exp":253402300799,"decision":"DECLINED","decision":"SUCCESS"}`,
		`{"iss":"oz_instant","aud":["https://app.example.com"],"iat":0,"exp":253402300799,"Decision":"SUCCESS","deci\u0073ion":"DECLINED"}`,
		`{"iss":"oz_instant","aud":"https://app.example.com","iat":-0,"exp":1e99,"decision":"\ud83d\ude00"}`, `{}{}`, `[[[[`, "\xef\xbb\xbf{}",
	} {
		f.Add("..", payload)
	}
	s := newSealer(f)
	rules := SealRules{Audience: v.Audience, Issuer: v.Issuer}
	f.Fuzz(func(t *testing.T, token, payload string) {
		if got := VerifySeal(token, v.keys, SealRules{Audience: v.Audience, Issuer: v.Issuer, Folder: v.folder}); got.Holds {
			if i := strings.LastIndex(token, "."); !signed[token[:i]] {
				t.Errorf("holds, and nobody signed it: %s", token)
			}
		}
		got := VerifySeal(s.seal(t, payload), s.keys, rules)
		var out bytes.Buffer
		if got.Print(&out) != nil || got.WriteJSON(&out) != nil || strings.ContainsFunc(strings.ReplaceAll(out.String(), "\n", ""), func(r rune) bool { return graphic(r) != r }) {
			t.Errorf("can't be printed: %q", out.String())
		}
		if !got.Holds {
			if got.Err() == nil {
				t.Error("does not hold, and doesn't say why")
			}
			return
		}
		var claims map[string]any
		if err := json.Unmarshal([]byte(payload), &claims); err != nil || claims["decision"] != got.Claim("decision") || claims["aud"] != v.Audience || claims["iss"] != v.Issuer {
			t.Errorf("another reader sees %v, %v", claims, err)
		}
	})
}
