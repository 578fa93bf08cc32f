package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// capsuleFlags are the flags of capsule.
type capsuleFlags struct {
	oz, accessToken, token, keys string
	email, password              string
	out                          string
	damage                       string
	payload                      sandbox.Size
	spec                         sandbox.CapsuleSpec
}

func capsuleCommand() *cobra.Command {
	c := capsuleFlags{payload: 2 << 20}
	cmd := &cobra.Command{
		Use:   "capsule",
		Short: "Write a capsule to a file, for curl",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.check(); err != nil {
				return err
			}
			return c.write(cmd.Context(), cmd.OutOrStdout())
		},
	}
	c.add(cmd.Flags())
	cobra.CheckErr(cmd.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions(sandbox.Outcomes(), cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func (c *capsuleFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&c.oz, "oz", "http://127.0.0.1:9000", "`URL` of a running sandbox, which is asked for the session token")
	flags.StringVar(&c.accessToken, "access-token", "", "X-Forensic-Access-Token, if the sandbox asks for one")
	flags.Func("account", "`email:password` to log in with, if the sandbox asks for an account", func(text string) (err error) {
		c.email, c.password, err = readAccount(text)
		return err
	})
	flags.StringVar(&c.token, "token", "", "session token to use instead of asking for one")
	flags.StringVar(&c.keys, "keys", "", "`folder` with the keys to sign a session token with, instead of asking for one")
	flags.StringVarP(&c.out, "output", "o", "capsule.bin", "`file` to write; - for standard output")
	flags.StringVar(&c.spec.Outcome, "outcome", sandbox.Success, "how the analysis ends: "+strings.Join(sandbox.Outcomes(), ", "))
	flags.StringVar(&c.spec.Person, "person", "", "`name` of the person in front of the camera, who is seen in the best shot; see ozsandbox photo")
	flags.Var(&c.payload, "size", "size of the media inside")
	flags.IntVar(&c.spec.Media, "media", 1, "number of media")
	flags.StringVar(&c.damage, "damage", "", "`kind` of damage, with Oz's error code: "+damages())
	flags.Func("meta", "app metadata as `name=value`; may be repeated", func(text string) error {
		name, value, found := strings.Cut(text, "=")
		if !found {
			return errors.New("want name=value")
		}
		if c.spec.Meta == nil {
			c.spec.Meta = map[string]string{}
		}
		c.spec.Meta[name] = value
		return nil
	})
}

func (c *capsuleFlags) check() error {
	c.spec.PayloadSize, c.spec.Damage = int64(c.payload), sandbox.Damage(c.damage)
	if c.spec.Damage == sandbox.DamageExpired && c.keys == "" && c.token == "" {
		return errors.New("--damage expired: a running sandbox issues no expired tokens (want --keys, or --token with an old one)")
	}
	return nil
}

func damages() string {
	var names []string
	all := sandbox.Damages()
	for _, d := range slices.Sorted(maps.Keys(all)) {
		names = append(names, fmt.Sprintf("%s (%d)", d, all[d]))
	}
	return strings.Join(names, ", ")
}

func (c *capsuleFlags) write(ctx context.Context, stdout io.Writer) (err error) {
	if c.spec.SessionToken, err = c.sessionToken(ctx); err != nil {
		return fmt.Errorf("session token: %w", err)
	}
	made, err := sandbox.BuildCapsule(c.spec)
	if err != nil {
		return err
	}
	if c.out == "-" {
		_, err := stdout.Write(made)
		return err
	}
	if err := os.WriteFile(c.out, made, 0o600); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: %d bytes, %s, to be posted once and within 900 s:\n", c.out, len(made), c.describe())
	fmt.Fprintf(stdout, "curl -i --data-binary @%s -H 'Content-Type: application/octet-stream' %s%s\n", c.out, c.oz, sandbox.FoldersPath)
	return nil
}

func (c *capsuleFlags) describe() string {
	if c.spec.Damage == sandbox.NoDamage {
		return c.spec.Outcome
	}
	return fmt.Sprintf("damaged (%s) for error code %d", c.spec.Damage, sandbox.Damages()[c.spec.Damage])
}

// sessionToken takes the token that was given, signs one, or asks the sandbox.
func (c *capsuleFlags) sessionToken(ctx context.Context) (string, error) {
	const life = 900 * time.Second
	switch {
	case c.token != "":
		return c.token, nil
	case c.keys != "":
		issued := time.Now()
		if c.spec.Damage == sandbox.DamageExpired {
			issued = issued.Add(-2 * life)
		}
		return sandbox.NewToken(c.keys, issued, life)
	}
	return c.askForToken(ctx)
}

func (c *capsuleFlags) askForToken(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if c.email != "" {
		body, err := json.Marshal(map[string]any{"credentials": map[string]string{"email": c.email, "password": c.password}})
		if err != nil {
			return "", err
		}
		if c.accessToken, err = c.ask(ctx, http.MethodPost, sandbox.AuthPath, body, "access_token"); err != nil {
			return "", fmt.Errorf("log-in: %w", err)
		}
	}
	return c.ask(ctx, http.MethodGet, sandbox.TokenPath, nil, "session_token")
}

// ask makes a call and returns one field of the answer.
func (c *capsuleFlags) ask(ctx context.Context, method, path string, body []byte, field string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.oz, "/")+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.accessToken != "" {
		req.Header.Set("X-Forensic-Access-Token", c.accessToken)
	}
	client := &http.Client{Transport: &http.Transport{}} // no proxy from the environment
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer map[string]any
	err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&answer)
	text, ok := answer[field].(string)
	if err != nil || !ok || text == "" {
		return "", fmt.Errorf("%s answered %s without one", c.oz, resp.Status)
	}
	return text, nil
}
