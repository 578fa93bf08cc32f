package main

// peer is a configuration of the one Caddy binary. Its Caddyfile may use
//
//	{$ADMIN} {$SITE}  what the gateway listens on
//	{$OZ} {$APP}      where it finds the two behind it
type peer struct {
	name      string
	note      string // for the reader of figures
	caddyfile string
	decides   bool // the app gets a decision and the folder without its best shot
}

var ozInstant = peer{name: "oz_instant", decides: true, caddyfile: `{
	admin {$ADMIN}
}

{$SITE} {
	oz_instant ` + verifyPath + ` http://{$OZ}
	reverse_proxy {$APP}
}
`}

// A plain Caddy does the same work at the sockets with what Caddy brings along: the capsule streams to Oz on a connection of its
// own, the answer comes in, and then the app gets a request. Matching 201 sends any other answer to the client, who then knows
// that the run failed. The capsule is spent when the app's turn comes: the app gets a GET, which is a little less work than the
// folder and the header fields that oz_instant sends along.
//
// The routes of handle_response cannot read the answer, and nothing in Caddy receives one and drops it while it flows. So there
// are two of them: one that does as much work as oz_instant, for CPU, and one that holds as little as can be, for memory.
var (
	// plainReceiving takes in the whole answer, as oz_instant does. For that it has to hold it.
	plainReceiving = peer{
		name: "plain Caddy", note: "plain Caddy here takes in Oz's whole answer and holds it",
		caddyfile: plainCaddyfile("response_buffers 64MiB"),
	}

	// plainUnreading holds nothing of the answer: it closes the connection on it. That saves it the work of receiving, too.
	plainUnreading = peer{
		name: "plain Caddy", note: "plain Caddy here leaves Oz's answer unread and holds nothing of it",
		caddyfile: plainCaddyfile(""),
	}
)

func plainCaddyfile(option string) string {
	return `{
	admin {$ADMIN}
}

{$SITE} {
	reverse_proxy ` + verifyPath + ` http://{$OZ} {
		` + option + `
		rewrite ` + foldersPath + `
		transport http {
			keepalive off
		}
		@folder status 201
		handle_response @folder {
			reverse_proxy {$APP} {
				method GET
			}
		}
	}
}
`
}
