// Package verifier shows how an app in Go verifies seals: copy it. It needs github.com/go-jose/go-jose/v4.
package verifier

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Verifier verifies the seals of one site. Make one, and keep it: it keeps the keys.
type Verifier struct {
	JWKS     string        // https://app.example.com/.well-known/oz-instant/jwks.json
	Audience string        // as in the site's configuration
	CoolDown time.Duration // between two fetches of the keys, such as 30 s: unknown kids, which anyone can make up, mustn't cause more
	MaxAge   time.Duration // of the keys, such as 10 min: one that the site takes back mustn't be trusted for ever

	mu      sync.Mutex
	keys    jose.JSONWebKeySet
	fetched time.Time // when the keys came
	tried   time.Time // when they were asked for, whatever came of it
}

// Claims are what the gateway says. Add those that you use.
type Claims struct {
	jwt.Claims
	Decision     string `json:"decision"`
	Reason       string `json:"reason"`
	FolderSHA256 string `json:"folder_sha256"`
}

// Verify returns the claims of a seal that holds. folder is the folder document as the app received it, byte for byte. Without one
// nothing holds: a genuine seal may come with a forged folder.
func (v *Verifier) Verify(seal string, folder []byte) (*Claims, error) {
	claims, err := v.VerifyWithoutFolder(seal)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(folder); len(folder) == 0 || hex.EncodeToString(sum[:]) != claims.FolderSHA256 {
		return nil, errors.New("the folder is not the one that was sealed")
	}
	return claims, nil
}

// VerifyWithoutFolder is for an app that doesn't read the folder, which may be forged.
func (v *Verifier) VerifyWithoutFolder(seal string) (*Claims, error) {
	token, err := jwt.ParseSigned(seal, []jose.SignatureAlgorithm{jose.ES256}) // never what the seal itself names
	if err != nil {
		return nil, err
	}
	if typ := token.Headers[0].ExtraHeaders[jose.HeaderType]; typ != "oz-seal+jwt" {
		return nil, errors.New("not a seal: typ is another")
	}
	key, err := v.key(token.Headers[0].KeyID)
	if err != nil {
		return nil, err
	}
	claims := new(Claims)
	if err := token.Claims(key, claims); err != nil {
		return nil, err
	}
	expected := jwt.Expected{Issuer: "oz_instant", AnyAudience: jwt.Audience{v.Audience}, Time: time.Now()}
	if err := claims.ValidateWithLeeway(expected, 30*time.Second); err != nil {
		return nil, err
	}
	if claims.Expiry == nil || claims.IssuedAt == nil || claims.Decision == "" { // go-jose lets absent ones pass
		return nil, errors.New("exp, iat or decision is missing")
	}
	return claims, nil
}

// key returns the key with that kid, and fetches the keys anew if it isn't among them: so the site can take a new one.
func (v *Verifier) key(kid string) (*jose.JSONWebKey, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if time.Since(v.fetched) >= v.MaxAge {
		v.keys = jose.JSONWebKeySet{}
	}
	if len(v.keys.Key(kid)) == 0 && time.Since(v.tried) >= v.CoolDown {
		v.tried = time.Now()
		keys, err := v.fetch()
		if err != nil {
			return nil, fmt.Errorf("fetching the keys: %w", err)
		}
		v.keys, v.fetched = keys, v.tried
	}
	if found := v.keys.Key(kid); kid != "" && len(found) > 0 { // not a key without a kid for a seal without one
		return &found[0], nil
	}
	return nil, errors.New("unknown kid")
}

func (v *Verifier) fetch() (keys jose.JSONWebKeySet, err error) {
	client := http.Client{
		Timeout:       5 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Get(v.JWKS)
	if err != nil {
		return keys, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK { // redirects, too: only the site itself may say what its keys are
		return keys, errors.New(res.Status)
	}
	err = json.NewDecoder(io.LimitReader(res.Body, 256<<10)).Decode(&keys)
	return keys, err
}
