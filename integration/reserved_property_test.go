package integration_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// randomName makes a field name that is reserved, nearly reserved, or something else altogether.
func randomName(r *rand.Rand) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	pick := func(from string) string { return string(from[r.IntN(len(from))]) }
	name := pick("xX") + pick(separators) + pick("oO") + pick("zZ") + pick(separators)
	switch r.IntN(4) {
	case 0: // one character is another one, or gone, or there is one more
		at, letter := r.IntN(len(name)), pick(letters+separators)
		name = name[:at] + []string{letter, "", letter + name[at:at+1]}[r.IntN(3)] + name[at+1:]
	case 1:
		name = pick(letters) + name
	}
	for range r.IntN(20) {
		name += pick(letters + separators)
	}
	return name
}

// testReservedNamesAtRandom promises that of any names at all, those that fold to one of ours do not get to the app, and every other
// one does; and that it is the same for names that Connection lists, so that ours survive.
func testReservedNamesAtRandom(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, forgerOptions(false)+smokeSite)
	random := rand.New(rand.NewPCG(1, 2)) // always the same names
	x.eachProtocol(t, func(t *testing.T, c *client) {
		reserved := 0
		for i := range 24 {
			path := []string{"/verify", "/other"}[i%2]
			names := map[string]bool{}
			for range 75 { // with more than a hundred lines a capsule is refused
				names[strings.ToLower(randomName(random))] = true
			}
			var fields []string
			for name := range names {
				fields = append(fields, name, "SUCCESS")
			}
			x.app.Forget()
			if a := c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "session"}), fields...); a.Status != 200 {
				t.Fatalf("got %d %s", a.Status, a.Body)
			}
			r := x.app.Only(t)
			want := verdict{noIDs: true}
			if path == "/verify" {
				want = accepted
			}
			assertReserved(t, r, want.headers(r, "session"))
			for name := range names {
				if strings.HasPrefix(foldName(name), "x-oz-") {
					reserved++
				} else if isAlias(name) == slices.Contains(r.Values(name), "SUCCESS") { // aliases Caddy drops
					t.Errorf("%s: arrived is %t", name, isAlias(name))
				}
			}
		}
		if reserved < 300 {
			t.Errorf("only %d names were reserved", reserved)
		}
	})
}

// testReservedConnectionAtRandom promises that no list of names in Connection, however it is written, takes the decision away.
func testReservedConnectionAtRandom(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{ReuseTokens: true, AcceptAny: true}, smokeSite)
	random := rand.New(rand.NewPCG(3, 4))
	conn := x.dialRaw(t)
	for range 100 {
		x.app.Forget()
		head := postHead("/verify", 7)
		for range 1 + random.IntN(4) {
			line := []string{"Connection:", "connection: ", "CONNECTION:\t"}[random.IntN(3)]
			for range random.IntN(6) {
				line += []string{",", ", ", " ,\t"}[random.IntN(3)]
				if name := ourNames[random.IntN(len(ourNames))]; random.IntN(3) > 0 {
					line += []string{name, strings.ToLower(name), strings.ReplaceAll(name, "-", "_")}[random.IntN(3)]
				} else {
					line += randomName(random)
				}
			}
			head = append(head, line)
		}
		conn.sendHead(t, head...)
		conn.send(t, "capsule")
		if a := conn.read(t, "POST"); a.Status != 200 {
			t.Fatalf("%q: got %d %s", head, a.Status, a.Body)
		}
		r := x.app.Only(t)
		assertReserved(t, r, accepted.headers(r, r.Value("X-Oz-Event-Session-Id")))
		if t.Failed() {
			t.Fatalf("the client sent %q", head)
		}
	}
}
