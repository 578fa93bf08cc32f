package diagnose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
)

// The key that signed is among the two that a signature shows, on every curve.
func TestRecoverKeys(t *testing.T) {
	for alg, c := range curves {
		key, err := ecdsa.GenerateKey(c.curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		public := key.X.Text(62) + "," + key.Y.Text(62) //nolint:staticcheck
		size := (c.curve.Params().BitSize + 7) / 8
		for i := range 20 {
			digest := digestOf(c.hash, fmt.Sprint(i))
			r, s, err := ecdsa.Sign(rand.Reader, key, digest)
			if err != nil {
				t.Fatal(err)
			}
			signature := make([]byte, 2*size)
			r.FillBytes(signature[:size])
			s.FillBytes(signature[size:])
			keys := recoverKeys(c.curve, digest, signature)
			if len(keys) != 2 || !slices.Contains(keys, public) {
				t.Errorf("%s: %d keys, without the one that signed", alg, len(keys))
			}
			if slices.Contains(recoverKeys(c.curve, digestOf(c.hash, "another"), signature), public) {
				t.Errorf("%s: the key is found for a text that it didn't sign", alg)
			}
		}
	}
}

func digestOf(hash crypto.Hash, text string) []byte {
	h := hash.New()
	h.Write([]byte(text))
	return h.Sum(nil)
}

// A peer chooses what its signature is. None breaks the check.
func TestRecoverKeysOfNonsense(t *testing.T) {
	curve := elliptic.P384()
	params := curve.Params()
	number := func(n *big.Int) []byte { return n.FillBytes(make([]byte, 48)) }
	one, digest := big.NewInt(1), make([]byte, 48)
	noPoint := big.NewInt(1)
	for squareRoot(params, noPoint) != nil {
		noPoint.Add(noPoint, one)
	}
	for name, signature := range map[string][]byte{
		"empty":    nil,
		"short":    make([]byte, 95),
		"zeros":    make([]byte, 96),
		"no s":     append(number(one), make([]byte, 48)...),
		"r is n":   append(number(params.N), number(one)...),
		"s is n":   append(number(one), number(params.N)...),
		"no point": append(number(noPoint), number(one)...),
	} {
		if keys := recoverKeys(curve, digest, signature); keys != nil {
			t.Errorf("%s: %q", name, keys)
		}
	}
}

func TestReadSigner(t *testing.T) {
	for token, want := range map[string]string{
		unsigned(`{"alg":"ES384"}`, `{"iat":1000,"exp":1900}`) + ".c2ln": "JWT, ES384, good for 900 s",
		unsigned(`{"alg":"HS256"}`, `{}`) + ".c2ln":                      "JWT, HS256, no expiry",
		unsigned(`{"alg":5}`, `{}`) + ".c2ln":                            "opaque",
		"opaque":                                                         "opaque",
		"a.b.c":                                                          "opaque",
		"a." + base64.RawURLEncoding.EncodeToString([]byte("{}")) + ".c": "opaque",
	} {
		if got := readSigner(token).String(); got != want {
			t.Errorf("%s: %s, want %s", token, got, want)
		}
	}
}

// Tokens of two installations can be alike but for who issued them.
func TestSameKeyNamesIssuers(t *testing.T) {
	err := sameKey(signer{jwt: true, alg: "RS256", iss: "a"}, signer{jwt: true, alg: "RS256", iss: "b"})
	if !errors.Is(err, errUndecided) || err.Error() != "undecided: RS256 signatures don't show their key, and the issuers differ" {
		t.Error(err)
	}
}
