package diagnose

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	strictjson "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// SealKeysPath is where a site publishes the keys of its seals, if its
// configuration says nothing else.
const SealKeysPath = "/.well-known/oz-instant/jwks.json"

const (
	maxKeySet     = 256 << 10
	keySetTimeout = 10 * time.Second
)

// SealKeys are the keys that a site publishes.
type SealKeys struct {
	keys   []jose.JSONWebKey
	unfit  map[string]string // by kid: why a key of the set verifies no seal
	kids   []string          // of the usable keys, in the order of the set
	noName int               // keys without kid
}

// ParseSealKeys reads a JWK Set. Keys that can't verify a seal are left out, as
// RFC 7517, section 5, has it; a private key in the set is an error, since
// everybody can make seals by it.
func ParseSealKeys(document []byte) (SealKeys, error) {
	var set struct {
		Keys []jsontext.Value `json:"keys"`
	}
	if err := strictjson.Unmarshal(document, &set); err != nil || set.Keys == nil {
		return SealKeys{}, errors.New("not a JWK Set (want a JSON object with an array keys)")
	}
	k := SealKeys{unfit: make(map[string]string)}
	for _, raw := range set.Keys {
		var names struct {
			Kid string         `json:"kid"`
			D   jsontext.Value `json:"d"`
		}
		if strictjson.Unmarshal(raw, &names) != nil {
			continue // not an object, or a name that isn't a string
		}
		if names.D != nil {
			return SealKeys{}, errors.New("the JWK Set has a private key, and everybody can make seals with it: replace that key now")
		}
		key, why := sealKey(raw)
		switch {
		case names.Kid == "":
			k.noName++
		case why != "":
			k.unfit[names.Kid] = why
		default:
			k.keys, k.kids = append(k.keys, key), append(k.kids, names.Kid)
		}
	}
	return k, nil
}

// sealKey reads a key, or says why it verifies no seal.
func sealKey(raw []byte) (key jose.JSONWebKey, why string) {
	if err := key.UnmarshalJSON(raw); err != nil {
		return key, "can't be read as a key"
	}
	public, ok := key.Key.(*ecdsa.PublicKey)
	switch {
	case !ok || public.Curve != elliptic.P256():
		return key, "isn't an EC key on P-256"
	case key.Algorithm != "" && key.Algorithm != string(jose.ES256):
		return key, "isn't meant for ES256"
	case key.Use != "" && key.Use != "sig":
		return key, "isn't meant for signatures"
	}
	return key, ""
}

// find returns the keys with a kid, or says which there are.
func (k SealKeys) find(kid string) ([]jose.JSONWebKey, *SealFailure) {
	set := jose.JSONWebKeySet{Keys: k.keys}
	if found := set.Key(kid); len(found) > 0 {
		return found, nil
	}
	if why := k.unfit[kid]; why != "" {
		return nil, sealFailure(SealUnknownKey, "the key %q %s", kid, why)
	}
	has := "no key for ES256"
	if len(k.kids) > 0 {
		has = quoted(k.kids)
	}
	if k.noName > 0 {
		has += fmt.Sprintf(" and %d without kid", k.noName)
	}
	return nil, sealFailure(SealUnknownKey, "unknown kid %q (the set has %s): another site's seal, or a copy of the set that is too old", kid, has)
}

func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}

// LoadSealKeys reads the JWK Set in a file or at a URL. The URL of a site, with
// no path, stands for the default path there. Over plain http only loopback is
// asked unless plainHTTP: anyone on the way could answer in the site's place,
// with other keys. Redirects aren't followed for the same reason.
func LoadSealKeys(ctx context.Context, from string, plainHTTP bool) (SealKeys, error) {
	document, err := readKeySet(ctx, from, plainHTTP)
	if err != nil {
		return SealKeys{}, err
	}
	if len(document) > maxKeySet {
		return SealKeys{}, fmt.Errorf("more than %d bytes, which no JWK Set of seals has", maxKeySet)
	}
	return ParseSealKeys(document)
}

func readKeySet(ctx context.Context, from string, plainHTTP bool) ([]byte, error) {
	if !strings.Contains(from, "://") {
		file, err := os.Open(from)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		return io.ReadAll(io.LimitReader(file, maxKeySet+1))
	}
	u, err := keySetURL(from, plainHTTP)
	if err != nil {
		return nil, err
	}
	return fetchKeySet(ctx, u)
}

func keySetURL(from string, plainHTTP bool) (*url.URL, error) {
	u, err := url.Parse(from)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("not a URL of a JWK Set (want one such as https://app.example.com, or a file)")
	}
	if u.Scheme == "http" && !plainHTTP && !isLoopback(u.Hostname()) {
		return nil, errors.New("plain http: anyone on the way could put in keys of their own (want https, or --plain-http)")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = SealKeysPath
	}
	return u, nil
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

func fetchKeySet(ctx context.Context, u *url.URL) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, keySetTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d (want 200)", u.Redacted(), res.StatusCode)
	}
	return io.ReadAll(io.LimitReader(res.Body, maxKeySet+1))
}
