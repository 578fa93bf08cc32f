package sandbox

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Session tokens are JWTs signed with ES384. The vendor documents the key (P-384, PKCS#8) and the life of 900 s; the
// claims are our own guess. Written by hand because it is forty lines and must not share a library with what it tests.

var (
	b64url    = base64.RawURLEncoding
	jwtHeader = b64url.EncodeToString([]byte(`{"alg":"ES384","typ":"JWT"}`))
)

type claims struct {
	ID      string `json:"jti"`
	Issued  int64  `json:"iat"`
	Expires int64  `json:"exp"`
}

type keyPair struct {
	private *ecdsa.PrivateKey

	// Tokens that this pair has signed itself need no proof that it has, which on P-384, for which Go has no assembly, takes as long as
	// all else that is done for a capsule. What is older than the last few thousand is verified as any other.
	mu  sync.Mutex
	own map[string]bool
}

// mostOwn bounds what is remembered: some megabytes.
const mostOwn = 4096

func (k *keyPair) remember(token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.own == nil || len(k.own) >= mostOwn {
		k.own = map[string]bool{}
	}
	k.own[token] = true
}

func (k *keyPair) remembers(token string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.own[token]
}

// loadOrMakeKeys reads jwt.key and jwt.pub from dir, or makes a pair when there is no dir.
func loadOrMakeKeys(dir string) (*keyPair, error) {
	if dir == "" {
		private, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		return &keyPair{private: private}, err
	}
	der, err := readPEM(filepath.Join(dir, "jwt.key"))
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("jwt.key: %w", err)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P384() {
		return nil, errors.New("jwt.key: want an EC key on secp384r1 (P-384)")
	}
	if der, err = readPEM(filepath.Join(dir, "jwt.pub")); err != nil {
		return nil, err
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("jwt.pub: %w", err)
	}
	if !private.PublicKey.Equal(public) {
		return nil, errors.New("jwt.pub is not the public half of jwt.key")
	}
	return &keyPair{private: private}, nil
}

func readPEM(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", filepath.Base(file))
	}
	return block.Bytes, nil
}

// sign makes a token that was issued at a given time.
func (k *keyPair) sign(issued time.Time, life time.Duration) string {
	body, err := json.Marshal(claims{ID: newUUID(), Issued: issued.Unix(), Expires: issued.Add(life).Unix()})
	if err != nil {
		panic(err) // three plain fields: cannot happen
	}
	signed := jwtHeader + "." + b64url.EncodeToString(body)
	digest := sha512.Sum384([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, k.private, digest[:])
	if err != nil {
		panic(err) // only without randomness
	}
	// JWS wants the two numbers side by side, 48 bytes each, not ASN.1 (RFC 7518, 3.4).
	var signature [96]byte
	r.FillBytes(signature[:48])
	s.FillBytes(signature[48:])
	token := signed + "." + b64url.EncodeToString(signature[:])
	k.remember(token)
	return token
}

// verify returns the claims of a token that this key signed and that is good at the given time.
func (k *keyPair) verify(token string, now time.Time) (claims, error) {
	var c claims
	signed, signature64, ok := cutLast(token, ".")
	header, body64, ok2 := strings.Cut(signed, ".")
	if !ok || !ok2 || header != jwtHeader {
		return c, errors.New("not a session token")
	}
	signature, err := b64url.DecodeString(signature64)
	if err != nil || len(signature) != 96 {
		return c, errors.New("signature unreadable")
	}
	digest := sha512.Sum384([]byte(signed))
	r, s := new(big.Int).SetBytes(signature[:48]), new(big.Int).SetBytes(signature[48:])
	if !k.remembers(token) && !ecdsa.Verify(&k.private.PublicKey, digest[:], r, s) {
		return c, errors.New("signature wrong")
	}
	body, err := b64url.DecodeString(body64)
	if err != nil {
		return c, errors.New("claims unreadable")
	}
	if err := json.Unmarshal(body, &c); err != nil || c.ID == "" {
		return c, errors.New("claims unreadable")
	}
	if now.Unix() >= c.Expires {
		return c, errors.New("expired")
	}
	return c, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// usedTokens remembers which tokens came in, until they expire anyway.
type usedTokens struct {
	mu      sync.Mutex
	expires map[string]int64
	tidyAt  int // clean up when there are this many
}

// spend notes the use of a token and reports whether it is the first.
func (u *usedTokens) spend(c claims, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, again := u.expires[c.ID]; again {
		return false
	}
	if u.expires == nil {
		u.expires, u.tidyAt = map[string]int64{}, 1024
	}
	if len(u.expires) >= u.tidyAt {
		for id, expires := range u.expires {
			if now.Unix() >= expires {
				delete(u.expires, id)
			}
		}
		u.tidyAt = max(1024, 2*len(u.expires))
	}
	u.expires[c.ID] = c.Expires
	return true
}

// NewToken returns what GET /api/authorize/session_token would.
func (s *Sandbox) NewToken() string {
	o := s.Options()
	return s.keys.sign(o.Clock(), o.TokenLife)
}

// NewToken returns a session token signed with the key in a folder like API_KEYS_DIR, for programs that make capsules
// without asking a running sandbox.
func NewToken(keysDir string, issued time.Time, life time.Duration) (string, error) {
	if keysDir == "" {
		return "", errors.New("no keys folder given")
	}
	keys, err := loadOrMakeKeys(keysDir)
	if err != nil {
		return "", err
	}
	return keys.sign(issued, life), nil
}
