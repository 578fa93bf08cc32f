package redis

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// secret has every character that means something in a URL.
const secret = "p@ss:w/o?r#d%41&{x}+é"

// parse is what open does with a URL before it makes a client.
func parse(url string) (*redis.UniversalOptions, error) {
	text, values, err := resolve(url)
	if err != nil {
		return nil, err
	}
	opts, _, err := parseURL(text, values)
	return opts, err
}

// A URL leads to the addresses and secrets that it says, whatever characters
// are in the values of its placeholders.
func TestURL(t *testing.T) {
	t.Setenv("TEST_SECRET", secret)
	t.Setenv("TEST_HOST", "redis.internal:7000")
	t.Setenv("TEST_URL", "rediss://u:p@whole:1/2")
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]redis.UniversalOptions{
		"redis://h":                       {Addrs: []string{"h:6379"}},
		"redis://h:1":                     {Addrs: []string{"h:1"}},
		"redis://[::1]":                   {Addrs: []string{"[::1]:6379"}},
		"redis://[::1]:1/4":               {Addrs: []string{"[::1]:1"}, DB: 4},
		"redis://a-b_c.D:65535":           {Addrs: []string{"a-b_c.D:65535"}},
		"redis://[fe80::1%eth0]:1":        {Addrs: []string{"[fe80::1%eth0]:1"}},
		"redis://127.0.0.1":               {Addrs: []string{"127.0.0.1:6379"}},
		"redis://u:p@x@h":                 {Addrs: []string{"h:6379"}, Username: "u", Password: "p@x"},
		"redis://h/":                      {Addrs: []string{"h:6379"}},
		"redis://:p@h":                    {Addrs: []string{"h:6379"}, Password: "p"},
		"redis://u:p%40x@h":               {Addrs: []string{"h:6379"}, Username: "u", Password: "p@x"},
		"redis://u:{env.TEST_SECRET}@h/3": {Addrs: []string{"h:6379"}, Username: "u", Password: secret, DB: 3},
		"redis://:a{env.TEST_SECRET}b@h":  {Addrs: []string{"h:6379"}, Password: "a" + secret + "b"},
		"redis://:{file." + file + "}@h":  {Addrs: []string{"h:6379"}, Password: secret},
		"redis://{env.TEST_HOST}":         {Addrs: []string{"redis.internal:7000"}},
		"{env.TEST_URL}":                  {Addrs: []string{"whole:1"}, Username: "u", Password: "p", DB: 2},
		"redis+sentinel://a,b:1/claims":   {Addrs: []string{"a:26379", "b:1"}, MasterName: "claims"},
		"redis+sentinel://:p@a/claims/5":  {Addrs: []string{"a:26379"}, MasterName: "claims", Password: "p", DB: 5},
		"redis+cluster://u:p@a,b:1":       {Addrs: []string{"a:6379", "b:1"}, Username: "u", Password: "p", IsClusterMode: true},
		"redis+cluster://a":               {Addrs: []string{"a:6379"}, IsClusterMode: true},
		"redis+sentinel://a/c?sentinel_user=s&sentinel_password={env.TEST_SECRET}": {Addrs: []string{"a:26379"}, MasterName: "c", SentinelUsername: "s", SentinelPassword: secret},
	} {
		if err := checkURL(url); err != nil {
			t.Errorf("%s is refused before it is loaded: %v", url, err)
		}
		got, err := parse(url)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if !slices.Equal(got.Addrs, want.Addrs) || got.Username != want.Username || got.Password != want.Password || got.DB != want.DB ||
			got.MasterName != want.MasterName || got.IsClusterMode != want.IsClusterMode ||
			got.SentinelUsername != want.SentinelUsername || got.SentinelPassword != want.SentinelPassword {
			t.Errorf("%s: %+v", url, got)
		}
		if tls := strings.HasPrefix(url, "{"); (got.TLSConfig != nil) != tls {
			t.Errorf("%s: TLS %v", url, got.TLSConfig)
		}
	}
}

// A URL that makes no sense does not load, and nothing of it is told.
func TestURLsThatMustNotLoad(t *testing.T) {
	t.Setenv("TEST_EMPTY", "")
	t.Setenv("TEST_SET", "u")
	t.Setenv("TEST_CA", "/secret")
	for url, want := range map[string]string{
		"":                              "invalid URL",
		"h":                             "invalid URL",
		"http://secret@h":               "invalid URL",
		"redis://":                      "invalid URL",
		"redis://secret@h":              "invalid URL",
		"redis://u:@h":                  "invalid URL",
		"redis://:secret%zz@h":          "invalid URL",
		"redis://:secret@a,b":           "invalid URL",
		"redis://:secret@h:":            "invalid URL",
		"redis+ring://:secret@h":        "invalid URL",
		"redis+://:secret@h":            "invalid URL",
		"redis+sentinel://:secret@h":    "invalid URL",
		"redis+cluster://:secret@h/1":   "invalid URL",
		"redis://:secret@h/-1":          "invalid database",
		"redis://:secret@h/secret":      "invalid database",
		"redis://:secret@h?pool_size=9": "unknown option",
		"redis://:secret@h?ca=/x":       "ca needs TLS",
		"rediss://:secret@h?ca=/absent": "no such file",
		"redis://:{env.TEST_EMPTY}@h":   "placeholder 1 in the URL is unknown or empty",
		"redis://:{env.TEST_ABSENT}@h":  "placeholder 1 in the URL is unknown or empty",
		"redis://{env.TEST_SET}:{x}@h":  "placeholder 2 in the URL is unknown or empty",
		"redis://:s3{secret}et@h":       "placeholder 1 in the URL is unknown or empty",
		"{secret}":                      "placeholder 1 in the URL is unknown or empty",
		"{env.TEST_EMPTY}":              "placeholder 1 in the URL is unknown or empty",
		"rediss://h?ca={env.TEST_CA}":   "no such file",
	} {
		opts, err := parse(url)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %+v, %v; want %q", url, opts, err, want)
		}
	}
	for _, url := range []string{"", "h", "redis+sentinel://:secret@h", "redis://secret@{env.H}"} {
		if err := checkURL(url); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", url, err)
		}
	}
	notPEM := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(notPEM, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := parse("rediss://h?ca=" + notPEM); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("a file without a certificate: %v", err)
	}
}

// A URL that leads nowhere does not load, neither in plain text nor out of
// placeholders. Else what a secret leaves in it, when nobody has escaped it,
// would be a host in the log.
func TestURLsThatLeadNowhere(t *testing.T) {
	for _, url := range []string{
		"redis://h:abc", "redis://h:0", "redis://h:-1", "redis://h:+1", "redis://h:65536", "redis://h:99999999", "redis://h:", "redis://h:1:2",
		"redis://:1", "redis://[::1", "redis://::1", "redis://[::1]x", "redis://[h/1", "redis://[]", "redis://h]",
		"redis://h%41", "redis://h\t", "redis://h h", "redis://s3cret#h", "redis://h\nx", "redis://é", "redis://h/ 3", "redis://h/+3", "redis://h/3/4",
		"redis://h/99999999999999999999", "redis://oz:s3cret?x@h", "redis://oz:s3cret/x@h", "redis://oz:0/x@h/3", "redis://oz:s3cret@x/y@h", "redis://oz:1?x@h",
		"redis+sentinel://a,b//3", "redis+sentinel://a,,b/c", "redis+sentinel://a,/c", "redis+sentinel://a/s3cret@h", "redis+sentinel://a/%00", "redis+sentinel://a/b%2fc",
		"redis+sentinel://a/%73%40h/2", "redis+sentinel://oz:Zm9v/YmFy@s1/2", "redis+sentinel://oz:1/YmFy@s1/2", "redis+sentinel://a/c/3/4", "redis+sentinel://a/c?sentinel_password=s3cret@h",
		"redis+cluster://a,b:x", "redis+cluster://,a", "redis+cluster://a,", "redis+cluster://u:1/2@a",
	} {
		t.Setenv("TEST_URL", url)
		for _, text := range []string{url, "{env.TEST_URL}"} {
			conn, err := open(text)
			if err == nil {
				t.Errorf("%q loads, as %q", url, text)
				_ = conn.close()
				continue
			}
			if said := err.Error(); said != errForm.Error() && said != errDatabase.Error() {
				t.Errorf("%q: %v", url, err)
			}
		}
		if err := checkURL(url); err == nil && !strings.Contains(url, "?") {
			t.Errorf("%q is only refused when it is loaded", url)
		}
	}
	for _, value := range []string{"s3cret@h", "s3cret/h", "h:s3cret", "s3 cret", "[s3cret", ":1", ","} {
		t.Setenv("TEST_PART", value)
		for _, url := range []string{"redis://{env.TEST_PART}", "redis+cluster://a,{env.TEST_PART}", "redis+sentinel://a/{env.TEST_PART}", "redis+sentinel://{env.TEST_PART}/a"} {
			if conn, err := open(url); err == nil {
				t.Errorf("%q loads in %s", value, url)
				_ = conn.close()
			} else if err.Error() != errForm.Error() {
				t.Errorf("%q in %s: %v", value, url, err)
			}
			if err := checkURL(url); err != nil {
				t.Errorf("%s: %v", url, err)
			}
		}
	}
	t.Setenv("TEST_PART", "a,b")
	if _, err := open("redis://{env.TEST_PART}"); err == nil {
		t.Error("a list is a cluster without being called one")
	}
}

// serverError is an error that Redis answers.
type serverError string

func (e serverError) Error() string { return string(e) }
func (serverError) RedisError()     {}

// Errors of Redis are told without the arguments that it quotes.
func TestErrorsQuoteNothing(t *testing.T) {
	for err, want := range map[error]string{
		serverError("ERR unknown command 'SET', with args beginning with: 'oz_instant:replay:secret'"):                                                      "redis: it answered ERR",
		serverError("WRONGPASS invalid username-password pair, secret"):                                                                                     "redis: it answered WRONGPASS",
		serverError("ERR Error running script (call to f_6ea): @user_script:3: @user_script: 3: -READONLY You can't write against a read only replica."):    "redis: it answered READONLY",
		serverError("ERR Error running script (call to f_6ea): @user_script:3: @user_script: 3: The user executing the script can't run this command or x"): "redis: it answered NOPERM",
		serverError("secret"): "redis: it answered an error",
		fmt.Errorf("call: %w", serverError("READONLY secret")): "redis: it answered READONLY",
		errors.New("secret"):             "redis: error of type *errors.errorString",
		fmt.Errorf("secret: %w", io.EOF): "redis: connection closed",
		&net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}: "redis: dial tcp: connection refused",
		fmt.Errorf("secret: %w", context.DeadlineExceeded):                          "context deadline exceeded",
	} {
		if got := plain(err); got == nil || got.Error() != want {
			t.Errorf("%v: %v, want %s", err, got, want)
		}
	}
	if plain(nil) != nil {
		t.Error("no error is one")
	}
}

// Only a Redis with a limit can evict.
func TestEvicts(t *testing.T) {
	for info, want := range map[string]bool{
		"# Memory\r\nused_memory:1\r\nmaxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\n": true,
		"maxmemory:100\r\nmaxmemory_policy:noeviction\r\n":                               false,
		"maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n":                                false,
		"": false,
	} {
		if got := evicts(info); got != want {
			t.Errorf("%q: %v", info, got)
		}
	}
}

// Modules with the same URL share one connection, which outlives reloads.
func TestConnectionsAreShared(t *testing.T) {
	t.Setenv("TEST_SECRET", secret)
	one, err := open("redis://:{env.TEST_SECRET}@h")
	if err != nil {
		t.Fatal(err)
	}
	two, err := open("redis://:{env.TEST_SECRET}@h")
	if err != nil || one != two {
		t.Errorf("%v, shared: %v", err, one == two)
	}
	t.Setenv("TEST_SECRET", "changed")
	three, err := open("redis://:{env.TEST_SECRET}@h")
	if err != nil || three == one {
		t.Error("another password has the same connection")
	}
	for _, c := range []*connection{one, two, three} {
		if text := fmt.Sprintf("%v %+v", c, c); strings.Contains(text, "p@ss") {
			t.Errorf("it prints %s", text)
		}
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := open("redis://:{env.TEST_SECRET}@h/x"); err == nil {
		t.Error("an invalid database loads")
	}
}

// A file of certificate authorities is read anew by each load: after it was
// replaced no module gets the connection that trusts the old one.
func TestAuthoritiesAreReadAnew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	write := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	load := func() *connection {
		t.Helper()
		c, err := open("rediss://h?ca=" + file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.close() })
		return c
	}
	old := authority(t)
	write(old)
	one := load()
	if load() != one {
		t.Error("the same file has another connection")
	}
	write(authority(t))
	if load() == one {
		t.Error("another file has the same connection")
	}
	write([]byte("x"))
	if _, err := open("rediss://h?ca=" + file); err == nil || !strings.Contains(err.Error(), "no certificate") {
		t.Errorf("a file without a certificate: %v", err)
	}
	write(old)
	if load() != one {
		t.Error("the old file, which is still in use, has another connection")
	}
}

// authority makes a certificate in PEM.
func authority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
