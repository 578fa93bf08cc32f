package diagnose

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	strictjson "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/seal"
)

// SealLeeway is how far the clocks of gateway and verifier may be apart.
const SealLeeway = 30 * time.Second

// MaxSeal bounds what is read as a seal, in bytes. Real ones have some 800.
const MaxSeal = 16 << 10

// SealRules say what a seal must be to hold.
type SealRules struct {
	Audience string    // required
	Issuer   string    // required
	Folder   []byte    // the folder document as delivered; nil: it isn't compared
	Now      time.Time // zero: the clock's
}

// SealFault is the kind of a SealFailure. The words are part of the output of
// caddy oz-instant verify --json.
type SealFault string

// What can be wrong with a seal.
const (
	SealMalformed    SealFault = "malformed"
	SealWrongAlg     SealFault = "algorithm"
	SealWrongType    SealFault = "type"
	SealUnknownKey   SealFault = "unknown_key"
	SealBadSignature SealFault = "signature"
	SealExpired      SealFault = "expired"
	SealNotYetIssued SealFault = "not_yet_issued"
	SealAudience     SealFault = "audience"
	SealIssuer       SealFault = "issuer"
	SealNoDecision   SealFault = "no_decision"
	SealFolder       SealFault = "folder"
)

// SealFailure says what doesn't hold. Its Detail can quote the seal, with
// whatever control characters that has: write it by Print.
type SealFailure struct {
	Fault  SealFault `json:"fault"`
	Detail string    `json:"detail"`
}

func (f *SealFailure) String() string { return string(f.Fault) + ": " + f.Detail }

func sealFailure(fault SealFault, format string, args ...any) *SealFailure {
	return &SealFailure{fault, fmt.Sprintf(format, args...)}
}

// Seal is what VerifySeal found out.
type Seal struct {
	Holds    bool           `json:"holds"`
	Failures []*SealFailure `json:"failures,omitempty"`
	KeyID    string         `json:"kid,omitempty"`
	// Payload is the object with all claims. It is there only if the signature
	// holds: anyone can have written claims without one.
	Payload json.RawMessage `json:"claims,omitempty"`

	names  []string // the claims in the order of Payload
	claims map[string]jsontext.Value
	now    time.Time
}

// Claim returns a claim that is a string, or nothing.
func (s *Seal) Claim(name string) string {
	text, _ := stringOf(s.claims[name])
	return text
}

// Err returns the failures as one error, or nil if the seal holds.
func (s *Seal) Err() error {
	if s.Holds {
		return nil
	}
	texts := make([]string, len(s.Failures))
	for i, f := range s.Failures {
		texts[i] = f.String()
	}
	return errors.New(strings.Join(texts, "; "))
}

// VerifySeal checks a seal in every respect. Of what is signed it names all
// that doesn't hold, and of the rest the first thing.
func VerifySeal(token string, keys SealKeys, rules SealRules) *Seal {
	s := &Seal{now: rules.Now}
	if s.now.IsZero() {
		s.now = time.Now()
	}
	if failure := s.open(token, keys); failure != nil {
		s.Failures = []*SealFailure{failure}
		return s
	}
	for _, failure := range []*SealFailure{
		s.checkExpiry(), s.checkIssued(), s.checkText(SealAudience, "aud", rules.Audience), s.checkText(SealIssuer, "iss", rules.Issuer),
		s.checkDecision(), s.checkFolder(rules.Folder),
	} {
		if failure != nil {
			s.Failures = append(s.Failures, failure)
		}
	}
	s.Holds = len(s.Failures) == 0
	return s
}

// sealHeader is the header of a JWS, as far as it decides something.
type sealHeader struct {
	Alg  string         `json:"alg"`
	Kid  string         `json:"kid"`
	Typ  string         `json:"typ"`
	Crit jsontext.Value `json:"crit"`
}

// open checks everything up to the signature, and reads the claims.
func (s *Seal) open(token string, keys SealKeys) *SealFailure {
	header, payload, failure := splitSeal(token)
	if failure != nil {
		return failure
	}
	s.KeyID = header.Kid
	switch {
	case header.Alg != string(jose.ES256):
		return sealFailure(SealWrongAlg, "alg is %q (want ES256)", header.Alg)
	case header.Typ != seal.Type:
		return sealFailure(SealWrongType, "typ is %q (want %s)", header.Typ, seal.Type)
	case header.Crit != nil:
		return sealFailure(SealMalformed, "the header has crit, which no seal has")
	}
	candidates, failure := keys.find(header.Kid)
	if failure != nil {
		return failure
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return sealFailure(SealMalformed, "not a compact JWS: %v", err)
	}
	if !signedByOneOf(jws, candidates) {
		return sealFailure(SealBadSignature, "the signature is not that of the key %q: header or claims were changed, or another key signed", header.Kid)
	}
	return s.readClaims(payload)
}

func signedByOneOf(jws *jose.JSONWebSignature, keys []jose.JSONWebKey) bool {
	for _, key := range keys {
		if _, err := jws.Verify(key.Key); err == nil {
			return true
		}
	}
	return false
}

// splitSeal takes a compact JWS apart, more strictly than go-jose does: with one
// form only for one value, so that two readers can't see two seals.
func splitSeal(token string) (header sealHeader, payload []byte, failure *SealFailure) {
	if len(token) > MaxSeal {
		return header, nil, sealFailure(SealMalformed, "more than %d bytes, which no seal has", MaxSeal)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return header, nil, sealFailure(SealMalformed, "not a compact JWS: %d parts with dots between them (want 3)", len(parts))
	}
	var decoded [3][]byte
	for i, name := range []string{"header", "payload", "signature"} {
		var err error
		// The decoder skips line ends, and no seal has one.
		if decoded[i], err = base64.RawURLEncoding.Strict().DecodeString(parts[i]); err != nil || strings.ContainsAny(parts[i], "\r\n") {
			return header, nil, sealFailure(SealMalformed, "not a compact JWS: the %s is not base64url without padding", name)
		}
	}
	if err := strictjson.Unmarshal(decoded[0], &header); err != nil {
		return header, nil, sealFailure(SealMalformed, "the header %s", jsonFault(err))
	}
	return header, decoded[1], nil
}

// readClaims reads the payload. What it accepts has no name twice.
func (s *Seal) readClaims(payload []byte) *SealFailure {
	if err := strictjson.Unmarshal(payload, &s.claims); err != nil || s.claims == nil {
		s.claims = nil
		return sealFailure(SealMalformed, "the payload %s", jsonFault(err))
	}
	s.Payload = payload
	s.names = memberNames(payload)
	for _, name := range s.names {
		if name == "iat" || name == "exp" {
			continue
		}
		if _, ok := stringOf(s.claims[name]); !ok {
			return sealFailure(SealMalformed, "the claim %q is not a string", name)
		}
	}
	return nil
}

// jsonFault says what is wrong with a document, without the reader's own words,
// which quote it.
func jsonFault(err error) string {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return "has a name twice"
	}
	return "is not a JSON object as seals have it"
}

// memberNames returns the names of a valid object's members in order.
func memberNames(object []byte) (names []string) {
	dec := jsontext.NewDecoder(bytes.NewReader(object))
	_, _ = dec.ReadToken() // {
	for dec.PeekKind() == jsontext.KindString {
		name, err := dec.ReadToken()
		if err != nil {
			return names
		}
		names = append(names, name.String())
		_ = dec.SkipValue()
	}
	return names
}

func stringOf(value jsontext.Value) (text string, ok bool) {
	return text, value.Kind() == jsontext.KindString && strictjson.Unmarshal(value, &text) == nil
}

// second reads a claim that is a time. Only whole seconds, which is what seals
// have, up to the year 9999.
func (s *Seal) second(name string) (time.Time, *SealFailure) {
	value, there := s.claims[name]
	if !there {
		return time.Time{}, sealFailure(SealMalformed, "no claim %s", name)
	}
	var seconds int64
	if strictjson.Unmarshal(value, &seconds) != nil || value.Kind() != jsontext.KindNumber || seconds < 0 || seconds > 253402300799 {
		return time.Time{}, sealFailure(SealMalformed, "the claim %s is not a time in seconds", name)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

func (s *Seal) checkExpiry() *SealFailure {
	exp, failure := s.second("exp")
	if failure == nil && s.now.Sub(exp) >= SealLeeway {
		failure = sealFailure(SealExpired, "expired since %s, for %s", exp.Format(time.RFC3339), span(s.now.Sub(exp)))
	}
	return failure
}

func (s *Seal) checkIssued() *SealFailure {
	iat, failure := s.second("iat")
	if failure == nil && iat.Sub(s.now) > SealLeeway {
		failure = sealFailure(SealNotYetIssued, "issued in the future, at %s, %s from now: compare the clocks", iat.Format(time.RFC3339), span(iat.Sub(s.now)))
	}
	return failure
}

// checkText compares a claim, and refuses an empty one: rules without an
// audience or issuer accept nothing.
func (s *Seal) checkText(fault SealFault, name, want string) *SealFailure {
	value, there := s.claims[name]
	switch got, _ := stringOf(value); {
	case !there:
		return sealFailure(fault, "no claim %s (want %q)", name, want)
	case got != want || want == "":
		return sealFailure(fault, "%s is %q (want %q)", name, got, want)
	}
	return nil
}

func (s *Seal) checkDecision() *SealFailure {
	if s.Claim("decision") == "" {
		return sealFailure(SealNoDecision, "no claim decision")
	}
	return nil
}

func (s *Seal) checkFolder(folder []byte) *SealFailure {
	if folder == nil {
		return nil
	}
	claimed := s.Claim("folder_sha256")
	if claimed == "" {
		return sealFailure(SealFolder, "no claim folder_sha256 to compare the folder with")
	}
	sum := sha256.Sum256(folder)
	if got := hex.EncodeToString(sum[:]); got != claimed {
		return sealFailure(SealFolder, "the folder has SHA-256 %s (want %s): hash the bytes as they were delivered, not a re-serialised body", got, claimed)
	}
	return nil
}

// span writes a duration for people.
func span(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= time.Minute:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return d.String()
}
