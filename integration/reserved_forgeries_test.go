package integration_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// Reserved names are those that some app server could take for one of ours: CGI, WSGI, Rack and PHP read letters and digits alike
// in any case, and most else as the same separator. A client that gets one through decides for itself.

// separators are the characters that a field name may have beside letters and digits (RFC 9110, 5.6.2).
const separators = "-!#$%&'*+.^_`|~"

// ourNames are the names that the module sets, or may set one day.
var ourNames = []string{
	"X-Oz-Decision", "X-Oz-Reason", "X-Oz-Folder-Id", "X-Oz-Event-Session-Id", "X-Oz-Resolution-Status", "X-Oz-System-Resolution",
	"X-Oz-Quality", "X-Oz-Biometry", "X-Oz-Error-Code", "X-Oz-Best-Shot", "X-Oz-Seal", "X-Oz-Tomorrow", "X-Oz-",
}

// forgedNames are spellings of reserved names: each of ourNames with each separator in each position, alone and in all; the decision
// with each two of them; and other case.
func forgedNames() []string {
	names := map[string]bool{}
	for _, ours := range ourNames {
		words := strings.Split(ours, "-")
		for sep := range strings.SplitSeq(separators, "") {
			names[strings.Join(words, sep)] = true
			for position := 1; position < len(words); position++ {
				names[strings.Join(words[:position], "-")+sep+strings.Join(words[position:], "-")] = true
			}
			for _, second := range separators {
				names["X"+sep+"Oz"+string(second)+"Decision"] = true
			}
		}
		for _, other := range []string{strings.ToLower(ours), strings.ToUpper(ours), "x-oZ" + strings.ToLower(ours[4:])} {
			names[other] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// isAlias reports whether Caddy drops a name by itself, unless the server is told to expect it.
func isAlias(name string) bool { return strings.ContainsAny(name, "_.") }

// forgeries are header fields of all these names that get as far as a handler: those that a server takes by itself, or, with
// aliases, those with an underscore or a dot, of a server that expects them. Each says SUCCESS.
func forgeries(aliases bool) (fields []string) {
	for _, name := range forgedNames() {
		if isAlias(name) == aliases && canBeExpected(name) == aliases {
			fields = append(fields, name, "SUCCESS")
		}
	}
	return fields
}

// forgedLines are the names as they are, on several lines each.
func forgedLines() (fields []string) {
	for _, name := range ourNames {
		fields = append(fields, name, "SUCCESS", name, "DECLINED", name, "")
	}
	return fields
}

// forgerOptions are global options by which a server takes headers as long as these, and with aliases also the names that Caddy
// drops before any handler unless it is told to expect them: without that, a test with them would prove nothing.
func forgerOptions(aliases bool) string {
	var names []string
	if aliases {
		for pair := range slices.Chunk(forgeries(true), 2) {
			names = append(names, pair[0])
		}
	}
	return optionsExpecting(names)
}

// optionsExpecting are global options by which a server takes long headers and these names.
func optionsExpecting(names []string) string {
	var underscores, dots string
	for _, name := range names {
		switch {
		case !canBeExpected(name): // it is not dropped, or always
		case strings.Contains(name, "_"):
			underscores += ` "` + name + `"`
		default:
			dots += ` "` + name + `"`
		}
	}
	options := "{\n\tservers {\n\t\tmax_header_size 1MB\n"
	if underscores != "" {
		options += "\t\texpected_underscore_headers" + underscores + "\n"
	}
	if dots != "" {
		options += "\t\texpected_dot_headers" + dots + "\n"
	}
	return options + "\t}\n}\n"
}

// canBeExpected reports whether Caddy takes a name only where it is told to.
func canBeExpected(name string) bool { return isAlias(name) && !strings.Contains(name, "*") }

// forger is a server, and what it takes of the forgeries as far as its handlers.
type forger struct {
	caddyfile string
	fields    []string
}

// forgersOfSpellings are two servers, which together take all names but for those as they are.
func forgersOfSpellings(site string) map[string]forger {
	return map[string]forger{
		"spellings": {forgerOptions(false) + site, forgeries(false)},
		"aliases":   {forgerOptions(true) + site, forgeries(true)},
	}
}

// testReservedForgeriesArrive is about these tests: where the module is not, the app gets every single forgery.
func testReservedForgeriesArrive(t *testing.T) {
	t.Parallel()
	if n := len(forgedNames()); n < 400 {
		t.Errorf("there are only %d forged names", n)
	}
	servers := forgersOfSpellings(plainProxy)
	servers["names as they are"] = forger{forgerOptions(false) + plainProxy, forgedLines()}
	for name, forger := range servers {
		t.Run(name, func(t *testing.T) {
			app := newRawApp(t)
			p := startCaddy(t, forger.caddyfile, withEnv("APP", app.Addr))
			p.eachProtocol(t, func(t *testing.T, c *client) {
				app.Forget()
				c.get(t, "/", forger.fields...)
				got := app.Only(t).Names("x-oz-")
				if len(got) != len(forger.fields)/2 {
					t.Errorf("%d lines of %d arrived", len(got), len(forger.fields)/2)
				}
				for i := range got {
					got[i] = strings.ToLower(got[i])
				}
				for i := 0; i < len(forger.fields); i += 2 {
					if !slices.Contains(got, strings.ToLower(forger.fields[i])) {
						t.Errorf("%s did not arrive", forger.fields[i])
					}
				}
			})
		})
	}
}
