package diagnose

import (
	"crypto"
	"crypto/elliptic"
	_ "crypto/sha256" // ES256
	_ "crypto/sha512" // ES384, ES512
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// A capsule is bound to a session token, and an Oz accepts only tokens that
// its own JWT keys have signed. So all upstreams of a block must share them:
// else a capsule is refused with error_code 14 whenever balancing sends it
// elsewhere than its token came from. Oz has no call that verifies a token, and
// only the vendor's SDK makes capsules. But an ECDSA signature betrays which
// public keys can have made it (SEC 1, 4.1.6), and the vendor documents ECDSA
// keys. So two tokens tell whether one key signed both.

// signer is what a session token tells of the key that signed it.
type signer struct {
	jwt      bool
	alg      string
	kid, iss string
	keys     []string // the public keys that can have signed it; none if the algorithm doesn't show them

	lifetime string // in words
}

// curves are the algorithms whose signatures show the key.
var curves = map[string]struct {
	curve elliptic.Curve
	hash  crypto.Hash
}{
	"ES256": {elliptic.P256(), crypto.SHA256},
	"ES384": {elliptic.P384(), crypto.SHA384},
	"ES512": {elliptic.P521(), crypto.SHA512},
}

// readSigner looks at a session token. It verifies nothing: that is Oz's own
// business.
func readSigner(token string) signer {
	parts := strings.Split(token, ".")
	var header struct{ Alg, Kid string }
	var claims struct {
		Iss      string
		Iat, Exp float64
	}
	if len(parts) != 3 || decodePart(parts[0], &header) != nil || decodePart(parts[1], &claims) != nil {
		return signer{}
	}
	s := signer{jwt: true, alg: header.Alg, kid: header.Kid, iss: claims.Iss, lifetime: "no expiry"}
	if claims.Exp != 0 {
		if claims.Iat == 0 {
			claims.Iat = float64(time.Now().Unix())
		}
		s.lifetime = fmt.Sprintf("good for %d s", int64(claims.Exp-claims.Iat))
	}
	if c, ok := curves[header.Alg]; ok {
		h := c.hash.New()
		h.Write([]byte(parts[0] + "." + parts[1]))
		if signature, err := base64.RawURLEncoding.DecodeString(parts[2]); err == nil {
			s.keys = recoverKeys(c.curve, h.Sum(nil), signature)
		}
	}
	return s
}

func decodePart(part string, v any) error {
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// recoverKeys returns the public keys with which a signature of digest holds:
// r⁻¹(sR − zG) for both points R whose x is r. It leaves out an x of r plus the
// order, which random signatures don't have once in 2¹²⁸.
func recoverKeys(curve elliptic.Curve, digest, signature []byte) []string {
	params := curve.Params()
	size := (params.BitSize + 7) / 8
	if len(signature) != 2*size {
		return nil
	}
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	if r.Sign() == 0 || s.Sign() == 0 || r.Cmp(params.N) >= 0 || s.Cmp(params.N) >= 0 {
		return nil
	}
	y := squareRoot(params, r)
	if y == nil {
		return nil
	}
	inverse := new(big.Int).ModInverse(r, params.N)
	u1 := new(big.Int).SetBytes(digest)
	u1.Neg(u1).Mul(u1, inverse).Mod(u1, params.N)
	u2 := new(big.Int).Mul(s, inverse)
	u2.Mod(u2, params.N)

	// crypto/elliptic's arithmetic is deprecated for what needs to be secret.
	// Nothing here is, and crypto/ecdh has no addition.
	gx, gy := curve.ScalarBaseMult(u1.Bytes()) //nolint:staticcheck
	var keys []string
	for _, y := range []*big.Int{y, new(big.Int).Sub(params.P, y)} {
		rx, ry := curve.ScalarMult(r, y, u2.Bytes()) //nolint:staticcheck
		x, y := curve.Add(gx, gy, rx, ry)            //nolint:staticcheck
		keys = append(keys, x.Text(62)+","+y.Text(62))
	}
	return keys
}

// squareRoot returns a y for x on the curve y² = x³ − 3x + b, or nil.
func squareRoot(params *elliptic.CurveParams, x *big.Int) *big.Int {
	y := new(big.Int).Mul(x, x)
	y.Sub(y, big.NewInt(3)).Mul(y, x).Add(y, params.B).Mod(y, params.P)
	return y.ModSqrt(y, params.P)
}

// errUndecided says that two tokens don't tell whether one key signed them.
var errUndecided = errors.New("undecided")

// sameKey returns nil if one key signed both tokens, an error that wraps
// errUndecided if they don't tell, and any other error if two keys did.
func sameKey(a, b signer) error {
	switch {
	case a.jwt != b.jwt:
		return errors.New("one is a JWT and the other is not")
	case !a.jwt:
		return fmt.Errorf("%w: session tokens are opaque", errUndecided)
	case a.alg != b.alg:
		return fmt.Errorf("one is signed by %s and the other by %s", a.alg, b.alg)
	case a.keys != nil && b.keys != nil:
		if slices.ContainsFunc(a.keys, func(key string) bool { return slices.Contains(b.keys, key) }) {
			return nil
		}
		return errors.New("different keys signed them")
	case a.kid != "" && b.kid != "" && a.kid != b.kid:
		return fmt.Errorf("their keys have different names (kid %s and %s)", a.kid, b.kid)
	}
	why := fmt.Sprintf("%s signatures don't show their key", a.alg)
	switch {
	case a.iss != b.iss:
		why += ", and the issuers differ"
	case a.kid != "" && a.kid == b.kid:
		why += ", and a common kid proves nothing"
	}
	return fmt.Errorf("%w: %s", errUndecided, why)
}

// String describes the token that s was read from.
func (s signer) String() string {
	if !s.jwt {
		return "opaque"
	}
	return fmt.Sprintf("JWT, %s, %s", s.alg, s.lifetime)
}
