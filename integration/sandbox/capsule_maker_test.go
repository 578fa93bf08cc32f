package sandbox

import "testing"

// TestCapsuleMaker promises capsules over HTTP that are as good as those of Sandbox.Capsule, and none for what makes no sense.
func TestCapsuleMaker(t *testing.T) {
	s, url := start(t, Options{})
	for _, test := range []struct {
		query, resolution string
		status            int
	}{
		{"", Success, 200},
		{"?outcome=DECLINED&size=1000", Declined, 200},
		{"?outcome=MAYBE", "", 400},
		{"?size=-1", "", 400},
		{"?size=99999999999", "", 400},
	} {
		made := get(t, "GET", url+CapsulePath+test.query)
		if made.status != test.status {
			t.Fatalf("%s: %d %s", test.query, made.status, made.body)
		}
		if test.status != 200 {
			continue
		}
		if got := post(t, url, made.body).folder(t).Resolution; got != test.resolution {
			t.Errorf("%s: the capsule ends in %q, want %q", test.query, got, test.resolution)
		}
	}
	if n := len(s.Requests()); n != 2 {
		t.Errorf("%d requests are noted, want the two capsules", n)
	}
}
