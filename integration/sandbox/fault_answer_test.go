package sandbox

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"strings"
	"testing"
)

func html(status int) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		if r.status != status || !strings.HasPrefix(string(r.body), "<html>") || r.header.Get("Content-Type") != "text/html" {
			t.Errorf("%d %v %.100q", r.status, r.header, r.body)
		}
	}
}

func ozError(status, code int) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		r.wantError(t, status, code)
	}
}

func retryAfter(want string, next func(*testing.T, reply)) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		next(t, r)
		if got := strings.Join(r.header["Retry-After"], "|"); got != want {
			t.Errorf("Retry-After %q, want %q", got, want)
		}
	}
}

func folderWith(status int) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		if f := r.folder(t); r.status != status || f.Resolution != Success {
			t.Errorf("%d %.100q", r.status, r.body)
		}
	}
}

// raw checks bytes that are no good folder any more.
func raw(ok func(body []byte) bool) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		if r.status != 201 || !ok(r.body) {
			t.Errorf("%d %.100q … %.100q", r.status, r.body, r.body[max(0, len(r.body)-100):])
		}
	}
}

var answerChecks = map[string]func(*testing.T, reply){
	"status":                      ozError(500, 0),
	"status:401":                  ozError(401, 7),
	"status:403":                  ozError(403, 9),
	"status:400":                  ozError(400, 14),
	"status:413":                  html(413),
	"status:502":                  html(502),
	"status:504":                  html(504),
	"status:429":                  retryAfter("7", ozError(429, 11)),
	"status:503":                  retryAfter("7", ozError(503, 11)),
	"status:503,retry-after=120":  retryAfter("120", ozError(503, 11)),
	"status:503,retry-after=none": retryAfter("", ozError(503, 11)),
	"status:200":                  folderWith(200),
	"status:206": func(t *testing.T, r reply) {
		folderWith(206)(t, r)
		if !strings.HasPrefix(r.header.Get("Content-Range"), "bytes 0-") {
			t.Errorf("%v", r.header)
		}
	},
	"status:204": func(t *testing.T, r reply) {
		if r.status != 204 || len(r.body) != 0 || r.header.Get("Content-Length") != "" {
			t.Errorf("%d %v", r.status, r.header)
		}
	},
	"status:302": func(t *testing.T, r reply) {
		html(302)(t, r)
		if r.header.Get("Location") != ElsewherePath {
			t.Errorf("%v", r.header)
		}
	},
	"status:307": html(307),
	"html":       html(200),
	"html:400":   html(400),
	"json": func(t *testing.T, r reply) {
		var got map[string]string
		if err := json.Unmarshal(r.body, &got); err != nil || r.status != 400 || got["error_code"] != "" {
			t.Errorf("%d %s", r.status, r.body)
		}
	},
	"folder:500":             folderWith(500),
	"folder":                 folderWith(200),
	"oz-error":               ozError(400, 14),
	"oz-error:3":             ozError(400, 3),
	"oz-error:99":            ozError(400, 99),
	"oz-error:14,status=201": ozError(201, 14),

	"gzip": func(t *testing.T, r reply) {
		z, err := gzip.NewReader(bytes.NewReader(r.body))
		if err != nil || r.header.Get("Content-Encoding") != "gzip" {
			t.Fatalf("%v %v", err, r.header)
		}
		if r.body, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
		folderWith(201)(t, r)
	},
	"bom":      raw(func(b []byte) bool { return bytes.HasPrefix(b, []byte("\xef\xbb\xbf{")) }),
	"trailing": raw(func(b []byte) bool { return bytes.HasSuffix(b, []byte("}trailing")) }),
	"second-document": raw(func(b []byte) bool {
		return bytes.Count(b, []byte(`"system_resolution": "SUCCESS"`)) == 2 && !json.Valid(b)
	}),
	"truncated":   raw(func(b []byte) bool { return b[0] == '{' && !json.Valid(b) }),
	"truncated:1": raw(func(b []byte) bool { return string(b) == "{" }),
	"array":       raw(func(b []byte) bool { return b[0] == '[' && json.Valid(b) }),
	"empty-body":  raw(func(b []byte) bool { return len(b) == 0 }),
	"content-type:text/plain": func(t *testing.T, r reply) {
		folderWith(201)(t, r)
		if r.header.Get("Content-Type") != "text/plain" {
			t.Errorf("%v", r.header)
		}
	},
	"date": func(t *testing.T, r reply) {
		folderWith(201)(t, r)
		if r.header.Get("Date") != "" {
			t.Errorf("%v", r.header)
		}
	},
	"date:yesterday": func(t *testing.T, r reply) {
		folderWith(201)(t, r)
		if got := r.header["Date"]; len(got) != 1 || got[0] != "yesterday" {
			t.Errorf("%v", r.header)
		}
	},
	"evil-headers": func(t *testing.T, r reply) {
		folderWith(201)(t, r)
		for _, name := range []string{"X-Oz-Decision", "X_oz_decision", "Set-Cookie"} {
			if len(r.header[name]) != 1 {
				t.Errorf("no %s in %v", name, r.header)
			}
		}
	},
}

func TestAnswerFaults(t *testing.T) {
	s, url := start(t, Options{})
	for text, check := range answerChecks {
		t.Run(text, func(t *testing.T) {
			s.SetFault(MustFault(text))
			check(t, post(t, url, s.Capsule(CapsuleSpec{})))
		})
	}
}

// Who follows a redirect gets what no capsule earned, and leaves a trace.
func TestElsewhere(t *testing.T) {
	s, url := start(t, Options{Fault: MustFault("status:307")})
	following := *client
	following.CheckRedirect = nil
	resp, err := following.Post(url+FoldersPath, "application/octet-stream", bytes.NewReader(s.Capsule(CapsuleSpec{})))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if all := s.Requests(); resp.StatusCode != 201 || len(all) != 2 || all[1].Path != ElsewherePath || len(s.Received()) != 1 {
		t.Errorf("%d %+v", resp.StatusCode, all)
	}
}
