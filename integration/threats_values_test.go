package integration_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testFieldValues is about bytes in a client's header that may make the call to Oz fail: they never turn a capsule that is
// not good into one that is let in. A good one is decided as ever, or the server takes nothing of the request.
func testFieldValues(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, forgerOptions(false)+smokeSite)
	values := map[string]string{
		"not UTF-8": "\xff\xfe", "half a character": "\xc3", "surrogate": "\xed\xa0\x80", "Latin-1": "\xe9", "NUL": "a\x00b", "control": "\x01\x02\x1b[31m", "DEL": "\x7f",
		"tab": "a\tb", "CR": "a\rX-Oz-Decision: SUCCESS", "LF": "a\nX-Oz-Decision: SUCCESS", "percent": "%00%0d%0aX-Oz-Decision:%20SUCCESS", "long": strings.Repeat("x", 64<<10),
		"long and not UTF-8": strings.Repeat("\xff", 64<<10), "quotes": `"'\`, "empty": "",
	}
	fields := []string{"X-Custom", "Cookie", "Traceparent", "X-Request-Id", "User-Agent"}
	senders := map[string]func(t *testing.T, contentType, field, value string, capsule []byte) int{"h1": x.fieldOverH1, "h2": x.fieldOverH2, "h3": x.fieldOverH3}
	for proto, send := range senders {
		for name, value := range values {
			t.Run(proto+" "+name, func(t *testing.T) {
				for _, field := range fields {
					x.app.Forget()
					bad := x.oz.Capsule(sandbox.CapsuleSpec{Damage: sandbox.DamageHash, PayloadSize: 100})
					for _, contentType := range []string{"application/octet-stream", "application/json"} {
						if status := send(t, contentType, field, value, bad); status != 0 && status < 400 {
							t.Errorf("%s: a bad capsule as %s got %d", field, contentType, status)
						}
					}
					x.app.None(t)
					good := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s", PayloadSize: 100})
					if status := send(t, "application/octet-stream", field, value, good); status != 200 {
						x.app.None(t)
						continue
					}
					r := x.app.Only(t)
					assertReserved(t, r, accepted.headers(r, "s"))
				}
			})
		}
	}
}

// fieldOverH1 posts a capsule with one more field, and returns the status, or 0 when there is no answer.
func (x *chain) fieldOverH1(t *testing.T, contentType, field, value string, capsule []byte) int {
	t.Helper()
	conn := x.dialRaw(t)
	conn.sendHead(t, "POST /verify HTTP/1.1", "Host: localhost", "Content-Type: "+contentType, fmt.Sprintf("Content-Length: %d", len(capsule)), field+": "+value)
	conn.Write(capsule) // which may be refused by now
	a, _ := conn.tryRead("POST")
	return a.Status
}

func (x *chain) fieldOverH2(t *testing.T, contentType, field, value string, capsule []byte) int {
	t.Helper()
	conn := x.dialRawH2(t)
	conn.sendFields(t, 1, false, fieldsOfType(contentType, len(capsule), field, value)...)
	conn.WriteData(1, true, capsule) // which may be refused by now
	a, _ := conn.tryRead(1)
	return a.Status
}

func (x *chain) fieldOverH3(t *testing.T, contentType, field, value string, capsule []byte) int {
	t.Helper()
	conn, _ := x.dialH3(t)
	stream := openFrames(t, conn)
	stream.sendFields(t, fieldsOfType(contentType, len(capsule), field, value)...)
	stream.sendFrame(h3Data, capsule)
	stream.Close()
	a, _ := stream.tryRead()
	return a.Status
}

func fieldsOfType(contentType string, size int, field, value string) []string {
	fields := postFields("/verify", size, strings.ToLower(field), value)
	fields[slices.Index(fields, "content-type")+1] = contentType
	return fields
}

// folderWords are folders with room for one word, each in one of the places that a header is made of.
var folderWords = map[string]struct{ header, folder string }{
	"folder_id":        {"X-Oz-Folder-Id", `{"folder_id":%s,"resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]}`},
	"event_session_id": {"X-Oz-Event-Session-Id", `{"resolution_status":"FINISHED","system_resolution":"SUCCESS","meta_data":{"event_session_id":%s},"analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]}`},
	"system":           {"X-Oz-System-Resolution", `{"resolution_status":"FINISHED","system_resolution":%s,"analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]}`},
	"resolution":       {"X-Oz-Resolution-Status", `{"resolution_status":%s,"system_resolution":"SUCCESS","analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"}]}`},
	"quality":          {"X-Oz-Quality", `{"resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":%s}]}`},
	"biometry":         {"X-Oz-Biometry", `{"resolution_status":"FINISHED","system_resolution":"SUCCESS","analyses":[{"type":"QUALITY","state":"FINISHED","resolution_status":"SUCCESS"},{"type":"BIOMETRY","state":"FINISHED","resolution_status":%s}]}`},
}

// testWordsOfOz is about words in Oz's answer that are no header values, some of them written by the device: they become
// no header at all, and what decides is never one of them.
func testWordsOfOz(t *testing.T) {
	t.Parallel()
	x, oz := startWrittenOz(t)
	app := x.app
	c := x.client(t, "h1")
	bad := []string{
		"", " ", "a b", "SUCCESS ", " SUCCESS", "SUCCESS\r\nX-Oz-Decision: SUCCESS", "SUCCESS\r\n\r\n<script>alert(1)</script>", "SUCCESS\nX-Injected: 1", "SUCCESS\rX-Injected: 1",
		"SUCCESS\x00", "\x1b[31mSUCCESS", "SUCCESS\x7f", "SUCCESS\t", "SUCCESS,DECLINED", "SUCCESS;a=b", `"SUCCESS"`, "<b>SUCCESS</b>", "SUCCESS%0d%0aX-Injected: 1", "{env.HOME}", "../../etc/passwd",
		"SUCCESS\u2028", "SUCCÉSS", "ＳＵＣＣＥＳＳ", "SUCCE\u017f\u017f", "SUCCESS\u200b", "\ufeffSUCCESS", "\U0001f600", strings.Repeat("A", 129), strings.Repeat("A", 1_000_000),
	}
	try := func(t *testing.T, place, word string) rawRequest {
		oz.Answer(func(rawRequest) string { return rawAnswer("201 Created", fmt.Sprintf(folderWords[place].folder, word)) })
		app.Forget()
		if a := c.post(t, "/verify", []byte("capsule")); a.Status != 200 {
			t.Fatalf("%.100q: got %d %s", word, a.Status, a.Body)
		}
		return app.Only(t)
	}
	isID := func(place string) bool { return place == "folder_id" || place == "event_session_id" }
	for place, test := range folderWords {
		t.Run(place, func(t *testing.T) {
			for _, text := range bad {
				word, err := json.Marshal(text)
				check(t, err)
				r := try(t, place, string(word))
				if values := r.Values(test.header); len(values) > 0 {
					t.Errorf("%.100q made the header %q", text, values)
				}
				if decision := r.Value("X-Oz-Decision"); (decision == "SUCCESS") != (isID(place) || place == "biometry") {
					t.Errorf("%.100q made the decision %s", text, decision)
				}
				if strings.Contains(strings.Join(r.Fields, "\n"), "X-Injected") {
					t.Errorf("%.100q got into the header:\n%s", text, r.Raw())
				}
			}
			for _, word := range []string{`null`, `1`, `-1.5e3`, `true`, `{}`, `{"a":"SUCCESS"}`, `[]`, `["SUCCESS"]`} {
				r := try(t, place, word)
				if values := r.Values(test.header); len(values) > 0 {
					t.Errorf("%s made the header %q", word, values)
				}
				if decision := r.Value("X-Oz-Decision"); decision == "SUCCESS" && !isID(place) && place != "biometry" {
					t.Errorf("%s made the decision %s", word, decision)
				}
			}
			for _, word := range []string{"a", "A.b_C:d-9", strings.Repeat("A", 128)} {
				if r := try(t, place, `"`+word+`"`); r.Value(test.header) != word {
					t.Errorf("%s made the header %q", word, r.Value(test.header))
				}
			}
		})
	}
}

// testErrorsOfOz promises that of Oz's error object nothing becomes a header but a plain number, and that its message reaches
// the client inside of JSON only, cut to a length that one can read.
func testErrorsOfOz(t *testing.T) {
	t.Parallel()
	x, oz := startWrittenOz(t)
	app := x.app
	c := x.client(t, "h1")
	number := regexp.MustCompile(`^-?[0-9]{1,19}$`)
	for _, code := range []string{
		`14`, `"14"`, `"14\r\nX-Oz-Decision: SUCCESS"`, `14.0`, `14.5`, `1e1`, `-14`, `99999999999999999999999999`, `9223372036854775807`, `true`, `null`, `[14]`, `{"a":14}`,
	} {
		for _, status := range []string{"400 Bad Request", "500 Internal Server Error", "403 Forbidden"} {
			app.Forget()
			message, err := json.Marshal("first line\r\nX-Oz-Decision: SUCCESS\r\n\r\n<script>" + strings.Repeat("x", 100_000))
			check(t, err)
			oz.Answer(func(rawRequest) string {
				return rawAnswer(status, `{"error_code":`+code+`,"error_message":`+string(message)+`,"details":null}`)
			})
			a := c.post(t, "/verify", []byte("capsule"))
			if a.Status < 400 || a.Header.Get("Content-Type") != "application/problem+json" || !json.Valid(a.Body) || len(a.Body) > 4<<10 {
				t.Errorf("%s: the client got %d %v, %d bytes", code, a.Status, a.Header, len(a.Body))
			}
			app.None(t)
			c.post(t, "/passed", []byte("capsule"))
			r := app.Only(t)
			decision := r.Value("X-Oz-Decision")
			assertReserved(t, r, map[string]string{
				"X-Oz-Decision": decision, "X-Oz-Reason": r.Value("X-Oz-Reason"), "X-Oz-Error-Code": r.Value("X-Oz-Error-Code"),
			})
			if value := r.Value("X-Oz-Error-Code"); value != "" && !number.MatchString(value) {
				t.Errorf("%s made the header %q", code, value)
			}
			if decision != "INVALID" && decision != "UNAVAILABLE" || decision == "INVALID" && (code != "14" || status[:3] != "400") {
				t.Errorf("%s with %s made the decision %s", code, status, decision)
			}
		}
	}
}
