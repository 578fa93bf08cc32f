package caddymodule

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/dustin/go-humanize"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
)

func init() {
	httpcaddyfile.RegisterDirective("oz_instant", parseCaddyfile)
	// After forward_auth, so that users are signed in first; before
	// request_header and everything that answers.
	httpcaddyfile.RegisterDirectiveOrder("oz_instant", httpcaddyfile.After, "forward_auth")
}

// parseCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	oz_instant [<matcher>] [<oz upstreams...>] {
//	    base_path       <path>
//	    session_token   <path>
//	    access_token    <token>
//	    credentials     <email> <password>
//	    max_capsule     <size>
//	    max_answer      <size>
//	    upload_timeout  <duration>
//	    timeout         <duration>
//	    best_shot       strip|keep|attach
//	    strip           <path...>
//	    analyses        <type...>|none
//	    require         <path> <value>
//	    pass            <decision...>
//	    handle_decision <decision...> {
//	        <directives...>
//	    }
//	    capacity {
//	        slots  <n>
//	        queue  <n>
//	        wait   <duration>
//	        memory <size>
//	    }
//	    client_gone     finish|cancel
//	    biometry {
//	        reference     <uri>
//	        tag           <tag>
//	        max_reference <size>
//	    }
//	    # and every subdirective of reverse_proxy that does not
//	    # touch the answer: to, lb_policy, health_uri, transport …
//	}
//
// The matcher becomes a field of the handler and not of its route, since the
// handler strips reserved names from requests that it does not match as well.
// That is why this is not a RegisterHandlerDirective.
func parseCaddyfile(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() { // ExtractMatcherSet resets the cursor, so first
		return nil, h.ArgErr()
	}
	matcherSet, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	h.Next()

	p := parser{helper: h, lines: make(map[string]int)}
	if matcherSet != nil {
		p.handler.MatcherSetsRaw = caddyhttp.RawMatcherSets{matcherSet}
	}
	if err := p.parse(h.NextSegment()); err != nil {
		return nil, err
	}
	routes := h.NewRoute(nil, &p.handler)
	if p.sessionPath == "" {
		return routes, nil
	}
	path := caddy.ModuleMap{"path": h.JSON(caddyhttp.MatchPath{p.sessionPath})}
	return append(h.NewRoute(path, &SessionToken{Oz: p.handler.Oz}), routes...), nil
}

// parser reads one oz_instant block. Its own subdirectives go to the handler;
// all other tokens are left, as they stand, for reverse_proxy to parse.
type parser struct {
	helper      httpcaddyfile.Helper
	handler     Handler
	sessionPath string         // where session tokens are served, or empty
	lines       map[string]int // where an option was first given
}

func (p *parser) parse(tokens caddyfile.Segment) error {
	rest, err := p.ownOptions(tokens)
	if err != nil {
		return err
	}
	rp := new(reverseproxy.Handler)
	if err := rp.UnmarshalCaddyfile(caddyfile.NewDispenser(rest)); err != nil {
		return err
	}
	if err := rp.FinalizeUnmarshalCaddyfile(p.helper); err != nil {
		return err
	}
	if err := checkProxy(rp); err != nil {
		d := caddyfile.NewDispenser(tokens)
		d.Next()
		return d.WrapErr(err)
	}
	p.handler.ReverseProxy = rp
	return nil
}

// ownOptions parses the subdirectives that are ours and returns the tokens
// without them. They keep their line numbers.
func (p *parser) ownOptions(tokens caddyfile.Segment) (rest []caddyfile.Token, err error) {
	d := caddyfile.NewDispenser(tokens)
	d.Next()
	head := 1 + len(d.RemainingArgs()) // the directive, the upstreams …
	if head == len(tokens) {
		return tokens, nil
	}
	rest = append(rest, tokens[:head+1]...) // … and the opening brace
	for d.NextBlock(0) {
		segment := d.NextSegment()
		ours, err := p.option(segment)
		if err != nil {
			return nil, err
		}
		if !ours {
			rest = append(rest, segment...)
		}
	}
	return append(rest, tokens[len(tokens)-1]), nil
}

// options are our subdirectives, each with the function that parses it.
var options = map[string]func(*parser, *caddyfile.Dispenser) error{
	"base_path": func(p *parser, d *caddyfile.Dispenser) error {
		return parseChecked(d, &p.handler.BasePath, checkBasePath)
	},
	"session_token": func(p *parser, d *caddyfile.Dispenser) error {
		return parseChecked(d, &p.sessionPath, checkSessionPath)
	},
	"access_token":   parseAccessToken,
	"credentials":    parseCredentials,
	"max_capsule":    func(p *parser, d *caddyfile.Dispenser) error { return parseSize(d, &p.handler.MaxCapsule) },
	"max_answer":     func(p *parser, d *caddyfile.Dispenser) error { return parseSize(d, &p.handler.MaxAnswer) },
	"upload_timeout": func(p *parser, d *caddyfile.Dispenser) error { return parseDuration(d, &p.handler.UploadTimeout) },
	"timeout":        func(p *parser, d *caddyfile.Dispenser) error { return parseDuration(d, &p.handler.Timeout) },
	"best_shot": func(p *parser, d *caddyfile.Dispenser) error {
		return parseWord(d, &p.handler.BestShot, bestShotWords...)
	},
	"client_gone": func(p *parser, d *caddyfile.Dispenser) error {
		return parseWord(d, &p.handler.ClientGone, clientGoneFinish, clientGoneCancel)
	},
	"strip":           parseStrip,
	"analyses":        parseAnalyses,
	"require":         parseRequire,
	"pass":            parsePass,
	"handle_decision": parseHandleDecision,
	"biometry":        parseBiometry,
	"capacity":        parseCapacity,
}

// repeatable are the options that may be given more than once.
var repeatable = map[string]bool{"require": true, "handle_decision": true}

func (p *parser) option(segment caddyfile.Segment) (ours bool, err error) {
	d := caddyfile.NewDispenser(segment)
	d.Next()
	name := d.Val()
	if _, no := refusedOptions[name]; no && name != "unhealthy_status" { // judged by its values
		return false, d.WrapErr(refused(name))
	}
	if strings.HasPrefix(name, "@") {
		return false, d.Errf("response matcher %s: the answer is read by oz_instant; use handle_decision", name)
	}
	parse, ours := options[name]
	if !ours {
		return false, nil
	}
	if line, again := p.lines[name]; again && !repeatable[name] {
		return true, d.Errf("%s was given on line %d already", name, line)
	}
	p.lines[name] = d.Line()
	return true, parse(p, d)
}

// oneArg reads the single argument of an option, which may not be empty, and
// sees to it that no block follows.
func oneArg(d *caddyfile.Dispenser) (string, error) {
	name := d.Val()
	var value string
	if !d.AllArgs(&value) {
		return "", d.ArgErr()
	}
	if value == "" {
		return "", d.Errf("%s is empty", name)
	}
	return value, noBlock(d, name)
}

// someArgs reads one or more arguments.
func someArgs(d *caddyfile.Dispenser) ([]string, error) {
	name := d.Val()
	args := d.RemainingArgs()
	if len(args) == 0 {
		return nil, d.ArgErr()
	}
	return args, noBlock(d, name)
}

func noBlock(d *caddyfile.Dispenser, name string) error {
	if d.NextBlock(0) {
		return d.Errf("%s takes no block", name)
	}
	return nil
}

func checkSessionPath(s string) error {
	if !strings.HasPrefix(s, "/") || strings.ContainsAny(s, "*?#{} ") {
		return fmt.Errorf("session_token: %q is not a plain path such as /session_token", s)
	}
	return nil
}

func parseAccessToken(p *parser, d *caddyfile.Dispenser) error {
	value, err := oneArg(d)
	p.handler.AccessToken = value
	return p.oneOf(d, err, "access_token", "credentials")
}

func parseCredentials(p *parser, d *caddyfile.Dispenser) error {
	args, err := someArgs(d)
	if err != nil {
		return err
	}
	if len(args) != 2 || args[0] == "" || args[1] == "" {
		return d.Errf("credentials takes an e-mail address and a password, such as: credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}")
	}
	p.handler.Credentials = &Credentials{Email: args[0], Password: args[1]}
	return p.oneOf(d, nil, "credentials", "access_token")
}

// oneOf refuses an option beside one that does the same in another way.
func (p *parser) oneOf(d *caddyfile.Dispenser, err error, name, other string) error {
	if line, both := p.lines[other]; both && err == nil {
		return d.Errf("%s: %s was given on line %d; there can be only one of them", name, other, line)
	}
	return err
}

// parseBlock parses the options in the block of an option that takes no
// arguments. Each may be given once.
func parseBlock(d *caddyfile.Dispenser, options map[string]func(*caddyfile.Dispenser) error) error {
	block := d.Val()
	if d.CountRemainingArgs() > 0 {
		return d.ArgErr()
	}
	lines := make(map[string]int)
	for d.NextBlock(0) {
		option := d.NewFromNextSegment()
		option.Next()
		name := option.Val()
		parse, known := options[name]
		if !known {
			names := slices.Sorted(maps.Keys(options))
			return option.Errf("%s: unrecognized option %s; there are %s", block, name, strings.Join(names, ", "))
		}
		if line, again := lines[name]; again {
			return option.Errf("%s: %s was given on line %d already", block, name, line)
		}
		lines[name] = option.Line()
		if err := parse(option); err != nil {
			return err
		}
	}
	return nil
}

func parseBiometry(p *parser, d *caddyfile.Dispenser) error {
	line, b := d.Line(), new(Biometry)
	err := parseBlock(d, map[string]func(*caddyfile.Dispenser) error{
		"reference":     func(d *caddyfile.Dispenser) error { return parseChecked(d, &b.Reference, checkReference) },
		"tag":           func(d *caddyfile.Dispenser) error { return parseChecked(d, &b.Tag, checkTag) },
		"max_reference": func(d *caddyfile.Dispenser) error { return parseSize(d, &b.MaxReference) },
	})
	if err != nil {
		return err
	}
	if b.Reference == "" {
		return d.Errf("biometry on line %d: name a reference, such as: reference /profile/photo", line)
	}
	p.handler.Biometry = b
	return nil
}

func parseCapacity(p *parser, d *caddyfile.Dispenser) error {
	line, c := d.Line(), new(Capacity)
	err := parseBlock(d, map[string]func(*caddyfile.Dispenser) error{
		"slots": func(d *caddyfile.Dispenser) error { return parseCount(d, &c.Slots, 1) },
		"queue": func(d *caddyfile.Dispenser) error {
			c.Queue = new(int)
			return parseCount(d, c.Queue, 0)
		},
		"wait":   func(d *caddyfile.Dispenser) error { return parseDuration(d, &c.Wait) },
		"memory": func(d *caddyfile.Dispenser) error { return parseSize(d, &c.Memory) },
	})
	if err != nil {
		return err
	}
	if c.Slots == 0 && c.Memory == 0 {
		return d.Errf("capacity on line %d: name slots, or memory, or both, such as: slots 3", line)
	}
	p.handler.Capacity = c
	return nil
}

func parseCount(d *caddyfile.Dispenser, field *int, least int) error {
	name := d.Val()
	value, err := oneArg(d)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < least || n > 1<<20 {
		return d.Errf("%s: %q is not a number from %d to %d", name, value, least, 1<<20)
	}
	*field = n
	return nil
}

// parseChecked reads the single argument of an option, and judges it.
func parseChecked(d *caddyfile.Dispenser, field *string, check func(string) error) error {
	value, err := oneArg(d)
	if err != nil {
		return err
	}
	if err := check(value); err != nil {
		return d.WrapErr(err)
	}
	*field = value
	return nil
}

func parseSize(d *caddyfile.Dispenser, field *int64) error {
	name := d.Val()
	value, err := oneArg(d)
	if err != nil {
		return err
	}
	size, err := humanize.ParseBytes(value)
	if err != nil {
		return d.Errf("%s: %q is not a size such as 32MiB", name, value)
	}
	if size == 0 || size > 1<<62 {
		return d.Errf("%s: %s is out of range; it must be greater than zero", name, value)
	}
	*field = int64(size)
	return nil
}

func parseDuration(d *caddyfile.Dispenser, field *caddy.Duration) error {
	name := d.Val()
	value, err := oneArg(d)
	if err != nil {
		return err
	}
	duration, err := caddy.ParseDuration(value)
	if err != nil {
		return d.Errf("%s: %q is not a duration such as 60s", name, value)
	}
	if duration <= 0 {
		return d.Errf("%s: %s is out of range; it must be greater than zero", name, value)
	}
	*field = caddy.Duration(duration)
	return nil
}

func parseWord(d *caddyfile.Dispenser, field *string, words ...string) error {
	name := d.Val()
	value, err := oneArg(d)
	if err != nil {
		return err
	}
	if slices.Contains(words, value) {
		*field = value
		return nil
	}
	return d.Errf("%s: %q is not %s", name, value, strings.Join(words, " or "))
}

func parseStrip(p *parser, d *caddyfile.Dispenser) error {
	args, err := someArgs(d)
	if err != nil {
		return err
	}
	for _, arg := range args {
		if _, err := oz.ParsePath(arg); err != nil {
			return d.WrapErr(err)
		}
	}
	p.handler.Strip = args
	return nil
}

func parseAnalyses(p *parser, d *caddyfile.Dispenser) error {
	args, err := someArgs(d)
	if err != nil {
		return err
	}
	if _, err := analysisTypes(args); err != nil {
		return d.WrapErr(err)
	}
	p.handler.Analyses = args
	return nil
}

func parseRequire(p *parser, d *caddyfile.Dispenser) error {
	args, err := someArgs(d)
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return d.Errf("require takes a path and a value, such as: require meta_data.transaction_id {cookie.transaction}")
	}
	if _, err := oz.ParsePath(args[0]); err != nil {
		return d.WrapErr(err)
	}
	if args[1] == "" {
		return d.Errf("require %s: the value is empty and could never hold", args[0])
	}
	for _, req := range p.handler.Require {
		if req.Path == args[0] {
			return d.Errf("require %s was given already", args[0])
		}
	}
	p.handler.Require = append(p.handler.Require, Requirement{Path: args[0], Value: args[1]})
	return nil
}

func parsePass(p *parser, d *caddyfile.Dispenser) error {
	args, err := someArgs(d)
	if err != nil {
		return err
	}
	for _, arg := range args {
		if err := checkPass(arg); err != nil {
			return d.WrapErr(err)
		}
	}
	p.handler.Pass = args
	return nil
}

func parseHandleDecision(p *parser, d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.ArgErr()
	}
	for _, arg := range args {
		if err := checkDecision(arg); err != nil {
			return d.WrapErr(err)
		}
		if p.handler.hasRoutesFor(arg) {
			return d.Errf("handle_decision: %s has routes already", arg)
		}
	}
	routes, err := p.subroute(d, len(args))
	if err != nil {
		return err
	}
	p.handler.HandleDecision = append(p.handler.HandleDecision, DecisionRoutes{Decisions: args, Routes: routes})
	return nil
}

func (h *Handler) hasRoutesFor(decision string) bool {
	_, ok := h.routesFor(oz.Decision(decision))
	return ok
}

// subroute parses the block of handle_decision. ParseSegmentAsSubroute takes
// no arguments on the first line, so they are left out.
func (p *parser) subroute(d *caddyfile.Dispenser, args int) (caddyhttp.RouteList, error) {
	d.Reset()
	d.Next()
	segment := d.NextSegment()
	if len(segment) == 1+args {
		d.Reset()
		d.Next()
		return nil, d.Errf("handle_decision needs a block with directives")
	}
	block := append(caddyfile.Segment{segment[0]}, segment[1+args:]...)
	handler, err := httpcaddyfile.ParseSegmentAsSubroute(p.helper.WithDispenser(caddyfile.NewDispenser(block)))
	if err != nil {
		return nil, err
	}
	return handler.(*caddyhttp.Subroute).Routes, nil
}
