package oz

import "testing"

// An error object decides between "your capsule" and "our Oz", so it is one
// only if no reader could doubt it.
func TestReadError(t *testing.T) {
	for _, tc := range []struct {
		name, doc string
		want      Error
		ok        bool
	}{
		{"as Oz writes it", `{"error_code": 14, "error_message": "Invalid request data", "details": null}`, Error{14, "Invalid request data"}, true},
		{"with details", `{"details":{"a":[1]},"error_code":3}`, Error{3, ""}, true},
		{"zero", `{"error_code":0,"error_message":"Unknown server side error occurred"}`, Error{0, "Unknown server side error occurred"}, true},
		{"a code that is not known", `{"error_code":99}`, Error{Code: 99}, true},
		{"largest", `{"error_code":2147483647}`, Error{Code: 2147483647}, true},
		{"negative", `{"error_code":-14}`, Error{Code: -14}, true},
		{"message of another type", `{"error_code":14,"error_message":{"a":1}}`, Error{Code: 14}, true},
		{"escaped name", `{"error\u005fcode":14}`, Error{Code: 14}, true},

		{"no code", `{"error_message":"Invalid request data"}`, Error{}, false},
		{"null", `{"error_code":null}`, Error{}, false},
		{"in quotes", `{"error_code":"14"}`, Error{Code: 14}, true},
		{"zero in quotes", `{"error_code":"0"}`, Error{}, true},
		{"negative in quotes", `{"error_code":"-14"}`, Error{Code: -14}, true},
		{"escaped in quotes", `{"error_code":"\u0031\u0034"}`, Error{Code: 14}, true},
		{"a sign in quotes", `{"error_code":"+14"}`, Error{}, false},
		{"a zero before it", `{"error_code":"014"}`, Error{}, false},
		{"a negative zero", `{"error_code":"-0"}`, Error{}, false},
		{"a space in quotes", `{"error_code":" 14"}`, Error{}, false},
		{"a fraction in quotes", `{"error_code":"14.0"}`, Error{}, false},
		{"too large in quotes", `{"error_code":"4294967310"}`, Error{}, false},
		{"nothing in quotes", `{"error_code":""}`, Error{}, false},
		{"a word", `{"error_code":"fourteen"}`, Error{}, false},
		{"fraction", `{"error_code":14.0}`, Error{}, false},
		{"exponent", `{"error_code":14e0}`, Error{}, false},
		{"true", `{"error_code":true}`, Error{}, false},
		{"list", `{"error_code":[14]}`, Error{}, false},
		{"too large", `{"error_code":2147483648}`, Error{}, false},
		{"14 modulo 2^32", `{"error_code":4294967310}`, Error{}, false},
		{"another case", `{"Error_code":14}`, Error{}, false},
		{"further down", `{"error":{"error_code":14}}`, Error{}, false},
		{"in a list", `[{"error_code":14}]`, Error{}, false},
		{"twice", `{"error_code":14,"error_code":14}`, Error{}, false},
		{"something behind it", `{"error_code":14}x`, Error{}, false},
		{"cut off", `{"error_code":14`, Error{}, false},
		{"no UTF-8", "{\"error_code\":14,\"error_message\":\"\xff\"}", Error{}, false},
		{"HTML", `<html>`, Error{}, false},
		{"nothing", ``, Error{}, false},
	} {
		if got, ok := ReadError([]byte(tc.doc)); got != tc.want || ok != tc.ok {
			t.Errorf("%s: got %+v, %t", tc.name, got, ok)
		}
	}
}

// Codes that blame the capsule, as the guide lists them; with no other code
// may a user be told that the capsule was at fault.
func TestErrorContainer(t *testing.T) {
	blame := map[int]bool{3: true, 4: true, 5: true, 13: true, 14: true}
	for code := -2; code < 20; code++ {
		if got := (Error{Code: code}).Container(); got != blame[code] {
			t.Errorf("code %d: got %t", code, got)
		}
	}
}
