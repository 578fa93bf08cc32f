package seal

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

var errNoKey = errors.New("no private key in it (want a P-256 key in PEM, such as: openssl ecparam -name prime256v1 -genkey -noout)")

// ParseKey returns the one P-256 key in a PEM text. OpenSSL puts the curve's
// parameters in front of a SEC1 key: they are skipped.
func ParseKey(text []byte) (*ecdsa.PrivateKey, error) {
	var found *ecdsa.PrivateKey
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "EC PARAMETERS" {
			continue
		}
		if found != nil {
			return nil, errors.New("more than one key in it (want one in each file)")
		}
		key, err := parseBlock(block)
		if err != nil {
			return nil, err
		}
		found = key
	}
	if found == nil {
		return nil, errNoKey
	}
	return found, nil
}

func parseBlock(block *pem.Block) (*ecdsa.PrivateKey, error) {
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" || block.Headers["Proc-Type"] != "" {
		return nil, errors.New("encrypted (want one without a passphrase, in a file that only Caddy can read)")
	}
	var key any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		return nil, errors.New("an RSA key (want a P-256 key)")
	case "PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE":
		return nil, errors.New("a public key or certificate (want the private key)")
	default:
		return nil, errNoKey
	}
	if err != nil { // its text may hold bytes of the key
		return nil, errors.New("damaged, or not of a kind that is known here (want a P-256 key as PKCS#8 or SEC1)")
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s (want a P-256 key)", kindOf(key))
	case ec.Curve != elliptic.P256():
		return nil, fmt.Errorf("a %s key (want a P-256 key)", ec.Params().Name)
	}
	return ec, nil
}

func kindOf(key any) string {
	switch key.(type) {
	case *rsa.PrivateKey:
		return "an RSA key"
	case ed25519.PrivateKey:
		return "an Ed25519 key"
	}
	return "a key of another kind"
}

const (
	// storedKey is where Caddy's storage has the key that was made here. With
	// the file system as storage it is a file of mode 0600.
	storedKey = "oz_instant/seal.pem"

	storedKeyLock = "oz_instant_seal"

	// storageTimeout bounds what a storage of others, or its lock, may take.
	storageTimeout = 30 * time.Second
)

// Storage is the part of Caddy's storage that a key needs.
type Storage interface {
	Lock(ctx context.Context, name string) error
	Unlock(ctx context.Context, name string) error
	Load(ctx context.Context, key string) ([]byte, error)
	Store(ctx context.Context, key string, value []byte) error
}

// StoredKey returns the key in storage, and makes it if there is none: once, under
// the storage's lock, so that gateways that start together agree.
func StoredKey(ctx context.Context, storage Storage) (*ecdsa.PrivateKey, error) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	key, err := loadKey(ctx, storage)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := storage.Lock(ctx, storedKeyLock); err != nil {
		return nil, fmt.Errorf("locking Caddy's storage: %w", err)
	}
	defer func() { _ = storage.Unlock(context.WithoutCancel(ctx), storedKeyLock) }()
	key, err = loadKey(ctx, storage)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := makeKey(ctx, storage); err != nil {
		return nil, fmt.Errorf("keeping a new key in Caddy's storage: %w (want a storage that can be written, or a key file)", err)
	}
	return loadKey(ctx, storage) // what the next one will read
}

func loadKey(ctx context.Context, storage Storage) (*ecdsa.PrivateKey, error) {
	text, err := storage.Load(ctx, storedKey)
	if err != nil {
		return nil, fmt.Errorf("reading %s from Caddy's storage: %w", storedKey, err)
	}
	key, err := ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s in Caddy's storage: %w", storedKey, err)
	}
	return key, nil
}

func makeKey(ctx context.Context, storage Storage) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: der}); err != nil {
		return err
	}
	return storage.Store(ctx, storedKey, text.Bytes())
}
