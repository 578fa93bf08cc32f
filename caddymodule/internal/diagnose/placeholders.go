package diagnose

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
)

// needs lists the placeholders on the way to Oz that have a value only in a
// user's request, each with where it stands.
type needs struct {
	address []string // without them there is nothing to connect to
	header  []string // without them requests differ from those of the site
}

func needsOf(cfg ozclient.Config) (n needs) {
	proxy := cfg.ReverseProxy
	for _, u := range proxy.Upstreams {
		n.address = appendNeeds(n.address, "upstream", u.Dial)
	}
	n.address = appendNeeds(n.address, "dynamic upstreams", unescaped(proxy.DynamicUpstreamsRaw))
	n.address = appendNeeds(n.address, "transport", unescaped(proxy.TransportRaw))
	if proxy.Headers == nil || proxy.Headers.Request == nil {
		return n
	}
	ops := proxy.Headers.Request
	n.header = appendFieldNeeds(n.header, ops.Add)
	n.header = appendFieldNeeds(n.header, ops.Set)
	for _, name := range ops.Delete {
		n.header = appendNeeds(n.header, "header_up -"+name, name)
	}
	n.header = appendFieldNeeds(n.header, ops.Replace)
	return n
}

func appendFieldNeeds[V any](list []string, fields map[string]V) []string {
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		list = appendNeeds(list, "header_up "+name, name+" "+unescaped(fields[name]))
	}
	return list
}

// unescaped returns v as JSON whose strings stand as they are meant, as far as
// placeholders go. It is empty for JSON that doesn't load.
func unescaped(v any) string {
	var tree any
	doc, err := json.Marshal(v)
	if err != nil || json.Unmarshal(doc, &tree) != nil {
		return ""
	}
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(tree)
	return text.String()
}

// placeholder matches what Caddy would replace, and neither JSON in a header
// field nor a count in a regular expression. An escaped brace comes along so
// that it can be told from an opening one.
var placeholder = regexp.MustCompile(`\\?\{([A-Za-z_][^{}\s"']*)\}`)

func appendNeeds(list []string, where, text string) []string {
	for _, match := range placeholder.FindAllStringSubmatch(text, -1) {
		need := fmt.Sprintf("%s {%s}", where, match[1])
		if match[0][0] != '\\' && needsRequest(match[1]) && !slices.Contains(list, need) {
			list = append(list, need)
		}
	}
	return list
}

// free are the beginnings of placeholders that need no request. Those of
// reverse_proxy name the upstream that it has chosen.
var free = []string{"env.", "file.", "system.", "time.", "http.reverse_proxy."}

func needsRequest(key string) bool {
	return !slices.ContainsFunc(free, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}
