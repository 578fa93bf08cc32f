package oz

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	// SessionTokenPath answers a GET with a session token: step 1 of the guide.
	SessionTokenPath = "/api/authorize/session_token"
	// FoldersPath takes capsules, and images to match: steps 3 and 4. The slash
	// at the end is the guide's; a redirect would lose the body.
	FoldersPath = "/api/instant/folders/"
	// LoginPath and RefreshPath take a POST for an access token.
	LoginPath   = "/api/authorize/auth/"
	RefreshPath = "/api/authorize/refresh/"
)

// maxToken is far more than any token has: one that is longer is nonsense, and
// would not pass as a header field.
const maxToken = 8 << 10

// ReadSessionToken reads an answer to a GET of SessionTokenPath. Its errors
// wrap ErrMalformed and quote nothing of doc.
func ReadSessionToken(doc []byte) (string, error) {
	var token string
	err := readObject(doc, func(s strict, name string) error {
		if name == "session_token" {
			return s.text(&token)
		}
		return s.skip()
	})
	switch {
	case err != nil:
		return "", err
	case token == "":
		return "", fmt.Errorf("%w: no session_token", ErrMalformed)
	case len(token) > maxToken:
		return "", fmt.Errorf("%w: session_token is too long", ErrMalformed)
	}
	return token, nil
}

// Grant is what a log-in or a refresh gives.
type Grant struct {
	AccessToken string        // for X-Forensic-Access-Token
	ExpireToken string        // for a refresh; empty if there is none
	Life        time.Duration // of both, from the answer on
}

// A token without a life of its own is taken for the vendor's default, and
// none is believed to live longer than a year: it is renewed in time anyway.
const (
	defaultLife = 15 * time.Minute
	longestLife = 365 * 24 * time.Hour
)

// ReadGrant reads an answer to a POST of LoginPath or RefreshPath, which was
// given at the time now by Oz's clock. Its errors wrap ErrMalformed and quote
// nothing of doc.
func ReadGrant(doc []byte, now time.Time) (Grant, error) {
	var g Grant
	expires := ""
	err := readObject(doc, func(s strict, name string) error {
		switch name {
		case "access_token":
			return s.text(&g.AccessToken)
		case "expire_token":
			return s.text(&g.ExpireToken)
		case "expire_date":
			return s.number(&expires)
		}
		return s.skip()
	})
	switch {
	case err != nil:
		return Grant{}, err
	case !isToken(g.AccessToken):
		return Grant{}, fmt.Errorf("%w: no usable access_token", ErrMalformed)
	case len(g.ExpireToken) > maxToken:
		return Grant{}, fmt.Errorf("%w: expire_token is too long", ErrMalformed)
	}
	g.Life, err = life(expires, now)
	return g, err
}

func life(expires string, now time.Time) (time.Duration, error) {
	if expires == "" {
		return defaultLife, nil
	}
	unix, err := strconv.ParseFloat(expires, 64)
	if err != nil || math.IsInf(unix, 0) {
		return 0, fmt.Errorf("%w: expire_date is no time", ErrMalformed)
	}
	seconds := unix - float64(now.UnixNano())/1e9
	switch {
	case seconds <= 0:
		return 0, fmt.Errorf("%w: expire_date is in the past", ErrMalformed)
	case seconds >= longestLife.Seconds():
		return longestLife, nil
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// isToken reports whether s may stand in a header field.
func isToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// LoginBody is the body of a log-in.
func LoginBody(email, password string) []byte {
	return mustJSON(map[string]any{"credentials": map[string]string{"email": email, "password": password}})
}

// RefreshBody is the body of a refresh.
func RefreshBody(expireToken string) []byte {
	return mustJSON(map[string]string{"expire_token": expireToken})
}

func mustJSON(v any) []byte {
	doc, err := json.Marshal(v)
	if err != nil { // strings always encode
		panic(err)
	}
	return doc
}

// AboutToken reports whether it is the access token that Oz complains about.
func (e Error) AboutToken() bool {
	return e.Code >= CodeAuthNotProvided && e.Code <= CodeAuthForbidden
}

// number reads a value into dst, as its JSON text, if it is a number. Any
// other value is as good as absent.
func (s strict) number(dst *string) error {
	if s.kind() != jsontext.KindNumber {
		return s.skip()
	}
	t, err := s.token()
	if err == nil {
		*dst = t.String()
	}
	return err
}

// SessionTokenBody is the answer that a client gets.
func SessionTokenBody(token string) []byte {
	return mustJSON(map[string]string{"session_token": token})
}
