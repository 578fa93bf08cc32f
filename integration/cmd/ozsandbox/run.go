package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
	"github.com/oz-instant/caddy-oz-instant/integration/demo"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// settings are the flags of run.
type settings struct {
	oz, app     string
	allowRemote bool
	quiet       bool
	tokenPath   string
	photos      []string
	options     sandbox.Options
}

func readSettings(args []string, stderr io.Writer) (settings, bool, error) {
	var s settings
	o := &s.options
	flags := flag.NewFlagSet("ozsandbox run", flag.ContinueOnError)
	flags.StringVar(&s.oz, "oz", "127.0.0.1:9000", "where the stand-in for Oz listens")
	flags.StringVar(&s.app, "app", "127.0.0.1:3000", "where the demo app listens; empty for no app")
	flags.BoolVar(&s.allowRemote, "allow-remote", false, "allow addresses that other machines can reach; anybody can forge capsules for a sandbox")
	flags.BoolVar(&s.quiet, "quiet", false, "do not log requests")
	flags.StringVar(&s.tokenPath, "session-token-path", demo.DefaultSessionTokenPath, "where the demo page asks the gateway for a session token")

	photos := flags.String("photos", "alice,bob", "users of the demo app who have a profile photo, separated by commas")

	fault := flags.String("fault", "", "what goes wrong; see ozsandbox faults")
	flags.DurationVar(&o.AnalysisTime, "analysis-time", 300*time.Millisecond, "how long an analysis takes; the real one needs about 3s")
	flags.IntVar(&o.Parallel, "parallel", 3, "how many capsules at once; 0 for any number")
	flags.StringVar(&o.Overflow, "overflow", sandbox.OverflowQueue, "what happens to capsules beyond -parallel: queue or 503")
	flags.BoolVar(&o.SlotAfterUpload, "slot-after-upload", false, "count a capsule against -parallel only when it is in whole")
	bestShot := cli.Size(400 << 10)
	flags.Var(&bestShot, "best-shot-size", "length of image_b64; 0 for the smallest")
	flags.Var((*cli.Size)(&o.MaxCapsule), "max-capsule", "refuse larger capsules with 413; 0 for no limit")
	singleUse := flags.Bool("single-use", true, "refuse a session token that was used before")
	flags.BoolVar(&o.AcceptAny, "accept-any", false, "take any body that is no capsule for a good one: for load generators")
	flags.StringVar(&o.KeysDir, "keys", "", "folder with jwt.key and jwt.pub (P-384), as API_KEYS_DIR; empty for a fresh pair")
	flags.DurationVar(&o.TokenLife, "token-life", 900*time.Second, "how long a session token is good for")
	flags.StringVar(&o.AccessToken, "access-token", "", "ask for this X-Forensic-Access-Token")
	flags.Func("account", "an account, as `email:password`, that may log in for an access token, which is then asked for; may be repeated", func(text string) error {
		email, password, err := readAccount(text)
		if o.Accounts == nil {
			o.Accounts = map[string]string{}
		}
		o.Accounts[email] = password
		return err
	})
	flags.DurationVar(&o.SessionLife, "access-token-life", 15*time.Minute, "how long an access token is good for")
	sliding := flags.Bool("sliding", true, "count -access-token-life from the last use; otherwise from the log-in or refresh")
	flags.Var((*cli.Size)(&o.MaxImage), "max-image", "refuse larger images to match; 0 for 10 MB")
	flags.BoolVar(&o.FewMediaFail, "few-media-fail", false, "answer fewer than two images to match with a FAILED folder instead of 400")
	flags.Float64Var(&o.OperatorFrom, "operator-from", 0, "two photos that are at least so alike, and not enough for SUCCESS, are OPERATOR_REQUIRED; 0 for never")
	hosts := flags.String("hosts", "", "serve these Host names only, separated by commas, as APP_ALLOWED_HOSTS")
	flags.StringVar(&o.BasePath, "base-path", "", "put this before every path")
	flags.BoolVar(&o.StrictSlash, "strict-slash", false, "serve only the guide's spelling of paths")
	flags.BoolVar(&o.LegacyMessages, "legacy-messages", false, "the oldest error texts, which tell causes apart")
	echo := flags.Bool("echo-meta", true, "echo the app's metadata in meta_data")

	help, err := cli.Parse(flags, args, stderr)
	if help || err != nil {
		return s, help, err
	}
	o.BestShotSize, o.ReuseTokens, o.NoEcho, o.FixedExpiry = int64(bestShot), !*singleUse, !*echo, !*sliding
	s.photos = strings.Split(*photos, ",")
	if *hosts != "" {
		o.AllowedHosts = strings.Split(*hosts, ",")
	}
	if o.Fault, err = sandbox.ParseFault(*fault); err != nil {
		return s, false, err
	}
	for _, addr := range []string{s.oz, s.app} {
		if addr != "" && !s.allowRemote && !loopback(addr) {
			return s, false, fmt.Errorf("%s can be reached from other machines: give -allow-remote if that is what you want", addr)
		}
	}
	return s, false, nil
}

// readAccount splits at the first colon: there may be more in a password.
func readAccount(text string) (email, password string, err error) {
	email, password, _ = strings.Cut(text, ":")
	if email == "" || password == "" {
		err = fmt.Errorf("want email:password")
	}
	return email, password, err
}

// loopback reports whether only this machine can reach an address. Names are not looked up: what they mean can change.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	set, help, err := readSettings(args, stderr)
	if help || err != nil {
		return err
	}
	if !set.quiet {
		set.options.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	s, err := sandbox.New(set.options)
	if err != nil {
		return err
	}
	defer s.Close()

	var all servers
	defer all.stop(s)
	addr, err := all.start(ctx, set.oz, s, s.Listener)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "sandbox of Oz Instant  http://%s%s\n", addr, set.options.BasePath)
	if set.app != "" {
		app := demo.New(demo.Options{Capture: capsuleMaker(s), SessionTokenPath: set.tokenPath, Photos: set.photo})
		if addr, err = all.start(ctx, set.app, app, nil); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "demo app               http://%s/   (let people in through the gateway: asked directly, it has no decision to go by)\n", addr)
	}
	if f := set.options.Fault; f != (sandbox.Fault{}) {
		fmt.Fprintf(stdout, "fault                  %s\n", f)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-all.failed:
		return err
	}
}

// photo is the profile photo of a user of the demo app.
func (s settings) photo(_ context.Context, user string) ([]byte, bool) {
	if !slices.Contains(s.photos, user) {
		return nil, false
	}
	return sandbox.Portrait(user, sandbox.DefaultPortraitSize), true
}

// capsuleMaker stands for the vendor's SDK. Besides outcomes it knows the kinds of damage.
func capsuleMaker(s *sandbox.Sandbox) func(context.Context, demo.Scene) ([]byte, error) {
	return func(_ context.Context, scene demo.Scene) ([]byte, error) {
		spec := sandbox.CapsuleSpec{
			Outcome: scene.Outcome, Person: scene.Person, SessionToken: scene.SessionToken, PayloadSize: 2 << 20,
		}
		if _, damage := sandbox.Damages()[sandbox.Damage(scene.Outcome)]; damage {
			spec.Outcome, spec.Damage = "", sandbox.Damage(scene.Outcome)
		}
		if spec.Outcome != "" && !slices.Contains(sandbox.Outcomes(), spec.Outcome) {
			return nil, fmt.Errorf("outcome: want one of %q, or a kind of damage", sandbox.Outcomes())
		}
		return s.Capsule(spec), nil
	}
}

// servers are HTTP servers that start and stop together.
type servers struct {
	all    []*http.Server
	failed chan error
}

func (ss *servers) start(ctx context.Context, addr string, h http.Handler, wrap func(net.Listener) net.Listener) (net.Addr, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if wrap != nil {
		l = wrap(l)
	}
	if ss.failed == nil {
		ss.failed = make(chan error, 2)
	}
	// HTTP/2 without TLS as well, for gateways that are told to speak it.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, Protocols: protocols}
	ss.all = append(ss.all, server)
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			ss.failed <- err
		}
	}()
	return l.Addr(), nil
}

// stop lets requests end, but not for long.
func (ss *servers) stop(s *sandbox.Sandbox) {
	s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, server := range ss.all {
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
	}
}
