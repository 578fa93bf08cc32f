package caddymodule

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// parseShared leaves the store's arguments and block to the module of its name.
func parseShared(d *caddyfile.Dispenser, c *Capacity) (err error) {
	d.Reset()
	d.Next()
	segment := d.NextSegment()[1:]
	if len(segment) == 0 || !storeName.MatchString(segment[0].Text) { // it is not quoted: a URL may hold a password
		return d.Err("capacity: invalid shared store (want redis <url>, or the name of another module)")
	}
	c.SharedRaw, err = parseStore(segment, slotsNamespace, "capacity: shared redis")
	return err
}

// parseStore parses a segment that begins with the name of a store, and returns
// the module of that name.
func parseStore(segment caddyfile.Segment, namespace, option string) (json.RawMessage, error) {
	d, name := firstToken(segment), segment[0].Text
	module, err := caddyfile.UnmarshalModule(d, namespace+"."+name)
	if err != nil {
		if name == "redis" && !registered(namespace+".redis") {
			return nil, d.Errf("%s isn't built in (want a Caddy built --with %s)", option, redisPackage)
		}
		return nil, err
	}
	return caddyconfig.JSONModuleObject(module, "module", name, nil), nil
}

// parseReplayGuard parses the guard's own options. The store's name, its
// arguments and what else is in the block are for the module of that name.
func (p *parser) parseReplayGuard(d *caddyfile.Dispenser) error {
	g := new(ReplayGuard)
	p.handler.ReplayGuard = g
	own := withoutURLs("replay_guard", "replay_guard redis <url>", map[string]parseFunc{
		"window": durationOption(&g.Window), "also": textOption(&g.Also), "on_error": textOption(&g.OnError),
	})
	d.Reset()
	d.Next()
	segment := d.NextSegment()
	store, rest, err := p.withoutOwn(segment, "replay_guard", own)
	if err != nil {
		return err
	}
	if len(store) == 0 {
		name := segment[0]
		name.Text = "memory"
		store = caddyfile.Segment{name}
	}
	name := store[0].Text
	if !storeName.MatchString(name) { // it is not quoted: a URL may hold a password
		return firstToken(store).Err("replay_guard: invalid store (want memory, redis <url>, or the name of another module)")
	}
	g.StoreRaw, err = parseStore(append(store, rest...), replayNamespace, "replay_guard: redis")
	return err
}

// redisPackage has the stores in Redis.
const redisPackage = "github.com/oz-instant/caddy-oz-instant/caddymodule/redis"

var (
	storeName = regexp.MustCompile(`^[a-z0-9_]+$`)
	plainWord = regexp.MustCompile(`^[a-z_]+$`)
)

// quotable returns the name of an unknown option as an error may quote it: not at
// all, unless it is a word. It may be a store's URL, with a password, in the wrong
// place.
func quotable(name string) string {
	if !plainWord.MatchString(name) {
		return ""
	}
	return " " + name
}

// withoutURLs has the options of a block refuse a URL in the wrong place: what
// parses them would quote it.
func withoutURLs(block, want string, options map[string]parseFunc) map[string]parseFunc {
	for name, parse := range options {
		options[name] = func(d *caddyfile.Dispenser) error {
			for d.Next() {
				if strings.Contains(d.Val(), "://") {
					return d.Errf("%s: %s: a URL is in the wrong place (want %s)", block, name, want)
				}
			}
			d.Reset()
			d.Next()
			return parse(d)
		}
	}
	return options
}

func registered(id string) bool {
	_, err := caddy.GetModule(id)
	return err == nil
}

// withoutOwn parses the options in a block that are in own. It returns the
// arguments before the block, and the block without these options, or nothing if
// it is empty then.
func (p *parser) withoutOwn(segment caddyfile.Segment, name string, own map[string]parseFunc) (args, rest caddyfile.Segment, err error) {
	d := firstToken(segment)
	head := 1 + len(d.RemainingArgs())
	args = slices.Clone(segment[1:head])
	if head == len(segment) {
		return args, nil, nil
	}
	for d.NextBlock(0) {
		option := d.NextSegment()
		parse, ours := own[option[0].Text]
		if !ours {
			rest = append(rest, option...)
			continue
		}
		if err := p.once(option, name+" "+option[0].Text, name+": "+option[0].Text, parse); err != nil {
			return nil, nil, err
		}
	}
	if len(rest) == 0 {
		return args, nil, nil
	}
	rest = append(caddyfile.Segment{segment[head]}, rest...)
	return args, append(rest, segment[len(segment)-1]), nil
}
