// Command vectors writes seals to try a verifier on: good ones, and each kind that must be refused. The keys and the times are fixed
// and the signatures deterministic (RFC 6979), so that the files change only with this program:
//
//	go generate ./integration/examples/verify/vectors
//
// The private key is public by that. Trust nothing that it signs.
package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"slices"
	"strings"
)

//go:generate go run .

const (
	audience = "https://app.example.com"
	issuer   = "oz_instant"
	past     = 1577836800 // 2020-01-01
	future   = 4102444800 // 2100-01-01
)

// folder is a folder document whose bytes no JSON writer would make of its values: the spaces, the escape, the zero after the point.
const folder = `{"folder_id": "3b2c6d1e-6a52-4d33-9b0f-4f0f6a6f4a11", "resolution_status": "FINISHED", "system_resolution": "SUCCESS",
 "time_created": 1767225600.0, "meta_data": {"event_session_id": "7f0c2a52-52b1-4a38-8b7c-9a1d6a1c2e55", "user": "Zo\u00eb"},
 "analyses": [{"type": "QUALITY", "resolution_status": "SUCCESS", "error_code": null}]}`

// reserialised is what a JSON library makes of folder.
const reserialised = `{"analyses":[{"error_code":null,"resolution_status":"SUCCESS","type":"QUALITY"}],"folder_id":"3b2c6d1e-6a52-4d33-9b0f-4f0f6a6f4a11",` +
	`"meta_data":{"event_session_id":"7f0c2a52-52b1-4a38-8b7c-9a1d6a1c2e55","user":"Zoë"},"resolution_status":"FINISHED","system_resolution":"SUCCESS","time_created":1767225600}`

// vector is a seal and what must come of it.
type vector struct {
	Name     string `json:"name"`
	Accept   bool   `json:"accept"`
	Decision string `json:"decision,omitempty"` // of one to accept
	Fault    string `json:"fault,omitempty"`    // of one to refuse, in the words of caddy oz-instant verify --json
	Token    string `json:"token"`
}

// object is a JSON object; encoding/json sorts its names.
type object map[string]any

func main() {
	for name, text := range files() {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// files returns what this program writes, by name.
func files() map[string][]byte {
	return map[string][]byte{
		"folder.json":  []byte(folder),
		"jwks.json":    document(object{"keys": []object{signingKey.published(), nextKey.published()}}),
		"vectors.json": document(object{"audience": audience, "issuer": issuer, "folder": "folder.json", "vectors": vectors()}),
	}
}

func document(v any) []byte {
	text := must(json.MarshalIndent(v, "", "  "))
	return append(text, '\n')
}

var (
	signingKey = newKey("one key of these test vectors")
	nextKey    = newKey("the other key of these test vectors")
	strangeKey = newKey("a key that is not published")
)

func vectors() []vector {
	seal := func(changes ...object) string { return signingKey.sign(signingKey.header(), claims(changes...)) }
	header := func(change object) string { return signingKey.sign(merge(signingKey.header(), change), claims()) }
	good, declined := seal(), seal(object{"decision": "DECLINED", "system_resolution": "DECLINED"})
	list := []vector{
		{Name: "good", Decision: "SUCCESS", Token: good},
		{Name: "good, declined", Decision: "DECLINED", Token: declined},
		{Name: "good, by the other key", Decision: "SUCCESS", Token: nextKey.sign(nextKey.header(), claims())},

		{Name: "expired", Fault: "expired", Token: seal(object{"exp": past + 60})},
		{Name: "not yet issued", Fault: "not_yet_issued", Token: seal(object{"iat": future - 60})},
		{Name: "no expiry", Fault: "malformed", Token: seal(object{"exp": nil})},
		{Name: "no time of issue", Fault: "malformed", Token: seal(object{"iat": nil})},
		{Name: "no decision", Fault: "no_decision", Token: seal(object{"decision": nil})},

		{Name: "tampered header", Fault: "signature", Token: replacePart(good, 0, encode(nextKey.header()))},
		{Name: "tampered claim", Fault: "signature", Token: replacePart(declined, 1, encode(claims()))},
		{Name: "tampered signature", Fault: "signature", Token: replacePart(good, 2, flipped(good))},
		{Name: "signature of zeros", Fault: "signature", Token: replacePart(good, 2, base64url(make([]byte, 64)))},
		{Name: "signature in DER", Fault: "signature", Token: signingKey.signDER(signingKey.header(), claims())},
		{Name: "no signature", Fault: "signature", Token: replacePart(good, 2, "")},

		{Name: "folder changed", Fault: "folder", Token: seal(object{"folder_sha256": digest(reserialised)})},
		{Name: "folder empty", Fault: "folder", Token: seal(object{"folder_sha256": digest("")})},
		{Name: "folder without digest", Fault: "folder", Token: seal(object{"folder_sha256": nil})},
		{Name: "foreign audience", Fault: "audience", Token: seal(object{"aud": "other.example.com"})},
		{Name: "no audience", Fault: "audience", Token: seal(object{"aud": nil})},
		{Name: "foreign issuer", Fault: "issuer", Token: seal(object{"iss": "someone"})},

		{Name: "unknown kid", Fault: "unknown_key", Token: strangeKey.sign(strangeKey.header(), claims())},
		{Name: "another key under a known kid", Fault: "signature", Token: strangeKey.sign(signingKey.header(), claims())},
		{Name: "no kid", Fault: "unknown_key", Token: header(object{"kid": nil})},
		{Name: "kid null", Fault: "unknown_key", Token: header(object{"kid": json.RawMessage("null")})},
		{Name: "kid a number", Fault: "malformed", Token: header(object{"kid": 1})},
		{Name: "kid an array", Fault: "malformed", Token: header(object{"kid": []string{}})},
		{Name: "kid an object", Fault: "malformed", Token: header(object{"kid": object{}})},
		{Name: "key in the header", Fault: "unknown_key",
			Token: strangeKey.sign(merge(strangeKey.header(), object{"jwk": strangeKey.published()}), claims())},

		{Name: "alg none", Fault: "algorithm", Token: unsigned(object{"alg": "none", "typ": "oz-seal+jwt"})},
		{Name: "alg none, with a kid", Fault: "algorithm", Token: unsigned(merge(signingKey.header(), object{"alg": "none"}))},
		{Name: "alg nOnE", Fault: "algorithm", Token: unsigned(merge(signingKey.header(), object{"alg": "nOnE"}))},
		{Name: "alg ES384", Fault: "algorithm", Token: header(object{"alg": "ES384"})},
		{Name: "typ JWT", Fault: "type", Token: header(object{"typ": "JWT"})},
		{Name: "no typ", Fault: "type", Token: header(object{"typ": nil})},

		{Name: "alg a number", Fault: "malformed", Token: header(object{"alg": 1})},
		{Name: "header an array", Fault: "malformed", Token: replacePart(good, 0, base64url([]byte("[1]")))},
		{Name: "header null", Fault: "algorithm", Token: replacePart(good, 0, base64url([]byte("null")))},
		{Name: "header deep", Fault: "malformed", Token: replacePart(good, 0, base64url(bytes.Repeat([]byte("["), 2000)))},
		{Name: "header not JSON", Fault: "malformed", Token: replacePart(good, 0, base64url([]byte{0xff}))},
		{Name: "not a JWS", Fault: "malformed", Token: "SUCCESS"},
		{Name: "four parts", Fault: "malformed", Token: good + "."},
		{Name: "two parts", Fault: "malformed", Token: good[:strings.LastIndex(good, ".")]},
	}
	secrets := signingKey.asSecrets()
	for _, form := range slices.Sorted(maps.Keys(secrets)) {
		list = append(list, vector{Name: "HS256 by the public key as " + form, Fault: "algorithm", Token: hs256(secrets[form])})
	}
	for i := range list {
		list[i].Accept = list[i].Fault == ""
	}
	return list
}

// claims are those of a good seal with some changed; nil takes one away.
func claims(changes ...object) object {
	c := object{
		"iss": issuer, "aud": audience, "sub": "alice", "iat": past, "exp": future,
		"jti": "q0V6mW0c3k2v1H8yB5x7Zg", "htm": "POST", "path": "/verify",
		"decision": "SUCCESS", "folder_id": "3b2c6d1e-6a52-4d33-9b0f-4f0f6a6f4a11", "event_session_id": "7f0c2a52-52b1-4a38-8b7c-9a1d6a1c2e55",
		"resolution_status": "FINISHED", "system_resolution": "SUCCESS", "quality": "SUCCESS", "folder_sha256": digest(folder),
	}
	for _, change := range changes {
		c = merge(c, change)
	}
	return c
}

func merge(o, change object) object {
	merged := object{}
	for _, part := range []object{o, change} {
		for name, value := range part {
			if merged[name] = value; value == nil {
				delete(merged, name)
			}
		}
	}
	return merged
}

// key is a key pair on P-256.
type key struct{ *ecdsa.PrivateKey }

func newKey(seed string) key {
	scalar := sha256.Sum256([]byte(seed))
	return key{must(ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:]))}
}

// published is the key as it stands in a JWK Set.
func (k key) published() object {
	return merge(k.thumbprinted(), object{"kid": k.kid(), "alg": "ES256", "use": "sig"})
}

func (k key) thumbprinted() object {
	point := must(k.PublicKey.Bytes())
	return object{"kty": "EC", "crv": "P-256", "x": base64url(point[1:33]), "y": base64url(point[33:])}
}

// kid is the RFC 7638 thumbprint.
func (k key) kid() string {
	sum := sha256.Sum256(must(json.Marshal(k.thumbprinted()))) // encoding/json sorts, as the RFC wants
	return base64url(sum[:])
}

func (k key) header() object { return object{"alg": "ES256", "kid": k.kid(), "typ": "oz-seal+jwt"} }

func (k key) sign(header, payload object) string {
	var rs struct{ R, S *big.Int }
	text := k.signDER(header, payload)
	signed, signature := cutLast(text)
	must(asn1.Unmarshal(must(base64.RawURLEncoding.DecodeString(signature)), &rs))
	raw := make([]byte, 64)
	rs.R.FillBytes(raw[:32])
	rs.S.FillBytes(raw[32:])
	return signed + "." + base64url(raw)
}

func (k key) signDER(header, payload object) string {
	signed := encode(header) + "." + encode(payload)
	sum := sha256.Sum256([]byte(signed))
	return signed + "." + base64url(must(k.Sign(nil, sum[:], crypto.SHA256))) // no randomness: RFC 6979
}

// asSecrets are the public key in the forms in which a verifier may hold it, and may take it for a shared secret.
func (k key) asSecrets() map[string][]byte {
	der := must(x509.MarshalPKIXPublicKey(&k.PublicKey))
	return map[string][]byte{
		"PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
		"DER": der,
		"JWK": must(json.Marshal(k.published())),
		"x,y": must(k.PublicKey.Bytes())[1:],
	}
}

func hs256(secret []byte) string {
	signed := encode(merge(signingKey.header(), object{"alg": "HS256"})) + "." + encode(claims())
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + base64url(mac.Sum(nil))
}

func unsigned(header object) string { return encode(header) + "." + encode(claims()) + "." }

// flipped returns the signature of a seal with one bit of another value.
func flipped(token string) string {
	_, signature := cutLast(token)
	raw := must(base64.RawURLEncoding.DecodeString(signature))
	raw[len(raw)-1] ^= 1
	return base64url(raw)
}

func replacePart(token string, i int, part string) string {
	parts := strings.Split(token, ".")
	parts[i] = part
	return strings.Join(parts, ".")
}

func cutLast(token string) (before, after string) {
	i := strings.LastIndex(token, ".")
	return token[:i], token[i+1:]
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func encode(o object) string { return base64url(must(json.Marshal(o))) }

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
