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
// one does: also those with dots and underscores, on a server that expects them.
func testReservedNamesAtRandom(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2)) // always the same names
	var names []string
	for range 1800 {
		names = append(names, strings.ToLower(randomName(random)))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	x := startChain(t, sandbox.Options{}, optionsExpecting(names)+smokeSite)
	x.eachProtocol(t, func(t *testing.T, c *client) {
		reserved, others := 0, 0
		for some := range slices.Chunk(names, 75) { // with more than 80 other lines a capsule is refused
			for path, want := range map[string]verdict{"/verify": accepted, "/other": {noIDs: true}} {
				var fields []string
				for _, name := range some {
					fields = append(fields, name, "SUCCESS")
				}
				x.app.Forget()
				if a := c.post(t, path, x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "session", PayloadSize: 100}), fields...); a.Status != 200 {
					t.Fatalf("got %d %s", a.Status, a.Body)
				}
				r := x.app.Only(t)
				assertReserved(t, r, want.headers(r, "session"))
				for _, name := range some {
					switch arrived := slices.Contains(r.Values(name), "SUCCESS"); {
					case strings.HasPrefix(foldName(name), "x-oz-"):
						reserved++
					case isAlias(name) && !canBeExpected(name): // Caddy drops it
					case !arrived:
						t.Errorf("%s did not arrive", name)
					default:
						others++
					}
				}
			}
		}
		if reserved < 1000 || others < 400 {
			t.Errorf("%d names were reserved and %d were not: too few to say anything", reserved, others)
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
