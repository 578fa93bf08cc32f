package integration_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testLeaveDuringUpload promises that a client that leaves before the end of its capsule leaves nothing behind, however it goes and
// wherever: no decision, no request to the app, no connection to Oz, nothing in flight, and one line in the log. Before the first
// 32 KiB Oz has not heard of it.
func testLeaveDuringUpload(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, leaveSite)
	capsule := x.capsuleOf(t, "s")
	for name, begin := range leavers {
		for _, size := range []int{len(capsule), -1} {
			for _, offset := range []int{0, 1, firstPiece - 1, firstPiece, len(capsule) - 1, len(capsule)} {
				if offset == size {
					continue // that is all of it
				}
				t.Run(name+" after "+strconv.Itoa(offset)+" of "+strconv.Itoa(size), func(t *testing.T) {
					x.leaveAfter(t, "/finish", func(path string) leaver { return begin(t, x.caddyProc, path, size) }, capsule[:offset])
					most := 1
					if offset < firstPiece {
						most = 0
					}
					x.assertNoWholeCapsule(t, most)
				})
			}
		}
	}
}

// leaveAfter has a client send a part of its capsule and leave, and judges what came of it.
func (x *chain) leaveAfter(t *testing.T, path string, begin func(path string) leaver, part []byte) {
	t.Helper()
	x.leave(t, func() time.Time {
		client := begin(path)
		if len(part) > 0 {
			client.send(part)
		}
		x.beforeLeaving(t, len(part))
		left := time.Now()
		client.leave()
		return left
	})
}
