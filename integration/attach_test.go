package integration_test

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"strconv"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// appPart is a part of a multipart body that the app got.
type appPart struct{ name, filename, contentType, content string }

// multipartBody reads the app's body, which must be multipart/form-data with a Content-Length that fits.
func multipartBody(t testing.TB, r rawRequest) (all []appPart) {
	t.Helper()
	kind, params, err := mime.ParseMediaType(r.Value("Content-Type"))
	if err != nil || kind != "multipart/form-data" || r.Chunked || r.Value("Content-Length") != strconv.Itoa(len(r.Body)) {
		t.Fatalf("the app's body is no form:\n%s", r.Raw())
	}
	form := multipart.NewReader(bytes.NewReader(r.Body), params["boundary"])
	for {
		p, err := form.NextPart()
		if err == io.EOF {
			return all
		}
		check(t, err)
		content, err := io.ReadAll(p)
		check(t, err)
		all = append(all, appPart{p.FormName(), p.FileName(), p.Header.Get("Content-Type"), string(content)})
	}
}

// TestAttach promises the app the folder, less its images, and each image beside it as the JPEG that it is; one that cannot be
// decoded stays away, and neither the decision nor the folder depends on it.
func TestAttach(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{BestShotSize: 400_000}, `
{$SITE} {
	log
	oz_instant /verify {$OZ} {
		best_shot attach
		strip media
		pass INVALID
	}
	reverse_proxy {$APP}
}`)
	jpeg := string(sandbox.BestShot(400_000))
	for _, test := range []struct {
		fault  string
		images int
		word   string
	}{
		{"", 1, "attached"},
		{"several-best-shots:3", 3, "attached"},
		{"escaped-slashes", 1, "attached"},
		{"escaped-names", 1, "attached"},
		{"chunked", 1, "attached"},
		{"no-best-shot", 0, "absent"},
		{"original-url", 0, "absent"},
		{"image-value:null", 0, "absent"},
		{`image-value:["x"]`, 0, "absent"},
		{`image-value:"not base64"`, 0, "unusable"},
		{`image-value:"aGVsbG8="`, 0, "unusable"},
		{`image-value:"iVBORw0KGgo="`, 0, "unusable"},
	} {
		t.Run(test.fault, func(t *testing.T) {
			x.oz.fault(t, test.fault)
			c := x.client(t, "h2")
			j := x.observe(t, func() answer {
				return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s"}), "X-Oz-Best-Shot", "forged")
			})
			accepted.assertSight(t, j)
			r := j.app[0]
			assertReserved(t, r, map[string]string{
				"X-Oz-Decision": "SUCCESS", "X-Oz-Folder-Id": r.Value("X-Oz-Folder-Id"), "X-Oz-Event-Session-Id": "s",
				"X-Oz-Resolution-Status": "FINISHED", "X-Oz-System-Resolution": "SUCCESS", "X-Oz-Quality": "SUCCESS", "X-Oz-Best-Shot": test.word,
			})
			parts := multipartBody(t, r)
			if len(parts) != 1+test.images || parts[0].name != "folder" || parts[0].filename != "" || parts[0].contentType != "application/json" {
				t.Fatalf("%d parts, the first is %+.80v", len(parts), parts[0])
			}
			folder := unescapeNames(parts[0].content)
			if gjson.Get(folder, "system_resolution").Str != "SUCCESS" || strings.Contains(folder, "image_b64") || gjson.Get(folder, "media").Exists() {
				t.Errorf("the folder: %.500s", folder)
			}
			for i, p := range parts[1:] {
				name := "best_shot"
				if i > 0 {
					name = fmt.Sprintf("best_shot_%d", i+1)
				}
				if p.name != name || p.filename == "" || p.contentType != "image/jpeg" || p.content != jpeg {
					t.Errorf("a part %s, %s, %s of %d bytes", p.name, p.filename, p.contentType, len(p.content))
				}
			}
			if test.word == "unusable" && j.decided[0].Get("best_shots_unusable").Int() != 1 {
				t.Errorf("logged: %s", j.decided[0])
			}
		})
	}
	t.Run("declined", func(t *testing.T) {
		x.oz.fault(t, "")
		c := x.client(t, "h1")
		j := x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{Outcome: "DECLINED"})) })
		if parts := multipartBody(t, j.app[0]); len(parts) != 2 || j.app[0].Value("X-Oz-Decision") != "DECLINED" {
			t.Errorf("%d parts:\n%s", len(parts), j.app[0].Raw())
		}
	})
	t.Run("passed", func(t *testing.T) {
		x.oz.fault(t, "oz-error:5")
		c := x.client(t, "h1")
		j := x.observe(t, func() answer { return c.post(t, "/verify", x.oz.Capsule(sandbox.CapsuleSpec{})) })
		r := j.app[0]
		if r.Value("Content-Type") != "application/problem+json" || r.Value("X-Oz-Best-Shot") != "" || gjson.GetBytes(r.Body, "error_code").Int() != 5 {
			t.Errorf("the app got:\n%s%s", r.Raw(), r.Body)
		}
	})
	x.assertNoCanary(t, []byte(jpeg[len(jpeg)/2:len(jpeg)/2+40]))
}
