package sandbox

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestEachDamageHasItsCode(t *testing.T) {
	s, url := start(t, Options{})
	for damage, code := range Damages() {
		t.Run(string(damage), func(t *testing.T) {
			r := post(t, url, s.Capsule(CapsuleSpec{Damage: damage, Media: 2}))
			r.wantError(t, 400, code)
			if !bytes.Contains(r.body, []byte(`"error_message": "Invalid request data"`)) {
				t.Errorf("%s", r.body)
			}
		})
	}
	codes := slices.Sorted(maps.Values(Damages()))
	if got := slices.Compact(codes); !slices.Equal(got, []int{3, 4, 5, 13, 14}) {
		t.Errorf("codes that can be brought about: %v", got)
	}
}

// The oldest texts tell causes apart, so they also prove that each damage is refused for its own reason.
func TestLegacyMessages(t *testing.T) {
	s, url := start(t, Options{LegacyMessages: true})
	for damage, want := range map[Damage]string{
		DamageEmpty:      "No data container provided",
		DamageGarbled:    "Invalid Data Container",
		DamageCut:        "Data container unpacking failed",
		DamageForged:     "Invalid signature",
		DamageHash:       "Invalid SummingHash",
		DamageToken:      "Invalid or empty Session Token",
		DamageExpired:    "Invalid or empty Session Token",
		DamageEmptyToken: "Invalid or empty Session Token",
		DamageMedia:      "Invalid request data",
	} {
		var got map[string]any
		if err := json.Unmarshal(post(t, url, s.Capsule(CapsuleSpec{Damage: damage})).body, &got); err != nil {
			t.Fatal(err)
		}
		if got["error_message"] != want {
			t.Errorf("%s: %q, want %q", damage, got["error_message"], want)
		}
	}
}

func TestContentType(t *testing.T) {
	s, url := start(t, Options{})
	for value, good := range map[string]bool{
		"application/octet-stream": true, "Application/Octet-Stream; charset=binary": true,
		"": false, "application/json": false, "multipart/mixed; boundary=x": false, "text": false,
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", url+FoldersPath, bytes.NewReader(s.Capsule(CapsuleSpec{})))
		if err != nil {
			t.Fatal(err)
		}
		req.Header["Content-Type"] = []string{value}
		r, err := do(req)
		if err != nil {
			t.Fatal(err)
		}
		if good {
			r.wantSuccess(t)
		} else {
			r.wantError(t, 400, 13)
		}
	}
}

// Wherever a capsule is cut and whichever byte is changed, it is never accepted.
func TestNoPartOfACapsuleCanBeMissingOrChanged(t *testing.T) {
	s, _ := start(t, Options{})
	whole := s.Capsule(CapsuleSpec{PayloadSize: 100, Media: 2})
	read := func(b []byte) (*refusal, capsule) {
		m := newMeter(bytes.NewReader(b), 0)
		c, refused, err := readCapsule(m, false)
		if err != nil {
			t.Fatal(err)
		}
		return refused, c
	}
	for i := range whole {
		if refused, _ := read(whole[:i]); refused == nil {
			t.Errorf("accepted when cut to %d of %d bytes", i, len(whole))
		}
		changed := bytes.Clone(whole)
		changed[i] ^= 1
		if refused, _ := read(changed); refused == nil || refused.code != 14 {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
	if refused, _ := read(append(bytes.Clone(whole), 0)); refused == nil {
		t.Error("accepted with a byte after its end")
	}
	if refused, c := read(whole); refused != nil || c.damaged {
		t.Errorf("the whole one is refused: %+v", refused)
	}
}

func TestAcceptAny(t *testing.T) {
	s, url := start(t, Options{AcceptAny: true})
	for _, body := range []string{"x", "noise of any kind", capsuleMagic[:7] + "x and more"} {
		post(t, url, []byte(body)).wantSuccess(t)
		post(t, url, []byte(body)).wantSuccess(t)
	}
	post(t, url, nil).wantError(t, 400, 13)
	post(t, url, s.Capsule(CapsuleSpec{Damage: DamageHash})).wantError(t, 400, 14) // real ones are judged as ever
}

func TestMaxCapsule(t *testing.T) {
	s, url := start(t, Options{})
	c := s.Capsule(CapsuleSpec{PayloadSize: 1000})
	s.SetOptions(Options{MaxCapsule: int64(len(c))})
	post(t, url, c).wantSuccess(t)
	c = append(c, 0)
	if r := post(t, url, c); r.status != http.StatusRequestEntityTooLarge {
		t.Errorf("by length: %d", r.status)
	}
	r, err := try(t, url, chunked(c))
	if err != nil || r.status != http.StatusRequestEntityTooLarge {
		t.Errorf("chunked: %d %v", r.status, err)
	}
}

func TestBuildCapsuleRefusesNonsense(t *testing.T) {
	for name, spec := range map[string]CapsuleSpec{
		"no token":     {},
		"outcome":      {SessionToken: "t", Outcome: "YES"},
		"damage":       {SessionToken: "t", Damage: "other"},
		"size":         {SessionToken: "t", PayloadSize: -1},
		"huge headers": {SessionToken: "t", Meta: map[string]string{"k": strings.Repeat("x", maxCapsuleHeader)}},
	} {
		if _, err := BuildCapsule(spec); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzReadCapsule(f *testing.F) {
	good, err := BuildCapsule(CapsuleSpec{SessionToken: "t", PayloadSize: 50})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(capsuleMagic + "\xff\xff\xff\xff"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMeter(bytes.NewReader(b), 0)
		_, refused, err := readCapsule(m, false)
		if err != nil || m.size != int64(len(b)) || !m.ended {
			t.Errorf("%v, read %d of %d", err, m.size, len(b))
		}
		if refused == nil && !bytes.HasPrefix(b, []byte(capsuleMagic)) {
			t.Error("noise was accepted")
		}
	})
}
