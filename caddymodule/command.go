package caddymodule

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/oz"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/ozclient"
	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:      "oz-instant",
		Short:     "Checks, watches, attacks and sizes an Oz Instant deployment, explains answers of Oz, and verifies seals",
		CobraFunc: ozInstantCommand,
	})
}

// ozInstantCommand refuses a subcommand that doesn't exist. Cobra by itself
// would print help and exit with 0, and a script with a typo would go on.
func ozInstantCommand(cmd *cobra.Command) {
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q (want check, status, explain, verify, attack or size)", args[0])
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(checkCommand(), statusCommand(), explainCommand(), verifyCommand(), attackCommand(), sizeCommand())
}

// Errors that end a command whose output has said everything.
var (
	errChecksFailed = errors.New("some checks failed")
	errNotJudged    = errors.New("some things can't be judged from here")
	errNoSeal       = errors.New("this seal proves nothing")
)

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check --to <url> [--capsule <file>] [--json] [--textfile <file>]",
		Short: "Checks whether an Oz Instant deployment can be used",
		Long: `
Checks an Oz Instant deployment from where this machine stands: name, connection
and certificate, access token, session token, whether one key signs all session
tokens, what Oz says to an empty and to a garbage capsule, and, with --capsule,
what it decides about a real one (which can be used once: the first upstream
gets it). Each failure comes with advice.

With --config every oz_instant block of a configuration is checked, each of its
upstreams by itself, with the block's own transport and access token. What has
a value only in a user's request is reported as unknown.

The exit code is 0 only if nothing failed and nothing is unknown.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().String("to", "", "where Oz is, such as https://oz.internal or http://10.0.0.7:8080/base")
	cmd.Flags().String("access-token", "", "the access token, if Oz wants one; {env.NAME} and {file./path} work")
	cmd.Flags().String("email", "", "the account to log in with, instead of an access token")
	cmd.Flags().String("password", "", "its password; {env.NAME} and {file./path} work")
	cmd.Flags().String("capsule", "", "a file with a capsule to send")
	cmd.Flags().Duration("timeout", 30*time.Second, "for each step")
	cmd.Flags().Bool("json", false, "print one JSON document at the end")
	cmd.Flags().String("textfile", "", "also write metrics to this file, for the textfile collector of Prometheus's node_exporter")
	addConfigFlags(cmd)
	cmd.MarkFlagsOneRequired("to", "config")
	cmd.MarkFlagsMutuallyExclusive("to", "config")
	cmd.MarkFlagsRequiredTogether("email", "password")
	cmd.MarkFlagsMutuallyExclusive("access-token", "email")
	cmd.RunE = runCheck
	return cmd
}

func runCheck(cmd *cobra.Command, _ []string) error {
	cmd.SilenceUsage = true // it was called correctly
	targets, err := checkTargets(cmd)
	if err != nil {
		return err
	}
	var opts diagnose.CheckOptions
	if opts.Capsule, err = capsuleFlag(cmd); err != nil {
		return err
	}
	if opts.Timeout, _ = cmd.Flags().GetDuration("timeout"); opts.Timeout <= 0 {
		return errors.New("--timeout: must be greater than zero")
	}
	textfile, _ := cmd.Flags().GetString("textfile")
	if textfile != "" && filepath.Ext(textfile) != ".prom" {
		return fmt.Errorf("--textfile: invalid name %q (want one that ends in .prom: node_exporter ignores others)", textfile)
	}
	start := time.Now()
	out, table := cmd.OutOrStdout(), cmd.OutOrStdout()
	asJSON, _ := cmd.Flags().GetBool("json")
	if asJSON {
		table = io.Discard
	}
	ctx, line, end := longWork(cmd)
	reports, err := diagnose.Check(ctx, targets, opts, diagnose.NewPrinter(table, line).Print)
	end()
	if err != nil {
		return err
	}
	if asJSON {
		if err := diagnose.WriteJSON(out, reports); err != nil {
			return err
		}
	}
	if textfile != "" {
		if err := diagnose.WriteTextfile(textfile, reports, start); err != nil {
			return fmt.Errorf("--textfile: %w", err)
		}
	}
	switch diagnose.Worst(reports) {
	case diagnose.Failed:
		return errChecksFailed
	case diagnose.Unknown:
		return errNotJudged
	}
	return nil
}

// longWork returns a line for progress, and a context that ends with a signal:
// the line must be erased before the command ends. The second signal ends it.
func longWork(cmd *cobra.Command) (ctx context.Context, line *progress.Line, end func()) {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	line = progress.New(cmd.ErrOrStderr())
	return ctx, line, func() { line.Close(); stop() }
}

func capsuleFlag(cmd *cobra.Command) ([]byte, error) {
	file, _ := cmd.Flags().GetString("capsule")
	if file == "" {
		return nil, nil
	}
	return readCapsule(file)
}

func readCapsule(file string) ([]byte, error) {
	capsule, err := os.ReadFile(file)
	if err == nil && len(capsule) == 0 {
		err = fmt.Errorf("%s is empty", file)
	}
	return capsule, err
}

func checkTargets(cmd *cobra.Command) ([]diagnose.Target, error) {
	if to, _ := cmd.Flags().GetString("to"); to != "" {
		t, err := targetAt(cmd, to)
		return []diagnose.Target{t}, err
	}
	handlers, err := blocks(cmd)
	if err != nil {
		return nil, err
	}
	var targets []diagnose.Target
	for _, h := range handlers {
		targets = append(targets, h.target())
	}
	return targets, nil
}

// targetAt describes an Oz by the flags alone.
func targetAt(cmd *cobra.Command, to string) (diagnose.Target, error) {
	t := defaultHandler().target()
	var err error
	if t.Config, err = configAt(to); err != nil {
		return t, err
	}
	t.Name = to
	t.Config.AccessToken, _ = cmd.Flags().GetString("access-token")
	if email, _ := cmd.Flags().GetString("email"); email != "" {
		password, _ := cmd.Flags().GetString("password")
		t.Config.Credentials = &ozclient.Credentials{Email: email, Password: password}
	}
	return t, nil
}

// configAt describes the way to an Oz by its URL.
func configAt(to string) (ozclient.Config, error) {
	u, err := url.Parse(to)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		// The text isn't quoted: it can hold a password.
		return ozclient.Config{}, errors.New("--to: not the URL of an Oz (want one such as https://oz.internal)")
	}
	proxy, port := new(reverseproxy.Handler), "80"
	if u.Scheme == "https" {
		proxy.TransportRaw, port = json.RawMessage(`{"protocol":"http","tls":{}}`), "443"
	}
	proxy.Upstreams = reverseproxy.UpstreamPool{{Dial: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))}}
	return ozclient.Config{ReverseProxy: proxy, BasePath: strings.TrimSuffix(u.Path, "/")}, nil
}

func explainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain <answer.json>",
		Short: "Explains a saved answer of Oz: the decision, what is cut, what the app would get",
		Long: `
Reads an answer of Oz from a file, or from standard input if the file is -, and
says what oz_instant would decide and why, what it would cut out, and what the
app or the client would get. With --config as every oz_instant block of a
configuration would do it, except for what these require of a user's request.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().Int("status", http.StatusCreated, "the HTTP status that the answer had")
	cmd.Flags().Bool("json", false, "print one JSON document")
	addConfigFlags(cmd)
	cmd.RunE = runExplain
	return cmd
}

func runExplain(cmd *cobra.Command, args []string) error {
	cmd.SilenceUsage = true // it was called correctly
	status, _ := cmd.Flags().GetInt("status")
	handlers := []*Handler{defaultHandler()}
	if config, _ := cmd.Flags().GetString("config"); config != "" {
		var err error
		if handlers, err = blocks(cmd); err != nil {
			return err
		}
	}
	answer, err := readAnswerFile(cmd, args[0])
	if err != nil {
		return err
	}
	var list []diagnose.Explanation
	for _, h := range handlers {
		e, err := h.explain(status, answer)
		if err != nil {
			return err
		}
		list = append(list, e)
	}
	out := cmd.OutOrStdout()
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return diagnose.WriteExplanations(out, list)
	}
	for i, e := range list {
		if i > 0 {
			fmt.Fprintln(out)
		}
		if err := e.Print(out); err != nil {
			return err
		}
	}
	return nil
}

func verifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify --jwks <url|file> --audience <aud> [--issuer <iss>] [--folder <file>] [--json] <token|->",
		Short: "Verifies a seal, the value of X-Oz-Seal, and shows its claims",
		Long: `
Verifies a seal, which is read from standard input if the argument is -, by the
keys that a site publishes. --jwks is a file with these keys or their URL; that
of the site alone, such as https://app.example.com, means
` + diagnose.SealKeysPath + ` there.

The exit code is 0 if the seal holds. That says that the claims are true, and
not that the decision is SUCCESS: read it. Otherwise everything that doesn't
hold is printed, and the exit code is 1.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().String("jwks", "", "where the keys are: the site's URL, that of its JWK Set, or a file")
	cmd.Flags().String("audience", "", "the audience that the seal must have")
	cmd.Flags().String("issuer", "oz_instant", "the issuer that the seal must have")
	cmd.Flags().String("folder", "", "a file with the folder document, byte for byte as it was delivered")
	cmd.Flags().Bool("plain-http", false, "fetch the keys over http from another machine, too")
	cmd.Flags().Bool("json", false, "print one JSON document")
	_ = cmd.MarkFlagRequired("jwks") // these flags exist
	_ = cmd.MarkFlagRequired("audience")
	cmd.RunE = runVerify
	return cmd
}

func runVerify(cmd *cobra.Command, args []string) error {
	cmd.SilenceUsage = true // it was called correctly
	rules, err := sealRules(cmd)
	if err != nil {
		return err
	}
	token, err := sealArgument(cmd, args[0])
	if err != nil {
		return err
	}
	from, _ := cmd.Flags().GetString("jwks")
	plainHTTP, _ := cmd.Flags().GetBool("plain-http")
	keys, err := diagnose.LoadSealKeys(cmd.Context(), from, plainHTTP)
	if err != nil {
		return fmt.Errorf("--jwks: %w", err)
	}
	seal := diagnose.VerifySeal(token, keys, rules)
	write := seal.Print
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		write = seal.WriteJSON
	}
	if err := write(cmd.OutOrStdout()); err != nil {
		return err
	}
	if !seal.Holds {
		return errNoSeal
	}
	return nil
}

func sealRules(cmd *cobra.Command) (rules diagnose.SealRules, err error) {
	rules.Audience, _ = cmd.Flags().GetString("audience")
	rules.Issuer, _ = cmd.Flags().GetString("issuer")
	if rules.Audience == "" || rules.Issuer == "" {
		return rules, errors.New("--audience, --issuer: must not be empty")
	}
	if file, _ := cmd.Flags().GetString("folder"); file != "" {
		rules.Folder, err = os.ReadFile(file)
	}
	return rules, err
}

// sealArgument returns the seal, less the end of its line.
func sealArgument(cmd *cobra.Command, arg string) (string, error) {
	if arg != "-" {
		return arg, nil
	}
	text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), diagnose.MaxSeal+3)) // one byte too many, and a line end
	return strings.TrimRight(string(text), "\r\n"), err
}

func defaultHandler() *Handler {
	h := new(Handler)
	h.setDefaults()
	h.compile()
	return h
}

// readAnswerFile reads the answer once: several blocks look at it, and standard
// input can't be read again.
func readAnswerFile(cmd *cobra.Command, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(cmd.InOrStdin())
	}
	return os.ReadFile(name)
}

// addConfigFlags adds the flags that name a configuration.
func addConfigFlags(cmd *cobra.Command) {
	cmd.Flags().StringP("config", "c", "", "a configuration file: every oz_instant block in it is looked at")
	cmd.Flags().StringP("adapter", "a", "", "the adapter for the configuration file, if it is neither a Caddyfile nor JSON")
}

// blocks returns the oz_instant handlers of the configuration that the flags
// name. They are validated and not provisioned: a check of Oz needs nothing
// else of the configuration.
func blocks(cmd *cobra.Command) ([]*Handler, error) {
	file, _ := cmd.Flags().GetString("config")
	adapter, _ := cmd.Flags().GetString("adapter")
	config, _, _, err := caddycmd.LoadConfig(file, adapter)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(config, &tree); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var found []*Handler
	if err := findHandlers(tree, &found); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s: no oz_instant in it", file)
	}
	return found, nil
}

// findHandlers looks through a configuration for our handler, wherever it is.
func findHandlers(tree any, found *[]*Handler) error {
	switch node := tree.(type) {
	case []any:
		for _, child := range node {
			if err := findHandlers(child, found); err != nil {
				return err
			}
		}
	case map[string]any:
		if node["handler"] == "oz_instant" {
			h, err := handlerOf(node)
			if err != nil {
				return fmt.Errorf("oz_instant: %w", err)
			}
			*found = append(*found, h)
		}
		for _, name := range slices.Sorted(maps.Keys(node)) { // in the same order each time
			if err := findHandlers(node[name], found); err != nil {
				return err
			}
		}
	}
	return nil
}

// handlerOf reads a handler as strictly as Caddy does when it loads one, and
// takes away the key that names the module, as Caddy does.
func handlerOf(node map[string]any) (*Handler, error) {
	delete(node, "handler")
	raw, err := json.Marshal(node)
	if err != nil {
		return nil, err
	}
	h := new(Handler)
	if err := caddy.StrictUnmarshalJSON(raw, h); err != nil {
		return nil, err
	}
	h.setDefaults()
	if err := h.Validate(); err != nil {
		return nil, err
	}
	h.compile()
	return h, nil
}

// target describes the block to diagnose.
func (h *Handler) target() diagnose.Target {
	t := diagnose.Target{Config: h.Config, Options: h.options(), Policy: h.policy}
	for _, r := range h.Require {
		t.NotJudged = append(t.NotJudged, "require "+r.Path+" "+r.Value)
	}
	return t
}

// explain does with a saved answer what ServeHTTP does with a fresh one.
func (h *Handler) explain(status int, doc []byte) (diagnose.Explanation, error) {
	answer, e := diagnose.Explain(status, doc, h.target())
	a := attempt{liveness: answer}
	if h.Biometry != nil && answer.Verdict.Decision == oz.Success {
		if firstOfQuality(answer) == nil {
			a.match = &match{answer: ozclient.Answer{Verdict: oz.ReasonVerdict(oz.BestShotMissing)}}
		} else {
			e.NotJudged = append(e.NotJudged, "face matching, which comes next and can end differently")
		}
	}
	res := newResult(a, h.BestShot == bestShotAttach)
	e.Decision, e.Reason = res.verdict.Decision, res.verdict.Reason
	if !h.forwards(e.Decision) {
		p := h.problem(res)
		e.Client = &diagnose.ForClient{Status: p.Status, Problem: p.document()}
		return e, nil
	}
	var err error
	e.App, err = h.forApp(res)
	return e, err
}

func (h *Handler) forApp(res *Result) (*diagnose.ForApp, error) {
	doc, err := h.body(res)
	if err != nil {
		return nil, err
	}
	app := &diagnose.ForApp{Header: make(map[string]string), Body: doc.body}
	header := deliver(&http.Request{Header: make(http.Header)}, res, doc).Header
	for name := range header {
		app.Header[name] = header.Get(name)
	}
	if strings.HasPrefix(doc.mediaType, "multipart/") {
		shots := res.liveness.BestShots
		app.BestShots = len(shots) - unusable(shots)
		app.Body, err = h.folders(res)
	}
	return app, err
}
