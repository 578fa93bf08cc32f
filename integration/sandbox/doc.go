// Package sandbox is a stand-in for Oz API Instant, to be run where the real one is not to be had: on a laptop, in tests,
// in a load test. It is an ordinary net/http handler.
//
// It speaks the three calls of the liveness flow and answers them in the shapes that the vendor documents:
//
//	GET  /api/authorize/session_token   a session token: a JWT signed with ES384, good for 900 seconds
//	POST /api/instant/folders/          a capsule in, a folder out: 201, or 400 with error code 3, 4, 5, 13 or 14
//	GET  /api/version                   200 when it is up
//
// What the documents leave open is a switch in [Options]; its zero value is the most likely reading. What goes wrong in
// the field is a [Fault]: ask [Kinds] for the list. Faults fail on the socket as the real thing would.
//
// # Capsules
//
// The vendor's OzCapsula container is closed. The sandbox has a format of its own, made by [Sandbox.Capsule] and
// [BuildCapsule], so that every documented error comes about for the reason the vendor gives. All integers are big endian:
//
//	 8 bytes  magic "OZSANDB1"
//	 4 bytes  H, length of the header, at most 1 MiB
//	 H bytes  header: JSON, see below
//	32 bytes  signature: HMAC-SHA256 with [CapsuleKey] over everything before it
//	 N bytes  the media, one after the other (random bytes)
//	32 bytes  summing hash: SHA-256 over everything before it
//
// The header names the session token, N, the payload (which outcome is wanted, the app's metadata, the event session) and
// the media (name, type, tags, size and CRC-32 of each):
//
//	{"session_token": "…", "size": N,
//	 "payload": {"outcome": "SUCCESS", "event_session_id": "…", "meta_data": {"transaction_id": "order-1"}},
//	 "media": [{"name": "video_selfie_blank.mp4", "type": "VIDEO_FOLDER", "tags": ["video_selfie"], "size": N, "crc32": 1}]}
//
// A capsule is judged in this order:
//
//	13  the body is empty, or its Content-Type is not application/octet-stream
//	14  other magic, cut or too long, header unreadable, signature wrong, summing hash wrong,
//	    session token empty, forged, expired or used before
//	 3  "payload" is null
//	 4  "media" is empty
//	 5  a medium's CRC-32 or size does not fit
//
// The first two kinds need no look at the media, the last three do: "before" and "after unpacking" in the vendor's words.
// Signing with a published key makes capsules anybody can forge. That is fine here, and the reason why a sandbox must never
// be reachable by anyone who might take its word for something.
//
// # What it keeps
//
// Nothing of a capsule but its digest. Logs name digests, sizes and codes; never a token, an image or a byte of a capsule.
package sandbox
