package sandbox

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// Faults of the calls beside the capsule's: session token, log-in, refresh and matching.

// grantChecks are answers to a log-in or a refresh that no client may live on.
var grantChecks = map[string]func(*testing.T, reply){
	"status:500":                          ozError(500, 0),
	"status:400":                          ozError(400, 3),
	"status:401":                          ozError(401, 7),
	"status:403":                          ozError(403, 9),
	"status:413":                          html(413),
	"status:429":                          retryAfter("7", ozError(429, 11)),
	"status:503,retry-after=none":         retryAfter("", ozError(503, 11)),
	"status:302":                          html(302),
	"html":                                html(200),
	"html:502":                            html(502),
	"json:200":                            lacks("access_token"),
	"oz-error:8,status=401":               both(ozError(401, 8), has("Access token has expired")),
	"truncated":                           validJSON(false),
	"trailing":                            validJSON(false),
	"bom":                                 validJSON(false),
	"empty-body":                          validJSON(false),
	"array":                               has(`[{"access_token"`),
	"content-type:text/html":              has("access_token"),
	"field:access_token":                  lacks(`"access_token"`),
	"field:access_token=null":             has(`"access_token": null`),
	"field:access_token=7":                has(`"access_token": 7`),
	`field:access_token=""`:               has(`"access_token": ""`),
	`field:access_token="a\r\nX-Evil: 1"`: has(`"access_token": "a\r\nX-Evil: 1"`),
	"field:access_token,bytes=1MB":        sized("access_token", 1_000_000),
	"field:expire_token":                  lacks(`"expire_token"`),
	"field:expire_date":                   lacks(`"expire_date"`),
	`field:expire_date="1764000900"`:      has(`"expire_date": "1764000900"`),
	"field:expire_date=1":                 has(`"expire_date": 1,`),
	"field:expire_date=-1764000900":       has(`"expire_date": -1764000900`),
	"field:expire_date=1e300":             has(`"expire_date": 1e300`),
	"field:expire_date=NaN":               validJSON(false),
	`dup-field:access_token="second"`:     has(`"access_token": "`, `"access_token": "second"`),
}

func sized(name string, want int) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		var got map[string]any
		if err := json.Unmarshal(r.body, &got); err != nil || len(got[name].(string)) != want {
			t.Errorf("%v, %s of %d bytes", err, name, len(got[name].(string)))
		}
	}
}

func TestFaultsOfLogins(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts()})
	for text, check := range grantChecks {
		t.Run(text, func(t *testing.T) {
			s.SetFault(MustFault(text + "@auth"))
			check(t, send(t, url+AuthPath, "application/json", []byte(right)))
			s.SetFault(Fault{})
			g := logIn(t, url)
			s.SetFault(MustFault(text + "@refresh"))
			check(t, refresh(t, url, g.Access, g.Expire))
			wantAccess(t, url, g.Access, 0) // it strikes nowhere else
		})
	}
}

func TestFaultsOfSessionTokens(t *testing.T) {
	s, url := start(t, Options{})
	for text, check := range map[string]func(*testing.T, reply){
		"status:500":                    ozError(500, 0),
		"status:400":                    ozError(400, 3),
		"status:401":                    ozError(401, 7),
		"status:503":                    retryAfter("7", ozError(503, 11)),
		"html":                          html(200),
		"json:200":                      lacks("session_token"),
		"truncated":                     validJSON(false),
		"empty-body":                    validJSON(false),
		"field:session_token":           has("{}"),
		`field:session_token=""`:        has(`{"session_token": ""}`),
		"field:session_token=7":         has(`{"session_token": 7}`),
		`field:session_token=["a"]`:     has(`{"session_token": ["a"]}`),
		"field:session_token,bytes=1MB": sized("session_token", 1_000_000),
		`dup-field:session_token="b"`:   has(`{"session_token": "`, `"session_token": "b"}`),
		"evil-headers": func(t *testing.T, r reply) {
			if r.status != 200 || r.header.Get("Set-Cookie") == "" {
				t.Errorf("%d %v", r.status, r.header)
			}
		},
		"gzip": func(t *testing.T, r reply) {
			z, err := gzip.NewReader(bytes.NewReader(r.body))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(z); err != nil || !bytes.HasPrefix(b, []byte(`{"session_token": "`)) {
				t.Errorf("%q %v", b, err)
			}
		},
	} {
		t.Run(text, func(t *testing.T) {
			s.SetFault(MustFault(text + "@token"))
			check(t, get(t, "GET", url+TokenPath))
		})
	}
}

// matchChecks are folders that lie about a comparison. The photos are of one person.
var matchChecks = map[string]func(*testing.T, reply){
	"status:400":                ozError(400, 3),
	"status:503":                retryAfter("7", ozError(503, 11)),
	"folder":                    status(200, has(topSuccess, `"BIOMETRY"`)),
	"folder:500":                status(500, has(topSuccess, `"BIOMETRY"`)),
	"second-document":           has(topSuccess, topSuccess),
	"dup-declined-success":      has(topDeclined, topSuccess),
	"dup-nested":                has(`"BIOMETRY"`, `"resolution_status": "DECLINED", "resolution_status": "SUCCESS"`),
	"dup-analyses":              has(`"resolution_status": "DECLINED"`, `"analyses": [`, `"resolution_status": "SUCCESS"`),
	"other-case":                has(`"System_Resolution": "SUCCESS"`),
	"escaped-names":             has(`"system\u005fresolution": "SUCCESS"`),
	"word":                      has(`"system_resolution": "APPROVED"`),
	"processing":                has(`"system_resolution": "PROCESSING"`, `"BIOMETRY", "state": "PROCESSING"`),
	"contradiction":             has(`"resolution_status": "FAILED", "system_resolution": "SUCCESS"`),
	"failed-system":             has(`"resolution_status": "FINISHED", "system_resolution": "FAILED"`),
	"absent-decision":           lacks(topSuccess),
	"no-quality":                both(has(topSuccess, `"QUALITY"`), lacks("BIOMETRY")),
	"no-analyses":               has(topSuccess, `"analyses": []`),
	"quality-declined":          has(topSuccess, `"BIOMETRY", "state": "FINISHED", "resolution_status": "DECLINED"`),
	"quality-unfinished":        has(topSuccess, `"BIOMETRY", "state": "PROCESSING", "resolution_status": "SUCCESS"`),
	"several-quality-mixed":     has(topSuccess, `"BIOMETRY"`, topStatus(Success), `"BIOMETRY"`, topStatus(Declined)),
	"no-media":                  has(`"media": []`, topOf("source_media", "[]")),
	"nulls":                     has(`"folder_id": null`, topSuccess),
	"absent":                    both(has(topSuccess), lacks("folder_id")),
	"analysis-id":               both(has(`"analysis_id"`), lacks("analyse_id")),
	"extra":                     has(topSuccess, `"x_unknown"`),
	"big-text:1001":             has(`"resolution_comment": "text `),
	"depth":                     has(strings.Repeat("[", 300)),
	"inject-status":             has(`"SUCCESS\r\nX-Oz-Decision`),
	"placeholder":               has(`"folder_id": "{env.HOME}"`),
	"field:system_resolution":   lacks(topSuccess),
	"outcome:SUCCESS":           has(topSuccess, `"min_confidence": 1}`),
	"outcome:DECLINED":          has(topDeclined, `"BIOMETRY"`, topStatus(Declined), `"min_confidence": 0}`),
	"outcome:FAILED":            has(`"resolution_status": "FAILED", "system_resolution": "FAILED"`, `[{\"type\": \"BIOMETRY\", \"error_code\": 11}]`, `"state": "FAILED"`),
	"outcome:OPERATOR_REQUIRED": has(`"system_resolution": "OPERATOR_REQUIRED"`, topStatus(OperatorRequired), `"min_confidence": 0.8421`),
	"truncated":                 validJSON(false),
	"early:201,bytes=100":       has(topSuccess, `"BIOMETRY"`),
}

func topOf(name, value string) string { return `"` + name + `": ` + value }

func topStatus(word string) string { return topOf("resolution_status", `"`+word+`"`) }

func status(want int, next func(*testing.T, reply)) func(*testing.T, reply) {
	return func(t *testing.T, r reply) {
		t.Helper()
		if r.status != want {
			t.Errorf("status %d", r.status)
		}
		next(t, r)
	}
}

func TestFaultsOfMatches(t *testing.T) {
	s, url := start(t, Options{})
	f := photosOf("alice", "alice")
	for text, check := range matchChecks {
		t.Run(text, func(t *testing.T) {
			s.SetFault(MustFault(text + "@biometry"))
			r, err := trySend(t, url+FoldersPath, formType, f.body())
			if err != nil && !strings.HasPrefix(text, "early") { // its reset may overtake the answer
				t.Fatal(err)
			}
			if err == nil {
				check(t, r)
			}
			post(t, url, s.Capsule(CapsuleSpec{})).wantSuccess(t) // liveness is spared
		})
	}
}

// No kind that can be aimed at images makes the sandbox stumble, whatever comes of the images.
func TestEveryKindOnEveryMatch(t *testing.T) {
	s, url := start(t, Options{FewMediaFail: true})
	forms := []form{photosOf("alice", "bob"), photosOf("a", "a").with(0, payloadPart(strings.Replace(twoPayload, "photo_selfie", "photo_id_back", 1)))}
	for _, k := range Kinds() {
		fault, err := ParseFault(k.Name + "@biometry")
		if err != nil || k.Group == "wire" {
			continue
		}
		s.SetFault(fault)
		for _, f := range forms {
			f.post(t, url)
		}
	}
}

func TestOutcomeOfCapsules(t *testing.T) {
	s, url := start(t, Options{})
	for _, asked := range Outcomes() {
		for _, wanted := range Outcomes() {
			s.SetFault(Fault{Kind: "outcome", Word: wanted})
			if f := post(t, url, s.Capsule(CapsuleSpec{Outcome: asked})).folder(t); f.Resolution != wanted {
				t.Errorf("%s instead of %s: %s", wanted, asked, f.Resolution)
			}
		}
	}
	post(t, url, s.Capsule(CapsuleSpec{Damage: DamageHash})).wantError(t, 400, 14)
}

// The scores of an outcome fit it, whatever the photos show.
func TestOutcomeOfMatches(t *testing.T) {
	s, url := start(t, Options{OperatorFrom: 0.5})
	for _, wanted := range Outcomes() {
		s.SetFault(Fault{Kind: "outcome", Word: wanted, On: OnBiometry})
		for _, shot := range []string{"alice", "bob"} {
			a := photosOf("alice", shot).post(t, url).wantMatch(t, wanted).Analyses[0]
			score, scored := a.Data["min_confidence"].(float64)
			if wanted == Failed && (scored || a.State != "FAILED" || a.Code != 11.0) {
				t.Errorf("%+v", a)
			}
			if wanted != Failed && s.Options().resolve(score) != wanted {
				t.Errorf("%s with %v", wanted, score)
			}
		}
	}
}

// What strikes at the wire strikes every call.
func TestWireFaultsOfOtherCalls(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts()})
	g := logIn(t, url)
	calls := map[string]func() (reply, error){
		OnAuth: func() (reply, error) { return trySend(t, url+AuthPath, "application/json", []byte(right)) },
		OnRefresh: func() (reply, error) {
			return trySend(t, url+RefreshPath, "application/json", []byte(`{"expire_token": "`+g.Expire+`"}`), accessTokenHeader, g.Access)
		},
		OnBiometry: func() (reply, error) {
			return trySend(t, url+FoldersPath, formType, photosOf("a", "a").body(), accessTokenHeader, g.Access)
		},
		OnToken: func() (reply, error) { return tryGet(t, "GET", url+TokenPath, accessTokenHeader, g.Access) },
	}
	for on, call := range calls {
		for _, kind := range []string{"close", "reset-body:10", "reset", "cut", "cut-chunked", "length:twice"} {
			s.SetFault(MustFault(kind + "@" + on))
			if r, err := call(); err == nil {
				t.Errorf("%s@%s: %d %.100q", kind, on, r.status, r.body)
			}
		}
		for _, kind := range []string{"chunked", "trailers", "1xx", "drip:1us,bytes=1000", "slow-reading:1us,bytes=100000"} {
			s.SetFault(MustFault(kind + "@" + on))
			if r, err := call(); err != nil || r.status >= 300 || !json.Valid(r.body) {
				t.Errorf("%s@%s: %v %d", kind, on, err, r.status)
			}
		}
		for _, kind := range []string{"hang", "hang-reading", "upgrade"} {
			awaitEnd(t, s)
			s.Forget()
			s.SetFault(MustFault(kind + "@" + on))
			ended := make(chan error, 1)
			go func() {
				_, err := call()
				ended <- err
			}()
			await(t, s, kind, func(Stats) bool { return len(s.RequestsOn(on)) == 1 })
			if rec := s.RequestsOn(on)[0]; rec.Finished {
				t.Errorf("%s@%s: %+v", kind, on, rec)
			}
			s.SetFault(Fault{})
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatalf("%s@%s does not let go", kind, on)
			}
		}
	}
}

// A redirect is not followed by who has credentials to lose. Who does leaves a trace.
func TestElsewhereIsGoodForAnything(t *testing.T) {
	_, url := start(t, Options{})
	f := get(t, "GET", url+ElsewherePath).folder(t)
	var types []string
	for _, a := range f.Analyses {
		types = append(types, a.Type+" "+a.Status)
	}
	if f.Resolution != Success || !slices.Equal(types, []string{"QUALITY SUCCESS", "BIOMETRY SUCCESS"}) {
		t.Errorf("%s %v", f.Resolution, types)
	}
}
