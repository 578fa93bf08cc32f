package caddymodule

import (
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

// tokenChars are the characters besides letters and digits that may stand in a
// header name (RFC 9110 5.6.2).
const tokenChars = "!#$%&'*+-.^_`|~"

// No spelling that an app server could fold onto one of our names survives:
// every separator in both positions that count, in both cases.
func TestReservedNamesInEverySpelling(t *testing.T) {
	for _, a := range tokenChars {
		for _, b := range tokenChars {
			for _, form := range []string{"x%coz%cdecision", "X%cOZ%cDecision", "x%cOz%cQ", "X%coZ%c"} {
				name := strings.Replace(strings.Replace(form, "%c", string(a), 1), "%c", string(b), 1)
				if !reserved(name) {
					t.Errorf("%q is not reserved", name)
				}
			}
		}
	}
}

// An independent fold: what CGI, WSGI, Rack and PHP do between them.
func fold(name string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case 'A' <= c && c <= 'Z':
			return c + 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
			return c
		}
		return '-'
	}, name)
}

func FuzzReserved(f *testing.F) {
	for _, seed := range []string{"X-Oz-Decision", "x_oz_decision", "X.Oz.Decision", "Xoz-Decision", "X-Ozz-A", "", "x-oz", "x-oz-"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if want := strings.HasPrefix(fold(strings.ToValidUTF8(name, "-")), "x-oz-"); reserved(strings.ToValidUTF8(name, "-")) != want {
			t.Errorf("reserved(%q) = %v", name, !want)
		}
	})
}

func TestOtherNamesStay(t *testing.T) {
	for _, name := range []string{"X-Ozone", "Xoz-Decision", "X-Oz", "Oz-Decision", "X-O-Z-Decision", "Cookie", "X-Request-Id", ""} {
		if reserved(name) {
			t.Errorf("%q is reserved", name)
		}
	}
}

func TestStripReserved(t *testing.T) {
	for _, test := range []struct {
		name     string
		in, want http.Header
	}{
		{
			name: "fields in all spellings, every line of them",
			in:   http.Header{"X-Oz-Decision": {"SUCCESS", "SUCCESS"}, "X_oz_decision": {"a"}, "X.oz|reason": {"b"}, "Cookie": {"c"}},
			want: http.Header{"Cookie": {"c"}},
		},
		{
			name: "names in Connection, which keeps its other options",
			in:   http.Header{"Connection": {"", "keep-alive, x-oz-decision", "X_OZ_Seal ,Upgrade"}},
			want: http.Header{"Connection": {"keep-alive, Upgrade"}},
		},
		{
			name: "a Connection of nothing but reserved names",
			in:   http.Header{"Connection": {"X-Oz-Decision, ,"}},
			want: http.Header{},
		},
		{
			name: "an ordinary Connection stays as it is",
			in:   http.Header{"Connection": {"close", "Upgrade,  x"}},
			want: http.Header{"Connection": {"close", "Upgrade,  x"}},
		},
		{
			name: "the announcement of trailers",
			in:   http.Header{"Trailer": {"X-Oz-Decision"}},
			want: http.Header{},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.Header, r.Trailer = test.in, http.Header{"X-Oz-Decision": nil}
			stripReserved(r)
			if !reflect.DeepEqual(r.Header, test.want) {
				t.Errorf("header %v, want %v", r.Header, test.want)
			}
			if r.Trailer != nil {
				t.Errorf("trailer %v survived", r.Trailer)
			}
		})
	}
}

func TestHeaderValue(t *testing.T) {
	for _, good := range []string{"SUCCESS", "7b1f2c52-0c0d-4f5e", "a:b_c.d", strings.Repeat("x", 128)} {
		if headerValue(good) != good {
			t.Errorf("%q was refused", good)
		}
	}
	for _, bad := range []string{"a b", "a\r\nX-Oz-Decision: SUCCESS", "é", "{env.HOME}", "a,b", "\x00", strings.Repeat("x", 129)} {
		if got := headerValue(bad); got != "" {
			t.Errorf("%q came out as %q", bad, got)
		}
	}
}
