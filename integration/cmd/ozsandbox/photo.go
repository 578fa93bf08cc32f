package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// photo writes the reference photo of a person.
func photo(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("ozsandbox photo", flag.ContinueOnError)
	person := flags.String("person", "", "who is to be seen; without a name, whom a capsule without -person shows")
	width := flags.Int("size", sandbox.DefaultPortraitSize, "width in pixels")
	out := flags.String("o", "photo.jpeg", "file to write; - for standard output")
	if help, err := cli.Parse(flags, args, stderr); help || err != nil {
		return err
	}
	if *width < 1 || *width > 10_000 {
		return fmt.Errorf("no photo is %d pixels wide", *width)
	}
	made := sandbox.Portrait(*person, *width)
	if *out == "-" {
		_, err := stdout.Write(made)
		return err
	}
	if err := os.WriteFile(*out, made, 0o600); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: a photo of %d bytes\n", *out, len(made))
	return nil
}
