package caddymodule

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/net/http/httpguts"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
)

func attackCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "attack --to <site> --path <path> (--capsule <file>... | --sandbox <url>)",
		Short: "Attacks your own deployment, as others of its kind have been attacked",
		Long: `
Tries on a deployed chain of gateway and app the attacks that software of this
kind has fallen to: forged headers in every spelling, trailers, upgrades,
malformed requests, replays and more. It needs nothing of the app: it first
learns how an undecided request, a refused one and a genuine SUCCESS are
answered, and a row is BROKEN when a forged request gets the answer that only a
genuine SUCCESS gets. Attack your own site only, and rather a copy of it than
production: a forged request that is let in acts on the app as a user's does.

It announces how many requests it will send, where and how fast. Capsules are genuine ones that were
never sent: --capsule names files with ones that end in SUCCESS, --declined such
as end in DECLINED, and --sandbox the sandbox that is the gateway's Oz, which
makes as many as are wanted. Each can be used once: a row for which there is
none left is NOT TRIED, which is not a pass.

The exit code is 0 only if every row was tried and holds, 1 if one is broken,
and 2 if something could not be told or tried.`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.String("to", "", "the site, such as https://app.example.com")
	flags.String("path", "", "the protected path, such as /verify")
	flags.StringArray("capsule", nil, "a file with a capsule that ends in SUCCESS; may be repeated")
	flags.StringArray("declined", nil, "a file with a capsule that ends in DECLINED; may be repeated")
	flags.String("sandbox", "", "the sandbox to have capsules from")
	flags.StringArray("header", nil, `a field for every request, such as "Cookie: session=…"; may be repeated`)
	flags.Int("requests", 1000, "send at most so many requests")
	flags.Float64("rate", 20, "send at most so many requests a second")
	flags.Duration("timeout", 30*time.Second, "for each request")
	flags.String("ca", "", "a PEM file with the certificates that the site's is checked by")
	flags.Bool("insecure", false, "do not check the site's certificate")
	flags.Bool("json", false, "print one JSON document at the end")
	cobra.CheckErr(cmd.MarkFlagRequired("to"))
	cobra.CheckErr(cmd.MarkFlagRequired("path"))
	cmd.MarkFlagsOneRequired("capsule", "sandbox")
	cmd.MarkFlagsMutuallyExclusive("capsule", "sandbox")
	cmd.MarkFlagsMutuallyExclusive("declined", "sandbox")
	cmd.MarkFlagsMutuallyExclusive("ca", "insecure")
	cmd.RunE = caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) {
		cmd.SilenceUsage = true // it was called correctly
		return runAttack(cmd)
	})
	return cmd
}

// Errors that end an attack whose output has said everything.
var (
	errBroken  = errors.New("some rows are broken")
	errNotSure = errors.New("some rows were not tried, or could not be told")
)

const notSureStatus = 2

func runAttack(cmd *cobra.Command) (int, error) {
	opts, err := attackOptions(cmd.Flags())
	if err != nil {
		return 1, err
	}
	out, say, table := cmd.OutOrStdout(), cmd.OutOrStdout(), cmd.OutOrStdout()
	asJSON, _ := cmd.Flags().GetBool("json")
	if asJSON {
		say, table = cmd.ErrOrStderr(), io.Discard
	}
	ctx, line, end := longWork(cmd)
	printer := diagnose.NewPrinter(table, line)
	report, err := diagnose.Attack(ctx, opts, func(p diagnose.AttackPlan) { p.Print(say); printer.Learning(p) }, printer.PrintRow)
	end()
	if err != nil {
		return 1, err
	}
	if !asJSON {
		report.PrintSummary(out)
	} else if err := diagnose.WriteAttack(out, report); err != nil {
		return 1, err
	}
	switch report.State() {
	case diagnose.Broken:
		return 1, errBroken
	case diagnose.Unknown:
		return notSureStatus, errNotSure
	}
	return 0, nil
}

func attackOptions(flags *pflag.FlagSet) (opts diagnose.AttackOptions, err error) {
	if opts.To, err = urlFlag(flags, "to"); err != nil {
		return opts, err
	}
	if opts.Path, _ = flags.GetString("path"); !strings.HasPrefix(opts.Path, "/") || strings.ContainsAny(opts.Path, " ?#\r\n") {
		return opts, errors.New("--path: not a path (want one such as /verify)")
	}
	if opts.To.Path != "" && opts.To.Path != "/" {
		return opts, errors.New("--to: has a path (want it in --path)")
	}
	if opts.Fields, err = fieldFlags(flags); err != nil {
		return opts, err
	}
	opts.Requests, _ = flags.GetInt("requests")
	opts.Rate, _ = flags.GetFloat64("rate")
	opts.Timeout, _ = flags.GetDuration("timeout")
	if opts.TLS, err = attackTLS(flags); err != nil {
		return opts, err
	}
	opts.Capsules, err = attackCapsules(flags)
	return opts, err
}

// urlFlag reads the address of a server. Its text isn't quoted: it can hold a password.
func urlFlag(flags *pflag.FlagSet, name string) (*url.URL, error) {
	text, _ := flags.GetString(name)
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("--%s: not the URL of a server (want one such as https://app.example.com)", name)
	}
	return u, nil
}

// fieldFlags reads --header. Values are secrets, and not quoted.
func fieldFlags(flags *pflag.FlagSet) ([]string, error) {
	fields, _ := flags.GetStringArray("header")
	for _, field := range fields {
		name, value, found := strings.Cut(field, ":")
		if !found || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, errors.New(`--header: not a header field (want "Name: value")`)
		}
	}
	return fields, nil
}

func attackTLS(flags *pflag.FlagSet) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	config.InsecureSkipVerify, _ = flags.GetBool("insecure")
	file, _ := flags.GetString("ca")
	if file == "" {
		return config, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--ca: no certificate in %s", file)
	}
	return config, nil
}

func attackCapsules(flags *pflag.FlagSet) (c *diagnose.Capsules, err error) {
	c = new(diagnose.Capsules)
	if flags.Changed("sandbox") {
		c.Sandbox, err = urlFlag(flags, "sandbox")
		return c, err
	}
	for name, list := range map[string]*[][]byte{"capsule": &c.Success, "declined": &c.Declined} {
		files, _ := flags.GetStringArray(name)
		for _, file := range files {
			capsule, err := readCapsule(file)
			if err != nil {
				return nil, err
			}
			*list = append(*list, capsule)
		}
	}
	return c, nil
}
