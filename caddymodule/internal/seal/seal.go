// Package seal signs what is known of a decision, so that an app can prove where
// it came from: a compact JWS (RFC 7515) by ES256, whose keys are published as a
// JWK set (RFC 7517).
//
// ES256 is what every language verifies with the library that it has. EdDSA is
// not: .NET and several JWT libraries lack it, and RFC 9864 renames it. An HTTP
// message signature (RFC 9421) doesn't cover the body, and few can verify it.
package seal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

const (
	// Type is the `typ` of a seal: it can't be taken for another token that the
	// same key might sign (RFC 8725 3.11).
	Type = "oz-seal+jwt"

	// KeySetType is the media type of a JWK set (RFC 7517 8.5).
	KeySetType = "application/jwk-set+json"
)

// Keys sign seals, and let anyone verify them.
type Keys struct {
	signer    jose.Signer
	published []byte
	ids       []string // sorted
}

// NewKeys returns Keys of which the first signs, and all are published: a key
// is known to verifiers before it signs, and until what it signed has expired.
func NewKeys(keys ...*ecdsa.PrivateKey) (*Keys, error) {
	var set jose.JSONWebKeySet
	for i, key := range keys {
		public := jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.ES256), Use: "sig"}
		thumbprint, err := public.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, err
		}
		public.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
		if before := set.Key(public.KeyID); len(before) > 0 {
			return nil, fmt.Errorf("key %d was already given", i+1)
		}
		set.Keys = append(set.Keys, public)
	}
	published, err := json.Marshal(set)
	if err != nil {
		return nil, err
	}
	private := jose.JSONWebKey{Key: keys[0], KeyID: set.Keys[0].KeyID}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: private}, new(jose.SignerOptions).WithType(Type))
	if err != nil {
		return nil, err
	}
	keyIDs := make([]string, len(keys))
	for i, key := range set.Keys {
		keyIDs[i] = key.KeyID
	}
	slices.Sort(keyIDs)
	return &Keys{signer, published, keyIDs}, nil
}

// Sign returns the seal of claims.
func (k *Keys) Sign(claims map[string]any) (string, error) {
	payload, err := encode(claims)
	if err != nil {
		return "", err
	}
	signed, err := k.signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// encode returns v as JSON. HTML's characters stay one byte each: a path of them
// would make a seal six times as long.
func encode(v any) ([]byte, error) {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), err
}

// Size returns how much a text adds to a seal.
func Size(text string) int {
	encoded, err := encode(text)
	if err != nil { // strings always encode
		panic(err)
	}
	return base64.RawURLEncoding.EncodedLen(len(encoded))
}

// SamePublished reports whether k and other publish the same keys, in any order.
func (k *Keys) SamePublished(other *Keys) bool { return slices.Equal(k.ids, other.ids) }

// Published returns the JWK set.
func (k *Keys) Published() []byte { return k.published }
