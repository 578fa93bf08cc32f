// Package oz knows the Oz Instant API: what its answers look like, which part
// of them is too heavy to carry around, and what they mean for the user who
// is being verified. It knows nothing of Caddy or of HTTP servers.
//
// An answer passes three readers, each stricter than the one before:
//
//   - [Pruner] cuts the best shot out while the answer flows in. It judges the
//     structure of all of it, since nobody will see what it cut.
//   - [ReadFolder] reads what is left by the strictest rules, so that no two
//     readers further on can see two different folders in it.
//   - [Policy.Judge] turns folder and HTTP status into one [Decision].
package oz
