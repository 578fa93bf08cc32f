package integration_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestHandoffBody promises the app Oz's answer less the best shot, every other byte of it as it was.
func TestHandoffBody(t *testing.T) {
	t.Parallel()
	oz, app := newRawApp(t), newRawApp(t)
	x := &chain{startCaddy(t, smokeSite, withEnv("OZ", "http://"+oz.Addr), withEnv("APP", app.Addr)), nil, app}
	c := x.client(t, "h1")

	image := strings.Repeat("QUJD", 100_000)
	const head = `{ "resolution_status" :"FINISHED",  "system_resolution":"SUCCESS","image_b64":"not here",` +
		"\n\t" + `"odd":[-1.50E+2,1e400,0.1000,"\u2603\/\ud83d\ude00 ☃",{"image_b64":{"a":[1]}}],` +
		`"analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS","results_media":[{"output_images":[`
	const tail = `]}]}]}` + "\n"
	for _, test := range []struct{ name, images, want string }{
		{"first of its object", `{"image_b64":"` + image + `","media_id":"1"}`, `{"media_id":"1"}`},
		{"last of its object", `{"media_id":"1","image_b64":"` + image + `"}`, `{"media_id":"1"}`},
		{"in the middle", `{"a":1,"image_b64":"` + image + `","b":2}`, `{"a":1,"b":2}`},
		{"alone", `{"image_b64":"` + image + `"}`, `{}`},
		{"name with escapes", `{"\u0069mage\u005Fb64":"` + image + `","b":2}`, `{"b":2}`},
		{"in several images", `{"image_b64":"` + image + `","b":2},{"b":3,"image_b64":"x"}`, `{"b":2},{"b":3}`},
		{"of another type", `{"image_b64":[{"x":"` + image + `"}],"b":2}`, `{"b":2}`},
		{"in an object deeper down it stays", `{"b":{"image_b64":"x"}}`, `{"b":{"image_b64":"x"}}`},
		{"in other case it stays", `{"Image_B64":"x"}`, `{"Image_B64":"x"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			oz.Answer(func(rawRequest) string { return rawAnswer("201 Created", head+test.images+tail) })
			j := x.observe(t, func() answer { return c.post(t, "/verify", []byte("capsule")) })
			if len(j.app) != 1 {
				t.Fatalf("the app was not called; the client got %d %s", j.answer.Status, j.answer.Body)
			}
			if got := string(j.app[0].Body); got != head+test.want+tail {
				t.Errorf("the app got %.3000s\nwant        %s", got, head+test.want+tail)
			}
		})
	}
}

// TestHandoffKeepAndStrip promises that best_shot keep leaves the image where it was, and that strip takes out what it names,
// however Oz spells the names, and nothing else. The decision and the headers do not depend on either.
func TestHandoffKeepAndStrip(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BestShotSize: 400_000}, `
{$SITE} {
	log
	oz_instant /keep {$OZ} {
		best_shot keep
	}
	oz_instant /strip {$OZ} {
		strip folder_id media.#.original_name analyses.#.source_media meta_data.event_session_id analyses.0.state no.such.field media.7
	}
	reverse_proxy {$APP}
}`)
	c := x.client(t, "h1")
	spec := sandbox.CapsuleSpec{Media: 3, Meta: map[string]string{"transaction_id": "order-1"}, EventSession: "s"}
	const image = "analyses.0.results_media.0.output_images.0.image_b64"

	t.Run("keep", func(t *testing.T) {
		j := x.observe(t, func() answer { return c.post(t, "/keep", x.oz.Capsule(spec)) })
		accepted.assertSight(t, j)
		if n := len(gjson.GetBytes(j.app[0].Body, image).Str); n != 400_000 {
			t.Errorf("the best shot has %d characters", n)
		}
		if !bytes.HasPrefix([]byte(gjson.GetBytes(j.app[0].Body, image).Str), []byte("/9j/")) {
			t.Error("the best shot is no JPEG")
		}
	})
	for _, fault := range []string{"", "escaped-names", "extra"} {
		t.Run("strip "+fault, func(t *testing.T) {
			x.oz.fault(t, fault)
			j := x.observe(t, func() answer { return c.post(t, "/strip", x.oz.Capsule(spec)) })
			accepted.assert(t, j, "s")
			body := unescapeNames(string(j.app[0].Body))
			for _, path := range []string{"folder_id", "media.0.original_name", "media.2.original_name", "analyses.0.source_media", "analyses.0.state", "meta_data.event_session_id", image} {
				if gjson.Get(body, path).Exists() {
					t.Errorf("%s is still there", path)
				}
			}
			for _, path := range []string{"media.2.media_id", "analyses.0.folder_id", "analyses.0.type", "meta_data.transaction_id", "system_resolution"} {
				if !gjson.Get(body, path).Exists() {
					t.Errorf("%s is gone, too", path)
				}
			}
			if strings.Contains(body, "original_name") != strings.Contains(body, "best_shot.jpg") {
				t.Error("an original_name of a medium is left")
			}
		})
	}
}

// TestHandoffRequire promises that a capsule that was made for someone else is nobody's: only what the client sends, what the
// folder carries and no empty value may make a requirement hold.
func TestHandoffRequire(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, `
{$SITE} {
	log
	oz_instant /cookie {$OZ} {
		require meta_data.transaction_id {http.request.cookie.transaction}
	}
	oz_instant /header {$OZ} {
		require meta_data.transaction_id {header.X-Transaction}
		require media.#.media_type VIDEO_FOLDER
	}
	oz_instant /own {$OZ} {
		require meta_data.transaction_id {header.X-Oz-Decision}
	}
	oz_instant /passed {$OZ} {
		require meta_data.transaction_id {cookie.transaction}
		pass INVALID
	}
	reverse_proxy {$APP}
}`)
	c := x.client(t, "h1")
	made := func(transaction string, media int) sandbox.CapsuleSpec {
		return sandbox.CapsuleSpec{EventSession: "s", Media: media, Meta: map[string]string{"transaction_id": transaction}}
	}
	for _, test := range []struct {
		name, path, fault string
		spec              sandbox.CapsuleSpec
		fields            []string
		holds             bool
	}{
		{"cookie", "/cookie", "", made("order-1", 1), []string{"Cookie", "a=b; transaction=order-1"}, true},
		{"another cookie", "/cookie", "", made("order-1", 1), []string{"Cookie", "transaction=order-2"}, false},
		{"a longer cookie", "/cookie", "", made("order-1", 1), []string{"Cookie", "transaction=order-11"}, false},
		{"other case", "/cookie", "", made("order-1", 1), []string{"Cookie", "transaction=Order-1"}, false},
		{"an empty cookie", "/cookie", "", made("", 1), []string{"Cookie", "transaction="}, false},
		{"no cookie", "/cookie", "", made("", 1), nil, false},
		{"no cookie, a placeholder in the folder", "/cookie", "", made("{http.request.cookie.transaction}", 1), nil, false},
		{"nothing in the folder", "/cookie", "", sandbox.CapsuleSpec{}, []string{"Cookie", "transaction=order-1"}, false},
		{"no meta_data", "/cookie", "absent", made("order-1", 1), []string{"Cookie", "transaction=order-1"}, false},
		{"meta_data is null", "/cookie", "nulls", made("order-1", 1), []string{"Cookie", "transaction=null"}, false},
		{"names with escapes", "/cookie", "escaped-names", made("order-1", 1), []string{"Cookie", "transaction=order-1"}, true},
		{"header and every element", "/header", "", made("order-1", 1), []string{"X-Transaction", "order-1"}, true},
		{"one element of two", "/header", "", made("order-1", 2), []string{"X-Transaction", "order-1"}, false},
		{"no element", "/header", "no-media", made("order-1", 1), []string{"X-Transaction", "order-1"}, false},
		{"one of two requirements", "/header", "", made("order-1", 1), []string{"X-Transaction", "order-2"}, false},
		{"a reserved header", "/own", "", made("SUCCESS", 1), []string{"X-Oz-Decision", "SUCCESS"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			x.oz.fault(t, test.fault)
			j := x.observe(t, func() answer { return c.post(t, test.path, x.oz.Capsule(test.spec), test.fields...) })
			want := accepted
			if !test.holds {
				want = verdict{decision: "INVALID", reason: "binding", http: 403}
			}
			want.assert(t, j, "s")
		})
	}

	// Passed on, somebody else's folder lends this request none of its words.
	t.Run("passed", func(t *testing.T) {
		x.oz.fault(t, "")
		j := x.observe(t, func() answer { return c.post(t, "/passed", x.oz.Capsule(made("order-1", 1))) })
		r := j.app[0]
		if r.Value("X-Oz-Decision") != "INVALID" || r.Value("X-Oz-Reason") != "binding" || r.Value("Content-Type") != "application/problem+json" {
			t.Errorf("the app got:\n%s\n%s", r.Raw(), r.Body)
		}
		if all := r.Raw() + string(r.Body); strings.Contains(all, "SUCCESS") || strings.Contains(all, "order-1") {
			t.Errorf("somebody else's folder is in:\n%s\n%s", r.Raw(), r.Body)
		}
	})
}
