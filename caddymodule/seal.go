package caddymodule

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/seal"
)

// headerSeal isn't one of the facts, which are logged.
const headerSeal = "X-Oz-Seal"

// maxSubject is how long a subject may be, in bytes: a client may have chosen it.
const maxSubject = 256

// requestPlaceholder begins the placeholders of a request.
const requestPlaceholder = "{http."

var errNotFixed = errors.New("a placeholder of the request, which a client could choose (want a fixed text, or one such as {env.AUDIENCE})")

func (s *Seal) validate(matchers caddyhttp.RawMatcherSets, tokens *SessionToken) error {
	if s == nil {
		return nil
	}
	switch {
	case strings.TrimSpace(s.Audience) == "":
		return invalid("seal", errors.New("no audience (for example: audience https://app.example.com)"))
	case strings.Contains(s.Audience, requestPlaceholder):
		return invalid("seal audience", errNotFixed)
	case strings.Contains(s.Issuer, requestPlaceholder):
		return invalid("seal issuer", errNotFixed)
	case strings.Contains(s.Subject, bodyPlaceholder):
		return invalid("seal subject", errors.New("the capsule itself cannot be the subject"))
	case time.Duration(s.Lifetime) < time.Second || time.Duration(s.Lifetime)%time.Second != 0:
		return invalid("seal lifetime", errors.New("must be whole seconds, at least one"))
	case slices.Contains(s.Key, ""):
		return invalid("seal key", errors.New("an empty file name"))
	case !plainPath(s.JWKS):
		return invalid("seal jwks", fmt.Errorf("invalid path %q (want a plain path such as %s)", s.JWKS, defaultJWKS))
	case slices.ContainsFunc(capsulePaths(matchers), samePath(s.JWKS)):
		return invalid("seal jwks", fmt.Errorf("%s is the path of the capsules (want another one)", s.JWKS))
	case tokens != nil && samePath(s.JWKS)(tokens.Path):
		return invalid("seal jwks", fmt.Errorf("%s is the path of session_token (want another one)", s.JWKS))
	}
	return nil
}

func (h *Handler) provisionSeal(ctx caddy.Context) error {
	if h.Seal == nil {
		return nil
	}
	repl := caddy.NewReplacer()
	for option, text := range map[string]*string{"audience": &h.Seal.Audience, "issuer": &h.Seal.Issuer} {
		fixed, err := repl.ReplaceOrErr(*text, true, true)
		if err != nil {
			return fmt.Errorf("seal: %s: %w", option, err)
		}
		*text = fixed
	}
	keys, err := h.Seal.load(ctx, repl)
	if err == nil {
		h.Seal.keys, err = seal.NewKeys(keys...)
	}
	if err != nil {
		return fmt.Errorf("seal: key: %w", err)
	}
	return nil
}

func (s *Seal) load(ctx caddy.Context, repl *caddy.Replacer) (keys []*ecdsa.PrivateKey, err error) {
	if len(s.Key) == 0 {
		key, err := seal.StoredKey(ctx, ctx.Storage())
		return []*ecdsa.PrivateKey{key}, err
	}
	for _, file := range s.Key {
		key, err := readKey(file, repl, ctx.Logger())
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// readKey reads the key in a file. Its errors have the name as it was written: a
// placeholder such as {file./run/secrets/seal.pem} stands for the key itself.
func readKey(written string, repl *caddy.Replacer, logger *zap.Logger) (*ecdsa.PrivateKey, error) {
	file, err := repl.ReplaceOrErr(written, true, true)
	if err != nil {
		return nil, err
	}
	if strings.Contains(file, "-----BEGIN") {
		return nil, errors.New("a key in place of a file (want the file's name, such as /run/secrets/seal.pem)")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err
		}
		return nil, fmt.Errorf("%s: %w", written, err)
	}
	key, err := seal.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", written, err)
	}
	if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o077 != 0 {
		logger.Warn("seal: others on this machine may read the key, and sign with it; make its mode 0600",
			zap.String("file", written), zap.String("mode", info.Mode().Perm().String()))
	}
	return key, nil
}

// isJWKS reports whether r is for the path of the keys.
func (s *Seal) isJWKS(r *http.Request) bool {
	return s != nil && (caddyhttp.MatchPath{strings.ToLower(s.JWKS)}).Match(r)
}

// classifyJWKSRequest says what a request for the path of the keys is.
func classifyJWKSRequest(w http.ResponseWriter, r *http.Request) (requestKind, *problem) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return otherRequest, refusal(kindMethod, "Keys are read by GET", "Use GET, without a body.").with("Allow", "GET, HEAD")
	}
	if hasContent(w, r) {
		return otherRequest, unexpectedContent(r)
	}
	return jwksRequest, nil
}

// serve answers with the keys. Net/http leaves the body out for HEAD.
func (s *Seal) serve(w http.ResponseWriter) error {
	set := s.keys.Published()
	header := w.Header()
	header.Set("Content-Type", seal.KeySetType)
	header.Set("Cache-Control", "max-age=300")
	header.Set("Content-Length", strconv.Itoa(len(set)))
	_, _ = w.Write(set) // the client may be gone
	return nil
}

// sign returns the seal of res; without this option it is empty. Folder is the
// document that the app gets.
func (s *Seal) sign(r *http.Request, res *Result, folder []byte) (string, error) {
	if s == nil {
		return "", nil
	}
	method, path := requestLine(r)
	digest := sha256.Sum256(folder)
	now := time.Now()
	claims := map[string]any{
		"iss":           s.Issuer,
		"aud":           s.Audience,
		"iat":           now.Unix(),
		"exp":           now.Add(time.Duration(s.Lifetime)).Unix(),
		"jti":           rand.Text(),
		"htm":           method,
		"path":          path,
		"folder_sha256": hex.EncodeToString(digest[:]),
	}
	if subject := s.subject(r); subject != "" {
		claims["sub"] = subject
	}
	res.setClaims(claims)
	return s.keys.Sign(claims)
}

// subject returns the value of the subject, or "" if any part of it is empty or
// unknown: "user-" would be nobody.
func (s *Seal) subject(r *http.Request) string {
	subject, err := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).ReplaceOrErr(s.Subject, true, true)
	if err != nil || len(subject) > maxSubject || !utf8.ValidString(subject) || strings.ContainsFunc(subject, unicode.IsControl) {
		return ""
	}
	return subject
}

// pathSize returns how much the path of r adds to a seal.
func (s *Seal) pathSize(r *http.Request) int {
	if s == nil {
		return 0
	}
	_, path := requestLine(r)
	return seal.Size(path)
}

// requestLine returns the method and the path that the client sent, whatever
// handlers made of them. The path has its percent-encoding. What isn't ASCII is
// encoded, as every recipient reads it: JSON couldn't carry any byte as it came.
func requestLine(r *http.Request) (method, path string) {
	method, target := r.Method, r.RequestURI
	if received, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		method, target = received.Method, received.RequestURI
	}
	if u, err := url.ParseRequestURI(target); err == nil && u.Scheme != "" { // RFC 9112 3.2.2
		target = u.EscapedPath()
	}
	path, _, _ = strings.Cut(target, "?")
	var escaped strings.Builder
	for i := range len(path) {
		if c := path[i]; c < utf8.RuneSelf {
			escaped.WriteByte(c)
		} else {
			fmt.Fprintf(&escaped, "%%%02X", c)
		}
	}
	return method, escaped.String()
}

// loaded are the handlers of all configs that are loaded.
var loaded struct {
	mu       sync.Mutex
	handlers []*Handler
}

// join checks that the keys of this handler, and those of others, are on paths
// of their own: another block would answer there.
func (h *Handler) join(ctx caddy.Context) error {
	h.within = within(ctx)
	loaded.mu.Lock()
	defer loaded.mu.Unlock()
	for _, other := range loaded.handlers {
		if !h.meets(other) {
			continue
		}
		if err := errors.Join(h.Seal.clash(other), other.Seal.clash(h)); err != nil {
			return err
		}
	}
	loaded.handlers = append(loaded.handlers, h)
	return nil
}

func (h *Handler) leave() {
	loaded.mu.Lock()
	defer loaded.mu.Unlock()
	loaded.handlers = slices.DeleteFunc(loaded.handlers, func(other *Handler) bool { return other == h })
}

// within returns what a handler stands in: the server, or else the config, and
// each subroute, such as that of its site and of a handle block, from the outside.
func within(ctx caddy.Context) []any {
	chain := []any{configID(ctx)}
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		chain[0] = server
	}
	for _, module := range ctx.Modules() {
		if subroute, ok := module.(*caddyhttp.Subroute); ok {
			chain = append(chain, subroute)
		}
	}
	return chain
}

// meets reports whether a request may pass both handlers: they stand in the same
// site or block, or one in a block next to the other. Blocks side by side, such
// as two of handle, are for different requests.
func (h *Handler) meets(other *Handler) bool {
	n := min(len(h.within), len(other.within))
	return slices.Equal(h.within[:n], other.within[:n])
}

// clash says what another handler that requests pass has on the path of these
// keys. Two handlers may serve the same keys there.
func (s *Seal) clash(other *Handler) error {
	use := ""
	switch {
	case s == nil:
	case slices.ContainsFunc(other.capsulePaths, samePath(s.JWKS)):
		use = "capsules"
	case other.SessionToken != nil && samePath(s.JWKS)(other.SessionToken.Path):
		use = "session tokens"
	case other.Seal != nil && samePath(s.JWKS)(other.Seal.JWKS) && !s.keys.SamePublished(other.Seal.keys):
		use = "other keys"
	}
	if use == "" {
		return nil
	}
	return fmt.Errorf("seal: jwks: another oz_instant of this site has %s on %s (want another path)", use, s.JWKS)
}
