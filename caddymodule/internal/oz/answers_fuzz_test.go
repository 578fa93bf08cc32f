package oz

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FuzzSmallAnswers reads any document as each of the small answers of Oz. What is accepted must be what encoding/json, which is
// laxer, finds as well: a reader that takes another value than the rest of the world would could be talked into anything.
func FuzzSmallAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"session_token":"a.b.c"}`, `{"Session_Token":"a"}`, `{"session_token":"a","session_token":"b"}`, `{"session_token":"\ud800"}`,
		`{"access_token":"t","expire_token":"e","expire_date":1764000900}`, `{"access_token":"t","expire_date":9e999}`,
		`{"error_code":14,"error_message":"Invalid container"}`, `{"error_code":"14"}`, `{"error_code":14.0}`, `{"error_code":"014"}`,
		"\ufeff{}", `{}{}`, `[]`, ``, strings.Repeat(`[`, 10_001),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		lax := func(field string) any {
			var object map[string]any
			d := json.NewDecoder(bytes.NewReader(doc))
			d.UseNumber() // 9e999 is a number, too
			if err := d.Decode(&object); err != nil {
				t.Fatalf("accepted, and no JSON object to encoding/json: %v", err)
			}
			return object[field]
		}
		token, err := ReadSessionToken(doc)
		switch {
		case err != nil && (token != "" || !errors.Is(err, ErrMalformed)):
			t.Errorf("the error is %v, with %q", err, token)
		case err == nil && (token == "" || len(token) > maxToken || lax("session_token") != token):
			t.Errorf("the session token is %q", token)
		}
		grant, err := ReadGrant(doc, time.Unix(1_764_000_000, 0))
		if err == nil && (!sendable(grant.AccessToken) || grant.Life <= 0 || grant.Life > longestLife || lax("access_token") != grant.AccessToken) {
			t.Errorf("the grant is %+v", grant)
		}
		if e, ok := ReadError(doc); ok {
			switch code := lax("error_code").(type) {
			case json.Number:
				n, err := code.Float64()
				ok = err == nil && n == float64(e.Code)
			case string:
				ok = code == strconv.Itoa(e.Code)
			default:
				ok = false
			}
			if !ok {
				t.Errorf("the error is %+v", e)
			}
		}
	})
}

func sendable(token string) bool {
	return token != "" && !strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' })
}
