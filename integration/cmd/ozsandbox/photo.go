package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const widest = 10_000 // pixels of a photo

func photoCommand() *cobra.Command {
	var person, out string
	var width int
	cmd := &cobra.Command{
		Use:   "photo",
		Short: "Write the reference photo of a person",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if width < 1 || width > widest {
				return fmt.Errorf("--size: invalid width %d (want 1 to %d pixels)", width, widest)
			}
			made := sandbox.Portrait(person, width)
			if out == "-" {
				_, err := cmd.OutOrStdout().Write(made)
				return err
			}
			if err := os.WriteFile(out, made, 0o600); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: a photo of %d bytes\n", out, len(made))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&person, "person", "", "`name` of the person in the photo; without one, the person that a capsule without --person shows")
	flags.IntVar(&width, "size", sandbox.DefaultPortraitSize, "width in `pixels`")
	flags.StringVarP(&out, "output", "o", "photo.jpeg", "`file` to write; - for standard output")
	return cmd
}
