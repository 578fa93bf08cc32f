// Command bench measures what oz_instant costs, on any Linux machine with Go and nothing else.
//
//	bench [compare] [flags]       oz_instant beside a plain Caddy that makes the same two hops and never looks at the JSON
//	bench capacity  [flags]       many more capsules than Oz can take: is it kept busy, and are those refused told when to come back
//	bench phones    [flags]       many slow phones at once: what they take of the gateway's memory
//	bench soak      [flags]       everything that can go wrong, for as long as is asked for: is every capsule accounted for
//
// Each takes -h.
//
// The gateway is a process of its own, and the figures are its own: the clients, the stand-in for Oz and the app are in
// bench, and what they use is not counted. A run in which anything went wrong ends with an error and without figures.
package main

import (
	"context"
	"fmt"
	"io"

	"github.com/oz-instant/caddy-oz-instant/integration/cli"
)

func main() { cli.Main("bench", dispatch) }

func dispatch(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	command, args := cli.Command(args, "compare")
	switch command {
	case "compare":
		return compare(ctx, args, stdout, stderr)
	case "capacity":
		return capacity(ctx, args, stdout, stderr)
	case "phones":
		return phones(ctx, args, stdout, stderr)
	case "soak":
		return soak(ctx, args, stdout, stderr)
	}
	return fmt.Errorf("no command %q: want compare, capacity, phones or soak", command)
}
