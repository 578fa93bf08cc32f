package integration_test

import (
	"bufio"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// sealVector is a seal and what must come of it.
type sealVector struct {
	Name, Decision, Token string
	Accept                bool
}

// sealVectors are the seals in the repository.
type sealVectors struct {
	Folder, JWKS string // files
	Audience     string
	Vectors      []sealVector
	keys         []json.RawMessage // of JWKS
}

// verifyFolder is where the verifiers are.
func verifyFolder(t testing.TB) string {
	t.Helper()
	root, err := caddybin.Root()
	check(t, err)
	return filepath.Join(root, "integration", "examples", "verify")
}

func readSealVectors(t testing.TB) (v sealVectors) {
	t.Helper()
	folder := filepath.Join(verifyFolder(t), "vectors")
	text, err := os.ReadFile(filepath.Join(folder, "vectors.json"))
	check(t, err)
	check(t, json.Unmarshal(text, &v))
	v.Folder, v.JWKS = filepath.Join(folder, v.Folder), filepath.Join(folder, "jwks.json")
	text, err = os.ReadFile(v.JWKS)
	check(t, err)
	var set struct{ Keys []json.RawMessage }
	check(t, json.Unmarshal(text, &set))
	v.keys = set.Keys
	return v
}

// vector returns the seal with that name.
func (v sealVectors) vector(t testing.TB, name string) sealVector {
	t.Helper()
	for _, vector := range v.Vectors {
		if vector.Name == name {
			return vector
		}
	}
	t.Fatalf("there is no vector %q", name)
	return sealVector{}
}

// sealKey is a key that makes seals, by go-jose.
type sealKey struct {
	alg jose.SignatureAlgorithm
	key crypto.Signer
	kid string
}

func newSealKey(t testing.TB) sealKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	thumbprint, err := (&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256)
	check(t, err)
	return sealKey{jose.ES256, key, base64.RawURLEncoding.EncodeToString(thumbprint)}
}

// newRSAKey makes a key of the wrong kind, under a kid of choice.
func newRSAKey(t testing.TB, kid string) sealKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	return sealKey{jose.RS256, key, kid}
}

// published is the key as it stands in a JWK Set.
func (k sealKey) published(t testing.TB) json.RawMessage {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKey{Key: k.key.Public(), KeyID: k.kid, Algorithm: string(k.alg), Use: "sig"})
	check(t, err)
	return text
}

// seal makes a seal over the vectors' folder that was issued and expires so long from now.
func (k sealKey) seal(t testing.TB, v sealVectors, issued, expires time.Duration) string {
	t.Helper()
	folder, err := os.ReadFile(v.Folder)
	check(t, err)
	claims, err := json.Marshal(map[string]any{
		"iss": "oz_instant", "aud": v.Audience, "iat": time.Now().Add(issued).Unix(), "exp": time.Now().Add(expires).Unix(),
		"jti": uuid.NewString(), "htm": "POST", "path": "/verify", "decision": "SUCCESS", "folder_sha256": fmt.Sprintf("%x", sha256.Sum256(folder)),
	})
	check(t, err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: k.alg, Key: k.key}, (&jose.SignerOptions{}).WithType("oz-seal+jwt").WithHeader("kid", k.kid))
	check(t, err)
	jws, err := signer.Sign(claims)
	check(t, err)
	token, err := jws.CompactSerialize()
	check(t, err)
	return token
}

// keySite publishes a JWK Set, and counts who asks for it.
type keySite struct {
	URL string

	mu    sync.Mutex
	keys  []json.RawMessage
	fault http.HandlerFunc // answers instead, if set
	asked int
}

func newKeySite(t testing.TB, keys ...json.RawMessage) *keySite {
	t.Helper()
	k := &keySite{keys: keys}
	server := httptest.NewServer(k)
	t.Cleanup(server.Close)
	k.URL = server.URL + "/.well-known/oz-instant/jwks.json"
	return k
}

// movedKeys is a path that has the keys in spite of a fault.
const movedKeys = "/moved"

func (k *keySite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.fault != nil && r.URL.Path != movedKeys {
		k.fault(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	json.NewEncoder(w).Encode(map[string]any{"keys": k.keys})
}

// publish adds a key.
func (k *keySite) publish(key json.RawMessage) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = append(k.keys, key)
}

// withdraw takes the keys back and publishes only this one.
func (k *keySite) withdraw(key json.RawMessage) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = []json.RawMessage{key}
}

// breaks has the site answer by this instead; nil mends it.
func (k *keySite) breaks(fault http.HandlerFunc) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fault = fault
}

func (k *keySite) requests() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked
}

// verifier is a program of examples/verify that runs.
type verifier struct {
	stdin    io.WriteCloser
	verdicts *bufio.Reader
	cmd      *exec.Cmd
	logs     *logBook // its standard error
}

// startVerifier runs a program with the arguments that all of them have.
func startVerifier(t testing.TB, command []string, args ...string) *verifier {
	t.Helper()
	v := &verifier{cmd: exec.Command(command[0], append(command[1:], args...)...), logs: newLogBook()}
	v.cmd.Stderr = v.logs
	dieWithTests(v.cmd, syscall.SIGKILL)
	var err error
	v.stdin, err = v.cmd.StdinPipe()
	check(t, err)
	stdout, err := v.cmd.StdoutPipe()
	check(t, err)
	v.verdicts = bufio.NewReader(stdout)
	check(t, v.cmd.Start())
	// One that hangs ends, and the test fails by what it doesn't print.
	timer := time.AfterFunc(buildPatience, func() { v.cmd.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		v.cmd.Process.Kill()
		v.cmd.Wait()
	})
	return v
}

// verdict returns what the program says of a seal.
func (v *verifier) verdict(t testing.TB, seal string) string {
	t.Helper()
	_, err := io.WriteString(v.stdin, seal+"\n")
	if err == nil {
		var line string
		if line, err = v.verdicts.ReadString('\n'); err == nil {
			return strings.TrimSuffix(line, "\n")
		}
	}
	t.Fatalf("%s ended: %v\n%s", v.cmd.Path, err, v.logs)
	return ""
}

// end closes the input and returns the exit code.
func (v *verifier) end(t testing.TB) int {
	t.Helper()
	check(t, v.stdin.Close())
	if rest, err := io.ReadAll(v.verdicts); err != nil || len(rest) > 0 {
		t.Errorf("more than a line for each seal: %q, %v", rest, err)
	}
	v.cmd.Wait() // the exit code says how it ended
	return v.cmd.ProcessState.ExitCode()
}
