// Package sandbox is a stand-in for Oz API Instant, to be run where the real one is not to be had: on a laptop, in tests,
// in a load test. It is an ordinary net/http handler.
//
// It speaks the calls of the liveness flow and answers them in the shapes that the vendor documents:
//
//	GET  /api/authorize/session_token   a session token: a JWT signed with ES384, good for 900 seconds
//	POST /api/instant/folders/          a capsule in, a folder out: 201, or 400 with error code 3, 4, 5, 13 or 14
//	POST /api/instant/folders/          images in as multipart/form-data, and whether they show one person: see below
//	GET  /api/version                   200 when it is up
//
// and, when [Options.Accounts] holds somebody, those of the auth component, whose access tokens are then asked for:
//
//	POST /api/authorize/auth/           {"credentials": {"email": "…", "password": "…"}} in, a pair of tokens out
//	POST /api/authorize/refresh/        {"expire_token": "…"} in, the next pair out; the old one dies when that is used
//
// One more is the sandbox's own, and makes capsules: see [CapsulePath].
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
// The header names the session token, N, the payload (which outcome is wanted, who is in front of the camera, the app's
// metadata, the event session, and a fault that is to strike this capsule, if any) and the media (name, type, tags, size and CRC-32 of each):
//
//	{"session_token": "…", "size": N,
//	 "payload": {"outcome": "SUCCESS", "person": "alice", "event_session_id": "…", "meta_data": {"transaction_id": "order-1"}},
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
// # Faces
//
// Every name is a person who looks like nobody else: [Portrait] draws a photo of them, and the best shot of a capsule shows
// whom the capsule names. Whether two images show one person is decided by the images alone, whatever their size, quality
// and format; an image that is not drawn like this has no face and is like nothing. With an [Options.BestShotSize] of less
// than 2,500 faces get too small to be recognized.
//
// Images to match come as the guide's step 4 has it: a plain field "payload" and a file each. They are judged in this order:
//
//	3  no multipart, no payload, no JSON object in it, no media:tags, no analyses, an analysis without a type
//	5  something in the payload is of the wrong type
//	4  more than one payload, no analyses in the list, or one that is not biometry (in lower or upper case)
//	4  a file's key, its filename and its key in media:tags are not one and the same string, or a key has no file
//	5  a file is neither JPEG nor PNG
//	4  an image does not decode, or is too large
//	4  fewer than two images are tagged photo_selfie or as the front of a document (see [Options.FewMediaFail])
//
// Then all pairs are compared, and the least similar one counts: from [Threshold] on SUCCESS, else DECLINED.
//
// # What it keeps
//
// Nothing of a capsule, an image or a token but its digest. Logs name digests, sizes and codes; never a token, an account, an
// image or a byte of a capsule. Only the header of a request stays in its [Receipt] as it came, for tests to look at.
package sandbox
