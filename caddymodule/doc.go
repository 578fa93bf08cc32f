// Package caddymodule is oz_instant: liveness checks for an existing web app
// by one directive of a Caddyfile. See [Handler].
//
// # One capsule's way
//
//  1. [Handler.ServeHTTP] strips what a client could forge (request.go).
//  2. classify says what the request is: a capsule, a request for a session
//     token, something to refuse (problem.go), or something else, which
//     continues undecided (request.go, sessiontoken.go).
//  3. A capsule becomes an upload.Stream, with one rule of progress, and an
//     upload.Lifetime, which says what a client that leaves ends.
//  4. upload.Gate gives it a slot, or buffers it first and then gives it one,
//     or refuses it.
//  5. ozclient.Client.Analyze sends it to Oz through Caddy's reverse_proxy,
//     prunes the answer while it flows and judges it by the rules of package oz.
//     If the call fails, it says why and whose fault that was.
//  6. With face matching, the app is asked for a photo and Oz once more
//     (facematch.go).
//  7. A replay guard has claimed the capsule in the meantime, and has the last
//     word (replay.go).
//  8. What happened becomes a [Result], which is final: header fields and
//     placeholders (result.go), log fields, metrics and events (observe.go) are
//     read from it.
//  9. forwards says whether the app may see it. If so, forward passes the
//     request on with the folder as its body (forward.go); otherwise refuse
//     answers (problem.go).
//
// # The map
//
// Imports go one way:
//
//	caddymodule ─▶ internal/diagnose ─▶ internal/ozclient ─▶ internal/oz, internal/upload
//	               internal/diagnose ─▶ internal/seal
//
//	config.go        the JSON config: fields, defaults, rules
//	caddyfile.go     the directive; caddyfile_store.go has what leads to a store
//	capacity.go      slots, queue and memory, and the gateways that share them
//	handler.go       provisioning, and the story above
//	request.go       what a request is; the reserved names
//	result.go        what came of a capsule
//	observe.go       what is seen of a capsule: log, events, own time
//	forward.go       the request as the app gets it
//	problem.go       refusals
//	sessiontoken.go  session tokens
//	facematch.go     the reference photo and the second call
//	replay.go        a capsule counts once; replaymemory.go its store in memory
//	seal.go          the signed proof of a decision
//	metrics.go       Prometheus collectors
//	way.go           what is remembered of a way to Oz
//	admin.go         /oz_instant/status and /oz_instant/ready; gauges.go has what is counted when it is asked for
//	command.go       caddy oz-instant; command_status.go, command_attack.go and command_size.go have their subcommands
//
//	internal/oz        the protocol: prune, read strictly, decide
//	internal/ozclient  the way to Oz
//	internal/upload    the client's body: progress, slots, queue, memory
//	internal/seal      keys and signing
//	internal/diagnose  check, status, explain, verify, attack and size
//	redis              the stores in Redis: of the replay guard, and of shared slots
package caddymodule
