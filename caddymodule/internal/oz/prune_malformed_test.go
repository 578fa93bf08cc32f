package oz

import (
	"errors"
	"strings"
	"testing"
)

// secret stands in every malformed document, and in no error.
const secret = "canary"

// malformed is the catalogue of what is not one JSON document, in what stays
// and in what is cut.
var malformed = []struct{ name, doc string }{
	{"nothing", ""},
	{"whitespace", " \n\t\r "},
	{"open object", `{"canary":1`},
	{"open array", `["canary"`},
	{"open string", `"canary`},
	{"string with its last quote escaped", `{"a":"canary\"}`},
	{"only a name", `{"canary"`},
	{"only a name and colon", `{"canary":`},
	{"member without a value", `{"canary":}`},
	{"member without a colon", `{"canary" 1}`},
	{"member without both", `{"canary","b":1}`},
	{"member with two colons", `{"canary"::1}`},
	{"comma for a colon", `{"canary",1}`},
	{"name that is a number", `{1:"canary"}`},
	{"name that is a word", `{canary:1}`},
	{"single quotes", `{'canary':1}`},
	{"no comma in an object", `{"canary":1 "b":2}`},
	{"no comma in an array", `["canary" 2]`},
	{"two commas", `["canary",,2]`},
	{"leading comma in an object", `{,"canary":1}`},
	{"leading comma in an array", `[,"canary"]`},
	{"trailing comma in an object", `{"canary":1,}`},
	{"trailing comma in an array", `["canary",]`},
	{"object closed as an array", `{"canary":1]`},
	{"array closed as an object", `["canary"}`},
	{"closed twice", `{"canary":1}}`},
	{"never opened", `]`},
	{"two documents", `{"canary":1}{"canary":2}`},
	{"two documents, apart", "{\"canary\":1}\n{\"canary\":2}"},
	{"two scalars", `1 2`},
	{"comma behind it", `{"canary":1},`},
	{"NUL behind it", "{\"canary\":1}\x00"},
	{"byte order mark", "\ufeff{\"canary\":1}"},
	{"UTF-16", "{\x00\"\x00a\x00\"\x00:\x001\x00}\x00"},
	{"comment", `{"canary":1/*2*/}`},
	{"line comment", "{\"canary\":1//2\n}"},
	{"other whitespace", "{\"canary\":\v1}"},
	{"no-break space", "{\"canary\":\u00a01}"},
	{"HTML", `<html><body>canary</body></html>`},
	{"capitals", `{"canary":True}`},
	{"cut literal", `{"canary":tru}`},
	{"longer literal", `{"canary":truex}`},
	{"another literal", `{"canary":nul0}`},
	{"literals in a row", `["canary",truefalse]`},
	{"NaN", `{"canary":NaN}`},
	{"Infinity", `{"canary":-Infinity}`},
	{"plus", `{"canary":+1}`},
	{"minus alone", `{"canary":-}`},
	{"leading zero", `{"canary":01}`},
	{"leading zero after a minus", `{"canary":-01}`},
	{"no integer part", `{"canary":.5}`},
	{"no fraction", `{"canary":1.}`},
	{"no fraction before an exponent", `{"canary":1.e5}`},
	{"two points", `{"canary":1.2.3}`},
	{"no exponent", `{"canary":1e}`},
	{"sign for an exponent", `{"canary":1e+}`},
	{"two exponents", `{"canary":1e5e5}`},
	{"point in the exponent", `{"canary":1e5.5}`},
	{"sign in a number", `{"canary":1-2}`},
	{"hexadecimal", `{"canary":0x10}`},
	{"digits apart", `{"canary":1 000}`},
	{"number at the end, incomplete", `-`},
	{"literal at the end, incomplete", `fals`},
}

// Every fault of the grammar is an error where the document stays, and where it
// is cut: that is the only chance to see it.
func TestPruneRefusesMalformed(t *testing.T) {
	for _, tc := range malformed {
		t.Run(tc.name, func(t *testing.T) {
			isMalformed(t, tc.doc)
			isMalformed(t, image(`"image_b64":`+tc.doc))
			isMalformed(t, image(`"a":1,"image_b64":`+tc.doc+`,"b":1`))
			isMalformed(t, `{"a":`+tc.doc+`,"analyses":[]}`)
		})
	}
}

// A fault beside the member does not go away with it.
func TestPruneRefusesFaultsAroundTheCut(t *testing.T) {
	for _, members := range []string{
		`,"image_b64":"canary"`,
		`"image_b64":"canary",`,
		`"image_b64":"canary",,"a":1`,
		`"a":1,,"image_b64":"canary"`,
		`"a":1 "image_b64":"canary"`,
		`"image_b64":"canary" "a":1`,
		`"image_b64":"canary"]`,
		`"image_b64" "canary"`,
		`"image_b64"`,
		`"image_b64":`,
		`"image_b64","canary"`,
		`"image_b64","canary":1`,
		`"canary":1,"image_b64","a":1`,
		`"image_b64":"canary":"a"`,
		`"image_b64":"canary""a":1`,
		`"image_b64":"canary" x`,
		`"image_b64"::"canary"`,
		`"image_b64":"canary","image_b64"`,
		`"image_b64":"canary","image_b64":"canary",`,
		`"image_b64":"canary","a"`,
		`image_b64:"canary"`,
		`"a":1,"image_b64":"canary",`,
		`"image_b64":{"canary":1]`,
		`"image_b64":["canary"}`,
		`"image_b64":{"canary"}`,
		`"image_b64":{"canary":1,}`,
		`"image_b64":["canary",]`,
		`"image_b64":{"a":"canary""b":1}`,
	} {
		isMalformed(t, image(members))
	}
}

// A document that breaks off is an error wherever it does.
func TestPruneRefusesCutOffAnywhere(t *testing.T) {
	doc := goodFolder(60)
	for i := range len(doc) {
		if _, err := prune(noLimit, false, doc[:i]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("the first %d of %d bytes: %v", i, len(doc), err)
		}
	}
}

// What the Pruner lets pass in strings that stay, the strict reader refuses.
func TestFaultsInKeptStringsAreRefusedByReadFolder(t *testing.T) {
	for name, text := range map[string]string{
		"control character":   "canary\n",
		"NUL":                 "canary\x00",
		"unknown escape":      `canary\q`,
		"short escape":        `canary\u12`,
		"lone high surrogate": `canary\ud800`,
		"lone low surrogate":  `canary\udc00`,
		"no UTF-8":            "canary\xff",
		"encoded surrogate":   "canary\xed\xa0\x80",
		"overlong":            "canary\xc0\xaf",
	} {
		for _, doc := range []string{
			`{"a":"` + text + `"}`,
			`{"` + text + `":1}`,
			image(`"image_b64":"x","` + text + `":1`),
		} {
			got, err := prune(noLimit, false, doc)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := ReadFolder([]byte(got.text)); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s in %q: %v", name, doc, err)
			}
		}
	}
}

func isMalformed(t *testing.T, doc string) {
	t.Helper()
	for _, keep := range []bool{false, true} {
		_, err := prune(noLimit, keep, doc)
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%q (keep %t): %v", doc, keep, err)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error quotes the document: %v", err)
		}
	}
}
