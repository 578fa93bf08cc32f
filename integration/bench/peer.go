package main

// peer is a configuration of the one Caddy binary, or of another program. Its directives may use
//
//	{$OZ} {$APP}  addresses of the two upstreams
type peer struct {
	name       string
	note       string   // for the reader of figures
	global     string   // options of all of Caddy
	sites      string   // beside the one that is measured
	directives string   // of the site
	program    *program // nil: Caddy
	env        []string // in addition
	decides    bool     // the app gets a decision and the folder without its best shot
	oneHop     bool     // the client gets Oz's answer, and the app nothing
	protocol   protocol // of clients
}

// caddyfile returns the whole configuration. Caddy must not open port 80 for redirects to a site with TLS.
func (p peer) caddyfile() string {
	site := p.directives
	if p.protocol != h1 {
		site = "tls {$CERT} {$KEY}\n" + site
	}
	return "{\n\tadmin {$ADMIN}\n\tauto_https disable_redirects\n" + p.global + "\n}\n\n{$SITE} {\n" + site + "\n}\n" + p.sites
}

// over returns the peer as a site for clients of a protocol.
func (p peer) over(protocol protocol) peer {
	p.protocol = protocol
	return p
}

var ozInstant = peer{name: "oz_instant", decides: true, directives: `
	oz_instant ` + verifyPath + ` http://{$OZ}
	reverse_proxy {$APP}`}

// ozInstantTrust is oz_instant with what proves a decision, and lets a capsule count once.
var ozInstantTrust = peer{name: "oz_instant", note: ", with seal and replay_guard", decides: true, directives: `
	oz_instant ` + verifyPath + ` http://{$OZ} {
		seal {
			audience app
		}
		replay_guard memory
	}
	reverse_proxy {$APP}`}

// A plain Caddy does the same work at the sockets with what Caddy brings along: the capsule streams to Oz on a connection of its
// own, the answer comes in, and then the app gets a request. Any answer but 201 goes to the client, and fails the run. The capsule
// is spent by the time of the app's turn, so the app gets a GET: a little less work than the folder and the header fields that
// oz_instant sends along.
//
// The routes of handle_response cannot read the answer, and nothing in Caddy receives one and drops it while it flows. So there
// are two of them: one that does as much work as oz_instant, for CPU, and one that buffers as little as possible, for memory.
var (
	// plainReceiving receives the whole answer, as oz_instant does. For that it must buffer it.
	plainReceiving = peer{
		name: "plain Caddy", note: "plain Caddy here receives Oz's whole answer and buffers it",
		directives: plainDirectives("response_buffers 64MiB"),
	}

	// plainUnreading buffers nothing of the answer: it closes the connection on it. That saves the work of receiving it, too.
	plainUnreading = peer{
		name: "plain Caddy", note: "plain Caddy here leaves Oz's answer unread and buffers nothing of it",
		directives: plainDirectives(""),
	}
)

func plainDirectives(option string) string {
	return `
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
	}`
}
