// Command bench measures what oz_instant costs, on any Linux machine with Go and nothing else.
//
//	bench [compare] [flags]       oz_instant beside a plain Caddy that makes the same two hops and never looks at the JSON
//	bench peers     [flags]       oz_instant beside what an operator would use instead: nginx, Express, HAProxy, plain Caddy
//	bench profile   [flags]       what the gateway spends its CPU time on
//	bench capacity  [flags]       many more capsules than Oz can take, also beside hostile uploads: is Oz kept busy
//	bench phones    [flags]       many slow phones at once: how much of the gateway's memory they take
//	bench sizing    [flags]       loads up to 10,000 capsules a minute: what caddy oz-instant size predicts, beside what is measured
//	bench replay    [flags]       each capsule to two gateways with one Redis at the same instant: does it count once
//	bench soak      [flags]       everything that can go wrong, for as long as you like: is every capsule accounted for
//	bench fleet     [flags]       three gateways, three Oz and a Redis, killed one after the other: the same, and is Oz kept busy
//
// Each has --help.
//
// The gateway is a process of its own, and only that is measured: the clients, the stand-in for Oz and the app run in bench. A run
// in which anything went wrong ends with an error and without figures. Replay and fleet take place once more where something came too
// late on a machine that stood still meanwhile.
package main

import (
	"github.com/spf13/cobra"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
)

func main() { cli.Main(rootCommand()) }

// rootCommand is compare itself, with the other commands below it.
func rootCommand() *cobra.Command {
	root := compareCommand()
	root.Use = "bench"
	root.Short = "Measure what oz_instant costs"
	root.Long = root.Short + ".\n\nWithout a command, bench does what bench compare does."
	root.SilenceUsage = true
	root.AddCommand(compareCommand(), peersCommand(), profileCommand(), capacityCommand(), phonesCommand(), sizingCommand(), replayCommand(), soakCommand(), fleetCommand(), serveOzCommand())
	return root
}
