package diagnose

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// standIn answers as Oz does; wrong changes that. Like Oz it refuses a capsule
// that was sent before, and one that it knows no session token of.
type standIn struct {
	sign  func(n int) string          // makes the nth session token
	wrong map[string]http.HandlerFunc // by method and path

	mu       sync.Mutex
	tokens   int
	capsules map[string]int
}

const (
	tokenCall   = "GET /api/authorize/session_token"
	foldersCall = "POST /api/instant/folders/"
	loginCall   = "POST /api/authorize/auth/"
	goodCapsule = "a capsule"
	goodFolder  = `{"folder_id":"f-1","resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]}`
)

func (o *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := r.Method + " " + r.URL.Path
	if f, ok := o.wrong[call]; ok {
		f(w, r)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch call {
	case tokenCall:
		_, _ = w.Write(oz.SessionTokenBody(o.sign(o.tokens)))
		o.tokens++
	case loginCall:
		answer(200, `{"access_token": "access"}`)(w, r)
	case foldersCall:
		capsule, _ := io.ReadAll(r.Body)
		o.capsules[string(capsule)]++
		switch {
		case len(capsule) == 0:
			answer(400, `{"error_code": 13}`)(w, r)
		case string(capsule) == goodCapsule && o.capsules[goodCapsule] == 1:
			answer(201, goodFolder)(w, r)
		default:
			answer(400, `{"error_code": 14}`)(w, r)
		}
	default:
		http.NotFound(w, r)
	}
}

// answer reads a request whole before it answers: what comes before is a fault
// of another kind.
func answer(status int, doc string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, doc)
	}
}

// start starts a stand-in for Oz with a JWT key of its own, or with wrong answers.
func start(t *testing.T, wrong map[string]http.HandlerFunc) *httptest.Server {
	t.Helper()
	key := newKey(t)
	return startSigning(t, wrong, func(int) string { return es384(t, key) })
}

func startSigning(t *testing.T, wrong map[string]http.HandlerFunc, sign func(int) string) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(&standIn{sign: sign, wrong: wrong, capsules: map[string]int{}})
	t.Cleanup(server.Close)
	return server
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// es384 is a session token as the vendor documents its key.
func es384(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	signed := unsigned(`{"alg":"ES384","typ":"JWT"}`, fmt.Sprintf(`{"jti":"%s","iat":1000,"exp":1900}`, rand.Text()))
	digest := sha512.Sum384([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	var signature [96]byte
	r.FillBytes(signature[:48])
	s.FillBytes(signature[48:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature[:])
}

func unsigned(header, claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(header)) + "." + encode([]byte(claims))
}

// target describes upstreams by their addresses.
func target(dials ...string) Target {
	t := Target{Config: ozclient.Config{ReverseProxy: new(reverseproxy.Handler)}, Policy: oz.Policy{Analyses: []string{oz.Quality}}, Options: ozclient.Options{MaxAnswer: 1 << 20}}
	for _, dial := range dials {
		t.Config.ReverseProxy.Upstreams = append(t.Config.ReverseProxy.Upstreams, &reverseproxy.Upstream{Dial: dial})
	}
	return t
}

func withHeader(t Target, name, value string) Target {
	t.Config.ReverseProxy.Headers = &headers.Handler{Request: &headers.HeaderOps{Set: http.Header{name: {value}}}}
	return t
}

func address(server *httptest.Server) string { return server.Listener.Addr().String() }
