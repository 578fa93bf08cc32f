package seal

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestKeysSign promises seals that the published keys verify, and that the first key signs.
func TestKeysSign(t *testing.T) {
	first, second := newKey(t), newKey(t)
	for _, keys := range [][]*ecdsa.PrivateKey{{first}, {first, second}, {second, first}} {
		k, err := NewKeys(keys...)
		if err != nil {
			t.Fatal(err)
		}
		token, err := k.Sign(map[string]any{"aud": "app", "decision": "SUCCESS"})
		if err != nil {
			t.Fatal(err)
		}
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(k.Published(), &set); err != nil {
			t.Fatal(err)
		}
		if len(set.Keys) != len(keys) || !set.Keys[0].Public().Key.(*ecdsa.PublicKey).Equal(keys[0].Public()) {
			t.Errorf("published are %s", k.Published())
		}
		payload, err := jws.Verify(set.Key(jws.Signatures[0].Protected.KeyID)[0])
		if err != nil || string(payload) != `{"aud":"app","decision":"SUCCESS"}` {
			t.Errorf("the payload is %s, %v", payload, err)
		}
		if _, err := jws.Verify(keys[0].Public()); err != nil {
			t.Errorf("not signed by the first key: %v", err)
		}
	}
}

// TestKeysPublish promises nothing private in the key set, and what RFC 7517 wants to be there.
func TestKeysPublish(t *testing.T) {
	k, err := NewKeys(newKey(t), newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	var set struct{ Keys []map[string]string }
	if err := json.Unmarshal(k.Published(), &set); err != nil {
		t.Fatal(err)
	}
	for _, key := range set.Keys {
		if key["kty"] != "EC" || key["crv"] != "P-256" || key["alg"] != "ES256" || key["use"] != "sig" {
			t.Errorf("the key is %v", key)
		}
		for _, member := range []string{"x", "y", "kid"} {
			if len(key[member]) != 43 || strings.ContainsAny(key[member], "+/=") {
				t.Errorf("%s is %q, want 32 bytes in base64url without padding", member, key[member])
			}
		}
		if len(key) != 7 {
			t.Errorf("more than it should: %v", key)
		}
	}
}

func TestKeysRefuseTwins(t *testing.T) {
	key := newKey(t)
	if _, err := NewKeys(key, newKey(t), key); err == nil || !strings.Contains(err.Error(), "key 3 was already given") {
		t.Errorf("the error is %v", err)
	}
}

func BenchmarkSign(b *testing.B) {
	k, err := NewKeys(newKey(b))
	if err != nil {
		b.Fatal(err)
	}
	claims := map[string]any{
		"iss": "oz_instant", "aud": "https://app.example.com", "iat": 1, "exp": 61, "jti": rand.Text(), "htm": "POST", "path": "/verify",
		"decision": "SUCCESS", "folder_id": "b2c5ac4b-7a4c-4d5d-8d9d-9f1d1b6e8f10", "event_session_id": "b2c5ac4b-7a4c-4d5d-8d9d-9f1d1b6e8f10",
		"resolution_status": "FINISHED", "system_resolution": "SUCCESS", "quality": "SUCCESS", "folder_sha256": strings.Repeat("0", 64),
	}
	for b.Loop() {
		if _, err := k.Sign(claims); err != nil {
			b.Fatal(err)
		}
	}
}
