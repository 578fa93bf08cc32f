package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// rule is something that the module does for safety, and how to take it out.
type rule struct {
	name  string
	what  string // what it takes out
	edits []edit

	// The rows of an attack that then have to break, and no others: those at a site with Caddy's defaults and, unless nil, those
	// at a site that lets names with dots and underscores in.
	breaks, aliases []string
}

// edit replaces text in a file of the module. The text must stand there exactly once.
type edit struct{ file, old, new string }

const (
	requestFile = "caddymodule/request.go"
	forwardFile = "caddymodule/forward.go"
	folderFile  = "caddymodule/internal/oz/folder.go"
	strictFile  = "caddymodule/internal/oz/strict.go"
	prunerFile  = "caddymodule/internal/oz/prune.go"
)

// rules are all there are. Where a rule is enforced in two places, both go: each would hide that the other is gone. A POST of a forged
// answer is part of many rows, which all break if it is let through. No client can make Oz answer: without the strict reader no row
// breaks, but tests of the decision do.
var rules = []rule{
	{"strip", "a client's reserved names are not removed", []edit{
		{requestFile, "\t\tif reserved(name) {\n", "\t\tif false && reserved(name) {\n"},
	}, []string{
		"forged decision", "forged seal", "case of a name", "other separators", "several lines", "odd values",
		"header flood", "steering headers", "health checks", "spellings of the path", "malformed requests",
		"CONNECT", "forged decision, DECLINED",
	}, nil},
	{"fold", "reserved names are compared as they are, in any case, and not folded", []edit{
		{requestFile, "lower(name[0]) == 'x' && separates(name[1]) &&", "lower(name[0]) == 'x' && name[1] == '-' &&"},
		{requestFile, "lower(name[3]) == 'z' && separates(name[4])", "lower(name[3]) == 'z' && name[4] == '-'"},
	}, []string{"other separators", "forged decision, DECLINED"}, []string{"underscore in a name", "dot in a name", "other separators", "forged decision, DECLINED"}},
	{"connection", "reserved names in Connection stay, and the proxy deletes what they name", []edit{
		{requestFile, "\tstripConnection(r.Header, reserved)\n", ""},
		{forwardFile, `case "connection", "digest",`, `case "digest",`},
	}, []string{"Connection, DECLINED"}, nil},
	{"trailer", "trailers travel on", []edit{
		{requestFile, "\tdelete(r.Header, \"Trailer\")\n\tr.Trailer = nil\n", ""},
		{forwardFile, `"repr-digest", "trailer", "transfer-encoding"`, `"repr-digest", "transfer-encoding"`},
		{forwardFile, "\td.Trailer = nil\n", ""},
	}, []string{"trailers", "trailers, DECLINED"}, nil},
	{"upgrade", "any Upgrade travels on", []edit{
		{requestFile, "\tstripUpgrade(r)\n", ""},
	}, []string{"upgrade to h2c"}, nil},
	{"media-type", "a POST of another media type than a capsule's goes to the app undecided", []edit{
		{requestFile, "\t\treturn capsuleRequest, h.capsuleProblem(r)\n",
			"\t\tif !isCapsuleType(r.Header[\"Content-Type\"]) {\n\t\t\treturn otherRequest, nil\n\t\t}\n\t\treturn capsuleRequest, h.capsuleProblem(r)\n"},
	}, []string{
		"forged answer of Oz", "encoded content", "forged decision", "steering headers", "health checks", "spellings of the path",
		"pipelined requests", "malformed requests", "lying lengths", "CONNECT", "other upgrades", "upgrade to h2c",
	}, nil},
	{"method", "other methods than POST go to the app undecided, with their content", []edit{
		{requestFile, "\tp := refusal(kindMethod,", "\tif r.Method != http.MethodConnect {\n\t\treturn otherRequest, nil\n\t}\n\tp := refusal(kindMethod,"},
	}, []string{"other methods"}, nil},
	{"content", "GET, HEAD and OPTIONS may have content", []edit{
		{requestFile, "\tif r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {\n\t\treturn false\n\t}\n",
			"\tif r.Body != nil {\n\t\treturn false\n\t}\n"},
	}, []string{"content of a GET"}, nil},
	{"header-limit", "a capsule's request may have any number of header lines", []edit{
		{requestFile, "\tif lines <= maxHeaderLines && size <= maxSize {\n", "\tif lines > 0 || size <= maxSize {\n"},
	}, []string{"header flood, DECLINED"}, nil},
	{"strict", "Oz's answer is read as encoding/json does: any case, the last of several names, nothing after the document looked at", []edit{
		{strictFile, "s.dec.Reset(bytes.NewBuffer(doc))",
			"s.dec.Reset(bytes.NewBuffer(doc), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))"},
		{strictFile, "\tif _, err := s.dec.ReadToken(); err != io.EOF {\n", "\tif _, err := s.dec.ReadToken(); err != io.EOF && false {\n"},
		{strictFile, "member(name.String())", "member(strings.ToLower(strings.ToUpper(name.String())))"}, // also ſ and the Kelvin sign
		{prunerFile, "\tfor p.err == nil && n < len(chunk) {\n\t\tn += p.step(chunk[n:])\n",
			"\tfor p.err == nil && n < len(chunk) {\n\t\tif p.grammar.want == 0 {\n\t\t\treturn len(chunk), nil\n\t\t}\n\t\tn += p.step(chunk[n:])\n"},
	}, nil, nil},
}

// find returns the rule of a name.
func find(name string) (rule, error) {
	i := slices.IndexFunc(rules, func(r rule) bool { return r.name == name })
	if i < 0 {
		return rule{}, fmt.Errorf("there is no rule %q (want one of %s)", name, strings.Join(names(), ", "))
	}
	return rules[i], nil
}

func names() (list []string) {
	for _, r := range rules {
		list = append(list, r.name)
	}
	return list
}

// apply returns the files below root that the rule's edits change, with their new text.
func (r rule) apply(root string) (map[string]string, error) {
	changed := map[string]string{}
	for _, e := range r.edits {
		text, ok := changed[e.file]
		if !ok {
			source, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(e.file)))
			if err != nil {
				return nil, err
			}
			text = string(source)
		}
		if n := strings.Count(text, e.old); n != 1 {
			return nil, fmt.Errorf("rule %s: %s has %d times (want once):\n%s", r.name, e.file, n, e.old)
		}
		changed[e.file] = strings.Replace(text, e.old, e.new, 1)
	}
	return changed, nil
}
