package caddymodule

import (
	"errors"
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

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
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
//	    max_header      <size>
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
//	        shared redis <url>|<store> ...
//	    }
//	    replay_guard    [memory|redis <url>|<store> ...] {
//	        window   <duration>
//	        also     <path>
//	        on_error refuse|allow
//	        <options of the store...>
//	    }
//	    seal {
//	        audience <aud>
//	        issuer   <iss>
//	        subject  <value>
//	        lifetime <duration>
//	        key      <file...>
//	        jwks     <path>
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
// So this isn't a RegisterHandlerDirective.
func parseCaddyfile(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() { // ExtractMatcherSet resets the cursor, so first
		return nil, h.ArgErr()
	}
	matcherSet, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, located(h.Dispenser, err)
	}
	h.Next()

	p := parser{helper: h, at: make(map[string][]*caddyfile.Dispenser)}
	if matcherSet != nil {
		p.handler.MatcherSetsRaw = caddyhttp.RawMatcherSets{matcherSet}
	}
	if err := p.parse(h.NextSegment()); err != nil {
		return nil, err
	}
	return h.NewRoute(nil, &p.handler), nil
}

// parser reads one oz_instant block. Its own subdirectives go to the handler;
// all other tokens are left, as they stand, for reverse_proxy to parse. It
// checks syntax alone: what values make sense is for Validate to say.
type parser struct {
	helper  httpcaddyfile.Helper
	handler Handler
	tokens  caddyfile.Segment                 // of the whole block
	at      map[string][]*caddyfile.Dispenser // where each of our options was given
}

func (p *parser) parse(tokens caddyfile.Segment) error {
	p.tokens = tokens
	directive := caddyfile.NewDispenser(tokens)
	directive.Next()
	if err := checkUpstreams(directive); err != nil {
		return err
	}
	directive.Reset()
	directive.Next()
	rest, err := p.ownOptions(tokens)
	if err != nil {
		return err
	}
	rp := new(reverseproxy.Handler)
	if err := rp.UnmarshalCaddyfile(caddyfile.NewDispenser(rest)); err != nil {
		return located(directive, err)
	}
	if err := rp.FinalizeUnmarshalCaddyfile(p.helper); err != nil {
		return located(directive, err)
	}
	p.handler.ReverseProxy = rp
	return p.validate(directive)
}

// validate adds file and line to what Validate says: those of the option, or
// of the directive. It leaves the handler without defaults, as it was written.
func (p *parser) validate(directive *caddyfile.Dispenser) error {
	filled := p.handler
	filled.copyParts()
	filled.setDefaults()
	err := filled.Validate()
	if err == nil {
		return nil
	}
	if own, ok := errors.AsType[*optionError](err); ok {
		if d := p.place(own); d != nil {
			return d.WrapErr(err)
		}
	}
	if ofProxy, ok := errors.AsType[*ozclient.OptionError](err); ok {
		return p.placeOfProxy(ofProxy, directive).WrapErr(err)
	}
	return directive.WrapErr(err)
}

// place returns where an option of ours was given, or the block around it.
func (p *parser) place(e *optionError) *caddyfile.Dispenser {
	block, _, _ := strings.Cut(e.option, " ")
	for _, option := range []string{e.option, block} {
		if places := p.at[option]; e.nth < len(places) {
			return places[e.nth]
		}
	}
	return nil
}

// placeOfProxy returns where an option of reverse_proxy, or of its transport,
// stands, with the argument if one is named.
func (p *parser) placeOfProxy(e *ozclient.OptionError, directive *caddyfile.Dispenser) *caddyfile.Dispenser {
	for i, token := range p.tokens {
		if token.Text != e.Option {
			continue
		}
		if e.Argument == "" || i+1 < len(p.tokens) && strings.EqualFold(strings.TrimLeft(p.tokens[i+1].Text, "+-?>"), e.Argument) {
			return firstToken(p.tokens[i:])
		}
	}
	return directive
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

type parseFunc func(*caddyfile.Dispenser) error

// options are our subdirectives, each with the function that parses it.
func (p *parser) options() map[string]parseFunc {
	h := &p.handler
	return map[string]parseFunc{
		"base_path":       textOption(&h.BasePath),
		"session_token":   p.parseSessionToken,
		"access_token":    textOption(&h.AccessToken),
		"credentials":     p.parseCredentials,
		"max_capsule":     sizeOption(&h.MaxCapsule),
		"max_answer":      sizeOption(&h.MaxAnswer),
		"max_header":      sizeOption(&h.MaxHeader),
		"upload_timeout":  durationOption(&h.UploadTimeout),
		"timeout":         durationOption(&h.Timeout),
		"best_shot":       textOption(&h.BestShot),
		"client_gone":     textOption(&h.ClientGone),
		"strip":           textsOption(&h.Strip),
		"analyses":        textsOption(&h.Analyses),
		"require":         p.parseRequire,
		"pass":            textsOption(&h.Pass),
		"handle_decision": p.parseHandleDecision,
		"biometry":        p.parseBiometry,
		"capacity":        p.parseCapacity,
		"replay_guard":    p.parseReplayGuard,
		"seal":            p.parseSeal,
	}
}

// repeatable are the options that may be given more than once.
var repeatable = map[string]bool{"require": true, "handle_decision": true}

// option parses a subdirective, if it is ours.
func (p *parser) option(segment caddyfile.Segment) (ours bool, err error) {
	d := caddyfile.NewDispenser(segment)
	d.Next()
	name := d.Val()
	if strings.HasPrefix(name, "@") {
		return false, d.Errf("response matcher %s: the answer is read by oz_instant; use handle_decision", name)
	}
	if err := ozclient.CheckOption(name); err != nil {
		return false, d.WrapErr(err)
	}
	parse, ours := p.options()[name]
	if !ours {
		if name == "to" {
			err = checkUpstreams(d)
		}
		return false, err
	}
	return true, p.once(segment, name, name, parse)
}

// checkUpstreams looks at the remaining arguments, before reverse_proxy does.
func checkUpstreams(d *caddyfile.Dispenser) error {
	for _, upstream := range d.RemainingArgs() {
		if err := ozclient.CheckUpstream(upstream); err != nil {
			return d.WrapErr(err)
		}
	}
	return nil
}

// firstToken returns a dispenser at the start of segment, for its line.
func firstToken(segment caddyfile.Segment) *caddyfile.Dispenser {
	d := caddyfile.NewDispenser(segment)
	d.Next()
	return d
}

// once parses an option, which may be given once unless it is repeatable. Path
// is its name with those of the blocks around it.
func (p *parser) once(segment caddyfile.Segment, path, name string, parse parseFunc) error {
	d := firstToken(segment)
	if before := p.at[path]; len(before) > 0 && !repeatable[path] {
		return d.Errf("%s was already given on line %d", name, before[0].Line())
	}
	p.at[path] = append(p.at[path], firstToken(segment))
	return located(firstToken(segment), parse(d))
}

// located adds the place of d to an error that has none: some of Caddy's own
// parsers leave it out.
func located(d *caddyfile.Dispenser, err error) error {
	if err == nil || strings.Contains(err.Error(), d.File()+":") {
		return err
	}
	return d.WrapErr(err)
}

// block parses the options in the block of an option that takes no arguments.
func (p *parser) block(d *caddyfile.Dispenser, options map[string]parseFunc) error {
	block := d.Val()
	if d.CountRemainingArgs() > 0 {
		return d.ArgErr()
	}
	for d.NextBlock(0) {
		segment := d.NextSegment()
		option := firstToken(segment)
		name := option.Val()
		parse, known := options[name]
		if !known {
			return option.Errf("%s: unrecognized option%s (want %s)", block, quotable(name), orList(slices.Sorted(maps.Keys(options))))
		}
		if err := p.once(segment, block+" "+name, block+": "+name, parse); err != nil {
			return err
		}
	}
	return nil
}

// oneArg reads the single argument of an option, which must not be empty, and
// requires that no block follows.
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

func textOption(field *string) parseFunc {
	return func(d *caddyfile.Dispenser) (err error) {
		*field, err = oneArg(d)
		return err
	}
}

func textsOption(field *[]string) parseFunc {
	return func(d *caddyfile.Dispenser) (err error) {
		*field, err = someArgs(d)
		return err
	}
}

func sizeOption(field *int64) parseFunc {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		value, err := oneArg(d)
		if err != nil {
			return err
		}
		size, err := humanize.ParseBytes(value)
		if err != nil {
			return d.Errf("%s: invalid size %q (want one such as 32MiB)", name, value)
		}
		// A zero would be taken for the default.
		if size == 0 || size > 1<<62 {
			return d.Errf("%s: %s is out of range (want more than zero)", name, value)
		}
		*field = int64(size)
		return nil
	}
}

func durationOption(field *caddy.Duration) parseFunc {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		value, err := oneArg(d)
		if err != nil {
			return err
		}
		duration, err := caddy.ParseDuration(value)
		if err != nil {
			return d.Errf("%s: invalid duration %q (want one such as 60s)", name, value)
		}
		if duration == 0 { // would be taken for the default
			return d.Errf("%s: %s is out of range (want more than zero)", name, value)
		}
		*field = caddy.Duration(duration)
		return nil
	}
}

func countOption(field *int, least, most int) parseFunc {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		value, err := oneArg(d)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < least || n > most {
			return d.Errf("%s: invalid number %q (want %d to %d)", name, value, least, most)
		}
		*field = n
		return nil
	}
}

func (p *parser) parseSessionToken(d *caddyfile.Dispenser) error {
	p.handler.SessionToken = new(SessionToken)
	return textOption(&p.handler.SessionToken.Path)(d)
}

func (p *parser) parseCredentials(d *caddyfile.Dispenser) error {
	args, err := someArgs(d)
	if err != nil {
		return err
	}
	if len(args) != 2 || args[0] == "" || args[1] == "" {
		return d.Errf("credentials: want an e-mail address and a password, such as: credentials {env.OZ_EMAIL} {env.OZ_PASSWORD}")
	}
	p.handler.Credentials = &ozclient.Credentials{Email: args[0], Password: args[1]}
	return nil
}

func (p *parser) parseRequire(d *caddyfile.Dispenser) error {
	args, err := someArgs(d)
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return d.Errf("require: want a path and a value, such as: require meta_data.transaction_id {cookie.transaction}")
	}
	p.handler.Require = append(p.handler.Require, Requirement{Path: args[0], Value: args[1]})
	return nil
}

func (p *parser) parseBiometry(d *caddyfile.Dispenser) error {
	b := new(Biometry)
	p.handler.Biometry = b
	return p.block(d, map[string]parseFunc{
		"reference":     textOption(&b.Reference),
		"tag":           textOption(&b.Tag),
		"max_reference": sizeOption(&b.MaxReference),
	})
}

func (p *parser) parseCapacity(d *caddyfile.Dispenser) error {
	c := new(Capacity)
	p.handler.Capacity = c
	options := withoutURLs("capacity", "shared redis <url>", map[string]parseFunc{
		"slots": countOption(&c.Slots, 1, unboundedQueue),
		"queue": func(d *caddyfile.Dispenser) error {
			c.Queue = new(int)
			return countOption(c.Queue, 0, unboundedQueue)(d)
		},
		"wait":   durationOption(&c.Wait),
		"memory": sizeOption(&c.Memory),
	})
	options["shared"] = func(d *caddyfile.Dispenser) error { return parseShared(d, c) }
	return p.block(d, options)
}

func (p *parser) parseSeal(d *caddyfile.Dispenser) error {
	s := new(Seal)
	p.handler.Seal = s
	return p.block(d, map[string]parseFunc{
		"audience": textOption(&s.Audience),
		"issuer":   textOption(&s.Issuer),
		"subject":  textOption(&s.Subject),
		"lifetime": durationOption(&s.Lifetime),
		"key":      textsOption(&s.Key),
		"jwks":     textOption(&s.JWKS),
	})
}

// parseHandleDecision parses decisions and routes. ParseSegmentAsSubroute takes
// no arguments on the first line, so they are left out for it.
func (p *parser) parseHandleDecision(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.ArgErr()
	}
	d.Reset()
	d.Next()
	segment := d.NextSegment()
	if len(segment) == 1+len(args) {
		return firstToken(segment).Errf("handle_decision: want a block with directives")
	}
	block := append(caddyfile.Segment{segment[0]}, segment[1+len(args):]...)
	handler, err := httpcaddyfile.ParseSegmentAsSubroute(p.helper.WithDispenser(caddyfile.NewDispenser(block)))
	if err != nil {
		return err
	}
	subroute, ok := handler.(*caddyhttp.Subroute)
	if !ok {
		return errors.New("handle_decision: the block did not make routes")
	}
	p.handler.HandleDecision = append(p.handler.HandleDecision, DecisionRoutes{Decisions: args, Routes: subroute.Routes})
	return nil
}
