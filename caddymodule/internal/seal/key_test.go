package seal

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
)

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(t testing.TB, key crypto.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

func sec1(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("EC PRIVATE KEY", der)
}

const curveParameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"

func TestParseKey(t *testing.T) {
	key := newKey(t)
	for name, text := range map[string]string{
		"PKCS#8":              pkcs8(t, key),
		"SEC1":                sec1(t, key),
		"as OpenSSL writes":   curveParameters + sec1(t, key),
		"with text around it": "a key\n" + pkcs8(t, key) + "\nthat was a key\n",
		"with CRLF":           strings.ReplaceAll(pkcs8(t, key), "\n", "\r\n"),
	} {
		parsed, err := ParseKey([]byte(text))
		if err != nil || !parsed.Equal(key) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestParseKeyRefuses promises a reason for each key that isn't one P-256 key, and never a part of it.
func TestParseKeyRefuses(t *testing.T) {
	key := newKey(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	legacy := strings.Replace(sec1(t, key), "-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n", 1)
	damaged := pemOf("PRIVATE KEY", []byte("SECRETBYTES"))
	for name, test := range map[string]struct{ text, why string }{
		"empty":              {"", "no private key"},
		"no PEM":             {"SECRETBYTES", "no private key"},
		"parameters alone":   {curveParameters, "no private key"},
		"another block":      {pemOf("NOTHING", nil), "no private key"},
		"two keys":           {pkcs8(t, key) + pkcs8(t, newKey(t)), "more than one key"},
		"a certificate next": {pkcs8(t, key) + pemOf("CERTIFICATE", nil), "more than one key"},
		"encrypted PKCS#8":   {pemOf("ENCRYPTED PRIVATE KEY", []byte("SECRETBYTES")), "encrypted"},
		"encrypted SEC1":     {legacy, "encrypted"},
		"RSA":                {pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), "an RSA key"},
		"RSA in PKCS#8":      {pkcs8(t, rsaKey), "an RSA key"},
		"Ed25519":            {pkcs8(t, edKey), "an Ed25519 key"},
		"P-384":              {sec1(t, p384), "a P-384 key"},
		"P-384 in PKCS#8":    {pkcs8(t, p384), "a P-384 key"},
		"public":             {pemOf("PUBLIC KEY", public), "a public key"},
		"damaged":            {damaged, "damaged"},
		"damaged SEC1":       {pemOf("EC PRIVATE KEY", []byte("SECRETBYTES")), "damaged"},
	} {
		_, err := ParseKey([]byte(test.text))
		if err == nil || !strings.Contains(err.Error(), test.why) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error is %v, want %q", name, err, test.why)
		}
	}
}

// FuzzParseKey looks for a key that is taken and can't sign, and for a panic.
func FuzzParseKey(f *testing.F) {
	key := newKey(f)
	f.Add([]byte(pkcs8(f, key)))
	f.Add([]byte(curveParameters + sec1(f, key)))
	f.Add([]byte(pemOf("ENCRYPTED PRIVATE KEY", nil)))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nDEK-Info: x\n\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParseKey(text)
		if err != nil {
			return
		}
		k, err := NewKeys(key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Sign(nil); err != nil {
			t.Fatal(err)
		}
	})
}

// memoryStorage is Caddy's storage, for several gateways at once.
type memoryStorage struct {
	lock                                sync.Mutex
	mu                                  sync.Mutex
	values                              map[string][]byte
	stored                              int
	cannotLoad, cannotStore, cannotLock error
}

func (s *memoryStorage) Lock(context.Context, string) error {
	if s.cannotLock != nil {
		return s.cannotLock
	}
	s.lock.Lock()
	return nil
}

func (s *memoryStorage) Unlock(context.Context, string) error {
	s.lock.Unlock()
	return nil
}

func (s *memoryStorage) Load(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cannotLoad != nil {
		return nil, s.cannotLoad
	}
	value, ok := s.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return value, nil
}

func (s *memoryStorage) Store(_ context.Context, key string, value []byte) error {
	if s.lock.TryLock() {
		panic("stored without the lock")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cannotStore != nil {
		return s.cannotStore
	}
	s.stored++
	s.values[key] = bytes.Clone(value)
	return nil
}

// TestStoredKey promises one key to gateways that start at the same time.
func TestStoredKey(t *testing.T) {
	storage := &memoryStorage{values: make(map[string][]byte)}
	keys := make([]*ecdsa.PrivateKey, 20)
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() {
			key, err := StoredKey(t.Context(), storage)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	all.Wait()
	if storage.stored != 1 || slices.ContainsFunc(keys, func(key *ecdsa.PrivateKey) bool { return !key.Equal(keys[0]) }) {
		t.Errorf("%d keys were made", storage.stored)
	}
}

// TestStoredKeyFails promises that a storage which fails, or holds something else, is said, and that nothing is overwritten.
func TestStoredKeyFails(t *testing.T) {
	failure := errors.New("out of order")
	for name, test := range map[string]struct {
		storage *memoryStorage
		why     string
	}{
		"load":    {&memoryStorage{cannotLoad: failure}, "reading oz_instant/seal.pem from Caddy's storage: out of order"},
		"lock":    {&memoryStorage{cannotLock: failure}, "locking Caddy's storage: out of order"},
		"store":   {&memoryStorage{cannotStore: failure}, "want a storage that can be written"},
		"damaged": {&memoryStorage{values: map[string][]byte{storedKey: []byte("x")}}, "oz_instant/seal.pem in Caddy's storage: no private key"},
	} {
		key, err := StoredKey(t.Context(), test.storage)
		if key != nil || err == nil || !strings.Contains(err.Error(), test.why) {
			t.Errorf("%s: the error is %v, want %q", name, err, test.why)
		}
		if test.storage.stored != 0 {
			t.Errorf("%s: a key was stored", name)
		}
	}
}
