package sandbox

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// go-jose reads the token: our own writer and reader could agree on the same mistake.
func TestSessionTokenIsAnES384JWT(t *testing.T) {
	c := newClock()
	s, url := start(t, Options{Clock: c.Now})
	var answer map[string]string
	if err := json.Unmarshal(get(t, "GET", url+TokenPath).body, &answer); err != nil || len(answer) != 1 {
		t.Fatalf("%v %v", err, answer)
	}
	seen := map[string]bool{}
	for _, token := range []string{answer["session_token"], s.NewToken()} {
		signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES384})
		if err != nil {
			t.Fatal(err)
		}
		body, err := signed.Verify(&s.keys.private.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		var got claims
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		if got.Issued != c.Now().Unix() || got.Expires != got.Issued+900 || got.ID == "" || seen[got.ID] {
			t.Errorf("claims %s", body)
		}
		seen[got.ID] = true
	}
}

func TestSessionTokenEndsAfterItsLife(t *testing.T) {
	c := newClock()
	s, url := start(t, Options{Clock: c.Now})
	early, late := s.Capsule(CapsuleSpec{}), s.Capsule(CapsuleSpec{})
	c.turn(899 * time.Second)
	post(t, url, early).wantSuccess(t)
	c.turn(time.Second)
	post(t, url, late).wantError(t, 400, 14)
}

func TestSessionTokenIsUsedOnce(t *testing.T) {
	s, url := start(t, Options{})
	token := s.NewToken()
	post(t, url, s.Capsule(CapsuleSpec{SessionToken: token, Damage: DamageHash})).wantError(t, 400, 14)
	post(t, url, s.Capsule(CapsuleSpec{SessionToken: token})).wantSuccess(t) // a refused container spent nothing
	post(t, url, s.Capsule(CapsuleSpec{SessionToken: token})).wantError(t, 400, 14)
	s.SetOptions(Options{ReuseTokens: true})
	post(t, url, s.Capsule(CapsuleSpec{SessionToken: token})).wantSuccess(t)
}

func TestUsedTokensAreForgottenWhenTheyHaveExpired(t *testing.T) {
	var u usedTokens
	now := time.Unix(1000, 0)
	for range 5000 {
		if !u.spend(claims{ID: newUUID(), Expires: now.Unix() + 10}, now) {
			t.Fatal("a fresh token counts as used")
		}
		now = now.Add(time.Second)
	}
	if n := len(u.expires); n > 1024 {
		t.Errorf("%d tokens are still remembered", n)
	}
}

func TestTokensOfOthersAreRefused(t *testing.T) {
	s, url := start(t, Options{})
	stranger, _ := start(t, Options{})
	good := s.NewToken()
	parts := strings.Split(good, ".")
	none := b64url.EncodeToString([]byte(`{"alg":"none"}`))
	for name, token := range map[string]string{
		"other key":         stranger.NewToken(),
		"alg none":          none + "." + parts[1] + ".",
		"no signature":      parts[0] + "." + parts[1] + ".",
		"two parts":         parts[0] + "." + parts[1],
		"other claims":      parts[0] + "." + b64url.EncodeToString([]byte(`{"jti":"x","exp":9999999999}`)) + "." + parts[2],
		"zero signature":    parts[0] + "." + parts[1] + "." + b64url.EncodeToString(make([]byte, 96)),
		"one word":          "token",
		"words of no sense": "a.b.c",
	} {
		t.Run(name, func(t *testing.T) {
			post(t, url, s.Capsule(CapsuleSpec{SessionToken: token})).wantError(t, 400, 14)
		})
	}
	post(t, url, s.Capsule(CapsuleSpec{SessionToken: good})).wantSuccess(t)
}

func TestKeysFromAFolder(t *testing.T) {
	dir := t.TempDir()
	private, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	writeKeys(t, dir, private, &private.PublicKey)
	s, url := start(t, Options{KeysDir: dir})
	if !s.keys.private.Equal(private) {
		t.Error("another key was loaded")
	}
	token, err := NewToken(dir, time.Now(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	post(t, url, s.Capsule(CapsuleSpec{SessionToken: token})).wantSuccess(t)

	other, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	writeKeys(t, dir, private, &other.PublicKey)
	if _, err := New(Options{KeysDir: dir}); err == nil {
		t.Error("a pair that does not belong together is accepted")
	}
	small, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	writeKeys(t, dir, small, &small.PublicKey)
	if _, err := New(Options{KeysDir: dir}); err == nil {
		t.Error("a P-256 key is accepted")
	}
}

func writeKeys(t *testing.T, dir string, private *ecdsa.PrivateKey, public *ecdsa.PublicKey) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"jwt.key": {Type: "PRIVATE KEY", Bytes: key}, "jwt.pub": {Type: "PUBLIC KEY", Bytes: pub},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeyPairVerifies promises that a token is judged by its signature also where the pair doesn't remember it, and is never good by
// being remembered elsewhere.
func TestKeyPairVerifies(t *testing.T) {
	t.Parallel()
	pair, err := loadOrMakeKeys("")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := loadOrMakeKeys("")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	token := pair.sign(now, time.Minute)
	swapped := "A"
	if token[len(token)-10] == 'A' {
		swapped = "B"
	}
	forged := token[:len(token)-10] + swapped + token[len(token)-9:]
	for _, test := range []struct {
		name  string
		pair  *keyPair
		token string
		good  bool
	}{
		{"the one that signed it", pair, token, true},
		{"the same keys elsewhere", &keyPair{private: pair.private}, token, true},
		{"other keys", stranger, token, false},
		{"a changed signature", pair, forged, false},
		{"a changed signature elsewhere", &keyPair{private: pair.private}, forged, false},
	} {
		if _, err := test.pair.verify(test.token, now); (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if _, err := pair.verify(token, now.Add(time.Hour)); err == nil {
		t.Error("a token that is remembered never ends")
	}
}
