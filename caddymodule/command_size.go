package caddymodule

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/internal/diagnose"
)

func sizeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "size --per-minute <capsules>",
		Short: "Calculates what so many capsules a minute need, and prints a block of capacity",
		Long: `
Calculates from the capsules of a minute at the peak how many instances of Oz,
slots and gateways they need, how long they wait, and what memory, links, open
files and calls of Redis go with them. It asks nobody. The table is in comments,
and the block of capacity after it is for each gateway's oz_instant.

The defaults are what Oz's documents say of it, and what was measured of this
module: see docs/sizing.md.`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.Float64("per-minute", 0, "capsules a minute, at the peak")
	flags.String("capsule", "2MiB", "usual size of a capsule")
	flags.String("answer", "400KB", "size of an answer of Oz, with its best shot")
	flags.Duration("upload", 4*time.Second, "how long an upload takes, in the mean")
	flags.Duration("wait", 15*time.Second, "how long a capsule may wait, the option of capacity")
	flags.Duration("idle", 5*time.Minute, "how long clients keep a connection after their capsule; Caddy closes it then")
	flags.Duration("analysis", 3*time.Second, "how long an analysis takes, in the mean")
	flags.Float64("variation", 1, "how much that varies: its standard deviation, divided by --analysis")
	flags.Int("per-instance", 3, "how many analyses an instance of Oz does at once")
	flags.Float64("busy", 80, "how many percent of their time the slots are busy, at most")
	flags.Duration("usual-wait", 3*time.Second, "how long 95 of 100 capsules wait for a slot, at most")
	flags.Int("instances", 0, "instances of Oz, less the spare ones (default: as many as are needed)")
	flags.Int("gateways", 0, "gateways, less the spare ones (default: as many as are needed)")
	flags.Int("cores", 2, "cores of a gateway")
	flags.Float64("link", 10, "Gbit/s of a gateway's link, in each direction")
	flags.Int("spare", 1, "how many instances of Oz, and how many gateways, may be lost")
	flags.Bool("json", false, "print one JSON document")
	cobra.CheckErr(cmd.MarkFlagRequired("per-minute"))
	cmd.RunE = runSize
	return cmd
}

func runSize(cmd *cobra.Command, _ []string) error {
	cmd.SilenceUsage = true // it was called correctly
	d, err := demandOf(cmd.Flags())
	if err != nil {
		return err
	}
	s := diagnose.Size(d)
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return diagnose.WriteSize(cmd.OutOrStdout(), s)
	}
	return diagnose.PrintSize(cmd.OutOrStdout(), d, s)
}

func demandOf(flags *pflag.FlagSet) (d diagnose.Demand, err error) {
	d.PerMinute, _ = flags.GetFloat64("per-minute")
	if d.Capsule, err = sizeFlag(flags, "capsule"); err != nil {
		return d, err
	}
	if d.Answer, err = sizeFlag(flags, "answer"); err != nil {
		return d, err
	}
	d.Upload, _ = flags.GetDuration("upload")
	d.Wait, _ = flags.GetDuration("wait")
	d.Idle, _ = flags.GetDuration("idle")
	d.Analysis, _ = flags.GetDuration("analysis")
	d.Variation, _ = flags.GetFloat64("variation")
	d.PerInstance, _ = flags.GetInt("per-instance")
	d.Busy, _ = flags.GetFloat64("busy")
	d.Busy /= 100
	d.P95, _ = flags.GetDuration("usual-wait")
	d.Instances, _ = flags.GetInt("instances")
	d.Gateways, _ = flags.GetInt("gateways")
	d.Cores, _ = flags.GetInt("cores")
	d.Link, _ = flags.GetFloat64("link")
	d.Link *= 1e9
	d.Spare, _ = flags.GetInt("spare")
	return d, d.Check()
}

func sizeFlag(flags *pflag.FlagSet, name string) (int64, error) {
	text, _ := flags.GetString(name)
	n, err := humanize.ParseBytes(text)
	if err != nil || n > 1<<40 {
		return 0, fmt.Errorf("--%s: not a size (want one such as 2MiB)", name)
	}
	return int64(n), nil
}
