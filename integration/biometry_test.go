package integration_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"image/jpeg"
	"image/png"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const biometrySite = `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		biometry {
			reference /profile/photo?size=large
		}
	}
	oz_instant /hurried {$OZ} {
		biometry {
			reference /profile/photo
		}
		timeout 3s
	}
	oz_instant /small {$OZ} {
		biometry {
			reference /profile/photo
			tag photo_id_front
			max_reference 2KiB
		}
	}
	oz_instant /named {$OZ} {
		biometry {
			reference /users/{http.request.cookie.user}/photo?v={http.request.cookie.v}
		}
	}
	oz_instant /attached {$OZ} {
		best_shot attach
		strip media
		biometry {
			reference /profile/photo
		}
	}
	reverse_proxy {$APP}
}`

// photos has the app answer GETs with the photo of the user in the cookie, as an app would.
func photos(app *rawApp, answers map[string]string) {
	app.Answer(func(r rawRequest) string {
		if !strings.HasPrefix(r.Line, "GET ") {
			return rawAnswer("200 OK", "seen by the app\n")
		}
		if a, ok := answers[r.Value("Cookie")]; ok {
			return a
		}
		return rawAnswer("404 Not Found", "no photo\n")
	})
}

func photoAnswer(photo []byte) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\nSet-Cookie: seen=1\r\nX-Oz-Decision: SUCCESS\r\n\r\n%s", len(photo), photo)
}

// TestBiometry promises step 4 of the guide: after a liveness SUCCESS the best shot and the photo of the user that the app has go
// to Oz, both results reach the app, and the worse one decides.
func TestBiometry(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BestShotSize: 60_000}, biometrySite)
	alice, bob := sandbox.Portrait("alice", 300), sandbox.Portrait("bob", 200)
	photos(x.app, map[string]string{"user=alice": photoAnswer(alice), "user=bob": photoAnswer(bob)})
	x.eachProtocol(t, func(t *testing.T, c *client) {
		for user, want := range map[string]string{"alice": "SUCCESS", "bob": "DECLINED"} {
			x.oz.Forget()
			spec := sandbox.CapsuleSpec{Person: "alice", EventSession: "s"}
			j := x.observe(t, func() answer {
				return c.post(t, "/verify", x.oz.Capsule(spec), "Cookie", "user="+user, "Authorization", "Bearer x", "X-Oz-Biometry", "SUCCESS",
					"If-Modified-Since", "Fri, 31 Dec 2100 23:59:59 GMT", "Range", "bytes=0-1", "Accept", "*/*")
			})
			verdict{decision: want}.assertSight(t, j)
			if len(j.app) != 2 {
				t.Fatalf("the app got %d requests; the client %d %s", len(j.app), j.answer.Status, j.answer.Body)
			}
			assertPhotoRequest(t, j.app[0], "/profile/photo?size=large", "user="+user)
			r := j.app[1]
			assertReserved(t, r, map[string]string{
				"X-Oz-Decision": want, "X-Oz-Folder-Id": r.Value("X-Oz-Folder-Id"), "X-Oz-Event-Session-Id": "s",
				"X-Oz-Resolution-Status": "FINISHED", "X-Oz-System-Resolution": want, "X-Oz-Quality": "SUCCESS", "X-Oz-Biometry": want,
			})
			if r.Line != "POST /verify HTTP/1.1" || r.Value("Content-Type") != "application/json" {
				t.Errorf("the app got:\n%s", r.Raw())
			}
			liveness, biometry := gjson.GetBytes(r.Body, "liveness"), gjson.GetBytes(r.Body, "biometry")
			if liveness.Get("folder_id").Str != r.Value("X-Oz-Folder-Id") || biometry.Get("analyses.0.type").Str != "BIOMETRY" || strings.Contains(string(r.Body), "image_b64") {
				t.Errorf("the app's body: %.1000s", r.Body)
			}
			if j.answer.Header.Get("Set-Cookie")+j.answer.Header.Get("X-Oz-Decision") != "" {
				t.Errorf("the client got something of the photo: %v", j.answer.Header)
			}
			reference := map[string][]byte{"alice": alice, "bob": bob}[user]
			assertMatchRequest(t, x.oz, reference, sandbox.BestShotOf("alice", 60_000), "photo_selfie")
		}
	})
	x.assertNoCanary(t, alice[len(alice)/2:len(alice)/2+40], bob[len(bob)/2:len(bob)/2+40])
}

func assertPhotoRequest(t testing.TB, r rawRequest, target, cookie string) {
	t.Helper()
	if r.Line != "GET "+target+" HTTP/1.1" || r.Value("Cookie") != cookie || r.Value("Authorization") != "Bearer x" || len(r.Body) > 0 {
		t.Errorf("the app was asked:\n%s", r.Raw())
	}
	for _, name := range []string{"Content-Type", "Content-Length", "Transfer-Encoding", "If-Modified-Since", "Range", "Expect"} {
		if v := r.Value(name); v != "" {
			t.Errorf("the app was asked for the photo with %s: %s", name, v)
		}
	}
	if names := r.Names("x-oz-"); len(names) > 0 {
		t.Errorf("the app was asked for the photo with %q", names)
	}
}

// assertMatchRequest compares what Oz got: exactly the two images, and nothing of the client.
func assertMatchRequest(t testing.TB, oz *ozServer, reference, shot []byte, tag string) {
	t.Helper()
	got := oz.RequestsOn(sandbox.OnBiometry)
	if len(got) != 1 {
		t.Fatalf("Oz got %d requests to match", len(got))
	}
	r := got[0]
	if r.RequestURI != "/api/instant/folders/" || r.Header.Get("Cookie")+r.Header.Get("Authorization") != "" {
		t.Errorf("Oz got %s %v", r.RequestURI, r.Header)
	}
	var digests []string
	for _, p := range r.Parts {
		if p.FileName == "" {
			continue
		}
		if p.Name != p.FileName || !slices.Equal(p.Tags, []string{tag}) {
			t.Errorf("a part %+v", p)
		}
		digests = append(digests, p.Digest)
	}
	if want := []string{digest(reference), digest(shot)}; !slices.Equal(digests, want) {
		t.Errorf("Oz got the images %q, want %q", digests, want)
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// TestBiometryReference promises a reason of its own for each way in which the reference photo cannot be had, and that in none of
// them Oz is asked or anybody let in.
func TestBiometryReference(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, biometrySite)
	c := x.client(t, "h1")
	photo := sandbox.Portrait("alice", 300)
	var asPNG bytes.Buffer
	img, err := jpeg.Decode(bytes.NewReader(photo))
	check(t, err)
	check(t, png.Encode(&asPNG, img))
	for name, test := range map[string]struct{ path, answer, reason string }{
		"404":              {"/verify", rawAnswer("404 Not Found", "nothing"), "reference_missing"},
		"410":              {"/verify", rawAnswer("410 Gone", ""), "reference_missing"},
		"204":              {"/verify", "HTTP/1.1 204 No Content\r\n\r\n", "reference_missing"},
		"401":              {"/verify", rawAnswer("401 Unauthorized", string(photo)), "reference_unavailable"},
		"403":              {"/verify", rawAnswer("403 Forbidden", string(photo)), "reference_unavailable"},
		"302":              {"/verify", "HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", "reference_unavailable"},
		"500":              {"/verify", rawAnswer("500 Internal Server Error", string(photo)), "reference_unavailable"},
		"206":              {"/verify", rawAnswer("206 Partial Content", string(photo)), "reference_unavailable"},
		"connection lost":  {"/verify", "", "reference_unavailable"},
		"cut":              {"/verify", fmt.Sprintf("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(photo)*2, photo), "reference_unavailable"},
		"empty":            {"/verify", rawAnswer("200 OK", ""), "reference_not_image"},
		"a page":           {"/verify", rawAnswer("200 OK", "<html>please sign in</html>"), "reference_not_image"},
		"a GIF":            {"/verify", rawAnswer("200 OK", "GIF89a\x01\x00\x01\x00\x80\x00\x00"), "reference_not_image"},
		"half a header":    {"/verify", rawAnswer("200 OK", string(photo[:30])), "reference_not_image"},
		"too large":        {"/small", photoAnswer(photo), "reference_too_large"},
		"much too large":   {"/small", photoAnswer(append(photo, make([]byte, 5<<20)...)), "reference_too_large"},
		"a PNG will do":    {"/verify", photoAnswer(asPNG.Bytes()), ""},
		"trailing garbage": {"/verify", photoAnswer(append(slices.Clone(photo), "garbage"...)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			photos(x.app, map[string]string{"user=alice": test.answer})
			x.oz.Forget()
			j := x.observe(t, func() answer {
				return c.post(t, test.path, x.oz.Capsule(sandbox.CapsuleSpec{Person: "alice", EventSession: "s"}), "Cookie", "user=alice")
			})
			want := map[string]string{"X-Oz-Decision": "FAILED", "X-Oz-Reason": test.reason, "X-Oz-Quality": "SUCCESS"}
			if test.reason == "" {
				want["X-Oz-Decision"], want["X-Oz-Biometry"] = "SUCCESS", "SUCCESS"
				want["X-Oz-Resolution-Status"], want["X-Oz-System-Resolution"] = "FINISHED", "SUCCESS"
			}
			r := j.app[len(j.app)-1]
			want["X-Oz-Folder-Id"], want["X-Oz-Event-Session-Id"] = r.Value("X-Oz-Folder-Id"), "s"
			verdict{decision: want["X-Oz-Decision"], reason: test.reason}.assertSight(t, j)
			assertReserved(t, r, want)
			asked := len(x.oz.RequestsOn(sandbox.OnBiometry))
			if test.reason != "" && (asked != 0 || gjson.GetBytes(r.Body, "biometry").Raw != "null" || !gjson.GetBytes(r.Body, "liveness.folder_id").Exists()) {
				t.Errorf("Oz was asked %d times; the app's body: %.500s", asked, r.Body)
			}
		})
	}
}

// TestBiometryPlaceholders promises that no value leads to another path than the operator's.
func TestBiometryPlaceholders(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, biometrySite)
	c := x.client(t, "h1")
	x.app.Answer(func(r rawRequest) string {
		if strings.HasPrefix(r.Line, "GET ") {
			return photoAnswer(sandbox.Portrait("alice", 300))
		}
		return rawAnswer("200 OK", "seen by the app\n")
	})
	for cookies, want := range map[string]string{
		"user=alice; v=1":                "/users/alice/photo?v=1",
		"user=a/b; v=1":                  "",
		"user=a; v=b/c":                  "/users/a/photo?v=b%2Fc",
		"user=a/../../admin; v=1":        "",
		"user=a?x=y; v=1&x=2":            "/users/a%3Fx=y/photo?v=1%26x%3D2",
		"user={env.HOME}; v={http.vars}": "/users/%7Benv.HOME%7D/photo?v=%7Bhttp.vars%7D",
		"user=..; v=1":                   "",
		"user=.; v=1":                    "",
		"user=; v=1":                     "",
		"v=1":                            "",
	} {
		x.app.Forget()
		j := x.observe(t, func() answer {
			return c.post(t, "/named", x.oz.Capsule(sandbox.CapsuleSpec{Person: "alice"}), "Cookie", cookies)
		})
		switch {
		case want == "" && (len(j.app) != 1 || j.app[0].Value("X-Oz-Reason") != "reference_missing"):
			t.Errorf("%s: the app got %d requests, the last:\n%s", cookies, len(j.app), j.app[len(j.app)-1].Raw())
		case want != "" && (len(j.app) != 2 || j.app[0].Line != "GET "+want+" HTTP/1.1"):
			t.Errorf("%s: the app got %d requests, the first:\n%s", cookies, len(j.app), j.app[0].Raw())
		}
	}
}

// TestBiometryOnlyAfterSuccess promises that faces are matched after a liveness SUCCESS alone.
func TestBiometryOnlyAfterSuccess(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, biometrySite)
	c := x.client(t, "h1")
	photos(x.app, map[string]string{"user=alice": photoAnswer(sandbox.Portrait("alice", 300))})
	for _, test := range []struct{ fault, outcome, decision, reason string }{
		{"", "DECLINED", "DECLINED", ""},
		{"", "FAILED", "FAILED", "analysis_failed"},
		{"", "OPERATOR_REQUIRED", "OPERATOR_REQUIRED", ""},
		{"no-analyses@folders", "", "FAILED", "analysis_missing"},
		{"word:APPROVED@folders", "", "FAILED", "status_unknown"},
		{"no-best-shot@folders", "", "FAILED", "best_shot_missing"},
		{"original-url@folders", "", "FAILED", "best_shot_missing"},
		{`image-value:"bad"@folders`, "", "FAILED", "best_shot_missing"},
	} {
		x.oz.fault(t, test.fault)
		x.oz.Forget()
		j := x.observe(t, func() answer {
			return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{Outcome: test.outcome, Person: "alice"}), "Cookie", "user=alice")
		})
		verdict{decision: test.decision, reason: test.reason}.assertSight(t, j)
		if len(j.app) != 1 || len(x.oz.RequestsOn(sandbox.OnBiometry)) != 0 {
			t.Errorf("%+v: the app got %d requests, Oz %d to match", test, len(j.app), len(x.oz.RequestsOn(sandbox.OnBiometry)))
			continue
		}
		if r := j.app[0]; gjson.GetBytes(r.Body, "biometry").Raw != "null" || !gjson.GetBytes(r.Body, "liveness").IsObject() {
			t.Errorf("%+v: the app's body: %.300s", test, r.Body)
		}
	}
}

// TestBiometryDecides promises that no answer about the faces but a whole SUCCESS is one, and that those which are no decision do
// not reach the app.
func TestBiometryDecides(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, biometrySite)
	c := x.client(t, "h1")
	photos(x.app, map[string]string{"user=alice": photoAnswer(sandbox.Portrait("alice", 300))})
	for fault, want := range map[string]verdict{
		"outcome:DECLINED@biometry":          {decision: "DECLINED"},
		"outcome:OPERATOR_REQUIRED@biometry": {decision: "OPERATOR_REQUIRED"},
		"outcome:FAILED@biometry":            {decision: "FAILED", reason: "analysis_failed"},
		"no-analyses@biometry":               {decision: "FAILED", reason: "analysis_missing"},
		"no-quality@biometry":                {decision: "FAILED", reason: "analysis_missing"},
		"word:APPROVED@biometry":             {decision: "FAILED", reason: "status_unknown"},
		"oz-error:4@biometry":                {decision: "FAILED", reason: "match_refused"},
		"oz-error:14@biometry":               {decision: "FAILED", reason: "match_refused"},
		"status:401@biometry":                unavailable("unauthorized", 502),
		"status:503,retry-after=9@biometry":  unavailable("overloaded", 503),
		"status:500@biometry":                unavailable("unexpected_status", 502),
		"html:400@biometry":                  unavailable("unexpected_status", 502),
		"dup-declined-success@biometry":      unavailable("malformed_answer", 502),
		"truncated@biometry":                 unavailable("malformed_answer", 502),
		"cut@biometry":                       unavailable("malformed_answer", 502),
		"reset@biometry":                     unavailable("connection_lost", 502),
		"hang@biometry":                      unavailable("timeout", 504),
	} {
		t.Run(fault, func(t *testing.T) {
			x.oz.fault(t, fault)
			path := "/verify"
			if fault == "hang@biometry" {
				path = "/hurried"
			}
			start := time.Now()
			j := x.observe(t, func() answer {
				return c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{Person: "alice"}), "Cookie", "user=alice")
			})
			want.assertSight(t, j)
			if want.http > 0 {
				want.code = gjson.GetBytes(j.answer.Body, "error_code").Raw
				want.retryAfter = map[bool]string{true: "9"}[want.http == 503]
				want.assertProblem(t, j.answer)
				if len(j.app) != 1 {
					t.Errorf("the app got %d requests, want the one for the photo", len(j.app))
				}
				return
			}
			r := j.app[len(j.app)-1]
			if r.Value("X-Oz-Decision") != want.decision || r.Value("X-Oz-Reason") != want.reason {
				t.Errorf("the app got:\n%s", r.Raw())
			}
			if n := x.oz.since(start, sandbox.OnBiometry); n != 1 {
				t.Errorf("Oz was asked %d times", n)
			}
		})
	}
}

// TestBiometryAttached promises that face matching and attached best shots go together.
func TestBiometryAttached(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, biometrySite)
	c := x.client(t, "h1")
	photos(x.app, map[string]string{"user=alice": photoAnswer(sandbox.Portrait("alice", 300))})
	j := x.observe(t, func() answer {
		return c.post(t, "/attached", x.oz.Capsule(sandbox.CapsuleSpec{Person: "alice"}), "Cookie", "user=alice")
	})
	r := j.app[len(j.app)-1]
	parts := multipartBody(t, r)
	if len(parts) != 2 || r.Value("X-Oz-Best-Shot") != "attached" || r.Value("X-Oz-Biometry") != "SUCCESS" {
		t.Fatalf("%d parts:\n%s", len(parts), r.Raw())
	}
	for _, folder := range []string{"liveness", "biometry"} {
		if v := gjson.Get(parts[0].content, folder); !v.IsObject() || v.Get("media").Exists() {
			t.Errorf("%s: %.300s", folder, v)
		}
	}
}
