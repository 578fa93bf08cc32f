package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/oz-instant/caddy-oz-instant/integration/demo"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// settings are the flags of run.
type settings struct {
	oz, app     string
	allowRemote bool
	quiet       bool
	tokenPath   string
	site, admin string
	photos      []string
	fault       string
	bestShot    sandbox.Size
	singleUse   bool
	sliding     bool
	echo        bool
	options     sandbox.Options
}

func runCommand() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the sandbox and the demo app",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.check(); err != nil {
				return err
			}
			return s.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	s.add(cmd.Flags())
	overflows := []string{sandbox.OverflowQueue, sandbox.OverflowRefuse}
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("overflow", cobra.FixedCompletions(overflows, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (s *settings) add(flags *pflag.FlagSet) {
	o := &s.options
	s.bestShot = 400 << 10
	flags.StringVar(&s.oz, "oz", "127.0.0.1:9000", "`address` that the stand-in for Oz listens on")
	flags.StringVar(&s.app, "app", "127.0.0.1:3000", "`address` that the demo app listens on; empty for no app")
	flags.BoolVar(&s.allowRemote, "allow-remote", false, "allow addresses that other machines can reach; anybody can forge capsules for a sandbox")
	flags.BoolVar(&s.quiet, "quiet", false, "log no requests")
	flags.StringVar(&s.tokenPath, "session-token-path", demo.DefaultSessionTokenPath, "`path` on which the demo page asks the gateway for a session token")
	flags.StringVar(&s.site, "site", "", "`URL` of the gateway on this machine, which the demo page may flood; empty for no floods")
	flags.StringVar(&s.admin, "admin", "", "`URL` of Caddy's admin API, for the demo page's view of the gateway; empty for no view")
	flags.StringSliceVar(&s.photos, "photos", []string{"alice", "bob"}, "`users` of the demo app that have a profile photo")

	flags.StringVar(&s.fault, "fault", "", "what goes wrong; see ozsandbox faults")
	flags.DurationVar(&o.AnalysisTime, "analysis-time", 300*time.Millisecond, "duration of an analysis; the real one needs about 3s")
	flags.IntVar(&o.Parallel, "parallel", 3, "number of capsules that are analyzed at once; 0 for any number")
	flags.StringVar(&o.Overflow, "overflow", sandbox.OverflowQueue, "what happens to capsules beyond --parallel: queue or 503")
	flags.BoolVar(&o.SlotAfterUpload, "slot-after-upload", false, "count a capsule against --parallel only once it is complete")
	flags.Var(&s.bestShot, "best-shot-size", "length of image_b64; 0 for the smallest")
	flags.Var((*sandbox.Size)(&o.MaxCapsule), "max-capsule", "refuse larger capsules with 413; 0 for no limit")
	flags.BoolVar(&s.singleUse, "single-use", true, "refuse a session token that was used before")
	flags.BoolVar(&o.AcceptAny, "accept-any", false, "accept any body that isn't a capsule as a good one: for load generators")
	flags.StringVar(&o.KeysDir, "keys", "", "`folder` with jwt.key and jwt.pub (P-384), as API_KEYS_DIR; empty for a fresh pair")
	flags.DurationVar(&o.TokenLife, "token-life", 900*time.Second, "lifetime of a session token")
	flags.StringVar(&o.AccessToken, "access-token", "", "require this X-Forensic-Access-Token")
	flags.Func("account", "`email:password` that may log in for an access token, which is then required; may be repeated", func(text string) error {
		email, password, err := readAccount(text)
		if o.Accounts == nil {
			o.Accounts = map[string]string{}
		}
		o.Accounts[email] = password
		return err
	})
	flags.DurationVar(&o.SessionLife, "access-token-life", 15*time.Minute, "lifetime of an access token")
	flags.BoolVar(&s.sliding, "sliding", true, "count --access-token-life from the last use; otherwise from the log-in or refresh")
	flags.Var((*sandbox.Size)(&o.MaxImage), "max-image", "refuse larger images to match; 0 for 10 MB")
	flags.BoolVar(&o.FewMediaFail, "few-media-fail", false, "answer fewer than two images to match with a FAILED folder instead of 400")
	flags.Float64Var(&o.OperatorFrom, "operator-from", 0, "likeness from which two photos, if not alike enough for SUCCESS, are OPERATOR_REQUIRED; 0 for never")
	flags.StringSliceVar(&o.AllowedHosts, "hosts", nil, "serve these Host `names` only, as APP_ALLOWED_HOSTS")
	flags.StringVar(&o.BasePath, "base-path", "", "put this before every path")
	flags.BoolVar(&o.StrictSlash, "strict-slash", false, "serve only the guide's spelling of paths")
	flags.BoolVar(&o.LegacyMessages, "legacy-messages", false, "use the oldest error texts, which distinguish causes")
	flags.BoolVar(&s.echo, "echo-meta", true, "echo the app's metadata in meta_data")
}

// check completes the options from the flags, and refuses what a sandbox must not do.
func (s *settings) check() (err error) {
	o := &s.options
	o.BestShotSize, o.ReuseTokens, o.NoEcho, o.FixedExpiry = int64(s.bestShot), !s.singleUse, !s.echo, !s.sliding
	if o.Fault, err = sandbox.ParseFault(s.fault); err != nil {
		return err
	}
	for _, addr := range []string{s.oz, s.app} {
		if addr != "" && !s.allowRemote && !loopback(addr) {
			return fmt.Errorf("%s can be reached from other machines (want a loopback address, or --allow-remote)", addr)
		}
	}
	for name, address := range map[string]string{"site": s.site, "admin": s.admin} {
		if u, err := url.Parse(address); address != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("--%s: %q isn't an address (want one such as http://localhost:8080)", name, address)
		}
	}
	return nil
}

// readAccount splits at the first colon: a password may have more of them.
func readAccount(text string) (email, password string, err error) {
	email, password, _ = strings.Cut(text, ":")
	if email == "" || password == "" {
		err = errors.New("want email:password")
	}
	return email, password, err
}

// loopback reports whether only this machine can reach an address. Names are not looked up: what they mean can change.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (s *settings) run(ctx context.Context, stdout, stderr io.Writer) error {
	if !s.quiet {
		s.options.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	oz, err := sandbox.New(s.options)
	if err != nil {
		return err
	}
	defer oz.Close()

	var all servers
	defer all.stop(oz)
	addr, err := all.start(ctx, s.oz, oz, oz.Listener)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "sandbox of Oz Instant  http://%s%s\n", addr, s.options.BasePath)
	if s.app != "" {
		app := demo.New(demo.Options{
			Capture: capsuleMaker(oz), SessionTokenPath: s.tokenPath, Photos: s.photo, Site: s.site, Admin: s.admin, OzSent: oz.AnswerSize,
		})
		if addr, err = all.start(ctx, s.app, app, nil); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "demo app               http://%s/   (let people in through the gateway: asked directly, it has no decision to go by)\n", addr)
	}
	if f := s.options.Fault; f != (sandbox.Fault{}) {
		fmt.Fprintf(stdout, "fault                  %s\n", f)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-all.failed:
		return err
	}
}

// photo returns the profile photo of a user of the demo app.
func (s *settings) photo(_ context.Context, user string) ([]byte, bool) {
	if !slices.Contains(s.photos, user) {
		return nil, false
	}
	return sandbox.Portrait(user, sandbox.DefaultPortraitSize), true
}

// capsuleMaker stands in for the vendor's SDK. Besides outcomes it knows the kinds of damage.
func capsuleMaker(s *sandbox.Sandbox) func(context.Context, demo.Scene) ([]byte, error) {
	return func(_ context.Context, scene demo.Scene) ([]byte, error) {
		spec := sandbox.CapsuleSpec{
			Outcome: scene.Outcome, Person: scene.Person, SessionToken: scene.SessionToken, PayloadSize: 2 << 20, Fault: scene.Fault,
		}
		if scene.Clip != nil {
			spec.Payload = append(scene.Clip, make([]byte, scene.Padding)...)
		}
		if scene.Transaction != "" {
			spec.Meta = map[string]string{"transaction_id": scene.Transaction}
		}
		if _, damage := sandbox.Damages()[sandbox.Damage(scene.Outcome)]; damage {
			spec.Outcome, spec.Damage = "", sandbox.Damage(scene.Outcome)
		}
		if spec.Damage == sandbox.DamageExpired {
			spec.SessionToken = "" // the gateway's is fresh
		}
		return s.MakeCapsule(spec)
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
