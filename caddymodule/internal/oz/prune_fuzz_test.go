package oz

import (
	"errors"
	"reflect"
	"testing"
)

// FuzzPrune compares Pruner with decoding the whole document, deleting the
// best shots and encoding the rest.
//
//	go test -fuzz FuzzPrune ./caddymodule/internal/oz
func FuzzPrune(f *testing.F) {
	for _, tc := range malformed {
		f.Add([]byte(tc.doc), uint16(1), uint16(10))
	}
	for _, doc := range []string{
		goodFolder(60),
		image(`"image_b64":"AA\"AA","a":1`),
		image(`"a":1,"image\u005fb64":[{"b":"\q"}],"image_b64":1.5e-7,"b":null`),
		image(`"image_b64":"A"}]},{"output_images":[{ "image_b64" : "B" , "c" : [ ] },{"image_b64":"C"`),
		`"analyses":[{"results_media":[{"output_images":[{"image_b64":1}]}]}]`,
	} {
		f.Add([]byte(doc), uint16(7), uint16(50))
	}
	f.Fuzz(func(t *testing.T, doc []byte, split, limit uint16) {
		// Few mutations keep the long way to the member intact, so each
		// document is also tried at its end.
		for _, doc := range []string{string(doc), image(string(doc)), image(`"image_b64":` + string(doc))} {
			comparePruned(t, doc)
			compareSplit(t, doc, int(split), int64(limit))
		}
	})
}

func comparePruned(t *testing.T, doc string) {
	got, err := prune(noLimit, false, doc)
	sound := soundStrings([]byte(doc))
	whole, wantErr := decode(sound)

	// The same documents are refused: with their strings made sound, since
	// those are not the Pruner's to judge.
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("%q: got %v, the reference %v", doc, err, wantErr)
	}
	if _, keepErr := prune(noLimit, true, doc); (err == nil) != (keepErr == nil) {
		t.Fatalf("%q: got %v, with keep %v", doc, err, keepErr)
	}
	if err != nil {
		if errors.Is(err, ErrTooDeep) == errors.Is(err, ErrMalformed) {
			t.Fatalf("%q: neither malformed nor too deep, or both: %v", doc, err)
		}
		return
	}

	// Cutting does not depend on what is in strings that are cut or kept.
	again, err := prune(noLimit, false, string(sound))
	if err != nil || again.text != string(soundStrings([]byte(got.text))) || again.cuts != got.cuts {
		t.Fatalf("%q: got %q, with sound strings %q, %v", doc, got.text, again.text, err)
	}

	left, err := decode([]byte(again.text))
	if err != nil {
		t.Fatalf("%q: the result %q is malformed: %v", doc, again.text, err)
	}
	if want := withoutHeavy(whole, heavy[:]); !reflect.DeepEqual(left, want) {
		t.Fatalf("%q: got %q, the reference %v", doc, again.text, want)
	}
	if got.cuts == 0 && got.text != doc {
		t.Fatalf("%q: nothing was cut, and it became %q", doc, got.text)
	}
}

func compareSplit(t *testing.T, doc string, split int, limit int64) {
	split %= len(doc) + 1
	for _, limit := range []int64{noLimit, limit} {
		want, err := prune(limit, false, doc)
		if got, _ := prune(limit, false, doc[:split], doc[split:]); got != want {
			t.Fatalf("%q split at %d, limit %d: got %+v, want %+v", doc, split, limit, got, want)
		}
		if got, _ := prune(limit, false, bytewise(doc)...); got != want {
			t.Fatalf("%q byte by byte, limit %d: got %+v, want %+v", doc, limit, got, want)
		}
		if unlimited, _ := prune(noLimit, false, doc); !errors.Is(err, ErrTooLarge) && int64(len(want.text)) > limit || err == nil && want != unlimited {
			t.Fatalf("%q, limit %d: got %+v, without %+v", doc, limit, want, unlimited)
		}
	}
}

// FuzzStrip compares Strip with decoding, deleting and encoding.
//
//	go test -fuzz FuzzStrip ./caddymodule/internal/oz
func FuzzStrip(f *testing.F) {
	f.Add([]byte(goodFolder(60)), "meta_data.phone_info")
	f.Add([]byte(goodFolder(60)), "analyses.#.results_media.#.output_images")
	f.Add([]byte(`{"a":[{"b":1,"c":"\",\"b\":"},{"\u0062":2}],"a":{"0":[]}}`), "a.#.b")
	f.Add([]byte(`[[1,2],[3],{"0":1,"-1":2}]`), "#.0")
	f.Fuzz(func(t *testing.T, doc []byte, s string) {
		path, err := ParsePath(s)
		if err != nil {
			return
		}
		whole, err := decode(doc)
		if err != nil {
			return
		}
		got, err := Strip(doc, []Path{path})
		if err != nil {
			t.Fatalf("%q, %s: %v", doc, path, err)
		}
		left, err := decode(got)
		if err != nil {
			t.Fatalf("%q, %s: the result %q is malformed: %v", doc, path, got, err)
		}
		if want := without(whole, path.parts); !reflect.DeepEqual(left, want) {
			t.Fatalf("%q, %s: got %q, the reference %v", doc, path, got, want)
		}
	})
}
