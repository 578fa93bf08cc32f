package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// order is what the flags of capsule ask for.
type order struct {
	oz, accessToken, token, keys string
	email, password              string
	out                          string
	spec                         sandbox.CapsuleSpec
}

func readOrder(args []string, stderr io.Writer) (order, bool, error) {
	var c order
	flags := flag.NewFlagSet("ozsandbox capsule", flag.ContinueOnError)
	flags.StringVar(&c.oz, "oz", "http://127.0.0.1:9000", "a running sandbox, which is asked for the session token")
	flags.StringVar(&c.accessToken, "access-token", "", "X-Forensic-Access-Token, if the sandbox asks for one")
	flags.Func("account", "the account, as `email:password`, to log in with, if the sandbox asks for that", func(text string) (err error) {
		c.email, c.password, err = readAccount(text)
		return err
	})
	flags.StringVar(&c.token, "token", "", "take this session token instead of asking")
	flags.StringVar(&c.keys, "keys", "", "sign a session token with the keys in this folder instead of asking")
	flags.StringVar(&c.out, "o", "capsule.bin", "file to write; - for standard output")
	flags.StringVar(&c.spec.Outcome, "outcome", sandbox.Success, "how the analysis ends: "+strings.Join(sandbox.Outcomes(), ", "))
	flags.StringVar(&c.spec.Person, "person", "", "who is in front of the camera, and is to be seen in the best shot; see ozsandbox photo")
	payload := cli.Size(2 << 20)
	flags.Var(&payload, "size", "size of the media inside, as in 2MiB")
	flags.IntVar(&c.spec.Media, "media", 1, "how many media")
	damage := flags.String("damage", "", "what is wrong with it: "+damages())
	flags.Func("meta", "app metadata as name=value; may be repeated", func(text string) error {
		name, value, found := strings.Cut(text, "=")
		if !found {
			return fmt.Errorf("want name=value")
		}
		if c.spec.Meta == nil {
			c.spec.Meta = map[string]string{}
		}
		c.spec.Meta[name] = value
		return nil
	})
	help, err := cli.Parse(flags, args, stderr)
	c.spec.PayloadSize, c.spec.Damage = int64(payload), sandbox.Damage(*damage)
	if err == nil && c.spec.Damage == sandbox.DamageExpired && c.keys == "" && c.token == "" {
		err = fmt.Errorf("a running sandbox gives no expired tokens: give -keys, or -token with an old one")
	}
	return c, help, err
}

func damages() string {
	var names []string
	all := sandbox.Damages()
	for _, d := range slices.Sorted(maps.Keys(all)) {
		names = append(names, fmt.Sprintf("%s (%d)", d, all[d]))
	}
	return strings.Join(names, ", ")
}

func capsule(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	c, help, err := readOrder(args, stderr)
	if help || err != nil {
		return err
	}
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

func (c order) describe() string {
	if c.spec.Damage == sandbox.NoDamage {
		return c.spec.Outcome
	}
	return fmt.Sprintf("damaged (%s) for error code %d", c.spec.Damage, sandbox.Damages()[c.spec.Damage])
}

// sessionToken takes the token that was given, signs one, or asks the sandbox.
func (c order) sessionToken(ctx context.Context) (string, error) {
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

func (c order) askForToken(ctx context.Context) (string, error) {
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

// ask makes a call and returns one field of its answer.
func (c order) ask(ctx context.Context, method, path string, body []byte, field string) (string, error) {
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
