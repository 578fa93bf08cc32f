package oz

import (
	"bytes"
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"testing"
)

func mustPath(t *testing.T, s string) Path {
	t.Helper()
	p, err := ParsePath(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Names, indices and # are all there is. What gjson would take for more is
// refused with an error that says so, and not understood as something else.
func TestParsePath(t *testing.T) {
	for _, s := range []string{
		"a", "folder_id", "meta_data.phone_info", "analyses.#.source_media", "analyses.0.results_data",
		"#", "0", "#.#", "-1", "007", "media:tags", ":a", "a-b", "Länge", "имя", "नाम",
	} {
		p, err := ParsePath(s)
		if err != nil {
			t.Errorf("%q: %v", s, err)
		}
		if p.String() != s {
			t.Errorf("%q became %q", s, p.String())
		}
	}
	for _, s := range []string{
		"", ".", "a.", ".a", "a..b", "..a", // empty parts, and gjson's JSON lines
		"@this", "a.@reverse", "a|@pretty", "a|b", "@ugly:{}", // modifiers and pipes
		`analyses.#(type=="QUALITY")`, `analyses.#(type=="QUALITY")#.a`, "#(a)", "##", "a#", "#a", // queries
		"a*", "*", "a?", "meta_data.*", // wildcards
		`a\.b`, `a\`, `\a`, // escapes
		"[a,b]", "{a,b}", `{"x":a}`, "!1", "!", `a.!"x"`, "~true", // selectors and literals
		"a b", " a", "a ", "a\n", "a\x00b", "a\x7f", "a\u00a0b", "a\u2028b", "a\u202eb", "\xff", "a\xc0\xaf",
		`"a"`, "'a'", "a,b", "a/b", "a=b", "a<b", "a%b", "{env.SECRET}", "$.a", "a;b", "a+b",
	} {
		p, err := ParsePath(s)
		if err == nil {
			t.Errorf("%q was understood as %q", s, p)
			continue
		}
		if !strings.Contains(err.Error(), "names") || !strings.Contains(err.Error(), "#") {
			t.Errorf("%q: the error does not say what is allowed: %v", s, err)
		}
		if got := p.String(); got != "" {
			t.Errorf("%q: a path came with the error: %q", s, got)
		}
	}
}

// A requirement binds a folder to a user. It holds only where the folder says
// just that: once at least, and nowhere anything else.
func TestPathHolds(t *testing.T) {
	const doc = `{
		"s": "nonce", "empty": "", "null": null, "int": 12, "float": 1.50, "yes": true, "no": false,
		"object": {"s": "nonce"}, "array": ["nonce"], "none": [],
		"same": [{"id": "x"}, {"id": "x"}], "mixed": [{"id": "x"}, {"id": "y"}],
		"lacking": [{"id": "x"}, {}], "odd": [{"id": "x"}, "x"], "types": [{"id": "1"}, {"id": 1}],
		"lists": [[{"id": "x"}], [{"id": "x"}]], "hollow": [[{"id": "x"}], []],
		"tr\u0061ns": "n\u006fnce", "slash": "a\/b", "0": "zero", "Case": "x",
		"quote": "a\"b", "clef": "\ud834\udd1e", "text_null": "null", "text_true": "true"
	}`
	for _, tc := range []struct {
		path, value string
		want        bool
	}{
		{"s", "nonce", true},
		{"s", "Nonce", false},
		{"s", "nonc", false},
		{"s", "nonce ", false},
		{"s", `"nonce"`, false},
		{"trans", "nonce", true},
		{"slash", "a/b", true},
		{"quote", `a"b`, true},
		{"clef", "\U0001d11e", true},
		{"object.s", "nonce", true},
		{"array.0", "nonce", true},
		{"array.#", "nonce", true},
		{"array.1", "nonce", false},
		{"array.00", "nonce", false},
		{"array.-1", "nonce", false},
		{"array.18446744073709551616", "nonce", false}, // 2 to the 64
		{"0", "zero", true},

		{"int", "12", true},
		{"int", "12.0", false},
		{"float", "1.50", true},
		{"float", "1.5", false},
		{"yes", "true", true},
		{"yes", "false", false},
		{"no", "false", true},
		{"text_true", "true", true},

		{"empty", "", false},
		{"s", "", false},
		{"missing", "", false},
		{"missing", "nonce", false},
		{"null", "null", false},
		{"null", "", false},
		{"text_null", "null", true},
		{"object", `{"s": "nonce"}`, false},
		{"array", `["nonce"]`, false},
		{"array", "nonce", false},
		{"s.s", "nonce", false},
		{"s.0", "nonce", false},
		{"s.#", "nonce", false},
		{"case", "x", false},

		{"same.#.id", "x", true},
		{"same.1.id", "x", true},
		{"mixed.#.id", "x", false},
		{"mixed.#.id", "y", false},
		{"mixed.0.id", "x", true},
		{"lacking.#.id", "x", false},
		{"odd.#.id", "x", false},
		{"types.#.id", "1", true},
		{"lists.#.#.id", "x", true},
		{"hollow.#.#.id", "x", false},
		{"none.#", "x", false},
		{"none.#.id", "x", false},
		{"object.#", "nonce", false},
	} {
		if got := mustPath(t, tc.path).Holds([]byte(doc), tc.value); got != tc.want {
			t.Errorf("%s = %q: got %t", tc.path, tc.value, got)
		}
	}
	if (Path{}).Holds([]byte(`"x"`), "x") {
		t.Error("the zero Path holds")
	}
	if mustPath(t, "a").Holds([]byte(`{"a":"x","a":"y"}`), "x") {
		t.Error("one of two members of a name is enough")
	}
}

// What a path selects goes, wherever it is and however its name is written,
// and nothing else changes.
func TestStrip(t *testing.T) {
	for _, tc := range []struct{ name, doc, paths, want string }{
		{"first", `{"a":1,"b":2}`, "a", `{"b":2}`},
		{"last", `{"a":1,"b":2}`, "b", `{"a":1}`},
		{"only", `{"a":1}`, "a", `{}`},
		{"middle", `{ "a" : 1 , "b" : 2 , "c" : 3 }`, "b", `{ "a" : 1  , "c" : 3 }`},
		{"nested", `{"a":{"b":{"c":[1,{}],"d":"}"}}}`, "a.b.c", `{"a":{"b":{"d":"}"}}}`},
		{"nothing there", `{"a" : 1}`, "b a.b b.#.c #", `{"a" : 1}`},
		{"no paths", ` {"a" : 1}`, "", ` {"a" : 1}`},
		{"two paths", `{"a":1,"b":{"c":2}}`, "a b.c", `{"b":{}}`},
		{"one inside the other", `{"a":{"b":1},"c":2}`, "a a.b", `{"c":2}`},
		{"the same twice", `{"a":1,"c":2}`, "a a", `{"c":2}`},
		{"null", `{"a":null,"c":2}`, "a", `{"c":2}`},

		{"in every element", `{"a":[{"x":1},{"x":2,"y":3},{"y":4}]}`, "a.#.x", `{"a":[{},{"y":3},{"y":4}]}`},
		{"in lists in lists", `{"a":[{"b":[{"x":1},{"x":2}]},{"b":[]},{"b":[{"y":1,"x":3}]}]}`, "a.#.b.#.x", `{"a":[{"b":[{},{}]},{"b":[]},{"b":[{"y":1}]}]}`},
		{"every element", `{"a":[1,{"x":2},[3]],"b":1}`, "a.#", `{"a":[],"b":1}`},
		{"odd elements", `{"a":[1,"x",null,[{"x":1}],{"x":2}]}`, "a.#.x", `{"a":[1,"x",null,[{"x":1}],{}]}`},
		{"every element of an object", `{"a":{"x":1}}`, "a.#", `{"a":{"x":1}}`},
		{"index", `{"a":[1,2,3]}`, "a.1", `{"a":[1,3]}`},
		{"first index", `{"a":[1,2,3]}`, "a.0", `{"a":[2,3]}`},
		{"last index", `{"a":[1,2,3]}`, "a.2", `{"a":[1,2]}`},
		{"index that is not there", `{"a":[1,2,3]}`, "a.3", `{"a":[1,2,3]}`},
		{"index modulo 2^64", `{"a":[1,2,3]}`, "a.18446744073709551616", `{"a":[1,2,3]}`},
		{"not an index", `{"a":[1,2,3]}`, "a.-1 a.00 a.b", `{"a":[1,2,3]}`},
		{"number for a name", `{"0":1,"a":{"1":2}}`, "0 a.1", `{"a":{}}`},
		{"sjson's words for names", `{"-1":1,":a":2,"a":3}`, "-1 :a", `{"a":3}`},
		{"array at the root", ` [{"x":1,"y":2}] `, "#.x", ` [{"y":2}] `},
		{"scalar", `1`, "a", `1`},

		{"escaped name", `{"meta_data":{"phone\u005finfo":{"a":1},"b":2}}`, "meta_data.phone_info", `{"meta_data":{"b":2}}`},
		{"escaped name on the way", `{"m\u0065ta_data":{"phone_info":{"a":1},"b":2}}`, "meta_data.phone_info", `{"m\u0065ta_data":{"b":2}}`},
		{"escaped throughout, last", `{"b":2,"\u0061":1}`, "a", `{"b":2}`},
		{"escaped, other script", `{"\u0438\u043c\u044f":1,"b":2}`, "имя", `{"b":2}`},
		{"beside names with quotes", `{"x\",\"a":1,"a":2,"y\\":3}`, "a", `{"x\",\"a":1,"y\\":3}`},
		{"behind values with structure", `{"x":"\",\"a\":[","a":2}`, "a", `{"x":"\",\"a\":["}`},
		{"another case", `{"A":1}`, "a", `{"A":1}`},

		// ReadFolder refuses these; nothing leaks all the same.
		{"twice", `{"a":1,"b":2,"a":3}`, "a", `{"b":2}`},
		{"twice on the way", `{"m":{"a":1},"m":{"a":2,"b":3}}`, "m.a", `{"m":{},"m":{"b":3}}`},
		{"twice, once escaped", `{"a":1,"\u0061":3}`, "a", `{}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var paths []Path
			for s := range strings.FieldsSeq(tc.paths) {
				paths = append(paths, mustPath(t, s))
			}
			doc := []byte(tc.doc)
			got, err := Strip(doc, paths)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if !json.Valid(got) {
				t.Error("the result is not valid JSON")
			}
			if string(doc) != tc.doc {
				t.Error("the document was changed in place")
			}
		})
	}
}

// The zero Path selects nothing, not everything.
func TestStripZeroPath(t *testing.T) {
	got, err := Strip([]byte(`{"a":1}`), []Path{{}})
	if err != nil || string(got) != `{"a":1}` {
		t.Errorf("got %s, %v", got, err)
	}
}

// sjson promises nothing on malformed input, so there is none.
func TestStripRefusesMalformed(t *testing.T) {
	for _, doc := range []string{"", `{"a":1`, `{"a":1}}`, `{a:1}`, `{"a":1,}`} {
		if got, err := Strip([]byte(doc), []Path{mustPath(t, "a")}); !errors.Is(err, ErrMalformed) || got != nil {
			t.Errorf("%q: %q, %v", doc, got, err)
		}
	}
}

// Removing from each of many elements takes a walk over the document, not one
// for each of them: 20,000 walks over this one would be 10 GB of copies.
func TestStripIsNotQuadratic(t *testing.T) {
	const n = 20_000
	doc := []byte(`{"a":[` + strings.Repeat(`{"x":[1,2],"y":"text"},`, n) + `{}]}`)
	paths := []Path{mustPath(t, "a.#.x")}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got, err := Strip(doc, paths)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(got, []byte(`"x"`)) || bytes.Count(got, []byte(`{"y":"text"}`)) != n {
		t.Fatal("not stripped")
	}
	if perElement := (after.TotalAlloc - before.TotalAlloc) / n; perElement > 1000 {
		t.Errorf("%d bytes were copied for each element", perElement)
	}
}

// Text is the one value that there is, or nothing.
func TestPathText(t *testing.T) {
	for _, tc := range []struct{ path, doc, want string }{
		{"a", `{"a": "x"}`, "x"},
		{"a", `{"a": "x\u0041"}`, "xA"},
		{"a", `{"a": 7}`, "7"},
		{"a", `{"a": 0}`, "0"},
		{"a.1.b", `{"a": [0, {"b": "x"}]}`, "x"},
		{"a", `{"b": "x"}`, ""},
		{"a", `{"a": ""}`, ""},
		{"a", `{"a": null}`, ""},
		{"a", `{"a": true}`, ""},
		{"a", `{"a": false}`, ""},
		{"a", `{"a": ["x"]}`, ""},
		{"a", `{"a": {"b": "x"}}`, ""},
		{"a", `{"a": "x", "a": "x"}`, ""},
		{"a.#", `{"a": ["x", "y"]}`, ""},
		{"a.b", `{"a": "x"}`, ""},
		{"a", `["x"]`, ""},
	} {
		if got, ok := mustPath(t, tc.path).Text([]byte(tc.doc)); got != tc.want || ok != (tc.want != "") {
			t.Errorf("%s in %s: %q %v, want %q", tc.path, tc.doc, got, ok, tc.want)
		}
	}
	if _, ok := (Path{}).Text([]byte(`"x"`)); ok {
		t.Error("no path selects a value")
	}
	if !mustPath(t, "a.0.b").Single() || mustPath(t, "a.#.b").Single() {
		t.Error("only a path with # selects several")
	}
}
