package diagnose

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/upload"
)

// checker examines one upstream, or the dynamic ones.
type checker struct {
	*block
	name   string
	dial   string // empty: dynamic
	config ozclient.Config
	client *ozclient.Client
	needs  needs
	token  string
	steps  []Step

	certificateEnds time.Time // zero: no certificate was seen
}

// check takes the steps in the order in which things can go wrong.
func (c *checker) check(ctx context.Context) {
	c.needs = needsOf(c.config) // before it is consumed
	notTried := c.prepare(ctx)
	if c.client != nil {
		defer c.client.Close()
	}
	for _, call := range c.calls() {
		if notTried != nil {
			c.skip(call.name, notTried)
		} else if !c.step(ctx, call.name, call.make) && call.vital {
			notTried = errEarlier
		}
	}
}

// prepare looks at all that comes before a call to Oz. Its error says why there
// can be none.
func (c *checker) prepare(ctx context.Context) error {
	if !c.step(ctx, "configuration", c.configure) {
		return errEarlier
	}
	if len(c.needs.address)+len(c.needs.header) > 0 {
		c.step(ctx, "placeholders", c.placeholders)
	}
	if len(c.needs.address) > 0 {
		return errNoAddress
	}
	return c.reach(ctx)
}

// call is a step that makes calls to Oz.
type call struct {
	name  string
	make  func(context.Context) (string, error)
	vital bool // what comes next needs it
}

const (
	garbageBytes = 1000
	capsuleStep  = "capsule"
)

// calls lists the steps that need an Oz that can be reached.
func (c *checker) calls() (list []call) {
	if c.target.Config.Credentials != nil {
		list = append(list, call{"log-in", c.login, true})
	}
	garbage := make([]byte, garbageBytes)
	_, _ = rand.Read(garbage) // never fails
	list = append(list,
		call{"session token", c.sessionToken, false},
		call{"shared keys", c.sharedKeys, false},
		call{"empty capsule", c.refuses(nil, oz.CodeNoContainer), false},
		call{"garbage capsule", c.refuses(garbage, oz.CodeInvalidContainer), false},
	)
	if c.opts.Capsule != nil {
		list = append(list, call{capsuleStep, c.realCapsule, false})
	}
	return list
}

var (
	errEarlier   = errors.New("not tried: an earlier step failed")
	errNoAddress = errors.New("not tried: there is no address to connect to")
)

// finding is an error that ends a step in another state than Failed, or with
// advice.
type finding struct {
	error
	state  State
	advice string
}

func (f *finding) Unwrap() error { return f.error }

func failed(err error, advice string) error  { return &finding{err, Failed, advice} }
func unknown(err error, advice string) error { return &finding{err, Unknown, advice} }
func skipped(err error) error                { return &finding{err, Skipped, ""} }

var errStepTimeout = errors.New("step timed out")

// step takes one step and reports whether it went well.
func (c *checker) step(ctx context.Context, name string, f func(context.Context) (string, error)) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.Timeout, errStepTimeout)
	defer cancel()
	c.observe(Event{To: c.name, Step: Step{Name: name}})
	start := time.Now()
	detail, err := f(ctx)
	s := Step{Name: name, State: OK, Detail: detail, MS: time.Since(start).Milliseconds()}
	if err != nil {
		s.State, s.Detail = Failed, err.Error()
		if found, ok := errors.AsType[*finding](err); ok {
			s.State, s.Advice = found.state, found.advice
		}
		if s.State == Failed && errors.Is(context.Cause(ctx), errStepTimeout) {
			s.Detail, s.Advice = fmt.Sprintf("no end within %s", c.opts.Timeout), adviceFor(oz.Timeout)
		}
	}
	c.ended(s)
	return s.State == OK
}

func (c *checker) skip(name string, why error) {
	c.ended(Step{Name: name, State: Skipped, Detail: why.Error()})
}

func (c *checker) ended(s Step) {
	c.steps = append(c.steps, s)
	c.observe(Event{To: c.name, Step: s})
}

func (c *checker) report() Report {
	r := Report{To: c.name, Steps: c.steps, CertificateEnds: c.certificateEnds}
	r.Well = Worst([]Report{r}) == OK
	return r
}

// configure opens the way to Oz.
func (c *checker) configure(context.Context) (string, error) {
	var err error
	if c.client, err = ozclient.New(c.caddy, &c.config, bounded(c.target.Options, c.opts.Timeout)); err != nil {
		return "", failed(err, "Fix the configuration. Placeholders such as {env.NAME} are resolved in this shell's environment, not the service's.")
	}
	return "loads", nil
}

// bounded lets no call last longer than a step may.
func bounded(opts ozclient.Options, limit time.Duration) ozclient.Options {
	opts.Timeout = min(cmp.Or(opts.Timeout, limit), limit)
	opts.UploadTimeout = min(cmp.Or(opts.UploadTimeout, limit), limit)
	return opts
}

// placeholders says what can't be judged for want of a user's request.
func (c *checker) placeholders(context.Context) (string, error) {
	if len(c.needs.address) > 0 {
		return "", unknown(fmt.Errorf("has a value only in a user's request: %s", strings.Join(c.needs.address, ", ")),
			"Check each Oz that it can stand for with --to, and send a request to the site itself.")
	}
	return "", unknown(fmt.Errorf("has a value only in a user's request, and none in the steps below: %s", strings.Join(c.needs.header, ", ")),
		"Oz may answer the site's requests differently. Use fixed values or {env.NAME}, or send a request to the site itself.")
}

// callError says what a call's failure means, with advice.
func (c *checker) callError(err error) error {
	var reason oz.Reason
	if e, ok := errors.AsType[*ozclient.Error](err); ok {
		reason = e.Reason
	}
	return c.blame(err, adviceFor(reason))
}

// blame makes err a failure, unless it can come from a header field that the
// call had to go without.
func (c *checker) blame(err error, advice string) error {
	if len(c.needs.header) > 0 {
		return unknown(fmt.Errorf("%w (perhaps for want of a value from a user's request)", err), advice)
	}
	return failed(err, advice)
}

func (c *checker) login(ctx context.Context) (string, error) {
	life, err := c.client.Login(ctx)
	if err != nil {
		return "", c.callError(err)
	}
	return fmt.Sprintf("access token for %s", life.Round(time.Second)), nil
}

func (c *checker) sessionToken(ctx context.Context) (string, error) {
	token, _, err := c.client.SessionToken(ctx, nil, c.opts.Timeout)
	if err != nil {
		return "", c.callError(err)
	}
	c.token = token
	if s := readSigner(token); s.jwt {
		return s.String(), nil
	}
	return fmt.Sprintf("opaque, %d characters", len(token)), nil
}

// moreTokens is how many session tokens are compared besides the first. Of two
// replicas with keys of their own at one address, all of them come from the
// same one once in 128 runs.
const moreTokens = 7

// sharedKeys compares the keys that signed session tokens: of this upstream,
// which can be several machines at one address, and of the block's others.
func (c *checker) sharedKeys(ctx context.Context) (string, error) {
	if c.token == "" {
		return "", skipped(errEarlier)
	}
	signers := []signer{readSigner(c.token)}
	if c.firstKey == nil {
		c.firstKey, c.firstAt = &signers[0], c.name
	}
	for range moreTokens {
		token, _, err := c.client.SessionToken(ctx, nil, c.opts.Timeout)
		if err != nil {
			return "", c.callError(err)
		}
		signers = append(signers, readSigner(token))
	}
	for _, s := range signers {
		if err := sameKey(*c.firstKey, s); err != nil {
			return "", c.keysError(err)
		}
	}
	if c.firstAt != c.name {
		return fmt.Sprintf("%d session tokens, all signed with the key of %s", len(signers), c.firstAt), nil
	}
	return fmt.Sprintf("%d session tokens, all signed with one key", len(signers)), nil
}

func (c *checker) keysError(err error) error {
	where := "session tokens of this upstream"
	if c.firstAt != c.name {
		where = "session tokens of this upstream and of " + c.firstAt
	}
	err = fmt.Errorf("%s: %w", where, err)
	switch {
	case !errors.Is(err, errUndecided):
		return failed(err, "Give all Oz instances of a block the same JWT keys (API_KEYS_DIR): an instance refuses a capsule, with error_code 14, whose session token another key signed.")
	case c.dial != "" && len(c.target.Config.ReverseProxy.Upstreams) == 1:
		return skipped(err) // nothing says that there are several
	}
	return unknown(err, "Compare the files in API_KEYS_DIR of all instances yourself: they must be the same.")
}

// refuses returns a call that sends what Oz must refuse with the code.
func (c *checker) refuses(capsule []byte, code int) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		a, err := c.send(ctx, capsule)
		if err != nil {
			return "", err
		}
		if a.Verdict.Reason != oz.Container || a.Verdict.Error == nil || a.Verdict.Error.Code != code {
			return "", c.blame(fmt.Errorf("%s, want 400 with error_code %d", aboutAnswer(a), code),
				fmt.Sprintf("Is this Oz API Instant 6.6.1 or newer, with %s after the base path, and no proxy in between that answers by itself? %s",
					oz.FoldersPath, adviceFor(a.Verdict.Reason)))
		}
		return fmt.Sprintf("400, error_code %d, as it should be", code), nil
	}
}

func aboutAnswer(a ozclient.Answer) string {
	if a.Verdict.Error != nil {
		return fmt.Sprintf("Oz answered %d, error_code %d", a.Status, a.Verdict.Error.Code)
	}
	return fmt.Sprintf("Oz answered %d", a.Status)
}

// realCapsule sends the operator's capsule, unless another upstream has had it.
func (c *checker) realCapsule(ctx context.Context) (string, error) {
	if c.capsuleAt != "" {
		return "", skipped(fmt.Errorf("not tried: a capsule can be used once, and %s has had this one", c.capsuleAt))
	}
	c.capsuleAt = c.name
	body := &Sent{MemoryBody: ozclient.NewMemoryBody(c.opts.Capsule)}
	c.observe(Event{To: c.name, Step: Step{Name: capsuleStep}, Sent: body})
	a, err := c.post(ctx, body)
	if err != nil {
		return "", err
	}
	about := fmt.Sprintf("%s to %s: %s, %s of answer, %s of it best shot", aboutAnswer(a),
		size(int64(len(c.opts.Capsule))), outcome(a.Verdict), size(a.Bytes), size(a.Cut))
	if len(c.target.NotJudged) > 0 {
		about += "; not checked: " + strings.Join(c.target.NotJudged, ", ")
	}
	if a.Verdict.Decision == oz.Invalid || a.Verdict.Decision == oz.Unavailable {
		return "", c.blame(errors.New(about), adviceFor(a.Verdict.Reason))
	}
	return about, nil
}

func outcome(v oz.Verdict) string {
	if v.Reason == "" {
		return string(v.Decision)
	}
	return fmt.Sprintf("%s (%s)", v.Decision, v.Reason)
}

func size(n int64) string { return humanize.IBytes(uint64(n)) }

// Sent is the body of a capsule that is being sent.
type Sent struct {
	*ozclient.MemoryBody
	bytes atomic.Int64
}

// Read implements io.Reader.
func (s *Sent) Read(p []byte) (int, error) {
	n, err := s.MemoryBody.Read(p)
	s.bytes.Add(int64(n))
	return n, err
}

// amount returns what tells how much of it has been sent.
func (s *Sent) amount() func() string {
	if s == nil {
		return nil
	}
	return func() string { return fmt.Sprintf("%s of %s sent", size(s.bytes.Load()), size(s.Length())) }
}

func (c *checker) send(ctx context.Context, capsule []byte) (ozclient.Answer, error) {
	return c.post(ctx, ozclient.NewMemoryBody(capsule))
}

// post posts a capsule. The answer is judged as the block would, except for
// what it requires of a user's request.
func (c *checker) post(ctx context.Context, capsule upload.Body) (ozclient.Answer, error) {
	a, err := c.client.Analyze(ctx, nil, capsule, c.target.Policy, nil)
	if err != nil {
		return a, c.callError(err)
	}
	return a, nil
}

// advice says what an operator can do about the failure of a call.
var advice = map[oz.Reason]string{
	oz.Unauthorized:     "Set access_token or credentials to what this Oz accepts. A 403 can also be a Host that APP_ALLOWED_HOSTS doesn't name.",
	oz.Overloaded:       "Oz is busy: limit what it gets with capacity, or add instances.",
	oz.TooLargeForOz:    "Raise the body limit of Oz or of the proxy in front of it, or lower max_capsule.",
	oz.UnexpectedStatus: "Look at base_path and into Oz's log. A 400 with an HTML page can be a Host that APP_ALLOWED_HOSTS doesn't name: header_up Host <name>.",
	oz.MalformedAnswer:  "Something other than Oz answers here, or a proxy in between changes or cuts answers: it is not Oz's own answer.",
	oz.Unreachable:      "Check address, port, TLS and firewalls.",
	oz.ConnectionLost:   "Look into Oz's log: it closed the connection without an answer.",
	oz.Timeout:          "Look at the load of Oz and of its TFSS: an analysis takes about three seconds.",
	oz.Container:        "Capture a new capsule with a new session token. For code 14, ask the vendor's support.",
}

func adviceFor(r oz.Reason) string { return cmp.Or(advice[r], "Look into Oz's log.") }
