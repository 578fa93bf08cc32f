package sandbox

import (
	"bytes"
	"strings"
	"testing"
)

// A capsule's own fault meets that capsule alone, whatever comes beside it.
func TestCapsuleBringsItsFault(t *testing.T) {
	s, url := start(t, Options{})
	for fault, want := range map[string]struct {
		status int
		text   string
	}{
		"":                               {201, `"system_resolution": "SUCCESS"`},
		"status:503,retry-after=3":       {503, "error_code"},
		"html:201":                       {201, "<html>"},
		"outcome:DECLINED":               {201, `"system_resolution": "DECLINED"`},
		"dup-declined-success":           {201, `"system_resolution": "DECLINED"`},
		"field:folder_id=null":           {201, `"folder_id": null`},
		"oz-error:9":                     {400, `"error_code": 9`},
		"drip:1ms,bytes=4KiB":            {201, `"system_resolution": "SUCCESS"`},
		"content-type:text/html@folders": {201, `"system_resolution": "SUCCESS"`},
	} {
		c := s.Capsule(CapsuleSpec{Fault: fault})
		if r := post(t, url, c); r.status != want.status || !strings.Contains(string(r.body), want.text) {
			t.Errorf("%s: %d %.200s", fault, r.status, r.body)
		}
		if r := post(t, url, s.Capsule(CapsuleSpec{})); r.status != 201 || !strings.Contains(string(r.body), `"system_resolution": "SUCCESS"`) {
			t.Errorf("the next capsule after %s: %d %.200s", fault, r.status, r.body)
		}
	}
	if r, err := try(t, url, bytes.NewReader(s.Capsule(CapsuleSpec{Fault: "cut"}))); err == nil {
		t.Errorf("cut: %d, %d bytes", r.status, len(r.body))
	}
}

func TestCapsuleFaultComesSecond(t *testing.T) {
	s, url := start(t, Options{Fault: MustFault("status:500")})
	if r := post(t, url, s.Capsule(CapsuleSpec{Fault: "outcome:DECLINED"})); r.status != 500 {
		t.Errorf("beside a fault of the sandbox: %d", r.status)
	}
	s.SetFault(Fault{})
	post(t, url, s.Capsule(CapsuleSpec{Fault: "status:500", Damage: DamageDamaged})).wantError(t, 400, 5)
}

// A capsule that hangs is let go like everything else that does.
func TestCapsuleFaultIsLetGo(t *testing.T) {
	s, url := start(t, Options{})
	ended := make(chan error, 1)
	go func() {
		_, err := try(t, url, bytes.NewReader(s.Capsule(CapsuleSpec{Fault: "hang"})))
		ended <- err
	}()
	if err := s.Await(t.Context(), func(st Stats) bool { return st.Bytes > 0 }); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := <-ended; err == nil {
		t.Error("it was answered")
	}
}

func TestCapsuleFaultsThatCannotBe(t *testing.T) {
	s, _ := start(t, Options{})
	for _, fault := range []string{"no-such", "close", "early:400", "slow-reading", "status:500@token", "status:500@all", "status:500*1",
		"big-text:65MiB", "field:x,bytes=1GiB", "several-quality:101", "drip:2m"} {
		if c, err := s.MakeCapsule(CapsuleSpec{Fault: fault}); err == nil {
			t.Errorf("%s: %d bytes", fault, len(c))
		}
	}
}

func TestAnswerSize(t *testing.T) {
	s, url := start(t, Options{BestShotSize: 20_000})
	for _, fault := range []string{"", "cut"} {
		r, _ := try(t, url, bytes.NewReader(s.Capsule(CapsuleSpec{Fault: fault})))
		id := s.Received()[len(s.Received())-1].FolderID
		got, ok := s.AnswerSize(id)
		if !ok || got < 20_000 || fault == "" && (got != int64(len(r.body)) || !bytes.Contains(r.body, []byte(id))) {
			t.Errorf("%q: %d %t, %d bytes came", fault, got, ok, len(r.body))
		}
	}
	for _, id := range []string{"", "another"} {
		if n, ok := s.AnswerSize(id); ok {
			t.Errorf("%q: %d", id, n)
		}
	}
}
