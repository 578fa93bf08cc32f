package sandbox

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseFault(t *testing.T) {
	for text, want := range map[string]Fault{
		"":                                  {},
		"none":                              {},
		"cut":                               {Kind: "cut", On: OnFolders},
		"cut:1KiB":                          {Kind: "cut", Bytes: 1024, On: OnFolders},
		"drip:5ms,bytes=100":                {Kind: "drip", Pause: 5 * time.Millisecond, Bytes: 100, On: OnFolders},
		"drip":                              {Kind: "drip", Pause: 10 * time.Millisecond, Bytes: 1, On: OnFolders},
		"status:503,retry-after=30@token*2": {Kind: "status", Status: 503, RetryAfter: "30", On: OnToken, Times: 2},
		"early:201,bytes=1MB":               {Kind: "early", Status: 201, Bytes: 1_000_000, On: OnFolders},
		"depth:10000":                       {Kind: "depth", N: 10000, On: OnFolders},
		"word:MAYBE":                        {Kind: "word", Word: "MAYBE", On: OnFolders},
		"content-type:text/plain":           {Kind: "content-type", Word: "text/plain", On: OnFolders},
		"reset@all":                         {Kind: "reset", On: OnAll},
		"hang@auth*1":                       {Kind: "hang", On: OnAuth, Times: 1},
		"status@refresh":                    {Kind: "status", Status: 500, On: OnRefresh},
		"dup-nested@biometry":               {Kind: "dup-nested", On: OnBiometry},
		"outcome:DECLINED@biometry":         {Kind: "outcome", Word: Declined, On: OnBiometry},
		`field:expire_date="x"@auth`:        {Kind: "field", Word: `expire_date="x"`, On: OnAuth},
		"field:access_token,bytes=1k@auth":  {Kind: "field", Word: "access_token", Bytes: 1024, On: OnAuth},
	} {
		got, err := ParseFault(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v %v, want %+v", text, got, err, want)
		}
		if again, err := ParseFault(got.String()); err != nil || again != got {
			t.Errorf("%q written as %q reads %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"no-such", "cut:many", "cut:-1", "hang:1", "status:abc", "status:100", "status:503,retry=1", "cut@nowhere", "cut*0", "cut*x",
		"dup-nested@token", "dup-nested@auth", "outcome@refresh", "outcome:MAYBE", "big@biometry", "image-value@all", "length:odd", "inject:other", "drip:5", ":", "@token",
	} {
		if f, err := ParseFault(text); err == nil {
			t.Errorf("%q is taken for %+v", text, f)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "123": 123, "1k": 1024, "64KiB": 65536, "2MiB": 2 << 20, "2 MiB": 2 << 20, "400KB": 400_000, "1mb": 1_000_000, "1GiB": 1 << 30,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "MiB", "1.5MiB", "1XB", "99999999999GiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func TestKindsAreDescribed(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range Kinds() {
		if k.Help == "" || strings.Contains(k.Help, "\n") || k.Group == "" || seen[k.Name] || !strings.HasPrefix(k.Usage, k.Name) {
			t.Errorf("%+v", k)
		}
		seen[k.Name] = true
		if _, err := ParseFault(k.Name); err != nil {
			t.Errorf("not usable without a value: %v", err)
		}
	}
}

// Every kind has a test that shows it doing what its help says.
func TestEveryKindIsTested(t *testing.T) {
	tested := slices.Concat(
		slices.Collect(maps.Keys(wireChecks())), slices.Collect(maps.Keys(answerChecks)), slices.Collect(maps.Keys(contentChecks)))
	for i, text := range tested {
		tested[i] = MustFault(text).Kind
	}
	for _, k := range Kinds() {
		if !slices.Contains(tested, k.Name) {
			t.Errorf("%s has no test", k.Name)
		}
	}
}

func TestFaultStrikesWhereItShould(t *testing.T) {
	s, url := start(t, Options{Fault: MustFault("status:500")})
	tokenStatus := func() int { return get(t, "GET", url+TokenPath).status }
	folderStatus := func() int { return post(t, url, s.Capsule(CapsuleSpec{})).status }
	for text, want := range map[string][2]int{
		"status:500": {200, 500}, "status:500@token": {500, 201}, "status:500@all": {500, 500}, "none": {200, 201},
	} {
		f, err := ParseFault(text)
		if err != nil {
			t.Fatal(err)
		}
		s.SetFault(f)
		if got := [2]int{tokenStatus(), folderStatus()}; got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	s.SetFault(MustFault("status:500@all"))
	get(t, "GET", url+FoldersPath).wantError(t, 405, 1) // what is no call is spared
	if r := get(t, "GET", url+VersionPath); r.status != 500 {
		t.Errorf("all means all: version answers %d", r.status)
	}
}

// The five calls that a fault can be aimed at, each alone.
func TestFaultStrikesOneCall(t *testing.T) {
	s, url := start(t, Options{Accounts: accounts(), AccessToken: "fixed"})
	g := logIn(t, url)
	calls := map[string]func() int{
		OnFolders: func() int {
			return send(t, url+FoldersPath, "application/octet-stream", s.Capsule(CapsuleSpec{}), accessTokenHeader, "fixed").status
		},
		OnBiometry: func() int { return photosOf("a", "a").post(t, url, accessTokenHeader, "fixed").status },
		OnToken:    func() int { return get(t, "GET", url+TokenPath, accessTokenHeader, "fixed").status },
		OnAuth:     func() int { return send(t, url+AuthPath, "application/json", []byte(right)).status },
		OnRefresh:  func() int { return refresh(t, url, g.Access, g.Expire).status },
	}
	for _, on := range Scopes() {
		s.SetFault(MustFault("status:418@" + on))
		for name, call := range calls {
			if status, struck := call(), on == name || on == OnAll; (status == 418) != struck {
				t.Errorf("@%s: %s answers %d", on, name, status)
			}
		}
	}
}

func TestFaultStrikesSoOften(t *testing.T) {
	s, url := start(t, Options{})
	s.SetFault(MustFault("status:500@token*2"))
	status := func() int { return get(t, "GET", url+TokenPath).status }
	if got := []int{status(), status(), status()}; !slices.Equal(got, []int{500, 500, 200}) {
		t.Errorf("%v", got)
	}
	o := s.Options()
	o.StrictSlash = true
	s.SetOptions(o)
	if got := status(); got != 200 {
		t.Errorf("changing another switch starts the count again: %d", got)
	}
	s.SetFault(o.Fault)
	if got := status(); got != 500 {
		t.Errorf("setting the fault again does not: %d", got)
	}
}
